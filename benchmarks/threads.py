"""What the number of threads changes: the digits recipe, seed by seed, on 1 thread and on 2.

    python benchmarks/threads.py [--seeds 4]

torch promises the same bits for the same number of threads, not for another one: a sum over a batch is cut into as
many parts as there are threads, and float32 rounds each. The script trains a short run three times on each number of
threads and says whether the weights are the same bit for bit. Then it trains every seed in full on both, and records
how far the weights lie apart after one step, after an epoch and at the end, and the accuracy that each run earns.
The result goes to results/benchmarks/threads.json.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from jointvae import data, evaluation, results, training
from jointvae.files import write_atomic

THREADS = (1, 2)
REPEATS = 3


def weights(trainer: training.Trainer) -> Tensor:
    """All weights in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def one_step(trainer: training.Trainer, dataset: data.Dataset) -> None:
    """The first step of the first epoch."""
    order = training.epoch_order(trainer.config, 0, len(dataset))
    trainer.train_step(data.as_floats(dataset.images[order[: trainer.config.batch_size]]))


def one_epoch(trainer: training.Trainer, dataset: data.Dataset) -> None:
    """The first epoch."""
    trainer.train_epoch(dataset)


def whole(trainer: training.Trainer, dataset: data.Dataset) -> None:
    """All epochs."""
    while trainer.epoch < trainer.config.epochs:
        trainer.train_epoch(dataset)


def trained(
    seed: int, threads: int, dataset: data.Dataset, train: Callable[[training.Trainer, data.Dataset], None]
) -> training.Trainer:
    """A trainer of the digits recipe after `train`, on that many threads."""
    torch.set_num_threads(threads)
    trainer = training.Trainer(replace(training.recipe("digits"), seed=seed))
    train(trainer, dataset)
    return trainer


def repeats_agree(threads: int, dataset: data.Dataset) -> bool:
    """Whether an epoch gives the same weights each time, bit for bit."""
    first, *others = (weights(trained(0, threads, dataset, one_epoch)) for _ in range(REPEATS))
    return all(torch.equal(first, other) for other in others)


def distance(first: Tensor, second: Tensor) -> float:
    """The largest difference of two weights in the same place."""
    return float((first - second).abs().max())


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    train, test = data.load("digits", "train"), data.load("digits", "test")
    agree = {threads: repeats_agree(threads, train) for threads in THREADS}
    print(f"{REPEATS} repeats give the same bits: {agree}")
    apart: dict[str, float] = {}
    for name, part in {"step": one_step, "epoch": one_epoch}.items():
        apart[name] = distance(*(weights(trained(0, threads, train, part)) for threads in THREADS))
    accuracy: dict[int, list[float | None]] = {threads: [] for threads in THREADS}
    ends = []
    for seed in range(options.seeds):
        pair = [trained(seed, threads, train, whole) for threads in THREADS]
        ends.append(distance(*map(weights, pair)))
        for threads, trainer in zip(THREADS, pair, strict=True):
            accuracy[threads].append(evaluation.evaluate(trainer.model, test).accuracy)
        print(f"seed {seed}: " + ", ".join(f"{accuracy[threads][-1]:.1%} on {threads}" for threads in THREADS))
    apart["run"] = max(ends)
    found = {
        "repeats": REPEATS,
        "repeats_agree": agree,
        "largest_difference_of_weights": apart,
        "accuracy": accuracy,
        "provenance": vars(results.Provenance.now()),
    }
    path = results.RESULTS / "benchmarks" / "threads.json"
    write_atomic(path, (json.dumps(found, indent=1) + "\n").encode())
    print(f"weights lie apart by {apart}\nrecorded in {path}")


if __name__ == "__main__":
    main()
