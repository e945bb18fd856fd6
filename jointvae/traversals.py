"""Images that show what a latent does: one unit moves, the others stay. And a film of them over the training."""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from jointvae.files import write_atomic
from jointvae.model import JointVAE

SHEET_COLUMNS = 10


@torch.no_grad()
def decode_images(model: JointVAE, latents: Float[Tensor, "n latent"]) -> Float[Tensor, "n channels side side"]:
    """The mean images of p(x | z, c), with values in [0, 1]."""
    device = next(model.parameters()).device
    return model.decode(latents.to(device)).sigmoid().cpu()


def one_hot_codes(model: JointVAE, categories: Sequence[int], n: int = 1) -> Float[Tensor, "n latent"]:
    """`n` equal codes with z = 0 and the given category in each discrete unit."""
    code = torch.zeros(n, model.spec.size)
    start = model.spec.z
    for size, category in zip(model.spec.c, categories, strict=True):
        code[:, start + category] = 1
        start += size
    return code


def traverse_z(model: JointVAE, unit: int, values: Float[Tensor, " n"], categories: Sequence[int]) -> Tensor:
    """Images as one unit of z takes the given values; every other unit is 0 and c stays in the given categories."""
    codes = one_hot_codes(model, categories, len(values))
    codes[:, unit] = values
    return decode_images(model, codes)


def prior_quantiles(n: int) -> Float[Tensor, " n"]:
    """`n` values of z at equal steps of probability, from 5 % to 95 % of the prior N(0, 1)."""
    return torch.special.ndtri(torch.linspace(0.05, 0.95, n))


def sheet(model: JointVAE) -> Float[Tensor, "rows columns channels side side"]:
    """All that one picture can show of a model: a row per discrete unit, then a row per unit of z.

    The row of c_i holds its categories, at z = 0; where units have different numbers of them, black images fill up. The
    row of z_j holds ten quantiles of its prior, from 5 % to 95 %. The other discrete units stay in their category 1.
    """
    spec = model.spec
    first = [0] * len(spec.c)
    columns = max(SHEET_COLUMNS, *spec.c, 0)
    rows = torch.zeros(len(spec.c) + spec.z, columns, model.image.channels, model.image.size, model.image.size)
    for i, n in enumerate(spec.c):
        codes = [one_hot_codes(model, [*first[:i], k, *first[i + 1 :]]) for k in range(n)]
        rows[i, :n] = decode_images(model, torch.cat(codes))
    for j in range(spec.z):
        values = prior_quantiles(SHEET_COLUMNS)
        rows[len(spec.c) + j, :SHEET_COLUMNS] = traverse_z(model, j, values, first)
    return rows


def frame_path(folder: Path, epoch: int) -> Path:
    """Where the picture of an epoch lies; epoch 0 is the model before training."""
    return folder / f"{epoch:04}.png"


def film_frame(model: JointVAE, folder: Path, epoch: int) -> None:
    """Keep the sheet of a model in training as the picture of that epoch."""
    from torchvision.utils import make_grid, save_image  # its import takes a second

    rows = sheet(model)
    content = io.BytesIO()
    save_image(make_grid(rows.flatten(0, 1), nrow=rows.shape[1], padding=0), content, "png")
    write_atomic(frame_path(folder, epoch), content.getvalue())
