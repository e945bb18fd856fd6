"""Checks that stand beside the identities of the book.

A check compares two numbers, or tests a claim, and leaves one line on the page: the label of the identity, how it was
checked, and what came out. If the identity does not hold, the chapter fails. The appendix lists all lines.

Three kinds: `equal` where both sides can be computed, `monte_carlo` where one side is a mean over draws, and `holds`
for inequalities, limits and signs.
"""

import html
import math

import torch
from IPython.display import display
from torch import Tensor

STANDARD_ERRORS = 5.0  # beyond these, chance is no excuse: for a normal mean, one check in 1.7 million


class CheckError(AssertionError):
    """An identity of the book does not hold."""


def equal(label: str, found: Tensor | float, expected: Tensor | float, tolerance: float = 1e-9) -> None:
    """Both sides, computed: they may differ by `tolerance` times the larger of 1 and the largest expected number.

    Raises:
        CheckError: if they differ by more, or have different shapes.
    """
    left, right = (torch.as_tensor(side, dtype=torch.float64).detach() for side in (found, expected))
    if left.shape != right.shape:
        raise CheckError(f"{label}: the sides have the shapes {tuple(left.shape)} and {tuple(right.shape)}.")
    off = float((left - right).abs().max())
    allowed = tolerance * max(1.0, float(right.abs().max()))
    _report(label, "both sides computed", f"off by {off:.1e}, allowed {allowed:.0e}", off <= allowed < math.inf)


def monte_carlo(label: str, draws: Tensor, expected: Tensor | float) -> None:
    """A mean over draws, the first axis, against the number that it must approach.

    The tolerance is five standard errors of the mean, from the draws themselves. Of several means, all must hold.

    Raises:
        CheckError: if a mean is further off, or the draws don't vary at all and miss.
    """
    draws = draws.detach().double()
    error = draws.std(0) / len(draws) ** 0.5
    target = torch.as_tensor(expected, dtype=torch.float64)
    off = (draws.mean(0) - target).abs()
    rounding = 1e-14 * target.abs().clamp_min(1.0)  # draws that don't vary have no other error
    ratio = float((off / torch.maximum(error, rounding)).max())
    what = f"off by {ratio:.1f} standard errors, allowed {STANDARD_ERRORS:.0f}"
    _report(label, f"mean of {len(draws):,} draws", what, ratio <= STANDARD_ERRORS)


def holds(label: str, condition: Tensor | bool, what: str) -> None:
    """A claim that is true or false, said in words by `what`; of a tensor, every entry must be true.

    Raises:
        CheckError: if it is false.
    """
    _report(label, "true or false", what, bool(torch.as_tensor(condition).all()))


def _report(label: str, how: str, what: str, good: bool) -> None:
    if not good:
        raise CheckError(f"{label} does not hold ({how}): {what}.")
    link = f'<a class="reference internal" href="#equation-{html.escape(label)}">{html.escape(label)}</a>'
    display(
        {
            "text/plain": f"✓ {label} ({how}): {what}",
            "text/html": f'<p class="check">✓ {link} <span>({how}): {html.escape(what)}</span></p>',
        },
        raw=True,
        metadata={"check": {"label": label, "how": how, "what": what}},
    )
