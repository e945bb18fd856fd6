"""Data flows one way: a module imports only from those above it in this list."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "jointvae"
ORDER = [
    "__init__", "errors", "files", "categorical", "latents", "model", "objectives", "data", "own",
    "checkpoints", "training", "traversals", "names", "onnx_graph", "evaluation", "results", "runs", "films",
    "export", "claims", "figures", "checks", "book", "doctor", "terminal", "__main__",
]  # fmt: skip


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "jointvae":
            inner = node.module.partition(".")[2]
            found |= {inner} if inner else {name.name for name in node.names if (PACKAGE / f"{name.name}.py").exists()}
    return found


def test_every_module_has_its_place():
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == sorted(ORDER)


def test_imports_only_point_up():
    for place, module in enumerate(ORDER):
        assert imports(PACKAGE / f"{module}.py") <= set(ORDER[:place]), module


def test_only_data_reads_the_environment():
    readers = {path.stem for path in PACKAGE.glob("*.py") if "os.environ" in path.read_text()}
    assert readers == {"data"}
