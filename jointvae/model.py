"""The paper's encoder and decoder (Dupont 2018, appendix), for images of 32 x 32 or 64 x 64 pixels.

The encoder is a stack of 4 x 4 convolutions with stride 2 and a hidden layer of 256 units; one linear head emits the
parameters of all latents at once. The decoder mirrors it and returns logits of the pixels, never probabilities.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jointvae.errors import JointVAEError
from jointvae.latents import LatentSpec, Posterior

IMAGE_SIZES = (32, 64)
CHANNELS = (1, 3)
HIDDEN = 256
FEATURES = (64, 4, 4)  # what the last convolution leaves, whatever the image size


class ImageShape(NamedTuple):
    """Channels and side length of the (square) images, in pixels."""

    channels: int = 1
    size: int = 32

    def check(self) -> None:
        """Whether the architecture can take such images.

        Raises:
            JointVAEError: if it can't.
        """
        if self.size not in IMAGE_SIZES:
            raise JointVAEError(f"The architecture takes images of 32 x 32 or 64 x 64 pixels, not {self.size}.")
        if self.channels not in CHANNELS:
            raise JointVAEError(f"The architecture takes images of 1 or 3 channels, not {self.channels}.")


GREY_32 = ImageShape()


class SubPixelConvTranspose2d(nn.ConvTranspose2d):
    """A 4 x 4 transposed convolution of stride 2, as a plain one and a rearrangement (Shi et al. 2016).

    Every two pixels of the output, along each axis, read the same two pixels of the input. So a 2 x 2 convolution with
    four times the channels computes them all. For the few channels of an image that is faster than nn.ConvTranspose2d.
    """

    bias: Tensor

    def __init__(self, width: int, channels: int) -> None:
        super().__init__(width, channels, 4, stride=2, padding=1)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "batch in h w"]
    ) -> Float[Tensor, "batch out double_h double_w"]:
        """What nn.ConvTranspose2d computes."""
        width, channels = self.weight.shape[:2]
        # Row 2 s + a of the kernel takes input pixel 1 - s of a pair to output pixel a of the pair that it makes.
        taps = self.weight.view(width, channels, 2, 2, 2, 2).flip(2, 4)  # (in, out, s, a, s', a')
        kernel = taps.permute(1, 3, 5, 0, 2, 4).reshape(4 * channels, width, 2, 2)
        image = F.pixel_shuffle(F.conv2d(x, kernel, self.bias.repeat_interleave(4), padding=1), 2)
        return image[..., 1:-1, 1:-1]  # the padding made pairs that lie half outside the image


def convolutions(image: ImageShape) -> nn.Sequential:
    """Image to 64 x 4 x 4 features; images of 64 x 64 pixels get one more layer (Dupont 2018, appendix)."""
    widths = [image.channels, *([32, 32, 64, 64] if image.size == 64 else [32, 64, 64])]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def transposed_convolutions(image: ImageShape) -> nn.Sequential:
    """64 x 4 x 4 features to the logits of an image."""
    widths = [64, 64, 32, 32] if image.size == 64 else [64, 32, 32]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
    layers.append(SubPixelConvTranspose2d(widths[-1], image.channels))
    return nn.Sequential(*layers)


class JointVAE(nn.Module):
    """The paper's variational autoencoder with a joint latent (z, c).

    Args:
        spec: the layout of the latents.
        image: channels and side of the images.

    Raises:
        JointVAEError: if the architecture has no version for such images.
    """

    def __init__(self, spec: LatentSpec, image: ImageShape = GREY_32) -> None:
        super().__init__()
        image.check()
        self.spec, self.image = spec, image
        features = FEATURES[0] * FEATURES[1] * FEATURES[2]
        self.encoder = nn.Sequential(
            convolutions(image), nn.Flatten(), nn.Linear(features, HIDDEN), nn.ReLU(inplace=True)
        )  # fmt: skip
        self.head = nn.Linear(HIDDEN, spec.n_parameters)
        self.decoder = nn.Sequential(
            nn.Linear(spec.size, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, features),
            nn.ReLU(inplace=True),
            nn.Unflatten(1, FEATURES),
            transposed_convolutions(image),
        )
        self.to(memory_format=torch.channels_last)

    def encode(self, x: Float[Tensor, "batch channels side side"]) -> Posterior:
        """q(z, c | x) for images with values in [0, 1]."""
        return Posterior.from_parameters(_not_halved(self.head(self.encoder(x))), self.spec)

    def decode(self, latent: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels side side"]:
        """Logits of the pixels of p(x | z, c); their sigmoid is the mean image."""
        return _not_halved(self.decoder(latent))


def _not_halved(out: Tensor) -> Tensor:
    """What the layers computed in half the bits goes on in float32; other types stay as they are."""
    return out.float() if out.dtype == torch.bfloat16 else out
