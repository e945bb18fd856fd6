"""The directive {identities}: a table of all identities of the book, each with its check and what last came out.

An identity is a displayed formula whose label begins with `eq-`. What only gives a name to something is labelled `def-`
and needs no check. The strict build fails when a displayed formula has no label, an identity has no check, or a check
names no identity.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)
DISPLAYED = re.compile(
    r"^[ \t]*\$\$[ \t]*\n(?P<formula>.*?)^[ \t]*\$\$[ \t]*(?:\((?P<label>[\w-]+)\))?", re.DOTALL | re.MULTILINE
)


class Identity(NamedTuple):
    """A labelled identity, the page that states it, and the checks that ran: pairs of how and what came out."""

    label: str
    page: str
    checks: list[tuple[str, str]]


def collect(folder: Path) -> tuple[list[Identity], list[str]]:
    """All identities of the executed chapters in a folder, in the order of the pages' names, and what is wrong."""
    found: list[Identity] = []
    wrong: list[str] = []
    for path in sorted(folder.glob("*.ipynb")):
        if path.name.endswith(".failed.ipynb"):
            continue
        notebook = nbformat.read(path, as_version=4)
        prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        labels = [match["label"] for match in DISPLAYED.finditer(prose)]
        checks = [
            output.metadata["check"]
            for cell in notebook.cells
            for output in cell.get("outputs", [])
            if "check" in output.get("metadata", {})
        ]
        page = path.stem
        identities = [label for label in labels if label and not label.startswith("def-")]
        wrong += [f"{page}: a displayed formula has no label"] * labels.count(None)
        wrong += [
            f"{page}: {label} has no check" for label in identities if label not in {check["label"] for check in checks}
        ]
        wrong += [
            f"{page}: a check names {check['label']}, which is no identity of this page"
            for check in checks
            if check["label"] not in identities
        ]
        for label in identities:
            results = [(check["how"], check["what"]) for check in checks if check["label"] == label]
            found.append(Identity(label, page, results))
    return found, wrong


class Identities(SphinxDirective):
    """Replaces itself by the table."""

    def run(self) -> list[nodes.Node]:
        """Called by docutils for each use of the directive."""
        self.env.note_reread()  # the table depends on other pages
        found, wrong = collect(Path(self.env.srcdir))
        for sentence in wrong:
            logger.warning("%s", sentence, location=self.get_location())
        lines = ["| Identity | Stated in | Checked by | Last result |", "|:--|:--|:--|:--|"]
        order = re.findall(r"file: (\S+)", Path(self.config.external_toc_path).read_text(encoding="utf-8"))
        for identity in sorted(found, key=lambda identity: order.index(identity.page)):
            for how, what in identity.checks or [("nothing", "")]:
                what = re.sub(r"([|$*`{}])", r"\\\1", what)  # these mean something in a table
                name = f"{{eq}}`{identity.label}` `{identity.label}`"
                lines.append(f"| {name} | {{doc}}`{identity.page}` | {how} | {what} |")
        container = nodes.container(classes=["identities"])
        self.state.nested_parse(StringList(lines, source="identities"), self.content_offset, container)
        return list(container.children)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("identities", Identities)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
