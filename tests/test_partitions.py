"""Partitions that are kept beside the records: made from the weights, read back, and refused when they don't fit."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from jointvae import __main__ as cli
from jointvae import data, partitions, results, runs, training, verify
from jointvae.errors import JointVAEError


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The record of a short run, its weights beside it."""
    folder = tmp_path_factory.mktemp("runs")
    record = runs.run(replace(training.recipe("digits"), epochs=1), folder, "cpu")
    return folder / f"{record.name}.json"


def test_a_partition_gives_back_the_recorded_confusion(trained, tmp_path):
    record = results.read(trained)
    assert partitions.add([trained], tmp_path) == [record.name]
    categories = partitions.read("digits", tmp_path).categories(record.name)
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (data.load("digits", "test").labels.numpy(), categories), 1)
    assert confusion.tolist() == record.test.confusion
    partitions.check(partitions.read("digits", tmp_path), [record])


def test_the_command_adds_and_a_second_call_changes_nothing(trained, tmp_path, capsys):
    written = []
    for new in (1, 0):
        assert cli.main(["partition", str(trained), "--results", str(tmp_path)]) == 0
        assert f"{new} of 1 partitions are new" in capsys.readouterr().out
        (path,) = (path for path in tmp_path.rglob("*.json"))
        written.append(path.stat().st_mtime_ns)
    assert written[0] == written[1]  # the date as well, by which `make` goes


def test_what_another_process_adds_meanwhile_is_kept(trained, tmp_path, monkeypatch):
    other = partitions.Partitions("digits", {"digits-seed7": "0123"})

    def slow(record, folder):
        (tmp_path / "digits.json").write_text(json.dumps(asdict(other)))  # while this one is made
        return "4567"

    monkeypatch.setattr(partitions, "_partition", slow)
    name = results.read(trained).name
    assert partitions.add([trained], tmp_path) == [name]
    assert partitions.read("digits", tmp_path).runs == {**other.runs, name: "4567"}


def test_another_partition_of_the_same_run_is_refused_and_kept(trained, tmp_path):
    partitions.add([trained], tmp_path)
    path = tmp_path / "digits.json"
    content = json.loads(path.read_text())
    name = next(iter(content["runs"]))
    assert content["runs"][name][0] != "9"
    content["runs"][name] = "9" + content["runs"][name][1:]
    path.write_text(json.dumps(content))
    with pytest.raises(JointVAEError, match="nothing was changed"):
        partitions.add([trained], tmp_path)
    assert json.loads(path.read_text()) == content


def test_a_run_without_weights_or_without_c_is_refused(trained, tmp_path):
    alone = tmp_path / trained.name
    alone.write_bytes(trained.read_bytes())
    with pytest.raises(JointVAEError):
        partitions.add([alone], tmp_path / "kept")
    record = results.read(trained)
    results.write(alone, replace(record, test=replace(record.test, unit=None, usage=None, confusion=None)))
    with pytest.raises(JointVAEError, match="has no partition"):
        partitions.add([alone], tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"dataset": "digits", "runs": {"a": "01", "b": "011"}}', "same images"),
        ('{"dataset": "digits", "runs": {"a": "0 1"}}', "a digit or a letter"),
        ('{"dataset": "mnist", "runs": {}}', "calls itself partitions of 'mnist'"),
        ('{"dataset": "digits"}', "missing"),
        ('{"dataset": "digits", "runs": {"a": "0', "not readable JSON"),
    ],
)
def test_a_damaged_file_is_named_in_a_sentence(tmp_path, content, message):
    (tmp_path / "digits.json").write_text(content)
    with pytest.raises(JointVAEError, match=message):
        partitions.read("digits", tmp_path)


def test_verify_notices_a_partition_that_is_not_of_its_run(trained, tmp_path):
    record = results.read(trained)
    results.write(tmp_path / "runs" / trained.name, record)
    partitions.add([trained], tmp_path / "partitions")

    def states() -> list[str]:
        return [found.state for found in verify.examine(tmp_path) if found.result.startswith("partitions")]

    assert states() == ["good"]
    path = tmp_path / "partitions" / "digits.json"
    path.write_text(path.read_text().replace("0", "1"))
    assert states() == ["bad"]


def test_every_kept_partition_is_of_a_recorded_run():
    found = results.records()
    for path in partitions.FOLDER.glob("*.json"):
        partitions.check(partitions.read(path.stem), found)
