"""Write every chapter as a notebook into notebooks/, for the reader to change; a changed one is never overwritten.

Any Jupyter opens and runs them as they are. What only the book's builder understands is put in plain Markdown first.
Where _config.yml names the repository that publishes them, each notebook begins by getting what it needs from there.
"""

import hashlib
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jupytext
import nbformat
import yaml
from execute import is_notebook

from jointvae.files import sha256, write_atomic

sys.path.insert(0, str(Path(__file__).parent.parent / "_ext"))
from facts import facts, show

BOOK, NOTEBOOKS = Path("book"), Path("notebooks")
BRANCH = "notebooks"  # of the repository that publishes them
SOURCES = "../book/{}.md"  # where a notebook in that folder finds the pages that are none
LINK_TO_PAGE = re.compile(r"\]\((?P<page>[\w-]+)\.md(?=[#)])")
ROLE = re.compile(r"\{(?P<role>[a-z:]+)\}`(?P<text>[^`]*)`")
LABELLED = re.compile(
    r"^(?P<indent>[ \t]*)\$\$[ \t]*\n(?P<formula>.*?)^[ \t]*\$\$[ \t]*\((?P<label>[\w-]+)\)", re.DOTALL | re.MULTILINE
)
FENCE = re.compile(r"^(?P<fence>`{3,}|:{3,})(?:\{(?P<name>[\w-]+)\}|(?P<language>\w+))?[ \t]*(?P<title>.*)$")
OPTION = re.compile(r"^:[\w-]+:")
PLACE = re.compile(r"^\([\w-]+\)=[ \t]*$\n?", re.MULTILINE)
TITLES = dict.fromkeys(("exercise", "exercise-start"), "Exercise.") | {"solution-start": "Solution."}
# A server such as Colab opens a notebook alone, without the package and its results.
SETUP = """\
# Needed only on a server: where the package is missing, get it, and the results that the book reads.
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("jointvae") is None:
    home = Path("..").resolve()
    if not (home / "jointvae").is_dir():
        home = Path("jointvae-book").resolve()
        if not home.exists():
            subprocess.run(["git", "clone", "--depth=1", "REPOSITORY", home], check=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", home], check=True)
    sys.path.insert(0, str(home))
"""
SILENT = {"exercise-end", "solution-end", "bibliography"}
# What lives in the built book only, by its directive; an argument says which one.
LIVE = {
    "simplex": "draws in a triangle to move by hand",
    "explorer": "an explorer of the latents",
    "film": "a film of a training",
}


def main() -> int:
    """Write the notebooks and say what became of each."""
    repository = published()
    NOTEBOOKS.mkdir(exist_ok=True)
    (NOTEBOOKS / ".gitignore").write_text("*\n")
    for chapter in sorted(BOOK.glob("*.md")):
        if is_notebook(chapter):
            write(chapter, NOTEBOOKS / f"{chapter.stem}.ipynb", repository)
    print("Open them in any Jupyter that can use the Python of .venv; to have one there:")
    print("  .venv/bin/python -m pip install jupyterlab && .venv/bin/jupyter lab notebooks")
    return 0


def published() -> str:
    """The address of the repository that publishes the notebooks, from _config.yml; empty where there is none."""
    config = yaml.safe_load(Path("_config.yml").read_text(encoding="utf-8"))
    return config["sphinx"]["config"].get("notebooks_repository") or ""


def write(chapter: Path, target: Path, repository: str = "") -> None:
    """Write one notebook, unless the reader has changed the one that stands there."""
    content = to_notebook(chapter, repository)
    # The hash of what was written last tells a changed notebook from one that is merely old.
    mark = target.with_name(f".{target.name}.sha256")
    if target.exists() and not (mark.exists() and mark.read_text() == sha256(target)):
        print(f"{target} was changed and stays as it is; delete it to get a fresh one.")
        return
    write_atomic(target, content)
    write_atomic(mark, hashlib.sha256(content).hexdigest().encode())
    print(f"{target} is written.")


def to_notebook(chapter: Path, repository: str = "", pages: str = SOURCES) -> bytes:
    """The chapter as a notebook without outputs; its cells get stable names, so that equal text gives equal bytes.

    With a `repository` it begins with a cell that gets the package from there where it is missing. `pages` says where
    the pages without code are, with {} for a page's name.
    """
    text = LINK_TO_PAGE.sub(lambda found: "](" + pages.format(found["page"]), chapter.read_text(encoding="utf-8"))
    notebook = jupytext.reads(text, fmt="md:myst")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        if cell.cell_type == "markdown":
            cell.source = plain_markdown(cell.source, pages)
    if repository:
        setup = nbformat.v4.new_code_cell(SETUP.replace("REPOSITORY", repository).rstrip(), id="setup")
        first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
        notebook.cells.insert(first, setup)
    return nbformat.writes(notebook).encode()


def plain_markdown(text: str, pages: str = SOURCES) -> str:
    """MyST as Markdown that any notebook shows: roles, labels of formulas and boxes are written out."""
    text = LABELLED.sub(lambda found: _tagged(**found.groupdict()), text)
    return PLACE.sub("", ROLE.sub(partial(_role, pages=pages), "\n".join(_without_boxes(text.split("\n")))))


def _tagged(indent: str, formula: str, label: str) -> str:
    return f"{indent}$$\n{formula}{indent}\\tag{{{label}}}\n{indent}$$"


def _without_boxes(lines: list[str]) -> Iterator[str]:
    """Boxes (directives) become a title and their text; fenced code stays."""
    boxes: list[bool] = []  # of every open fence: is it a box?
    options = False
    for line in lines:
        found = FENCE.match(line)
        if options and OPTION.match(line):
            continue
        options = bool(found and found["name"])
        if not found:
            yield line
        elif found["name"]:
            boxes.append(True)
            if found["name"] in LIVE:
                yield _pointer(found["name"], found["title"].strip())
            elif found["name"] not in SILENT:
                title = TITLES.get(found["name"]) or found["title"].strip() or f"{found['name'].capitalize()}."
                yield from (f"**{title}**", "")
        elif found["language"]:
            boxes.append(False)
            yield line
        elif not (boxes and boxes.pop()):
            yield line


def _pointer(name: str, argument: str) -> str:
    """The sentence that stands in a notebook for what it can't show."""
    which = f" (`{argument}`)" if argument else ""
    return f"*Here the built book has {LIVE[name]}{which}; `make serve` shows it.*"


def _role(found: re.Match[str], pages: str) -> str:
    role, text = found["role"], found["text"]
    if role in ("sym", "defsym"):
        return f"${text}$"
    if role == "fact":
        name, _, spec = (part.strip() for part in text.replace("\\|", "|").partition("|"))
        return show(facts(), name, spec)
    if role == "doc":
        page = BOOK / f"{text}.md"
        return f"[{text}]({f'{text}.ipynb' if page.exists() and is_notebook(page) else pages.format(text)})"
    if role == "term":
        return text.partition(" <")[0]
    if role == "eq":
        return f"({text})"
    return f"[{text}]"  # a citation, or a figure by its name


if __name__ == "__main__":
    sys.exit(main())
