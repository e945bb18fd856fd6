"""What the same seed gives: once more, on another number of threads, and under another version of torch.

    python benchmarks/threads.py [--threads 1 2] [--seeds 8]

torch promises the same bits for the same number of threads, not for another one: a sum over a batch is cut into as
many parts as there are threads, and float32 rounds each. Every run here has a process of its own, on the CPU. On each
number of threads a short run is made three times, and the records are compared in all but times; a record names the
SHA-256 of its weights. Then the digits recipe is trained in full from every seed. The result is kept under the version
of torch, so that another environment adds its own, and the book compares them.
"""

from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _shared import parser, run, save

from jointvae import results, runs, training

RECIPE = training.recipe("digits")
REPEATS = 3
SHORT = replace(RECIPE, epochs=10)  # the run that is repeated


def trained(config: training.Config, threads: int) -> results.Record:
    """The record of a run on that many threads, in a process and a folder of its own."""
    torch.set_num_threads(threads)
    with TemporaryDirectory() as folder:
        return runs.sweep([config], Path(folder), "cpu", jobs=1, say=lambda name, news: None)[0]


def but_times(record: results.Record) -> dict[str, Any]:
    """All of a record that the seed decides: without durations, speeds and the time of day."""
    found = asdict(record)
    del found["seconds"], found["images_per_second"]
    for sitting in found["provenance"]:
        del sitting["started"]
    return found


def agree(records: list[results.Record]) -> bool:
    """Whether records are the same in all but times."""
    first, *others = map(but_times, records)
    return all(other == first for other in others)


def outcome(record: results.Record) -> dict[str, Any]:
    """What is compared of a whole run: a share, a sum of the weights, and a curve in nats per image."""
    return {
        "seed": record.config.seed,
        "accuracy": record.test.accuracy,
        "weights": record.checkpoint.sha256,
        "reconstruction": record.curves["reconstruction"],
    }


def main() -> None:
    """Measure, print, record."""
    options = parser(__doc__)
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options.add_argument("--seeds", type=int, default=8)
    given = options.parse_args()
    same = {}
    for threads in given.threads:
        same[threads] = agree([trained(SHORT, threads) for _ in range(REPEATS)])
        print(f"{threads} threads: {REPEATS} records {'agree' if same[threads] else 'differ'}", flush=True)
    outcomes: dict[int, list[dict[str, Any]]] = {threads: [] for threads in given.threads}
    for seed in range(given.seeds):
        for threads, found in outcomes.items():
            found.append(outcome(trained(replace(RECIPE, seed=seed), threads)))
            print(f"{threads} threads, seed {seed}: {found[-1]['accuracy']:.1%}", flush=True)
    found = {"repeats": REPEATS, "repeated_epochs": SHORT.epochs, "repeats_agree": same, "outcomes": outcomes}
    save(f"threads-{torch.__version__.partition('+')[0]}", found, given.record, device="cpu")


if __name__ == "__main__":
    run(main)
