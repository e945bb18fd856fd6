"""The ways into the book: glossary, search, citation, notebooks, what other sites show of it, the printed book."""

import importlib
import json
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import nbformat
import pytest
import yaml
from chromium import CHROMIUM, PATIENCE
from docutils import nodes
from PIL import Image
from pybtex.database import parse_file, parse_string
from test_book import HTML, PAGES, ROOT, TOC
from test_browser import site

__all__ = ["site"]  # the fixture of the other module, which pytest finds here

CHAPTERS = [name for name in PAGES if "{code-cell}" in (ROOT / "book" / f"{name}.md").read_text()]
REPOSITORY = "https://github.com/someone/a-book"


@pytest.fixture
def load(monkeypatch):
    """A module of the book's tools or of its extensions."""
    for folder in ("_tools", "_ext"):
        monkeypatch.syspath_prepend(ROOT / "book" / folder)
    monkeypatch.chdir(ROOT)
    return importlib.import_module


def text_of(page: str) -> str:
    if not HTML.exists():
        pytest.fail("There is no built book to test: run `make test`, which builds it first.")
    return (HTML / f"{page}.html").read_text(encoding="utf-8")


class TestGlossary:
    LINES = (ROOT / "book" / "glossary.md").read_text().split("```{glossary}\n")[1].removesuffix("```\n")
    ENTRIES = tuple(entry.split("\n  ") for entry in LINES.strip().split("\n\n"))

    def test_it_has_the_terms_of_the_book(self):
        terms = {term for head, *_ in self.ENTRIES for term in head.split("\n")}
        assert terms >= {
            "ELBO", "capacity", "KL", "posterior", "relaxed sample", "straight-through", "collapse", "tier", "claim",
            "one-to-one accuracy", "majority accuracy", "active unit", "traversal", "nats", "run record", "tau",
        }  # fmt: skip

    def test_each_entry_is_short_and_leads_to_a_page(self):
        for head, *text in self.ENTRIES:
            assert len(text) == 1, head
            pages = re.findall(r"\{doc\}`(\w+)`", text[0])
            assert pages, head
            assert set(pages) <= set(PAGES), head
            assert len(text[0].split()) < 60, head

    def test_the_terms_stand_in_order(self):
        first = [head.split("\n")[0].lower().replace("-", " ").replace("_", " ") for head, *_ in self.ENTRIES]
        assert first == sorted(first)


@pytest.mark.parametrize(
    ("symbol", "typed"),
    [
        (r"\tau", "tau"),
        (r"\varepsilon", "epsilon"),
        (r"\mathrm{KL}_c", "KL_c"),
        ("C_z", "C_z"),
        (r"\sigma^2", "sigma^2"),
    ],
)
def test_a_symbol_is_found_by_what_one_types(load, symbol, typed):
    assert load("symbols").name(symbol) == typed


class TestCitation:
    FILE = yaml.safe_load((ROOT / "CITATION.cff").read_text())

    def test_the_entry_says_what_the_file_says(self, load):
        text = load("citation").book_entry(self.FILE, "2026")
        (entry,) = parse_string(text, "bibtex").entries.values()
        assert entry.fields["title"].replace("{", "").replace("}", "") == self.FILE["title"]
        assert [str(person) for person in entry.persons["author"]] == [f"{{{a['name']}}}" for a in self.FILE["authors"]]
        assert entry.fields["note"] == f"Version {self.FILE['version']}"
        assert entry.fields["year"] == str(self.FILE.get("date-released", "2026"))[:4]

    def test_persons_a_date_and_an_address_are_used_when_they_are_there(self, load):
        people = [{"family-names": "Noether", "given-names": "Emmy"}, {"name": "A group"}]
        more = {"authors": people, "date-released": "2027-03-01", "url": "https://example.org/book"}
        text = load("citation").book_entry(self.FILE | more, "2026")
        (entry,) = parse_string(text, "bibtex").entries.values()
        assert [str(person) for person in entry.persons["author"]] == ["Noether, Emmy", "{A group}"]
        assert (entry.fields["year"], entry.fields["url"]) == ("2027", "https://example.org/book")

    def test_the_paper_is_the_same_in_both_files(self, load):
        cited = self.FILE["references"][0]
        path = ROOT / "book" / "references.bib"
        text = load("citation").bibliography_entry(path.read_text(), "dupont2018jointvae")
        entry = parse_string(text, "bibtex").entries["dupont2018jointvae"]
        assert entry == parse_file(str(path), "bibtex").entries["dupont2018jointvae"]
        assert entry.fields["title"] == cited["title"]
        assert entry.fields["year"] == str(cited["year"])
        people = [f"{a['family-names']}, {a['given-names']}" for a in cited["authors"]]
        assert [str(person) for person in entry.persons["author"]] == people
        assert cited["collection-title"] == f"{entry.fields['booktitle']} {entry.fields['volume']}"

    def test_an_unknown_work_is_refused(self, load):
        with pytest.raises(ValueError, match="no entry 'nobody'"):
            load("citation").bibliography_entry("", "nobody")

    @pytest.mark.book
    def test_the_page_shows_both_entries(self, load):
        shown = unescape(re.sub(r"<[^>]*>", "", text_of("cite")))
        tool = load("citation")
        config = yaml.safe_load((ROOT / "_config.yml").read_text())
        assert tool.book_entry(self.FILE, config["copyright"]) in shown
        assert tool.bibliography_entry(tool.BIBLIOGRAPHY.read_text(), "dupont2018jointvae") in shown


class TestNotebooks:
    def test_the_links_name_notebooks_that_are_written(self, load, tmp_path, monkeypatch, capsys):
        ways_in, notebooks = load("ways_in"), load("notebooks")
        (tmp_path / "book").symlink_to(ROOT / "book")
        config = (
            (ROOT / "_config.yml")
            .read_text()
            .replace('notebooks_repository: ""', f"notebooks_repository: {REPOSITORY}")
        )
        (tmp_path / "_config.yml").write_text(config)
        monkeypatch.chdir(tmp_path)
        assert notebooks.main() == 0
        written = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "notebooks").glob("*.ipynb")}
        assert {Path(name).stem for name in written} == set(CHAPTERS)
        for page in CHAPTERS:
            links = ways_in.links(REPOSITORY, page)
            colab, binder = urlsplit(links["Colab"]), urlsplit(links["Binder"])
            assert (colab.netloc, binder.netloc) == ("colab.research.google.com", "mybinder.org")
            assert colab.path.startswith("/github/someone/a-book/blob/notebooks/")
            assert colab.path.removeprefix("/github/someone/a-book/blob/notebooks/") in written
            assert binder.path == "/v2/gh/someone/a-book/notebooks"
            assert unquote(binder.query.removeprefix("labpath=")) in written
        first = nbformat.read(tmp_path / "notebooks" / "bound.ipynb", as_version=4)
        assert REPOSITORY in next(cell.source for cell in first.cells if cell.cell_type == "code")
        capsys.readouterr()

    @pytest.mark.parametrize("end", ["", "/", ".git"])
    def test_the_address_may_end_as_it_is_copied(self, load, end):
        assert "/someone/a-book/" in load("ways_in").links(REPOSITORY + end, "bound")["Colab"]

    @pytest.mark.parametrize(
        "address", ["someone/a-book", "https://example.org/someone/a-book", REPOSITORY + "/tree/main"]
    )
    def test_another_address_is_refused(self, load, address):
        with pytest.raises(ValueError, match=r"must read https://github\.com/OWNER/NAME"):
            load("ways_in").links(address, "bound")

    def test_without_a_repository_a_notebook_is_the_chapter_alone(self, load):
        text = load("notebooks").to_notebook(ROOT / "book" / "bound.md").decode()
        assert "git" not in [
            word for cell in json.loads(text)["cells"] for word in re.findall(r"\w+", "".join(cell["source"]))
        ]

    def test_the_first_cell_finds_the_package_beside_the_notebooks(self, load, tmp_path):
        """As on Binder, where the repository is there and nothing has installed the package."""
        (tmp_path / "notebooks").mkdir()
        (tmp_path / "jointvae").mkdir()
        (tmp_path / "jointvae" / "__init__.py").write_text("")
        check = "\nimport jointvae\nprint(jointvae.__file__)\n"
        # -I -S: no installed package, and in particular not the one of this environment.
        command = [sys.executable, "-I", "-S", "-c", load("notebooks").SETUP + check]
        done = subprocess.run(command, cwd=tmp_path / "notebooks", capture_output=True, text=True)
        assert done.stderr == ""
        assert done.stdout.strip() == str(tmp_path / "jointvae" / "__init__.py")

    def test_a_term_is_plain_text(self, load):
        plain = load("notebooks").plain_markdown("A {term}`nat <nats>` and a {term}`tier`.")
        assert plain == "A nat and a tier."

    @pytest.mark.book
    @pytest.mark.parametrize("page", CHAPTERS)
    def test_each_chapter_offers_its_notebook(self, page):
        found = re.search(r'<p class="ways-in">.*?href="([^"]*)" download>', text_of(page), re.DOTALL)
        assert found
        assert found[1] == f"_notebooks/{page}.ipynb"
        notebook = nbformat.read(HTML / found[1], as_version=4)
        nbformat.validate(notebook)
        prose = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert not re.search(r"\{(?:doc|sym|eq|term)\}`", prose)
        assert f"_sources/{page}.ipynb" not in text_of(page)

    @pytest.mark.book
    def test_no_page_names_a_server_as_long_as_no_repository_is_known(self):
        assert [page for page in PAGES if re.search(r"colab\.research|mybinder", text_of(page))] == []


class TestSharing:
    def document(self, *texts: nodes.Node) -> nodes.document:
        from docutils.utils import new_document

        document = new_document("page")
        section = nodes.section()
        document += section
        for children in texts:
            section += nodes.paragraph("", "", *children)
        return document

    def test_the_question_of_a_page_describes_it(self, load):
        question = [nodes.Text("So the question is: "), nodes.strong("", "", nodes.Text("how large is "))]
        question[1] += nodes.math("", r"\tau")
        question[1] += nodes.Text("?")
        document = self.document([nodes.Text("A first paragraph.")], question)
        assert load("sharing").describe(document) == "How large is τ?"

    def test_else_its_first_paragraph_does(self, load):
        document = self.document([nodes.Text("It says\nthis.")], [nodes.Text("And that.")])
        assert load("sharing").describe(document) == "It says this."

    def test_what_is_too_long_ends_with_a_sentence_or_a_word(self, load):
        shorten = load("sharing").shorten
        assert shorten("Short. " * 40).endswith("Short.")
        assert len(shorten("Short. " * 40)) <= 200
        assert shorten("word " * 60).endswith("word…")

    def test_the_tags_are_escaped_and_relative_without_an_address(self, load):
        text = load("sharing").tags('"A" & B', "About.", "The book", "article", "", "page")
        assert 'content="&quot;A&quot; &amp; B"' in text
        assert 'property="og:image" content="social-card.png"' in text
        assert "og:url" not in text

    def test_with_an_address_they_are_absolute(self, load):
        text = load("sharing").tags("A", "About.", "The book", "article", "https://example.org/book", "page")
        assert 'property="og:image" content="https://example.org/book/social-card.png"' in text
        assert 'property="og:url" content="https://example.org/book/page.html"' in text

    @pytest.mark.book
    @pytest.mark.parametrize("page", PAGES)
    def test_each_page_has_them(self, page):
        text = text_of(page)
        for name in ("og:title", "og:description", "og:image", "og:image:alt", "og:type"):
            assert re.search(rf'<meta property="{name}" content="[^"]+"', text), name
        for name in ("description", "twitter:card", "twitter:title", "twitter:description", "twitter:image"):
            assert re.search(rf'<meta name="{name}" content="[^"]+"', text), name

    @pytest.mark.book
    def test_each_page_is_described_in_its_own_words(self):
        found = [re.search(r'<meta name="description" content="([^"]+)"', text_of(page))[1] for page in PAGES]
        assert len(set(found)) == len(PAGES)
        assert [text for text in found if len(text) > 240 or "\\" in text or "$" in text] == []

    @pytest.mark.book
    def test_the_picture_has_the_size_that_cards_have(self):
        path = HTML / "social-card.png"
        with Image.open(path) as image:
            assert image.size == (1200, 630)
            assert len(image.convert("L").getcolors()) > 100  # digits, not a plain surface
        assert path.stat().st_size < 300 * 1024

    @pytest.mark.book
    def test_without_an_address_there_is_no_sitemap(self):
        assert HTML.exists()
        assert not (HTML / "sitemap.xml").exists()


@pytest.mark.slow
def test_with_both_addresses_a_site_has_a_sitemap_and_buttons(tmp_path):
    """A small book with the names of two real pages, one of them a notebook."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "conf.py").write_text(
        textwrap.dedent(f"""
            import sys

            sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
            project = html_title = "A small book"
            extensions = ["myst_parser", "sharing", "ways_in"]
            html_theme = "sphinx_book_theme"
            root_doc = "notation"
            html_baseurl = "https://example.org/small/"
            notebooks_repository = {REPOSITORY!r}
        """)
    )
    (source / "notation.md").write_text("# Notation\n\nWhat it says.\n\n```{toctree}\nbound\n```\n")
    (source / "bound.md").write_text("# The bound\n\n**How far is it?**\n")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", source, tmp_path / "html"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

    tree = ElementTree.parse(tmp_path / "html" / "sitemap.xml")
    listed = [place.text for place in tree.iter("{http://www.sitemaps.org/schemas/sitemap/0.9}loc")]
    assert listed == ["https://example.org/small/bound.html", "https://example.org/small/notation.html"]
    page = (tmp_path / "html" / "bound.html").read_text()
    assert 'name="description" content="How far is it?"' in page
    assert (
        page.count("https://colab.research.google.com/github/someone/a-book/blob/notebooks/notebooks/bound.ipynb") == 2
    )
    assert page.count("https://mybinder.org/v2/gh/someone/a-book/notebooks?labpath=notebooks%2Fbound.ipynb") == 2
    assert "mybinder" not in (tmp_path / "html" / "notation.html").read_text()
    notebook = (tmp_path / "html" / "_notebooks" / "bound.ipynb").read_text()
    assert f'git\\", \\"clone\\", \\"--depth=1\\", \\"{REPOSITORY}' in notebook
    assert "(https://example.org/small/identities.html)" in notebook or "../book/" not in notebook


class TestPrinted:
    def site(self, folder: Path) -> Path:
        for name, body in {
            "one": '<h1>One<a class="headerlink" href="#top">#</a></h1>'
            '<p id="here">See <a href="two.html#there">it</a>, <a href="#here">this</a>, '
            '<a href="_notebooks/one.ipynb">a file</a>, <a href="https://example.org">a site</a>.</p>'
            '<details class="hide above-input"><summary>Show</summary>code</details><p class="ways-in">get it</p>',
            "two": '<h1>Two</h1><p id="there">Text.</p><details><summary>Solution</summary>42</details>'
            '<div class="simplex"><p>It needs JavaScript.</p></div><script>alert(1)</script>'
            '<link rel="stylesheet" href="b.css"><div class="film"><img src="still.png" loading="lazy"></div>',
        }.items():
            (folder / f"{name}.html").write_text(
                '<html><head><link rel="stylesheet" href="_static/a.css"><script src="mathjax/tex.js"></script>'
                '<script src="other.js"></script></head><body><nav>side</nav>'
                f'<article class="bd-article">{body}</article>'
            )
        return folder

    @pytest.fixture
    def printed(self, load, tmp_path):
        from bs4 import BeautifulSoup

        pdf = load("pdf")
        parts = pdf.contents({"root": "one", "parts": [{"caption": "Part I", "chapters": [{"file": "two"}]}]})
        return BeautifulSoup(pdf.one_document(self.site(tmp_path), parts, "A book"), "html.parser")

    def test_links_lead_to_places_in_the_document_or_out_of_it(self, printed):
        links = [link["href"] for link in printed.select("a")]
        assert links == ["#two--there", "#one--here", "https://example.org", "#two--"]
        ids = {tag["id"] for tag in printed.select("[id]")}
        assert {link[1:] for link in links if link.startswith("#")} <= ids
        assert "a file" in printed.get_text()

    def test_the_pages_stand_in_order_with_the_contents_after_the_first(self, printed):
        assert [h.get_text() for h in printed.select("h1")] == ["One", "Contents", "Two"]
        assert printed.title.get_text() == "A book"

    def test_solutions_are_open_and_what_only_a_screen_can_do_is_said(self, printed):
        assert [box.has_attr("open") for box in printed.select("details")] == [True]
        text = printed.get_text()
        assert "The code of this cell is in the notebook." in text
        assert text.count("In the built book this can be moved by hand.") == 2
        assert [image.attrs for image in printed.select("img")] == [{"src": "still.png"}]
        assert not re.search("side|get it|JavaScript|alert", text)
        assert [script["src"] for script in printed.select("script")] == ["mathjax/tex.js"]
        assert [style["href"] for style in printed.select("head > link")] == ["_static/a.css", "b.css"]

    def test_a_page_that_is_not_built_is_named(self, load, tmp_path):
        parts = [load("pdf").Part("", ["one", "three"])]
        with pytest.raises(ValueError, match="lacks three"):
            load("pdf").one_document(self.site(tmp_path), parts, "A book")

    def test_without_a_chromium_one_sentence_says_so(self, tmp_path):
        command = [sys.executable, ROOT / "book" / "_tools" / "pdf.py", "--check"]
        done = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path)})
        assert done.returncode == 1
        assert (
            done.stderr
            == "The PDF is printed by Chromium, and there is none here: install one that is called chromium.\n"
        )

    @pytest.mark.book
    @pytest.mark.slow
    def test_pages_of_the_book_become_one_pdf(self, load, tmp_path):
        """Four pages with formulas, figures, code and tables; the whole book takes minutes on a busy machine."""
        pdf = load("pdf")
        if CHROMIUM is None:
            pytest.skip("no Chromium on this machine")
        printed = ["intro", "bound", "notation", "glossary"]
        assert pdf.contents(TOC)[0].pages + [name for part in pdf.contents(TOC)[1:] for name in part.pages] == PAGES
        output = tmp_path / "book.pdf"
        # In a thread of its own: this one may hold the other tests' browser.
        with ThreadPoolExecutor() as threads:
            parts = [pdf.Part("", printed[:1]), pdf.Part("A part", printed[1:])]
            threads.submit(pdf.print_site, HTML, parts, output, CHROMIUM).result()
        content = output.read_bytes()
        assert content.startswith(b"%PDF")
        assert len(re.findall(rb"/Type /Page\b", content)) > 10
        assert b"/Type /Outlines" in content
        assert b"file:" not in content  # no path of the machine that printed it
        assert list(HTML.glob("tmp*.html")) == []


@pytest.mark.book
class TestInTheBrowser:
    @pytest.fixture
    def tab(self, browser, site):
        context = browser.new_context(color_scheme="light")
        context.set_default_timeout(PATIENCE)
        tab = context.new_page()
        self.errors = []
        tab.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda request: request.url.startswith((site, "data:")) or self.errors.append(request.url))
        yield tab
        context.close()
        assert self.errors == []

    @pytest.mark.parametrize(
        ("typed", "place"),
        [
            ("gumbel", "sampling.html"),
            ("capacity", "glossary.html#term-capacity"),
            ("tau", "notation.html#sym-tau"),
            ("KL_c", "notation.html#sym-mathrm-capital-k-capital-l-c"),
            ("C_z", "notation.html#sym-capital-c-z"),
            ("gamma", "notation.html#sym-gamma"),
            ("straight-through", "glossary.html#term-straight-through"),
        ],
    )
    def test_a_search_finds_it(self, tab, site, typed, place):
        tab.goto(f"{site}/search.html?q={typed}")
        tab.wait_for_function("/finished/i.test(document.querySelector('#search-results')?.textContent ?? '')")
        tab.wait_for_selector("#search-results li a")
        # The search adds the words that the page it leads to shall mark.
        links = tab.eval_on_selector_all("#search-results li a", "all => all.map(a => a.getAttribute('href'))")
        found = [re.sub(r"\?highlight=[^#]*", "", link).removeprefix("./") for link in links]
        assert place in found

    def test_each_formula_can_be_read_aloud(self, tab, site):
        tab.goto(f"{site}/bound.html")
        tab.wait_for_function("window.MathJax?.startup?.promise !== undefined")
        tab.evaluate("MathJax.startup.promise")
        formulas, silent = tab.evaluate(
            """() => {
                const all = [...document.querySelectorAll("mjx-container")];
                const said = all.map(one => one.querySelector("mjx-assistive-mml math")?.textContent.trim());
                return [all.length, said.filter(text => !text).length];
            }"""
        )
        assert formulas > 100
        assert silent == 0
        hidden = tab.eval_on_selector_all(
            "mjx-container > svg", "all => all.filter(one => one.ariaHidden !== 'true').length"
        )
        assert hidden == 0

    def test_one_gets_on_and_back_and_into_the_dark(self, tab, site):
        tab.goto(f"{site}/divergence.html")
        assert tab.locator("a.left-prev").get_attribute("href") == "bound.html"
        assert tab.locator("a.right-next").get_attribute("href") == "sampling.html"
        switch = tab.locator("button.theme-switch-button").first
        seen = set()
        for _ in range(3):
            seen.add(tab.evaluate("document.documentElement.dataset.theme"))
            switch.click()
        assert seen == {"light", "dark"}

    def test_the_offered_notebook_is_downloaded(self, tab, site):
        tab.goto(f"{site}/bound.html")
        with tab.expect_download() as started:
            tab.locator("p.ways-in a[download]").click()
        assert started.value.suggested_filename == "bound.ipynb"
