"""Records outlive the code that wrote them: an old schema is brought up to date when read, and never rewritten.

tests/records/ holds a run and a reference of every schema that there was, as the version of that time wrote them. Who
raises `results.SCHEMA` adds a pair; nobody changes one that is there.
"""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from jointvae import results, runs
from jointvae.errors import JointVAEError
from jointvae.results import Record, Reference

FROZEN = Path(__file__).parent / "records"
KINDS = {"run": Record, "reference": Reference}


@pytest.mark.parametrize("schema", range(1, results.SCHEMA + 1))
@pytest.mark.parametrize("kind", KINDS)
def test_a_record_of_every_schema_there_was_is_read(kind, schema):
    path = FROZEN / f"{kind}-schema-{schema}.json"
    before = path.read_bytes()
    assert json.loads(before)["schema"] == schema
    record = results.read(path, KINDS[kind])
    assert record.schema == results.SCHEMA
    assert record.test.images > 0
    assert path.read_bytes() == before


def test_before_there_was_a_choice_runs_were_trained_in_float32():
    assert results.read(FROZEN / "run-schema-1.json").config.precision == "float32"
    assert results.read(FROZEN / "run-schema-2.json").config.precision == "bfloat16"


@pytest.fixture
def later(monkeypatch):
    """The package two schemas later: `seconds` was called `duration` first, then the scores were told in bits."""

    def rename(content):
        return {("seconds" if key == "duration" else key): value for key, value in content.items()}

    def convert(content):
        return content | {"scores": {name: bits * 0.5 for name, bits in content["scores"].items()}}

    monkeypatch.setattr(results, "SCHEMA", 3)
    monkeypatch.setattr(results, "MIGRATIONS", {1: rename, 2: convert})


def old(record: Record, path: Path, **changes: object) -> bytes:
    """A record as the first of those schemas wrote it."""
    content = asdict(record) | {"schema": 1} | changes
    content["duration"] = content.pop("seconds")
    path.write_text(json.dumps(content))
    return path.read_bytes()


def test_an_old_record_is_brought_up_to_date_step_by_step_and_its_file_stays(later, make_record, tmp_path):
    path = tmp_path / "r.json"
    before = old(make_record(), path, scores={"information": 4.0})
    record = results.read(path)
    assert (record.schema, record.seconds, record.scores) == (3, 1.0, {"information": 2.0})
    assert path.read_bytes() == before


def test_a_record_in_the_middle_takes_the_later_steps_only(later, make_record, tmp_path):
    path = tmp_path / "r.json"
    results.write(path, replace(make_record(), schema=3))
    path.write_text(path.read_text().replace('"schema": 3', '"schema": 2'))
    assert results.read(path).scores == {"information": 1.1}


def test_what_comes_out_of_a_migration_is_checked_like_any_record(later, make_record, tmp_path):
    path = tmp_path / "r.json"
    old(make_record(), path, surprise=1)
    with pytest.raises(JointVAEError, match="the field surprise is unknown"):
        results.read(path)


def test_an_old_record_that_its_migration_does_not_understand_is_refused_in_one_sentence(later, make_record, tmp_path):
    path = tmp_path / "r.json"
    old(make_record(), path, scores=None)
    with pytest.raises(JointVAEError, match=r"r\.json is not a valid record of schema 2: restore"):
        results.read(path)


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        (results.SCHEMA + 1, "newer than"),
        (0, "can't bring to"),
        (-1, "can't bring to"),
        (None, "schema None, which this code can't bring"),
        ("1", "schema '1', which this code can't bring"),
        (True, "schema True, which this code can't bring"),
        (1.0, "schema 1.0, which this code can't bring"),
        ([1], "can't bring to"),
    ],
)
def test_a_schema_that_can_not_be_read_is_refused_in_one_sentence_and_nothing_is_overwritten(
    make_record, tmp_path, quick, schema, sentence
):
    path = tmp_path / f"{quick.run_name}.json"
    results.write(path, replace(make_record("digits"), config=quick))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": schema}))
    before = path.read_bytes()
    for read in (results.read, lambda path: runs.run(quick, path.parent, "cpu")):
        with pytest.raises(JointVAEError, match=re.escape(sentence)) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {path.name: before}
