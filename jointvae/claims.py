"""The claims ledger: what the paper says, how it is tested here, and the verdict that the records earn.

`results/claims.yml` states each claim as a predicate over run records; nothing in it says how the test came out.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

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


PURE, USED = 0.8, 0.01  # shares: of a category that is one class, and of the images in a category that counts


def classes_with_styles(evaluation: Evaluation) -> int:
    """The number of classes that have two categories or more to themselves: nearly pure ones that are in use."""
    confusion = np.array(evaluation.confusion)
    sizes = confusion.sum(axis=0)
    own = (confusion.max(axis=0) >= PURE * sizes) & (sizes >= USED * sizes.sum())
    return int((np.bincount(confusion.argmax(axis=0)[own], minlength=1) > 1).sum())


# Each takes one number from a record: a share, nats, or how many there are.
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
    "seven_nine_overlap": lambda record: overlap(_test(record), "7", "9", CLASSES["mnist"]),
    "classes_with_styles": lambda record: float(classes_with_styles(_test(record))),
}
CHOICE = 8  # runs that a label-free choice is made among
POPULATION, HALVED_AT = 4, (1 / 4, 1 / 2)  # runs that are halved, at these shares of the epochs: the cost of two runs
LEVEL = 0.05  # a rank correlation that chance gives more often is evidence of nothing
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
    statistic: Literal["max", "min", "mean", "median", "rank_correlation", "chosen", "halved"] = "mean"
    paper: float | None = None
    unit: Literal["share", "nats", "number"] = "number"
    min_runs: int = 1
    first_seed: int = 0  #: runs of lower seeds suggested the claim, so they don't count for it
    section: str | None = None  #: the label of the book's section that has the evidence

    def __post_init__(self) -> None:
        unknown = [metric for metric in self.metrics if metric not in METRICS]
        if unknown:
            raise ValueError(f"unknown metric {unknown[0]}")
        if self.metric is not None and len(self.metrics) != (2 if self.statistic in PAIRED else 1):
            raise ValueError("a rank correlation and a choice have two metrics, any other statistic one")
        if self.statistic == "chosen" and self.min_runs < 2 * CHOICE:
            raise ValueError(
                f"a choice is among {CHOICE} runs, so min_runs must be {2 * CHOICE} or more to have several"
            )
        if self.statistic == "halved" and (self.recipe is None or self.min_runs < 2 * POPULATION):
            raise ValueError(f"a halved population is of one recipe, with min_runs of {2 * POPULATION} or more")
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

    @property
    def of_the_paper(self) -> bool:
        """Whether the paper says it; if not, it is a question or a goal of the book."""
        return self.source.startswith("Dupont 2018")


@dataclass(frozen=True)
class Judgement:
    """A claim with the value that was found, over how many runs, and the verdict."""

    claim: Claim
    value: float | None
    runs: int
    verdict: Verdict
    interval: tuple[float, float] | None = None  #: of any but an extreme or a median, over enough runs, 95 %
    spread: tuple[float, float] | None = None  #: the lowest and the highest single run
    p: float | None = None  #: the chance that a useless score gives a rank correlation as large
    shared_p: float | None = None  #: that p as one of all rank correlations of the ledger, by Holm's rule

    @property
    def open(self) -> float | None:
        """The limit that the interval of a mean or a choice has on both sides: so near it, luck decides the verdict."""
        if self.interval is None or self.p is not None:
            return None
        bounds = [self.claim.reproduced] + ([self.claim.partly] if self.claim.partly else [])
        limits = [limit for bound in bounds for limit in (bound.at_least, bound.at_most)]
        return next((limit for limit in limits if self.interval[0] < limit < self.interval[1]), None)


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
    pool = _pool(claim, records, references, sweeps or {})
    if not claim.metrics or len(pool) < len(claim.metrics):  # a rank correlation needs two
        return Judgement(claim, None, len(pool), "not tested")
    columns = [[value for record in pool if (value := METRICS[metric](record)) is not None] for metric in claim.metrics]
    if any(len(column) < len(pool) for column in columns):
        return Judgement(claim, None, len(pool), "not tested")
    if claim.statistic == "rank_correlation":
        seeds = [record.config.seed for record in pool] if len(claim.settings) > 1 else None
        return _judge_ranks(claim, columns[0], columns[1], seeds)
    if claim.statistic == "chosen":
        return _judge_choice(claim, *columns)
    if claim.statistic == "halved":
        return _judge_halved(claim, pool, *columns)
    value = STATISTICS[claim.statistic](columns[0])
    interval = selection.mean(columns[0]).interval if claim.statistic == "mean" else None
    spread = (min(columns[0]), max(columns[0])) if len(pool) > 1 else None
    return Judgement(claim, value, len(pool), _verdict(claim, value, len(pool)), interval, spread)


def _pool(claim: Claim, records: list[Record], references: list[Reference], sweeps: dict[str, Sweep]) -> list[Any]:
    """The records that count for a claim."""
    if claim.reference:
        return [reference for reference in references if reference.name == claim.reference]
    finished = [r for r in records if r.status == "finished" and r.config.seed >= claim.first_seed]
    if claim.sweep:
        asked = runs_of(claim, sweeps)
        return [record for record in finished if record.name in asked]
    return [record for record in finished if record.config.recipe == claim.recipe and is_plain(record)]


def _judge_ranks(claim: Claim, scores: list[float], values: list[float], seeds: list[int] | None) -> Judgement:
    """A rank correlation counts if it is as large as the claim says, and larger than chance makes it."""
    runs = len(scores)
    if any(len(set(column)) == 1 for column in (scores, values)):  # equal values have no ranks
        return Judgement(claim, None, runs, "not tested")
    value, interval = selection.rank_correlation(scores, values)
    interval = None if seeds else interval  # the bootstrap takes the runs for independent
    sign = 1 if claim.reproduced.at_least > 0 else -1
    p = selection.chance([sign * score for score in scores], values, seeds)
    verdict = _verdict(claim, value, runs)
    if p > LEVEL and verdict in ("reproduced", "partly"):
        verdict = "not reproduced"
    return Judgement(claim, value, runs, verdict, interval, p=p)


def _judge_choice(claim: Claim, by: list[float], values: list[float]) -> Judgement:
    """What the run of the lowest loss has; of fewer runs than a choice is among, there is none."""
    if len(by) < CHOICE:
        return Judgement(claim, None, len(by), "not tested")
    value, interval = selection.choice(CHOICE, [-loss for loss in by], values)
    return Judgement(claim, value, len(by), _verdict(claim, value, len(by)), interval, (min(values), max(values)))


def _judge_halved(claim: Claim, pool: list[Record], values: list[float]) -> Judgement:
    """What a population has that is halved by its objective as it trains, on average over ways to draw it."""
    if len(pool) < POPULATION:
        return Judgement(claim, None, len(pool), "not tested")
    if len({len(record.curves["step"]) for record in pool}) > 1:
        raise JointVAEError(f"The claim {claim.id} can't be judged: its runs have curves of different lengths.")
    curves = np.array([selection.objective_curve(record) for record in pool])
    value, _ = selection.best_by_halving(POPULATION, curves, values, HALVED_AT)
    return Judgement(claim, value, len(pool), _verdict(claim, value, len(pool)), None, (min(values), max(values)))


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


def _verdict(claim: Claim, value: float, runs: int) -> Verdict:
    """The verdict on a value; with too few runs only if no further run can change it."""
    if runs >= claim.min_runs:
        return _by_bounds(claim, value)
    end = {"max": float("inf"), "min": -float("inf")}.get(claim.statistic)  # where further runs can take the value
    if end is None:
        return "not tested"
    bounds = [claim.reproduced] + ([claim.partly] if claim.partly else [])
    ahead = [edge for bound in bounds for edge in (bound.at_least, bound.at_most) if (edge - value) * end > 0]
    possible = {_by_bounds(claim, place) for place in (value, *ahead, end)}
    return possible.pop() if len(possible) == 1 else "not tested"


def _by_bounds(claim: Claim, value: float) -> Verdict:
    if claim.reproduced.hold(value):
        return "reproduced"
    return "partly" if claim.partly and claim.partly.hold(value) else "not reproduced"


def judge_all(folder: Path = RESULTS) -> list[Judgement]:
    """The verdict on every claim of the ledger, from the records of a results folder."""
    records, references = results.records(folder / "runs"), results.references(folder / "reference")
    asked = sweeps.read_all(folder / "sweeps")
    judged = [judge(claim, records, references, asked) for claim in read_ledger(folder / "claims.yml")]
    tested = [i for i, found in enumerate(judged) if found.p is not None and found.verdict != "not tested"]
    shared = selection.holm([cast(float, judged[i].p) for i in tested])
    for i, p in zip(tested, shared, strict=True):
        judged[i] = replace(judged[i], shared_p=p)
    return judged


def judge_runs(records: list[Record], ledger: Path = RESULTS / "claims.yml") -> list[Judgement]:
    """The claims on recipes that some of these runs followed, judged by these runs alone."""
    judged = [judge(claim, records, []) for claim in read_ledger(ledger) if claim.recipe]
    return [judgement for judgement in judged if judgement.runs]


def show(value: float | None, unit: str) -> str:
    """A value with its unit, as the tables print it.

    >>> show(0.887, "share"), show(2.3, "nats")
    ('88.7%', '2.30 nats')
    """
    if value is None:
        return "–"
    return {"share": f"{value:.1%}", "nats": f"{value:.2f} nats", "number": f"{value:.2f}"}[unit]


def show_around(judgement: Judgement) -> str:
    """The interval of a value, or else the range of the runs, and its p, for a table; empty for a single run.

    It says if a limit of the claim lies inside the interval, and what p is as one of all that the ledger tests.
    """
    unit, said = judgement.claim.unit, []
    name, ends = ("95 %", judgement.interval) if judgement.interval else ("runs", judgement.spread)
    if ends is not None:
        limit = "" if judgement.open is None else f", on both sides of {show(judgement.open, unit)}"
        said.append(f"{name}: {show(ends[0], unit)} to {show(ends[1], unit)}{limit}")
    if judgement.p is not None:
        shared = "" if judgement.shared_p is None else f", shared {judgement.shared_p:.2g}"
        said.append(f"p = {judgement.p:.2g}{shared}")
    return "; ".join(said)


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
