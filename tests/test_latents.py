"""The joint posterior against torch.distributions and Monte Carlo."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, Normal, kl_divergence

from jointvae.errors import JointVAEError
from jointvae.evaluation import mutual_information
from jointvae.latents import LatentSpec, Posterior

layouts = st.tuples(st.integers(1, 8), st.lists(st.integers(2, 6), max_size=4).map(tuple))


def posterior(spec: LatentSpec, batch: int = 3, seed: int = 0) -> Posterior:
    parameters = torch.randn(batch, spec.n_parameters, generator=torch.Generator().manual_seed(seed))
    return Posterior.from_parameters(parameters, spec)


@given(layouts, st.integers(1, 5))
def test_shapes(layout, batch):
    spec = LatentSpec(*layout)
    q = posterior(spec, batch)
    assert q.mu.shape == q.logvar.shape == q.kl_z().shape == (batch, spec.z)
    assert [tuple(logits.shape) for logits in q.logits] == [(batch, n) for n in spec.c]
    assert q.kl_c().shape == (batch, len(spec.c))
    generator = torch.Generator().manual_seed(0)
    assert q.sample(generator, 0.67).shape == q.mode().shape == (batch, spec.size)


@given(layouts)
def test_divergences_against_torch_distributions(layout):
    spec = LatentSpec(*layout)
    q = posterior(spec)
    expected_z = kl_divergence(Normal(q.mu, (0.5 * q.logvar).exp()), Normal(0.0, 1.0))
    assert torch.allclose(q.kl_z(), expected_z, atol=1e-5)
    for i, logits in enumerate(q.logits):
        uniform = Categorical(logits=torch.zeros_like(logits))
        assert torch.allclose(q.kl_c()[:, i], kl_divergence(Categorical(logits=logits), uniform), atol=1e-5)


def test_moments_of_the_sample():
    n = 60_000
    spec = LatentSpec(2, (3,))
    mu, logvar = torch.tensor([0.5, -1.0]), torch.tensor([-1.0, 0.4])
    parameters = torch.cat([mu, logvar, torch.tensor([1.0, 0.0, -1.0])]).expand(n, -1)
    draws = Posterior.from_parameters(parameters, spec).sample(torch.Generator().manual_seed(3), 0.5)
    sigma = (0.5 * logvar).exp()
    # Five standard errors: of a mean sigma / sqrt(n), of a variance sigma^2 sqrt(2 / n).
    assert ((draws[:, :2].mean(0) - mu).abs() < 5 * sigma / math.sqrt(n)).all()
    assert ((draws[:, :2].var(0) - sigma**2).abs() < 5 * sigma**2 * math.sqrt(2 / n)).all()
    assert torch.allclose(draws[:, 2:].sum(1), torch.ones(n), atol=1e-5)


def test_the_joint_divergence_is_the_sum_by_monte_carlo():
    spec = LatentSpec(2, (3, 2))
    q = posterior(spec, batch=1, seed=5)
    torch.manual_seed(0)
    n = 200_000
    normal = Normal(q.mu[0], (0.5 * q.logvar[0]).exp())
    z = normal.sample((n,))
    log_ratio = (normal.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(1)
    for logits in q.logits:
        c = Categorical(logits=logits[0])
        log_ratio = log_ratio + c.log_prob(c.sample((n,))) + math.log(logits.shape[1])
    expected = (q.kl_z().sum() + q.kl_c().sum()).item()
    assert log_ratio.mean().item() == pytest.approx(expected, abs=5 * log_ratio.std().item() / math.sqrt(n))


def test_mode_is_mean_and_one_hot():
    q = Posterior(
        torch.tensor([[0.3]]), torch.tensor([[0.0]]), (torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 1.0]]))
    )
    assert q.mode()[0].tolist() == pytest.approx([0.3, 0, 1, 1, 0])


@pytest.mark.parametrize(("z", "c"), [(-1, (10,)), (3, (1,)), (3, (10, 0)), (0, ())])
def test_senseless_layouts_are_refused(z, c):
    with pytest.raises(JointVAEError):
        LatentSpec(z, c)


def test_what_the_discrete_latents_can_carry():
    assert LatentSpec(0, (2, 2, 10)).max_kl_c == pytest.approx(math.log(40))


@given(layouts, st.integers(1, 6))
def test_information_is_the_drop_of_entropy_over_the_batch(layout, batch):
    q = posterior(LatentSpec(*layout), batch)
    for found, logits, kl in zip(q.information(), q.logits, q.kl_c().mean(0), strict=True):
        assert found.item() == pytest.approx(mutual_information(logits), abs=1e-5)  # the one that records state
        each = Categorical(logits=logits)
        drop = Categorical(probs=each.probs.mean(0)).entropy() - each.entropy().mean()
        assert found.item() == pytest.approx(drop.item(), abs=1e-5)
        assert -1e-5 <= found <= min(kl.item(), math.log(batch)) + 1e-5


def test_the_gradient_of_the_information_is_finite_where_a_probability_is_zero_in_float32():
    logits = torch.tensor([[0.0, -200.0], [0.0, -210.0]], requires_grad=True)
    nothing = torch.zeros(2, 1)
    Posterior(nothing, nothing, (logits,)).information().sum().backward()
    assert logits.grad.isfinite().all()


def test_information_of_one_category_for_all_is_none_and_its_slope_at_uniform_too():
    sure = torch.zeros(64, 10)
    sure[:, 3] = 60.0
    empty = torch.zeros(64, 10, requires_grad=True)
    nothing = torch.zeros(64, 2)
    assert Posterior(nothing, nothing, (sure,)).information().item() == pytest.approx(0, abs=1e-5)
    assert Posterior(nothing, nothing, (sure,)).kl_c().mean().item() == pytest.approx(math.log(10), abs=1e-5)
    Posterior(nothing, nothing, (empty,)).information().sum().backward()
    assert empty.grad.abs().max() < 1e-8
