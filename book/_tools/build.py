"""Build the site from the executed pages, strictly, and keep the last good one if that fails.

A page is read again when it changed, and written when it or what it shows of others did (book/_ext/writing.py). So a
title that another page shows is never stale, and a link that breaks on a page that did not change is still found. All
are read and written again when anything beside them changed that they may show (the package, a result, an extension, a
setting), or when the last build failed, because the warnings of a page come when it is read.

What the command `jupyter-book build` calls is called here directly, because the command ends a mere warning with a
traceback.
"""

import argparse
import hashlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: no traceback, and the next build starts from clean

# Sphinx shares the pages among forks of this process, and in a fork of a process with threads PyTorch can hang.
os.environ["OMP_NUM_THREADS"] = "1"

from jupyter_book.sphinx import build_sphinx

BOOK = Path("book")
ASSETS = ("*.bib", "*.png", "*.svg", "*.jpg")
# What a page may show that is not in the page itself. Every page may show a symbol's meaning from that of notation.
BESIDE = ("_config.yml", "CITATION.cff", "*.lock", "torch.txt", "jointvae/*.py", "results/**/*", "runs/*.json")
BESIDE_IN_BOOK = ("_*/**/*", "_toc.yml", *ASSETS, "notation.md")


def main() -> int:
    """Build what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", type=Path, required=True, help="the folder of executed pages")
    parser.add_argument("--site", type=Path, required=True, help="where the pages go: SITE/html")
    arguments = parser.parse_args()
    start = time.monotonic()
    complete(arguments.stage)
    work = arguments.site / "work"
    mark, beside = work / "beside", fingerprint()
    if not mark.exists() or mark.read_text() != beside:
        shutil.rmtree(work, ignore_errors=True)
    mark.unlink(missing_ok=True)
    shutil.rmtree(work / "html" / "_static", ignore_errors=True)  # else its files get other names on pages written now
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
    html, new = arguments.site / "html", arguments.site / "new"
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(work / "html", new)
    shutil.rmtree(html, ignore_errors=True)
    new.rename(html)
    (html / "index.html").touch()  # its age tells make when the site was built
    mark.write_text(beside)
    print(f"Built {html / 'index.html'} in {time.monotonic() - start:.0f} s.")
    return 0


def fingerprint() -> str:
    """The SHA-256 of all that stands beside the pages, with the names."""
    files = [file for pattern in BESIDE for file in Path().glob(pattern)]
    files += [file for pattern in BESIDE_IN_BOOK for file in BOOK.glob(pattern)]
    whole = hashlib.sha256(sys.version.encode())
    for file in sorted(file for file in files if file.is_file() and file.suffix != ".pyc"):
        whole.update(f"{file}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


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
