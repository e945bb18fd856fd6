"""Write every chapter as a notebook into notebooks/, for the reader to change; a changed one is never overwritten."""

import hashlib
import sys
from pathlib import Path

import jupytext
import nbformat
from execute import LINK_TO_PAGE, is_notebook

from jointvae.files import sha256, write_atomic

BOOK, NOTEBOOKS = Path("book"), Path("notebooks")


def main() -> int:
    """Write the notebooks and say what became of each."""
    NOTEBOOKS.mkdir(exist_ok=True)
    (NOTEBOOKS / ".gitignore").write_text("*\n")
    for chapter in sorted(BOOK.glob("*.md")):
        if is_notebook(chapter):
            write(chapter, NOTEBOOKS / f"{chapter.stem}.ipynb")
    print("Open them in any Jupyter, with the Python of .venv as the kernel.")
    return 0


def write(chapter: Path, target: Path) -> None:
    """Write one notebook, unless the reader has changed the one that stands there."""
    content = to_notebook(chapter)
    # The hash of what was written last tells a changed notebook from one that is merely old.
    mark = target.with_name(f".{target.name}.sha256")
    if target.exists() and not (mark.exists() and mark.read_text() == sha256(target)):
        print(f"{target} was changed and stays as it is; delete it to get a fresh one.")
        return
    write_atomic(target, content)
    write_atomic(mark, hashlib.sha256(content).hexdigest().encode())
    print(f"{target} is written.")


def to_notebook(chapter: Path) -> bytes:
    """The chapter as a notebook without outputs; its cells get stable names, so that equal text gives equal bytes."""
    notebook = jupytext.reads(LINK_TO_PAGE.sub("](../book/", chapter.read_text(encoding="utf-8")), fmt="md:myst")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    return nbformat.writes(notebook).encode()


if __name__ == "__main__":
    sys.exit(main())
