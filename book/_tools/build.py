"""Build the site from the executed pages, strictly and from clean, and keep the last good one if that fails.

An incremental build can hide warnings and leave stale numbers, and with this few pages it saves little. What the
command `jupyter-book build` calls is called here directly, because the command ends a mere warning with a traceback.
"""

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: no traceback, and the next build starts from clean

from jupyter_book.sphinx import build_sphinx

BOOK = Path("book")
ASSETS = ("*.bib", "*.png", "*.svg", "*.jpg")


def main() -> int:
    """Build what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", type=Path, required=True, help="the folder of executed pages")
    parser.add_argument("--site", type=Path, required=True, help="where the pages go: SITE/html")
    arguments = parser.parse_args()
    start = time.monotonic()
    complete(arguments.stage)
    work = arguments.site / "work"
    shutil.rmtree(work, ignore_errors=True)
    finished = build_sphinx(
        arguments.stage.absolute(),
        work / "html",
        path_config=Path("_config.yml"),
        noconfig=True,
        confoverrides={"external_toc_path": str((BOOK / "_toc.yml").absolute()), "latex_individualpages": False},
        quiet=True,
        warningiserror=True,
        keep_going=True,
    )
    if finished != 0:
        print(f"The book was not built: see the warnings above; the pages so far are in {work}.", file=sys.stderr)
        return 1
    html = arguments.site / "html"
    shutil.rmtree(html, ignore_errors=True)
    shutil.move(work / "html", html)
    shutil.rmtree(work)
    print(f"Built {html / 'index.html'} in {time.monotonic() - start:.0f} s.")
    return 0


def complete(stage: Path) -> None:
    """Remove pages whose source is gone, and add what the pages need beside them."""
    sources = {source.stem for source in BOOK.glob("*.md")}
    for page in [*stage.glob("*.ipynb"), *stage.glob("*.md")]:
        if page.stem not in sources:
            page.unlink()
    for pattern in ASSETS:
        for asset in BOOK.glob(pattern):
            shutil.copy2(asset, stage)
    shutil.copytree(BOOK / "_static", stage / "_static", dirs_exist_ok=True)


if __name__ == "__main__":
    sys.exit(main())
