"""Loading: the published files, damaged ones, missing ones, and a download that fails half way."""

import gzip
import hashlib
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from jointvae import data
from jointvae.errors import JointVAEError


def idx(shape: tuple[int, ...], seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).integers(0, 10, shape, dtype=np.uint8)
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + values.tobytes()


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A small stand-in for MNIST in its own folder, whose checksums count as the published ones."""
    raw = tmp_path / "store" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, n in (("train", 12), ("test", 5)):
        images, labels = data.FILES[split]
        (raw / images).write_bytes(idx((n, 28, 28)))
        (raw / labels).write_bytes(idx((n,)))
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in raw.iterdir()}
    monkeypatch.setitem(data.SHA256, "mnist", sums)
    monkeypatch.setenv("JOINTVAE_DATA", str(tmp_path / "store"))
    monkeypatch.setattr(data, "DATA", tmp_path / "data")
    return raw


@pytest.fixture
def online(root, monkeypatch) -> None:
    """A server that publishes what `root` holds now, and no other place that has it."""
    published = {f"{file.name}.gz": gzip.compress(file.read_bytes()) for file in root.iterdir()}

    def fetch(target: str, download: bool) -> None:
        raw = Path(target) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name, content in published.items():
            (raw / name).write_bytes(content)

    monkeypatch.setattr(datasets, "MNIST", fetch)
    monkeypatch.delenv("JOINTVAE_DATA")


def test_reads_the_published_layout(root):
    train, test = data.load("mnist", "train"), data.load("mnist", "test", image_size=64)
    assert train.images.shape == (12, 1, 32, 32)
    assert test.images.shape == (5, 1, 64, 64)
    assert train.images.dtype == torch.uint8
    assert train.labels.tolist() == list(idx((12,))[8:])
    assert train.checksums == {file: data.SHA256["mnist"][file] for file in data.FILES["train"]}


def test_finds_the_folder_called_data(root, tmp_path, monkeypatch):
    monkeypatch.delenv("JOINTVAE_DATA")
    (tmp_path / "store").rename(tmp_path / "data")
    assert len(data.load("mnist", "test")) == 5


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "damaged"),
        (lambda file: file.write_bytes(b""), "damaged"),
        (lambda file: file.write_bytes(idx((12, 28, 28), seed=1)), "damaged"),
        (lambda file: file.unlink(), "missing"),
        (lambda file: (file.unlink(), file.mkdir()), "missing"),
    ],
    ids=["cut", "empty", "other", "missing", "folder"],
)
def test_a_bad_file_is_named_with_the_way_out(root, damage, says):
    file = root / "train-images-idx3-ubyte"
    damage(file)
    with pytest.raises(JointVAEError, match=says) as caught:
        data.load("mnist", "train")
    message = str(caught.value)
    assert str(file) in message
    assert "JOINTVAE_DATA" in message
    assert "\n" not in message


def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch):
    def half(root: str, download: bool) -> None:
        raw = Path(root) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        (raw / "train-images-idx3-ubyte.gz").write_bytes(b"half")
        raise OSError("the network is gone")

    monkeypatch.setattr(datasets, "MNIST", half)
    monkeypatch.delenv("JOINTVAE_DATA", raising=False)
    monkeypatch.setattr(data, "DATA", tmp_path / "data")
    with pytest.raises(data.DataUnavailableError, match="set JOINTVAE_DATA"):
        data.load("mnist", "train")
    assert list(tmp_path.iterdir()) == []


def test_a_download_is_unpacked_checked_and_kept(online, tmp_path):
    assert len(data.load("mnist", "train")) == 12
    kept = tmp_path / "data" / "MNIST" / "raw"
    assert sorted(file.name for file in kept.iterdir()) == sorted(data.SHA256["mnist"])
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["MNIST"]


def test_who_follows_the_sentence_about_a_damaged_file_gets_the_data_again(online, root, tmp_path):
    (tmp_path / "store").rename(tmp_path / "data")
    raw = tmp_path / "data" / "MNIST" / "raw"
    (raw / "train-images-idx3-ubyte").write_bytes(b"half of it")
    with pytest.raises(JointVAEError, match="damaged") as caught:
        data.load("mnist", "train")
    shutil.rmtree(str(caught.value).partition("delete the folder ")[2].partition(" to download")[0])
    assert len(data.load("mnist", "train")) == 12


def test_of_two_downloads_at_once_the_first_one_stays(online, root, tmp_path, monkeypatch):
    fetch, raw = datasets.MNIST, tmp_path / "data" / "MNIST" / "raw"

    def overtaken(target: str, download: bool) -> None:
        fetch(target, download)
        shutil.copytree(root, raw)
        (raw / "of another process").touch()

    monkeypatch.setattr(datasets, "MNIST", overtaken)
    assert len(data.load("mnist", "train")) == 12
    assert (raw / "of another process").exists()
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]


def test_resize_is_the_one_of_pil():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8))
    for size in (32, 64):
        found = data.resize(images, size)[:, 0].numpy()
        expected = [
            np.array(Image.fromarray(i.numpy()).resize((size, size), Image.Resampling.BILINEAR)) for i in images
        ]
        assert np.array_equal(found, np.stack(expected))


def test_digits_are_split_without_overlap():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.max() == 255
    assert set(train.labels.tolist()) == set(range(10)) == set(test.labels.tolist())
    seen = {image.numpy().tobytes() for image in train.images}
    assert sum(image.numpy().tobytes() in seen for image in test.images) == 0


def test_floats_lie_between_zero_and_one(digits):
    x = data.as_floats(digits.images)
    assert x.min() == 0
    assert x.max() == 1


@pytest.mark.parametrize(("name", "split"), [("cifar", "train"), ("mnist", "validation")])
def test_unknown_names(name, split):
    with pytest.raises(JointVAEError, match="choose one of"):
        data.load(name, split)


def test_a_batch_holds_the_images_that_were_asked_for(digits):
    which = torch.tensor([5, 0, 5, 159])
    assert torch.equal(digits.batch(which), torch.stack([digits.images[i] for i in (5, 0, 5, 159)]) / 255)
