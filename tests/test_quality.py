"""The quality of the built book and its words: accessible, whole, light, the same from the disk, spelled well."""

import ast
import hashlib
import io
import re
import subprocess
import sys
import tokenize
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from chromium import PATIENCE
from playwright.sync_api import Browser, Page
from test_book import HTML, PAGES, ROOT
from test_browser import WIDTHS

AXE = ROOT / "tests" / "vendor" / "axe"
ALL_PAGES = [*PAGES, "search", "genindex"]
IMAGES = {".png", ".svg", ".jpg", ".jpeg", ".webp", ".gif"}
LARGEST_IMAGE = 300 * 1024


# --- Accessibility ----------------------------------------------------------------------------------------------------


class View(NamedTuple):
    """How a page is looked at, and what axe-core is asked."""

    width: int
    colours: str
    options: str = ""


VIEWS = [
    View(WIDTHS["desk"], "light"),
    View(WIDTHS["desk"], "dark", "runOnly: ['color-contrast'],"),  # only colours differ
    View(WIDTHS["phone"], "light", "rules: {'color-contrast': {enabled: false}},"),
]
COLOURS_ON_A_PHONE = [View(WIDTHS["phone"], colours, "runOnly: ['color-contrast'],") for colours in ("light", "dark")]
KEY_PAGES = {"intro", "mnist", "sampling", "explorer", "notation"}
# A violation that only the theme's authors could mend: rule, end of the selector, reason. Nothing so far.
EXCEPTIONS: list[tuple[str, str, str]] = []

# Setting hundreds of formulas, and reading their glyphs, would take axe-core minutes: one page has them set, on the
# others a word stands for each. tests/test_browser.py sees all of them set.
FORMULAS_ARE_SET_ON = "notation"
SET_NO_FORMULAS = """(() => {
    if (location.pathname.endsWith("/PAGE.html")) return;
    let found;
    Object.defineProperty(window, "MathJax", {
        configurable: true,
        get: () => found,
        set: (settings) => {
            Object.defineProperty(window, "MathJax", {value: settings, writable: true});
            settings.startup = {...settings.startup, typeset: false};
        },
    });
})()""".replace("PAGE", FORMULAS_ARE_SET_ON)
# What is closed is opened as a reader would. All but the first token of each colour say nothing new.
PREPARE = """() => {
    if (!document.querySelector("mjx-container")) {
        for (const formula of document.querySelectorAll(".math")) formula.textContent = "formula";
    }
    for (const details of document.querySelectorAll("details")) details.open = true;
    for (const button of document.querySelectorAll("button.toggle-button")) button.click();
    const seen = new Set();
    for (const token of document.querySelectorAll("pre span, dt.sig span")) {
        if (token.className && !seen.has(token.className)) seen.add(token.className);
        else token.replaceWith(...token.childNodes);
    }
    for (const code of document.querySelectorAll("pre, dt.sig")) code.normalize();
    const still = document.createElement("style");
    still.textContent = "* { transition: none !important; animation: none !important; }";
    document.head.append(still);
}"""
SETTLE = 400  # milliseconds; the theme looks for what scrolls 300 ms after a change


@pytest.fixture(scope="module")
def tab(browser: Browser):
    context = browser.new_context(reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    context.add_init_script(SET_NO_FORMULAS)
    yield context.new_page()
    context.close()


def look(tab: Page, view: View) -> None:
    """Show the page in this view."""
    tab.emulate_media(color_scheme=view.colours)
    tab.set_viewport_size({"width": view.width, "height": 900})
    tab.wait_for_function(f"document.documentElement.dataset.theme == '{view.colours}'")
    tab.wait_for_timeout(SETTLE)


def violations(tab: Page, view: View) -> list[str]:
    """What axe-core calls serious or critical, a line each."""
    found = tab.evaluate(f"axe.run(document, {{{view.options} preload: false, resultTypes: ['violations']}})")
    return [
        f"{rule['id']} ({rule['impact']}; {view.width} px, {view.colours}): {selector} in {node['html'][:160]}"
        for rule in found["violations"]
        for node in rule["nodes"]
        if node["impact"] in ("serious", "critical")
        for selector in [" ".join(map(str, node["target"]))]
        if not any(rule["id"] == known and selector.endswith(end) for known, end, _ in EXCEPTIONS)
    ]


@pytest.mark.book
@pytest.mark.parametrize("name", ALL_PAGES)
def test_a_page_opened_from_the_disk_is_accessible(tab: Page, name: str):
    elsewhere: list[str] = []
    errors: list[str] = []

    def note(request):
        if not request.url.startswith((HTML.as_uri(), "data:", "blob:")):
            elsewhere.append(request.url)

    def complain(message):
        if message.type == "error":
            errors.append(message.text)

    tab.emulate_media(color_scheme="light")
    tab.set_viewport_size({"width": WIDTHS["desk"], "height": 900})
    tab.on("request", note)
    tab.on("console", complain)
    tab.goto((HTML / f"{name}.html").as_uri(), wait_until="load")
    if name == FORMULAS_ARE_SET_ON:
        tab.wait_for_function("window.MathJax?.startup?.promise !== undefined")
        tab.evaluate("MathJax.startup.promise")
    tab.evaluate(PREPARE)
    tab.evaluate((AXE / "axe.min.js").read_text(encoding="utf-8"))
    found = []
    for view in [*VIEWS, *(COLOURS_ON_A_PHONE if name in KEY_PAGES else [])]:
        look(tab, view)
        found += violations(tab, view)
    tab.remove_listener("request", note)
    tab.remove_listener("console", complain)
    assert "\n".join(found) == ""
    assert elsewhere == []
    assert errors == []


def test_the_vendored_axe_is_the_one_that_its_readme_names():
    digest = hashlib.sha256((AXE / "axe.min.js").read_bytes()).hexdigest()
    assert f"`{digest}`" in (AXE / "README.md").read_text()


def test_what_a_screen_reader_can_not_use_is_mended(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    from accessible import mended

    assert mended('<summary aria-label="Toggle hidden content">') == "<summary>"
    search = '<button class="btn search-button-field x" title="Search" aria-label="Search" data-x="1">'
    assert mended(search) == '<button class="btn search-button-field x" title="Search" data-x="1">'
    assert mended('<button class="btn search-button" aria-label="Search">').endswith('aria-label="Search">')
    icon = '<i class="theme-switch fa-sun   fa-lg" data-mode="light" title="Light"></i>'
    assert mended(icon) == '<i class="theme-switch fa-sun   fa-lg" data-mode="light"></i>'
    assert mended('<div class="citation" role="doc-biblioentry">') == '<div class="citation" role="listitem">'


# --- Links and files --------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """Where a page points to, what it loads, and the places in it that can be pointed to."""

    LOADS = ("script", "img", "source", "iframe", "video", "audio", "embed", "track", "object")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        has = {key: value or "" for key, value in attrs}
        self.places |= {has[key] for key in ("id", "name") if key in has}
        found = [has[key] for key in ("href", "src", "data", "poster", "action") if key in has]
        found += [one.split()[0] for one in has.get("srcset", "").split(",") if one.strip()]
        if has.get("http-equiv", "").lower() == "refresh":
            found.append(has["content"].partition("url=")[2])
        fetched = tag in self.LOADS or (tag == "link" and has.get("rel") not in ("canonical", "alternate", "author"))
        (self.loaded if fetched else self.targets).extend(found)


@pytest.fixture(scope="module")
def parsed() -> dict[Path, Links]:
    if not HTML.exists():
        pytest.fail("There is no built book to test: run `make test`, which builds it first.")
    return {path: Links(path) for path in sorted(HTML.rglob("*.html")) if "_static" not in path.parts}


def broken(page: Path, link: str, parsed: dict[Path, Links]) -> bool:
    """Whether a link within the book leads nowhere, or only on a server."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return False
    if parts.path.startswith("/"):
        return True
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_file() or HTML not in target.parents:
        return True
    return bool(parts.fragment) and target in parsed and unquote(parts.fragment) not in parsed[target].places


def test_a_broken_link_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "HTML", tmp_path)
    here, there = tmp_path / "here.html", tmp_path / "there.html"
    here.write_text('<a href="there.html#a%20b">x</a><a href="https://example.org/">x</a><img src="x.png">')
    there.write_text('<p id="a b"><link rel="stylesheet" href="//example.org/x.css">')
    pages = {path: Links(path) for path in (here, there)}
    assert (pages[here].targets, pages[here].loaded) == (["there.html#a%20b", "https://example.org/"], ["x.png"])
    assert pages[there].loaded == ["//example.org/x.css"]
    assert [link for link in pages[here].targets if broken(here, link, pages)] == []
    for link in ("x.png", "/there.html", "there.html#c", "#a", "../here.html"):
        assert broken(here, link, pages), link


@pytest.mark.book
class TestSite:
    def test_every_link_and_anchor_resolves_and_needs_no_server(self, parsed):
        links = [(page, link) for page, found in parsed.items() for link in [*found.targets, *found.loaded] if link]
        assert len(links) > 100
        assert [(page.name, link) for page, link in links if broken(page, link, parsed)] == []

    def test_nothing_is_loaded_from_another_host(self, parsed):
        away = [(page.name, link) for page, found in parsed.items() for link in found.loaded if urlsplit(link).netloc]
        assert away == []
        styles = {path: path.read_text(encoding="utf-8") for path in HTML.rglob("*.css")}
        assert [
            path.name for path, text in styles.items() if re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", text)
        ] == []

    def test_no_image_is_heavy(self):
        images = [path for path in HTML.rglob("*") if path.suffix.lower() in IMAGES]
        assert images
        heavy = {str(path.relative_to(HTML)): path.stat().st_size for path in images}
        assert {name: size for name, size in heavy.items() if size > LARGEST_IMAGE} == {}


# --- Words ------------------------------------------------------------------------------------------------------------

WRITTEN = [
    *sorted((ROOT / "book").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted(
        path
        for folder in ("jointvae", "book/_ext", "book/_tools", "benchmarks")
        for path in (ROOT / folder).glob("*.py")
    ),
]
# The book is in British English; these are the American forms that slip in. In code they are others' names.
AMERICAN = re.compile(
    r"""\b(?: (?:un)?(?:color|gray|favor|honor|behavior|neighbor|labor)(?:s|ed|ing|ful|ite|hood|able|ly)?
    | (?:centers?|centered|meters?|liters?|labeled|labeling|modeled|modeling|canceled|canceling|traveled|traveling)
    | (?:analyz|catalyz)\w+ | artifacts? | fulfills? | judgments? | skeptic\w* | defenses? | catalogs?
    | (?!(?:re|over|down|cap)?s[i]z) [a-z]{3,} iz(?:e|ed|er|es|ers|ing|ation|ations)
    )\b""",
    re.VERBOSE | re.IGNORECASE,
)


def prose(path: Path) -> str:
    """What a file says to a reader: its text without code and formulas, or its comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return said_by_code(text)
    text = re.sub(r"\A---\n.*?^---\n", "", text, flags=re.DOTALL | re.MULTILINE)
    cells = re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    comments = [
        line.partition("# ")[2] for cell in cells for line in cell.splitlines() if line.lstrip().startswith("# ")
    ]
    text = re.sub(r"^```(?:\{code-cell\}|\w+\n).*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|\]\([^)]*\)|<[^>]*>", " ", text, flags=re.DOTALL)
    return "\n".join([text, *comments])


def said_by_code(text: str) -> str:
    """Docstrings and comments, with what stands in backquotes left out."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, nodes)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return re.sub(r"`[^`]*`", " ", "\n".join([*docstrings, *comments]))


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_english_is_british(path):
    assert sorted({match[0] for match in AMERICAN.finditer(prose(path))}) == []


def test_american_forms_are_found_in_prose_only(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "---\ncolor: 1\n---\nA color, `color`, $color$.\n```{code-cell}\n# Optimizing it\nx.color\n```\nGray.\n"
    )
    assert [match[0] for match in AMERICAN.finditer(prose(page))] == ["color", "Gray", "Optimizing"]
    module = tmp_path / "module.py"
    module.write_text('"""A center, `center`."""\ncenter = 1  # neighbors\n')
    assert [match[0] for match in AMERICAN.finditer(prose(module))] == ["center", "neighbors"]


def test_nothing_is_misspelled():
    places = [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Makefile",
        "_config.yml",
        "book",
        "jointvae",
        "benchmarks",
        "tests",
        "results/claims.yml",
    ]
    done = subprocess.run([sys.executable, "-m", "codespell_lib", *places], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
