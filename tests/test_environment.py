"""The files that describe the environment say the same thing, and none of them names a registry."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
OUTSIDE_THE_LOCK = {"torch", "torchvision"}  # their builds differ by machine: torch.txt
PYTHONS = ("3.11.7", "3.12.1", "3.13.0")
# In pieces, so that this file holds no host itself.
HOSTS = (
    "python" + "hosted",
    "py" + "pi.org",
    "registry." + "npm",
    "deb." + "debian",
    "conda." + "anaconda",
    ":" + "//conda",
)


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def requirements(project) -> list[Requirement]:
    extras = project["optional-dependencies"]
    return [Requirement(line) for line in [*project["dependencies"], *extras["book"], *extras["dev"]]]


@pytest.fixture(scope="module")
def pins() -> list[Requirement]:
    return [
        Requirement(line.removesuffix("\\").strip())
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if line and not line.startswith((" ", "#"))
    ]


def as_set(requirements: list[Requirement]) -> set[tuple[str, str]]:
    return {(canonicalize_name(r.name), str(r.specifier)) for r in requirements}


def test_conda_and_pyproject_ask_for_the_same(project, requirements):
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python = next(line for line in dependencies if isinstance(line, str) and line.startswith("python"))
    listed = next(line["pip"] for line in dependencies if isinstance(line, dict))
    assert as_set([Requirement(line) for line in listed]) == as_set(requirements)
    assert len(listed) == len(requirements)
    assert python == "python" + project["requires-python"]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_one_fitting_version_of_every_requirement(python, requirements, pins):
    here = {"python_version": python.rpartition(".")[0], "python_full_version": python}
    locked: dict[str, list[str]] = {}
    for pin in pins:
        if pin.marker is None or pin.marker.evaluate(here):
            locked.setdefault(canonicalize_name(pin.name), []).append(str(pin.specifier).removeprefix("=="))
    for requirement in requirements:
        if requirement.name not in OUTSIDE_THE_LOCK:
            versions = locked[canonicalize_name(requirement.name)]
            assert len(versions) == 1
            assert Version(versions[0]) in requirement.specifier, requirement


def test_every_pin_of_the_lock_is_exact_and_hashed(pins):
    text = (ROOT / "requirements.lock").read_text()
    blocks = re.split(r"\n(?=\S)", text)
    assert len(blocks) == len(pins) > 100
    for block, pin in zip(blocks, pins, strict=True):
        assert [s.operator for s in pin.specifier] == ["=="], block
        assert "--hash=sha256:" in block, block


def test_the_lock_leaves_torch_and_its_drivers_out(pins):
    names = {canonicalize_name(pin.name) for pin in pins}
    assert not {name for name in names if name in OUTSIDE_THE_LOCK or name.startswith(("nvidia", "triton", "cuda"))}


def test_the_lock_of_the_cluster_has_ray_and_agrees_with_the_other(project, pins):
    text = (ROOT / "requirements-cluster.lock").read_text()
    extra = [Requirement(block.partition("\\")[0].strip()) for block in re.split(r"\n(?=\S)", text)]
    (ray,) = map(Requirement, project["optional-dependencies"]["cluster"])
    assert [pin.name for pin in extra if ray.specifier.contains(str(pin.specifier)[2:]) and pin.name == ray.name]
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=\S)", text))
    versions: dict[str, set[str]] = {}
    for pin in pins:
        versions.setdefault(pin.name, set()).add(str(pin.specifier))
    assert [pin.name for pin in extra if str(pin.specifier) not in versions.get(pin.name, {str(pin.specifier)})] == []


def test_the_tried_pair_of_torch_is_within_the_ranges(requirements):
    tried = {r.name: r for r in map(Requirement, (ROOT / "torch.txt").read_text().split())}
    assert tried.keys() == OUTSIDE_THE_LOCK
    for requirement in requirements:
        if requirement.name in tried:
            assert Version(str(tried[requirement.name].specifier).removeprefix("==")) in requirement.specifier


def test_no_file_names_a_registry():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    texts = {file: file.read_bytes().decode(errors="ignore").lower() for file in files if file.is_file()}
    assert [(str(file), host) for file, text in texts.items() for host in HOSTS if host in text] == []
