"""Pages are written side by side, by one process for each core.

They are read one after the other, because the extension for definitions and theorems can't merge what two processes
read.
"""

import os
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def use_all_cores(app: Sphinx, env: BuildEnvironment) -> None:
    """Called by Sphinx between reading and writing."""
    app.parallel = 1 + (os.cpu_count() or 1)  # Sphinx counts itself, which prepares the pages that the others write


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("env-updated", use_all_cores)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
