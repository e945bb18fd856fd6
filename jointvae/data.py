"""Image data as tensors in memory: MNIST, FashionMNIST and the digits that scikit-learn carries.

MNIST and FashionMNIST are looked for in the folder that `JOINTVAE_DATA` names, then in the project's `data/`; if
neither has them, torchvision downloads them into `data/`. Every file is checked against its SHA-256 before use.
"""

import contextlib
import gzip
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from jointvae.errors import JointVAEError
from jointvae.files import sha256
from jointvae.structure import HERE

DATA = HERE / "data"
SPLITS = ("train", "test")
DATASETS = ("mnist", "fashion", "digits")
FOLDERS = {"mnist": "MNIST", "fashion": "FashionMNIST"}
CLASSES = {
    "mnist": tuple(str(digit) for digit in range(10)),
    "fashion": (
        "T-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    "digits": tuple(str(digit) for digit in range(10)),
}
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
# SHA-256 of the uncompressed files, as first published.
SHA256 = {
    "mnist": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
LARGEST_SIDE = 1024  # pixels
DIGITS_TEST = 360  # of 1,797 images


class DataUnavailableError(JointVAEError):
    """The data set is neither on disk nor to be downloaded."""


@dataclass(frozen=True)
class Dataset:
    """Images of 0 to 255 and, if there are any, their labels; the labels are used by the evaluation only."""

    name: str
    split: str
    images: UInt8[Tensor, "n channels side side"]
    labels: Int[Tensor, " n"] | None
    checksums: dict[str, str]
    n_classes: int | None = None  #: of all splits together, where the package does not know them

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each label; of data that the package does not know, its number."""
        if self.labels is None:
            return ()
        return CLASSES.get(self.name) or tuple(str(k) for k in range(self.n_classes or int(self.labels.max()) + 1))

    def batch(self, which: Int[Tensor, " batch"]) -> Float[Tensor, "batch channels side side"]:
        """These images, with values in [0, 1]."""
        return as_floats(self.images.index_select(0, which))  # copies image by image; indexing goes pixel by pixel

    def to(self, device: torch.device) -> "Dataset":
        """The same data on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)


def as_floats(images: UInt8[Tensor, "*batch channels side side"]) -> Tensor:
    """Images with values in [0, 1].

    >>> as_floats(torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(1, 1, 2, 2)).flatten()
    tensor([0.0000, 0.2000, 0.4000, 1.0000])
    """
    return images.float().div_(255)


def load(name: str, split: str, image_size: int = 32) -> Dataset:
    """One split of a data set, resized to `image_size` pixels by bilinear interpolation.

    Raises:
        DataUnavailableError: if the files are not on disk and can't be downloaded.
        JointVAEError: if the name or split is unknown, or a file is not what was published.

    >>> digits = load("digits", "test")
    >>> digits.images.shape, digits.classes[:3]
    (torch.Size([360, 1, 32, 32]), ('0', '1', '2'))
    """
    if name not in DATASETS:
        raise JointVAEError(f"There is no data set '{name}'; choose one of {', '.join(DATASETS)}.")
    if split not in SPLITS:
        raise JointVAEError(f"There is no split '{split}'; choose one of {', '.join(SPLITS)}.")
    if name == "digits":
        images, labels, checksums = _embedded_digits(split)
    else:
        images, labels, checksums = _idx_dataset(name, split)
    return Dataset(name, split, resize(images, image_size), labels, checksums)


def resize(
    images: UInt8[Tensor, "n channels h w"] | UInt8[Tensor, "n h w"], image_size: int
) -> UInt8[Tensor, "n channels side side"]:
    """Images at another size, rounded to bytes as the authors' pipeline (PIL) does; grey ones need no channel axis.

    Raises:
        JointVAEError: if no image can be that small or that large.
    """
    from torchvision.transforms.v2 import functional as tv

    if not 1 <= image_size <= LARGEST_SIDE:
        raise JointVAEError(f"Images can have 1 to {LARGEST_SIDE:,} pixels a side, not {image_size}.")
    with_channels = images if images.dim() == 4 else images.unsqueeze(1)
    return tv.resize(with_channels, [image_size, image_size], antialias=True)


def folder(name: str) -> Path | None:
    """The folder that holds the published files of a data set, or None."""
    named = named_folder()
    for root in [named, DATA] if named else [DATA]:
        raw = root / FOLDERS[name] / "raw"
        if raw.is_dir():
            return raw
    return None


def named_folder() -> Path | None:
    """The folder that `JOINTVAE_DATA` names, there or not, or None."""
    named = os.environ.get("JOINTVAE_DATA")
    return Path(named) if named else None


def raw_images(name: str, split: str) -> UInt8[Tensor, "n h w"]:
    """The images of MNIST or FashionMNIST as published, 28 x 28 pixels."""
    return _idx_dataset(name, split)[0]


def _idx_dataset(name: str, split: str) -> tuple[Tensor, Tensor, dict[str, str]]:
    raw = folder(name) or _download(name)
    images_file, labels_file = (_verified(raw, name, file) for file in FILES[split])
    images = _read_idx(images_file, offset=16).view(-1, 28, 28)
    labels = _read_idx(labels_file, offset=8).long()
    return images, labels, {file: SHA256[name][file] for file in FILES[split]}


def _read_idx(path: Path, offset: int) -> UInt8[Tensor, " bytes"]:
    # The checksum has already proved that the header is the published one.
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8, offset=offset)


def _verified(raw: Path, name: str, file: str) -> Path:
    path = raw / file
    remedy = f"delete the folder {raw} to download it again, or point JOINTVAE_DATA at a good copy"
    if not path.is_file():
        raise JointVAEError(f"{path} is missing, though other files of '{name}' are there: {remedy}.")
    try:
        found = sha256(path)
    except OSError as error:
        raise JointVAEError(f"{path} can't be read ({error.strerror}): check its permissions, or {remedy}.") from None
    if found != SHA256[name][file]:
        raise JointVAEError(
            f"{path} is damaged or not the published file ({path.stat().st_size:,} bytes, "
            f"SHA-256 {found[:12]}…, expected {SHA256[name][file][:12]}…): {remedy}."
        )
    return path


def _download(name: str) -> Path:
    raw = DATA / FOLDERS[name] / "raw"
    DATA.mkdir(exist_ok=True)
    try:
        # Into a folder of its own, moved into place when complete: a broken download leaves nothing behind.
        with tempfile.TemporaryDirectory(dir=DATA, prefix=".download-") as scratch:
            fetched = _fetch(name, Path(scratch))
            raw.parent.mkdir(exist_ok=True)
            try:
                fetched.rename(raw)
            except OSError:
                if not raw.is_dir():  # else another process was faster
                    raise
    finally:
        with contextlib.suppress(OSError):  # it holds something
            DATA.rmdir()
    return raw


def _fetch(name: str, scratch: Path) -> Path:
    from torchvision import datasets

    published = {"mnist": datasets.MNIST, "fashion": datasets.FashionMNIST}[name]
    try:
        published(scratch, download=True)
    except Exception as error:  # urllib, ssl, zip and checksum errors share no base class
        raise DataUnavailableError(
            f"'{name}' is neither in JOINTVAE_DATA nor in {DATA}, and downloading it failed "
            f"({type(error).__name__}): set JOINTVAE_DATA to a folder that holds {FOLDERS[name]}/raw."
        ) from error
    raw = scratch / FOLDERS[name] / "raw"
    for archive in raw.glob("*.gz"):
        if not archive.with_suffix("").exists():
            archive.with_suffix("").write_bytes(gzip.decompress(archive.read_bytes()))
        archive.unlink()
    return raw


def _embedded_digits(split: str) -> tuple[Tensor, Tensor, dict[str, str]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    # Pixels are counts of 0 to 16.
    pixels = (bunch.images * (255 / 16)).round().astype("uint8")
    train_x, test_x, train_y, test_y = train_test_split(
        pixels, bunch.target, test_size=DIGITS_TEST, stratify=bunch.target, random_state=0
    )
    images, labels = (train_x, train_y) if split == "train" else (test_x, test_y)
    return torch.from_numpy(images), torch.from_numpy(labels).long(), {}
