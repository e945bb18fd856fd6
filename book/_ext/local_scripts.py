"""Each script once on a page, and none that points to another host.

jupyter-book adds the launcher of Thebe, which this book does not use: it names a host of scripts, and Sphinx writes its
constants twice, which is an error in the browser's console.
"""

from typing import Any

from sphinx.application import Sphinx


def clean_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Called by Sphinx for each page before it is written."""
    once: dict[tuple[str, str], Any] = {}
    for script in context.get("script_files", []):
        filename = str(getattr(script, "filename", script) or "")
        body = getattr(script, "attributes", {}).get("body", "")
        if "thebe" not in filename and "thebe" not in body.lower():
            once.setdefault((filename, body), script)
    context["script_files"] = list(once.values())


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    # Late, so that it sees what the other extensions added to the page.
    app.connect("html-page-context", clean_scripts, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
