"""What the benchmarks share: processes that take turns, and the file that keeps what was found."""

import argparse
import contextlib
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from jointvae import results, runs
from jointvae.errors import JointVAEError
from jointvae.files import write_atomic

BATCH = 64  # images of a step in the paper's recipes
WARM_UP = 10  # steps before the first measurement: libraries set themselves up


def memory_gib() -> float:
    """The most memory that this process has had so far, in GiB: of the GPU where it used one, else resident."""
    if torch.cuda.is_initialized() and torch.cuda.max_memory_reserved():  # with what a captured step keeps for itself
        return torch.cuda.max_memory_reserved() / 1024**3
    unit = 1024 if sys.platform == "darwin" else 1  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit / 1024**2


class Worker:
    """A process of its own that makes steps when it is told to, and idles otherwise.

    Args:
        steps: a function that returns an endless iterator, a step of training for each item.
        arguments: of that function.
        threads: of torch; None for its own choice.
        warm_up: steps before the first measurement.
    """

    def __init__(
        self, steps: Callable[..., Iterator[Any]], *arguments: Any, threads: int | None = None, warm_up: int = WARM_UP
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_work, args=(steps, arguments, threads, warm_up, there), daemon=True)
        self.process.start()
        there.close()

    def ready(self) -> None:
        """Wait until it has loaded its data and is warm."""
        self.start(1)
        self.wait()

    def start(self, count: int) -> None:
        """Let it make so many steps."""
        self.pipe.send(count)

    def wait(self) -> tuple[float, float]:
        """The seconds that the steps took, and the most memory that it has had, in GiB."""
        return self.pipe.recv()

    def time(self, count: int) -> tuple[float, float]:
        """`start`, then `wait`."""
        self.start(count)
        return self.wait()

    def end(self) -> None:
        """End the process."""
        self.pipe.send(0)
        self.process.join()


def _work(
    steps: Callable[..., Iterator[Any]], arguments: tuple[Any, ...], threads: int | None, warm_up: int, pipe: Any
) -> None:
    if threads:
        torch.set_num_threads(threads)
    iterator = steps(*arguments)
    seconds(iterator, warm_up)
    with contextlib.suppress(EOFError):  # the benchmark has ended
        while count := pipe.recv():
            pipe.send((seconds(iterator, count), memory_gib()))


def seconds(steps: Iterator[Any], count: int) -> float:
    """Wall time of `count` steps, until the device has done them."""
    started = time.perf_counter()
    for _ in range(count):
        next(steps)
    if torch.cuda.is_initialized():  # else the steps are a CPU's
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turns(slow: Worker, fast: Worker, rounds: int, steps: int, what: str) -> dict[str, Any]:
    """How many times as long one takes for a step as the other, from turns: each ratio compares neighbours.

    Ends both. Beside the ratios and their median, the memory of the two in GiB, in that order.
    """
    for worker in (slow, fast):
        worker.ready()
    ratios, memory = [], [0.0, 0.0]
    for round_ in range(rounds):
        (longer, memory[0]), (shorter, memory[1]) = slow.time(steps), fast.time(steps)
        ratios.append(longer / shorter)
        print(f"round {round_ + 1}: {what.format(ratios[-1])}", flush=True)
    for worker in (slow, fast):
        worker.end()
    found = {"ratio_median": statistics.median(ratios), "ratios": ratios, "memory_gib": memory}
    return found | {"rounds": rounds, "steps": steps}


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    options = argparse.ArgumentParser(description=str(description).splitlines()[0])
    options.add_argument("--record", action="store_true", help="keep the result as the book's own, in results/")
    return options


def save(name: str, found: dict[str, Any], record: bool, device: str = "auto") -> Path:
    """Write what was found, with hardware and versions: to results/benchmarks/, or else to runs/benchmarks/."""
    found = found | {"provenance": vars(results.Provenance.now(runs.choose_device(device)))}
    path = (results.RESULTS if record else runs.RUNS) / "benchmarks" / f"{name}.json"
    write_atomic(path, (json.dumps(found, indent=1) + "\n").encode())
    print(f"recorded in {path}", flush=True)
    return path


def run(main: Callable[[], None]) -> None:
    """Call `main`; an error that the reader can mend is one sentence and exit status 2."""
    try:
        main()
    except JointVAEError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
