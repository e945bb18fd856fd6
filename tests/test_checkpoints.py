"""Weights out and in, the authors' layout for every kind of model, and files that must be refused."""

import os
import pickle
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from jointvae import checkpoints, results, sweeps, training
from jointvae.errors import JointVAEError
from jointvae.latents import LatentSpec
from jointvae.model import ImageShape, JointVAE


def authors_layers(spec: LatentSpec, image: ImageShape) -> nn.ModuleDict:
    """A fresh model in the layout of the authors' state dicts, put together from the paper's table."""

    def conv(a, b):
        return [nn.Conv2d(a, b, 4, 2, 1), nn.ReLU()]

    def up(a, b):
        return [nn.ConvTranspose2d(a, b, 4, 2, 1), nn.ReLU()]

    large = image.size == 64
    down = conv(image.channels, 32) + (conv(32, 32) if large else []) + conv(32, 64) + conv(64, 64)
    back = (up(64, 64) if large else []) + up(64, 32) + up(32, 32) + up(32, image.channels)[:1]
    layers = nn.ModuleDict(
        {
            "img_to_features": nn.Sequential(*down),
            "features_to_hidden": nn.Sequential(nn.Linear(1024, 256), nn.ReLU()),
            "latent_to_features": nn.Sequential(nn.Linear(spec.size, 256), nn.ReLU(), nn.Linear(256, 1024), nn.ReLU()),
            "features_to_img": nn.Sequential(*back),
        }
    )
    if spec.z:
        layers.update({"fc_mean": nn.Linear(256, spec.z), "fc_log_var": nn.Linear(256, spec.z)})
    if spec.c:
        layers["fc_alphas"] = nn.ModuleList([nn.Linear(256, n) for n in spec.c])
    return layers


@pytest.mark.parametrize(
    ("spec", "image"),
    [
        (LatentSpec(10, (10,)), ImageShape(1, 32)),
        (LatentSpec(32, (10,)), ImageShape(3, 64)),
        (LatentSpec(32, (2, 2, 2)), ImageShape(1, 64)),
        (LatentSpec(6, (3,)), ImageShape(1, 64)),
        (LatentSpec(0, (10, 4)), ImageShape(3, 32)),
        (LatentSpec(7, ()), ImageShape(1, 32)),
    ],
    ids=str,
)
def test_import_of_the_authors_layout_computes_the_same(spec, image, tmp_path, generator):
    theirs = authors_layers(spec, image)
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    ours = checkpoints.load_authors(tmp_path)
    assert (ours.spec, ours.image) == (spec, image)
    x = torch.rand(2, image.channels, image.size, image.size, generator=generator)
    hidden = theirs["features_to_hidden"](theirs["img_to_features"](x).flatten(1))
    q = ours.encode(x)
    if spec.z:
        assert torch.allclose(q.mu, theirs["fc_mean"](hidden), atol=1e-5)
        assert torch.allclose(q.logvar, theirs["fc_log_var"](hidden), atol=1e-5)
    for i, logits in enumerate(q.logits):
        assert torch.allclose(logits, theirs["fc_alphas"][i](hidden), atol=1e-5)
    latent = torch.randn(2, spec.size, generator=generator)
    expected = theirs["features_to_img"](theirs["latent_to_features"](latent).view(-1, 64, 4, 4))
    assert torch.allclose(ours.decode(latent), expected, atol=1e-5)


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    for name, save in (("torch.pt", torch.save), ("plain.pt", lambda x, f: f.write_bytes(pickle.dumps(x)))):
        save({"fc_mean.weight": Trap(tmp_path / "sprung")}, tmp_path / name)
        with pytest.raises(JointVAEError, match="not loaded"):
            checkpoints.load_authors(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [{}, {"weight": torch.zeros(2)}, [1, 2], {"fc_mean.weight": torch.zeros(3, 256)}])
def test_other_state_dicts_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(JointVAEError, match="another architecture"):
        checkpoints.load_authors(tmp_path)


def test_a_state_dict_with_a_layer_of_another_size_is_refused(tmp_path):
    state = authors_layers(LatentSpec(), ImageShape()).state_dict()
    state["features_to_hidden.0.weight"] = torch.zeros(128, 1024)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(JointVAEError, match="another architecture"):
        checkpoints.load_authors(tmp_path)


def test_round_trip(tmp_path, generator):
    model = JointVAE(LatentSpec(4, (3, 5)), ImageShape(3, 64))
    checkpoints.save_model(tmp_path / "m.safetensors", model)
    again = checkpoints.load_model(tmp_path / "m.safetensors")
    x = torch.rand(1, 3, 64, 64, generator=generator)
    assert torch.equal(model.encode(x).mu, again.encode(x).mu)
    assert (again.spec, again.image) == (model.spec, model.image)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_cut_files_are_refused(tmp_path, keep):
    path = tmp_path / "m.safetensors"
    checkpoints.save_model(path, JointVAE(LatentSpec(2, (3,))))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(JointVAEError, match="damaged"):
        checkpoints.load_model(path)


def test_weights_that_do_not_fit_their_layout_are_refused(tmp_path):
    model = JointVAE(LatentSpec(2, (3,)))
    checkpoints.save_model(tmp_path / "m.safetensors", model, {"latents": {"z": 4, "c": [3]}})
    with pytest.raises(JointVAEError, match="another architecture"):
        checkpoints.load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "z", [[2] * 100_000, True, 2.0, "2", None], ids=["a long list", "bool", "float", "word", "none"]
)
def test_a_layout_of_other_things_than_whole_numbers_is_refused_at_once(tmp_path, z):
    path, spec = tmp_path / "m.safetensors", LatentSpec(2, (3,))
    checkpoints.save_model(path, JointVAE(spec), {"latents": {"z": z, "c": [3]}})
    started = time.process_time()
    with pytest.raises(JointVAEError, match="does not say what model it holds"):
        checkpoints.load_model(path)
    assert time.process_time() - started < 2


def test_missing_file(tmp_path):
    for load in (checkpoints.load_model, checkpoints.load_authors):
        with pytest.raises(JointVAEError, match="no checkpoint at"):
            load(tmp_path / "absent")


def test_training_state_of_another_config_is_refused(quick, tmp_path):
    from dataclasses import replace

    training.Trainer(quick).save(tmp_path / "state")
    with pytest.raises(JointVAEError, match="another config"):
        training.Trainer(replace(quick, tau=0.5)).resume(tmp_path / "state")


def test_a_state_from_another_kind_of_device_is_not_called_damaged(quick, tmp_path):
    path = tmp_path / "x.training"
    training.Trainer(quick).save(path)
    tensors, state = checkpoints._unpack(path)
    tensors["noise"] = torch.zeros(16, dtype=torch.uint8)  # as long as the state of a GPU's generator
    path.write_bytes(checkpoints._pack(tensors, state))
    with pytest.raises(JointVAEError, match="another kind of device"):
        training.Trainer(quick).resume(path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = JointVAE(LatentSpec(2, (3,)))
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("nan")
    checkpoints.save_model(tmp_path / "x.safetensors", model)
    with pytest.raises(JointVAEError, match="not finite"):
        checkpoints.load_model(tmp_path / "x.safetensors")


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    from jointvae.files import write_atomic

    target = tmp_path / "file"
    write_atomic(target, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(JointVAEError, match=rf"{target} can't be written \(No space"):
        write_atomic(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_bytes() == b"old"


def test_a_file_takes_its_name_when_its_bytes_have_reached_the_disk(tmp_path, monkeypatch):
    """A power cut between the two would else leave an empty file under the name; no kill can show that."""
    from jointvae import files

    order = []

    def noted(name, do):
        return lambda *given: order.append(name) or do(*given)

    for step in ("fsync", "replace"):
        monkeypatch.setattr(files.os, step, noted(step, getattr(os, step)))
    files.write_atomic(tmp_path / "file", b"content")
    assert order == ["fsync", "replace"]
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path):
    for name, read in (("m.safetensors", checkpoints.load_model), ("r.json", results.read), ("s.yml", sweeps.read)):
        path = tmp_path / name
        path.write_bytes(b"x")
        path.chmod(0)
        with pytest.raises(JointVAEError, match=rf"{name} can't be read: Permission denied\."):
            read(path)


@pytest.mark.parametrize("name", ["m.safetensors", "r.json", "s.yml"])
def test_a_folder_in_place_of_a_file_is_not_called_damaged(tmp_path, name):
    read = {"m": checkpoints.load_model, "r": results.read, "s": sweeps.read}[name[0]]
    (tmp_path / name).mkdir()
    with pytest.raises(JointVAEError, match=rf"{name} can't be read: Is a directory\."):
        read(tmp_path / name)


def test_what_is_no_checkpoint_is_not_to_be_deleted(tmp_path):
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(JointVAEError, match="restore it, or name another file"):
        checkpoints.load_model(tmp_path / "record.json")
