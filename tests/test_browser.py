"""The built book of the smoke tier in a headless Chromium: no network, no error, readable on a desk and on a phone."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from chromium import PATIENCE
from playwright.sync_api import Browser
from test_book import HTML, PAGES

WIDTHS = {"desk": 1440, "phone": 390}

pytestmark = pytest.mark.book


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


# Source that a page quotes may hold formulas that are not set.
PROSE = """() => {
    const article = document.querySelector("article").cloneNode(true);
    article.querySelectorAll("pre").forEach(quoted => quoted.remove());
    return article.textContent;
}"""


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_every_page(browser: Browser, site: str, width: int, colours: str):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=colours)
    context.set_default_timeout(PATIENCE)
    tab = context.new_page()
    errors: list[str] = []
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))

    def only_here(route):
        if route.request.url.startswith((site + "/", "data:", "blob:")):
            route.continue_()
        else:
            errors.append(f"asked for {route.request.url}")
            route.abort()

    context.route("**/*", only_here)
    for name in PAGES:
        tab.goto(f"{site}/{name}.html", wait_until="load")
        if tab.locator(".math").count():  # the script comes with pages that have formulas only
            tab.wait_for_function("window.MathJax?.startup?.promise !== undefined")
            tab.evaluate("MathJax.startup.promise")
        check_page(tab, name, width, colours)
    assert errors == []
    context.close()


def check_page(tab, name: str, width: int, colours: str) -> None:
    formulas = tab.locator(".math").count()
    assert tab.locator(".math mjx-container svg").count() >= formulas, f"{name}: formulas that are not set"
    assert tab.locator("mjx-merror, mjx-container [data-mjx-error]").count() == 0, f"{name}: broken TeX"
    text = tab.evaluate(PROSE)
    assert "\\(" not in text, name
    assert "\\[" not in text, name
    assert "$$" not in text, name
    # Figures load as they come near the screen.
    missing = tab.evaluate(
        """async () => {
            const images = [...document.querySelectorAll("article img")];
            for (const image of images) { image.loading = "eager"; await image.decode().catch(() => {}); }
            return images.filter(image => image.naturalWidth === 0).map(image => image.src);
        }"""
    )
    assert missing == [], name
    assert tab.evaluate("document.documentElement.scrollWidth") <= width, f"{name}: scrolls sideways at {width} px"
    assert tab.evaluate("document.documentElement.dataset.theme") == colours, name


def test_the_book_has_figures_and_formulas():
    built = [(HTML / f"{name}.html").read_text(encoding="utf-8") for name in PAGES]
    assert sum("<img" in page for page in built) >= 1
    assert sum('class="math' in page for page in built) >= 2


def test_search_finds_a_word(browser: Browser, site: str):
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE)
    tab.goto(f"{site}/search.html?q=gumbel")
    tab.wait_for_selector("#search-results li")
    tab.close()
