"""What the theme and its helpers write into a page and a screen reader can't use, mended in the finished pages.

The templates belong to others, so a page is changed after it is written. tests/test_quality.py asks axe-core whether
anything is left.
"""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

MENDS = [
    # A label hides the words that everybody sees: "Show code cell source", "Search Ctrl+K".
    (re.compile(r'<summary aria-label="Toggle hidden content">'), "<summary>"),
    (re.compile(r'(<button class="btn search-button-field[^>]*?) aria-label="Search"'), r"\1"),
    # The button that switches light and dark: its three icons have titles that contradict its name.
    (re.compile(r'(<i class="theme-switch [^>]*?)\s+title="[^"]*"'), r"\1"),
    (re.compile(r'"Color mode"'), '"Colour mode"'),
    # A list may hold only items, and the role that docutils gives to references is no item and is deprecated.
    (re.compile(r'role="doc-biblioentry"'), 'role="listitem"'),
]


def mended(page: str) -> str:
    """The HTML of a page with the mends applied."""
    for pattern, replacement in MENDS:
        page = pattern.sub(replacement, page)
    return page


def mend_pages(app: Sphinx, error: Exception | None) -> None:
    """Called by Sphinx when all pages are written."""
    if error is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).glob("*.html"):
        page = path.read_text(encoding="utf-8")
        if (better := mended(page)) != page:
            path.write_text(better, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("build-finished", mend_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
