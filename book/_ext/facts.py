r"""The role {fact}`name` or {fact}`name|format`: a number read from the committed results, never typed.

The format is Python's, as in {fact}`mnist.accuracy.best|.1%`. Inside a table write the bar as \|. A result that does
not exist yet reads "not tested"; an unknown name is a warning, so that the strict build fails.
"""

import difflib
from functools import cache
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

Value = float | int | str | None
logger = logging.getLogger(__name__)


@cache
def facts() -> dict[str, Value]:
    """The facts of the committed results."""
    from jointvae import claims  # it brings SciPy and PyTorch along, and a build may read no page with a fact

    return claims.facts()


class Fact(SphinxRole):
    """Replaces itself by the value of a fact."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Called by docutils for each use of the role."""
        name, _, spec = (part.strip() for part in self.text.replace("\\|", "|").partition("|"))
        try:
            text = show(facts(), name, spec)
        except ValueError as error:
            logger.warning("%s", error, location=self.get_location())
            text = "?"
        return [nodes.inline(self.rawtext, text, classes=["fact"])], []


def show(values: dict[str, Value], name: str, spec: str) -> str:
    """The text of one fact.

    Raises:
        ValueError: if there is no such fact, or the format does not suit its value.
    """
    if name not in values:
        near = ", ".join(difflib.get_close_matches(name, values, n=3, cutoff=0.4)) or "nothing like it"
        raise ValueError(f"there is no fact {name!r}; the results have: {near}")
    value = values[name]
    if value is None:
        return "not tested"
    try:
        return format(value, spec)
    except ValueError:
        raise ValueError(f"the format {spec!r} does not suit the fact {name!r}, which is {value!r}") from None


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_role("fact", Fact())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
