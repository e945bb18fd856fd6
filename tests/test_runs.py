"""From config to record, the command line, and what bad input leaves behind."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from jointvae import __main__ as cli
from jointvae import book, claims, data, files, results, runs, training
from jointvae.errors import JointVAEError
from jointvae.latents import LatentSpec


@pytest.fixture
def tiny(monkeypatch, digits) -> training.Config:
    """One epoch on three batches."""
    monkeypatch.setattr(data, "load", lambda name, split, size=32: replace(digits, split=split))
    return replace(training.recipe("digits"), epochs=1)


def test_a_run_is_recorded_once(tiny, tmp_path):
    record = runs.run(tiny, tmp_path, "cpu")
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert set(files) == {f"{record.name}.json", f"{record.name}.safetensors"}
    assert runs.run(tiny, tmp_path, "cpu") == record
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    assert record.test.split == "test"
    assert len(record.provenance) == 1


def test_on_a_gpu_too_float32_means_float32_and_sums_have_one_order(monkeypatch):
    """PyTorch's defaults would let convolutions read TF32 and add up in any order."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    runs.choose_device("cpu")
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.conv.fp32_precision != "tf32"
    assert torch.backends.cudnn.deterministic
    assert torch.backends.cuda.matmul.fp32_precision in ("none", "ieee")  # nobody has turned it on


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: two runs on one were not compared")
def test_on_a_gpu_two_runs_of_a_seed_are_equal_bit_for_bit(tiny, tmp_path):
    weights = []
    for name in ("first", "second"):
        record = runs.run(tiny, tmp_path / name, "cuda")
        weights.append((tmp_path / name / record.checkpoint.file).read_bytes())
    assert weights[0] == weights[1]


def test_the_record_of_another_config_is_not_handed_out(tiny, tmp_path):
    path = tmp_path / f"{runs.run(tiny, tmp_path, 'cpu').name}.json"
    (tmp_path / f"{replace(tiny, seed=1).run_name}.json").write_bytes(path.read_bytes())
    with pytest.raises(JointVAEError, match=r"seed1-\w+\.json is the record of another config .* move it away"):
        runs.run(replace(tiny, seed=1), tmp_path, "cpu")


def test_weights_that_are_not_there_are_named_with_a_way_out(tiny, tmp_path):
    record = runs.run(tiny, tmp_path, "cpu")
    (tmp_path / record.checkpoint.file).unlink()
    with pytest.raises(JointVAEError, match="copy it from where the run was trained"):
        runs.load(record, tmp_path)


def test_train_takes_no_url(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "digits", "--out", "s3://bucket/runs"]) == 2
    assert "use `sweep` with --engine ray" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_recorded_weights_evaluate_to_the_recorded_scores(tiny, tmp_path, digits):
    from jointvae.evaluation import evaluate

    record = runs.run(tiny, tmp_path, "cpu")
    assert evaluate(runs.load(record, tmp_path), replace(digits, split="test")) == record.test


def test_changed_weights_are_noticed(tiny, tmp_path):
    from jointvae import checkpoints

    record = runs.run(tiny, tmp_path, "cpu")
    checkpoints.save_model(tmp_path / record.checkpoint.file, training.build(tiny))
    with pytest.raises(JointVAEError, match="not the file"):
        runs.load(record, tmp_path)


def interrupt(progress):
    """A hook that ends a run as Ctrl-C in its second epoch does."""
    if progress.epoch == 2:
        raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_and_says_so(tiny, tmp_path):
    longer = replace(tiny, epochs=2)

    with pytest.raises(KeyboardInterrupt):
        runs.run(longer, tmp_path / "a", "cpu", interrupt)
    record = runs.run(longer, tmp_path / "a", "cpu")
    assert len(record.provenance) == 2
    assert record.curves == runs.run(longer, tmp_path / "b", "cpu").curves


def test_a_failed_run_leaves_a_record(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "reconstruction_loss", lambda logits, x: logits.sum() * float("nan"))
    with pytest.raises(training.NonFiniteLossError):
        runs.run(tiny, tmp_path, "cpu")
    (record,) = results.records(tmp_path)
    assert record.status == "failed"
    assert "step 1" in record.error
    assert record.test is None


@pytest.mark.parametrize("command", ["train", "sweep --seeds 1 --together"])
def test_a_run_that_breaks_in_its_last_step_has_failed_now_and_ever_after(tiny, tmp_path, capsys, command):
    """Its losses are finite in every step; after the last one its weights are not."""
    words = f"{command} digits --epochs 1 --batch-size 160 --learning-rate 1e9 --device cpu --out {tmp_path}"
    for _ in range(2):
        assert cli.main(words.split()) == 2
        (path,) = tmp_path.iterdir()  # neither weights nor a state
        said = capsys.readouterr().err
        assert said.startswith("error: Training stopped at step 1: ")
        assert said.endswith(f" It is recorded in {path}: delete that to try again.\n")
        assert said.count("\n") == 1
        assert results.read(path).status == "failed"
        assert results.read(path).curves["step"] == [1]


def test_a_record_without_a_film_is_not_passed_off_as_one_with(tiny, tmp_path):
    runs.run(tiny, tmp_path, "cpu")
    record = tmp_path / f"{tiny.run_name}.json"
    with pytest.raises(JointVAEError, match=r"\.json is of a run without a whole film: delete it to train"):
        runs.run(tiny, tmp_path, "cpu", film=True)
    record.unlink()
    filmed = runs.run(tiny, tmp_path, "cpu", film=True)
    assert runs.run(tiny, tmp_path, "cpu", film=True) == filmed
    frames = record.with_suffix(".film")
    assert sorted(path.name for path in frames.iterdir()) == ["0000.png", "0001.png"]


def test_a_film_can_not_begin_in_the_middle_of_a_run(tiny, tmp_path):
    longer = replace(tiny, epochs=2)

    with pytest.raises(KeyboardInterrupt):
        runs.run(longer, tmp_path, "cpu", interrupt)
    state = tmp_path / f"{longer.run_name}.training"
    before = state.read_bytes()
    with pytest.raises(JointVAEError, match=r"\.training is of a run without a whole film: delete it"):
        runs.run(longer, tmp_path, "cpu", lambda progress: pytest.fail("it was trained"), film=True)
    assert state.read_bytes() == before
    state.unlink()
    assert len(runs.run(longer, tmp_path, "cpu", film=True).provenance) == 1


def test_a_sweep_gives_the_records_of_single_runs(tmp_path):
    configs = runs.seeds(replace(training.recipe("digits"), epochs=1), 0, 2)
    said = []
    swept = runs.sweep(configs, tmp_path / "sweep", "cpu", 2, lambda name, news: said.append((name, news)))
    assert sorted(record.config.seed for record in swept) == [0, 1]
    alone = runs.run(configs[0], tmp_path / "alone", "cpu")
    twin = next(record for record in swept if record.config.seed == 0)
    assert twin.curves == alone.curves
    assert twin.checkpoint.sha256 == alone.checkpoint.sha256
    assert {name for name, news in said if news == "done"} == {config.run_name for config in configs}


def test_the_runs_of_a_sweep_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.torch, "get_num_threads", lambda: 4)  # of this process; the others count their own
    configs = runs.seeds(replace(training.recipe("digits"), epochs=1), 0, 2)
    swept = runs.sweep(configs, tmp_path, "cpu", 2, lambda *_: None)
    assert [record.provenance[-1].threads for record in swept] == [2, 2]


@pytest.fixture
def long_sweep(tmp_path):
    """A sweep of two runs that would take minutes, in a process group of its own, once both have a state on disk."""
    command = [sys.executable, "-m", "jointvae", "sweep", "digits", "--epochs", "500", "--seeds", "2"]
    # A shell starts its background jobs with Ctrl-C ignored, and that is inherited: where the tests are one, the sweep
    # would never hear of it.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--out", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.training"))) < 2:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield process
    if alive(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def alive(group: int) -> bool:
    """Whether a process group still has a member."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_interrupted_sweep_stops_quietly_and_keeps_its_states(long_sweep, tmp_path):
    os.killpg(long_sweep.pid, signal.SIGINT)  # what a terminal does at Ctrl-C
    _, error = long_sweep.communicate(timeout=30)
    assert long_sweep.returncode == 130
    assert "goes on from the last finished epoch" in error
    assert "Traceback" not in error
    deadline = time.monotonic() + 30
    while alive(long_sweep.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(long_sweep.pid)
    for path in tmp_path.glob("*.training"):
        config = replace(training.recipe("digits"), epochs=500, seed=int(path.name[len("digits-seed")]))
        trainer = training.Trainer(config)
        trainer.resume(path)
        assert trainer.epoch > 0


def test_a_killed_run_of_a_sweep_is_reported_and_the_other_goes_on(long_sweep):
    children = subprocess.run(
        ["pgrep", "-f", "spawn_main", "-P", str(long_sweep.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(children[0]), signal.SIGKILL)
    for line in long_sweep.stdout:
        if "ended with status -9" in line:
            break
    else:
        pytest.fail("the death of a run was not reported")
    assert long_sweep.poll() is None


def test_reproduce_goes_on_with_the_digits_and_says_so(monkeypatch, tmp_path):
    def unavailable(name, split, size=32):
        raise data.DataUnavailableError("'mnist' can't be had.")

    monkeypatch.setattr(data, "load", unavailable)
    monkeypatch.setattr(book, "FALLBACK", tmp_path / "DATA_FALLBACK")
    planned = []
    monkeypatch.setattr(runs, "sweep", lambda configs, *rest: planned.extend(configs) or [])
    said = []
    book.reproduce("cpu", 3, lambda name, news: said.append((name, news)))
    assert planned == []
    assert "WITHOUT MNIST" in dict(said)["ATTENTION"]
    assert "WITHOUT MNIST" in book.fallback_sentence()


def test_reproduce_trains_what_can_be_had(monkeypatch, tmp_path):
    def only_mnist(name, split, size=32):
        if name == "fashion":
            raise data.DataUnavailableError("'fashion' can't be had.")

    monkeypatch.setattr(data, "load", only_mnist)
    monkeypatch.setattr(book, "FALLBACK", tmp_path / "DATA_FALLBACK")
    planned, said = [], []
    monkeypatch.setattr(runs, "sweep", lambda configs, *rest: planned.extend(configs) or [])
    book.reproduce("cpu", 3, lambda name, news: said.append((name, news)))
    assert [config.run_name for config in planned] == ["mnist-seed3"]
    assert "WITHOUT FASHIONMNIST" in dict(said)["ATTENTION"]
    assert book.fallback_sentence() is None


def test_tiers():
    assert book.plan("smoke", 2) == []
    assert [config.run_name for config in book.plan("cpu", 0)] == ["mnist-seed0", "fashion-seed0"]
    assert len(book.plan("paper", 0)) == 16
    with pytest.raises(JointVAEError, match="no tier"):
        book.choose_tier("huge")


BAD = {
    "recipe": "train nope",
    "data set": "train mnist --dataset nope",
    "capacity of z": "train mnist --c-z -1",
    "capacity of c": "train mnist --c-c -0.5",
    "one category": "train mnist --categories 1",
    "a hundred pixels": "train mnist --image-size 100",
    "no latent": "train mnist --z 0 --categories",
    "gamma": "train mnist --gamma -3",
    "rate": "train mnist --learning-rate 0",
    "seed": "train mnist --seed -1",
    "device": "train mnist --device tpu",
    "no model": "evaluate nope.safetensors --dataset mnist",
    "no state dict": "evaluate nope --authors --dataset mnist",
    "not a model": "evaluate not-a-model --dataset mnist",
    "other architecture": "evaluate not-a-model --authors --dataset mnist",
    "tier": "reproduce --tier nope",
    "seed of a tier": "reproduce --tier smoke --seed -5",
    "jobs of one process": "sweep digits --together --jobs 7",
    "ledger": "claims --results .",
    "seeds": "sweep digits --seeds 0",
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD)
def test_bad_input_gets_one_sentence_and_changes_nothing(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "not-a-model").write_bytes(b"some text")
    monkeypatch.setattr(book, "RUNS", tmp_path / "runs")
    assert cli.main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["not-a-model"]


def test_a_results_file_with_a_missing_field(make_record, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs" / "r.json"
    results.write(path, make_record())
    content = json.loads(path.read_text())
    del content["test"]["kl_z"]
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    assert cli.main(["claims", "--results", str(tmp_path)]) == 2
    assert "test.kl_z" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_train_and_evaluate_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        cli.main(
            ["train", "digits", "--epochs", "1", "--seed", "4", "--categories", "10", "2", "--z", "3", "--out", "here"]
        )
        == 0
    )
    (record,) = results.records(tmp_path / "here")
    assert record.config.latents.c == (10, 2)
    assert record.config.objective.C_c.ceiling == pytest.approx(record.config.latents.max_kl_c)
    capsys.readouterr()
    assert cli.main(["evaluate", f"here/{record.checkpoint.file}", "--dataset", "digits"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == record.test.accuracy
    assert found["kl_z"] == pytest.approx(record.test.kl_z, abs=1e-4)


def test_in_the_smoke_tier_without_mnist_or_untrained_the_reader_has_the_digits(monkeypatch, tmp_path, make_record):
    trained = []
    monkeypatch.setattr(runs, "run", lambda config, folder: trained.append((config.run_name, folder)) or make_record())
    monkeypatch.setattr(book, "FALLBACK", tmp_path / "DATA_FALLBACK")
    monkeypatch.setattr(book, "RUNS", tmp_path)
    (tmp_path / "mnist-seed2.json").touch()
    book.reader_run("mnist", "smoke", 1)
    book.reader_run("mnist", "cpu", 2)
    book.reader_run("mnist", "cpu", 3)  # not trained: a page has no hours
    (tmp_path / "DATA_FALLBACK").write_text("WITHOUT MNIST")
    book.reader_run("mnist", "cpu", 2)
    assert [name for name, _ in trained] == ["digits-seed1", "mnist-seed2", "digits-seed3", "digits-seed2"]
    assert [folder == tmp_path for _, folder in trained] == [False, True, False, False]


def test_claims_judges_the_readers_own_runs_by_the_same_tests(monkeypatch, tmp_path, make_record, capsys):
    monkeypatch.setattr(book, "RUNS", tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(claims, "judge_all", lambda folder: [])  # of the book's own runs: another matter, and slow
    assert cli.main(["claims"]) == 0
    assert "alone" not in capsys.readouterr().out
    results.write(tmp_path / "mnist-seed3.json", make_record(seed=3))
    assert cli.main(["claims"]) == 0
    said = capsys.readouterr().out.partition("The same claims by your 1 run")[2]
    best = next(line for line in said.splitlines() if "Trained from scratch" in line)
    assert "90.0%" in best  # the accuracy of that run, which is above the bound
    assert "reproduced" in best


def test_the_record_says_when_the_latents_opened(make_record):
    curves = {
        "step": [1, 2, 3],
        "reconstruction": [200.0, 150.0, 140.0],
        "kl_z": [[0.0, 0.0, 0.05], [0.2, 0.0, 0.06], [0.3, 0.15, 0.07]],
        "kl_c": [[0.05], [0.4], [2.2]],
        "C_z": [0.5, 1.0, 5.0],
        "C_c": [0.5, 1.0, 2.0],
    }
    made = make_record()
    test, config = replace(made.test, kl_z=[0.3, 0.15, 0.07]), replace(made.config, latents=LatentSpec(3, (10,)))
    record = replace(made, curves=curves, config=config, train=replace(test, split="train"), test=test)
    text = book.opening_text(record)
    assert text.startswith("$\\mathrm{KL}_c$ first reaches 0.1 nats in epoch 2, $\\mathrm{KL}_z$ in epoch 2; ")
    assert "capacity $\\mathrm{KL}_c$ reaches in epoch 3, $\\mathrm{KL}_z$ never." in text
    assert text.endswith("Of the 3 units of $z$, 2 ever carry 0.1 nats: $z_{1}$ in epoch 2, $z_{2}$ in epoch 3.")


def test_too_many_open_files_have_a_way_out_of_their_own(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(files.tempfile, "mkstemp", full)
    with pytest.raises(JointVAEError, match=r"too many files are open: fewer seeds at a time, or raise `ulimit -n`"):
        files.write_atomic(tmp_path / "record.json", b"{}")
    assert not list(tmp_path.iterdir())
