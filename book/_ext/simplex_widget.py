r"""The directive {simplex}: relaxed draws in a triangle, which the reader moves; book/_web/simplex holds its script.

The option `figure` names the figure that shows the same without JavaScript:

    ```{simplex}
    :figure: fig-sampling-simplex
    ```

Script and style are linked from where the directive stands, so no other page loads them.
"""

from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

STILL = "Here is a triangle of relaxed draws to move by hand; it needs JavaScript."
INSTEAD = "{{numref}}`{figure}` shows the same at a few temperatures."


class Simplex(SphinxDirective):
    """The place of the widget, with the sentences that stand there until the script replaces them."""

    option_spec: ClassVar = {"figure": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Called by docutils for each use of the directive."""
        # Relative, so that the page works from any folder and without a server.
        folder = "../" * self.env.docname.count("/") + "simplex/"
        style = f'<link rel="stylesheet" href="{folder}simplex.css">'
        script = f'<script defer src="{folder}simplex.js"></script>'
        sentences = [STILL]
        if "figure" in self.options:
            sentences.append(INSTEAD.format(figure=self.options["figure"]))
        still = nodes.Element()
        self.state.nested_parse(StringList([" ".join(sentences)], source="simplex"), self.content_offset, still)
        return [
            nodes.raw("", f'{style}<div class="simplex" data-simplex>', format="html"),
            *still.children,
            nodes.raw("", f"</div>{script}", format="html"),
        ]


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("simplex", Simplex)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
