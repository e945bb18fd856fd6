"""The candidates of benchmarks/candidates.py change what they say and nothing else; verdicts follow from runs."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jointvae import book, training
from jointvae.augmentation import Affine
from jointvae.errors import JointVAEError
from jointvae.objectives import SplitInformation
from jointvae.results import RESULTS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import candidates  # noqa: E402


def assert_same_step(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_without_its_change_every_candidate_is_a_step_of_the_package(started, monkeypatch):
    model, config, x, noise = started
    monkeypatch.setattr(candidates, "MAPS", Affine(0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(candidates, "HOT", config.tau)
    monkeypatch.setattr(candidates, "COLD", config.tau)
    monkeypatch.setattr(candidates.categorical, "straight_through", lambda relaxed: relaxed)
    held = replace(
        config,
        objective=SplitInformation(**{name: getattr(config.objective, name) for name in ("gamma", "C_z", "C_c")}),
    )
    for name, loss in candidates.CANDIDATES.items():
        base = held if name == "augmented c" else config
        assert_same_step(loss(model, config, x, noise, 700), training.step_losses(model, base, x, noise, 700))


def test_augmented_c_is_the_recipe_of_that_name(started):
    """So what the candidate's runs showed is said of the recipe."""
    model, config, x, noise = started
    recipe = replace(training.recipe("digits-augmented"), seed=config.seed)
    assert replace(recipe, recipe="digits", objective=config.objective) == config
    expected = training.step_losses(model, recipe, x, noise, 700, training.images_of_c(recipe, x, 700))
    assert_same_step(candidates.augmented_c(model, config, x, noise, 700), expected)


def test_the_decoder_sees_one_category_under_straight_through(started, monkeypatch):
    model, config, x, noise = started
    seen = []
    monkeypatch.setattr(model, "decode", lambda latent: seen.append(latent) or type(model).decode(model, latent))
    loss, _ = candidates.straight_through(model, config, x, noise, 700)
    c = seen[0][:, config.latents.z :]
    assert ((c - c.round()).abs() < 1e-6).all()
    assert torch.equal(c.argmax(1), (model.encode(x).logits[0] + noise.g[0]).argmax(1))
    (slope,) = torch.autograd.grad(loss, model.head.weight)
    assert slope[-10:].abs().max() > 0


@pytest.mark.parametrize(("share", "tau"), [(0.0, 1.0), (0.5, math.sqrt(0.33)), (1.0, 0.33), (1.2, 0.33)])
def test_the_temperature_falls_by_a_constant_factor(started, share, tau):
    model, config, x, noise = started
    step = round(share * config.objective.C_c.steps)
    expected = training.step_losses(model, replace(config, tau=tau), x, noise, step)
    assert_same_step(candidates.annealed_temperature(model, config, x, noise, step), expected)


def test_a_candidate_trains_and_a_finished_run_is_not_trained_again(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "FOLDER", tmp_path)
    config = replace(quick, epochs=1, seed=3)
    first = candidates.row("augmented c", config)
    assert first["seed"] == 3
    monkeypatch.setattr(candidates, "outcome", lambda trainer: pytest.fail("trained again"))
    assert candidates.row("augmented c", config) == first


def test_a_cut_file_of_a_run_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "FOLDER", tmp_path)
    (tmp_path / "augmented-digits-seed0.json").write_text('{"seed": 0, "accu')
    with pytest.raises(JointVAEError, match=r"augmented-digits-seed0\.json"):
        candidates.row("augmented", candidates.RECIPE)


def test_pairs_without_a_recorded_run_are_refused():
    with pytest.raises(JointVAEError, match="Seed 123456 of digits is not recorded"):
        candidates.recorded("digits", [123456])


@pytest.mark.parametrize(("shift", "gains"), [(0.2, True), (0.0, False), (-0.2, False)])
def test_a_candidate_gains_by_its_mean_and_its_p_value(shift, gains):
    chance = np.random.default_rng(0).normal(0, 0.05, 16)
    base = [{"seed": seed, "accuracy": 0.5} for seed in range(16)]
    rows = [{"seed": seed, "accuracy": 0.5 + shift + float(c - chance.mean())} for seed, c in enumerate(chance)]
    (verdict,) = candidates.judged({"one": rows}, base, 0.0125).values()
    assert verdict["gain"] == pytest.approx(shift, abs=1e-9)
    assert verdict["gains"] is gains


def test_what_is_recorded_is_what_the_runs_give():
    if not (RESULTS / "benchmarks" / "candidates.json").exists():
        pytest.skip("not recorded")
    found = book.benchmark("candidates")
    levels = {"selection": found["level"], "held out": candidates.LEVEL}
    for stage, seeds in (("selection", candidates.SELECTION), ("held out", candidates.HELD_OUT)):
        assert found["base"][stage] == candidates.recorded("digits", seeds)
        assert all([row["seed"] for row in rows] == list(seeds) for rows in found["runs"][stage].values())
        assert found["verdicts"][stage] == candidates.judged(found["runs"][stage], found["base"][stage], levels[stage])
    assert found["runs"]["selection"].keys() == candidates.CANDIDATES.keys()
    assert found["runs"]["held out"].keys() == {n for n, v in found["verdicts"]["selection"].items() if v["gains"]}


def test_what_did_not_hold_is_not_tried_elsewhere(monkeypatch):
    monkeypatch.setattr(
        candidates.book, "benchmark", lambda name: {"verdicts": {"held out": {"one": {"gains": False}}}}
    )
    with pytest.raises(JointVAEError, match="No candidate held on the digits"):
        candidates.tried(lambda *_: pytest.fail("trained"), candidates.RECIPE, [0])


def test_a_trial_pairs_what_held_with_the_recorded_runs(monkeypatch):
    verdicts = {"augmented": {"gains": False}, "augmented c": {"gains": True}}
    monkeypatch.setattr(candidates.book, "benchmark", lambda name: {"verdicts": {"held out": verdicts}})
    found = candidates.tried(lambda *asked: dict.fromkeys(asked[0], asked[1:]), candidates.RECIPE, [2, 0])
    assert found["runs"] == {"augmented c": (candidates.RECIPE, [2, 0])}
    assert found["base"] == candidates.recorded("digits", [2, 0])


def test_a_recorded_trial_is_of_what_held_beside_the_recorded_runs():
    if not (RESULTS / "benchmarks" / "candidates-mnist-short.json").exists():
        pytest.skip("not recorded")
    found, screened = book.benchmark("candidates-mnist-short"), book.benchmark("candidates")
    seeds = [row["seed"] for row in found["base"]]
    assert found["base"] == candidates.recorded(found["recipe"], seeds)
    assert found["runs"].keys() == {name for name, word in screened["verdicts"]["held out"].items() if word["gains"]}
    assert all(set(seeds) <= {row["seed"] for row in rows} for rows in found["runs"].values())
