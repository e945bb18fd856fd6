"""The variants of benchmarks/differences.py change one thing each, and its test is the one that it describes."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import RelaxedOneHotCategorical

from jointvae import book, categorical, runs, training
from jointvae.results import RESULTS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import differences  # noqa: E402

STEPS = (1, 1000, 3000)


@pytest.fixture(scope="module")
def batch(started):
    """The model that has started in float64, its config, images and noise."""
    model, config, x, noise = started
    noise = noise._replace(epsilon=noise.epsilon.double(), g=tuple(g.double() for g in noise.g))
    return model.double(), config, x.double(), noise


@pytest.mark.parametrize("step", STEPS)
def test_ours_is_the_loss_of_the_package(batch, step):
    assert torch.equal(differences.ours(*batch, step)[0], training.step_losses(*batch, step)[0])


@pytest.mark.parametrize("step", STEPS)
def test_holding_every_image_is_never_cheaper_than_holding_the_mean(batch, step):
    """Jensen: the mean of absolute values is at least the absolute value of the mean."""
    assert differences.per_image(*batch, step)[0] >= differences.ours(*batch, step)[0] * (1 - 1e-12)


def test_for_one_image_holding_it_and_holding_the_mean_are_the_same(batch):
    model, config, x, noise = batch
    one = noise._replace(epsilon=noise.epsilon[:1], g=tuple(g[:1] for g in noise.g))
    losses = [loss(model, config, x[:1], one, 1000)[0] for loss in (differences.ours, differences.per_image)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)


@pytest.mark.parametrize("tau", [0.3, 0.67, 2.0])
def test_the_log_ratio_is_that_of_two_relaxed_densities(tau):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(50, 10, generator=generator, dtype=torch.float64)
    g = categorical.gumbel_noise((50, 10), generator, torch.float64)
    draw = categorical.gumbel_softmax(logits, g, tau)
    temperature = torch.tensor(tau, dtype=torch.float64)
    q = RelaxedOneHotCategorical(temperature, logits=logits, validate_args=False)
    p = RelaxedOneHotCategorical(temperature, logits=torch.zeros_like(logits), validate_args=False)
    oracle = q.log_prob(draw) - p.log_prob(draw)
    torch.testing.assert_close(differences.log_ratio(logits, g), oracle, rtol=1e-8, atol=1e-8)


def test_the_relaxed_variant_differs_in_the_term_of_c_alone(batch):
    """By hand: take our loss, take out the term of KL_c, put in that of the mean log ratio."""
    model, config, x, noise = batch
    posterior, objective = model.encode(x), config.objective
    terms = [
        objective.gamma * (kl - objective.C_c(1000)).abs()
        for kl in (posterior.kl_c().mean(), differences.log_ratio(posterior.logits[0], noise.g[0]).mean())
    ]
    by_hand = differences.ours(*batch, 1000)[0] - terms[0] + terms[1]
    assert differences.relaxed_density(*batch, 1000)[0].item() == pytest.approx(by_hand.item(), rel=1e-12)


@pytest.mark.parametrize("step", STEPS)
def test_the_code_computes_our_loss_over_the_number_of_pixels(batch, step):
    """Up to the rounding of the uniform draw to 24 bits and the constants inside the logarithms."""
    ours, code = differences.ours(*batch, step)[0], differences.as_the_code(*batch, step)[0]
    assert code.item() * 1024 == pytest.approx(ours.item(), rel=1e-4)


def test_a_third_of_r_takes_two_thirds_of_it_away(batch):
    loss, losses = differences.third_of_r(*batch, 1000)
    assert loss.item() == pytest.approx((differences.ours(*batch, 1000)[0] - losses[0] * 2 / 3).item(), rel=1e-12)


def test_the_first_weights_of_2018_fill_the_range_of_the_channels_that_are_read():
    config = differences.RECIPE
    before, model = training.build(config), training.build(config)
    differences.weights_of_2018(model)
    for old, new in zip(model.modules(), before.modules(), strict=True):
        if isinstance(old, torch.nn.ConvTranspose2d):
            bound = (old.in_channels * 16) ** -0.5
            assert 0.9 * bound < old.weight.abs().max() <= bound * (1 + 1e-6)
            assert old.bias.abs().max() <= bound
        elif isinstance(old, torch.nn.Conv2d | torch.nn.Linear):
            assert torch.equal(old.weight, new.weight)


def test_all_variants_report_the_same_step(batch):
    for name, loss in differences.VARIANTS.items():
        tolerance = 1e-4 if name == "as the code" else 1e-12
        torch.testing.assert_close(loss(*batch, 1000)[1], training.step_losses(*batch, 1000)[1], rtol=tolerance, atol=0)


def test_a_uniform_draw_gives_its_noise_back():
    g = categorical.gumbel_noise((100_000,), torch.Generator().manual_seed(0))
    u = differences.uniform(g)
    assert u.min() >= 0
    assert u.max() < 1
    assert torch.equal(u * 2**24, (u * 2**24).round())
    usual = g.abs() < 2
    torch.testing.assert_close(-(-u[usual].double().log()).log(), g[usual].double(), atol=1e-4, rtol=0)


def test_the_variant_ours_is_a_run_of_the_package(quick, tmp_path):
    """Bit for bit: otherwise the pairs would differ in more than the loss."""
    config = replace(quick, epochs=1)
    record = runs.run(config, tmp_path, "cpu")
    row = differences.trained("ours", config)
    assert row["weights"] == record.checkpoint.sha256
    assert row["accuracy"] == record.test.accuracy


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_with_one_measure_the_test_is_the_permutation_test_of_scipy(shift):
    sample = np.random.default_rng(0).normal(shift, 1, 8)

    def statistic(values, axis=-1):
        return np.abs(values.mean(axis)) / values.std(axis, ddof=1)

    def paired(a, b, axis=-1):
        return statistic(a - b, axis)

    by_scipy = stats.permutation_test(
        (sample, np.zeros(8)), paired, permutation_type="samples", alternative="greater", vectorized=True
    )
    assert differences.sign_flips(sample[:, None])[0] == pytest.approx(by_scipy.pvalue)


def test_the_smallest_p_value_is_that_of_all_signs_alike():
    sample = 1 + np.random.default_rng(0).normal(0, 0.01, (8, 5))
    assert differences.sign_flips(sample).min() == 2 / 256
    assert (differences.sign_flips(sample) >= 2 / 256).all()


def test_chance_is_blamed_as_often_as_the_level_allows():
    """400 comparisons of five unrelated measures without any effect, at the level of one variant."""
    level = differences.LEVEL / (len(differences.VARIANTS) - 1)
    generator = np.random.default_rng(0)
    alarms = [(differences.sign_flips(generator.normal(size=(8, 5))) <= level).any() for _ in range(400)]
    assert sum(alarms) <= stats.binom(400, level).ppf(0.9999)


def test_what_is_recorded_is_what_the_runs_give():
    if not (RESULTS / "benchmarks" / "differences.json").exists():
        pytest.skip("not recorded")
    found = book.benchmark("differences")
    assert found["runs"].keys() == differences.VARIANTS.keys()
    assert differences.tested(found["runs"]) == found["p_values"]
    seeds = [[row["seed"] for row in rows] for rows in found["runs"].values()]
    assert all(one == seeds[0] for one in seeds)
