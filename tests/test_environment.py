"""The files that describe the environment say the same thing, and none of them names a registry."""

import re
import shlex
import socket
import subprocess
import sys
import time
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


# --- What the Makefile promises ---


def test_serve_is_heard_on_this_machine_only(tmp_path):
    """Its own command, at a free port: 127.0.0.1 answers, and the machine's second address for itself does not."""
    (line,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if "http.server" in line)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "html").mkdir()
    for name, value in {"PY": sys.executable, "SITE": tmp_path, "PORT": port}.items():
        line = line.replace(f"$({name})", str(value))
    with subprocess.Popen(shlex.split(line.strip().removeprefix("@")), stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 60
            while (answer := reached("127.0.0.1", port)) is False and time.monotonic() < deadline:
                time.sleep(0.1)
            assert answer
            if sys.platform == "linux":  # where all of 127.0.0.0/8 leads to this machine
                assert not reached("127.0.0.2", port)
        finally:
            server.terminate()


def reached(address: str, port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex((address, port)) == 0


def audit(auditor: Path) -> subprocess.CompletedProcess[str]:
    """`make audit` with another program in the place of pip-audit, in the environment as it is."""
    command = ["make", "--old-file", ".venv/.ready", "audit", f"AUDITOR={auditor}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_an_audit_without_a_network_says_so_in_one_sentence(tmp_path):
    auditor = tmp_path / "auditor"
    auditor.write_text("#!/bin/sh\necho a long traceback\nexit 1\n")
    auditor.chmod(0o755)
    done = audit(auditor)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert [("it needs a network" in line) for line in said] == [True]
    assert "traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("status", [0, 1])
def test_an_audit_shows_what_was_found_and_fails_if_anything_was(tmp_path, status):
    auditor = tmp_path / "auditor"
    auditor.write_text(
        f'#!/bin/sh\nwhile [ "$1" != --output ]; do shift; done\necho "{{}}" >"$2"\necho found\nexit {status}\n'
    )
    auditor.chmod(0o755)
    done = audit(auditor)
    assert "found" in done.stdout
    assert (done.returncode != 0) == (status != 0)
