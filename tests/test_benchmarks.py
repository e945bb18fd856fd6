"""The benchmarks measure what they say: workers that count, slopes of known curves, files that keep the machine."""

import copy
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import _shared  # noqa: E402
import growth  # noqa: E402
import layers  # noqa: E402
import profile_step  # noqa: E402
import threads  # noqa: E402
import together  # noqa: E402
import train_step  # noqa: E402

from jointvae import training  # noqa: E402


def naps(length):
    while True:
        time.sleep(length)
        yield


def test_a_worker_times_its_own_steps():
    worker = _shared.Worker(naps, 0.02, warm_up=1)
    worker.ready()
    short, memory = worker.time(2)
    long, _ = worker.time(20)
    worker.end()
    assert 0.04 <= short < long
    assert long >= 0.4
    assert memory > 0.01
    assert worker.process.exitcode == 0


def test_of_two_in_turns_the_slow_one_takes_so_many_times_as_long(capsys):
    slow, fast = (_shared.Worker(naps, length, warm_up=1) for length in (0.06, 0.02))
    found = _shared.in_turns(slow, fast, 3, 4, "{:.0f} times")
    assert found["ratio_median"] == pytest.approx(3, rel=0.3)
    assert (len(found["ratios"]), found["rounds"], found["steps"]) == (3, 3, 4)
    assert min(found["memory_gib"]) > 0.01
    assert capsys.readouterr().out.startswith("round 1: ")
    assert (slow.process.exitcode, fast.process.exitcode) == (0, 0)


def test_workers_side_by_side_take_the_time_of_one():
    workers = [_shared.Worker(naps, 0.1, warm_up=1) for _ in range(2)]
    for worker in workers:
        worker.ready()
    started = time.perf_counter()
    for worker in workers:
        worker.start(10)
    taken = [worker.wait()[0] for worker in workers]
    assert time.perf_counter() - started < 0.8 * sum(taken)
    for worker in workers:
        worker.end()


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_the_slope_of_a_power_is_its_exponent(exponent):
    x = [1, 2, 4, 8]
    assert growth.slope(x, [3 * v**exponent for v in x]) == pytest.approx(exponent, abs=1e-9)


@pytest.mark.parametrize(
    "point",
    [growth.BASE, growth.Point(seeds=2, batch=8), growth.Point(batch=8, side=64), growth.Point(batch=8, units=3)],
)
def test_every_point_of_the_curves_trains(point):
    steps = growth.steps(point)
    for _ in range(growth.STEPS_OF_DATA + 1):  # into the second epoch
        assert next(steps).isfinite().all()


def test_pytorchs_layers_have_our_weights_and_our_loss(started):
    model, config, x, noise = started
    model = copy.deepcopy(model)
    expected, _ = training.step_losses(model, config, x, noise, 700)
    before = copy.deepcopy(model.state_dict())
    assert layers.TransposedConvolution in map(type, model.modules())
    layers.pytorchs(model)
    assert layers.TransposedConvolution not in map(type, model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    found, _ = training.step_losses(model, config, x, noise, 700)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_distance_of_two_samples_is_that_of_their_distribution_functions():
    assert together.distance(np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.0, 4.0, 5.0, 6.0])) == 0.5
    assert together.distance(np.array([1.0, 2.0]), np.array([2.0, 1.0])) == 0


def test_chance_alone_explains_equal_samples_and_not_shifted_or_wider_ones():
    one = np.random.default_rng(0).normal(size=32)
    assert together.chance(one, one) == 1
    assert together.chance(one, one[::-1].copy()) == 1  # other pairs, the same distribution
    assert together.chance(one, one + 2) < 0.01
    assert together.chance(one, 10 * one) < 0.05  # the same mean


def test_the_curves_start_at_the_base():
    assert all(points[0] == growth.BASE for points in growth.CURVES.values())


@pytest.mark.parametrize(
    ("operator", "group"),
    [
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::convolution_backward", "convolutions"),
        ("aten::addmm", "linear layers"),
        ("aten::_fused_adam_", "optimiser (Adam)"),
        ("aten::exponential_", "noise"),
        ("aten::copy_", "moving data"),
        ("aten::something_new", "the rest"),
    ],
)
def test_operators_are_put_where_they_belong(operator, group):
    assert profile_step.group_of(operator) == group


def test_the_arithmetic_is_that_of_the_layers():
    """By hand: multiply-adds of the MNIST network, times two, times three passes."""
    convolutions = 16 * (1 * 32 * 16**2 + 32 * 64 * 8**2 + 64 * 64 * 4**2)
    transposed = 16 * (64 * 32 * 4**2 + 32 * 32 * 8**2 + 32 * 1 * 16**2)
    linear = 1024 * 256 + 256 * 30 + 20 * 256 + 256 * 1024
    counted = train_step.flop_per_image()
    assert counted == 6 * (convolutions + transposed + linear)


def test_without_a_gpu_the_result_says_that_nothing_was_measured(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    script = f"""
import pathlib, runpy, sys
from jointvae import runs
runs.RUNS = pathlib.Path({str(tmp_path)!r})  # the reader's own result stays as it is
sys.path.insert(0, "benchmarks")
runpy.run_path("benchmarks/many_seeds.py", run_name="__main__")
"""
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "not measured" in found.stdout
    written = json.loads((tmp_path / "benchmarks" / "many_seeds.json").read_text())
    assert written["measured"] is False
    assert written["provenance"]["torch"] == torch.__version__


def test_a_benchmark_of_the_readers_own_never_touches_the_recorded_one(tmp_path, monkeypatch):
    own = tmp_path / "runs" / "benchmarks" / "x.json"
    monkeypatch.setattr(_shared.runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(_shared.results, "RESULTS", tmp_path / "results")
    assert _shared.save("x", {"a": 1}, record=False) == own
    assert not (tmp_path / "results").exists()
    assert _shared.save("x", {"a": 2}, record=True) == tmp_path / "results" / "benchmarks" / "x.json"
    assert json.loads(own.read_text())["a"] == 1


def test_records_agree_if_they_differ_in_times_alone(make_record):
    record = make_record()
    later = replace(record.provenance[0], started="2027-01-01T00:00:00+00:00")
    again = replace(record, seconds=2.0, images_per_second=50.0, provenance=[later])
    assert threads.agree([record, again, record])
    others = [
        replace(record, checkpoint=replace(record.checkpoint, sha256="01")),
        replace(record, curves=record.curves | {"reconstruction": [200.0, 150.00001]}),
        replace(record, provenance=[replace(later, threads=2)]),
        make_record(accuracy=0.91),
    ]
    assert not any(threads.agree([record, again, other]) for other in others)


@pytest.mark.slow
def test_a_run_on_so_many_threads_has_a_process_and_a_folder_of_its_own(quick):
    before = torch.get_num_threads()
    try:
        records = [threads.trained(replace(quick, epochs=1), 1) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    assert records[0].provenance[0].threads == 1
    assert threads.agree(records)
    assert threads.outcome(records[0])["weights"] == records[1].checkpoint.sha256


@pytest.mark.parametrize("recipe", ["mnist", "mnist-augmented"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_our_steps_are_those_of_the_recipe(monkeypatch, digits, recipe, precision):
    monkeypatch.setattr(train_step.data, "load", lambda name, split: digits)
    steps = train_step.our_steps(recipe, precision)
    found = [next(steps) for _ in range(4)]  # the digits make three batches: the fourth is of the second epoch
    trainer = training.Trainer(replace(training.recipe(recipe), precision=precision))
    for epoch in (0, 1):
        for batch in training.epoch_order(trainer.config, epoch, len(digits)).split(64):
            losses = trainer.train_step(digits.batch(batch))
            assert found.pop(0) == losses.sum().item()
            if not found:
                return
