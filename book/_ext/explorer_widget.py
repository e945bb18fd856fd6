"""The directive {explorer}: the recorded run of a recipe, to play with; its script is in book/_web/explorer.

    ```{explorer} mnist
    ```

The run is the one that the chapters show (book.chosen_run). Its files are made from the recorded weights whenever the
book is built, so that they can't drift from the records: explorer/models/NAME.js, which the page loads once the reader
comes near, and NAME.png, which stands there without JavaScript. A run that is not recorded is a warning, so that the
strict build fails. Script and style are linked from where the directive stands, so no other page loads them.
"""

from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from jointvae.errors import JointVAEError
from jointvae.files import write_atomic

FOLDER = "explorer"  # of the built site; book/_web/explorer is copied there
MODELS = f"{FOLDER}/models"

logger = logging.getLogger(__name__)


class Explorer(SphinxDirective):
    """The place of the explorer, with a still picture until the script replaces it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Called by docutils for each use of the directive."""
        name = self.arguments[0]
        try:
            caption = write_model(name, Path(self.env.app.outdir) / MODELS)
        except JointVAEError as error:
            logger.warning("%s", error, location=self.get_location())
            return []
        depth = self.env.app.builder.get_target_uri(self.env.docname).count("/")
        return [nodes.raw("", markup(name, caption, "../" * depth), format="html", explorer_model=name)]


def markup(name: str, caption: str, root: str = "") -> str:
    """The HTML of an explorer on a page from which `root` leads to the front of the site."""
    from jointvae import export

    title = escape(export.TITLES.get(name, name))
    return f"""
<link rel="stylesheet" href="{root}{FOLDER}/explorer.css">
<div class="explorer" role="group" aria-label="Explorer of the latents, {title}"
 data-explorer="{escape(name)}" data-model="{root}{MODELS}/{escape(name)}.js">
<img src="{root}{MODELS}/{escape(name)}.png" loading="lazy"
 alt="What each latent of the model trained on {title} does: a row of generated images for each.">
<p>{escape(caption)}</p>
</div>
<script defer src="{root}{FOLDER}/explorer.js"></script>
"""


@cache
def write_model(name: str, folder: Path) -> str:
    """Write the files of a recipe's recorded run into a folder, and return what the rows of its picture show.

    Raises:
        JointVAEError: if no such run is recorded with its weights.
    """
    from jointvae import book, export, results, runs  # PyTorch comes along, and a build may write no such page
    from jointvae.names import name_units

    record = book.chosen_run(name)
    model = runs.load(record, results.RESULTS / "runs")
    for file, content in export.browser_files(model, name, record).items():
        write_atomic(folder / file, content)
    names = name_units(model)
    rows = [f"c{i + 1}" if len(model.spec.c) > 1 else "c" for i in range(len(model.spec.c))]
    for unit in export.used_units(model, export.divergences(record)):
        own = f"z{unit + 1}"
        rows.append(own if names[unit].name == own else f"{own} ({names[unit].name})")
    return (
        f"A row for each latent of the run {record.name}: {', '.join(rows)}. The row of c has its categories, a row of "
        "z goes from the 5 % to the 95 % quantile of the prior. With JavaScript you can move them here."
    )


def add_models(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Called by Sphinx for each page before it is written, whether it was read this time or not."""
    for node in doctree.findall(nodes.raw) if doctree else ():
        if "explorer_model" in node:
            write_model(node["explorer_model"], Path(app.outdir) / MODELS)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("explorer", Explorer)
    app.connect("html-page-context", add_models)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
