"""A trained model for other programs: one script for the browser, two ONNX files, and a picture of all its latents.

The script NAME.js needs no fetch, so a page loads it by a <script> tag even from the disk. It registers one JSON object
(`browser_model`) whose weights are base85, in the alphabet of Python's b85encode. Small layers keep their float32, the
others take 16 bits a number: a step count, times a scale that each output channel has for itself. That keeps about five
digits, which float16 would not, and the whole below 2 MiB. (The layer that reads z and c is one of the small ones: a
few large weights there would cost the others their digits.)
"""

import base64
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from jointvae import checkpoints, data, results
from jointvae.errors import JointVAEError
from jointvae.evaluation import ACTIVE, one_to_one
from jointvae.files import check_name, sha256, write_atomic
from jointvae.model import FEATURES, JointVAE
from jointvae.names import name_units
from jointvae.onnx_graph import onnx_bytes
from jointvae.results import Record
from jointvae.traversals import sheet

FORMAT = 1  # of NAME.js; the explorer refuses others
LIMIT = 2 * 1024**2  # bytes of NAME.js
STEPS = 32767  # the largest 16-bit step count
SMALL = 10_000  # weights; a layer up to this size keeps its float32
TITLES = {"mnist": "MNIST", "fashion": "FashionMNIST", "digits": "the small digits"}
PER_CLASS = 5  # test images that go with the model
PREFIX = "(window.jointvaeModels=window.jointvaeModels||{})"


def export(path: Path, out: Path, name: str | None = None, record: Path | None = None) -> list[Path]:
    """Write NAME.js, NAME.png, NAME-encoder.onnx and NAME-decoder.onnx into `out`, and return their paths.

    Args:
        path: the weights, a .safetensors file of ours.
        out: the folder, made if it is missing.
        name: of the files; else that of the weights.
        record: of the run that made the weights; else the .json file beside them, if there is one. With it the browser
            gets divergences, matched classes and test images.

    Raises:
        JointVAEError: if an input is missing, damaged, of another model, or the result would be too large. All is
            computed before the first file is written.
    """
    name = path.stem if name is None else name
    check_name(name)
    if out.exists() and not out.is_dir():
        raise JointVAEError(f"{out} is a file: name a folder with --out.")
    model = checkpoints.load_model(path)
    run = _record(path, record)
    files = browser_files(model, name, run) | {
        f"{name}-encoder.onnx": onnx_bytes(model, "encoder"),
        f"{name}-decoder.onnx": onnx_bytes(model, "decoder"),
    }
    for file, content in files.items():
        write_atomic(out / file, content)
    return [out / file for file in files]


def _record(path: Path, given: Path | None) -> Record | None:
    beside = path.with_suffix(".json")
    if given is None and not beside.exists():
        return None
    record: Record = results.read(given or beside)
    if record.checkpoint is None or record.checkpoint.sha256 != sha256(path):
        raise JointVAEError(f"{given or beside} is not the record of {path}: name the right one with --record.")
    return record


def browser_files(model: JointVAE, name: str, record: Record | None) -> dict[str, bytes]:
    """What a page needs: NAME.js, and the picture NAME.png that stands there without JavaScript.

    Raises:
        JointVAEError: if the model is too large for a page.
    """
    script = browser_script(name, browser_model(model, name, record))
    if len(script) > LIMIT:
        raise JointVAEError(f"{name}.js would take {len(script):,} bytes; a page should not load more than {LIMIT:,}.")
    return {f"{name}.js": script, f"{name}.png": picture(model, divergences(record))}


def browser_script(name: str, content: dict[str, Any]) -> bytes:
    """The script that registers a model under its name in `window.jointvaeModels`."""
    return f"{PREFIX}[{json.dumps(name)}]={json.dumps(content, separators=(',', ':'))};\n".encode()


def picture(model: JointVAE, kl_z: list[float] | None) -> bytes:
    """A PNG of all latents: a row per discrete unit, then a row per unit of z, the most used first, unused left out."""
    from torchvision.utils import make_grid, save_image  # its import takes a second

    rows, units = sheet(model), len(model.spec.c)
    shown = list(range(units)) + [units + unit for unit in used_units(model, kl_z)]
    image = io.BytesIO()
    save_image(make_grid(rows[shown].flatten(0, 1), nrow=rows.shape[1], padding=1, pad_value=0.5), image, "png")
    return image.getvalue()


def used_units(model: JointVAE, kl_z: list[float] | None) -> list[int]:
    """The units of z that carry something, by falling divergence; all of them where that leaves no latent to show."""
    if kl_z is None or not (model.spec.c or max(kl_z, default=0) >= ACTIVE):
        return list(range(model.spec.z))
    return [unit for unit in sorted(range(model.spec.z), key=lambda unit: -kl_z[unit]) if kl_z[unit] >= ACTIVE]


def divergences(record: Record | None) -> list[float] | None:
    """KL of each unit of z on the test set, in nats; None where it is not known."""
    return record.test.kl_z if record and record.test else None


def browser_model(model: JointVAE, name: str, record: Record | None) -> dict[str, Any]:
    """What the script registers, as plain JSON.

    `layers` lists each layer of encoder and decoder in order: its shape (…, in, out) and whether its weights are exact.
    `weights` holds for each in turn the biases, then the weights, both float32, if it is exact; else the biases and the
    scales, both float32, and the step counts, int16. All is little-endian, and every layer is padded to four bytes;
    `crc32` is of these bytes.
    """
    layers = [*browser_layers(model)]
    packed = b"".join(pack(weight, bias) for _, _, weight, bias in layers)
    dataset = record.config.dataset if record else None
    kl_z = divergences(record)
    return {
        "format": FORMAT,
        "name": name,
        "title": TITLES.get(dataset or "", name),
        "run": record.name if record else None,
        "image": {"channels": model.image.channels, "size": model.image.size},
        "z": [
            {"name": unit.name, "low": unit.low, "high": unit.high, "kl": kl_z[j] if kl_z else None}
            for j, unit in enumerate(name_units(model))
        ],
        "used": ACTIVE,
        "c": categories(model, record),
        "digits": dataset in ("mnist", "digits"),
        "layers": [
            {"part": part, "kind": kind, "shape": list(weight.shape), "exact": weight.size <= SMALL}
            for part, kind, weight, _ in layers
        ],
        "weights": base64.b85encode(packed).decode(),
        "crc32": zlib.crc32(packed),
        "tests": test_images(model, dataset),
    }


def categories(model: JointVAE, record: Record | None) -> list[dict[str, Any]]:
    """For each discrete unit its divergence, and what the record says of its categories.

    `commonest` is the class that most test images of a category have: several categories may share one. `matched` is
    its class in the best one-to-one match, as the recorded accuracy has it. Both are null where nothing is known; only
    the unit that the scores belong to has them. `order` lists the categories by their commonest class.
    """
    test = record.test if record else None
    units = []
    for i, n in enumerate(model.spec.c):
        commonest: list[str | None] = [None] * n
        matched, order = list(commonest), list(range(n))
        if record and test and test.confusion is not None and test.unit == i:
            confusion = np.array(test.confusion)
            names = data.CLASSES.get(record.config.dataset) or [str(label) for label in range(len(confusion))]
            match, most = one_to_one(confusion)[1], confusion.argmax(axis=0)
            commonest = [names[most[k]] if confusion[:, k].any() else None for k in range(n)]
            matched = [names[match[k]] if k in match else None for k in range(n)]
            order.sort(key=lambda k: (most[k], -confusion[most[k], k]))
        units.append({"kl": test.kl_c[i] if test else None, "commonest": commonest, "matched": matched, "order": order})
    return units


def test_images(model: JointVAE, dataset: str | None) -> dict[str, Any] | None:
    """The first test images of each class in turn, as bytes in base85; None where the data set is unknown or not here.

    Nothing is downloaded for it: the book must build without.
    """
    if dataset not in data.DATASETS or model.image.channels != 1:
        return None
    if dataset in data.FOLDERS and data.folder(dataset) is None:
        return None
    found = data.load(dataset, "test", model.image.size)
    assert found.labels is not None, "the data sets of the package have labels"
    labels = found.labels.numpy()
    order = np.stack([np.flatnonzero(labels == k)[:PER_CLASS] for k in range(len(found.classes))], 1).flatten()
    return {
        "labels": [found.classes[label] for label in labels[order]],
        "pixels": base64.b85encode(found.images[torch.from_numpy(order)].numpy().tobytes()).decode(),
    }


def pack(weight: Float[np.ndarray, "*rest out"], bias: Float[np.ndarray, " out"]) -> bytes:
    """Biases and weights of one layer as bytes, exactly if it is small.

    Else weight = scale of the output channel times step count, and its error is at most half a scale, which is the
    largest weight of its channel over 65,534.
    """
    biases = bias.astype("<f4").tobytes()
    if weight.size <= SMALL:
        return biases + weight.astype("<f4").tobytes()
    scale, steps = quantise(weight)
    block = biases + scale.astype("<f4").tobytes() + steps.astype("<i2").tobytes()
    return block + b"\0" * (-len(block) % 4)


def quantise(weight: Float[np.ndarray, "*rest out"]) -> tuple[Float[np.ndarray, " out"], Int[np.ndarray, "*rest out"]]:
    """The scale of each output channel, and step counts from -32767 to 32767."""
    largest = np.abs(weight).max(axis=tuple(range(weight.ndim - 1)))
    scale = np.where(largest > 0, largest / STEPS, 1.0).astype(np.float32)
    return scale, np.rint(weight / scale).astype(np.int16)


def browser_layers(model: JointVAE) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Part, kind, weights (…, in, out) and biases of each layer, for images with the channels last.

    So every kind is one loop: for each input that is not zero, add its row of weights to the outputs. The features are
    flattened with the channels last too, and the two layers beside them have their rows and columns in that order.
    """
    channels, height, width = FEATURES
    order = torch.arange(channels * height * width).view(channels, height, width).permute(1, 2, 0).flatten()
    for part, stack in (("encoder", [model.encoder, model.head]), ("decoder", [model.decoder])):
        for layer in (module for root in stack for module in root.modules()):
            if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                continue
            assert layer.bias is not None, "every layer of the model has biases"
            weight, bias = layer.weight.detach().cpu(), layer.bias.detach().cpu()
            if isinstance(layer, nn.ConvTranspose2d):
                kind, weight = "up", weight.permute(2, 3, 0, 1)
            elif isinstance(layer, nn.Conv2d):
                kind, weight = "down", weight.permute(2, 3, 1, 0)
            else:
                kind, weight = "dense", weight.T
                if part == "encoder" and len(weight) == len(order):
                    weight = weight[order]
                if part == "decoder" and weight.shape[1] == len(order):
                    weight, bias = weight[:, order], bias[order]
            yield part, kind, weight.numpy(), bias.numpy()
