"""A model for the browser and for ONNX: what is in the files, how exact they are, what is refused; names of units."""

import base64
import io
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from jointvae import __main__ as cli
from jointvae import checkpoints, data, export, names, results
from jointvae.errors import JointVAEError
from jointvae.latents import LatentSpec
from jointvae.model import ImageShape, JointVAE
from jointvae.onnx_graph import onnx_bytes

RUNS = results.RESULTS / "runs"
RUN = RUNS / "mnist-seed0.safetensors"
SHAPES = [
    (LatentSpec(10, (10,)), ImageShape(1, 32)),
    (LatentSpec(3, (4, 2)), ImageShape(3, 64)),
    (LatentSpec(0, (5,)), ImageShape(1, 32)),
    (LatentSpec(4, ()), ImageShape(1, 32)),
]


def content(script: bytes) -> dict:
    """What a script registers."""
    text = script.decode()
    assert text.startswith(export.PREFIX + '["')
    return json.loads(text[text.index("=", len(export.PREFIX)) + 1 :].removesuffix(";\n"))


def layers(found: dict) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of every layer, read as the documentation of the format says."""
    packed, start, read = base64.b85decode(found["weights"]), 0, []
    assert zlib.crc32(packed) == found["crc32"]
    for layer in found["layers"]:
        shape = layer["shape"]
        size = int(np.prod(shape))
        bias = np.frombuffer(packed, "<f4", shape[-1], start)
        start += 4 * shape[-1]
        if layer["exact"]:
            weight = np.frombuffer(packed, "<f4", size, start)
            start += 4 * size
        else:
            scale = np.frombuffer(packed, "<f4", shape[-1], start)
            steps = np.frombuffer(packed, "<i2", size, start + 4 * shape[-1])
            weight = (steps.reshape(-1, shape[-1]) * scale).ravel()
            start += 4 * shape[-1] + 2 * size
            start += -start % 4
        read.append((weight.reshape(shape), bias))
    assert start == len(packed)
    return read


@pytest.fixture(scope="module")
def exported() -> dict:
    record = results.read(RUN.with_suffix(".json"))
    files = export.browser_files(checkpoints.load_model(RUN), "mnist", record)
    return {"files": files, "record": record, "found": content(files["mnist.js"])}


def test_the_script_holds_the_model_and_what_the_record_says(exported):
    found, test = exported["found"], exported["record"].test
    assert (found["format"], found["name"], found["run"]) == (1, "mnist", "mnist-seed0")
    assert found["image"] == {"channels": 1, "size": 32}
    assert [unit["kl"] for unit in found["z"]] == test.kl_z
    (unit,) = found["c"]
    assert unit["kl"] == test.kl_c[0]
    assert sorted(unit["order"]) == list(range(10))
    confusion = np.array(test.confusion)
    assert unit["commonest"] == [str(k) for k in confusion.argmax(axis=0)]
    matched = [int(label) for label in unit["matched"]]
    assert confusion[matched, range(10)].sum() / confusion.sum() == pytest.approx(test.accuracy)


def test_a_category_without_an_image_has_no_class():
    path = RUNS / "fashion-seed0.safetensors"
    record = results.read(path.with_suffix(".json"))
    (unit,) = export.categories(checkpoints.load_model(path), record)
    used = np.array(record.test.confusion).any(axis=0)
    assert [label is not None for label in unit["commonest"]] == used.tolist()


def test_sizes(exported, monkeypatch):
    assert len(exported["files"]["mnist.js"]) < export.LIMIT
    assert len(exported["files"]["mnist.png"]) < 300 * 1024
    monkeypatch.setattr(export, "name_units", lambda model: [names.UnitName("z")] * model.spec.z)  # that takes seconds
    large = JointVAE(LatentSpec(32, (10, 10)), ImageShape(3, 64))
    assert len(export.browser_files(large, "large", None)["large.js"]) < export.LIMIT


def test_equal_input_gives_equal_bytes(exported):
    again = export.browser_files(checkpoints.load_model(RUN), "mnist", exported["record"])
    assert again == exported["files"]
    model = checkpoints.load_model(RUN)
    assert onnx_bytes(model, "decoder") == onnx_bytes(model, "decoder")


def test_weights_survive_in_16_bits(exported):
    read = layers(exported["found"])
    for (weight, bias), (_, _, before, exact) in zip(
        read, export.browser_layers(checkpoints.load_model(RUN)), strict=True
    ):
        largest = np.abs(before).max(axis=tuple(range(before.ndim - 1)))
        allowed = 0 if before.size <= export.SMALL else 0.51 * largest / export.STEPS
        assert (np.abs(weight - before) <= allowed).all()
        assert np.array_equal(bias, exact)


def test_a_channel_of_zeros_stays_zero():
    scale, steps = export.quantise(np.array([[0.0, 2.0], [0.0, -1.0]], dtype=np.float32))
    assert (scale > 0).all()
    assert steps.tolist() == [[0, export.STEPS], [0, -round(export.STEPS / 2)]]


def test_the_picture_has_a_row_for_each_latent_that_is_used(exported):
    kl_z = exported["record"].test.kl_z
    rows = 1 + sum(kl >= export.ACTIVE for kl in kl_z)
    with Image.open(io.BytesIO(exported["files"]["mnist.png"])) as image:
        assert image.size == (10 * 33 + 1, rows * 33 + 1)
    model = JointVAE(LatentSpec(3, (4,)))
    assert export.used_units(model, [0.2, 0.05, 3.0]) == [2, 0]
    assert export.used_units(model, None) == [0, 1, 2]


def test_images_to_encode_come_from_data_that_are_here(monkeypatch, tmp_path):
    model = JointVAE(LatentSpec())
    found = export.test_images(model, "digits")
    assert found["labels"][:10] == [str(k) for k in range(10)]
    assert len(base64.b85decode(found["pixels"])) == 50 * 32 * 32
    assert export.test_images(model, None) is None
    assert export.test_images(model, "of my own") is None
    monkeypatch.setattr(data, "DATA", tmp_path)
    monkeypatch.setenv("JOINTVAE_DATA", str(tmp_path))
    monkeypatch.setattr(data, "_download", lambda name: pytest.fail("nothing may be downloaded"))
    assert export.test_images(model, "mnist") is None


@pytest.mark.parametrize(("spec", "image"), SHAPES, ids=str)
@torch.no_grad()
def test_onnx_computes_what_torch_does(spec, image, generator):
    model = JointVAE(spec, image)
    x = torch.rand(3, image.channels, image.size, image.size, generator=generator)
    q = model.encode(x)
    session = onnxruntime.InferenceSession(onnx_bytes(model, "encoder"), providers=["CPUExecutionProvider"])
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": x.numpy()}), strict=True))
    expected = {"mu": q.mu, "logvar": q.logvar} if spec.z else {}
    expected |= {f"probs_{i + 1}": logits.softmax(-1) for i, logits in enumerate(q.logits)}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.allclose(found[name], value.numpy(), atol=1e-5), name
    latent = q.mode()
    session = onnxruntime.InferenceSession(onnx_bytes(model, "decoder"), providers=["CPUExecutionProvider"])
    (images,) = session.run(None, {"latent": latent.numpy()})
    assert np.allclose(images, model.decode(latent).sigmoid().numpy(), atol=1e-5)


class TestCommand:
    @pytest.fixture
    def weights(self, tmp_path) -> Path:
        path = tmp_path / "tiny.safetensors"
        checkpoints.save_model(path, JointVAE(LatentSpec(2, (3,))))
        return path

    def test_it_writes_four_files(self, weights, tmp_path, capsys):
        assert cli.main(["export", str(weights), "--out", str(tmp_path / "out"), "--name", "mine"]) == 0
        written = {path.name for path in (tmp_path / "out").iterdir()}
        assert written == {"mine.js", "mine.png", "mine-encoder.onnx", "mine-decoder.onnx"}
        assert "mine.js" in capsys.readouterr().out
        found = content((tmp_path / "out/mine.js").read_bytes())
        assert [unit["kl"] for unit in found["z"]] == [None, None]
        assert found["tests"] is None

    def test_the_record_beside_the_weights_is_found(self, tmp_path):
        for suffix in (".safetensors", ".json"):
            shutil.copy(RUN.with_suffix(suffix), tmp_path)
        export.export(tmp_path / RUN.name, tmp_path)
        assert content((tmp_path / "mnist-seed0.js").read_bytes())["run"] == "mnist-seed0"

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (["--name", "../mine"], "letters, digits"),
            (["--record", "absent.json"], "no results file"),
            (["--record", str(RUN.with_suffix(".json"))], "not the record of"),
            (["--record", str(RUN)], "not readable JSON"),
        ],
    )
    def test_bad_input_is_refused_in_one_sentence(self, weights, tmp_path, capsys, options, sentence):
        out = tmp_path / "out"
        assert cli.main(["export", str(weights), "--out", str(out), *options]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1
        assert not out.exists()

    def test_missing_and_damaged_weights(self, weights, tmp_path, capsys):
        assert cli.main(["export", str(tmp_path / "absent.safetensors"), "--out", str(tmp_path / "out")]) == 2
        weights.write_bytes(weights.read_bytes()[:-5])
        assert cli.main(["export", str(weights), "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.count("\n") == 2
        assert not (tmp_path / "out").exists()

    def test_a_file_where_the_folder_should_be(self, weights):
        with pytest.raises(JointVAEError, match="is a file"):
            export.export(weights, weights)

    def test_too_large_for_a_page(self, weights, tmp_path, monkeypatch):
        monkeypatch.setattr(export, "LIMIT", 1000)
        with pytest.raises(JointVAEError, match="should not load more"):
            export.export(weights, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class Painter(JointVAE):
    """A decoder that draws an upright bar: z1 shears it, z2 widens it, z3 darkens it, z4 does nothing."""

    def decode(self, latent):
        side = self.image.size
        y, x = torch.meshgrid(torch.arange(side) - 15.5, torch.arange(side) - 15.5, indexing="ij")
        shear, wide, dark = (latent[:, j, None, None] for j in range(3))
        inside = (x + 0.25 * shear * y).abs() < 3 + wide
        light = torch.where(inside & (y.abs() < 10), 0.5 - 0.15 * dark, 0.001)
        return light.clamp(0.001, 0.999).logit()[:, None]


class TestNames:
    def test_units_are_named_by_what_they_do(self):
        found = names.name_units(Painter(LatentSpec(4, (2,))))
        assert found[0] == names.UnitName("slant", "leans left", "leans right")
        assert found[1].low in ("narrow", "thin")
        assert found[1].high in ("wide", "thick")
        assert found[2] == names.UnitName("brightness", "bright", "dark")
        assert found[3] == names.UnitName("z4")

    def test_a_model_none_of_whose_units_is_used_shows_them_all(self):
        assert export.used_units(JointVAE(LatentSpec(2, ())), [0.0, 0.0]) == [0, 1]
        assert export.used_units(JointVAE(LatentSpec(2, (3,))), [0.0, 0.0]) == []

    def test_without_c_and_without_z(self):
        assert names.name_units(Painter(LatentSpec(4, ())))[0].name == "slant"
        assert names.name_units(JointVAE(LatentSpec(0, (3,)))) == []

    def test_statistics_of_made_images(self):
        images = torch.zeros(4, 1, 32, 32)
        images[0, 0, 6:26, 14:18] = 1  # a bar, 20 high and 4 wide
        images[1, 0, 6:26, 12:20] = 0.5  # twice as wide, half as bright
        for row in range(20):
            images[2, 0, 6 + row, 24 - row : 28 - row] = 1  # 45 degrees, leaning right
        found = names.statistics(images)
        assert found.keys() == names.ENDS.keys()
        assert torch.allclose(found["brightness"][:2], torch.tensor(80 / 1024))
        assert torch.allclose(found["height"][:2], torch.tensor((20**2 - 1) / 12).sqrt())
        assert torch.allclose(found["width"][:2], (torch.tensor([4.0**2, 8.0**2]) - 1).div(12).sqrt())
        assert torch.allclose(found["thickness"][:2], 2 * torch.tensor([80 / 48, 160 / 56]))
        assert torch.allclose(found["slant"], torch.tensor([0.0, 0.0, 1.0, 0.0]), atol=1e-5)
        assert all(float(numbers[3]) == 0 for numbers in found.values())
