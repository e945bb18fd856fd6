"""The samplers against torch.distributions, scipy, closed forms and finite differences."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.distributions import Categorical, RelaxedOneHotCategorical, kl_divergence

from jointvae import categorical

N = 40_000
FALSE_ALARM = 1e-4  # a correct sampler fails each test once in ten thousand seeds; the seeds are fixed
LOGITS = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)

logit_lists = st.lists(st.floats(-20, 20), min_size=2, max_size=12)


def p_value(draws: torch.Tensor, probs: torch.Tensor) -> float:
    counts = torch.bincount(draws, minlength=len(probs))
    return float(stats.chisquare(counts.numpy(), (probs * len(draws)).numpy()).pvalue)


def draw(method: str, generator: torch.Generator) -> torch.Tensor:
    probs, g = LOGITS.softmax(0), categorical.gumbel_noise((N, 4), generator, torch.float64)
    if method == "inverse_cdf":
        u = torch.rand(N, generator=generator, dtype=torch.float64)
        return categorical.inverse_cdf(probs.expand(N, -1).contiguous(), u)
    if method == "gumbel_max":
        return categorical.gumbel_max(LOGITS, g)
    return categorical.gumbel_softmax(LOGITS, g, float(method)).argmax(-1)


@pytest.mark.parametrize("method", ["inverse_cdf", "gumbel_max", "0.1", "0.67", "5.0"])
def test_frequencies(method, generator):
    assert p_value(draw(method, generator), LOGITS.softmax(0)) > FALSE_ALARM


def test_the_frequency_test_can_fail(generator):
    wrong = (LOGITS + torch.rand(N, 4, generator=generator, dtype=torch.float64)).argmax(-1)
    assert p_value(wrong, LOGITS.softmax(0)) < FALSE_ALARM


def test_gumbel_noise_has_the_gumbel_distribution(generator):
    g = categorical.gumbel_noise((N,), generator)
    assert stats.kstest(g.numpy(), stats.gumbel_r.cdf).pvalue > FALSE_ALARM
    assert g.isfinite().all()


def test_gumbel_noise_survives_a_draw_of_zero(monkeypatch, generator):
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, **_: self.zero_())
    assert categorical.gumbel_noise((3,), generator).isfinite().all()


def test_the_same_generator_state_gives_the_same_noise():
    first, second = (categorical.gumbel_noise((5,), torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)


@given(logit_lists, st.floats(0, 1, exclude_max=True))
def test_inverse_cdf_picks_the_slice_that_holds_u(logits, u):
    probs = torch.tensor(logits, dtype=torch.float64).softmax(0)
    index = int(categorical.inverse_cdf(probs, torch.tensor(u, dtype=torch.float64)))
    below, above = probs[:index].sum(), probs[: index + 1].sum()
    assert below - 1e-12 <= u <= above + 1e-12


def test_inverse_cdf_never_leaves_the_range_and_skips_empty_categories():
    probs = torch.tensor([[0.0, 0.5, 0.5, 0.0]] * 3)
    u = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert categorical.inverse_cdf(probs, u).tolist() == [1, 2, 2]


@given(logit_lists, st.floats(0.05, 50))
def test_relaxed_draws_lie_in_the_simplex_and_keep_the_arg_max(logits, tau):
    logits = torch.tensor(logits, dtype=torch.float64)
    g = categorical.gumbel_noise(tuple(logits.shape), torch.Generator().manual_seed(1), torch.float64)
    relaxed = categorical.gumbel_softmax(logits, g, tau)
    assert (relaxed >= 0).all()
    assert relaxed.sum().item() == pytest.approx(1, abs=1e-12)
    assert relaxed[categorical.gumbel_max(logits, g)] == relaxed.max()


def test_relaxed_draws_agree_with_torch_distributions(generator):
    tau = 0.67
    ours = categorical.gumbel_softmax(LOGITS, categorical.gumbel_noise((N, 4), generator, torch.float64), tau)
    torch.manual_seed(1)
    theirs = RelaxedOneHotCategorical(torch.tensor(tau, dtype=torch.float64), logits=LOGITS).sample((N,))
    for column in range(4):
        assert stats.ks_2samp(ours[:, column].numpy(), theirs[:, column].numpy()).pvalue > FALSE_ALARM


def test_limits_of_the_temperature(generator):
    g = categorical.gumbel_noise((200, 4), generator, torch.float64)
    hard = torch.nn.functional.one_hot(categorical.gumbel_max(LOGITS, g), 4).double()
    assert torch.allclose(categorical.gumbel_softmax(LOGITS, g, 1e-9), hard, atol=1e-6)
    assert torch.allclose(categorical.gumbel_softmax(LOGITS, g, 1e6), torch.full((200, 4), 0.25).double(), atol=1e-4)


def test_gradient_of_the_relaxed_draw(generator):
    logits = LOGITS.clone().requires_grad_()
    g = categorical.gumbel_noise((4,), generator, torch.float64)
    assert torch.autograd.gradcheck(lambda a: categorical.gumbel_softmax(a, g, 0.67), logits)


def test_shifting_all_logits_changes_nothing(generator):
    g = categorical.gumbel_noise((4,), generator, torch.float64)
    assert torch.allclose(
        categorical.gumbel_softmax(LOGITS + 7, g, 0.67), categorical.gumbel_softmax(LOGITS, g, 0.67), atol=1e-14
    )


def test_straight_through_is_hard_forward_and_soft_backward():
    relaxed = torch.tensor([[0.2, 0.5, 0.3]], requires_grad=True)
    hard = categorical.straight_through(relaxed)
    assert hard.tolist() == [[0.0, 1.0, 0.0]]
    (hard * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert relaxed.grad.tolist() == [[1.0, 2.0, 3.0]]


@given(logit_lists)
def test_kl_to_uniform_against_torch_distributions(logits):
    logits = torch.tensor(logits, dtype=torch.float64)
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=torch.zeros_like(logits)))
    found = categorical.kl_to_uniform(logits)
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)
    assert -1e-9 <= found.item() <= math.log(len(logits)) + 1e-9


def test_kl_to_uniform_at_its_extremes():
    certain = torch.tensor([1000.0, 0.0, 0.0])
    assert categorical.kl_to_uniform(certain).item() == pytest.approx(math.log(3))
    uniform = torch.zeros(5, requires_grad=True)
    categorical.kl_to_uniform(uniform).backward()
    assert uniform.grad.abs().max() < 1e-7  # the dead end: no gradient leads out of the uniform posterior
