"""Many seeds as one model: each learns what it learns alone, whatever its companions, through interruptions too."""

import contextlib
import weakref
from dataclasses import replace

import pytest
import torch

from jointvae import batched, results, runs, training
from jointvae.batched import BatchedTrainer
from jointvae.errors import JointVAEError
from jointvae.files import BusyError
from jointvae.latents import LatentSpec, draw_noise
from jointvae.model import ImageShape
from jointvae.objectives import (
    ELBO,
    AgreedInformation,
    AnnealedCapacity,
    AugmentedInformation,
    BetaVAE,
    Capacity,
    ChargedInformation,
    SplitCapacity,
    SplitInformation,
)

# A grouped convolution adds up in another order than a plain one. In float64, relative to the largest entry.
ROUNDING = 1e-10


# Of the way that a run went, in float32. What is left are the signs of gradients that are rounding alone, and
# processors round in several ways. Another seed is farther by more than ten times, as a test below asserts.
NEAR = 0.05


def trainers(config, *seeds):
    return [training.Trainer(replace(config, seed=seed)) for seed in seeds]


def doubled(config):
    """Trainers of two seeds in float64."""
    pair = trainers(config, 0, 5)
    for trainer in pair:
        trainer.model.double()
    return pair


def close(ours, theirs, tolerance=ROUNDING):
    return torch.allclose(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


def vector(model):
    return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])


def apart(one, other):
    """How far two runs of one seed are apart, as a share of the way that they went.

    Adam takes a whole step for the sign of a gradient that is rounding alone. So single weights differ by steps, and
    the vector of all hardly does.
    """
    first, second, start = vector(one.model), vector(other.model), vector(training.build(one.config))
    return float((first - second).norm() / (second - start).norm())


def gradients(batch):
    """For each seed, the gradients that the last step left, one vector."""
    stacked = [p.grad.flatten(1) for p in batch.weights.values()]
    return torch.cat(stacked, dim=1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": ELBO()},
        {"objective": BetaVAE(4.0)},
        {"objective": AnnealedCapacity(30.0, Capacity(0.0, 7.0, 100))},
        {"objective": SplitCapacity(100.0, C_c=Capacity(0.0, 10.0, 3, ceiling=1.0))},
        {"objective": SplitInformation(30.0), "latents": LatentSpec(2, (10, 3))},
        {"objective": AugmentedInformation(30.0)},
        {"objective": AgreedInformation(30.0)},
        {"objective": ChargedInformation(30.0), "latents": LatentSpec(2, (10, 3))},
        {"latents": LatentSpec(0, (10, 3))},
        {"latents": LatentSpec(5, ())},
        {"image": ImageShape(3, 64)},
    ],
    ids=str,
)
def test_losses_and_gradients_are_those_of_single_runs(quick, changes, generator):
    config = replace(quick, **changes)
    alone, together = doubled(config), doubled(config)
    batch = BatchedTrainer(together)
    shape = 2, 8, config.image.channels, config.image.size, config.image.size
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    noise = batch.draw_noise(8)
    losses = batch.train_step(x, noise, batch.images_of_c(x, 1))
    for i, trainer in enumerate(alone):
        expected = trainer.train_step(x[i])  # draws the same noise, from its own generator
        assert close(losses[i], expected)
        own = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        assert close(gradients(batch)[i], own)


def test_half_the_bits_are_refused_where_they_would_not_be_half(quick, tmp_path):
    config = replace(quick, precision="bfloat16")
    with pytest.raises(JointVAEError, match=r"in float32: for bfloat16, leave out --together\.$"):
        BatchedTrainer(trainers(config, 0, 5))
    with pytest.raises(JointVAEError, match="leave out --together"):
        runs.sweep_together(runs.seeds(config, 0, 2), tmp_path, "cpu", lambda *_: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: bfloat16 was not compared")
def test_in_bfloat16_too_seeds_together_do_what_each_does_alone(quick, generator):
    """A grouped convolution rounds other sums than a plain one, by 2 ** -8 of each."""
    config = replace(quick, precision="bfloat16")
    alone, pair = ([training.Trainer(replace(config, seed=s), "cuda") for s in (0, 5)] for _ in range(2))
    batch = BatchedTrainer(pair)
    x = torch.rand(2, 8, 1, 32, 32, generator=generator).to(batch.device)
    losses = batch.train_step(x, batch.draw_noise(8))
    for i, trainer in enumerate(alone):
        assert torch.allclose(losses[i], trainer.train_step(x[i]), rtol=2**-7, atol=2**-7)
        own = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        assert torch.nn.functional.cosine_similarity(gradients(batch)[i], own, dim=0) > 0.99


def test_steps_are_those_of_single_runs(quick, generator):
    alone, together = doubled(quick), doubled(quick)
    batch = BatchedTrainer(together)
    for _ in range(5):
        x = torch.rand(2, 8, 1, 32, 32, generator=generator, dtype=torch.float64)
        batch.train_step(x, batch.draw_noise(8))
        for i, trainer in enumerate(alone):
            trainer.train_step(x[i])
    batch.write_back()
    for one, other in zip(alone, together, strict=True):
        assert close(vector(other.model), vector(one.model))


@pytest.mark.parametrize("objective", [SplitCapacity(10.0), AugmentedInformation(10.0)], ids=lambda one: one.name)
def test_an_epoch_leaves_the_weights_moments_curves_and_noise_of_single_runs(quick, digits, objective):
    quick = replace(quick, objective=objective)
    alone, together = trainers(quick, 3, 4), trainers(quick, 3, 4)
    batch = BatchedTrainer(together)
    for _ in range(2):
        batch.train_epoch(digits)
    for one, other in zip(alone, together, strict=True):
        for _ in range(2):
            one.train_epoch(digits)
        assert (other.step, other.epoch) == (one.step, one.epoch) == (6, 2)
        assert other.curves["reconstruction"] == pytest.approx(one.curves["reconstruction"], rel=1e-5)
        assert other.curves["C_z"] == one.curves["C_z"]
        assert torch.equal(other.noise.get_state(), one.noise.get_state())
        assert apart(one, other) < NEAR
        for p, q in zip(other.model.parameters(), one.model.parameters(), strict=True):
            assert close(other.optimizer.state[p]["exp_avg"], one.optimizer.state[q]["exp_avg"], 1e-2)
            assert other.optimizer.state[p]["step"] == one.optimizer.state[q]["step"] == 6


def test_companions_make_no_difference(quick, digits):
    few, many = trainers(quick, 1, 2), trainers(quick, 7, 2, 9, 1)
    BatchedTrainer(few).train_epoch(digits)
    BatchedTrainer(many).train_epoch(digits)
    assert apart(few[0], many[3]) < NEAR
    assert apart(few[1], many[1]) < NEAR
    assert apart(few[0], replaced_seed(few[0], many[1])) > 10 * NEAR


def replaced_seed(run, other):
    """Another seed's weights under this run's seed, for a comparison that must fail."""
    swapped = training.Trainer(run.config)
    swapped.model.load_state_dict(other.model.state_dict())
    return swapped


def test_stopped_and_continued_is_the_same_bit_for_bit(quick, digits, tmp_path):
    whole, parts = trainers(quick, 0, 1), trainers(quick, 0, 1)
    batch = BatchedTrainer(whole)
    for _ in range(3):
        batch.train_epoch(digits)
    BatchedTrainer(parts).train_epoch(digits)
    for trainer in parts:
        trainer.save(tmp_path / str(trainer.config.seed))
    again = trainers(quick, 0, 1)
    for trainer in again:
        trainer.resume(tmp_path / str(trainer.config.seed))
    batch = BatchedTrainer(again)
    for _ in range(2):
        batch.train_epoch(digits)
    for one, other in zip(whole, again, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True))
        assert one.curves == other.curves


def test_a_run_that_breaks_leaves_the_others_alone(quick, digits):
    sound, pair = trainers(quick, 1), trainers(quick, 0, 1)
    with torch.no_grad():
        pair[0].model.decoder[0].bias.fill_(float("nan"))
    heard = []
    failed = BatchedTrainer(pair).train_epoch(digits, lambda trainer, news: heard.append(trainer.config.seed))
    assert set(failed) == {0}
    assert "step 1: the reconstruction is nan" in str(failed[0])
    assert set(heard) == {1}
    sound[0].train_epoch(digits)
    assert apart(pair[1], sound[0]) < NEAR


def test_a_run_whose_means_overflow_leaves_the_others_alone(quick, digits):
    pair = trainers(quick, 0, 1)
    batch = BatchedTrainer(pair)
    losses = torch.ones(2, 12)
    losses[0, 0] = 3e38
    batch.epoch_steps = lambda data: iter([losses] * 3)
    failed = batch.train_epoch(digits)
    assert "step 3: the reconstruction is inf" in str(failed.pop(0))
    assert failed == {}
    assert [trainer.curves["step"] for trainer in pair] == [[], [3]]


@pytest.mark.parametrize("change", [{"tau": 0.5}, {"learning_rate": 1e-4}])
def test_only_seeds_may_differ(quick, change):
    with pytest.raises(JointVAEError, match="nothing but the seed"):
        BatchedTrainer([training.Trainer(quick), training.Trainer(replace(quick, seed=1, **change))])


def test_runs_at_different_epochs_are_trained_apart(quick, digits):
    first, second, third = trainers(quick, 0, 1, 2)
    second.train_epoch(digits)
    with pytest.raises(JointVAEError, match="same epoch"):
        BatchedTrainer([first, second])
    assert batched.at_one_epoch([first, second, third]) == [[second], [first, third]]


def test_a_turn_leaves_its_memory_to_the_next(short, tmp_path, monkeypatch):
    made, alive = [], []

    def start(*arguments):
        trainer = start_or_resume(*arguments)
        alive.append(sum(one() is not None for one in made))
        made.append(weakref.ref(trainer))
        return trainer

    start_or_resume = runs._start_or_resume
    monkeypatch.setattr(runs, "_start_or_resume", start)
    monkeypatch.setattr(batched, "seeds_that_fit", lambda *_: 2)
    runs.sweep_together(runs.seeds(short, 0, 5), tmp_path, "cpu", lambda *_: None)
    assert alive == [0, 1, 0, 1, 0]


def test_the_estimate_of_memory_grows_with_what_a_step_keeps(quick):
    base = batched.bytes_per_seed(quick, 1000)
    weights = sum(p.nbytes for p in training.build(quick).parameters())
    assert base > 4 * weights
    doubled = batched.bytes_per_seed(replace(quick, batch_size=2 * quick.batch_size), 1000)
    assert (doubled - 4 * weights) / (base - 4 * weights) == pytest.approx(2, rel=0.2)
    # A batch has no more images than there are.
    huge, full = (batched.bytes_per_seed(replace(quick, batch_size=size), 20) for size in (10**9, 20))
    assert huge == full


def test_at_least_one_seed_fits_and_more_with_more_memory(quick, monkeypatch):
    class Memory:
        available = 0

    monkeypatch.setattr(batched.psutil, "virtual_memory", lambda: Memory)
    cpu = torch.device("cpu")
    assert batched.seeds_that_fit(quick, cpu, 1000) == 1
    Memory.available = int(10.5 * batched.bytes_per_seed(quick, 1000) / batched.SHARE)
    assert batched.seeds_that_fit(quick, cpu, 1000) == 10


def test_full_batches_are_replayed_once_the_first_steps_are_made(quick, digits, monkeypatch):
    """Of 160 images in batches of 64 the third is short. What a graph does on a GPU, the plain step does here."""
    made, replayed = [], []

    class Played:
        def __init__(self, step, *given):
            self.step = step
            made.append(self)

        def replay(self, x, noise, x_c):
            replayed.append(x.shape[1])
            return self.step(x, noise, x_c)

    monkeypatch.setattr(batched, "_Graph", Played)
    captured, plain = BatchedTrainer(trainers(quick, 0, 1)), BatchedTrainer(trainers(quick, 0, 1))
    captured.captures = True
    for batch in (captured, plain):
        for _ in range(3):
            assert batch.train_epoch(digits) == {}
    assert (len(made), replayed) == (1, [64] * 4)
    for one, other in zip(captured.trainers, plain.trainers, strict=True):
        assert one.curves == other.curves


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the captured step was not compared")
def test_the_captured_step_is_the_plain_one(quick, digits):
    """On a GPU alone: after the first steps they are replayed from a graph."""
    on_gpu = digits.to(runs.choose_device("cuda"))
    config = replace(quick, batch_size=16, epochs=1)
    plain, captured = ([training.Trainer(replace(config, seed=s), "cuda") for s in (0, 1)] for _ in range(2))
    batch = BatchedTrainer(captured)
    batch.train_epoch(on_gpu)
    assert batch.graph is not None
    for one, other in zip(plain, captured, strict=True):
        one.train_epoch(on_gpu)
        assert apart(other, one) < NEAR


def test_noise_for_all_seeds_is_the_noise_of_each(quick):
    pair = trainers(quick, 0, 1)
    stacked = BatchedTrainer(pair).draw_noise(4)
    for i, trainer in enumerate(trainers(quick, 0, 1)):
        own = draw_noise(quick.latents, (4,), trainer.noise)
        assert torch.equal(stacked.epsilon[i], own.epsilon)
        assert torch.equal(stacked.g[0][i], own.g[0])


@pytest.fixture
def short():
    """Two epochs of the digits recipe in large batches, for runs from start to record."""
    return replace(training.recipe("digits"), epochs=2, batch_size=256)


def test_a_sweep_together_gives_the_records_of_a_sweep_of_single_runs(short, tmp_path):
    said = []
    configs = runs.seeds(short, 0, 2)
    swept = runs.sweep_together(configs, tmp_path / "together", "cpu", lambda name, news: said.append((name, news)))
    assert [record.config for record in swept] == configs
    for record in swept:
        alone = runs.run(record.config, tmp_path / "alone", "cpu")
        assert record.curves["reconstruction"] == pytest.approx(alone.curves["reconstruction"], rel=1e-4)
        assert record.test.reconstruction == pytest.approx(alone.test.reconstruction, rel=1e-3)
        assert record.data == alone.data
        runs.load(record, tmp_path / "together")  # the weights are those that the record names
    assert [name for name, news in said if news == "done"] == [config.run_name for config in configs]
    assert not list((tmp_path / "together").glob("*.training"))
    before = [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "together").iterdir())]
    assert runs.sweep_together(configs, tmp_path / "together", "cpu", lambda *_: None) == swept
    assert before == [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "together").iterdir())]


def test_it_goes_on_with_what_single_runs_left(short, tmp_path):
    """One seed is done, one stands after an epoch, one is new: an interrupted sweep, whatever its kind."""
    configs = runs.seeds(short, 0, 3)
    done = runs.run(configs[0], tmp_path, "cpu")

    def interrupt(news):
        if news.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run(configs[1], tmp_path, "cpu", interrupt)
    first, second, third = runs.sweep_together(configs, tmp_path, "cpu", lambda *_: None)
    assert first == done
    assert len(second.provenance) == 2
    assert len(third.provenance) == 1
    assert second.curves["step"] == third.curves["step"]
    alone = runs.run(configs[1], tmp_path / "alone", "cpu")
    assert second.curves["reconstruction"] == pytest.approx(alone.curves["reconstruction"], rel=1e-4)


def test_too_little_memory_is_said_and_costs_time_alone(short, tmp_path, monkeypatch):
    monkeypatch.setattr(batched, "seeds_that_fit", lambda config, device, images: 2)
    said = []
    configs = runs.seeds(replace(short, epochs=1), 0, 3)
    swept = runs.sweep_together(configs, tmp_path, "cpu", lambda name, news: said.append(news))
    assert len({record.checkpoint.sha256 for record in swept}) == 3
    assert said[0] == "3 seeds need more memory than is free; training 2 at a time"


def test_a_failed_seed_is_recorded_and_raised_after_the_others_are_done(short, tmp_path, monkeypatch):
    build = training.build

    def break_seed_1(config, device="cpu"):
        model = build(config, device)
        if config.seed == 1:
            model.decoder[0].bias.data.fill_(float("nan"))
        return model

    monkeypatch.setattr(training, "build", break_seed_1)
    with pytest.raises(training.NonFiniteLossError, match="reconstruction is nan"):
        runs.sweep_together(runs.seeds(short, 0, 3), tmp_path, "cpu", lambda *_: None)
    found = {record.config.seed: record.status for record in results.records(tmp_path)}
    assert found == {0: "finished", 1: "failed", 2: "finished"}
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    with pytest.raises(training.NonFiniteLossError, match=r"reconstruction is nan.* is recorded in .*seed1.*\.json"):
        runs.sweep_together(runs.seeds(short, 0, 3), tmp_path, "cpu", lambda *_: None)


def test_a_damaged_state_stops_its_own_seed_alone(short, tmp_path):
    configs = runs.seeds(short, 0, 3)
    state = tmp_path / f"{configs[1].run_name}.training"
    state.write_bytes(b"rubbish")
    said = []
    with pytest.raises(JointVAEError, match=r"is damaged .* delete it, then train again"):
        runs.sweep_together(configs, tmp_path, "cpu", lambda name, news: said.append((name, str(news))))
    assert [record.config.seed for record in results.records(tmp_path)] == [0, 2]
    assert [name for name, news in said if "is damaged" in news] == [configs[1].run_name]
    state.unlink()  # the way out that the sentence names
    assert [record.config for record in runs.sweep_together(configs, tmp_path, "cpu", lambda *_: None)] == configs


@pytest.mark.parametrize(("soft", "hard", "asked"), [(64, 100, 100), (64, 4096, 1064), (64, -1, 1064), (-1, -1, None)])
def test_as_many_files_may_be_open_as_the_system_allows(monkeypatch, soft, hard, asked):
    limits = []
    monkeypatch.setattr(runs.resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(runs.resource, "setrlimit", lambda kind, both: limits.append(both))
    runs._allow_open_files(1000)
    assert limits == ([] if asked is None else [(asked, hard)])


def test_locks_are_taken_in_one_order_whatever_that_of_the_sweep(short, tmp_path, monkeypatch, make_record):
    """In the orders of two sweeps, each could hold what the other one waits for."""
    configs, taken = runs.seeds(short, 0, 3), []

    def alone(config, folder, wait):
        if not wait:
            raise BusyError("Another process is at it.")
        taken.append(config.seed)
        return contextlib.nullcontext()

    def record_of(config, folder):
        results.write(folder / f"{config.run_name}.json", replace(make_record(), name=config.run_name, config=config))

    monkeypatch.setattr(runs, "_alone", alone)

    def train(configs, folder, *rest):
        for config in configs:
            record_of(config, folder)
        return {}

    monkeypatch.setattr(runs, "_train_together", train)
    for folder, asked in ((tmp_path / "a", configs), (tmp_path / "b", configs[::-1])):
        taken.clear()
        record_of(configs[1], folder)
        assert [record.config for record in runs.sweep_together(asked, folder, "cpu", lambda *_: None)] == asked
        assert taken == [0, 2]  # not that of the run that is recorded
