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


class TransposedConvolution(nn.ConvTranspose2d):
    """A 4 x 4 transposed convolution of stride 2 and padding 1: the function of nn.ConvTranspose2d, faster on a CPU.

    To the few channels of an image it is computed as it is defined: every pixel of the input paints a patch, and where
    patches overlap they add. The bias is added afterwards, since oneDNN sums its gradient number by number otherwise.
    Elsewhere PyTorch computes it: on a GPU the gradient of `fold` is one launch for every image.
    """

    bias: Tensor

    def __init__(self, width: int, channels: int) -> None:
        super().__init__(width, channels, 4, stride=2, padding=1)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "batch in h w"]
    ) -> Float[Tensor, "batch out double_h double_w"]:
        """What nn.ConvTranspose2d computes."""
        if x.device.type != "cpu":
            return super().forward(x)
        if self.out_channels in CHANNELS:
            kernel = self.weight.flatten(1).t()[:, :, None, None]
            patches = F.conv2d(x, kernel).flatten(2)
            sides = (2 * x.shape[-2], 2 * x.shape[-1])
            image = F.fold(patches, sides, kernel_size=4, stride=2, padding=1)
        else:
            image = F.conv_transpose2d(x, self.weight, stride=2, padding=1)
        # In place this would be far slower under vmap. In bfloat16 it stays in bfloat16.
        return image + self.bias.to(image.dtype)[:, None, None]


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
        layers += [TransposedConvolution(before, after), nn.ReLU(inplace=True)]
    layers.append(TransposedConvolution(widths[-1], image.channels))
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
