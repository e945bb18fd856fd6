"""The directive {citation}: a BibTeX entry to copy, of the book itself or of a work in its bibliography.

The book's entry is made from CITATION.cff and the others are those of references.bib, so the page can't differ from
either file.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)
ROOT = Path(__file__).parents[2]
CITATION, BIBLIOGRAPHY = ROOT / "CITATION.cff", ROOT / "book" / "references.bib"
KEY = "jointvaebook"
ACRONYM = re.compile(r"\b(\w*[a-z]?[A-Z]{2,}\w*)\b")


def book_entry(citation: dict[str, Any], year: str) -> str:
    """The BibTeX entry of a parsed CITATION.cff; `year` counts where the file has no date of release."""
    released = str(citation.get("date-released", year))
    fields = {
        "author": " and ".join(_author(author) for author in citation["authors"]),
        "title": ACRONYM.sub(r"{\1}", citation["title"]),  # else a style makes small letters of it
        "year": released[:4],
        "howpublished": "Executable book",
        "note": f"Version {citation['version']}",
        "url": citation.get("url") or citation.get("repository-code"),
    }
    width = max(map(len, fields))
    lines = [f"  {name.ljust(width)} = {{{value}}}" for name, value in fields.items() if value]
    return f"@misc{{{KEY},\n" + ",\n".join(lines) + "\n}"


def _author(author: dict[str, str]) -> str:
    """A person as family and given name; a group in braces, so that BibTeX does not look for a family name in it."""
    if "name" in author:
        return f"{{{author['name']}}}"
    return f"{author['family-names']}, {author['given-names']}"


def bibliography_entry(text: str, key: str) -> str:
    """One entry of a BibTeX file, as it stands there.

    Raises:
        ValueError: if there is no such entry.
    """
    found = re.search(rf"^@\w+\{{{re.escape(key)},\n.*?^\}}", text, re.DOTALL | re.MULTILINE)
    if not found:
        raise ValueError(f"the bibliography has no entry {key!r}")
    return found[0]


class Citation(SphinxDirective):
    """Replaces itself by the entry."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Called by docutils for each use of the directive."""
        for path in (CITATION, BIBLIOGRAPHY):
            self.env.note_dependency(str(path))
        try:
            entry = self._entry(self.arguments[0])
        except ValueError as error:
            logger.warning("%s", error, location=self.get_location())
            return []
        return [nodes.literal_block(entry, entry, language="bibtex")]

    def _entry(self, name: str) -> str:
        if name == "book":
            return book_entry(yaml.safe_load(CITATION.read_text(encoding="utf-8")), self.config.copyright)
        return bibliography_entry(BIBLIOGRAPHY.read_text(encoding="utf-8"), name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("citation", Citation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
