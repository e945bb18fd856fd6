"""Does what stands in results/ hold? Every recorded result against its schema, itself, its claim and its weights.

A recorded count of images (a confusion matrix, and the accuracies that follow from it) must come out again exactly, on
any number of threads. Losses and divergences are sums of float32 numbers, and another number of threads, or another
processor, adds them in another order: they must agree to `TOLERANCE`.
"""

import math
from collections.abc import Callable, Container, Iterable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from jointvae import claims, data, films, partitions, results, runs, sweeps, training
from jointvae.claims import Claim
from jointvae.errors import JointVAEError
from jointvae.evaluation import Evaluation, evaluate, majority, one_to_one
from jointvae.model import JointVAE
from jointvae.results import RESULTS, Record, Reference

CHECKS = ("schema", "scores", "claim", "weights", "evaluation")
SUMS = ("reconstruction", "kl_z", "kl_c", "information")  # of float32 numbers, over all images
TOLERANCE = 1e-5  # relative, of these
NOTHING = 1e-6  # nats; below it, float32 knows no digit of a divergence
SAME_NUMBERS = 1e-9  # relative, of float64 numbers that are computed again from recorded ones


@dataclass(frozen=True)
class Finding:
    """One check of one recorded result; `note` says what is wrong, or why the check was left out."""

    result: str  # its file, below the results folder
    check: str
    state: Literal["good", "left out", "bad"]
    note: str = ""


class LeftOutError(Exception):
    """A check that can't be made here; the message is the reason."""


def examine(folder: Path = RESULTS, say: Callable[[str], None] = lambda _: None) -> list[Finding]:
    """All checks of a results folder: ledger, sweep files, runs, partitions, others' models, films, benchmarks.

    `say` hears which model is being evaluated, as that takes a while.
    """
    ledger, findings = _ledger(folder)
    asked: set[str] = set()  # names of runs that a sweep asks for
    for path in sweeps.files(folder / "sweeps"):
        findings.append(_finding(path, folder, "schema", partial(sweeps.read, path)))
        if findings[-1].state == "good":
            asked |= {config.run_name for config in sweeps.read(path).configs()}
    for path in sorted((folder / "runs").glob("*.json")):
        findings += _run(path, folder, ledger, asked, say)
    for path in sorted((folder / "reference").glob("*.json")):
        findings += _reference(path, folder, ledger)
    for path in sorted((folder / "partitions").glob("*.json")):
        findings.append(_finding(path, folder, "schema", partial(_check_partitions, path, folder / "runs")))
    for path in sorted((folder / "films").glob("*.json")):
        film = partial(films.read, path.stem, path.parent, folder / "runs")
        findings.append(_finding(path, folder, "schema", film))
    for path in sorted((folder / "benchmarks").glob("*.json")):
        findings.append(_finding(path, folder, "schema", partial(_benchmark, path)))
    for path in sorted((folder / "runs").glob("*.safetensors")):
        if not path.with_suffix(".json").exists():
            note = f"no record names {path}: restore its record or delete it."
            findings.append(Finding(str(path.relative_to(folder)), "weights", "bad", note))
    return findings


def _finding(path: Path, folder: Path, check: str, act: Callable[[], Any]) -> Finding:
    result = str(path.relative_to(folder))
    try:
        act()
    except LeftOutError as reason:
        return Finding(result, check, "left out", str(reason))
    except JointVAEError as error:
        return Finding(result, check, "bad", str(error))
    return Finding(result, check, "good")


def _ledger(folder: Path) -> tuple[list[Claim], list[Finding]]:
    """The claims, and whether each of them is about something that there is."""
    path = folder / "claims.yml"
    finding = _finding(path, folder, "schema", partial(claims.read_ledger, path))
    if finding.state == "bad":
        return [], [finding]
    ledger = claims.read_ledger(path)
    return ledger, [finding, _finding(path, folder, "claim", partial(_check_ledger, ledger, folder))]


def _check_ledger(ledger: list[Claim], folder: Path) -> None:
    found = sweeps.read_all(folder / "sweeps")
    for claim in ledger:
        if claim.recipe is not None and claim.recipe not in training.RECIPES:
            raise JointVAEError(f"The claim {claim.id} is about the recipe '{claim.recipe}', which is none.")
        if claim.reference is not None and not (folder / "reference" / f"{claim.reference}.json").exists():
            raise JointVAEError(f"The claim {claim.id} is about the model '{claim.reference}', which has no record.")
        if claim.sweep is not None:
            claims.runs_of(claim, found)


def _run(
    path: Path, folder: Path, ledger: list[Claim], asked: set[str], say: Callable[[str], None]
) -> Iterable[Finding]:
    finding = _finding(path, folder, "schema", partial(results.read, path))
    yield finding
    if finding.state == "bad":
        return
    record: Record = results.read(path)
    yield _finding(path, folder, "scores", partial(check_record, record, path))
    yield _finding(path, folder, "claim", partial(check_claim, record, ledger, asked))
    weights = _finding(path, folder, "weights", partial(check_weights, record, path.parent))
    yield weights
    if weights.state == "good":
        say(record.name)
        yield _finding(path, folder, "evaluation", partial(check_evaluation, record, path.parent))


def _reference(path: Path, folder: Path, ledger: list[Claim]) -> Iterable[Finding]:
    finding = _finding(path, folder, "schema", partial(results.read, path, Reference))
    yield finding
    if finding.state == "bad":
        return
    reference: Reference = results.read(path, Reference)
    yield _finding(path, folder, "scores", partial(check_reference, reference, path))
    yield _finding(path, folder, "claim", partial(check_claim, reference, ledger))
    yield Finding(finding.result, "weights", "left out", "the weights are their author's and not kept here")


def check_record(record: Record, path: Path) -> None:
    """The numbers of a record agree with each other, with its config and with the published images.

    Raises:
        JointVAEError: with the first number that does not.
    """
    config = record.config
    if not path.stem == record.name == config.run_name:
        raise JointVAEError(f"{path} calls itself {record.name}, but its config makes it {config.run_name}.")
    published = data.SHA256.get(config.dataset)
    if published and record.data != {file: published[file] for file in data.FILES["train"]}:
        raise JointVAEError(f"{path} was not trained on the published images of '{config.dataset}'.")
    if record.train is None or record.test is None:
        return
    if len(record.curves["step"]) != config.epochs:
        raise JointVAEError(
            f"{path} has {len(record.curves['step'])} entries in its curves for {config.epochs} epochs."
        )
    for split, found in (("train", record.train), ("test", record.test)):
        _check_scores(found, split, path)
    scores = runs.label_free_scores(record.train)
    if scores.keys() != record.scores.keys() or not _near([*scores.values()], [record.scores[name] for name in scores]):
        raise JointVAEError(f"{path} has label-free scores that don't follow from its training set.")


def check_reference(reference: Reference, path: Path) -> None:
    """The numbers of an evaluated model of others agree with each other.

    Raises:
        JointVAEError: with the first number that does not.
    """
    if path.stem != reference.name:
        raise JointVAEError(f"{path} calls itself {reference.name}.")
    for split, found in (("train", reference.train), ("test", reference.test)):
        _check_scores(found, split, path)


def _check_scores(found: Evaluation, split: str, path: Path) -> None:
    """All that follows from the confusion matrix does so."""
    if found.split != split:
        raise JointVAEError(f"{path} has an evaluation on {found.split} where that on {split} belongs.")
    if found.confusion is None:
        return
    confusion = np.array(found.confusion)
    if confusion.sum() != found.images:
        raise JointVAEError(
            f"{path} ({split}) sorts {confusion.sum():,} images, but says that there are {found.images:,}."
        )
    cells = np.argwhere(confusion >= 0)
    labels, clusters = cells.repeat(confusion.flatten(), axis=0).T
    expected = {
        "accuracy": one_to_one(confusion)[0],
        "accuracy_majority": majority(confusion),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ari": float(adjusted_rand_score(labels, clusters)),
        "usage": (confusion.sum(0) / confusion.sum()).tolist(),
    }
    for name, value in expected.items():
        if not _near(value, getattr(found, name)):
            raise JointVAEError(f"{path} has a {name} on {split} that does not follow from its confusion matrix.")


def check_claim(result: Record | Reference, ledger: list[Claim], asked: Container[str] = ()) -> None:
    """A claim of the ledger is judged by this result, or a sweep has `asked` for it.

    Raises:
        JointVAEError: if there is none.
        LeftOutError: if the result is no evidence: a failed run, or one that changes its recipe.
    """
    if isinstance(result, Reference):
        if not any(claim.reference == result.name for claim in ledger):
            raise JointVAEError(f"No claim is about the model {result.name}: add one, or take the record out.")
        return
    if result.name in asked:
        return
    if result.status == "failed":
        raise LeftOutError("a failed run is no evidence")
    if not claims.is_plain(result):
        raise LeftOutError("a run that changes its recipe is no evidence for a claim on the recipe")
    if not any(claim.recipe == result.config.recipe for claim in ledger):
        raise JointVAEError(f"No claim is about the recipe of {result.name}: add one, or take the record out.")


def check_weights(record: Record, folder: Path) -> JointVAE:
    """The weights that a record names are the ones that it recorded, of the model that its config describes.

    Raises:
        JointVAEError: if they are not.
        LeftOutError: if they are not kept here.
    """
    if record.checkpoint is None or not (folder / record.checkpoint.file).exists():
        raise LeftOutError("its weights are not kept here")
    model = runs.load(record, folder)
    if (model.spec, tuple(model.image)) != (record.config.latents, tuple(record.config.image)):
        raise JointVAEError(
            f"{folder / record.checkpoint.file} is another model than the config of {record.name} says."
        )
    return model


def check_evaluation(record: Record, folder: Path) -> None:
    """The weights of a record, evaluated again on both splits, give what it recorded.

    Raises:
        JointVAEError: with the first number that they don't.
        LeftOutError: if the images can't be had.
    """
    model = check_weights(record, folder)
    for recorded in (record.test, record.train):
        assert recorded is not None, "a run that has weights has been evaluated"
        found = evaluate(model, _images(record.config.dataset, recorded.split, record.config.image.size))
        for name, value in asdict(found).items():
            if not _near(value, getattr(recorded, name), TOLERANCE if name in SUMS else SAME_NUMBERS):
                raise JointVAEError(
                    f"The weights of {record.name} evaluate to another {name} on the {recorded.split} images: "
                    f"{value}, recorded {getattr(recorded, name)}."
                )


@cache
def _images(dataset: str, split: str, size: int) -> data.Dataset:
    if dataset not in data.DATASETS:
        raise LeftOutError(f"the images of '{dataset}' are not the package's")
    try:
        return data.load(dataset, split, size)
    except data.DataUnavailableError as error:
        raise LeftOutError(f"the images can't be had: {error}") from None


def _check_partitions(path: Path, runs_folder: Path) -> None:
    kept = partitions.read(path.stem, path.parent)
    there = [runs_folder / f"{name}.json" for name in kept.runs]
    partitions.check(kept, [results.read(record) for record in there if record.exists()])


def _benchmark(path: Path) -> None:
    content = results.read_json(path)
    if not isinstance(content, dict) or "provenance" not in content:
        raise JointVAEError(f"{path} does not say where it was measured: run `make bench` again.")
    results.parse(content["provenance"], results.Provenance, path)


def _near(found: Any, recorded: Any, tolerance: float = SAME_NUMBERS) -> bool:
    """Whether numbers, or lists of them, agree to a relative tolerance; whatever else must be equal."""
    if isinstance(found, list) and isinstance(recorded, list):
        near = partial(_near, tolerance=tolerance)
        return len(found) == len(recorded) and all(map(near, found, recorded))
    if isinstance(found, float) and isinstance(recorded, float):
        return math.isclose(found, recorded, rel_tol=tolerance, abs_tol=min(tolerance, NOTHING))
    return bool(found == recorded)
