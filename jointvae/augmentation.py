"""Light random affine maps of images: a turn, a shear, a change of scale, a shift.

What such a map changes is continuous, and it leaves the kind of thing that is shown. So a latent that is read from
mapped images learns to say nothing about it. The maps of a step are a pure function of the seed and the step, so they
need no saving.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from jointvae.errors import JointVAEError


@dataclass(frozen=True)
class Affine:
    """The largest turn, shear, change of scale and shift; each is drawn uniformly up to it, in both directions.

    A shift of 2 is the side of the image. Places that a map brings in from outside the image are black.

    Raises:
        JointVAEError: if one of them is negative or not finite, or the scale could turn an image inside out.
    """

    degrees: float = 10.0
    shear: float = 0.2
    scale: float = 0.1
    shift: float = 0.1

    def __post_init__(self) -> None:
        for name, largest in asdict(self).items():
            if not 0 <= largest < math.inf:
                raise JointVAEError(f"The largest {name} of a map must be a number from zero, not {largest}.")
        if self.scale >= 1:
            raise JointVAEError(f"The largest change of scale must be below 1, not {self.scale}.")

    def __call__(
        self, x: Float[Tensor, "batch channels side side"], uniform: Float[Tensor, "6 batch"]
    ) -> Float[Tensor, "batch channels side side"]:
        """Every image under a map of its own: a rotation of a shear of a change of scale, then the shift.

        Args:
            x: images in [0, 1].
            uniform: six numbers in [-1, 1] for each image, on its device.
        """
        angle, shear = math.radians(self.degrees) * uniform[0], self.shear * uniform[1]
        across, down = 1 + self.scale * uniform[2], 1 + self.scale * uniform[3]
        cos, sin = angle.cos(), angle.sin()
        maps = torch.stack(
            [
                torch.stack([cos * across, (cos * shear - sin) * down, self.shift * uniform[4]], dim=-1),
                torch.stack([sin * across, (sin * shear + cos) * down, self.shift * uniform[5]], dim=-1),
            ],
            dim=1,
        )
        places = F.affine_grid(maps, list(x.shape), align_corners=False)
        return F.grid_sample(x, places, align_corners=False)


def draw(seed: int, step: int, batch: int) -> Float[Tensor, "6 batch"]:
    """The random numbers that a step's maps are made of, in [-1, 1], on the CPU.

    The seed and the step are mixed into one number first: torch's generator on the CPU heeds no more than 32 bits.
    """
    mixed = int(np.random.SeedSequence([seed, step, 1]).generate_state(1)[0])
    return 2 * torch.rand(6, batch, generator=torch.Generator().manual_seed(mixed)) - 1
