"""The appendix on the package is whole, docstrings say what they must, and the examples in them hold."""

import ast
import doctest
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_book import HTML, ROOT

from jointvae.structure import ORDER, PACKAGE, STAGES

MODULES = [module for module in ORDER if module != "__init__"]  # which holds a version and nothing else
DEFINITIONS = (ast.ClassDef, ast.FunctionDef)


def source(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text())


def public(nodes: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef]]:
    """Functions, classes and their methods without an underscore, by name."""
    for node in nodes:
        if isinstance(node, DEFINITIONS) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}{node.name}.")


def raised(node: ast.ClassDef | ast.FunctionDef) -> set[str]:
    """The names of the errors that a function raises, or that a class raises when it is made."""
    methods = [method for method in getattr(node, "body", []) if isinstance(method, ast.FunctionDef)]
    makers = [method for method in methods if method.name in ("__init__", "__post_init__")]
    bodies = makers if isinstance(node, ast.ClassDef) else [node]
    errors = [inner.exc for body in bodies for inner in ast.walk(body) if isinstance(inner, ast.Raise) and inner.exc]
    names = {ast.unparse(error.func if isinstance(error, ast.Call) else error) for error in errors}
    return {name.rpartition(".")[2] for name in names if name.endswith(("Error", "Interrupt"))}


def test_the_appendix_has_every_module_in_the_order_of_the_data():
    page = (ROOT / "book" / "api.md").read_text()
    assert re.findall(r"^\.\. automodule:: jointvae\.(\w+)$", page, re.MULTILINE) == MODULES
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == MODULES
    assert len(re.findall(r"^## ", page, re.MULTILINE)) == len(STAGES)


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_says_what_it_does_and_what_it_raises(module):
    tree = source(module)
    assert ast.get_docstring(tree)
    silent = []
    for name, node in public(tree.body):
        text = ast.get_docstring(node) or ""
        told = set(re.findall(r"^    (\w+): ", text.partition("Raises:\n")[2], re.MULTILINE))
        if not text or raised(node) - told:
            silent.append((name, sorted(raised(node) - told)))
    assert silent == []


@pytest.mark.book
def test_the_built_appendix_has_everything_public():
    page = (HTML / "api.html").read_text(encoding="utf-8")
    names = [f"{module}.{name}" for module in MODULES for name, _ in public(source(module).body)]
    assert len(names) > 100
    assert [name for name in names if f'id="jointvae.{name}"' not in page] == []


def examples(module: str) -> list[doctest.DocTest]:
    """The examples in a module's docstrings, read from the source: the check of shapes wraps what it checks."""
    nodes = [node for node in ast.walk(source(module)) if isinstance(node, (*DEFINITIONS, ast.Module))]
    parser, names = doctest.DocTestParser(), vars(importlib.import_module(f"jointvae.{module}"))
    found = [
        parser.get_doctest(ast.get_docstring(node) or "", dict(names), getattr(node, "name", module), module, None)
        for node in nodes
    ]
    return [test for test in found if test.examples]


WITH_EXAMPLES = [module for module in MODULES if ">>> " in (PACKAGE / f"{module}.py").read_text()]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_hold(module):
    complaints: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in examples(module):
        runner.run(test, out=complaints.append)
    assert "".join(complaints) == ""
    assert runner.tries == (PACKAGE / f"{module}.py").read_text().count(">>> ")


def test_the_core_is_shown_by_examples():
    assert {"categorical", "latents", "objectives", "data", "evaluation"} <= set(WITH_EXAMPLES)
    shown = {test.name for test in examples("categorical")}
    assert shown == {name for name, _ in public(source("categorical").body)}


def test_symbols_in_docstrings_are_set_and_code_is_left_alone(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    notation = Path(ROOT / "book" / "notation.md")
    given = [
        "gamma |KL_z - C_z| and I(x; c).",
        ":param tau: the tau, not `tau`",
        "",
        ">>> tau",
        "tau",
        "",
        "tau_2, x.tau",
    ]
    assert importlib.import_module("docstrings").set_symbols(given, notation) == [
        r"\ :sym:`\\gamma`\  \|\ :sym:`\\mathrm{KL}_z`\  - \ :sym:`C_z`\ \| and \ :sym:`I(x; c)`\ .",
        r":param tau: the \ :sym:`\\tau`\ , not `tau`",
        *given[2:],
    ]
