"""The directive {film}: the film of a training, such as results/films/mnist-seed2.json, with its player.

    ```{film} mnist-seed2
    ```

Without JavaScript the page shows the last picture. The player's script and style come with pages that have a film only,
and what it draws stands on the page itself, because a page from the disk may not fetch. A film that does not exist, or
was made from another record, is a warning, so that the strict build fails.
"""

import json
import shutil
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from jointvae.errors import JointVAEError

# `films` brings PyTorch along, and a build may read no page with a film: so it is imported where it is used.
if TYPE_CHECKING:
    from jointvae.films import Film
    from jointvae.results import Record

FOLDER = "film"  # of the built site; book/_web/film is copied there
NO_PLAYER = "The player of this film did not load, so the picture stays as it is: build the book again."

logger = logging.getLogger(__name__)


class FilmDirective(SphinxDirective):
    """Replaces itself by the last picture of a film and all that the player needs."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Called by docutils for each use of the directive."""
        from jointvae import films, results

        folder = Path(self.config.film_folder or films.FILMS)
        records = Path(self.config.film_records or results.RESULTS / "runs")
        try:
            film, record = films.read(self.arguments[0], folder, records)
        except JointVAEError as error:
            logger.warning("%s", error, location=self.get_location())
            return []
        html = markup(film, record, "../" * self.env.docname.count("/") + FOLDER)
        files = [str(folder / picture.file) for picture in [*film.sheets, film.poster]]
        return [nodes.raw("", html, format="html", film_files=files)]


def markup(film: "Film", record: "Record", folder: str) -> str:
    """The HTML of a film whose pictures lie in `folder`, seen from the page."""
    from jointvae import films

    data = films.player_data(film, record)
    step = film.side + film.gap
    width, height = film.columns * step - film.gap, len(data["rows"]) * step - film.gap
    labels = "".join(
        f'<div class="film-row film-{row["symbol"]}"><span>{row["symbol"]}<sub>{row["index"]}</sub></span> '
        f'<span class="film-nats"><span class="film-number">{row["nats"][-1]:.2f}</span> nats</span></div>'
        for row in data["rows"]
    )
    content = json.dumps(data | {"folder": folder, "alt": describe(data)}, separators=(",", ":"))
    content = content.replace("<", "\\u003c")  # nothing in it may end the script
    return f"""
<div class="film" role="group" aria-label="Film of the training {escape(film.name)}">
<div class="film-picture">
<div class="film-unit" aria-hidden="true">nats</div>
{scale("category 1", f"category {film.c[0]}") if film.c else ""}
<div class="film-labels">{labels}</div>
<img class="film-poster" src="{folder}/{film.poster.file}" width="{width}" height="{height}" loading="lazy"
 alt="After the last epoch: {escape(describe(data))}">
{scale("z at its 5 % quantile", "95 %") if film.z else ""}
</div>
<div class="film-player"></div>
<p class="film-note" role="alert" hidden>{NO_PLAYER}</p>
<p class="film-caption">{caption(data)}</p>
<script type="application/json" class="film-data">{content}</script>
</div>
"""


def scale(left: str, right: str) -> str:
    """The ends of a row of tiles, above or below the picture."""
    return f'<div class="film-scale"><span>{left}</span><span>{right}</span></div>'


def describe(data: dict[str, Any]) -> str:
    """The rows of a film in words, for who can't see them."""
    rows = []
    for row in data["rows"]:
        name = row["symbol"] + row["index"]
        moves = f"its {row['tiles']} categories" if row["symbol"] == "c" else "quantiles of its prior"
        rows.append(f"{name} through {moves}")
    return f"decoded images, a row per latent: {'; '.join(rows)}."


def caption(data: dict[str, Any]) -> str:
    """What the rows and the curves mean."""
    has_c, units = data["rows"][0]["symbol"] == "c", sum(row["symbol"] == "z" for row in data["rows"])
    sentences = [f"The training <code>{escape(data['name'])}</code>; each row moves one latent."]
    if has_c:
        sentences.append("In a row of <em>c</em> all units of <em>z</em> are 0.")
    if units:
        most = f"The rows of <em>z</em> are those of the {units} units that carry most in the end, on the test set"
        sentences.append(f"{most}{'; <em>c</em> stays in its first category' if has_c else ''}.")
    sentences.append("A picture shows the model after its epoch; numbers and curves are means over that epoch.")
    return " ".join(sentences)


def add_player(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Called by Sphinx for each page before it is written: a page with a film gets the player and the pictures."""
    found = [node for node in doctree.findall(nodes.raw) if "film_files" in node] if doctree else []
    if not found:
        return
    show_note = "document.querySelectorAll('.film-note').forEach(note => note.hidden = false)"
    app.add_js_file(f"../{FOLDER}/film.js", loading_method="defer", onerror=show_note)
    app.add_css_file(f"../{FOLDER}/film.css")
    target = Path(app.outdir) / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for file in {file for node in found for file in node["film_files"]}:
        shutil.copy2(file, target)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_config_value("film_folder", "", "env")  # that of the results
    app.add_config_value("film_records", "", "env")
    app.add_directive("film", FilmDirective)
    app.connect("html-page-context", add_player)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
