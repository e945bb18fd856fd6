"""Which pages are written again, and by how many processes.

Sphinx writes the pages that it read. That is enough only while they show others the same as before: every page names
the titles of all in its sidebar, and may name sections, figures and formulas of any other. If one of these changed, all
pages are written.

Pages are written by one process for each core. They are read one after the other, because the extension for
definitions and theorems can't merge what two processes read.
"""

import hashlib
import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import ENV_PICKLE_FILENAME, Sphinx
from sphinx.environment import BuildEnvironment

LAST = 900  # priority of a handler: after Sphinx has numbered figures and formulas
DOMAINS = ("std", "math", "py")  # their data say where a label leads, and what it is called


def shown(env: BuildEnvironment) -> str:
    """The SHA-256 of all that a page can show of other pages."""
    exercises = getattr(env, "sphinx_exercise_registry", {})
    parts = {
        "titles": env.titles,
        "contents": env.toctree_includes,
        "numbers": [env.toc_secnumbers, env.toc_fignumbers],
        "labels": [env.domaindata[domain] for domain in DOMAINS],
        "exercises": {label: [found["docname"], found["node"][0]] for label, found in exercises.items()},
    }
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def canonical(value: Any) -> str:
    """A text that is the same for equal values, whatever the order in which they were found."""
    if isinstance(value, nodes.Node):
        return value.astext()
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{key!r}: {canonical(one)}' for key, one in value.items()))}}}"
    if isinstance(value, set):
        return f"{{{', '.join(sorted(map(canonical, value)))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(canonical, value))}]"
    return str(value)


def choose(app: Sphinx, env: BuildEnvironment) -> Iterable[str]:
    """Called by Sphinx when all pages were read: which ones to write beside those that were read."""
    app.parallel = 1 + (os.cpu_count() or 1)  # Sphinx counts itself, which prepares the pages that the others write
    before, env.jointvae_shown = getattr(env, "jointvae_shown", None), shown(env)  # it is kept with the rest
    return [] if before == env.jointvae_shown else env.found_docs


def remove_unused_images(app: Sphinx, error: Exception | None) -> None:
    """Called by Sphinx when all pages are written: a figure that changed has another name."""
    if error or app.builder.format != "html":
        return
    used = {name for _, name in app.env.images.values()}
    for image in Path(app.outdir, "_images").glob("*"):
        if image.name not in used:
            image.unlink()


def keep_search_entries(app: Sphinx, error: Exception | None) -> None:
    """Called by Sphinx when all pages are written: it saved what it knows before it collected the search's entries."""
    if not error:
        path = Path(app.doctreedir, ENV_PICKLE_FILENAME)
        saved = pickle.loads(path.read_bytes())  # as it was read: writing changes titles of exercises
        saved._search_index_index_entries = app.env._search_index_index_entries
        path.write_bytes(pickle.dumps(saved, pickle.HIGHEST_PROTOCOL))


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("env-get-updated", choose, priority=LAST)
    app.connect("build-finished", remove_unused_images)
    app.connect("build-finished", keep_search_entries)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
