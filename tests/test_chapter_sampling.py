"""The sampling chapter checks the samplers of the package; here we check that its checks can fail."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from jointvae import categorical

jupytext = pytest.importorskip("jupytext")
pytest.importorskip("IPython")

CHAPTER = Path(__file__).parent.parent / "book" / "sampling.md"


def run_chapter() -> None:
    """Run the chapter's code, cell by cell, in one namespace."""
    namespace: dict[str, object] = {}
    for cell in jupytext.read(CHAPTER).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, str(CHAPTER), "exec"), namespace)


def gaussian_noise(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=dtype)


def without_temperature(logits: Tensor, g: Tensor, tau: float) -> Tensor:
    return (logits + g).softmax(-1)


def without_gradient(relaxed: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(relaxed.argmax(-1), relaxed.shape[-1]).to(relaxed.dtype)


def one_slice_off(probs: Tensor, u: Tensor) -> Tensor:
    return torch.searchsorted(probs.cumsum(-1), u.unsqueeze(-1)).squeeze(-1).sub(1).clamp(min=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # numpy's functions on tensors
@pytest.mark.parametrize(
    ("name", "mutant", "failure"),
    [
        ("inverse_cdf", one_slice_off, AssertionError),
        ("gumbel_noise", gaussian_noise, AssertionError),
        ("gumbel_softmax", without_temperature, AssertionError),
        # Its first symptom is an error of autograd: there is nothing to differentiate.
        ("straight_through", without_gradient, RuntimeError),
    ],
)
def test_chapter_rejects_a_broken_sampler(name, mutant, failure, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(pyplot, "show", lambda: pyplot.close("all"))
    monkeypatch.setattr(categorical, name, mutant)
    with pyplot.rc_context(), pytest.raises(failure):
        run_chapter()
