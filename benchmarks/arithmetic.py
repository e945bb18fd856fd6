"""What another number of threads, or another version of torch, does to the digits recipe, seed by seed.

    python benchmarks/arithmetic.py [--seeds 8]

torch promises the same bits for the same number of threads, not for another one: a sum over a batch is cut into as
many parts as there are threads, and float32 rounds each. Another version may sum in another order as well. The script
trains every seed in full on 1 and on 2 threads, under the torch that runs it, and records how far the weights lie apart
after one step, after an epoch and at the end, and the accuracy that each run earns. What other versions of torch
recorded in the same file stays there: run the script under each version that is to be compared.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from _shared import parser, recorded, run, save
from torch import Tensor

from jointvae import data, evaluation, training

THREADS = (1, 2)
NAME = "arithmetic"  # of the record


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


def distance(first: Tensor, second: Tensor) -> float:
    """The largest difference of two weights in the same place."""
    return float((first - second).abs().max())


def main() -> None:
    """Measure, print, record."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=8)
    given = options.parse_args()
    training.keep_freed_memory()
    train, test = data.load("digits", "train"), data.load("digits", "test")
    apart = {
        name: distance(*(weights(trained(0, threads, train, part)) for threads in THREADS))
        for name, part in {"step": one_step, "epoch": one_epoch}.items()
    }
    accuracy: dict[str, list[float | None]] = {str(threads): [] for threads in THREADS}
    ends = []
    for seed in range(given.seeds):
        pair = [trained(seed, threads, train, whole) for threads in THREADS]
        ends.append(distance(*map(weights, pair)))
        for threads, trainer in zip(THREADS, pair, strict=True):
            accuracy[str(threads)].append(evaluation.evaluate(trainer.model, test).accuracy)
        print(f"seed {seed}: " + ", ".join(f"{accuracy[str(n)][-1]:.1%} on {n}" for n in THREADS), flush=True)
    apart["run"] = max(ends)
    print(f"weights lie apart by {apart}")
    versions = recorded(NAME, given.record).get("versions", {})
    versions[torch.__version__] = {"largest_difference_of_weights": apart, "accuracy_by_threads": accuracy}
    save(NAME, {"versions": versions}, given.record)


if __name__ == "__main__":
    run(main)
