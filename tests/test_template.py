"""The template of a reader's own experiment, executed on made data: the run is recorded, bad images get a sentence."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointvae import book

pytestmark = [pytest.mark.book, pytest.mark.slow]
TOOLS = Path(__file__).parent.parent / "book" / "_tools"
TEMPLATE = TOOLS.parent / "template.md"


@pytest.fixture(scope="module")
def execute():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        yield importlib.import_module("execute").execute


def pictures(folder: Path, mode: str) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)).convert(mode).save(folder / f"{i:02}.png")
    return folder


def run(execute, folder: Path, source: Path) -> str:
    parameters = {"TIER": "smoke", "SEED": 3, "SOURCE": str(source), "FOLDER": str(folder / "runs")}
    notebook = execute(TEMPLATE, parameters)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output["data"]["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {}))


def test_a_folder_of_pictures_is_trained_on_and_recorded(execute, tmp_path):
    text = run(execute, tmp_path, pictures(tmp_path / "mine", "L"))
    assert "32 images to train on, 8 to test with, 1 × 32 × 32" in text
    records, complaints = book.your_records(tmp_path / "runs")
    assert complaints == []
    assert {record.config.objective.name for record in records} == {"split_capacity", "squared"}
    assert {record.config.dataset for record in records} == {"mine"}


def test_pictures_of_another_mode_get_a_sentence_and_the_page_goes_on(execute, tmp_path):
    text = run(execute, tmp_path, pictures(tmp_path / "mine", "RGB"))
    assert "could not be read" in text
    assert "00.png has the mode RGB" in text
    assert "absolute value" in text
    assert {record.config.dataset for record in book.your_records(tmp_path / "runs")[0]} == {"shapes"}
