"""A run from start to record, and many of them side by side.

`run` trains what is not trained yet, goes on with what was interrupted, and leaves these files in its folder:
`NAME.json` (the record), `NAME.safetensors` (the weights) and, while unfinished, `NAME.training` (the state) and
`NAME.lock` (held by the process that trains it, so that no other does the same).
"""

import contextlib
import glob
import json
import multiprocessing
import pickle
import resource
import signal
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast, get_args

import torch

from jointvae import batched, checkpoints, data, files, results, training
from jointvae.errors import JointVAEError
from jointvae.evaluation import Evaluation, evaluate
from jointvae.files import BusyError, sha256
from jointvae.objectives import Objective, Own, Remembered, remember
from jointvae.structure import RUNS
from jointvae.training import Config, Hook, Trainer
from jointvae.traversals import film_frame, frame_path

MOST_SEEDS = 100_000  # of one sweep
Datasets = tuple[data.Dataset, data.Dataset]  # a training and a test set
Say = Callable[[str, training.Progress | str], None]  # (run's name, its progress or its last word)
News = training.Progress | results.Record | JointVAEError | OSError  # what a run of a sweep reports


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is the GPU where there is one.

    From then on the convolutions of a GPU do in this process what those of a CPU do. float32 means float32: PyTorch's
    default lets them round what they read to 11 significant bits (TF32). And a sum is added up in one order, so that a
    run made twice is the same.

    Raises:
        JointVAEError: if that device is not there.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name not in [*here, *(["cuda"] if len(here) > 1 else [])]:
        raise JointVAEError(f"There is no device '{name}' here; there is {', '.join(here)}.")
    device = torch.device(name)
    if device.index is not None:
        torch.cuda.set_device(device)  # a step is captured on the current one
    return device


def check_config(config: Config) -> None:
    """Refuse a config that its record would not give back; everything that trains asks this first.

    Raises:
        JointVAEError: with what can't be recorded, or if the objective is only the name of one.
    """
    if isinstance(config.objective, Remembered):
        raise JointVAEError(
            f"The package has no objective '{config.objective.name}': correct the name, or give its code."
        )
    kind = type(config.objective)
    own = isinstance(config.objective, Own)
    if not own and kind not in get_args(Objective):
        raise JointVAEError(f"The config can't be recorded: derive your objective {kind.__name__} from objectives.Own.")
    try:
        content = json.loads(json.dumps(asdict(config), allow_nan=False))
        read = remember if own else partial(results.validate, kind=kind)
        read(content["objective"])  # in a config, the complaint would be that it is not the first kind of objective
        results.validate(content, Config)
    except (TypeError, ValueError) as error:
        raise JointVAEError(f"The config can't be recorded: {error}.") from None


def run(
    config: Config,
    folder: Path = RUNS,
    device: str = "auto",
    hook: Hook | None = None,
    film: bool = False,
    datasets: Datasets | None = None,
    wait: bool = True,
) -> results.Record:
    """Train, evaluate and record one config, unless its record is there already.

    With `film`, a picture of what every latent does is kept before the training and after each epoch, in the folder
    `NAME.film`. `datasets` are a training and a test set of your own, in place of the named one (see `own.datasets`).
    A run that another process is at is waited for, unless `wait` is off. A loss that is not finite is recorded as a
    failed run, then raised; so it is when that record is found.

    Raises:
        BusyError: if another process is at this run, and we are not to wait.
        JointVAEError: if the config can't be recorded, the images don't fit or are not those that the run was begun
            with, a film was begun too late, a file is damaged or can't be written, or the loss is not finite.
    """
    _check(config, datasets)
    path = _path(config, folder, "json")
    if not path.exists():
        where = choose_device(device)
        train_data, test_data = datasets or _load(config)
        with _alone(config, folder, wait):
            if not path.exists():  # the process that we waited for may have made it
                trainer = _start_or_resume(config, folder, where, train_data)
                _train(trainer, folder, train_data, test_data, hook, film)
    record = _unless_failed(_recorded(config, folder, datasets), folder)
    if film:
        _check_film(config, folder, config.epochs, path)
    return record


def _path(config: Config, folder: Path, kind: str) -> Path:
    return folder / f"{config.run_name}.{kind}"


def _alone(config: Config, folder: Path, wait: bool) -> contextlib.AbstractContextManager[None]:
    """The right to train a run, which one process has at a time."""
    refusal = f"Another process is training {config.run_name} in {folder}: wait for it, or choose another folder."
    return files.alone(_path(config, folder, "lock"), wait, refusal)


def _start_or_resume(config: Config, folder: Path, device: torch.device, train_data: data.Dataset) -> Trainer:
    """A trainer at the epoch that the run has reached in this folder."""
    files.remove_parts(folder, f"{glob.escape(config.run_name)}.*")
    files.remove_parts(_path(config, folder, "film"))
    trainer, state = Trainer(config, device), _path(config, folder, "training")
    if state.exists():
        trainer.resume(state)
        if trainer.data is not None:
            _check_same_images(state, trainer.data, train_data)
    trainer.data = train_data.checksums
    trainer.sessions.append(asdict(results.Provenance.now(device)))
    return trainer


def _train(
    trainer: Trainer,
    folder: Path,
    train_data: data.Dataset,
    test_data: data.Dataset,
    hook: Hook | None,
    film: bool,
) -> None:
    """Train to the last epoch, then record what came of it."""
    config = trainer.config
    state = _path(config, folder, "training")

    def picture(trainer: Trainer) -> None:
        film_frame(trainer.model, _path(config, folder, "film"), trainer.epoch)

    if film and trainer.epoch:
        _check_film(config, folder, trainer.epoch, state)
    elif film:
        picture(trainer)
    try:
        training.train(trainer, train_data, state, hook, picture if film else None)
        _finish(trainer, folder, train_data, test_data)
    except training.NonFiniteLossError as error:
        _fail(trainer, folder, train_data, error)


def _check_film(config: Config, folder: Path, epochs: int, path: Path) -> None:
    """Refuse a film that lacks a picture of the epochs so far; `path` is what there is of the run."""
    film = _path(config, folder, "film")
    if not all(frame_path(film, epoch).exists() for epoch in range(epochs + 1)):
        raise JointVAEError(f"{path} is of a run without a whole film: delete it to train the run anew with one.")


def _finish(trainer: Trainer, folder: Path, train_data: data.Dataset, test_data: data.Dataset) -> None:
    """Evaluate a trained run, keep its weights and record it.

    Raises:
        NonFiniteLossError: if the last step broke it, which no later step could notice; then nothing is kept.
    """
    config = trainer.config
    weights = _path(config, folder, "safetensors")
    evaluations = evaluate(trainer.model, train_data), evaluate(trainer.model, test_data)
    for found in evaluations:
        trainer.stop_if_not_finite(torch.tensor([[found.reconstruction, *found.kl_z, *found.kl_c]]))
    checkpoints.save_model(weights, trainer.model)
    kept = results.Checkpoint(weights.name, sha256(weights))
    results.write(_path(config, folder, "json"), _record(trainer, train_data, evaluations, kept))


def _fail(trainer: Trainer, folder: Path, train_data: data.Dataset, error: training.NonFiniteLossError) -> None:
    """Record that a run has failed."""
    results.write(_path(trainer.config, folder, "json"), _record(trainer, train_data, error=str(error)))


def _recorded(config: Config, folder: Path, datasets: Datasets | None) -> results.Record:
    """The record that stands of a run. What only an unfinished run needs is removed."""
    path = _path(config, folder, "json")
    record: results.Record = results.read(path)
    if training.as_fields(record.config) != training.as_fields(config):
        raise JointVAEError(
            f"{path} is the record of another config than {config.run_name} asks for: move it away, or choose another "
            "folder."
        )
    if datasets:
        _check_same_images(path, record.data, datasets[0])
    for kind in ("training", "lock"):  # the record stands, and who waits for the lock looks for that first
        with contextlib.suppress(OSError):  # mostly it is absent; and to read a record is no reason to write
            _path(config, folder, kind).unlink()
    return record


def _unless_failed(record: results.Record, folder: Path) -> results.Record:
    """The same record, of a run that did not fail."""
    if record.status == "failed":
        path = folder / f"{record.name}.json"
        raise training.NonFiniteLossError(f"{record.error} It is recorded in {path}: delete that to try again.")
    return record


def _load(config: Config) -> Datasets:
    train, test = (data.load(config.dataset, split, config.image.size) for split in data.SPLITS)
    _check_images(config, (train, test))
    return train, test


def _check(config: Config, datasets: Datasets | None) -> None:
    check_config(config)
    if datasets:
        _check_images(config, datasets)
    elif config.dataset in data.DATASETS and config.image.channels != 1:
        raise JointVAEError(
            f"The data set '{config.dataset}' has 1 channel, not {config.image.channels}: change `image`."
        )


def _check_images(config: Config, datasets: Datasets) -> None:
    for dataset in datasets:
        channels, side = dataset.images.shape[1:3]
        if (channels, side) != tuple(config.image):
            raise JointVAEError(
                f"The config asks for images of {config.image.channels} x {config.image.size} x {config.image.size}, "
                f"'{dataset.name}' has {channels} x {side} x {side}: change `image` in the config, or the data."
            )
        if dataset.name != config.dataset:
            raise JointVAEError(
                f"The config is for the data set '{config.dataset}', these images are '{dataset.name}': "
                "change `dataset` in the config, or the name of the images."
            )


def _check_same_images(path: Path, checksums: dict[str, str], given: data.Dataset) -> None:
    if checksums != given.checksums:
        raise JointVAEError(f"{path} is of other images: give yours another name, or delete the file.")


def _record(
    trainer: Trainer,
    train_data: data.Dataset,
    evaluations: tuple[Evaluation, Evaluation] | None = None,
    checkpoint: results.Checkpoint | None = None,
    error: str | None = None,
) -> results.Record:
    train, test = evaluations or (None, None)
    return results.Record(
        name=trainer.config.run_name,
        status="failed" if error else "finished",
        error=error,
        config=trainer.config,
        data=train_data.checksums,
        provenance=[results.Provenance(**session) for session in trainer.sessions],
        seconds=trainer.seconds,
        images_per_second=trainer.epoch * len(train_data) / trainer.seconds if trainer.seconds else None,
        curves=trainer.curves,
        train=train,
        test=test,
        scores=label_free_scores(train) if train else {},
        checkpoint=checkpoint,
    )


def label_free_scores(train: Evaluation) -> dict[str, float]:
    """What can be said of a run without a label, from the training set, in nats."""
    return {
        "reconstruction": train.reconstruction,
        "kl_z": sum(train.kl_z),
        "kl_c": sum(train.kl_c),
        "information": sum(train.information),
    }


def load(record: results.Record, folder: Path) -> Any:
    """The trained model of a record.

    Raises:
        JointVAEError: if its weights were not kept, or are not the ones that the record names.
    """
    if record.checkpoint is None:
        raise JointVAEError(f"{record.name} has no weights: it failed.")
    path = folder / record.checkpoint.file
    if not path.exists():
        raise JointVAEError(
            f"There is no {path}, which has the weights of {record.name}: copy it from where the run was trained, or "
            "train it again."
        )
    model = checkpoints.load_model(path)
    if sha256(path) != record.checkpoint.sha256:
        raise JointVAEError(f"{path} is not the file that {record.name} recorded: restore it or run the recipe again.")
    return model


def sweep(
    configs: Iterable[Config], folder: Path, device: str, jobs: int, say: Say, datasets: Datasets | None = None
) -> list[results.Record]:
    """Run many configs, `jobs` at a time, each in a process of its own with its share of the cores.

    `datasets` are as in `run`. Finished runs are kept if another fails; the first failure is raised at the end. On an
    interruption the processes are ended; each run's state stands as of its last epoch, and the same call goes on from
    there. Several sweeps can share a folder: each takes the runs that no other is at, and waits for the others at the
    end.

    Raises:
        JointVAEError: if a config can't be recorded or the images don't fit it, before any is trained; or if a run
            failed (see `run`).
    """
    configs = list(configs)
    for config in configs:
        _check(config, datasets)
    images = pickle.dumps(datasets)  # torch would send them through shared memory, of which containers have little
    waiting = deque((config, False) for config in configs)  # and whether to wait if another process is at it
    running: dict[Connection, tuple[Config, BaseProcess]] = {}
    done: dict[str, results.Record] = {}
    failures: list[JointVAEError | OSError] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                config, patient = waiting.popleft()
                threads = max(1, torch.get_num_threads() // jobs)
                here, process = _start(config, folder, device, threads, images, patient)
                running[here] = (config, process)
            for pipe in cast(list[Connection], wait(running)):
                config, process = running[pipe]
                name = config.run_name
                news = _news(pipe, name, process)
                if isinstance(news, training.Progress):
                    say(name, news)
                    continue
                process.join()
                del running[pipe]
                if isinstance(news, results.Record):
                    done[name] = news
                    say(name, "done")
                elif isinstance(news, BusyError):
                    waiting.append((config, True))
                    say(name, "another process is at it; the others first")
                else:
                    failures.append(news)
                    say(name, str(news))
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
    if failures:
        raise failures[0]
    return [done[config.run_name] for config in configs]


def _start(
    config: Config, folder: Path, device: str, threads: int, images: bytes, patient: bool
) -> tuple[Connection, BaseProcess]:
    """A process that trains one config, and the pipe that it reports to."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(config, folder, device, threads, images, patient, there), daemon=True)
    # A terminal sends Ctrl-C to all processes in it, and only this one is to act: the others inherit to ignore it.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    there.close()  # the process holds its own end; when it dies, this end notices
    return here, process


def _work(
    config: Config, folder: Path, device: str, threads: int, images: bytes, patient: bool, pipe: Connection
) -> None:
    torch.set_num_threads(threads)
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more: stop, as the state of the last epoch stands
        try:
            pipe.send(run(config, folder, device, pipe.send, datasets=pickle.loads(images), wait=patient))
        except BrokenPipeError:
            raise
        except (JointVAEError, OSError) as error:
            pipe.send(error)


def _news(pipe: Connection, name: str, process: BaseProcess) -> News:
    try:
        news: News = pipe.recv()
    except (EOFError, OSError):  # an OSError if it died in the middle of a message
        process.join()
        return JointVAEError(
            f"The process that trained {name} ended with status {process.exitcode}; "
            "the same command goes on from its last finished epoch."
        )
    return news


def sweep_together(
    configs: Iterable[Config], folder: Path, device: str, say: Say, datasets: Datasets | None = None
) -> list[results.Record]:
    """Run many configs in this process; those that differ in the seed alone are trained as one batched model.

    Leaves the files that `sweep` leaves, and goes on with what either of them left; `datasets` are as in `run`. Where
    the memory takes fewer seeds, they are trained in turns, and a line says so. Runs that another process is at come
    last, if that one did not finish them. Finished runs are kept if another fails; the first failure is raised at the
    end.

    Raises:
        JointVAEError: if a config can't be recorded, the images don't fit it, or its precision can't be had (see
            `batched.check_precision`), before any is trained; or if a run failed (see `run`).
    """
    configs, where = list(configs), choose_device(device)
    new: dict[str, list[Config]] = {}
    for config in configs:
        _check(config, datasets)
        if not _path(config, folder, "json").exists():
            batched.check_precision(config, where)
            new.setdefault(replace(config, seed=0).run_name, []).append(config)
    refused = [error for alike in new.values() for error in _sweep_seeds(alike, folder, where, say, datasets)]
    if refused:
        raise refused[0]
    found = [_recorded(config, folder, datasets) for config in configs]
    return [_unless_failed(record, folder) for record in found]


def _sweep_seeds(
    configs: list[Config], folder: Path, device: torch.device, say: Say, datasets: Datasets | None
) -> list[JointVAEError]:
    """Train what no other process is at, then what others were at and did not finish; return why a run can't go on.

    Locks are taken in the order of the seeds, whatever that of the configs: two sweeps that each hold what the other
    one waits for would wait for ever.
    """
    train_data, test_data = (split.to(device) for split in datasets or _load(configs[0]))
    training.keep_freed_memory()
    _allow_open_files(len(configs))
    left = sorted(configs, key=lambda config: config.seed)
    refused: list[JointVAEError] = []
    for patient in (False, True):
        with contextlib.ExitStack() as locks:
            mine = [config for config in left if _claim(config, folder, patient, locks)]
            for turn in _turns(mine, device, len(train_data), say):
                cannot = _train_together(turn, folder, device, train_data, test_data, say)
                refused += cannot.values()
                left = [config for config in left if config.seed not in cannot]
    return refused


def _turns(configs: list[Config], device: torch.device, images: int, say: Say) -> list[list[Config]]:
    """Configs that differ in the seed alone, in as few turns as the free memory takes."""
    if not configs:
        return []
    fit = batched.seeds_that_fit(configs[0], device, images)
    if fit < len(configs):
        say(configs[0].recipe, f"{len(configs)} seeds need more memory than is free; training {fit} at a time")
    return [configs[i : i + fit] for i in range(0, len(configs), fit)]


def _allow_open_files(more: int) -> None:
    """Each lock is an open file, and systems allow about a thousand unless asked for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = soft + more if hard == resource.RLIM_INFINITY else min(soft + more, hard)
        with contextlib.suppress(ValueError, OSError):  # if they are too few, opening one says so
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _claim(config: Config, folder: Path, wait: bool, locks: contextlib.ExitStack) -> bool:
    """Whether a run has no record and no other process is at it; then it is ours until `locks` are released."""
    record = _path(config, folder, "json")
    if record.exists():
        return False
    with contextlib.suppress(BusyError):
        locks.enter_context(_alone(config, folder, wait))
        return not record.exists()  # the process that we waited for may have made it
    return False


def _train_together(
    configs: list[Config],
    folder: Path,
    device: torch.device,
    train_data: data.Dataset,
    test_data: data.Dataset,
    say: Say,
) -> dict[int, JointVAEError]:
    """Train seeds to the last epoch; return why a seed can't go on, by the seed. The memory of all is free then."""
    trainers: list[Trainer] = []
    refused: dict[int, JointVAEError] = {}
    for config in configs:
        try:
            trainers.append(_start_or_resume(config, folder, device, train_data))
        except JointVAEError as error:  # a damaged state, say; the other seeds are trained all the same
            say(config.run_name, str(error))
            refused[config.seed] = error
    for group in batched.at_one_epoch(trainers):
        _train_group(group, folder, train_data, test_data, say)
    return refused


def _train_group(
    group: list[Trainer], folder: Path, train_data: data.Dataset, test_data: data.Dataset, say: Say
) -> None:
    """Train together to the last epoch, saving every run's state after each; a run that breaks leaves the group."""

    def hook(trainer: Trainer, news: training.Progress) -> None:
        say(trainer.config.run_name, news)

    def fail(trainer: Trainer, error: training.NonFiniteLossError) -> None:
        _fail(trainer, folder, train_data, error)
        say(trainer.config.run_name, str(error))

    batch = None
    while group and group[0].epoch < group[0].config.epochs:
        batch = batch or batched.BatchedTrainer(group)
        broken = batch.train_epoch(train_data, hook)
        for trainer in group:
            if error := broken.get(trainer.config.seed):
                fail(trainer, error)
            else:
                trainer.save(_path(trainer.config, folder, "training"))
        if broken:
            group, batch = [trainer for trainer in group if trainer.config.seed not in broken], None
    for trainer in group:
        try:
            _finish(trainer, folder, train_data, test_data)
        except training.NonFiniteLossError as error:
            fail(trainer, error)
        else:
            say(trainer.config.run_name, "done")


def seeds(config: Config, first: int, count: int) -> list[Config]:
    """The same config with `count` seeds in a row.

    Raises:
        JointVAEError: if there are too many, or a seed is out of range.
    """
    if not 1 <= count <= MOST_SEEDS:
        raise JointVAEError(f"A sweep takes 1 to {MOST_SEEDS:,} seeds, not {count:,}.")
    return [replace(config, seed=seed) for seed in range(first, first + count)]
