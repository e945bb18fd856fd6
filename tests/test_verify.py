"""What `verify` notices in a results folder, and what the same seed gives when it is trained again."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jointvae import __main__ as cli
from jointvae import checkpoints, data, results, runs, training, verify
from jointvae.files import sha256
from jointvae.verify import Finding

LEDGER = "- {id: a, claim: c, source: s, criterion: k, recipe: digits, metric: accuracy}\n"


@pytest.fixture(scope="module")
def tiny(digits) -> Iterator[training.Config]:
    """A short run on few images, for the whole module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda name, split, size=32: replace(digits, split=split))
        verify._images.cache_clear()
        yield replace(training.recipe("digits"), epochs=1)
    verify._images.cache_clear()


@pytest.fixture(scope="module")
def recorded(tiny, tmp_path_factory) -> Path:
    """A results folder with one run and its weights."""
    folder = tmp_path_factory.mktemp("results")
    runs.run(tiny, folder / "runs", "cpu")
    (folder / "claims.yml").write_text(LEDGER)
    return folder


@pytest.fixture
def folder(recorded, tmp_path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(recorded, tmp_path / "results"))


def record_of(folder: Path) -> Path:
    return next((folder / "runs").glob("*.json"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def bad(folder: Path) -> list[Finding]:
    return [finding for finding in verify.examine(folder) if finding.state == "bad"]


def test_what_was_recorded_holds(folder):
    heard = []
    states = {finding.check: finding.state for finding in verify.examine(folder, heard.append)}
    assert states == {
        "schema": "good",
        "scores": "good",
        "claim": "left out",  # a short run is no evidence for the recipe
        "weights": "good",
        "evaluation": "good",
    }
    assert heard == [record_of(folder).stem]


def turn(confusion: list[list[int]]) -> list[list[int]]:
    """The same matrix with its categories renamed: every score stays what it was."""
    return [[*row[1:], row[0]] for row in confusion]


def rename_categories(record: dict[str, Any]) -> None:
    test = record["test"]
    test["confusion"], test["usage"] = turn(test["confusion"]), [*test["usage"][1:], test["usage"][0]]


TAMPERED = {
    "a field too few": (lambda r: r.pop("seconds"), "schema", "seconds is missing|seconds"),
    "an accuracy": (lambda r: r["test"].update(accuracy=0.999), "scores", "accuracy on test"),
    "an nmi": (lambda r: r["train"].update(nmi=0.9), "scores", "nmi on train"),
    "the usage": (lambda r: r["test"]["usage"].reverse(), "scores", "usage on test"),
    "a count of images": (lambda r: r["test"].update(images=161), "scores", "there are 161"),
    "the splits": (lambda r: r.update(train=r["test"]), "scores", "evaluation on test"),
    "a score": (lambda r: r["scores"].update(information=9.9), "scores", "label-free"),
    "the seed": (lambda r: r["config"].update(seed=5), "scores", "its config makes it"),
    "the epochs": (lambda r: r["curves"].update({k: v * 2 for k, v in r["curves"].items()}), "scores", "entries in"),
    "the units": (lambda r: r["test"]["kl_z"].pop(), "schema", "number of units in kl_z"),
    "the sum of the weights": (lambda r: r["checkpoint"].update(sha256="0" * 64), "weights", "not the file"),
    "the categories": (rename_categories, "evaluation", "another usage|another confusion"),
    "the loss on the test images": (
        lambda r: r["test"].update(reconstruction=r["test"]["reconstruction"] * 1.0001),
        "evaluation",
        "another reconstruction on the test images",
    ),
}


@pytest.mark.parametrize(("change", "check", "says"), TAMPERED.values(), ids=TAMPERED)
def test_a_record_that_was_tampered_with_is_noticed(folder, change, check, says):
    path = record_of(folder)
    edit(path, change)
    found = {finding.check: finding for finding in bad(folder)}
    assert check in found
    assert re.search(says, found[check].note)
    assert found[check].result == f"runs/{path.name}"


def test_the_last_digits_of_a_float32_sum_may_differ(folder):
    edit(record_of(folder), lambda r: r["test"].update(reconstruction=r["test"]["reconstruction"] * (1 + 1e-7)))
    assert bad(folder) == []


def test_other_weights_are_noticed(folder, tiny):
    record = results.read(record_of(folder))
    weights = folder / "runs" / record.checkpoint.file
    checkpoints.save_model(weights, training.build(tiny))
    (found,) = bad(folder)
    assert (found.check, "not the file" in found.note) == ("weights", True)
    # Even with the sum of the others in the record, what they compute gives them away.
    edit(record_of(folder), lambda r: r["checkpoint"].update(sha256=sha256(weights)))
    (found,) = bad(folder)
    assert (found.check, "evaluate to another" in found.note) == ("evaluation", True)


def test_weights_of_another_architecture_are_noticed(folder, tiny):
    weights = folder / "runs" / results.read(record_of(folder)).checkpoint.file
    checkpoints.save_model(weights, training.build(replace(tiny, latents=replace(tiny.latents, z=3))))
    edit(record_of(folder), lambda r: r["checkpoint"].update(sha256=sha256(weights)))
    (found,) = bad(folder)
    assert (found.check, "another model" in found.note) == ("weights", True)


def test_weights_without_a_record_are_noticed(folder):
    (folder / "runs" / "stray.safetensors").write_bytes(b"")
    (found,) = bad(folder)
    assert (found.result, found.check) == ("runs/stray.safetensors", "weights")


def test_weights_that_are_not_kept_are_left_out(folder):
    next((folder / "runs").glob("*.safetensors")).unlink()
    findings = verify.examine(folder)
    assert [f.check for f in findings if f.state == "left out"] == ["claim", "weights"]
    assert not any(f.state == "bad" for f in findings)


def test_a_result_that_no_claim_is_about_is_noticed(folder, make_record):
    published = {file: data.SHA256["mnist"][file] for file in data.FILES["train"]}
    results.write(folder / "runs" / "mnist-seed0.json", replace(make_record(), data=published))
    found = [finding for finding in bad(folder) if finding.check == "claim"]
    assert [finding.result for finding in found] == ["runs/mnist-seed0.json"]
    assert "No claim is about" in found[0].note


def test_other_images_than_the_published_ones_are_noticed(folder, make_record):
    results.write(folder / "runs" / "mnist-seed0.json", make_record())
    notes = [finding.note for finding in bad(folder) if finding.check == "scores"]
    assert ["not trained on the published images" in note for note in notes] == [True]


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        ("recipe: nope", "recipe 'nope'"),
        ("reference: nobody", "model 'nobody'"),
        ("metric: nope", "unknown metric"),
    ],
)
def test_a_claim_about_nothing_is_noticed(folder, claim, says):
    (folder / "claims.yml").write_text(LEDGER + f"- {{id: b, claim: c, source: s, criterion: k, {claim}}}\n")
    notes = [finding.note for finding in bad(folder) if finding.result == "claims.yml"]
    assert [says in note for note in notes] == [True]


def test_a_benchmark_of_an_unknown_machine_is_noticed(folder):
    (folder / "benchmarks").mkdir()
    for name, content in (("none", {}), ("odd", {"provenance": {"threads": "many"}})):
        (folder / "benchmarks" / f"{name}.json").write_text(json.dumps(content))
    (folder / "benchmarks" / "good.json").write_text(json.dumps({"provenance": asdict(results.Provenance.now())}))
    assert [finding.result for finding in bad(folder)] == ["benchmarks/none.json", "benchmarks/odd.json"]


def test_without_the_images_the_evaluation_is_left_out_and_said_to_be(folder, monkeypatch, capsys):
    def unavailable(name: str, split: str, size: int = 32) -> None:
        raise data.DataUnavailableError("'digits' can't be had.")

    verify._images.cache_clear()
    monkeypatch.setattr(data, "load", unavailable)
    assert cli.main(["verify", "--results", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"Left out: evaluation of runs/{record_of(folder).name}: the images can't be had: 'digits'" in out
    verify._images.cache_clear()


def test_the_command_says_one_sentence_per_mismatch_and_exits_with_2(folder, capsys):
    edit(record_of(folder), lambda r: r["test"].update(accuracy=0.999))
    (folder / "runs" / "stray.safetensors").write_bytes(b"")
    assert cli.main(["verify", "--results", str(folder)]) == 2
    out, error = capsys.readouterr()
    said = [line for line in out.splitlines() if line.startswith("Bad: ")]
    assert len(said) == 3  # the scores, the evaluation, the stray
    assert any("accuracy" in line for line in said)
    assert error.startswith("error: 3 checks")
    assert error.count("\n") == 1


def test_the_committed_results_hold(monkeypatch):
    def elsewhere(dataset: str, split: str, size: int) -> None:
        raise verify.LeftOutError("evaluated by `make verify`")

    monkeypatch.setattr(verify, "_images", elsewhere)
    findings = verify.examine()
    assert [finding for finding in findings if finding.state == "bad"] == []
    assert {"schema", "scores", "claim", "weights"} <= {f.check for f in findings if f.state == "good"}


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_record_three_times(tiny, tmp_path, threads):
    """All but the times and the notes on the sessions, and every bit of the weights, on any one number of threads."""
    torch.set_num_threads(threads)
    try:
        records = [runs.run(tiny, tmp_path / str(repeat), "cpu") for repeat in range(3)]
    finally:
        torch.set_num_threads(1)
    assert all(record.provenance[0].threads == threads for record in records)
    first, *others = (replace(record, provenance=[], seconds=0.0, images_per_second=None) for record in records)
    assert others == [first, first]
