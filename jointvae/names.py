"""What a unit of z does, in a word: its traversal is compared with simple statistics of the images.

A traversal moves one unit and leaves the others at 0. If a statistic (how slanted, how thick, …) goes steadily up or
down with it, and far enough, the unit gets the name of that statistic. No label is used.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jointvae.model import JointVAE
from jointvae.traversals import decode_images, prior_quantiles, traverse_z

# What is measured, and the words for little and much of it.
ENDS = {
    "slant": ("leans left", "leans right"),
    "thickness": ("thin", "thick"),
    "brightness": ("dark", "bright"),
    "width": ("narrow", "wide"),
    "height": ("short", "tall"),
}
STEPS = 9  # of a traversal
DRAWS = 500  # from the prior: how much a statistic varies among the images of the model
STEADY = 0.8  # least correlation, in size, that earns a name
STRONG = 0.8  # least change over a traversal, in standard deviations of the draws, that earns a name


@dataclass(frozen=True)
class Effect:
    """How steadily a statistic follows a unit of z (correlation) and how far (standard deviations of the draws)."""

    steady: float
    change: float


@dataclass(frozen=True)
class UnitName:
    """The name of a unit of z; `low` and `high` say what its small and large values show, empty if nothing is known."""

    name: str
    low: str = ""
    high: str = ""


def statistics(images: Float[Tensor, "n channels side side"]) -> dict[str, Float[Tensor, " n"]]:
    """One number per image for each of `ENDS`, from the moments of the brightness over the pixels.

    Slant is the shift to the right per pixel upwards, cov(x, -y) / var(y). Width and height are standard deviations in
    pixels. Thickness is twice the brightness over the total variation, in pixels: for a stroke, twice area over
    perimeter. Brightness is the mean in [0, 1]. An image without light has 0 everywhere.
    """
    light = images.mean(1)
    side = light.shape[-1]
    place = torch.arange(side, dtype=light.dtype)
    total = light.sum((1, 2))
    share = light / total.clamp_min(1e-6)[:, None, None]
    columns, rows = share.sum(1), share.sum(2)
    x = place - (columns * place).sum(1, keepdim=True)
    y = (rows * place).sum(1, keepdim=True) - place  # upwards
    var_x, var_y = (columns * x.square()).sum(1), (rows * y.square()).sum(1)
    covariance = torch.einsum("nij,ni,nj->n", share, y, x)
    framed = torch.nn.functional.pad(light, (1, 1, 1, 1))
    variation = framed.diff(dim=1).abs().sum((1, 2)) + framed.diff(dim=2).abs().sum((1, 2))
    return {
        "slant": covariance / var_y.clamp_min(1e-6),
        "thickness": 2 * total / variation.clamp_min(1e-6),
        "brightness": total / side**2,
        "width": var_x.sqrt(),
        "height": var_y.sqrt(),
    }


def name_units(model: JointVAE) -> list[UnitName]:
    """A name for every unit of z, in the model's order: what it changes most, or 'z3' if nothing steadily and far."""
    return [name_unit(unit, found) for unit, found in enumerate(effects(model))]


@torch.no_grad()
def effects(model: JointVAE) -> list[dict[str, Effect]]:
    """What each unit of z does to each statistic.

    Every unit is moved from the 5 % to the 95 % quantile of its prior, once in each category of the first discrete
    unit; each of these rows is measured from its own mean, and one line is fitted to them all.
    """
    values = prior_quantiles(STEPS)
    spread = _spread(model)
    starts = [[k] + [0] * (len(model.spec.c) - 1) for k in range(model.spec.c[0])] if model.spec.c else [[]]
    found = []
    for unit in range(model.spec.z):
        images = torch.cat([traverse_z(model, unit, values, start) for start in starts])
        measured = {name: numbers.view(len(starts), STEPS) for name, numbers in statistics(images).items()}
        found.append({name: _effect(rows, values, spread[name]) for name, rows in measured.items()})
    return found


def _effect(rows: Float[Tensor, "rows steps"], values: Float[Tensor, " steps"], spread: float) -> Effect:
    centred = rows - rows.mean(1, keepdim=True)
    product, power = (centred * values).mean(), values.square().mean()
    steady = product / (centred.square().mean() * power).sqrt().clamp_min(1e-12)
    change = product / power * (values[-1] - values[0])
    return Effect(float(steady), float(change) / max(spread, 1e-6))


def _spread(model: JointVAE) -> dict[str, float]:
    """The standard deviation of each statistic over draws from the prior, the same draws each time."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(DRAWS, model.spec.z, generator=generator)]
    for n in model.spec.c:
        parts.append(torch.eye(n)[torch.randint(n, (DRAWS,), generator=generator)])
    found = statistics(decode_images(model, torch.cat(parts, 1)))
    return {name: float(numbers.std()) for name, numbers in found.items()}


def name_unit(unit: int, found: dict[str, Effect]) -> UnitName:
    """The name that a unit, counted from 0, earns by its effects."""
    fit = {name: e.change for name, e in found.items() if abs(e.steady) >= STEADY and abs(e.change) >= STRONG}
    if not fit:
        return UnitName(f"z{unit + 1}")
    name = max(fit, key=lambda name: abs(fit[name]))
    low, high = ENDS[name] if fit[name] > 0 else ENDS[name][::-1]
    return UnitName(name, low, high)
