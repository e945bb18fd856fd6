r"""The role {sym}`\tau`: a symbol that links to its row on the page of notation, with its meaning on hover.

On that page the role {defsym}`\tau` stands in the first column and makes the place to link to, and an entry of the
index, so that a search for tau leads there. A symbol without a row is a warning, so that the strict build fails.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import index
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

logger = logging.getLogger(__name__)
PAGE = "notation"
ROW = re.compile(r"^\|(?P<symbols>[^|]*\{defsym\}[^|]*)\|[^|]*\|(?P<meaning>.*)\|\s*$", re.MULTILINE)

CHARACTERS = {
    r"\|": "‖", r"\mid": "|", r"\phi": "φ", r"\theta": "θ", r"\mu": "μ", r"\sigma": "σ", r"\pi": "π", r"\tau": "τ",
    r"\beta": "β", r"\gamma": "γ", r"\varepsilon": "ε", r"\log": "log", "^2": "²", r"\sum": "Σ", r"\prod": "∏",
}  # fmt: skip


@cache
def meanings(path: Path) -> dict[str, str]:
    """What the page of notation says of each symbol, as plain text."""
    return {
        symbol: plain(row["meaning"])
        for row in ROW.finditer(path.read_text(encoding="utf-8"))
        for symbol in re.findall(r"\{defsym\}`([^`]*)`", row["symbols"])
    }


def plain(text: str) -> str:
    """A cell of the table as text without markup, for the hint that a mouse brings up."""
    for tex, character in CHARACTERS.items():
        text = text.replace(tex, character)
    return re.sub(r"\s+", " ", re.sub(r"[$`{}]|\\(?:mathrm|mathcal|operatorname|text)\b|\\,", "", text)).strip()


def anchor(symbol: str) -> str:
    """The id of a symbol's place; capitals are spelled out, because c and C are different symbols."""
    spelled = re.sub(r"[A-Z]", lambda capital: f"-capital-{capital[0].lower()}-", symbol)
    return "sym-" + re.sub(r"[^a-z0-9]+", "-", spelled).strip("-")


def name(symbol: str) -> str:
    """A symbol as one types it: tau, sigma^2, KL_c. In the index a semicolon would begin an entry below the entry."""
    return re.sub(r"\\(?:mathrm|var)?|[{}]", "", symbol).replace(";", ",")


class Symbol(SphinxRole):
    """A link to the symbol's row."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Called by docutils for each use of the role."""
        known = meanings(Path(self.env.srcdir) / f"{PAGE}.md")
        if self.text not in known:
            logger.warning("the page of notation has no symbol %r", self.text, location=self.get_location())
        link = nodes.reference("", "", internal=True, refuri=f"{PAGE}.html#{anchor(self.text)}", classes=["sym"])
        link["reftitle"] = known.get(self.text, "")
        link += nodes.math(self.text, self.text)
        return [link], []


class Definition(SphinxRole):
    """The place that the links and the search lead to."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Called by docutils for each use of the role."""
        place = nodes.inline("", "", ids=[anchor(self.text)])
        place += nodes.math(self.text, self.text)
        entry = index(entries=[("single", name(self.text), anchor(self.text), "main", None)])
        return [entry, place], []


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_role("sym", Symbol())
    app.add_role("defsym", Definition())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
