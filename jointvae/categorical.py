"""Sampling one category, three ways, and its divergence from the uniform prior.

Every sampler is a pure function of its parameters and of the noise it is given, so a draw can be repeated,
differentiated, and compared with another sampler fed the same noise.

Shapes: the last axis always runs over the n categories. Divergences are in nats.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def inverse_cdf(probs: Float[Tensor, "*batch n"], u: Float[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
    """The category whose slice of the cumulative distribution holds `u`, uniform on [0, 1).

    Args:
        probs: probabilities; they need not be normalised.
        u: one uniform draw per distribution.

    >>> inverse_cdf(torch.tensor([0.2, 0.3, 0.5]), torch.tensor(0.4))
    tensor(1)
    """
    cumulative = probs.cumsum(-1)
    # Scaling u by the last entry keeps rounding in the cumulative sum from ever pointing past the last category.
    scaled = (u * cumulative[..., -1]).unsqueeze(-1)
    index = torch.searchsorted(cumulative, scaled, right=True).squeeze(-1)
    return index.clamp(max=probs.shape[-1] - 1)


def gumbel_noise(
    shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "..."]:
    """Independent Gumbel(0, 1) draws on the generator's device.

    >>> gumbel_noise((2, 3), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3])
    """
    exponential = torch.empty(shape, dtype=dtype, device=generator.device).exponential_(generator=generator)
    return gumbel_of_exponential(exponential)


def gumbel_of_exponential(exponential: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Gumbel(0, 1) draws, each from an exponential one: if E has rate 1, then -log E is Gumbel(0, 1).

    A draw of exactly 0 would give an infinity, so it is lifted to the smallest normal number.

    >>> gumbel_of_exponential(torch.tensor([1.0, 0.0])).isfinite()
    tensor([True, True])
    """
    return -exponential.clamp_min(torch.finfo(exponential.dtype).tiny).log()


def gumbel_max(logits: Float[Tensor, "*#batch n"], g: Float[Tensor, "*#batch n"]) -> Int[Tensor, "..."]:
    """The arg max of logits plus Gumbel noise: an exact draw from softmax(logits).

    The two broadcast: one set of logits with a batch of noise gives a batch of draws.

    Source: Maddison, Tarlow and Minka (2014), "A* Sampling", section 2.

    >>> gumbel_max(torch.tensor([0.0, 1.0, 2.0]), g=torch.tensor([3.0, 0.0, 0.0]))
    tensor(0)
    """
    return (logits + g).argmax(-1)


def gumbel_softmax(
    logits: Float[Tensor, "*#batch n"], g: Float[Tensor, "*#batch n"], tau: float
) -> Float[Tensor, "... n"]:
    """A relaxed one-hot draw: softmax((log pi + g) / tau), a differentiable point inside the simplex.

    Source: Jang, Gu and Poole (2017), equation 2; Dupont (2018), section 3.1. tau is the temperature, above 0.

    >>> logits, g = torch.zeros(2), torch.tensor([1.0, 0.0])
    >>> gumbel_softmax(logits, g, tau=1.0)
    tensor([0.7311, 0.2689])
    >>> gumbel_softmax(logits, g, tau=0.2)
    tensor([0.9933, 0.0067])
    """
    return F.softmax((logits.log_softmax(-1) + g) / tau, dim=-1)


def straight_through(relaxed: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """One-hot in the forward pass, the relaxed draw's gradient in the backward pass.

    Source: Jang, Gu and Poole (2017), section 2.2.

    >>> straight_through(torch.tensor([0.7, 0.3]))
    tensor([1., 0.])
    """
    hard = F.one_hot(relaxed.argmax(-1), relaxed.shape[-1]).to(relaxed.dtype)
    # The bracket is zero in value, exactly, and carries the whole gradient.
    return hard + (relaxed - relaxed.detach())


def kl_to_uniform(logits: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """KL(Cat(softmax(logits)) || uniform) = log n - entropy, in nats: 0 when uniform, log n when certain.

    >>> kl_to_uniform(torch.tensor([100.0, 0.0]))  # log 2
    tensor(0.6931)
    """
    log_probs = logits.log_softmax(-1)
    return math.log(logits.shape[-1]) + (log_probs.exp() * log_probs).sum(-1)
