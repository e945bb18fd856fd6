"""What other sites show of a page: a description, a picture, and a map of all pages.

Each page gets a description and the tags of OpenGraph and Twitter. The picture is drawn when the book is built, with
digits that a recorded run makes up. The map of the site needs the address of the book: `baseurl` in _config.yml.
"""

import re
import textwrap
from html import escape, unescape
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape as escape_xml

from docutils import nodes
from sphinx.application import Sphinx
from symbols import plain

CARD = "social-card.png"
CARD_SIZE = (1200, 630)  # pixels, what the sites that show cards ask for
CARD_TEXT = "Title of the book beside generated digits: each row is one category of the discrete latent."
CARD_LINE = "An executable book.\nTen kinds of digit, no label."
INK, MUTED, PAPER = "#f2f2f2", "#a9b1ba", "#14181d"
LONGEST = 200  # characters of a description


def describe(document: nodes.document) -> str:
    """The question that the page asks in bold, or else its first paragraph, as plain text."""
    paragraphs = [node for node in document.findall(nodes.paragraph) if isinstance(node.parent, nodes.section)]
    for paragraph in paragraphs[:6]:
        for strong in paragraph.findall(nodes.strong):
            question = as_text(strong)
            if question.endswith("?"):
                return shorten(question[0].upper() + question[1:])
    return shorten(as_text(paragraphs[0])) if paragraphs else ""


def as_text(node: nodes.Element) -> str:
    """The text of a node, formulas as characters, without what only a browser shows."""
    parts = (
        plain(part.astext()) if isinstance(part.parent, nodes.math) else part.astext()
        for part in node.findall(nodes.Text)
    )
    return re.sub(r"\s+", " ", "".join(parts)).strip()


def shorten(text: str) -> str:
    """The whole sentences that fit, or as many words of the first one."""
    if len(text) <= LONGEST:
        return text
    sentences = re.match(rf".{{1,{LONGEST - 1}}}[.?!](?=\s)", text)
    return sentences[0] if sentences else text[: LONGEST - 1].rsplit(" ", 1)[0] + "…"


def tags(title: str, description: str, site: str, kind: str, base: str, page: str) -> str:
    """The tags of one page. Without the address of the book the picture is named relative to the page."""
    base = base and base.rstrip("/") + "/"
    named = {"description": description, "twitter:card": "summary_large_image"}
    named |= {"twitter:title": title, "twitter:description": description, "twitter:image": base + CARD}
    properties = {"og:type": kind, "og:site_name": site, "og:title": title, "og:description": description}
    properties |= {"og:image": base + CARD, "og:image:type": "image/png", "og:image:alt": CARD_TEXT}
    properties |= dict(zip(("og:image:width", "og:image:height"), map(str, CARD_SIZE), strict=True))
    if base:
        properties["og:url"] = f"{base}{page}.html"
    lines = [f'<meta name="{name}" content="{escape(value)}" />' for name, value in named.items()]
    lines += [f'<meta property="{name}" content="{escape(value)}" />' for name, value in properties.items()]
    return "\n".join(lines) + "\n"


def add_tags(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Called by Sphinx for each page before it is written."""
    book_title = app.config.html_title
    title = unescape(re.sub(r"<[^>]*>", "", context.get("title") or "")) or book_title
    description = (describe(doctree) if doctree else "") or f"{title}: a page of “{book_title}”."
    kind = "website" if page == app.config.root_doc else "article"
    context["metatags"] = context.get("metatags", "") + tags(
        title, description, book_title, kind, app.config.html_baseurl, page
    )


def sitemap(base: str, pages: list[str]) -> str:
    """The map of the site, as search engines read it."""
    base = base.rstrip("/") + "/"
    lines = [f"  <url><loc>{escape_xml(f'{base}{page}.html')}</loc></url>" for page in pages]
    head = ['<?xml version="1.0" encoding="UTF-8"?>', '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">']
    return "\n".join([*head, *lines, "</urlset>"]) + "\n"


def draw_card(path: Path, title: str) -> None:
    """Draw the picture: the title, and digits of a recorded run, a row for each category."""
    import torch  # here, because most builds find the picture drawn
    from matplotlib.figure import Figure

    from jointvae import book, figures, results, runs
    from jointvae.traversals import decode_images, one_hot_codes

    columns = 10
    record = book.chosen_run("mnist")
    model = runs.load(record, results.RESULTS / "runs").eval()
    generator = torch.Generator().manual_seed(0)
    rows = []
    for category in range(model.spec.c[0]):
        codes = one_hot_codes(model, [category] + [0] * (len(model.spec.c) - 1), columns)
        codes[1:, : model.spec.z] = torch.randn(columns - 1, model.spec.z, generator=generator)
        rows.append(decode_images(model, codes))
    fig = Figure(figsize=(CARD_SIZE[0] / 100, CARD_SIZE[1] / 100), dpi=100, facecolor=PAPER, layout="none")
    side = CARD_SIZE[1] / CARD_SIZE[0]
    ax = fig.add_axes((1 - side, 0, side, 1))
    figures.show_grid(ax, torch.cat(rows), columns)
    lines = "\n".join(textwrap.wrap(title, 16))
    fig.text(0.04, 0.66, lines, color=INK, fontsize=38, fontweight="bold", va="center", linespacing=1.25)
    fig.text(0.04, 0.3, CARD_LINE, color=MUTED, fontsize=21, va="center", linespacing=1.5)
    fig.savefig(path, dpi=100, facecolor=PAPER, transparent=False, pil_kwargs={"optimize": True})


def finish(app: Sphinx, error: Exception | None) -> None:
    """Called by Sphinx when all pages are written."""
    if error or app.builder.format != "html":
        return
    card = Path(app.outdir, CARD)
    if not card.exists():
        draw_card(card, app.config.html_title)
    if app.config.html_baseurl:
        text = sitemap(app.config.html_baseurl, sorted(app.env.found_docs))
        Path(app.outdir, "sitemap.xml").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("html-page-context", add_tags)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
