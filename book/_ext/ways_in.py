"""Each chapter as a notebook: to download, and to open on a server where the address of the repository is known.

The notebooks are those of `make notebooks`, which any Jupyter opens as they are. The theme's own menu offers the page
that was built, whose text only the book's builder understands; so its entry is replaced. `notebooks_repository` in
_config.yml names the repository whose branch `notebooks` holds them; while it is empty, no page names a server.
"""

import re
import sys
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).parent.parent / "_tools"))
from execute import is_notebook
from notebooks import BRANCH, NOTEBOOKS, to_notebook

logger = logging.getLogger(__name__)
BOOK = Path(__file__).parent.parent
FOLDER = "_notebooks"  # in the site
REPOSITORY = re.compile(r"https://github\.com/(?P<owner>[\w.-]+)/(?P<name>[\w.-]+?)(?:\.git)?/?")
DOWNLOAD, SOURCE, LAUNCH = "download-buttons", "download-source-button", "launch-buttons"


def links(repository: str, page: str) -> dict[str, str]:
    """Where the page's notebook opens: the name of each server, and the address there.

    Raises:
        ValueError: if that is not the address of a repository that the servers can read.
    """
    found = REPOSITORY.fullmatch(repository)
    if not found:
        raise ValueError(f"notebooks_repository must read https://github.com/OWNER/NAME, not {repository!r}")
    owner, name = found["owner"], found["name"]
    path = f"{NOTEBOOKS}/{page}.ipynb"
    return {
        "Colab": f"https://colab.research.google.com/github/{owner}/{name}/blob/{BRANCH}/{path}",
        "Binder": f"https://mybinder.org/v2/gh/{owner}/{name}/{BRANCH}?labpath={quote(path, safe='')}",
    }


def source(page: str) -> Path | None:
    """The text of a page that is a notebook, else None."""
    path = BOOK / f"{page}.md"
    return path if path.exists() and is_notebook(path) else None


def add_buttons(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Called by Sphinx for each page before it is written: its notebook is written, and offered on it."""
    chapter = source(page)
    if chapter is None:
        return
    write_notebook(app, page, chapter)
    notebook = f"{context['pathto'](FOLDER, 1)}/{page}.ipynb"
    servers: dict[str, str] = {}
    if app.config.notebooks_repository:
        try:
            servers = links(app.config.notebooks_repository, page)
        except ValueError as error:
            logger.warning("%s", error)
    context["body"] = context["body"].replace("</h1>", "</h1>\n" + offer(notebook, servers), 1)
    groups = context.get("header_buttons", [])
    for button in [one for group in groups if group.get("label") == DOWNLOAD for one in group["buttons"]]:
        if button.get("label") == SOURCE:
            button |= {
                "url": notebook,
                "text": "Notebook",
                "tooltip": "Download this chapter as a notebook",
                "label": "download-notebook-button",
            }
    if servers:
        buttons = [
            {"type": "link", "text": name, "tooltip": f"Open this chapter in {name}", "icon": "fas fa-play", "url": url}
            for name, url in servers.items()
        ]
        tooltip = "Run this chapter on a server"
        groups.insert(
            0, {"type": "group", "tooltip": tooltip, "icon": "fas fa-rocket", "buttons": buttons, "label": LAUNCH}
        )


def write_notebook(app: Sphinx, page: str, chapter: Path) -> None:
    """Write the notebook of a page beside the pages."""
    folder = Path(app.outdir, FOLDER)
    folder.mkdir(exist_ok=True)
    pages = (app.config.html_baseurl.rstrip("/") or "..") + "/{}.html"
    (folder / f"{page}.ipynb").write_bytes(to_notebook(chapter, app.config.notebooks_repository, pages))


def offer(notebook: str, servers: dict[str, str]) -> str:
    """The line under the title. Its link downloads, where the theme's would show the file's text in a new tab."""
    named = [f'<a class="reference external" href="{escape(url)}">{name}</a>' for name, url in servers.items()]
    opening = f" or open it in {' or '.join(named)}" if named else ""
    download = f'<a href="{escape(notebook)}" download>download it</a>'
    return f'<p class="ways-in">This page is a notebook: {download}{opening}.</p>'


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_config_value("notebooks_repository", "", "html")
    # After the theme has made its buttons.
    app.connect("html-page-context", add_buttons, priority=902)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
