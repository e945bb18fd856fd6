"""The package as others install it: it brings its types, and neither code nor results of theirs are taken for ours."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jointvae import results

ROOT = Path(__file__).parent.parent
LOOK = """
import json
from jointvae import book, data, doctor, results
print(json.dumps([*map(str, (data.DATA, results.RESULTS, book.RUNS, doctor.HERE)), *results.git_state()]))
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=somebody", "-c", "user.email=somebody"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """A repository of somebody else, with the package in its folder `environment`."""
    source, theirs = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("theirs")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "jointvae", source / "jointvae", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    (wheel,) = source.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(theirs / "environment")
    git(theirs, "init")
    git(theirs, "commit", "--allow-empty", "--message", "theirs")
    return theirs


def test_the_wheel_says_that_it_has_types(theirs):
    assert (theirs / "environment" / "jointvae" / "py.typed").exists()


def test_inside_another_repository_nothing_of_it_is_taken_for_the_project(theirs):
    environment = os.environ | {"PYTHONPATH": str(theirs / "environment")}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=theirs, env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == ["data", "results", "runs", ".", None, None]


def test_a_checkout_is_known_by_whatever_path_it_is_reached(theirs, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(theirs)
    for path in (theirs, tmp_path / "link"):
        monkeypatch.setattr(results, "PROJECT", path)
        assert results.git_state.__wrapped__() == (git(theirs, "rev-parse", "HEAD"), False)
