"""What the machine of a reader has and lacks, each with a sentence on how to mend it.

No package of others is imported here before it is known to be there: the doctor must be able to examine a broken
environment.
"""

import importlib
import platform
import shutil
import tempfile
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jointvae.structure import HERE, PROJECT, RUNS

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from rich.table import Table

State = Literal["good", "warning", "bad"]
COLOURS: dict[State, str] = {"good": "green", "warning": "yellow", "bad": "bold red"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
INSTALL = "Run `make env`; with conda, `conda env update -f environment.yml`."
GIB = 2**30
# In GiB: below the first there is a warning, below the second nothing works. One training of MNIST holds 0.9 of memory;
# the book, eight runs of each recipe and their films take less than 2 of disk, the two data sets 0.2.
MEMORY = (2.0, 1.0)
DISK = (2.0, 0.2)


@dataclass(frozen=True)
class Finding:
    """One line of the table; `mend` is a sentence, empty where all is good."""

    what: str
    state: State
    found: str
    mend: str = ""


def examine() -> list[Finding]:
    """Everything that is checked, in the order of the table."""
    asked_python, asked = requirements()
    findings = [python(asked_python), *packages(asked)]
    if all(finding.state != "bad" for finding in findings):
        findings += [device(), memory(), *datasets()]
    return [*findings, folder(RUNS), folder(HERE / "data"), *programs()]


def table(findings: list[Finding]) -> "Table":
    """The findings for the terminal, readable at 80 columns: what to do stands under what was found."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title="Is everything there?", title_justify="left")
    shown.add_column("check", no_wrap=True)
    shown.add_column("state", no_wrap=True)
    shown.add_column("found, and how to mend it", overflow="fold")
    for finding in findings:
        words = escape(finding.found) + (f"\n[bold]{escape(finding.mend)}[/]" if finding.mend else "")
        shown.add_row(finding.what, f"[{COLOURS[finding.state]}]{finding.state}[/]", words)
    return shown


def requirements() -> tuple[str, dict[str, list["Requirement"]]]:
    """The range of Pythons, and what is asked for by the package itself (under "") and by each extra.

    From pyproject.toml in a copy of the repository; elsewhere from what the installed package says of itself.
    """
    from packaging.requirements import Requirement

    if (PROJECT / "pyproject.toml").exists():
        project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines = {"": project["dependencies"], **project["optional-dependencies"]}
        return project["requires-python"], {name: [Requirement(one) for one in lines[name]] for name in lines}
    about = metadata.metadata("jointvae")
    every = [Requirement(line) for line in metadata.requires("jointvae") or []]
    asked = {"": [one for one in every if one.marker is None]}
    for extra in about.get_all("Provides-Extra") or []:
        asked[extra] = [one for one in every if one.marker and one.marker.evaluate({"extra": extra})]
    return about["Requires-Python"], asked


def python(asked: str) -> Finding:
    """Whether Python is in the range."""
    from packaging.specifiers import SpecifierSet

    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.python_version() in SpecifierSet(asked, prereleases=True):
        return Finding("Python", "good", found)
    mend = "Name a newer one: `make distclean`, then `make env PYTHON=python3.12`."
    return Finding("Python", "bad", f"{found}, not {asked}", mend)


def packages(asked: dict[str, list["Requirement"]]) -> list[Finding]:
    """The two of PyTorch with a line each; of the others, the ones that are missing or out of their range."""
    core = {one.name: one for one in asked[""]}
    findings = [_torch(core.pop("torch")), _torchvision(core.pop("torchvision"))]
    findings.append(_packages("packages", list(core.values()), "bad"))
    purposes = {"book": "packages of the book", "dev": "packages of the tests"}
    return findings + [_packages(purposes.get(name, name), asked[name], "warning") for name in asked if name]


def _torch(asked: "Requirement") -> Finding:
    if wrong := fault(asked):
        return Finding("torch", "bad", wrong, INSTALL)
    try:
        importlib.import_module("torch")
    except (ImportError, OSError) as error:  # a library of the driver that is missing, mostly
        return Finding("torch", "bad", f"can't be imported: {error}", "Delete the folder .venv and run `make env`.")
    return Finding("torch", "good", metadata.version("torch"))


def _torchvision(asked: "Requirement") -> Finding:
    from packaging.requirements import Requirement

    if wrong := fault(asked):
        return Finding("torchvision", "bad", wrong, INSTALL)
    # Each torchvision is built for one torch; with another one it fails when it is imported, or later.
    pair = [one for one in map(Requirement, metadata.requires("torchvision") or []) if one.name == "torch"]
    if wrong := " and ".join(filter(None, map(fault, pair))):
        return Finding("torchvision", "bad", f"it was built for another torch: {wrong}", INSTALL)
    return Finding("torchvision", "good", metadata.version("torchvision"))


def _packages(what: str, asked: list["Requirement"], otherwise: State) -> Finding:
    if wrong := list(filter(None, map(fault, asked))):
        return Finding(what, otherwise, "; ".join(wrong), INSTALL)
    return Finding(what, "good", f"all {len(asked)} are there, in the ranges of pyproject.toml")


def fault(asked: "Requirement") -> str | None:
    """What is wrong with a package, or None."""
    try:
        found = metadata.version(asked.name)
    except metadata.PackageNotFoundError:
        return f"{asked.name} is missing"
    if asked.specifier.contains(found, prereleases=True):
        return None
    return f"{asked.name} is {found}, not {asked.specifier}"


def device() -> Finding:
    """What training runs on."""
    import torch

    from jointvae import batched, results, runs

    chosen = runs.choose_device()
    name = f"{results.device_name(chosen)}, {torch.get_num_threads()} threads"
    if chosen.type == "cuda":
        free = batched.free_memory(chosen) / GIB
        return _enough("device", free, MEMORY, f"{name}, {free:.1f} GiB free", "End what else uses the GPU.")
    if shutil.which("nvidia-smi"):
        mend = 'Install a build of PyTorch for its driver: `make env TORCH="torch torchvision"`, or go on with the CPU.'
        return Finding("device", "warning", f"{name}; torch can't use the GPU of this machine", mend)
    return Finding("device", "good", name)


def memory() -> Finding:
    """The memory that a training on the CPU could have now."""
    import torch

    from jointvae import batched

    available = batched.free_memory(torch.device("cpu")) / GIB
    mend = "End other programs, or train with `--jobs 1`: a run of MNIST takes about 1 GiB."
    return _enough("memory", available, MEMORY, f"{available:.1f} GiB available", mend)


def datasets() -> list[Finding]:
    """Where each data set is, its files checked against their published SHA-256; nothing is downloaded."""
    from jointvae import data

    findings = [_dataset(name) for name in data.DATASETS]
    named = data.named_folder()
    if named and not named.is_dir():
        mend = "Mend its path, or unset it."
        findings.append(Finding("JOINTVAE_DATA", "warning", f"names {named}, which is no folder", mend))
    fallback = RUNS / "DATA_FALLBACK"
    if fallback.exists():
        mend = "Run `make reproduce` again where the data can be had; `make book` alone keeps the digits."
        findings.append(Finding("last reproduce", "warning", "went without MNIST", mend))
    return findings


def _dataset(name: str) -> Finding:
    from jointvae import data
    from jointvae.errors import JointVAEError

    place = data.folder(name) if name in data.FOLDERS else Path("scikit-learn")
    if place is None:
        mend = "It is downloaded when needed; without a network, set JOINTVAE_DATA to a folder that has it."
        return Finding(name, "warning", f"not on this disk ({data.DATA})", mend)
    try:
        read = data.raw_images if name in data.FOLDERS else data.load
        train, test = (len(read(name, split)) for split in data.SPLITS)
    except JointVAEError as error:
        return Finding(name, "bad", f"the files in {place} are not as published", str(error))
    checked = ", checksums good" if name in data.FOLDERS else ""
    return Finding(name, "good", f"{train:,} + {test:,} images in {place}{checked}")


def folder(path: Path) -> Finding:
    """Whether a folder, which need not exist yet, can be written to and has room."""
    what, place = f"{path.name}/", path.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):  # the one sure test: permissions, read-only disks, a file in the way
            pass
    except OSError as error:
        mend = f"Give yourself the right to write in {place}, or work in a copy of the repository elsewhere."
        return Finding(what, "bad", f"{place} can't be written to: {error.strerror}", mend)
    free = shutil.disk_usage(place).free / GIB
    mend = "Free some disk: `make clean` removes what was built, and old films and states in runs/ can go."
    return _enough(what, free, DISK, f"can be written to, {free:.1f} GiB free", mend)


def _enough(what: str, amount: float, limits: tuple[float, float], found: str, mend: str) -> Finding:
    some, least = limits
    if amount >= some:
        return Finding(what, "good", found)
    return Finding(what, "warning" if amount >= least else "bad", found, mend)


def find_chromium() -> str | None:
    """The browser that prints the book and runs its tests: its path, if the system has one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def programs() -> list[Finding]:
    """Programs of the system that parts of the project call."""
    findings = []
    if path := find_chromium():
        findings.append(Finding("Chromium", "good", path))
    else:
        mend = "Install Chromium or Chrome: `make pdf` and the tests in a browser need one, all else goes without."
        findings.append(Finding("Chromium", "warning", "not found", mend))
    if path := shutil.which("make"):
        findings.append(Finding("make", "good", path))
    else:
        mend = "Install make to build the book; the package goes without."
        findings.append(Finding("make", "warning", "not found", mend))
    return findings
