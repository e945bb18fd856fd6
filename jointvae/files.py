"""Files that are either whole or absent: atomic writes, checksums, and a lock that a killed process does not keep."""

import contextlib
import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from jointvae.errors import JointVAEError

PART = ".part"  # how the name of a file ends that is still being written
DEPTH = 16  # of nesting in a YAML file; valid ones have few levels, and PyYAML takes seconds for thousands


class BusyError(JointVAEError):
    """Another process holds the lock."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader (or a crash) never sees half of it.

    The bytes go to a temporary file in the same folder, reach the disk, and only then take the name.

    Raises:
        JointVAEError: if that can't be done; then what was there before is still there.
    """
    with _named_on_failure(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _named_on_failure(path: Path) -> Iterator[None]:
    """The system's own word on a failed write need not name a file, and may name a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise JointVAEError(
                f"{path} can't be opened, since too many files are open: fewer seeds at a time, or raise `ulimit -n`."
            ) from error
        raise JointVAEError(
            f"{path} can't be written ({error.strerror or error}): make room, allow writing or choose another folder; "
            "all that stood before still stands."
        ) from error


def remove_parts(folder: Path, pattern: str = "*") -> None:
    """Remove what `write_atomic` left of files named like `pattern` when its process was killed.

    Nobody may be writing such a file meanwhile.
    """
    for part in folder.glob(f".{pattern}{PART}"):
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(path: Path, wait: bool, refusal: str) -> Iterator[None]:
    """Hold the lock `path`, which one process at a time can; the system frees it when that process ends, however.

    Raises:
        BusyError: with the sentence `refusal` if another process holds it and we are not to wait.
        JointVAEError: if the file can't be written.
    """
    with _named_on_failure(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(path).acquire(blocking=wait)
        except Timeout:
            raise BusyError(refusal) from None
    with held:
        yield


class TwiceError(ValueError):
    """A key that stands in a mapping twice: whichever was meant, the other one would be lost without a word."""

    def __init__(self, key: str) -> None:
        super().__init__(f"has '{key}' twice")


class _Shallow(yaml.SafeLoader):
    """Refuses a file that is nested deeper than `DEPTH` before reading it to its end, and text that is no Unicode.

    A key that a mapping has twice is refused too.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEPTH:
            raise yaml.YAMLError("nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        node.value.encode()  # an escape may stand for half a character, which can't be printed or written
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
            raise TwiceError(twice[0])
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, which can't execute anything.

    Raises:
        FileNotFoundError: if it is missing.
        JointVAEError: if it is not YAML, or can't be read.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Shallow)
    except FileNotFoundError:
        raise
    except TwiceError as error:
        raise JointVAEError(f"{path} {error}: leave one of them.") from None
    except OSError as error:
        raise JointVAEError(f"{path} can't be read: {error.strerror or error}.") from None
    except Exception:  # beside its own errors, PyYAML lets through whatever a wrong date provokes
        raise JointVAEError(f"{path} is not readable YAML.") from None


def check_name(name: str) -> None:
    """Refuse a name that not every system takes as that of a file, or that leads to another folder.

    Raises:
        JointVAEError: if it holds anything but letters, digits, - and _.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise JointVAEError(f"The name must be letters, digits, - and _, not {name!r}.")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
