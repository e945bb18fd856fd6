"""A sweep on a Ray cluster: each run is a task, and the files of all runs lie where every machine can reach them.

Ray is an extra, imported only when it is asked for. It finds room for the tasks and starts one again whose machine
died; the run's state, which lies with its record, makes that task go on from the last finished epoch.
"""

import contextlib
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem

from jointvae import data, results, runs, training
from jointvae.errors import JointVAEError
from jointvae.training import Config

THREADS = 1  # of a run: on many cores, many runs of one thread do more than a few of many
RETRIES = 20  # how often a run may lose its machine
SUBMITTED = 2_000  # runs that Ray holds at a time where --jobs says nothing; the others wait here
REPORT_EVERY = 1.0  # seconds between two reports of one run

Outcome = results.Record | JointVAEError | OSError


def sweep(
    configs: Iterable[Config], out: str, device: str, jobs: int | None, say: runs.Say, gpus: float = 0.0
) -> list[results.Record]:
    """Run many configs on the Ray cluster that this machine belongs to, or else on a cluster of this machine alone.

    The records are those of `runs.sweep`, seed by seed, where that one gives each run one thread. `out` is a folder
    that all machines share, or a URL that fsspec can write to. Each run gets one core and `gpus` GPUs (a share of one,
    if below 1); at most `jobs` run at a time. Only this process reads the data set; it sends the images to the others.

    Finished runs are kept if another fails; the first failure is raised at the end.

    Raises:
        JointVAEError: if Ray or the cluster is missing, `out` can't be used or is not shared, a config can't be
            recorded, or a run failed.
    """
    waiting = deque(configs)
    for config in waiting:
        runs.check_config(config)
    ray = _ray()
    storage, folder = _open(out)
    place = folder if isinstance(storage, LocalFileSystem) else out  # a relative path means another folder elsewhere
    if device == "auto":
        device = "cuda" if gpus else "cpu"  # a node may have a GPU that this run has no share of
    order = [config.run_name for config in waiting]
    running: dict[Any, str] = {}
    done: dict[str, results.Record] = {}
    failures: list[JointVAEError | OSError] = []
    with _connection(ray):
        _say_what_is_there(ray, gpus, say)
        images = _images(ray, waiting)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), False
        )
        board = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()
        task = ray.remote(_train).options(num_cpus=THREADS, num_gpus=gpus, max_retries=RETRIES)
        while waiting or running:
            while waiting and len(running) < (jobs or SUBMITTED):
                config = waiting.popleft()
                reference = task.remote(config, images[config.dataset, config.image], place, device, board)
                running[reference] = config.run_name
            ready, _ = ray.wait(list(running), timeout=REPORT_EVERY)
            for name, progress in ray.get(board.take.remote()).items():
                say(name, progress)
            for reference in ready:
                name = running.pop(reference)
                outcome = _outcome(ray, reference, name)
                if isinstance(outcome, results.Record):
                    _check_shared(storage, f"{folder}/{name}.json", out)
                    done[name] = outcome
                    say(name, "done")
                else:
                    failures.append(outcome)
                    say(name, str(outcome))
    if failures:
        raise failures[0]
    return [done[name] for name in order]


def _ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ModuleNotFoundError:
        raise JointVAEError(
            "The engine 'ray' needs Ray, an extra: install it with `pip install '.[cluster]'`."
        ) from None
    return ray


def _open(out: str) -> tuple[Any, str]:
    """The storage that `out` names, and the folder in it, made if it is not there."""
    with _storage_errors(f"{out} can't be used", "name a folder that all machines share, or a URL to write to"):
        storage, folder = fsspec.url_to_fs(out)
        storage.makedirs(folder, exist_ok=True)
    return storage, folder


@contextlib.contextmanager
def _storage_errors(what: str, remedy: str) -> Iterator[None]:
    """Every kind of storage has errors of its own; they become one sentence."""
    try:
        yield
    except Exception as error:
        raise JointVAEError(f"{what} ({_one_line(error)}): {remedy}.") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


@contextlib.contextmanager
def _connection(ray: Any) -> Iterator[None]:
    try:
        ray.init(logging_level="error", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise JointVAEError(
            f"Ray can't reach its cluster ({_one_line(error)}): check RAY_ADDRESS, or unset it for this machine alone."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()  # ends the tasks too; each state stands as of its last epoch


def _say_what_is_there(ray: Any, gpus: float, say: runs.Say) -> None:
    there = ray.cluster_resources()
    nodes, found = sum(node["Alive"] for node in ray.nodes()), there.get("GPU", 0)
    say("ray", f"{nodes} node{'s' * (nodes != 1)}, {there.get('CPU', 0):.0f} cores, {found:.0f} GPUs")
    if gpus > found:
        say("ray", "there is no such GPU yet: the runs wait until a node with one joins the cluster")


def _images(ray: Any, configs: Iterable[Config]) -> dict[tuple[str, Any], Any]:
    """The data sets that the configs ask for, in Ray's memory, from where every node takes them."""
    wanted = dict.fromkeys((config.dataset, config.image) for config in configs)
    return {
        (name, image): ray.put(tuple(data.load(name, split, image.size) for split in data.SPLITS))
        for name, image in wanted
    }


def _outcome(ray: Any, reference: Any, name: str) -> Outcome:
    """What a task returned; a bug in it is raised."""
    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        return JointVAEError(
            f"{name} lost its machine or its process too often ({type(error).__name__}); "
            "the same command goes on from its last finished epoch."
        )
    return outcome


def _check_shared(storage: Any, record: str, out: str) -> None:
    with _storage_errors(f"{out} can't be read", "when it can be reached, the same command goes on"):
        storage.invalidate_cache()
        there = storage.exists(record)
    if not there:
        raise JointVAEError(
            f"A run was recorded on another machine, but {record} is not here: "
            f"{out} must be a folder that all machines share, or a URL."
        )


class _Board:
    """Where the runs post their progress, and the sweep takes the newest of each."""

    def __init__(self) -> None:
        self.news: dict[str, training.Progress] = {}

    def post(self, name: str, progress: training.Progress) -> None:
        self.news[name] = progress

    def take(self) -> dict[str, training.Progress]:
        news, self.news = self.news, {}
        return news


def _train(config: Config, datasets: runs.Datasets, out: str, device: str, board: Any) -> Outcome:
    """One run, in a process that Ray started somewhere."""
    torch.set_num_threads(THREADS)
    said = 0.0

    def report(progress: training.Progress) -> None:
        nonlocal said
        if time.monotonic() - said >= REPORT_EVERY:
            said = time.monotonic()
            board.post.remote(config.run_name, progress)

    try:
        storage, folder = _open(out)
        if isinstance(storage, LocalFileSystem):
            return runs.run(config, Path(folder), device, report, datasets=datasets)
        return _run_by_url(config, storage, folder, device, report, datasets)
    except (JointVAEError, OSError) as error:
        return error


def _run_by_url(
    config: Config, storage: Any, folder: str, device: str, report: training.Hook, datasets: runs.Datasets
) -> results.Record:
    """A run on this machine's disk; what stands at the URL is fetched before, what is new is sent during and after."""
    with tempfile.TemporaryDirectory(prefix="jointvae-") as scratch:
        send = _mirror(storage, folder, Path(scratch), config.run_name)

        def tell(progress: training.Progress) -> None:
            send()
            report(progress)

        try:
            return runs.run(config, Path(scratch), device, tell, datasets=datasets)
        except JointVAEError as error:  # whoever reads it finds the files at the URL
            raise type(error)(str(error).replace(scratch, storage.unstrip_protocol(folder))) from None
        finally:
            send()


def _mirror(storage: Any, folder: str, scratch: Path, name: str) -> Callable[[], None]:
    """Fetch the files of one run; the function that comes back sends those that have changed since."""
    known: dict[Path, int] = {}
    # In the order in which they are sent: when the record stands, so do the weights that it names.
    state, weights, record = (scratch / f"{name}.{kind}" for kind in ("training", "safetensors", "json"))
    errors = partial(
        _storage_errors,
        f"The files of {name} can't be kept in {storage.unstrip_protocol(folder)}",
        "when it can be reached, the same command goes on from the last epoch that is there",
    )
    with errors():
        storage.invalidate_cache()
        for path in (state, record):
            if storage.exists(f"{folder}/{path.name}"):
                storage.get_file(f"{folder}/{path.name}", str(path))
                known[path] = path.stat().st_mtime_ns

    def send() -> None:
        with errors():
            for path in (state, weights, record):
                if path.exists() and known.get(path) != (written := path.stat().st_mtime_ns):
                    storage.put_file(str(path), f"{folder}/{path.name}")
                    known[path] = written  # if that failed, it is sent the next time
            if state in known and not state.exists():
                storage.rm_file(f"{folder}/{state.name}")
                del known[state]

    return send
