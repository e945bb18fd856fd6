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
        return tensors, json.loads(header["__metadata__"]["jointvae"])
    except FileNotFoundError:
        raise JointVAEError(f"There is no checkpoint at {path}.") from None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        raise JointVAEError(f"{path} is damaged or not a checkpoint of jointvae: train again or delete it.") from None


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
        latents, image = metadata["latents"], metadata["image"]
        model = JointVAE(LatentSpec(latents["z"], tuple(latents["c"])), ImageShape(*image))
    except (KeyError, TypeError):
        raise JointVAEError(f"{path} does not say what model it holds: train again or delete it.") from None
    _load_weights(model, tensors, path)
    return model


def _load_weights(model: JointVAE, tensors: dict[str, Tensor], path: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        odd = sorted(name for name in expected | found if expected.get(name) != found.get(name))[0]
        raise JointVAEError(
            f"{path} holds a model of another architecture: {odd} is {found.get(odd, 'absent')}, "
            f"expected {expected.get(odd, 'absent')}."
        )
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
    parameters = list(model.parameters())
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".")
            # The fused Adam walks parameter and moments through memory together, so both need the same strides.
            like = parameters[int(index)] if moment != "step" else tensor
            moments.setdefault(int(index), {})[moment] = torch.empty_like(like, requires_grad=False).copy_(tensor)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    noise.set_state(tensors["noise"])
    return state
