"""A run from start to record, and many of them side by side.

`run` trains what is not trained yet, goes on with what was interrupted, and leaves three kinds of file in its folder:
`NAME.json` (the record), `NAME.safetensors` (the weights) and, while unfinished, `NAME.training` (the state).
"""

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from jointvae import checkpoints, data, results, training
from jointvae.errors import JointVAEError
from jointvae.evaluation import Evaluation, evaluate
from jointvae.files import sha256
from jointvae.training import Config, Hook, Trainer

RUNS = Path("runs")
Say = Callable[[str, training.Progress | str], None]  # (run's name, its progress or its last word)


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is the GPU where there is one.

    Raises:
        JointVAEError: if that device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name not in [*here, *(["cuda"] if len(here) > 1 else [])]:
        raise JointVAEError(f"There is no device '{name}' here; there is {', '.join(here)}.")
    return torch.device(name)


def run(config: Config, folder: Path = RUNS, device: str = "auto", hook: Hook | None = None) -> results.Record:
    """Train, evaluate and record one config, unless its record is there already.

    A loss that is not finite is recorded as a failed run, then raised.
    """
    path = folder / f"{config.run_name}.json"
    if path.exists():
        return results.read(path)
    where = choose_device(device)
    train_data = data.load(config.dataset, "train", config.image.size)
    test_data = data.load(config.dataset, "test", config.image.size)
    state = folder / f"{config.run_name}.training"
    trainer = Trainer(config, where)
    if state.exists():
        trainer.resume(state)
    trainer.sessions.append(asdict(results.Provenance.now(where)))
    try:
        training.train(trainer, train_data, state, hook)
    except training.NonFiniteLossError as error:
        results.write(path, _record(trainer, train_data, error=str(error)))
        raise
    weights = folder / f"{config.run_name}.safetensors"
    checkpoints.save_model(weights, trainer.model)
    evaluations = evaluate(trainer.model, train_data), evaluate(trainer.model, test_data)
    kept = results.Checkpoint(weights.name, sha256(weights))
    record = _record(trainer, train_data, evaluations, kept)
    results.write(path, record)
    state.unlink()  # only now: until the record stands, an interruption loses nothing
    return record


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
        raise JointVAEError(f"The weights of {record.name} were not kept: run `python -m jointvae train` to have them.")
    path = folder / record.checkpoint.file
    model = checkpoints.load_model(path)
    if sha256(path) != record.checkpoint.sha256:
        raise JointVAEError(f"{path} is not the file that {record.name} recorded: restore it or run the recipe again.")
    return model


def sweep(configs: Iterable[Config], folder: Path, device: str, jobs: int, say: Say) -> list[results.Record]:
    """Run many configs, `jobs` at a time, each in a process of its own with its share of the cores.

    Finished runs are kept if another fails; the first failure is raised at the end.
    """
    configs = list(configs)
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // jobs)
    done: list[results.Record] = []
    failure: JointVAEError | None = None
    pool = ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(threads,))
    with context.Manager() as manager:
        queue = manager.Queue()
        pending = {pool.submit(_run_and_tell, config, folder, device, queue): config for config in configs}
        try:
            while pending:
                _relay(queue, say)
                for future in [future for future in pending if future.done()]:
                    name = pending.pop(future).run_name
                    try:
                        done.append(future.result())
                        say(name, "done")
                    except JointVAEError as error:
                        failure = failure or error
                        say(name, str(error))
        finally:
            pool.shutdown(cancel_futures=True)  # on Ctrl-C, what has not begun must not begin
    if failure:
        raise failure
    return done


def _run_and_tell(config: Config, folder: Path, device: str, queue: Any) -> results.Record:
    return run(config, folder, device, lambda progress: queue.put((config.run_name, progress)))


def _relay(queue: Any, say: Say) -> None:
    try:
        say(*queue.get(timeout=0.2))
        while True:
            say(*queue.get_nowait())
    except Empty:
        return


def seeds(config: Config, first: int, count: int) -> list[Config]:
    """The same config with `count` seeds in a row."""
    return [replace(config, seed=seed) for seed in range(first, first + count)]
