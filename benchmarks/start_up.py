"""How long one waits: for the command line's help, for the import, and for a book that did not change.

    python benchmarks/start_up.py [--rounds 5]

The import of the package is compared with the import of torch alone, by turns. The book is the one that `make test`
builds in the smoke tier; it must be there. Seconds are those of this machine, the smallest of the rounds.
"""

import subprocess
import sys
import time
from pathlib import Path

from _shared import parser, run, save

from jointvae.errors import JointVAEError

ROOT = Path(__file__).parents[1]
SITE = ["make", "site", "TIER=smoke", "SEED=0", "STAGE=_tested", "SITE=_build/test"]
SMALL_PAGE = ROOT / "book" / "notation.md"


def seconds(*command: str) -> float:
    """Wall time of a command that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Measure, print, record."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    if not (ROOT / "_build" / "test" / "html" / "index.html").exists():
        raise JointVAEError("There is no book of the smoke tier to build again: run `make test` first.")
    python = sys.executable
    modules = ("torch", "jointvae", "jointvae.training", "jointvae.runs")
    imports = [[seconds(python, "-c", f"import {name}") for name in modules] for _ in range(given.rounds)]
    seconds(*SITE)  # so that nothing is left to do
    one_chapter = f"{python} book/_tools/execute.py book/{SMALL_PAGE.name} --tier smoke --output"
    alone = seconds(*one_chapter.split(), str(ROOT / "_tested" / SMALL_PAGE.with_suffix(".ipynb").name))
    unchanged = min(seconds(*SITE) for _ in range(given.rounds))
    SMALL_PAGE.touch()
    found = {
        "help": min(seconds(python, "-m", "jointvae", "--help") for _ in range(given.rounds)),
        "imports": {name: min(times) for name, times in zip(modules, zip(*imports, strict=True), strict=True)},
        "book_unchanged": unchanged,
        "chapter_alone": alone,
        "book_one_chapter_changed": seconds(*SITE),
    }
    for name, value in (found | found["imports"]).items():
        if isinstance(value, float):
            print(f"{name.replace('_', ' '):<26} {value:6.2f} s")
    save("start_up", found, given.record, device="cpu")


if __name__ == "__main__":
    run(main)
