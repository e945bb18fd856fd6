"""Print the built book into one PDF, by the Chromium that the system has.

All pages go into one document, in the order of the table of contents, so that links between pages work inside the PDF.
Solutions are shown. Code that a page hides stays out, and so does what only a screen can do; a sentence stands there.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import Error, sync_playwright

from jointvae.doctor import BROWSERS, find_chromium

ROOT = Path(__file__).parents[2]
NO_BROWSER = f"The PDF is printed by Chromium, and there is none here: install one that is called {BROWSERS[0]}."
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
PATIENCE = 600_000  # milliseconds: thousands of formulas are set at once

LIVE = ".simplex, .explorer, .film"  # what the reader moves in the built book
LIVE_SENTENCE = "In the built book this can be moved by hand."
HIDDEN_SENTENCE = "The code of this cell is in the notebook."
SCREEN_ONLY = "script, .headerlink, button, p.ways-in, .toctree-wrapper, link, style, noscript, video, canvas, iframe"
NUMBERS = """<div style="font: 8pt sans-serif; color: #555; width: 100%; text-align: center">
<span class="pageNumber"></span></div>"""
# Set all formulas, and load all figures, before anything is printed.
READY = """async () => {
    await MathJax.startup.promise;
    await document.fonts.ready;
    await Promise.all([...document.images].map(image => image.decode().catch(() => {})));
    return document.querySelectorAll("mjx-merror").length;
}"""


class Part(NamedTuple):
    """A part of the book: its caption, which the front page lacks, and the names of its pages."""

    caption: str
    pages: list[str]


def main() -> int:
    """Print what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, help="the folder of the built pages")
    parser.add_argument("--output", type=Path, help="the PDF")
    parser.add_argument("--check", action="store_true", help="only say whether there is a Chromium")
    arguments = parser.parse_args()
    chromium = find_chromium()
    if chromium is None:
        print(NO_BROWSER, file=sys.stderr)
        return 1
    if arguments.check:
        return 0
    if not (arguments.site / "index.html").exists():
        print(f"There is no built book in {arguments.site}: run `make book`.", file=sys.stderr)
        return 1
    try:
        parts = contents(yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8")))
        print_site(arguments.site, parts, arguments.output, chromium)
    except (Error, ValueError) as error:
        print(f"The book was not printed: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return 1
    print(f"Printed {arguments.output}, {arguments.output.stat().st_size / 2**20:.1f} MiB.")
    return 0


def contents(toc: dict[str, Any]) -> list[Part]:
    """The parts of the book and their pages, from the parsed _toc.yml."""
    parts = [Part(part["caption"], [chapter["file"] for chapter in part["chapters"]]) for part in toc["parts"]]
    return [Part("", [toc["root"]]), *parts]


def print_site(site: Path, parts: list[Part], output: Path, chromium: str) -> None:
    """Print the pages of a built site that the parts name.

    Raises:
        ValueError: if a page is not there, or a formula could not be set.
    """
    title = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["title"]
    # Beside the pages, because it names their figures and styles relative to itself.
    with tempfile.NamedTemporaryFile("w", suffix=".html", dir=site, encoding="utf-8") as file:
        file.write(one_document(site, parts, title))
        file.flush()
        output.parent.mkdir(parents=True, exist_ok=True)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
            tab = browser.new_page()
            tab.set_default_timeout(PATIENCE)
            tab.emulate_media(media="print", color_scheme="light")
            tab.goto(Path(file.name).absolute().as_uri(), wait_until="load")
            tab.wait_for_function("window.MathJax?.startup?.promise !== undefined")
            if wrong := tab.evaluate(READY):
                raise ValueError(f"{wrong} formulas could not be set")
            unfinished = output.with_suffix(".unfinished")
            tab.pdf(
                path=unfinished, prefer_css_page_size=True, print_background=True, outline=True, tagged=True,
                display_header_footer=True, header_template="<span></span>", footer_template=NUMBERS,
            )  # fmt: skip
            browser.close()
    unfinished.replace(output)


def one_document(site: Path, parts: list[Part], title: str) -> str:
    """All pages as one, with their styles and MathJax, and a table of contents after the front page.

    Raises:
        ValueError: if a page is not there.
    """
    names = [name for part in parts for name in part.pages]
    if missing := ", ".join(name for name in names if not (site / f"{name}.html").exists()):
        raise ValueError(f"the built book in {site} lacks {missing}; run `make book`")
    pages = {name: BeautifulSoup((site / f"{name}.html").read_text(encoding="utf-8"), "html.parser") for name in names}
    document = BeautifulSoup(
        '<!DOCTYPE html><html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8"></head>'
        '<body><main class="bd-article-container"></main></body></html>',
        "html.parser",
    )
    document.head.append(document.new_tag("title"))
    document.head.title.string = title
    for page in pages.values():
        # Some styles stand where they are needed, in the page's body.
        for tag in page.select("link[rel=stylesheet], head script"):
            if tag not in document.head.contents and (tag.name == "link" or "mathjax" in str(tag).lower()):
                document.head.append(tag.extract())
    titles = {name: heading(page) for name, page in pages.items()}
    for part in parts:
        for i, name in enumerate(part.pages):
            caption = part.caption if i == 0 else ""
            document.main.extend(chapter(document, pages[name], name, set(names), caption))
        if not part.caption:
            document.main.append(table_of_contents(document, parts, titles))
    return str(document)


def heading(page: BeautifulSoup) -> str:
    """The title of a page."""
    title = page.select_one("article h1") or page.title
    return title.get_text().strip().rstrip("#").strip()


def chapter(document: BeautifulSoup, page: BeautifulSoup, name: str, names: set[str], caption: str) -> Iterator[Tag]:
    """The article of a page as it is printed, with its ids made its own, after the caption of a part that begins."""
    article = page.select_one("article.bd-article")
    settle(page, article)
    for tag in article.find_all(True):
        for attribute in ("id", "for", "aria-labelledby", "aria-describedby", "aria-controls"):
            if attribute in tag.attrs:
                tag[attribute] = " ".join(f"{name}--{one}" for one in tag[attribute].split())
        if tag.name == "a" and "href" in tag.attrs:
            retarget(tag, name, names)
    article["id"] = f"{name}--"
    article["style"] = "break-before: page"
    if caption:
        label = document.new_tag("p", attrs={"class": "part"})
        label.string = caption
        article.insert(0, label)
    yield article.extract()


def settle(page: BeautifulSoup, article: Tag) -> None:
    """Take away what only a screen can do, and say so where the reader would miss it."""
    for place in article.select(LIVE):
        if not place.select("img"):  # nothing but a sentence on what it would need
            place.clear()
        place.append(sentence(page, LIVE_SENTENCE))
    for hidden in article.select("details.hide"):
        hidden.replace_with(sentence(page, HIDDEN_SENTENCE))
    for box in article.select("details"):
        box["open"] = ""
    for image in article.select("img"):
        image.attrs.pop("loading", None)
    for tag in article.select(SCREEN_ONLY):
        tag.decompose()


def sentence(page: BeautifulSoup, text: str) -> Tag:
    """A small paragraph in italics."""
    paragraph = page.new_tag("p", attrs={"class": "instead"})
    paragraph.append(page.new_tag("em"))
    paragraph.em.string = text
    return paragraph


def retarget(link: Tag, name: str, names: set[str]) -> None:
    """Point a link to its place in the document; one that leads nowhere on paper becomes plain text."""
    parts = urlsplit(link["href"])
    if parts.scheme or parts.netloc:
        return
    target = Path(unquote(parts.path)).stem if parts.path.endswith(".html") else name
    if parts.path and (not parts.path.endswith(".html") or target not in names):
        link.unwrap()
    else:
        link["href"] = f"#{target}--{parts.fragment}"


def table_of_contents(document: BeautifulSoup, parts: list[Part], titles: dict[str, str]) -> Tag:
    """A page with a link to each chapter."""
    section = document.new_tag("article", attrs={"class": "bd-article", "style": "break-before: page"})
    section.append(document.new_tag("h1"))
    section.h1.string = "Contents"
    for part in parts:
        if part.caption:
            section.append(document.new_tag("p", attrs={"class": "part"}))
            section.contents[-1].string = part.caption
        listed = document.new_tag("ul")
        for name in part.pages if part.caption else []:
            link = document.new_tag("a", href=f"#{name}--")
            link.string = titles[name]
            listed.append(document.new_tag("li"))
            listed.contents[-1].append(link)
        section.append(listed)
    return section


if __name__ == "__main__":
    sys.exit(main())
