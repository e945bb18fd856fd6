"""Your own images as data sets: from a folder of pictures, a .npy file or an array in memory."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from jointvae.data import DATASETS, Dataset, resize
from jointvae.errors import JointVAEError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
MODES = {1: "L", 3: "RGB"}  # channels to Pillow's name of the mode
EVERY = 5  # one image in so many is kept for the test


def datasets(
    name: str,
    source: Path | np.ndarray,
    channels: int = 1,
    image_size: int = 32,
    labels: Sequence[int] | np.ndarray | None = None,
) -> tuple[Dataset, Dataset]:
    """Your own images as a training and a test set: every fifth one, in a fixed random order, is for the test.

    Args:
        name: what the records call the data.
        source: a folder of pictures, a .npy file, or an array of bytes (0 to 255), n x h x w or n x h x w x channels.
        channels: 1 for grey, 3 for colour.
        image_size: 32 or 64 pixels; the images are resized to it.
        labels: one whole number from 0 for each image, in the order of the files' names; only the scores use them.

    Raises:
        JointVAEError: if there are too few images, or one is not square, not readable or of another mode.
    """
    if name in DATASETS:
        raise JointVAEError(f"'{name}' is the name of a data set of the package: give yours another one.")
    if channels not in MODES:
        raise JointVAEError(f"Images have 1 channel or 3, not {channels}.")
    images = _from_array(source, channels) if isinstance(source, np.ndarray) else _from_path(Path(source), channels)
    images = resize(images, image_size)
    if len(images) < 2 * EVERY:
        raise JointVAEError(f"{len(images)} images are too few: give at least {2 * EVERY}.")
    known = None if labels is None else _labels(np.asarray(labels), len(images))
    n_classes = None if known is None else int(known.max()) + 1  # a split may lack the last of them
    # Of all images and labels, in both parts: another test image, or a mended label, makes other scores.
    checksums = {"images": _digest(images)} | ({} if known is None else {"labels": _digest(known)})
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = {"train": order[len(order) // EVERY :], "test": order[: len(order) // EVERY]}
    train, test = (
        Dataset(
            name,
            split,
            images[part],
            None if known is None else known[part],
            checksums,
            n_classes,
        )
        for split, part in parts.items()
    )
    return train, test


def _labels(labels: np.ndarray, n: int) -> Int[Tensor, " n"]:
    if labels.shape != (n,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise JointVAEError(f"There must be one whole number from 0 for each of the {n} images, no other labels.")
    if labels.max() >= n:  # an identifier, most likely: the scores need a row for each class
        raise JointVAEError(f"A label is {labels.max()}, with {n} images: number the classes 0, 1, 2, and so on.")
    return torch.from_numpy(labels.astype("int64"))


def _digest(numbers: Tensor) -> str:
    return hashlib.sha256(numbers.contiguous().numpy().tobytes()).hexdigest()


def _from_array(array: np.ndarray, channels: int) -> UInt8[Tensor, "n channels h w"]:
    shape = "n x h x w" + (f" x {channels}" if channels > 1 else "")
    if array.dtype != np.uint8:
        raise JointVAEError(f"The array must hold bytes from 0 to 255 (uint8), not {array.dtype}.")
    if array.ndim == 3 and channels == 1:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] != channels:
        raise JointVAEError(f"The array must have the shape {shape}, not {' x '.join(map(str, array.shape))}.")
    if array.shape[1] != array.shape[2] or array.shape[1] == 0:
        raise JointVAEError(
            f"The images must be square, not {array.shape[1]} x {array.shape[2]} pixels: cut them first."
        )
    return torch.from_numpy(array.copy()).permute(0, 3, 1, 2)


def _from_path(path: Path, channels: int) -> UInt8[Tensor, "n channels h w"]:
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except Exception:  # whatever a damaged header provokes; it may promise more than any memory holds
            raise JointVAEError(f"{path} is missing or not an array of NumPy: save one with numpy.save.") from None
        return _from_array(array, channels)
    files = sorted(file for file in path.glob("*") if file.suffix.lower() in PICTURES) if path.is_dir() else []
    if not files:
        raise JointVAEError(f"{path} is neither a .npy file nor a folder with pictures ({', '.join(PICTURES)}).")
    pictures = [_picture(file, channels) for file in files]
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            height, width = pictures[0].shape[:2]
            raise JointVAEError(f"{file} is not {width} x {height} pixels like {files[0].name}: give all one size.")
    return _from_array(np.stack(pictures), channels)


def _picture(file: Path, channels: int) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            if image.mode != MODES[channels]:
                raise JointVAEError(
                    f"{file} has the mode {image.mode}, but {channels} channel{'s' * (channels > 1)} means "
                    f"{MODES[channels]}: convert it, or ask for other channels."
                )
            if image.width != image.height:
                raise JointVAEError(f"{file} is {image.width} x {image.height} pixels, not square: cut it first.")
            return np.asarray(ImageOps.exif_transpose(image))  # upright, as a viewer shows it
    except JointVAEError:
        raise
    except Exception:  # Pillow's decoders raise whatever a damaged or hostile file provokes
        raise JointVAEError(f"{file} is damaged or not a picture: replace it or take it out of the folder.") from None
