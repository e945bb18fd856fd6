"""Weights in and out: safetensors for our own files, and import of the authors' state dicts.

No file is ever loaded in a way that could execute code.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from jointvae.errors import JointVAEError
from jointvae.files import write_atomic
from jointvae.latents import LatentSpec
from jointvae.model import ImageShape, JointVAE


def _pack(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> bytes:
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return tensors_to_bytes(whole, metadata={"jointvae": json.dumps(metadata)})


def _unpack(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        content = path.read_bytes()
        tensors = load_tensors(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return tensors, dict(json.loads(header["__metadata__"]["jointvae"]))
    except FileNotFoundError:
        raise JointVAEError(f"There is no checkpoint at {path}.") from None
    except OSError as error:
        raise JointVAEError(f"{path} can't be read: {error.strerror or error}.") from None
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        raise damaged(path) from None


def damaged(path: Path) -> JointVAEError:
    """What to say of a checkpoint that can't be read; a state that we wrote is of no use then, another file may be."""
    ours = path.suffix == ".training"
    remedy = "delete it, then train again" if ours else "restore it, or name another file"
    return JointVAEError(f"{path} is damaged or not a checkpoint of jointvae: {remedy}.")


def save_model(path: Path, model: JointVAE, metadata: dict[str, Any] | None = None) -> None:
    """Write the weights, with the layout needed to build the model again, atomically."""
    layout = {"latents": asdict(model.spec), "image": list(model.image)}
    write_atomic(path, _pack(model.state_dict(), layout | (metadata or {})))


def load_model(path: Path) -> JointVAE:
    """The model that `save_model` wrote, on the CPU.

    Raises:
        JointVAEError: if the file is missing or damaged, or its weights do not fit the layout that it names.
    """
    tensors, metadata = _unpack(path)
    try:
        model = _build(**metadata)
    except (KeyError, TypeError, RuntimeError):
        raise JointVAEError(f"{path} does not say what model it holds: restore it, or name another file.") from None
    _load_weights(model, tensors, path)
    return model


def _build(latents: Any, image: Any, **rest: Any) -> JointVAE:
    """The model of a layout that may be anything; whole numbers alone reach the layers."""
    if not all(type(size) is int for size in (latents["z"], *latents["c"], *image)):
        raise TypeError("a size is no whole number")
    return JointVAE(LatentSpec(latents["z"], tuple(latents["c"])), ImageShape(*image))


def _load_weights(model: JointVAE, tensors: dict[str, Tensor], path: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        odd = sorted(name for name in expected | found if expected.get(name) != found.get(name))[0]
        raise JointVAEError(
            f"{path} holds a model of another architecture: {odd} is {found.get(odd, 'absent')}, "
            f"expected {expected.get(odd, 'absent')}."
        )
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise JointVAEError(f"{path} holds no weights: {name} is of the type {tensor.dtype}.")
        if not tensor.isfinite().all():
            raise JointVAEError(f"{path} holds weights that are not finite, in {name}: train again.")
    model.load_state_dict(tensors)


def save_training(
    path: Path,
    model: JointVAE,
    optimizer: torch.optim.Optimizer,
    noise: torch.Generator,
    state: dict[str, Any],
) -> None:
    """Write the whole state of a training run, atomically."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    tensors["noise"] = noise.get_state()
    write_atomic(path, _pack(tensors, state))


def load_training(
    path: Path,
    model: JointVAE,
    optimizer: torch.optim.Optimizer,
    noise: torch.Generator,
    config: dict[str, Any],
) -> dict[str, Any]:
    """Restore a training run in place and return the rest of its state.

    Raises:
        JointVAEError: if the file is damaged, or was written by a run with another config.
    """
    tensors, state = _unpack(path)
    if state.get("config") != json.loads(json.dumps(config)):
        raise JointVAEError(f"{path} belongs to a run with another config: delete it, or choose another folder.")
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    _load_weights(model, weights, path)
    if "noise" in tensors and tensors["noise"].shape != noise.get_state().shape:  # each kind of device has its own
        raise JointVAEError(
            f"{path} was begun on another kind of device: go on there (--device), or choose another folder."
        )
    try:
        _load_optimizer(optimizer, model, tensors)
        noise.set_state(tensors["noise"])
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError):
        raise damaged(path) from None
    return state


def _load_optimizer(optimizer: torch.optim.Optimizer, model: JointVAE, tensors: dict[str, Tensor]) -> None:
    parameters = list(model.parameters())
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".")
            if not tensor.is_floating_point():
                raise TypeError(f"{name} is of the type {tensor.dtype}")
            # The fused Adam walks parameter and moments through memory together, so both need the same strides.
            like = parameters[int(index)] if moment != "step" else tensor
            moments.setdefault(int(index), {})[moment] = torch.empty_like(like, requires_grad=False).copy_(tensor)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def load_authors(path: Path) -> JointVAE:
    """A model that the paper's author published, from its state dict (`model.pt`, or the folder that holds it).

    The layout is read off the shapes, so any of the published models loads: 32 or 64 pixels, one or three channels,
    any number of discrete latents, or none, or no continuous one.

    Raises:
        JointVAEError: if the file is missing, would execute code, or is no such state dict.
    """
    file = path / "model.pt" if path.is_dir() else path
    try:
        theirs = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise JointVAEError(f"There is no checkpoint at {file}.") from None
    except Exception:  # the unpickler raises whatever a damaged or hostile file provokes
        raise JointVAEError(f"{file} is damaged or is not a plain state dict, so it was not loaded.") from None
    try:
        _check_size(theirs, file)
        model, ours = _translate(theirs)
        _load_weights(model, ours, file)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError, RuntimeError):
        raise JointVAEError(f"{file} holds a model of another architecture than the paper's.") from None
    return model


def _check_size(theirs: dict[str, Tensor], file: Path) -> None:
    if sum(tensor.nbytes for tensor in theirs.values()) > file.stat().st_size:
        raise ValueError("a view that repeats its few numbers: whoever copies it needs more memory than the file")


def _translate(theirs: dict[str, Tensor]) -> tuple[JointVAE, dict[str, Tensor]]:
    """Our model for their state dict, and their weights under our names."""
    heads = [name for name in ("fc_mean", "fc_log_var") if f"{name}.weight" in theirs]
    units = sum(name.startswith("fc_alphas.") and name.endswith(".weight") for name in theirs)
    discrete = [f"fc_alphas.{i}" for i in range(units)]
    convolutional = sum(name.startswith("img_to_features.") and name.endswith(".weight") for name in theirs)
    spec = LatentSpec(
        len(theirs["fc_mean.weight"]) if heads else 0, tuple(len(theirs[f"{name}.weight"]) for name in discrete)
    )
    image = ImageShape(theirs["img_to_features.0.weight"].shape[1], 64 if convolutional == 4 else 32)
    ours = {}
    for name, tensor in theirs.items():
        layer, _, rest = name.partition(".")
        if layer == "img_to_features":
            ours[f"encoder.0.{rest}"] = tensor
        elif layer == "features_to_hidden":
            ours[f"encoder.2.{rest.partition('.')[2]}"] = tensor
        elif layer == "latent_to_features":
            ours[f"decoder.{rest}"] = tensor
        elif layer == "features_to_img":
            ours[f"decoder.5.{rest}"] = tensor
        elif not layer.startswith("fc_"):
            raise KeyError(name)
    for part in ("weight", "bias"):
        ours[f"head.{part}"] = torch.cat([theirs[f"{name}.{part}"] for name in heads + discrete])
    return JointVAE(spec, image), ours
