"""Execute one chapter: MyST text goes in, a notebook with its outputs comes out.

A page without code is copied as it is. On failure the last good notebook stays, and the partial one is kept for reading
in a folder beside that of the good ones, which the build does not see: STAGE.failed/NAME.ipynb.
"""

import argparse
import ast
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the imports take their seconds: no traceback

import jupytext
import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from jointvae.errors import JointVAEError
from jointvae.files import write_atomic

CELL_TIMEOUT = 1800  # seconds; chapters are cheap, so a cell that takes longer hangs
FRONT_MATTER = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)
LINK_TO_PAGE = re.compile(r"\]\((?=[\w-]+\.md[#)])")
COLOUR_CODES = re.compile(r"\x1b\[[0-9;]*m")


class ChapterError(Exception):
    """A chapter that can't be executed; the message is one sentence for its author."""

    def __init__(self, message: str, partial: NotebookNode | None = None) -> None:
        super().__init__(message)
        self.partial = partial


def main() -> int:
    """Execute the chapter that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chapter", type=Path, help="the MyST source")
    parser.add_argument("--tier", required=True, help="smoke, cpu or paper; the chapter refuses another")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="NAME.ipynb; a page without code becomes NAME.md")
    arguments = parser.parse_args()
    output: Path = arguments.output
    failed = output.parent.with_name(f"{output.parent.name}.failed") / output.name
    try:
        if is_notebook(arguments.chapter):
            parameters = {"TIER": arguments.tier, "SEED": arguments.seed}
            notebook = execute(arguments.chapter, parameters)
            write_notebook(output, notebook)
            output.with_suffix(".md").unlink(missing_ok=True)
        else:
            text = arguments.chapter.read_text(encoding="utf-8")
            write_atomic(output.with_suffix(".md"), resolve_links(text).encode())
            output.unlink(missing_ok=True)
    except ChapterError as error:
        kept = ""
        if error.partial is not None:
            write_notebook(failed, error.partial)
            kept = f" What ran before is in {failed}."
        print(f"{arguments.chapter}: {error}{kept}", file=sys.stderr)
        return 1
    failed.unlink(missing_ok=True)
    return 0


def is_notebook(chapter: Path) -> bool:
    """Whether the page's front matter makes it a notebook; code cells without it are an error."""
    text = chapter.read_text(encoding="utf-8")
    header = FRONT_MATTER.match(text)
    if header and "jupytext:" in header[1]:
        return True
    if "{code-cell}" in text:
        raise ChapterError("the page has code cells but no jupytext header, so they would never run.")
    return False


def resolve_links(text: str) -> str:
    """Links to a chapter's source, such as [](mnist.md), find the page although that is an .ipynb when it is built."""
    return LINK_TO_PAGE.sub("](project:", text)


def execute(chapter: Path, parameters: dict[str, Any]) -> NotebookNode:
    """The chapter with the outputs of all its cells, run in the chapter's own folder.

    Raises:
        ChapterError: if a parameter is not declared, a cell fails, or a cell writes to stderr.
    """
    notebook = jupytext.reads(resolve_links(chapter.read_text(encoding="utf-8")), fmt="md:myst")
    check_parameters(notebook, parameters)
    # No bars of progress on pages; and the kernel of this environment, whatever kernels the user has installed.
    os.environ |= {"TQDM_DISABLE": "1", "JUPYTER_PREFER_ENV_PATH": "1"}
    # Threads that wait by spinning make a chapter many times slower on a machine that is busy with something else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it logs of a dead kernel, the exception says too
    with tempfile.TemporaryDirectory() as folder:
        on_interrupt(chapter, Path(folder))
        source, result = Path(folder, "source.ipynb"), Path(folder, "result.ipynb")
        nbformat.write(notebook, source)
        try:
            papermill.execute_notebook(
                source,
                result,
                parameters=parameters,
                cwd=chapter.parent,
                kernel_name="python3",
                progress_bar=False,
                execution_timeout=CELL_TIMEOUT,
                extra_arguments=["--log-level=CRITICAL"],  # the kernel's own warnings are of no use to the author
            )
        except PapermillExecutionError as error:
            message = describe(error.source, error.ename, error.evalue)
            if error.ename == JointVAEError.__name__:  # its message is a sentence for the reader
                message = COLOUR_CODES.sub("", error.evalue).strip()
            raise ChapterError(message, with_sentence(tidied(result), message)) from None
        except (DeadKernelError, CellTimeoutError) as error:
            message = describe(last_started(result), "the kernel stopped", str(error))
            raise ChapterError(message, with_sentence(tidied(result), message)) from None
        executed = tidied(result)
    check_outputs(executed)
    return executed


def on_interrupt(chapter: Path, folder: Path) -> None:
    """At Ctrl-C remove the folder and end at once; the kernel ends by itself when it sees that this process is gone.

    An exception would do neither for sure: it comes up anywhere in papermill's loop, which goes on for the cleaning up.
    """

    def stop(*_: object) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        print(f"{chapter}: interrupted; the same command executes it again.", file=sys.stderr, flush=True)
        os._exit(130)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)


def check_parameters(notebook: NotebookNode, parameters: dict[str, Any]) -> None:
    """Papermill only logs a parameter that the chapter does not declare; here it is an error."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ChapterError(f"a chapter needs one cell tagged `parameters`, this one has {len(cells)}.")
    try:
        lines = ast.parse(cells[0].source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # all that the parser of Python raises
        raise ChapterError(f"its parameters cell is no Python ({type(error).__name__}).") from None
    declared = {
        target.id
        for node in lines
        for target in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])
        if isinstance(target, ast.Name)
    }
    if missing := ", ".join(sorted(parameters.keys() - declared)):
        raise ChapterError(f"its parameters cell does not declare {missing}.")


def check_outputs(notebook: NotebookNode) -> None:
    """What a cell writes to stderr (a warning, mostly) has no place on a page."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise ChapterError(describe(cell.source, "output on stderr", output.text), notebook)


def describe(source: str, what: str, message: str) -> str:
    """One sentence that names the cell by its first line of code, and what went wrong."""
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith(("#", "%"))]
    first = lines[0].strip() if lines else "(empty)"
    summary = COLOUR_CODES.sub("", message).strip().splitlines() or [""]
    return f"the cell that begins with `{first}` failed: {what}: {summary[0].rstrip('.')}."


def last_started(path: Path) -> str:
    """The code of the cell at which the execution ended, from the notebook that papermill left at `path`."""
    cells = nbformat.read(path, as_version=4).cells
    started = [cell.source for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
    return started[-1] if started else ""


def with_sentence(notebook: NotebookNode, sentence: str) -> NotebookNode:
    """The notebook with what went wrong said at its top, in place of papermill's own note."""
    notebook.cells = [
        cell for cell in notebook.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])
    ]
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"**This chapter did not finish.** {sentence}"))
    return notebook


def tidied(path: Path) -> NotebookNode:
    """The notebook at `path`, its parameters hidden from the page, without papermill's paths and timings."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        tags = cell.metadata.get("tags", [])
        if {"parameters", "injected-parameters"} & set(tags):
            cell.metadata["tags"] = sorted({*tags, "remove-cell"})
    return notebook


def write_notebook(path: Path, notebook: NotebookNode) -> None:
    """Write the notebook so that a reader never sees half of it."""
    write_atomic(path, nbformat.writes(notebook).encode())


if __name__ == "__main__":
    sys.exit(main())
