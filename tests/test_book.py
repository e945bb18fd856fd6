"""The built book of the smoke tier, as it lies on the disk, and the scripts that make it."""

import hashlib
import importlib
import json
import re
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

ROOT = Path(__file__).parent.parent
EXECUTE = ROOT / "book" / "_tools" / "execute.py"
TOC = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
HTML = ROOT / "_build" / "test" / "html"
MATHJAX = ROOT / "book" / "_vendor" / "mathjax"

HEADER = """\
---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {display_name: Python 3, language: python, name: python3}
---
"""
PARAMETERS = """
```{code-cell}
:tags: [parameters]
TIER = "smoke"
SEED = 0
```
"""


class Page(HTMLParser):
    """What the tests ask of a page: images, the article's text with code left out, and its code cells."""

    VOID = frozenset({"br", "hr", "img", "input", "link", "meta", "source", "wbr", "path", "circle"})

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.path = name, HTML / f"{name}.html"
        self.images: list[dict[str, str]] = []
        self.classes: list[str] = []
        self.text = ""
        self._open: list[tuple[str, str]] = []
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = {key: value or "" for key, value in attrs}
        inside = tag if tag in ("article", "pre", "code", "script", "style") else ""
        if tag not in self.VOID:
            self._open.append((tag, inside))
        self.classes.append(attributes.get("class", ""))
        if tag == "img":
            self.images.append(attributes)

    def handle_endtag(self, tag):
        while self._open and tag not in self.VOID:  # <img/> reports an end as well, and nothing was opened
            if self._open.pop()[0] == tag:
                break

    def handle_data(self, data):
        inside = {name for _, name in self._open}
        if "article" in inside and not inside & {"pre", "code", "script", "style"}:
            self.text += data


@pytest.fixture(scope="module", params=PAGES)
def page(request) -> Page:
    if not HTML.exists():
        pytest.fail("There is no built book to test: run `make test`, which builds it first.")
    return Page(request.param)


@pytest.mark.book
class TestPages:
    def test_every_figure_says_in_words_what_it_shows(self, page):
        silent = [image["src"] for image in page.images if len(image.get("alt", "").split()) < 3]
        assert silent == []

    def test_every_figure_is_there(self, page):
        assert [i["src"] for i in page.images if not (HTML / unquote(i["src"])).is_file()] == []

    def test_nothing_went_wrong_on_the_page(self, page):
        markup = page.path.read_text(encoding="utf-8")
        assert "Traceback (most recent call last)" not in markup
        assert not [name for name in page.classes if {"stderr", "traceback", "system-message"} & set(name.split())]

    def test_no_raw_markup_is_left(self, page):
        raw = re.findall(r"\{[a-z]+(?::[a-z]+)?\}`|```|:::|\{code-cell\}|\$\$|\]\(", page.text)
        assert raw == []

    def test_every_code_cell_has_run(self, page):
        executed = ROOT / "_tested" / f"{page.name}.ipynb"
        if not executed.exists():
            assert not [name for name in page.classes if "cell_input" in name.split()]
            return
        import nbformat

        cells = [cell for cell in nbformat.read(executed, as_version=4).cells if cell.cell_type == "code"]
        assert cells
        assert [cell.source for cell in cells if cell.source.strip() and cell.execution_count is None] == []

    def test_the_page_says_what_made_it(self, page):
        if (ROOT / "_tested" / f"{page.name}.ipynb").exists():
            stated = page.text.lower()
            assert [word for word in ("tier", "data", "hardware", "commit") if word not in stated] == []


@pytest.mark.parametrize("chapter", sorted((ROOT / "book").glob("*.md")), ids=lambda path: path.stem)
def test_every_chapter_checks_its_parameters_first(chapter):
    text = chapter.read_text()
    assert ("book.check_parameters(TIER, SEED)" in text) == ("{code-cell}" in text)


class TestNotebooks:
    @pytest.fixture
    def tool(self, monkeypatch):
        monkeypatch.syspath_prepend(ROOT / "book" / "_tools")
        return importlib.import_module("notebooks")

    @pytest.mark.parametrize("chapter", sorted((ROOT / "book").glob("*.md")), ids=lambda path: path.stem)
    def test_they_are_plain_markdown_and_the_same_code(self, tool, chapter, monkeypatch):
        import jupytext
        import nbformat

        monkeypatch.chdir(ROOT)
        if "{code-cell}" not in chapter.read_text():
            return
        notebook = nbformat.reads(tool.to_notebook(chapter), as_version=4)
        prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert re.findall(r"\{[a-z:-]+\}`|^(?:```|:::)\{.*|\$\$ \(.*", prose, re.MULTILINE) == []
        code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        assert code == [cell.source for cell in jupytext.read(chapter).cells if cell.cell_type == "code"]

    def test_what_only_the_builder_understands_is_written_out(self, tool):
        myst = textwrap.dedent("""
            The {sym}`\\tau` of {eq}`eq-x` {cite}`jang2017gumbel`.

            $$
            a = b
            $$ (eq-x)

            :::{admonition} Predict
            :class: tip
            Which is larger?
            :::

            ```bash
            make test
            ```
        """)
        plain = textwrap.dedent("""
            The $\\tau$ of (eq-x) [jang2017gumbel].

            $$
            a = b
            \\tag{eq-x}
            $$

            **Predict**

            Which is larger?

            ```bash
            make test
            ```
        """)
        assert tool.plain_markdown(myst) == plain

    @pytest.mark.parametrize(
        ("directive", "options", "named"),
        [
            ("{simplex}", ":figure: fig-x\n", " hand;"),
            ("{explorer} a-run", "", " (`a-run`);"),
            ("{film} b", "", " (`b`);"),
        ],
    )
    def test_what_lives_in_the_built_book_only_becomes_a_sentence(self, tool, directive, options, named):
        plain = tool.plain_markdown(f"Before.\n\n```{directive}\n{options}```\n\nAfter.\n")
        before, sentence, after = plain.strip().split("\n\n")
        assert (before, after) == ("Before.", "After.")
        assert sentence.startswith("*Here the built book has ")
        assert sentence.endswith(f"{named} `make serve` shows it.*")


def test_the_vendored_mathjax_is_the_one_that_its_readme_names():
    digest = hashlib.sha256((MATHJAX / "tex-svg-full.js").read_bytes()).hexdigest()
    assert f"`{digest}`" in (MATHJAX / "README.md").read_text()


def run_chapter(folder: Path, text: str, tier: str = "cpu", seed: str = "7") -> subprocess.CompletedProcess:
    chapter = folder / "chapter.md"
    chapter.write_text(text)
    command = [
        sys.executable,
        EXECUTE,
        chapter,
        "--tier",
        tier,
        "--seed",
        seed,
        "--output",
        folder / "out/chapter.ipynb",
    ]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
class TestExecute:
    def test_a_good_chapter_gets_its_parameters(self, tmp_path):
        done = run_chapter(tmp_path, HEADER + PARAMETERS + "\n```{code-cell}\nprint(TIER, SEED * 2)\n```\n")
        assert (done.returncode, done.stderr) == (0, "")
        written = (tmp_path / "out/chapter.ipynb").read_text()
        assert "cpu 14" in written
        assert str(tmp_path) not in written

    def test_a_failing_chapter_keeps_the_last_good_notebook_and_the_partial_one(self, tmp_path):
        good = tmp_path / "out/chapter.ipynb"
        good.parent.mkdir()
        good.write_text("the last good one")
        code = textwrap.dedent("""
            ```{code-cell}
            print("so far so good")
            ```

            ```{code-cell}
            # a comment
            ratio = 1 / 0
            ```
        """)
        done = run_chapter(tmp_path, HEADER + PARAMETERS + code)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        for part in ("chapter.md", "`ratio = 1 / 0`", "ZeroDivisionError: division by zero"):
            assert part in done.stderr
        assert good.read_text() == "the last good one"
        assert "so far so good" in (tmp_path / "out.failed/chapter.ipynb").read_text()

    @pytest.mark.parametrize(
        ("tier", "seed", "sentence"),
        [
            ("huge", "1", "The parameter TIER must be smoke, cpu or paper, not 'huge'."),
            ("cpu", "-1", "The parameter SEED must be from 0 to 2,147,483,647, not -1."),
        ],
    )
    def test_a_parameter_out_of_range_is_named_on_top(self, tmp_path, tier, seed, sentence):
        code = "\n```{code-cell}\nfrom jointvae import book\n\nbook.check_parameters(TIER, SEED)\n```\n"
        done = run_chapter(tmp_path, HEADER + PARAMETERS + code, tier, seed)
        assert done.returncode == 1
        assert all(part in done.stderr for part in ("chapter.md", sentence))
        assert done.stderr.count("\n") == 1
        notebook = json.loads((tmp_path / "out.failed/chapter.ipynb").read_text())
        assert sentence in "".join(notebook["cells"][0]["source"])

    def test_output_on_stderr_is_a_failure(self, tmp_path):
        code = "\n```{code-cell}\nimport warnings\nwarnings.warn('mind the gap')\n```\n"
        done = run_chapter(tmp_path, HEADER + PARAMETERS + code)
        assert done.returncode == 1
        assert "mind the gap" in done.stderr
        assert not (tmp_path / "out/chapter.ipynb").exists()


class TestExecuteRefuses:
    def test_a_parameter_that_is_not_declared(self, tmp_path):
        done = run_chapter(tmp_path, HEADER + PARAMETERS.replace("SEED = 0\n", ""))
        assert done.returncode == 1
        assert "does not declare SEED" in done.stderr

    def test_code_that_would_never_run(self, tmp_path):
        done = run_chapter(tmp_path, "# Title\n\n```{code-cell}\n1\n```\n")
        assert done.returncode == 1
        assert "no jupytext header" in done.stderr


def test_a_page_without_code_is_copied_and_its_links_resolve(tmp_path):
    done = run_chapter(tmp_path, "# Title\n\nSee [the next](other.md) and [a place](other.md#here).\n")
    assert done.returncode == 0
    copied = (tmp_path / "out/chapter.md").read_text()
    assert copied == "# Title\n\nSee [the next](project:other.md) and [a place](project:other.md#here).\n"
