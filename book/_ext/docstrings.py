"""What the appendix on the package needs beyond autodoc: symbols that are set, and signatures that can be read.

In docstrings symbols are plain words (tau, KL_z), for those who read the code. On the page they become what the role
{sym} makes: a formula that links to its row on the page of notation.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from symbols import PAGE, meanings, name


@cache
def spelled(path: Path) -> dict[str, str]:
    """The symbols that a docstring can write as a word, by that word.

    Symbols of one letter stay as they are: too many of them are words or other things.
    """
    return {word: symbol for symbol in meanings(path) for word in (name(symbol), symbol) if len(word) > 1}


@cache
def pattern(path: Path) -> re.Pattern[str]:
    """A word for a symbol, or what must stay (a literal, the head of a field), or a bar."""
    words = "|".join(sorted(map(re.escape, spelled(path)), key=len, reverse=True))
    return re.compile(rf"(?P<kept>`+[^`]+`+|^\s*:[^:]+:)|(?P<bar>\|)|(?<![\w.])(?P<word>{words})(?![\w=])")


def set_symbols(docstring: list[str], path: Path) -> list[str]:
    """The lines of a docstring with its symbols set, examples aside; `path` is the page of notation."""

    def one(found: re.Match[str]) -> str:
        if found["kept"]:
            return found[0]
        if found["bar"]:
            return r"\|"  # of an absolute value; docutils would see a name to substitute
        # A role takes backslashes in pairs, and needs space around it, which disappears where it is escaped.
        tex = spelled(path)[found["word"]].replace("\\", r"\\")
        return rf"\ :sym:`{tex}`\ "

    lines, code = [], False
    for line in docstring:
        code = bool(line.strip()) and (code or line.lstrip().startswith(">>>"))
        lines.append(line if code else pattern(path).sub(one, line))
    return lines


def change_docstring(app: Sphinx, what: str, name: str, documented: Any, options: Any, lines: list[str]) -> None:
    """Called by autodoc for each docstring."""
    lines[:] = set_symbols(lines, Path(app.srcdir) / f"{PAGE}.md")


def change_signature(
    app: Sphinx, what: str, name: str, documented: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Called by autodoc for each signature: a default that is made anew each time is no Python, and spoils the rest."""
    return (signature.replace("<factory>", "..."), returns) if signature else None


def skip_member(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Called by autodoc for each member: of the field of a named tuple Python says no more than its number."""
    return True if type(member).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", change_docstring, priority=900)  # after napoleon
    app.connect("autodoc-process-signature", change_signature)
    app.connect("autodoc-skip-member", skip_member)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
