"""What happens to long runs, made to happen: kills, full disks, folders that refuse, cut files, two at once, Ctrl-C."""

import errno
import itertools
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_book import HEADER, PARAMETERS, ROOT, run_chapter

from jointvae import __main__ as cli
from jointvae import data, results, runs, training
from jointvae.files import BusyError, sha256, write_atomic

# Python takes seconds to start with torch. This server imports it once, and each process of a test is a fork of it.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["jointvae.__main__", "jointvae.runs", "jointvae.terminal", "sklearn.datasets", "pytest"])

PATIENCE = 600  # seconds for what takes few, unless the machine is busy
IMAGES = 64
EPOCHS = 3
RECIPE = ("digits", "--epochs", str(EPOCHS), "--batch-size", str(IMAGES), "--device", "cpu")
CONFIG = replace(training.recipe("digits"), epochs=EPOCHS, batch_size=IMAGES)
NAME = CONFIG.run_name
SWEPT = [config.run_name for config in runs.seeds(CONFIG, 0, 3)]


class Forks:
    """Stands in for multiprocessing in `runs`: a sweep forks its processes, and does not start Python anew for each."""

    fork = multiprocessing.get_context("fork")

    def __init__(self) -> None:
        self.ours: list[Connection] = []

    def get_context(self, method):
        return self

    def Pipe(self, duplex):
        here, there = self.fork.Pipe(duplex)
        self.ours.append(here)
        return here, there

    def Process(self, target, args, daemon):
        return self.fork.Process(target=self.call, args=(target, *args), daemon=daemon)

    def call(self, target, *arguments):
        for pipe in self.ours:  # a process that is started anew would not have them
            pipe.close()
        target(*arguments)


def few_digits() -> None:
    """From now on the digits are few, so that a run lasts less than a second."""
    torch.set_num_threads(1)
    load = data.load

    def few(name, split, size=32):
        whole = load(name, split, size)
        return replace(whole, images=whole.images[:IMAGES], labels=whole.labels[:IMAGES])

    data.load = few


def jointvae(arguments: list[str], prepare: Callable | None, *how: object) -> None:
    """What a process of these tests does: a command, with few digits, as the leader of a process group."""
    os.setpgid(0, 0)
    few_digits()
    runs.multiprocessing = Forks()
    if prepare:
        prepare(*how)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.exit(cli.main(arguments))


def start(*arguments: object, prepare: Callable | None = None, how: tuple = ()) -> BaseProcess:
    """`python -m jointvae` with these arguments."""
    process = SERVER.Process(target=jointvae, args=([str(one) for one in arguments], prepare, *how))
    process.start()
    return process


def finished(process: BaseProcess) -> int:
    process.join(PATIENCE)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def members(group: int) -> list[int]:
    """The living processes of a group."""
    listed = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, its_group, state in found if int(its_group) == group and not state.startswith("Z")]


def essence(record: results.Record) -> dict:
    """All of a record but when, where and how fast it was made; the hash of the weights is in it."""
    times = ("provenance", "seconds", "images_per_second")
    return {key: value for key, value in asdict(record).items() if key not in times}


class Whole(SimpleNamespace):
    """A run or a sweep that nothing happened to: what it leaves, and how long it takes here and now."""

    def is_left_in(self, folder: Path) -> bool:
        """Whether a folder has these records and weights, bit for bit, and no other file."""
        files = sorted(path.name for path in folder.iterdir())
        assert files == sorted(f"{name}.{kind}" for name in self.records for kind in ("json", "safetensors"))
        for name, expected in self.records.items():
            record = results.read(folder / f"{name}.json")
            assert essence(record) == expected
            assert sha256(folder / record.checkpoint.file) == record.checkpoint.sha256
        return True


def undisturbed(folder: Path, *command: str) -> Whole:
    seconds = []
    for turn in ("first", "second"):  # the first one waits for the server to start
        began = time.monotonic()
        assert finished(start(*command, "--out", folder / turn)) == 0
        seconds.append(time.monotonic() - began)
    records = {record.name: essence(record) for record in results.records(folder / "first")}
    whole = Whole(records=records, seconds=seconds[1])
    assert whole.is_left_in(folder / "second")
    return whole


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Whole:
    return undisturbed(tmp_path_factory.mktemp("run"), "train", *RECIPE)


@pytest.fixture(scope="module")
def whole_sweep(tmp_path_factory) -> Whole:
    return undisturbed(tmp_path_factory.mktemp("sweep"), "sweep", *RECIPE, "--seeds", str(len(SWEPT)))


NIGHTLY = pytest.mark.nightly
FEW_OR_MANY = pytest.mark.parametrize("moments", [6, pytest.param(50, marks=NIGHTLY)])


@FEW_OR_MANY
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(whole_run, tmp_path, moments):
    chance, kills = random.Random(moments), 0
    for folder in (tmp_path / str(n) for n in itertools.count()):
        status = None
        while status != 0:
            process = start("train", *RECIPE, "--out", folder)
            if kills < moments:
                process.join(chance.uniform(0, whole_run.seconds))
                process.kill()
            status = finished(process)
            assert status in (0, -signal.SIGKILL)
            kills += status != 0
        assert whole_run.is_left_in(folder)
        if kills == moments:
            return


@FEW_OR_MANY
def test_a_sweep_killed_at_random_moments_ends_as_one_that_was_not(whole_sweep, tmp_path, moments):
    """Killed is one of its processes, whichever, or all at once. What a killed sweep leaves running may go on."""
    chance, kills = random.Random(moments), 0
    for folder in (tmp_path / str(n) for n in itertools.count()):
        status, groups = None, []
        while status != 0:
            process = start("sweep", *RECIPE, "--seeds", len(SWEPT), "--out", folder)
            groups.append(process.pid)
            if kills < moments:
                process.join(chance.uniform(0, whole_sweep.seconds))
                alive = members(process.pid)
                with suppress(ProcessLookupError):
                    victims = chance.choice([alive, *([pid] for pid in alive)])
                    for pid in victims:
                        os.kill(pid, signal.SIGKILL)
                    kills += bool(victims)
            status = finished(process)
            assert status in (0, 2, -signal.SIGKILL)  # 2: it said that one of its processes had died
        deadline = time.monotonic() + PATIENCE
        while any(members(group) for group in groups) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert whole_sweep.is_left_in(folder)
        if kills >= moments:
            return


# The steps that change a folder: the lock is opened; a file is written in four of them (a temporary name is found and
# opened, it gets its mode and its true name), one file for each epoch, the weights and the record; two are removed.
WRITING = ("open", "tempfile.mkstemp", "os.chmod", "os.rename")
RECORDED = 1 + 4 * (EPOCHS + 2)


def at_step(n: int, folder: str, events: tuple[str, ...], act: Callable[[], None]) -> None:
    """Do something just before the n-th step that this process takes on the files of a folder."""
    count = itertools.count(1)

    def hook(event, arguments):
        if event in events and isinstance(arguments[0], str | Path) and str(arguments[0]).startswith(folder):
            reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if not reads and next(count) == n:
                act()

    sys.addaudithook(hook)


def killed_at_step(n: int, folder: str) -> None:
    at_step(n, folder, (*WRITING, "os.remove"), lambda: os.kill(os.getpid(), signal.SIGKILL))


def full_at_step(n: int, folder: str) -> None:
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    at_step(n, folder, WRITING, full)


@pytest.mark.parametrize("fault", [killed_at_step, full_at_step])
@pytest.mark.parametrize(
    "steps",
    [
        pytest.param((5, RECORDED - 4, RECORDED, RECORDED + 1), id="some"),
        pytest.param(range(1, 100), marks=NIGHTLY, id="all"),
    ],
)
def test_before_any_step_on_a_file_a_fault_is_survived(whole_run, tmp_path, fault, steps):
    """A kill, or a disk that is full; the same command then ends as if nothing had happened."""
    for n in steps:
        folder = tmp_path / str(n)
        status = finished(start("train", *RECIPE, "--out", folder, prepare=fault, how=(n, str(folder))))
        if status == 0:
            assert n > RECORDED
            assert whole_run.is_left_in(folder)
            return
        if fault is full_at_step:
            assert status == 2
            assert list(folder.glob(".*")) == []
        else:
            assert status == -signal.SIGKILL
        assert finished(start("train", *RECIPE, "--out", folder)) == 0
        assert whole_run.is_left_in(folder)


def test_a_process_that_dies_in_the_middle_of_its_report_is_reported():
    here, there = multiprocessing.Pipe(duplex=False)
    os.write(there.fileno(), (1000).to_bytes(4, "big") + b"the first bytes")
    there.close()
    process = SERVER.Process(target=os.abort)
    process.start()
    assert "ended with status -6" in str(runs._news(here, NAME, process))


# --- A full disk and a folder that refuses ----------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch) -> None:
    monkeypatch.setattr(data, "load", data.load)  # put back after the test
    few_digits()


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of its own, with room for one state of a training and not for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("THE FULL DISK IS NOT TESTED: to mount a small file system is not allowed here; root may")
    yield folder
    subprocess.run(["umount", folder], check=True)


def one_sentence(error: str, *parts: str) -> bool:
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert [part for part in parts if part not in error] == []
    return True


@pytest.mark.parametrize("command", [("train",), ("sweep", "--seeds", "1", "--together")], ids=lambda words: words[-1])
def test_a_full_disk_gets_one_sentence_and_the_run_goes_on_with_room(whole_run, few, disk, tmp_path, capsys, command):
    words = [command[0], *RECIPE, *command[1:], "--out", str(disk)]
    assert cli.main(words) == 2
    assert one_sentence(capsys.readouterr().err, f"{NAME}.training", "No space left", "make room")
    assert sorted(path.name for path in disk.iterdir()) == [f"{NAME}.lock", f"{NAME}.training"]
    trainer = training.Trainer(CONFIG)
    trainer.resume(disk / f"{NAME}.training")
    assert trainer.epoch == 1
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    assert cli.main(words) == 0
    if command[0] == "train":  # trained together, the last bits may differ
        assert whole_run.is_left_in(disk)
    assert len(results.read(disk / f"{NAME}.json").provenance) == 2


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path, few, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        assert cli.main(["train", *RECIPE, "--out", str(tmp_path)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert one_sentence(capsys.readouterr().err, f"{NAME}.training", "too large")
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}.lock"]


@pytest.mark.parametrize("command", [("train",), ("sweep", "--together")], ids=lambda words: words[-1])
@pytest.mark.parametrize("how", ["read-only", "a file in the way"])
def test_a_folder_that_refuses_is_named_before_anything_is_trained(
    disk_or_file, few, tmp_path, capsys, monkeypatch, command
):
    monkeypatch.setattr(training.Trainer, "train_epoch", lambda *_: pytest.fail("it was trained"))
    assert cli.main([command[0], *RECIPE, *command[1:], "--out", str(disk_or_file)]) == 2
    assert one_sentence(capsys.readouterr().err, f"{disk_or_file}", "can't be written", "another folder")


@pytest.fixture
def disk_or_file(how, tmp_path, request) -> Path:
    if how == "a file in the way":
        (tmp_path / "here").write_text("a file")
        return tmp_path / "here"
    if os.geteuid() != 0:  # root may write where it is forbidden to
        (tmp_path / "here").mkdir(mode=0o500)
        return tmp_path / "here"
    folder = request.getfixturevalue("disk")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    return folder


def test_a_finished_run_is_read_from_a_folder_that_is_read_only(disk, make_record):
    results.write(disk / f"{NAME}.json", replace(make_record(), name=NAME, config=CONFIG))
    (disk / f"{NAME}.lock").touch()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert runs.run(CONFIG, disk, "cpu").name == NAME


# --- Cut files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halfway(tmp_path_factory) -> Path:
    """A folder with the state of an unfinished run."""
    folder = tmp_path_factory.mktemp("halfway")
    training.Trainer(CONFIG).save(folder / f"{NAME}.training")
    return folder


@pytest.mark.parametrize("part", [0, 1e-7, 1e-4, 0.5, 0.999999])
@pytest.mark.parametrize("kind", ["training", "json", "safetensors"])
def test_a_cut_file_is_named_and_nothing_is_overwritten(halfway, few, make_record, tmp_path, capsys, kind, part):
    shutil.copy(halfway / f"{NAME}.training", tmp_path)
    command = ["train", *RECIPE, "--out", str(tmp_path)]
    path = tmp_path / f"{NAME}.{kind}"
    if kind == "json":
        results.write(path, replace(make_record(), name=NAME, config=CONFIG))
    if kind == "safetensors":
        shutil.copy(tmp_path / f"{NAME}.training", path)  # the same format
        command = ["evaluate", str(path), "--dataset", "digits"]
    content = path.read_bytes()
    path.write_bytes(content[: int(part * (len(content) - 2))])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert cli.main(command) == 2
    way_out = {"training": "delete it, then train again", "json": "restore it", "safetensors": "restore it"}
    assert one_sentence(capsys.readouterr().err, str(path), way_out[kind])
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.suffix != ".lock"}
    assert after == before


def errors_to(path: str) -> None:
    sys.stderr = open(path, "w", buffering=1)  # noqa: SIM115


def test_a_sweep_goes_on_past_a_cut_state_and_names_it(tmp_path):
    folder = tmp_path / "runs"
    write_atomic(folder / f"{SWEPT[0]}.training", b"cut")
    words = ("sweep", *RECIPE, "--seeds", 2, "--jobs", 1, "--out", folder)
    assert finished(start(*words, prepare=errors_to, how=(str(tmp_path / "errors"),))) == 2
    assert one_sentence((tmp_path / "errors").read_text(), f"{SWEPT[0]}.training is damaged")
    assert (folder / f"{SWEPT[0]}.training").read_bytes() == b"cut"
    assert results.read(folder / f"{SWEPT[1]}.json").status == "finished"


# --- Two at once ------------------------------------------------------------------------------------------------------


def noting(log: str) -> None:
    """Write down every run that this process or one of its own begins to train."""
    begin = runs._start_or_resume

    def noted(config, *rest):
        with open(log, "a") as file:
            file.write(f"{config.run_name}\n")
        return begin(config, *rest)

    runs._start_or_resume = noted


@pytest.mark.parametrize("second", [(), ("--together",)], ids=["two sweeps", "one together"])
def test_two_sweeps_on_one_folder_both_finish_and_nothing_is_run_twice(whole_sweep, tmp_path, second):
    log, folder = tmp_path / "log", tmp_path / "runs"
    both = [
        start("sweep", *RECIPE, "--seeds", len(SWEPT), *more, "--out", folder, prepare=noting, how=(str(log),))
        for more in ((), second)
    ]
    assert [finished(process) for process in both] == [0, 0]
    assert sorted(log.read_text().split()) == SWEPT
    if not second:  # trained together, the last bits may differ
        assert whole_sweep.is_left_in(folder)
    assert sorted(record.name for record in results.records(folder)) == SWEPT


def test_a_run_that_another_process_is_at_is_refused_or_waited_for(few, tmp_path, capsys):
    holder = start("train", *RECIPE, "--out", tmp_path, prepare=stopped)
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / f"{NAME}.training").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        assert cli.main(["train", *RECIPE, "--out", str(tmp_path)]) == 2
        assert one_sentence(capsys.readouterr().err, f"Another process is training {NAME}", "another folder")
        with pytest.raises(BusyError):
            runs.run(CONFIG, tmp_path, "cpu", wait=False)
    finally:
        os.kill(holder.pid, signal.SIGCONT)
    assert len(runs.run(CONFIG, tmp_path, "cpu").provenance) == 1  # it waited
    assert finished(holder) == 0


def stopped() -> None:
    """After its first epoch this process stops until it is told to go on."""
    save = training.Trainer.save

    def save_and_stop(trainer, path):
        save(trainer, path)
        if trainer.epoch == 1:
            os.kill(os.getpid(), signal.SIGSTOP)

    training.Trainer.save = save_and_stop


def test_the_lock_of_a_killed_process_is_free(few, tmp_path):
    holder = start("train", *RECIPE, "--out", tmp_path, prepare=stopped)
    while not (tmp_path / f"{NAME}.training").exists():
        assert holder.is_alive()
        time.sleep(0.02)
    holder.kill()
    assert finished(holder) == -signal.SIGKILL
    (tmp_path / f".{NAME}.json.abc.part").write_text("half a record")
    assert len(runs.run(CONFIG, tmp_path, "cpu", wait=False).provenance) == 2
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


# --- The book ---------------------------------------------------------------------------------------------------------

TWO_CELLS = """
```{code-cell}
print("so far so good")
```

```{code-cell}
import os, signal, time
%s
```
"""


def test_a_chapter_whose_kernel_is_killed_is_named_kept_for_reading_and_not_published(tmp_path):
    stage = tmp_path / "out"
    write_atomic(stage / "chapter.ipynb", b"the last good one")
    done = run_chapter(tmp_path, HEADER + PARAMETERS + TWO_CELLS % "os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    partial = tmp_path / "out.failed" / "chapter.ipynb"
    for part in ("chapter.md", "`import os, signal, time`", "the kernel stopped", str(partial)):
        assert part in done.stderr
    assert "so far so good" in partial.read_text()
    assert "did not finish" in partial.read_text()
    assert {path.name: path.read_text() for path in stage.iterdir()} == {"chapter.ipynb": "the last good one"}


# Says that it is there, and waits until it may go on.
WAITS = """open("../reached", "w").write(str(os.getpid()))
while not os.path.exists("../go"):
    time.sleep(0.02)"""


MADE_FROM = (
    *("Makefile", "pyproject.toml", "requirements.lock", "torch.txt"),
    *("_config.yml", "CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md"),
)


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of the project with a tier of one short run and two short chapters, whose build only says that it was.

    Its environment is the one of this process, so that nothing is installed.
    """
    root = tmp_path / "project"
    (root / "book").mkdir(parents=True)
    for name in MADE_FROM:
        shutil.copy(ROOT / name, root)
    for name in ("jointvae", "book/_tools"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "results", root / "results", ignore=shutil.ignore_patterns("*.safetensors", "films"))
    with (root / "jointvae/book.py").open("a") as module:
        module.write(
            "\n\ndef plan(tier, seed):\n"
            "    return runs.seeds(replace(training.recipe('digits'), epochs=6, batch_size=400), seed, 1)\n"
        )
    (root / "book/_tools/build.py").write_text("print('Built.')")
    (root / "book/a.md").write_text("# A page without code\n")
    (root / "book/b.md").write_text(HEADER + PARAMETERS + TWO_CELLS % WAITS)
    python = root / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (root / ".venv/.torch").write_text("-r torch.txt\n")
    (root / ".venv/.ready").touch()
    return root


def make_reproduce(project: Path, reached: Callable[[], bool]) -> tuple[int, str]:
    """`make reproduce` in a terminal of its own, where somebody presses Ctrl-C once it has `reached` something."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # see long_sweep in test_runs
    try:
        process = subprocess.Popen(
            ["make", "reproduce", "TIER=cpu", "SEED=0"],
            cwd=project,
            env=os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1", "MAKEFLAGS": "", "MAKELEVEL": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if reached():
            os.killpg(process.pid, signal.SIGINT)
            break
        time.sleep(0.02)
    output = process.communicate(timeout=PATIENCE)[0]
    assert members(process.pid) == []
    assert "Traceback" not in output
    return process.returncode, output


@NIGHTLY
def test_ctrl_c_in_make_reproduce_stops_cleanly_and_the_next_call_goes_on(project):
    status, output = make_reproduce(project, lambda: bool(list(project.glob("runs/*.training"))))
    assert status != 0
    assert "goes on from the last finished epoch" in output
    assert not list(project.glob("runs/*.json"))

    marks = project / "reached", project / "_executed/.done/a"
    status, output = make_reproduce(project, lambda: all(mark.exists() for mark in marks))
    assert status != 0
    assert "b.md: interrupted" in output
    (record,) = results.records(project / "runs")
    assert len(record.provenance) == 2  # what was trained before the first Ctrl-C was not trained again
    kernel = Path("/proc") / (project / "reached").read_text()
    deadline = time.monotonic() + PATIENCE
    while kernel.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not kernel.exists()
    assert [path.name for path in (project / "_executed").glob("[!.]*")] == ["a.md"]

    (project / "go").touch()
    status, output = make_reproduce(project, lambda: False)
    assert status == 0, output
    assert "Executing book/b.md" in output
    assert "Executing book/a.md" not in output
    assert "Built." in output
    assert results.records(project / "runs") == [record]
