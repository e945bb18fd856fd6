"""Data and objectives of the reader's own: read, refused in one sentence, trained, recorded and read back."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jointvae import book, objectives, own, results, runs, training
from jointvae.data import Dataset
from jointvae.errors import JointVAEError
from jointvae.evaluation import evaluate
from jointvae.latents import LatentSpec
from jointvae.model import ImageShape, JointVAE


@dataclass(frozen=True)
class OnlyC(objectives.Own):
    """Holds c to a capacity and charges z at a price."""

    name: str = "only_c"
    beta: float = 2.0

    def __call__(self, reconstruction, kl_z, kl_c, step):
        return {"reconstruction": reconstruction, "z": self.beta * kl_z.sum(), "c": 5 * (kl_c.sum() - 1.0).abs()}


def made(n: int = 40, side: int = 16, channels: int = 1) -> np.ndarray:
    shape = (n, side, side) if channels == 1 else (n, side, side, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def folder_of(images: np.ndarray, folder: Path) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_file_and_array_give_the_same_data(tmp_path, channels):
    images = made(channels=channels)
    np.save(tmp_path / "images.npy", images)
    sources = (images, tmp_path / "images.npy", folder_of(images, tmp_path / "pictures"))
    (train, test), *others = [own.datasets("mine", source, channels) for source in sources]
    assert (len(train), len(test)) == (32, 8)
    assert train.images.shape[1:] == (channels, 32, 32)
    assert train.labels is None
    assert train.classes == ()
    for other_train, other_test in others:
        assert torch.equal(other_train.images, train.images)
        assert torch.equal(other_test.images, test.images)
        assert other_train.checksums == train.checksums


def test_labels_stay_with_their_images():
    images = np.repeat(np.arange(40, dtype=np.uint8), 32 * 32).reshape(40, 32, 32)
    for part in own.datasets("mine", images, labels=np.arange(40)):
        assert part.images[:, 0, 0, 0].tolist() == part.labels.tolist()


def test_labels_may_be_a_list():
    (train, test), (same_train, same_test) = (
        own.datasets("mine", made(), labels=labels) for labels in (np.arange(40), list(range(40)))
    )
    assert torch.equal(train.labels, same_train.labels)
    assert torch.equal(test.labels, same_test.labels)


def test_a_class_that_one_part_lacks_is_a_class_of_both():
    labels = np.zeros(40, int)
    labels[0] = 4  # in one part alone
    parts = own.datasets("mine", made(), labels=labels)
    assert sorted(int(part.labels.max()) for part in parts) == [0, 4]
    assert [part.classes for part in parts] == [("0", "1", "2", "3", "4")] * 2
    model = JointVAE(LatentSpec(2, (3,)))
    assert [len(evaluate(model, part).confusion) for part in parts] == [5, 5]


@given(n=st.integers(0, 30), side=st.sampled_from([1, 8, 40]), size=st.sampled_from([32, 64]))
def test_every_image_is_in_one_part(n, side, size):
    if n < 2 * own.EVERY:
        with pytest.raises(JointVAEError, match="too few"):
            own.datasets("mine", made(n, side), image_size=size, labels=[0] * n)
        return
    train, test = own.datasets("mine", made(n, side), image_size=size)
    assert len(train) + len(test) == n
    assert len(test) == n // own.EVERY
    assert train.images.shape[2:] == (size, size)


BAD_ARRAYS = {
    "bytes": made().astype(float),
    "shape": made()[0],
    "square": made()[:, :8],
    "not 0 x 0": made()[:, :0, :0],
    "n x h x w,": made(channels=3),
}


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_bad_arrays(what):
    with pytest.raises(JointVAEError, match=what):
        own.datasets("mine", BAD_ARRAYS[what])


def test_bad_arguments():
    for arguments, what in (
        ({"name": "mnist"}, "another one"),
        ({"channels": 2}, "1 channel or 3"),
        ({"labels": np.zeros(3, int)}, "whole number"),
        ({"labels": np.zeros(40)}, "whole number"),
        ({"labels": np.zeros((40, 1), int)}, "whole number"),
        ({"labels": np.full(40, -1)}, "whole number"),
    ):
        with pytest.raises(JointVAEError, match=what):
            own.datasets(**{"name": "mine", "source": made(), **arguments})


def test_bad_pictures(tmp_path):
    pictures = folder_of(made(), tmp_path / "pictures")
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)

    def refused(path, what):
        with pytest.raises(JointVAEError, match=what):
            own.datasets("mine", path)

    refused(tmp_path / "nowhere", "neither")
    refused(tmp_path / "empty", "neither")
    refused(tmp_path / "nowhere.npy", "missing")
    refused(tmp_path / "objects.npy", "not an array")  # and nothing in it was executed
    odd = pictures / "odd.png"
    Image.fromarray(made(1, channels=3)[0]).save(odd)
    refused(pictures, "odd.png has the mode RGB")
    Image.fromarray(made(1)[0, :8]).save(odd)
    refused(pictures, "odd.png is 16 x 8 pixels")
    Image.fromarray(made(1, 8)[0]).save(odd)
    refused(pictures, "odd.png is not 16 x 16")
    odd.write_bytes((pictures / "000.png").read_bytes()[:60])
    refused(pictures, "odd.png is damaged")


def test_a_run_of_ones_own_is_recorded_and_read_back(tmp_path, quick):
    config = replace(quick, recipe="mine", dataset="mine", objective=OnlyC(beta=3.0), epochs=1)
    record = runs.run(config, tmp_path, datasets=own.datasets("mine", made()))
    read = results.read(tmp_path / f"{config.run_name}.json")
    assert read.config.objective == objectives.Remembered("only_c", {"beta": 3.0})
    assert read.config.recipe == "mine"
    assert read.test.accuracy is None
    assert sum(read.test.usage) == pytest.approx(1)
    assert record.data == own.datasets("mine", made())[0].checksums
    assert "beta = 3" in book.changes_text(read.config)
    assert runs.run(config, tmp_path, datasets=own.datasets("mine", made())) == read
    with pytest.raises(JointVAEError, match="of other images"):  # not the old record in the new images' name
        runs.run(config, tmp_path, datasets=own.datasets("mine", made(50)))
    with pytest.raises(JointVAEError, match="of other images"):  # nor for other labels, which make other scores
        runs.run(config, tmp_path, datasets=own.datasets("mine", made(), labels=[0, 1] * 20))
    turned = made()
    turned[torch.randperm(40, generator=torch.Generator().manual_seed(0))[:8]] ^= 255  # those that are for the test
    assert torch.equal(own.datasets("mine", turned)[0].images, own.datasets("mine", made())[0].images)
    with pytest.raises(JointVAEError, match="of other images"):
        runs.run(config, tmp_path, datasets=own.datasets("mine", turned))
    with pytest.raises(JointVAEError, match="only_c"):
        read.config.objective(torch.zeros(()), torch.zeros(1), torch.zeros(1), 1)


def test_a_run_has_one_name_however_its_numbers_are_written(tmp_path, quick):
    # In a process of its own: the tests check types, and would not let a whole number pass for a real one.
    script = """
from dataclasses import replace
from jointvae import training
from jointvae.latents import LatentSpec
config = training.recipe("digits")
whole, real = (replace(config, tau=a, objective=replace(config.objective, gamma=b)) for a, b in ((1, 20), (1.0, 20.0)))
assert whole.run_name == real.run_name != config.run_name
listed = replace(config, latents=LatentSpec(4, [3]))
assert listed == replace(config, latents=LatentSpec(4, (3,))) and {listed}
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    config = replace(quick, recipe="mine", objective=OnlyC(beta=3.0), epochs=1)
    record = runs.run(config, tmp_path)
    assert results.read(tmp_path / f"{record.name}.json").config.run_name == record.name
    assert results.collect([tmp_path / f"{record.name}.json"], tmp_path / "book")


def test_labels_that_number_more_than_the_images_are_no_classes():
    with pytest.raises(JointVAEError, match="number the classes"):
        own.datasets("mine", made(), labels=[20_240_101_123] + [0] * 39)


def test_a_photo_is_read_as_a_viewer_shows_it(tmp_path):
    upright = np.zeros((16, 16), np.uint8)
    upright[:, :8] = 255
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    for i in range(10):
        Image.fromarray(upright).rotate(180).save(tmp_path / "photos" / f"{i}.png", exif=exif)
    train, _ = own.datasets("mine", tmp_path / "photos")
    assert train.images[0, 0, :, :8].min() > 250
    assert train.images[0, 0, :, 24:].max() < 5


def test_a_name_of_the_package_is_not_ones_own(tmp_path, quick, make_record):
    results.write(tmp_path / "a.json", make_record())
    content = json.loads((tmp_path / "a.json").read_text())
    for objective in ({"name": "elbo", "gamma": 1.0}, {"gamma": 1.0}, {"name": "x", "list": [1]}):
        content["config"]["objective"] = objective
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(JointVAEError, match="not a valid record"):
            results.read(tmp_path / "a.json")


def test_settings_are_the_fields_of_ones_own_objective():
    assert asdict(OnlyC()) == {"name": "only_c", "beta": 2.0}
    assert OnlyC().capacities(3) == {}


def test_images_must_fit_the_config(tmp_path, quick):
    config = replace(quick, image=ImageShape(1, 64))
    with pytest.raises(JointVAEError, match="'mine' has 1 x 32 x 32"):
        runs.run(config, tmp_path, datasets=own.datasets("mine", made()))
    assert list(tmp_path.iterdir()) == []


def test_classes_of_unknown_data_are_numbers():
    labels = torch.tensor([0, 2])
    assert Dataset("mine", "train", torch.zeros(2, 1, 32, 32, dtype=torch.uint8), labels, {}).classes == ("0", "1", "2")


def test_readers_runs_and_their_changes(tmp_path, make_record):
    results.write(tmp_path / "mnist-seed0.json", make_record())
    (tmp_path / "cut.json").write_text("{")
    results.write(tmp_path / "mnist-seed0 (copy).json", make_record())
    found, complaints = book.your_records(tmp_path)
    assert [record.name for record in found] == ["mnist-seed0"]
    assert len(complaints) == 2
    assert "cut.json" in complaints[0]
    assert "of the same run" in complaints[1]
    config = training.recipe("digits")
    assert book.changes_text(config) == "the recipe as it is"
    assert book.changes(replace(config, seed=3, batch_size=16)) == {"batch_size": 16}
    changed = replace(config, objective=replace(config.objective, gamma=5.0))
    assert book.changes_text(changed) == "objective.gamma = 5"
