"""The four objectives against their formulas, and the capacity schedule."""

import json
import math
from dataclasses import asdict, dataclass, field, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Bernoulli

from jointvae import results, runs, training
from jointvae.augmentation import Affine
from jointvae.errors import JointVAEError
from jointvae.latents import draw_noise
from jointvae.objectives import (
    ELBO,
    AgreedInformation,
    AnnealedCapacity,
    AugmentedInformation,
    BetaVAE,
    Capacity,
    ChargedInformation,
    Own,
    SplitCapacity,
    SplitInformation,
    reconstruction_loss,
)
from jointvae.training import Config

nats = st.floats(0, 50)
kls = st.lists(st.floats(0, 10), min_size=1, max_size=5)


def total(objective, reconstruction, kl_z, kl_c, step=1):
    terms = objective(torch.tensor(reconstruction), torch.tensor(kl_z), torch.tensor(kl_c), step)
    return sum(terms.values()).item()


def test_reconstruction_sums_pixels_and_channels_and_averages_the_batch(generator):
    logits = torch.randn(5, 3, 4, 4, generator=generator)
    x = torch.rand(5, 3, 4, 4, generator=generator).round()
    expected = -Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3)).mean()
    assert reconstruction_loss(logits, x).item() == pytest.approx(expected.item(), rel=1e-5)


@given(nats, kls, kls, st.floats(0, 100), st.integers(1, 60_000))
def test_split_capacity_is_its_formula(reconstruction, kl_z, kl_c, gamma, step):
    objective = SplitCapacity(gamma, Capacity(0.0, 5.0, 25_000), Capacity(0.0, 10.0, 50_000, ceiling=2.3))
    C_z, C_c = 5 * min(step / 25_000, 1), min(10 * min(step / 50_000, 1), 2.3)
    expected = reconstruction + gamma * abs(sum(kl_z) - C_z) + gamma * abs(sum(kl_c) - C_c)
    assert total(objective, reconstruction, kl_z, kl_c, step) == pytest.approx(expected, rel=1e-4, abs=1e-3)


@given(nats, kls, kls)
def test_the_objectives_are_one_family(reconstruction, kl_z, kl_c):
    """With gamma = beta = 1 and no capacity, all four are the ELBO."""
    closed = Capacity(0.0, 0.0, 1)
    elbo = total(ELBO(), reconstruction, kl_z, kl_c)
    for same in (BetaVAE(1.0), AnnealedCapacity(1.0, closed), SplitCapacity(1.0, closed, closed)):
        assert total(same, reconstruction, kl_z, kl_c) == pytest.approx(elbo, rel=1e-5, abs=1e-4)


def test_shared_capacity_sees_the_sum_only():
    objective = AnnealedCapacity(10.0, Capacity(3.0, 3.0, 1))
    assert total(objective, 0.0, [3.0], [0.0]) == total(objective, 0.0, [0.0], [3.0]) == 0.0
    assert total(objective, 0.0, [4.0], [1.0]) == pytest.approx(20.0)


@pytest.mark.parametrize(("kl", "slope"), [(1.0, -30.0), (4.0, 30.0)])
def test_gradient_on_either_side_of_the_capacity(kl, slope):
    kl_z = torch.tensor([kl], requires_grad=True)
    terms = SplitCapacity(30.0, Capacity(2.0, 2.0, 1), Capacity(0.0, 0.0, 1))(
        torch.tensor(0.0), kl_z, torch.zeros(1), 1
    )
    sum(terms.values()).backward()
    assert kl_z.grad.item() == slope


def test_split_information_is_the_split_under_another_name():
    C_z, C_c = Capacity(0.0, 5.0, 100), Capacity(0.0, 2.0, 100)
    ours, theirs = SplitInformation(30.0, C_z, C_c), SplitCapacity(30.0, C_z, C_c)
    assert total(ours, 1.0, [2.0, 0.5], [1.5], 50) == total(theirs, 1.0, [2.0, 0.5], [1.5], 50)
    assert ours != theirs
    for objective in (ours, theirs, AgreedInformation(30.0, C_z, C_c), ChargedInformation(30.0, C_z, C_c)):
        config = results.validate(json.loads(json.dumps(asdict(Config(objective=objective)))), Config)
        assert type(config.objective) is type(objective)
        assert config.objective == objective


@dataclass(frozen=True)
class Twin(Own):
    """`AugmentedInformation` as a reader would write it."""

    holds_information = True
    name: str = "twin"
    inner: AugmentedInformation = field(default_factory=AugmentedInformation)
    transformation: Affine = field(default_factory=Affine)

    def __call__(self, reconstruction, kl_z, kl_c, step):
        return self.inner(reconstruction, kl_z, kl_c, step)


def test_ones_own_objective_can_hold_the_information_and_read_c_from_other_images(generator):
    config, x = Config(objective=Twin()), torch.rand(8, 1, 32, 32, generator=generator)
    theirs = replace(config, objective=config.objective.inner)
    model, noise = training.build(config), draw_noise(config.latents, (8,), generator)
    x_c = training.images_of_c(config, x, 7)
    assert torch.equal(x_c, training.images_of_c(theirs, x, 7))
    losses = [training.step_losses(model, one, x, noise, 7, x_c)[0] for one in (config, theirs)]
    assert torch.equal(*losses)
    runs.check_config(config)


@dataclass(frozen=True)
class Fickle(Twin):
    """It charges ten times the nats by which c differs on the two images, beside the information of the mean."""

    agreed = True
    name: str = "fickle"

    def disagreement(self, price):
        return {"disagreement": 10 * price.sum()}


def test_ones_own_objective_can_charge_what_c_tells_about_the_transformation(generator):
    config, x = Config(objective=Fickle()), torch.rand(8, 1, 32, 32, generator=generator)
    agreed = replace(config, objective=AgreedInformation())
    model, noise = training.build(config), draw_noise(config.latents, (8,), generator)
    with torch.no_grad():
        model.head.weight[-10:] *= 500
    x_c = training.images_of_c(config, x, 7)
    ours, theirs = (training.step_losses(model, one, x, noise, 7, x_c)[0] for one in (config, agreed))
    price = model.encode(x).divergence(model.encode(x_c)).mean()
    assert price > 0.01
    assert (ours - theirs).item() == pytest.approx(10 * price.item(), rel=1e-2)


def test_a_missing_latent_has_no_term():
    objective = SplitCapacity()
    assert "capacity_z" not in objective(torch.tensor(1.0), torch.zeros(0), torch.zeros(1), 10)
    assert "capacity_c" not in objective(torch.tensor(1.0), torch.zeros(2), torch.zeros(0), 10)


@given(st.floats(0, 20), st.floats(0, 20), st.integers(1, 10_000), st.integers(0, 30_000))
def test_capacity_stays_between_its_ends(start, end, steps, step):
    capacity = Capacity(start, end, steps)
    assert min(start, end) - 1e-9 <= capacity(step) <= max(start, end) + 1e-9
    assert capacity(0) == start
    assert capacity(steps) == pytest.approx(end)
    assert capacity(steps + step) == capacity(steps)
    assert Capacity(start, end, steps, ceiling=1.0)(step) <= 1.0


def test_the_papers_schedule():
    capacity = Capacity(0.0, 5.0, 25_000, ceiling=math.log(10))
    assert [capacity(step) for step in (1, 10_000, 11_513, 93_800)] == pytest.approx([0.0002, 2, 2.302585, 2.302585])


@pytest.mark.parametrize(
    "build",
    [
        lambda: Capacity(-1.0, 5.0, 10),
        lambda: Capacity(0.0, -5.0, 10),
        lambda: Capacity(0.0, 5.0, 0),
        lambda: Capacity(0.0, 5.0, 10, ceiling=-1.0),
        lambda: SplitCapacity(-1.0),
        lambda: AnnealedCapacity(-1.0),
        lambda: BetaVAE(-1.0),
        lambda: SplitCapacity(float("nan")),
    ],
)
def test_senseless_values_are_refused(build):
    with pytest.raises(JointVAEError):
        build()
