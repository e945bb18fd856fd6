"""Run records: one JSON file per run, validated when written and when read, never half written.

A record holds everything that made the run and everything that came of it. Failed runs leave a record too.

Each record names its schema, the version of its fields. A change of the fields raises `SCHEMA` by one and adds to
`MIGRATIONS` how a record of the schema before is read, so that old records are never lost, and never rewritten.
"""

import json
import platform
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from torch import device as Device

import jointvae
from jointvae.data import CLASSES
from jointvae.errors import JointVAEError
from jointvae.evaluation import Evaluation
from jointvae.files import TwiceError, write_atomic
from jointvae.structure import HERE, PROJECT
from jointvae.training import CURVES, Config

SCHEMA = 2


def _with_precision(content: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 to 2: configs name the precision of the layers, of which there was one before."""
    if "config" not in content:  # evaluations of others' models, and films
        return content
    return content | {"config": content["config"] | {"precision": "float32"}}


# What turns the decoded JSON of a schema into that of the next one, by the schema that it starts from.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _with_precision}
RESULTS = HERE / "results"


@dataclass(frozen=True)
class Provenance:
    """Which code, on which machine, and when."""

    version: str
    commit: str | None
    dirty: bool | None
    python: str
    torch: str
    device: str
    threads: int
    started: str  #: ISO 8601, UTC

    @classmethod
    def now(cls, device: Device | str = "cpu") -> "Provenance":
        """The present moment of this process."""
        commit, dirty = git_state()
        return cls(
            version=jointvae.__version__,
            commit=commit,
            dirty=dirty,
            python=platform.python_version(),
            torch=torch.__version__,
            device=device_name(Device(device)),
            threads=torch.get_num_threads(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )


@dataclass(frozen=True)
class Checkpoint:
    """The file that keeps a run's weights, beside its record."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Record:
    """One run, from config to scores. `curves` holds a list per quantity with an entry per epoch, in nats per image.

    Raises:
        JointVAEError: if the curves are not of that kind, or a finished run lacks what a failed one has not.
    """

    name: str
    status: Literal["finished", "failed"]
    error: str | None
    config: Config
    data: dict[str, str]  #: file to SHA-256
    provenance: list[Provenance]  #: one for each time that the run was started or resumed
    seconds: float
    images_per_second: float | None
    curves: dict[str, list[Any]]
    train: Evaluation | None
    test: Evaluation | None
    scores: dict[str, float]  #: label-free
    checkpoint: Checkpoint | None
    schema: int = field(default=SCHEMA)

    def __post_init__(self) -> None:
        finished = self.train is not None and self.test is not None and self.error is None
        if finished != (self.status == "finished") or (self.error is None) != finished:
            raise JointVAEError("A finished run has its two evaluations and no error, a failed one an error.")
        if missing := CURVES - self.curves.keys():
            raise JointVAEError(f"The curves lack {min(missing)}.")
        if len({len(curve) for curve in self.curves.values()}) > 1 or (finished and not self.curves["step"]):
            raise JointVAEError("Every curve has an entry per epoch.")
        if not all(_is_curve(name, values) for name, values in self.curves.items()):
            raise JointVAEError("Curves hold numbers, those of units a list of them per epoch.")
        for evaluation in filter(None, (self.train, self.test)):
            _check_units(evaluation, self.config)


def _check_units(evaluation: Evaluation, config: Config) -> None:
    """Refuse an evaluation that is not of the config's latents and data set: whoever looks into it would fall over."""
    latents, unit = config.latents, evaluation.unit
    expected = {"kl_z": latents.z, "kl_c": len(latents.c), "information": len(latents.c)}
    if wrong := next((name for name, units in expected.items() if len(getattr(evaluation, name)) != units), None):
        raise JointVAEError(
            f"The evaluation on {evaluation.split} has another number of units in {wrong} than the model."
        )
    if unit is not None and not 0 <= unit < len(latents.c):
        raise JointVAEError(
            f"The evaluation on {evaluation.split} is of discrete unit {unit}, which the model has not."
        )
    rows = [] if evaluation.confusion is None else evaluation.confusion
    columns = [len(row) for row in rows] + ([] if evaluation.usage is None else [len(evaluation.usage)])
    if unit is not None and set(columns) - {latents.c[unit]}:
        raise JointVAEError(f"The evaluation on {evaluation.split} has another number of categories than the model.")
    if rows and len(rows) != len(CLASSES.get(config.dataset, rows)):
        raise JointVAEError(
            f"The evaluation on {evaluation.split} has another number of classes than {config.dataset}."
        )


def check_named(record: Record, path: Path) -> None:
    """Refuse a record whose name is not that of its run: files are named after it, and it could lead anywhere.

    Raises:
        JointVAEError: if its config makes it another run.
    """
    if record.name != record.config.run_name:
        raise JointVAEError(
            f"{path} calls itself {record.name!r:.80}, but its config makes it {record.config.run_name}: "
            "nothing was changed."
        )


def _is_curve(name: str, values: list[Any]) -> bool:
    """Whether each entry is a number, or for the units of z and of c one number per unit, as many in every epoch."""
    if name not in ("kl_z", "kl_c"):
        return all(isinstance(value, int | float) for value in values)
    rows = all(isinstance(row, list) and all(isinstance(value, int | float) for value in row) for row in values)
    return rows and len({len(row) for row in values}) <= 1


@dataclass(frozen=True)
class Reference:
    """A model that others published, evaluated by us."""

    name: str
    source: str
    dataset: str
    sha256: str
    provenance: Provenance
    train: Evaluation
    test: Evaluation
    schema: int = field(default=SCHEMA)


@cache
def git_state() -> tuple[str | None, bool | None]:
    """The commit of the code, and whether tracked files differ from it; None outside a checkout of the project."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if not PROJECT.samefile(git("rev-parse", "--show-toplevel")):  # installed inside a repository of something else
            return None, None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def device_name(device: Device) -> str:
    """What a reader would call the processor; of a CPU also the instructions that torch uses: they decide rounding."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()} (CPU)"


def write(path: Path, record: Record | Reference) -> None:
    """Write a record atomically, after checking that it reads back as itself."""
    kind: type = type(record)
    fields = _adapter(kind).dump_python(record)  # unlike `asdict`, it knows how an objective that was read is written
    content = json.dumps(fields, indent=1, allow_nan=False) + "\n"
    parse(json.loads(content), kind, path)
    write_atomic(path, content.encode())


def read(path: Path, kind: type = Record) -> Any:
    """A record from its file.

    Raises:
        JointVAEError: if the file is missing, cut, or has a field too few, too many or of the wrong kind.
    """
    return parse(read_json(path), kind, path)


def read_json(path: Path) -> Any:
    """The content of a results file.

    Raises:
        JointVAEError: if the file is missing or is no JSON.
    """
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_each_once)
        json.dumps(content, allow_nan=False)  # Python reads NaN and infinity, which are no JSON
    except FileNotFoundError:
        raise JointVAEError(f"There is no results file {path}.") from None
    except OSError as error:
        raise JointVAEError(f"{path} can't be read: {error.strerror or error}.") from None
    except TwiceError as error:
        raise JointVAEError(f"{path} {error}: restore it, or leave one of them.") from None
    except (ValueError, RecursionError):
        raise JointVAEError(f"{path} is not readable JSON: restore it, move it away, or name another file.") from None
    return content


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python would keep the last of two equal keys and say nothing."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise TwiceError(next(key for i, key in enumerate(keys) if key in keys[:i]))
    return content


def parse(content: Any, kind: type, path: Path) -> Any:
    """Check decoded JSON against the record's fields, strictly: nothing missing, nothing extra, no coercion.

    A record of an older schema is brought up to date first, in memory: its file stays as it was written.

    Raises:
        JointVAEError: with the path and the first field that is wrong, or the schema if it can't be read.
    """
    remedy = "restore the file, or move it away and run the recipe again"
    if isinstance(content, dict) and "schema" in content:
        content = _migrated(content, path)
    try:
        return validate(content, kind)
    except ValueError as error:
        raise JointVAEError(f"{path} is not a valid record ({error}): {remedy}.") from None


def validate(content: Any, kind: type) -> Any:
    """Decoded JSON as a dataclass, strictly.

    Raises:
        ValueError: with the first field that is wrong, missing or unknown.
        JointVAEError: if the fields don't go together.
    """
    adapter = _adapter(kind)
    try:
        record = adapter.validate_python(content)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    # Dataclass defaults would silently fill a missing field, and unknown ones would be dropped.
    difference = _difference(content, adapter.dump_python(record, mode="json"))
    if difference:
        raise ValueError(difference)
    return record


def first_error(error: ValidationError) -> str:
    """Where it is, and what it is, in one line."""
    found = error.errors()
    # Of an objective, each kind complains that it was not meant, by its name; what the one that was meant says counts.
    other = [one["loc"][:-1] for one in found if one["type"] == "literal_error" and one["loc"][-1] == "name"]
    meant = [one for one in found if not any(one["loc"][: len(kind)] == kind for kind in other)]
    first = (meant or found)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the whole file"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}"


def _migrated(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The record in the schema of today, by one migration after the other."""
    schema = content["schema"]
    while type(schema) is not int or schema != SCHEMA:  # Python counts True as 1; here it is no schema
        if type(schema) is int and schema > SCHEMA:
            raise JointVAEError(f"{path} has schema {schema}, newer than {SCHEMA} of this code: update jointvae.")
        if type(schema) is not int or schema not in MIGRATIONS:
            raise JointVAEError(
                f"{path} has schema {schema!r:.40}, which this code can't bring to {SCHEMA}: read it with the version "
                "that wrote it, or move it away and run the recipe again."
            )
        try:
            content = MIGRATIONS[schema](content)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise JointVAEError(
                f"{path} is not a valid record of schema {schema}: restore the file or run the recipe again."
            ) from None
        schema += 1
    return content | {"schema": schema}


@cache
def _adapter(kind: type) -> Any:  # a TypeAdapter; beartype does not know that type
    return TypeAdapter(kind)


def _difference(given: Any, expected: Any, where: str = "") -> str | None:
    """The first place where two pieces of JSON differ, in words."""
    if isinstance(given, dict) and isinstance(expected, dict):
        for key in [*expected, *given]:
            place = f"{where}.{key}".lstrip(".")
            if key not in given:
                return f"the field {place} is missing"
            if key not in expected:
                return f"the field {place} is unknown"
            if found := _difference(given[key], expected[key], place):
                return found
        return None
    return None if given == expected else f"the field {where} is {given!r:.60}, where {expected!r:.60} was expected"


def records(folder: Path = RESULTS / "runs", recipe: str | None = None) -> list[Record]:
    """All records of a folder, of one recipe if named, in the order of their seeds.

    Raises:
        JointVAEError: if one of them can't be read, or two are of the same run.
    """
    paths: dict[str, Path] = {}
    found: list[Record] = []
    for path in sorted(folder.glob("*.json")):
        record: Record = read(path)
        if record.config.run_name in paths:
            first = paths[record.config.run_name]
            words = disagreement(read(first), record)
            raise JointVAEError(
                f"{first} and {path} are records of the same run"
                f"{f' that disagree ({words})' if words else ''}: move one of them away."
            )
        paths[record.config.run_name] = path
        found.append(record)
    kept = [record for record in found if recipe is None or record.config.recipe == recipe]
    return sorted(kept, key=lambda record: (record.config.recipe, record.config.seed, record.name))


def disagreement(first: Record, second: Record) -> str | None:
    """The first place where two records of one run say something else, where and when they were made aside."""
    made = ("provenance", "seconds", "images_per_second", "checkpoint")
    contents = [json.loads(json.dumps(asdict(record))) for record in (first, second)]
    one, other = ({name: value for name, value in content.items() if name not in made} for content in contents)
    return _difference(one, other)


def collect(paths: Iterable[Path], folder: Path = RESULTS / "runs") -> list[Path]:
    """Copy the records of runs, failed ones too, without weights, into a results folder; returns what is new there.

    Raises:
        JointVAEError: if a file is no record or bears the name of another run, or if another result of the same run is
            there; then nothing is copied.
    """
    new: dict[Path, Record] = {}
    for path in paths:
        record: Record = read(path)
        check_named(record, path)
        target = folder / f"{record.name}.json"
        there = new.get(target) or (read(target) if target.exists() else None)
        if there is None:
            new[target] = record
        elif words := disagreement(there, record):
            raise JointVAEError(
                f"{path} and {target} are records of the same run that disagree ({words}): nothing was copied; "
                "move one of them away."
            )
    for target, record in new.items():
        write(target, record)
    return list(new)


def references(folder: Path = RESULTS / "reference") -> list[Reference]:
    """All evaluated models of others."""
    return [read(path, Reference) for path in sorted(folder.glob("*.json"))]
