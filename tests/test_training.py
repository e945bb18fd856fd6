"""The loop: resume bit for bit, a killed process, a golden run, and losses that are not finite."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from jointvae import augmentation, checkpoints, results, training
from jointvae.errors import JointVAEError
from jointvae.latents import LatentSpec, Posterior, draw_noise
from jointvae.objectives import (
    AgreedInformation,
    AnnealedCapacity,
    AugmentedInformation,
    BetaVAE,
    Capacity,
    ChargedInformation,
    SplitCapacity,
    SplitInformation,
)


def weights(trainer: training.Trainer) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in trainer.model.state_dict().values()]


def trained(config, digits, path, hook=None) -> training.Trainer:
    trainer = training.Trainer(config)
    if path.exists():
        trainer.resume(path)
    training.train(trainer, digits, path, hook)
    return trainer


def equal(first: training.Trainer, second: training.Trainer) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def test_golden_run(quick, digits, tmp_path):
    """Recorded once from this code; a change of the mathematics, the order or the noise moves it by far more."""
    curves = trained(quick, digits, tmp_path / "state").curves
    assert curves["step"] == [3, 6, 9]
    assert curves["reconstruction"] == pytest.approx([672.338, 665.978, 651.176], abs=0.05)
    assert [sum(units) for units in curves["kl_z"]] == pytest.approx([0.009213, 0.003562, 0.008189], abs=2e-4)
    assert [sum(units) for units in curves["kl_c"]] == pytest.approx([0.001433, 0.002164, 0.003235], abs=1e-4)
    for name in ("C_z", "C_c"):  # 5 nats over 2,500 steps
        assert curves[name] == pytest.approx([0.006, 0.012, 0.018])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state["curves"]["kl_c"].pop(),
        lambda state: state.update(epoch=9, curves={name: [0.0] * 9 for name in state["curves"]}),
    ],
    ids=["a curve is short", "past the last epoch"],
)
def test_a_state_that_contradicts_itself_is_not_gone_on_with(quick, digits, tmp_path, spoil):
    path = tmp_path / "x.training"
    trainer = trained(quick, digits, path)
    tensors, state = checkpoints._unpack(path)
    spoil(state)
    path.write_bytes(checkpoints._pack(tensors, state))
    fresh = training.Trainer(quick)
    with pytest.raises(JointVAEError, match="damaged"):
        fresh.resume(path)
    assert (fresh.epoch, trainer.epoch) == (0, 3)


def test_in_bfloat16_the_layers_are_rounded_and_nothing_else_is(started):
    model, config, x, noise = started
    halved, types = replace(config, precision="bfloat16"), set()

    def vector(config):
        model.zero_grad()
        loss, losses = training.step_losses(model, config, x, noise, 700)
        loss.backward()
        assert (loss.dtype, losses.dtype) == (torch.float32, torch.float32)
        return losses, torch.cat([p.grad.flatten() for p in model.parameters()])

    expected, slope = vector(config)
    kinds = torch.nn.Conv2d | torch.nn.ConvTranspose2d | torch.nn.Linear
    layers = [layer for layer in model.modules() if isinstance(layer, kinds)]
    hooks = [layer.register_forward_hook(lambda *seen: types.add(seen[-1].dtype)) for layer in layers]
    drawn = []
    hooks.append(model.decoder.register_forward_pre_hook(lambda _, given: drawn.append(given[0].dtype)))
    losses, rounded = vector(halved)
    for hook in hooks:
        hook.remove()
    assert (types, drawn) == ({torch.bfloat16}, [torch.float32])
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert not torch.equal(losses, expected)
    torch.testing.assert_close(losses[0], expected[0], rtol=2**-7, atol=0)  # the reconstruction, by bfloat16's spacing
    assert torch.nn.functional.cosine_similarity(rounded, slope, dim=0) > 0.99


def test_a_run_in_bfloat16_has_a_name_of_its_own_and_the_others_keep_theirs(quick):
    assert replace(training.recipe("mnist"), precision="bfloat16").run_name.startswith("mnist-seed0-")
    assert replace(quick, seed=3).run_name == "digits-seed3-979c31ed"  # as before there was a choice
    assert replace(quick, seed=3, precision="bfloat16").run_name != replace(quick, seed=3).run_name


def test_split_information_holds_the_information_of_the_batch_and_the_others_the_divergence(quick, generator):
    x = torch.rand(8, 1, 32, 32, generator=generator)
    shut = Capacity(0.0, 0.0, 1)
    for kind, measure in ((SplitCapacity, "kl_c"), (SplitInformation, "information")):
        trainer = training.Trainer(replace(quick, objective=kind(30.0, shut, shut)))
        with torch.no_grad():
            trainer.model.head.bias[-10:] = torch.arange(10.0)  # the same favourite for all: KL_c without information
        posterior = trainer.model.encode(x)
        loss, terms = training.step_losses(trainer.model, trainer.config, x, generator, 1)
        held = getattr(posterior, measure)()
        expected = terms[0] + 30 * (posterior.kl_z().mean(0).sum() + (held if held.dim() == 1 else held.mean(0)).sum())
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert posterior.information().item() < 0.1 < 1 < posterior.kl_c().mean().item()


def test_augmented_information_reads_c_alone_from_another_image(quick, generator):
    """z and what is rebuilt don't see the map; c does; without a map it is SplitInformation."""
    x = torch.rand(8, 1, 32, 32, generator=generator)
    objective = AugmentedInformation(30.0, Capacity(), Capacity(end=2.0))
    config = replace(quick, objective=objective)
    model, noise = training.build(config), draw_noise(config.latents, (8,), generator)
    x_c = training.images_of_c(config, x, 7)
    assert torch.equal(x_c, objective.transformation(x, augmentation.draw(config.seed, 7, 8)))
    seen = {}
    model.decode = lambda latent: seen.setdefault("latent", latent).new_zeros(x.shape)
    _, terms = training.step_losses(model, config, x, noise, 7, x_c)
    plain, other = model.encode(x), model.encode(x_c)
    expected = Posterior(plain.mu, plain.logvar, other.logits).sample(noise, config.tau)
    assert torch.equal(seen["latent"], expected)
    assert not torch.equal(plain.logits[0], other.logits[0])
    assert terms[0].item() == pytest.approx(1024 * math.log(2), rel=1e-4)
    held = replace(config, objective=SplitInformation(30.0, objective.C_z, objective.C_c))
    assert training.images_of_c(held, x, 7) is None
    still = replace(config, objective=replace(objective, transformation=augmentation.Affine(0.0, 0.0, 0.0, 0.0)))
    del model.decode
    for one, two in zip(
        training.step_losses(model, still, x, noise, 7, training.images_of_c(still, x, 7)),
        training.step_losses(model, held, x, noise, 7),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("capacity", [0.0, 9.0], ids=["above", "below"])
def test_agreed_and_charged_information_are_their_formulas(quick, generator, capacity):
    """One holds the information of the mean posterior, the other adds the Jensen-Shannon divergence to the loss."""
    x, spec = torch.rand(8, 1, 32, 32, generator=generator), LatentSpec(2, (10, 3))
    C_z, C_c = Capacity(0.0, 0.0, 1), Capacity(capacity, capacity, 1)
    config = replace(quick, latents=spec, objective=AugmentedInformation(30.0, C_z, C_c))
    model, noise = training.build(config), draw_noise(spec, (8,), generator)
    with torch.no_grad():
        model.head.weight[-13:] *= 500  # so that the two differ
    x_c = training.images_of_c(config, x, 7)

    def loss_of(kind):
        return training.step_losses(model, replace(config, objective=kind(30.0, C_z, C_c)), x, noise, 7, x_c)

    plain, terms = loss_of(AugmentedInformation)
    agreed, same = loss_of(AgreedInformation)
    charged, too = loss_of(ChargedInformation)
    assert torch.equal(terms, same)  # the draw and the curves are those of AugmentedInformation
    assert torch.equal(terms, too)
    Categorical, apart = torch.distributions.Categorical, torch.distributions.kl_divergence
    units = zip(model.encode(x).logits, model.encode(x_c).logits, strict=True)
    pairs = [torch.stack(pair).double().softmax(-1) for pair in units]
    held = sum(apart(Categorical(p.mean(0)), Categorical(p.mean((0, 1)))).mean() for p in pairs)
    prices = [apart(Categorical(p), Categorical(p.mean(0))).mean().item() for p in pairs]
    assert min(prices) > 0.001
    kl_z = model.encode(x).kl_z().mean(0).sum()
    assert agreed.item() == pytest.approx((terms[0] + 30 * (kl_z + (held - capacity).abs())).item(), rel=1e-5)
    assert (charged - plain).item() == pytest.approx(30 * sum(prices), rel=1e-3)


@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize("objective", [SplitCapacity(10.0), AugmentedInformation(10.0)], ids=lambda one: one.name)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_is_the_same_bit_for_bit(quick, digits, tmp_path, stop, objective, precision):
    quick = replace(quick, objective=objective, precision=precision)
    whole = trained(quick, digits, tmp_path / "whole")
    first = training.Trainer(quick)
    for _ in range(stop):
        first.train_epoch(digits)
    first.save(tmp_path / "half")
    second = trained(quick, digits, tmp_path / "half")
    assert equal(whole, second)
    assert second.curves == whole.curves
    assert second.step == whole.step == 9


def test_another_seed_is_another_run(quick, digits, tmp_path):
    first = trained(quick, digits, tmp_path / "first")
    second = trained(replace(quick, seed=1), digits, tmp_path / "second")
    assert not equal(first, second)


def test_the_seed_alone_decides_the_weights(quick):
    torch.manual_seed(1)
    first = training.build(quick)
    torch.manual_seed(2)
    second = training.build(quick)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


KILLED = """
import os, signal, sys
from jointvae import __main__ as cli
from jointvae.training import Trainer

train_step = Trainer.train_step

def step_or_die(trainer, x):
    if trainer.step == 60:  # of 90
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(trainer, x)

Trainer.train_step = step_or_die
sys.exit(cli.main(sys.argv[1:]))
"""


def test_killed_process_resumes_to_the_same_weights(tmp_path):
    """kill -9 in the second epoch, the same command again, and the file of weights is the same byte for byte."""
    from jointvae.files import sha256

    def run(folder: str, *python: str) -> int:
        command = ["train", "digits", "--epochs", "2", "--out", str(tmp_path / folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, *python, *command], capture_output=True, env=environment).returncode

    assert run("whole", "-m", "jointvae") == 0
    assert run("killed", "-c", KILLED) == -signal.SIGKILL
    assert [path.suffix for path in (tmp_path / "killed").glob("*.*") if path.suffix != ".lock"] == [".training"]
    assert run("killed", "-m", "jointvae") == 0
    sums = [sha256(next((tmp_path / folder).glob("*.safetensors"))) for folder in ("whole", "killed")]
    assert sums[0] == sums[1]
    assert not list((tmp_path / "killed").glob("*.training"))


def test_every_epoch_sees_every_image_once(quick):
    first, second = (training.epoch_order(quick, epoch, 100) for epoch in (0, 1))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(100))
    assert first.tolist() != second.tolist()


def test_every_seed_and_epoch_has_an_order_of_its_own(quick):
    orders = {
        tuple(training.epoch_order(replace(quick, seed=seed), epoch, 100).tolist())
        for seed in range(10)
        for epoch in range(10)
    }
    assert len(orders) == 100


def test_the_hook_hears_the_means_in_nats(quick, digits, tmp_path):
    heard = []
    trained(quick, digits, tmp_path / "state", heard.append)
    assert [news.step for news in heard] == [3, 6, 9]
    assert all(news.steps == 9 for news in heard)
    assert heard[0].reconstruction > 100
    assert set(heard[0].capacities) == {"C_z", "C_c"}
    assert all(news.images_per_second > 0 for news in heard)


def test_a_loss_that_is_not_finite_stops_with_step_term_and_advice(quick, digits):
    trainer = training.Trainer(quick)
    trainer.train_epoch(digits)
    before = trainer.curves["step"].copy()
    with torch.no_grad():
        trainer.model.decoder[0].bias.fill_(float("nan"))
    with pytest.raises(training.NonFiniteLossError, match=r"step 4: the reconstruction is nan.*learning rate"):
        trainer.train_epoch(digits)
    assert trainer.curves["step"] == before


def test_means_that_overflow_stop_it_too(quick, digits, monkeypatch):
    """A record can't hold infinity."""
    trainer, losses = training.Trainer(quick), torch.ones(12)
    losses[0] = 3e38

    def step(x):
        trainer.step += 1
        return losses

    monkeypatch.setattr(trainer, "train_step", step)
    with pytest.raises(training.NonFiniteLossError, match="step 3: the reconstruction is inf"):
        trainer.train_epoch(digits)
    assert trainer.curves["step"] == []


def test_the_broken_divergence_is_named(quick):
    trainer = training.Trainer(quick)
    trainer.step = 12
    losses = torch.ones(3, 12)
    losses[1, 3] = float("inf")
    with pytest.raises(training.NonFiniteLossError, match="step 11: KL_z of unit 2 is inf"):
        trainer.stop_if_not_finite(losses)
    losses[0, 11] = float("nan")
    with pytest.raises(training.NonFiniteLossError, match="step 10: KL_c is nan"):
        trainer.stop_if_not_finite(losses)


@pytest.mark.parametrize(
    "changes",
    [
        {"latents": LatentSpec(0, (10, 3))},
        {"latents": LatentSpec(5, ())},
        {"objective": BetaVAE(4.0)},
        {"objective": AnnealedCapacity(30.0, Capacity(0.0, 7.0, 100))},
        {"objective": SplitCapacity(0.0)},
    ],
    ids=str,
)
def test_any_layout_and_objective_trains(quick, digits, tmp_path, changes):
    config = replace(quick, epochs=1, **changes)
    trainer = trained(config, digits, tmp_path / "state")
    assert trainer.step == 3
    assert all(tensor.isfinite().all() for tensor in weights(trainer))


def test_training_learns(quick, digits, tmp_path):
    curves = trained(replace(quick, epochs=12), digits, tmp_path / "state").curves
    assert curves["reconstruction"][-1] < 0.85 * curves["reconstruction"][0]


@pytest.mark.parametrize(
    "change",
    [
        {"tau": 0.0},
        {"batch_size": 0},
        {"learning_rate": -1.0},
        {"epochs": 0},
        {"seed": -1},
        {"tau": float("nan")},
        {"recipe": "a\nb"},
        {"recipe": "../up"},
        {"recipe": ""},
        {"dataset": "x" * 51},
        {"dataset": "\ud800"},
    ],
)
def test_senseless_configs_are_refused(quick, change):
    with pytest.raises(JointVAEError) as caught:
        replace(quick, **change)
    assert str(caught.value).isprintable()


def test_a_changed_recipe_has_another_name(quick):
    assert replace(training.recipe("mnist"), seed=5).run_name == "mnist-seed5"
    names = {quick.run_name, replace(quick, tau=0.5).run_name, replace(quick, seed=1).run_name}
    assert len(names) == 3
    assert all(name.startswith("digits-seed") and name.count("-") == 2 for name in names)


def test_an_augmented_recipe_is_the_recipe_but_for_what_c_is_read_from():
    augmented = [name for name in training.RECIPES if name.endswith("-augmented")]
    assert augmented
    for name in augmented:
        theirs, ours = training.recipe(name.removesuffix("-augmented")), training.recipe(name)
        assert isinstance(ours.objective, AugmentedInformation)
        assert ours.objective.capacities(100) == theirs.objective.capacities(100)
        assert ours.objective.gamma == theirs.objective.gamma
        assert replace(ours, recipe=theirs.recipe, objective=theirs.objective) == theirs
        record = json.loads(json.dumps(asdict(ours)))
        assert results.validate(record, training.Config) == ours


def test_the_recipes_are_the_papers():
    mnist, fashion = training.recipe("mnist"), training.recipe("fashion")
    assert (mnist.objective.gamma, fashion.objective.gamma) == (30, 100)
    assert (mnist.objective.C_c.steps, fashion.objective.C_c.steps) == (25_000, 50_000)
    assert mnist.tau == fashion.tau == 0.67
    assert -(-60_000 // mnist.batch_size) * mnist.epochs == 93_800
