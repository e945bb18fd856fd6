"""The architecture: shapes, size, and the fast convolutions against torch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jointvae.errors import JointVAEError
from jointvae.latents import LatentSpec
from jointvae.model import ImageShape, JointVAE, TransposedConvolution

LAYOUTS = [LatentSpec(10, (10,)), LatentSpec(32, (2, 2, 2)), LatentSpec(0, (10, 3)), LatentSpec(6, ())]


@pytest.mark.parametrize("spec", LAYOUTS, ids=str)
@pytest.mark.parametrize("image", [ImageShape(1, 32), ImageShape(3, 32), ImageShape(1, 64), ImageShape(3, 64)], ids=str)
def test_there_and_back(spec, image, generator):
    model = JointVAE(spec, image)
    x = torch.rand(2, image.channels, image.size, image.size, generator=generator)
    q = model.encode(x)
    assert model.decode(q.sample(generator, 0.67)).shape == x.shape
    assert model.decode(q.mode()).shape == x.shape


def test_number_of_weights_is_the_papers():
    # 4 x 4 convolutions 1-32-64-64, 1024-256, heads 256-(10+10+10), 20-256-1024, transposed 64-32-32-1; with biases.
    conv = 16 * (1 * 32 + 32 * 64 + 64 * 64) + 32 + 64 + 64
    dense = (1024 + 1) * 256 + (256 + 1) * 30 + (20 + 1) * 256 + (256 + 1) * 1024
    up = 16 * (64 * 32 + 32 * 32 + 32 * 1) + 32 + 32 + 1
    assert sum(p.numel() for p in JointVAE(LatentSpec()).parameters()) == conv + dense + up


@pytest.mark.parametrize("image", [ImageShape(1, 28), ImageShape(1, 128), ImageShape(2, 32)], ids=str)
def test_other_images_are_refused(image):
    with pytest.raises(JointVAEError, match="architecture takes"):
        JointVAE(LatentSpec(), image)


@pytest.mark.parametrize("channels", [(32, 1), (32, 3), (64, 32), (32, 32)])
def test_fast_convolution_equals_torchs(channels, generator):
    torch.manual_seed(0)
    ours = TransposedConvolution(*channels).double()
    theirs = nn.ConvTranspose2d(*channels, 4, stride=2, padding=1).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, channels[0], 16, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    found, expected = ours(x), theirs(x)
    assert torch.allclose(found, expected, atol=1e-12)
    for layer, y in ((ours, found), (theirs, expected)):
        layer.grads = torch.autograd.grad(y.square().sum(), [x, layer.weight, layer.bias])
    for a, b in zip(ours.grads, theirs.grads, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_on_other_devices_pytorch_computes_the_convolution(monkeypatch):
    monkeypatch.setattr(F, "fold", lambda *_, **__: pytest.fail("fold is meant for a CPU"))
    layer = TransposedConvolution(32, 1)
    assert layer.to("meta")(torch.empty(3, 32, 16, 16, device="meta")).shape == (3, 1, 32, 32)
    with pytest.raises(pytest.fail.Exception, match="meant for a CPU"):
        TransposedConvolution(32, 1)(torch.zeros(3, 32, 16, 16))


def test_each_image_is_treated_alone(generator):
    model = JointVAE(LatentSpec())
    x = torch.rand(4, 1, 32, 32, generator=generator)
    together, alone = model.encode(x).mu, torch.cat([model.encode(image[None]).mu for image in x])
    assert torch.allclose(together, alone, atol=1e-5)
