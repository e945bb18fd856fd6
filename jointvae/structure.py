"""What the package is made of: its modules in the order in which data flow, and which of them imports which.

The order is a promise that a test keeps: a module imports only from those before it. The imports are read from the
source, so the picture in the book can't differ from the code. Besides: the folders in which it lies and works.
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent
PROJECT = PACKAGE.parent
# What holds data, runs and results: commands and chapters run in different folders of a checkout and must find the
# same ones. Outside a checkout it is the folder where one stands.
HERE = PROJECT if (PROJECT / "pyproject.toml").exists() else Path()
RUNS = HERE / "runs"  # what the reader trains
STAGES = {
    "ground": ("__init__", "errors", "files", "structure"),
    "data": ("data", "own", "augmentation"),
    "model": ("categorical", "latents", "model"),
    "objective": ("objectives",),
    "training": ("checkpoints", "training", "batched"),
    "evaluation": ("traversals", "names", "onnx_graph", "evaluation"),
    "results": (
        "results",
        "selection",
        "sweeps",
        "runs",
        "partitions",
        "cluster",
        "films",
        "export",
        "claims",
        "verify",
    ),
    "book": ("figures", "checks", "book"),
    "commands": ("doctor", "terminal", "__main__"),
}
ORDER = tuple(module for modules in STAGES.values() for module in modules)


def purpose(path: Path) -> str:
    """What the first line of a module's docstring says of it.

    >>> purpose(PACKAGE / "errors.py")
    'The one exception whose message is meant for the user.'
    """
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def imports(path: Path) -> set[str]:
    """The modules of the package that a file of Python imports, anywhere in it.

    >>> sorted(imports(PACKAGE / "latents.py"))
    ['categorical', 'errors']
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {inner for name in node.names if (inner := name.name.removeprefix("jointvae.")) != name.name}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jointvae":
            inner = str(node.module).partition(".")[2]
            found |= {inner} if inner else {one.name for one in node.names if (PACKAGE / f"{one.name}.py").exists()}
    return found
