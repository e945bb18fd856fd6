"""The claims ledger: what the paper says, how it is tested here, and the verdict that the records earn.

`results/claims.yml` states each claim as a predicate over run records; nothing in it says how the test came out.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from jointvae import results, selection, sweeps
from jointvae.data import CLASSES
from jointvae.errors import JointVAEError
from jointvae.evaluation import ACTIVE, Evaluation
from jointvae.files import read_yaml
from jointvae.results import RESULTS, Record, Reference
from jointvae.sweeps import Sweep

Verdict = Literal["reproduced", "partly", "not reproduced", "not tested"]


def _test(record: Record | Reference) -> Evaluation:
    assert record.test is not None, "failed runs are left out before a metric is taken"
    return record.test


def overlap(evaluation: Evaluation, first: str, second: str, classes: tuple[str, ...]) -> float:
    """How alike two classes fall into the categories: 1 if in the same shares, 0 if no category holds both."""
    confusion = np.array(evaluation.confusion, dtype=float)
    shares = confusion / confusion.sum(axis=1, keepdims=True).clip(min=1)
    return float(np.minimum(shares[classes.index(first)], shares[classes.index(second)]).sum())


# Each takes one number from a record: a share, or nats.
METRICS: dict[str, Callable[[Any], float | None]] = {
    "accuracy": lambda record: _test(record).accuracy,
    "majority": lambda record: _test(record).accuracy_majority,
    "nmi": lambda record: _test(record).nmi,
    "kl_z": lambda record: sum(_test(record).kl_z),
    "kl_c": lambda record: sum(_test(record).kl_c),
    "kl_c_share": lambda record: (
        sum(_test(record).kl_c) / record.config.latents.max_kl_c if _test(record).kl_c else None
    ),
    "information": lambda record: sum(_test(record).information),
    "active_units": lambda record: float(sum(kl > ACTIVE for kl in _test(record).kl_z)),
    "reconstruction": lambda record: record.train.reconstruction,
    "training_reconstruction": lambda record: record.curves["reconstruction"][-1],
    "shirts_overlap": lambda record: overlap(_test(record), "T-shirt", "shirt", CLASSES["fashion"]),
}
CHOICE = 8  # runs that a label-free choice is made among
PAIRED = ("rank_correlation", "chosen")  # statistics of two metrics
STATISTICS: dict[str, Callable[[list[float]], float]] = {
    "max": max,
    "min": min,
    "mean": statistics.fmean,
    "median": statistics.median,
}


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Bounds:
    """A closed interval that a statistic must fall into."""

    at_least: float = -float("inf")
    at_most: float = float("inf")

    def hold(self, value: float) -> bool:
        """Whether the value lies inside."""
        return self.at_least <= value <= self.at_most


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Claim:
    """A claim and its test: a statistic over the finished runs of a recipe or a sweep, or one evaluated reference.

    Raises:
        ValueError: if it names a metric that there is not, or is about two things.
    """

    id: str
    claim: str
    source: str
    criterion: str  #: the predicate below, in words
    reproduced: Bounds = Bounds()
    partly: Bounds | None = None
    recipe: str | None = None
    reference: str | None = None
    sweep: str | None = None  #: of results/sweeps, with the names of those of its settings that the claim is about
    settings: list[str] = field(default_factory=list)
    metric: str | list[str] | None = None
    statistic: Literal["max", "min", "mean", "median", "rank_correlation", "chosen"] = "mean"
    paper: float | None = None
    unit: Literal["share", "nats", "number"] = "number"
    min_runs: int = 1
    section: str | None = None  #: the label of the book's section that has the evidence

    def __post_init__(self) -> None:
        unknown = [metric for metric in self.metrics if metric not in METRICS]
        if unknown:
            raise ValueError(f"unknown metric {unknown[0]}")
        if self.metric is not None and len(self.metrics) != (2 if self.statistic in PAIRED else 1):
            raise ValueError("a rank correlation and a choice have two metrics, any other statistic one")
        if self.statistic == "chosen" and self.min_runs < CHOICE:
            raise ValueError(f"a choice is among {CHOICE} runs, so min_runs must be {CHOICE} or more")
        if sum(source is not None for source in (self.recipe, self.reference, self.sweep)) > 1:
            raise ValueError("a claim is about a recipe, a reference or a sweep, not two of them")
        if (self.sweep is None) != (not self.settings):
            raise ValueError("a claim on a sweep names its settings, another one none")
        for metric in {"kl_c_share", "training_reconstruction"} & set(self.metrics):
            if self.reference is not None:
                raise ValueError(f"{metric} needs a run of ours, which a reference is not")

    @property
    def metrics(self) -> list[str]:
        """The metric's name; a rank correlation has two, and a choice that by which it chooses, and what is chosen."""
        return [self.metric] if isinstance(self.metric, str) else self.metric or []


@dataclass(frozen=True)
class Judgement:
    """A claim with the value that was found, over how many runs, and the verdict."""

    claim: Claim
    value: float | None
    runs: int
    verdict: Verdict
    interval: tuple[float, float] | None = None  #: of a mean or a rank correlation over enough runs, 95 %
    spread: tuple[float, float] | None = None  #: the lowest and the highest single run


def read_ledger(path: Path = RESULTS / "claims.yml") -> list[Claim]:
    """The claims, in the ledger's order.

    Raises:
        JointVAEError: if the file is missing, not YAML, or a claim has a field too few, too many or wrong.
    """
    try:
        ledger = TypeAdapter(list[Claim]).validate_python(read_yaml(path))
    except FileNotFoundError:
        raise JointVAEError(f"There is no claims ledger at {path}.") from None
    except ValidationError as error:
        raise JointVAEError(f"{path} is not a valid ledger ({results.first_error(error)}).") from None
    ids = [claim.id for claim in ledger]
    if len(set(ids)) < len(ids):
        raise JointVAEError(f"{path} names the claim {statistics.mode(ids)} twice.")
    return ledger


def judge(
    claim: Claim, records: list[Record], references: list[Reference], sweeps: dict[str, Sweep] | None = None
) -> Judgement:
    """The verdict on one claim, computed from the records that it asks for.

    Raises:
        JointVAEError: if there is no such sweep, or it has no such setting.
    """
    pool: list[Any]
    if claim.reference:
        pool = [reference for reference in references if reference.name == claim.reference]
    elif claim.sweep:
        asked = runs_of(claim, sweeps or {})
        pool = [record for record in records if record.name in asked and record.status == "finished"]
    else:
        pool = [r for r in records if r.config.recipe == claim.recipe and r.status == "finished" and is_plain(r)]
    if not claim.metrics or len(pool) < max(claim.min_runs, len(claim.metrics)):  # a rank correlation needs two
        return Judgement(claim, None, len(pool), "not tested")
    columns = [[value for record in pool if (value := METRICS[metric](record)) is not None] for metric in claim.metrics]
    if any(len(column) < len(pool) for column in columns):
        return Judgement(claim, None, len(pool), "not tested")
    interval = spread = None
    if claim.statistic == "rank_correlation":
        if any(len(set(column)) == 1 for column in columns):  # equal values have no ranks
            return Judgement(claim, None, len(pool), "not tested")
        value, interval = selection.rank_correlation(*columns)
    elif claim.statistic == "chosen":
        by, values = columns
        value, spread = selection.best_of(CHOICE, [-loss for loss in by], values), (min(values), max(values))
    else:
        value = STATISTICS[claim.statistic](columns[0])
        if len(pool) > 1:
            spread = min(columns[0]), max(columns[0])
        if claim.statistic == "mean":
            interval = selection.mean(columns[0]).interval
    return Judgement(claim, value, len(pool), _verdict(claim, value), interval, spread)


def runs_of(claim: Claim, sweeps: dict[str, Sweep]) -> set[str]:
    """The names of all runs that a claim on a sweep asks for.

    Raises:
        JointVAEError: if there is no such sweep, or it has no such setting.
    """
    if claim.sweep not in sweeps:
        raise JointVAEError(f"The claim {claim.id} is about the sweep '{claim.sweep}', which has no file.")
    sweep = sweeps[claim.sweep]
    try:
        return {sweep.config(setting, seed).run_name for setting in claim.settings for seed in sweep.seeds}
    except ValueError as error:
        raise JointVAEError(f"The claim {claim.id} can't be judged: {error}.") from None


def is_plain(record: Record) -> bool:
    """Whether a run followed its recipe to the letter; a changed hyperparameter puts a hash into the name."""
    return record.name == f"{record.config.recipe}-seed{record.config.seed}"


def _verdict(claim: Claim, value: float) -> Verdict:
    if claim.reproduced.hold(value):
        return "reproduced"
    return "partly" if claim.partly and claim.partly.hold(value) else "not reproduced"


def judge_all(folder: Path = RESULTS) -> list[Judgement]:
    """The verdict on every claim of the ledger, from the records of a results folder."""
    records, references = results.records(folder / "runs"), results.references(folder / "reference")
    found = sweeps.read_all(folder / "sweeps")
    return [judge(claim, records, references, found) for claim in read_ledger(folder / "claims.yml")]


def show(value: float | None, unit: str) -> str:
    """A value with its unit, as the tables print it.

    >>> show(0.887, "share"), show(2.3, "nats")
    ('88.7%', '2.30 nats')
    """
    if value is None:
        return "–"
    return {"share": f"{value:.1%}", "nats": f"{value:.2f} nats", "number": f"{value:.2f}"}[unit]


def show_around(judgement: Judgement) -> str:
    """The interval of a value, or where there is none the range of the runs, for a table; empty for a single run."""
    unit = judgement.claim.unit
    for name, ends in (("95 %", judgement.interval), ("runs", judgement.spread)):
        if ends is not None:
            low, high = (show(end, unit) for end in ends)
            return f"{name}: {low} to {high}"
    return ""


def facts(folder: Path = RESULTS) -> dict[str, float | int | str | None]:
    """Every number that prose may quote, by name, computed from the recorded results."""
    found: dict[str, float | int | str | None] = {}
    for judgement in judge_all(folder):
        name = f"claim.{judgement.claim.id}"
        found |= {f"{name}.paper": judgement.claim.paper, f"{name}.value": judgement.value}
        found |= {f"{name}.verdict": judgement.verdict, f"{name}.runs": judgement.runs}
    for reference in results.references(folder / "reference"):
        for metric in ("accuracy", "majority", "kl_z", "kl_c", "nmi"):
            found[f"{reference.name}.{metric}"] = METRICS[metric](reference)
        found[f"{reference.name}.reconstruction"] = reference.test.reconstruction
    records = [record for record in results.records(folder / "runs") if is_plain(record)]
    for recipe in sorted({record.config.recipe for record in records}):
        found |= _recipe_facts(recipe, [record for record in records if record.config.recipe == recipe])
    return found


def _recipe_facts(recipe: str, records: list[Record]) -> dict[str, float | int | str | None]:
    finished = [record for record in records if record.status == "finished"]
    found: dict[str, float | int | str | None] = {
        f"{recipe}.runs": len(finished),
        f"{recipe}.failed": len(records) - len(finished),
        f"{recipe}.seeds": ", ".join(str(record.config.seed) for record in finished),
        f"{recipe}.steps": max(record.curves["step"][-1] for record in finished) if finished else 0,
    }
    for metric in ("accuracy", "majority", "nmi", "kl_z", "kl_c", "information", "active_units", "reconstruction"):
        values = [value for record in finished if (value := METRICS[metric](record)) is not None]
        for name, statistic in STATISTICS.items():
            found[f"{recipe}.{metric}.{name}"] = statistic(values) if values else None
    return found
