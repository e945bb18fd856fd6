"""Building the site again: only what changed is read, and what comes out is what a build from nothing gives."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from jointvae.files import sha256

ROOT = Path(__file__).parent.parent
TOC = "format: jb-book\nroot: front\nchapters:\n- file: stated\n- file: refers\n- file: identities\n- file: notation\n"
PAGES = {
    "front": "# A book\n\nIt begins.\n",
    "refers": "# Refers\n\nSee {ref}`section-there`, {eq}`eq-one` and {sym}`x`.\n",
    "identities": "# Identities\n\n```{identities}\n```\n",
    "notation": "# Notation\n\n| Symbol | Unit | Meaning |\n|:--|:--|:--|\n| {defsym}`x` | nats | what is seen |\n",
}
# One pixel, white and black.
WHITE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAGwXoAAAAAABJRU5ErkJggg=="
BLACK = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


@pytest.fixture
def tool(monkeypatch):
    """The script that builds, as a module."""
    monkeypatch.syspath_prepend(ROOT / "book" / "_tools")
    return importlib.import_module("build")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the settings and extensions of the real book."""
    project = tmp_path_factory.mktemp("project")
    for name in ("_config.yml", "CITATION.cff"):
        shutil.copy2(ROOT / name, project)
    for name in ("_ext", "_static", "_tools", "_web"):
        shutil.copytree(ROOT / "book" / name, project / "book" / name, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "book" / "_vendor").mkdir()
    (project / "book" / "references.bib").write_text("")
    (project / "stage").mkdir()
    return project


@pytest.fixture
def project(place) -> Path:
    """A built book of five pages, whatever a test before has done to it."""
    (place / "book" / "_toc.yml").write_text(TOC)
    for name, text in PAGES.items():
        (place / "book" / f"{name}.md").write_text(text)
        (place / "stage" / f"{name}.md").write_text(text)
    (place / "book" / "stated.md").touch()
    state(place)
    built = build(place)
    assert built.returncode == 0, built.stderr
    return place


def state(project: Path, title: str = "There", label: str = "section-there", picture: str = WHITE, before: str = ""):
    """Write the page that the others refer to, as if it had been executed."""
    check = {"check": {"label": "eq-one", "how": "", "what": ""}}
    outputs = [new_output("display_data", {"image/png": picture}, metadata=check)]
    prose = f"# Stated\n\n({label})=\n## {title}\n\n{before}$$\nx = 1\n$$ (eq-one)\n"
    notebook = new_notebook(cells=[new_markdown_cell(prose), new_code_cell("picture", outputs=outputs)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
    for number, cell in enumerate(notebook.cells):
        cell.id = str(number)  # else it is drawn, and two builds differ
    nbformat.write(notebook, project / "stage" / "stated.ipynb")


def build(project: Path, site: str = "site") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "book/_tools/build.py", "--stage", "stage", "--site", site],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def pages_read_since(project: Path, moment: int) -> set[str]:
    trees = (project / "site" / "work" / ".doctrees").glob("*.doctree")
    return {tree.stem for tree in trees if tree.stat().st_mtime_ns > moment}


def contents(site: Path) -> dict[str, object]:
    """The SHA-256 of each file of a site, and what its search finds."""
    found: dict[str, object] = {str(file.relative_to(site)): sha256(file) for file in site.rglob("*") if file.is_file()}
    index = json.loads((site / "searchindex.js").read_text().removeprefix("Search.setIndex(").removesuffix(")"))
    for terms in ("terms", "titleterms"):  # Sphinx keeps words that are nowhere any more
        index[terms] = {word: pages for word, pages in index[terms].items() if pages != []}
    return found | {"searchindex.js": index}


def contents_from_nothing(project: Path) -> dict[str, object]:
    shutil.rmtree(project / "afresh", ignore_errors=True)
    built = build(project, "afresh")
    assert built.returncode == 0, built.stderr
    return contents(project / "afresh" / "html")


def now(project: Path) -> int:
    """The time by the clock of the file system."""
    (project / "clock").touch()
    return (project / "clock").stat().st_mtime_ns


def test_only_what_changed_is_read_and_the_site_is_that_of_a_build_from_nothing(project):
    moment = now(project)
    state(project, title="Elsewhere", picture=BLACK, before="$$\ny = 1\n$$ (def-y)\n\n")
    again = build(project)
    assert again.returncode == 0, again.stderr
    assert pages_read_since(project, moment) == {"stated", "identities"}  # the second lists what all pages state
    page = (project / "site" / "html" / "refers.html").read_text()
    assert "Elsewhere" in page  # it was not read again, yet it names the other page's section
    assert "(2)" in page  # and numbers its formula
    assert contents(project / "site" / "html") == contents_from_nothing(project)


def test_what_shows_nothing_of_the_changed_page_is_not_written_and_the_site_is_the_same_still(project):
    moment = now(project)
    state(project, picture=BLACK)
    again = build(project)
    assert again.returncode == 0, again.stderr
    written = {
        page.stem for page in (project / "site" / "work" / "html").glob("*.html") if page.stat().st_mtime_ns > moment
    }
    assert written & {*PAGES, "stated"} == {"stated", "identities", "front"}  # Sphinx always writes the first page
    assert (project / "site" / "html" / "index.html").stat().st_mtime_ns > moment  # else make would build once more
    assert contents(project / "site" / "html") == contents_from_nothing(project)


def test_a_link_that_breaks_on_a_page_that_did_not_change_is_found_and_the_last_good_site_stays(project):
    good = (project / "site" / "html" / "refers.html").read_bytes()
    state(project, label="another-label")
    broken = build(project)
    assert broken.returncode == 1
    assert "section-there" in broken.stderr
    assert "The book was not built" in broken.stderr
    assert (project / "site" / "html" / "refers.html").read_bytes() == good
    moment = now(project)
    state(project)
    mended = build(project)
    assert mended.returncode == 0, mended.stderr
    assert pages_read_since(project, moment) == {*PAGES, "stated"}  # after a failure nothing is trusted


def test_a_page_whose_source_is_gone_leaves_the_site(project):
    (project / "book" / "_toc.yml").write_text(TOC.replace("- file: refers\n", ""))
    (project / "book" / "refers.md").unlink()
    built = build(project)
    assert built.returncode == 0, built.stderr
    assert not (project / "site" / "html" / "refers.html").exists()


@pytest.mark.parametrize(
    "file",
    [
        "_config.yml",
        "CITATION.cff",
        "requirements.lock",
        "torch.txt",
        "jointvae/objectives.py",
        "results/claims.yml",
        "results/runs/mnist-seed0.json",
        "runs/digits-seed0.json",
        "book/_toc.yml",
        "book/notation.md",
        "book/references.bib",
        "book/_ext/facts.py",
        "book/_static/book.css",
        "book/_web/film/film.js",
    ],
)
def test_whatever_stands_beside_the_pages_counts(tool, tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    found = [tool.fingerprint()]
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    for content in ("one", "two"):
        Path(file).write_text(content)
        found.append(tool.fingerprint())
    assert len(set(found)) == 3
    assert (ROOT / file).exists() or file.startswith("runs/")  # the book has such a file


def test_the_pages_that_run_again_for_a_run_of_the_readers_are_those_that_show_it():
    named = re.search(r"^SHOW_RUNS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    show = re.compile(r"book\.(reader_run|your_records|RUNS)\b")
    assert named is not None
    assert set(named[1].split()) == {
        page.stem for page in (ROOT / "book").glob("*.md") if show.search(page.read_text())
    }


def test_a_page_does_not_count(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book").mkdir()
    before = tool.fingerprint()
    (tmp_path / "book" / "many.md").write_text("# Many")
    assert tool.fingerprint() == before
