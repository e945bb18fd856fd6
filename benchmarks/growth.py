"""How the cost of a step grows: with seeds trained together, images of a batch, pixels, and discrete latents.

    python benchmarks/growth.py [--rounds 3] [--largest 64]

Each point has a process of its own, and takes turns with the base (one seed, 64 images of 32 x 32 pixels, one discrete
latent), so what is recorded is a ratio of neighbours: the time of a step over the time of the base's step. Images are
random, for the cost does not depend on what they show. The slope is that of a straight line through the logarithms: 1
is a cost in proportion, 0 is a cost that does not grow.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from _shared import BATCH, Worker, parser, run, save

from jointvae import runs, training
from jointvae.batched import BatchedTrainer
from jointvae.data import Dataset
from jointvae.latents import LatentSpec
from jointvae.model import ImageShape

STEPS_OF_DATA = 4  # in the made data set of a point
SECONDS = 1.0  # about as long is each measurement
LARGEST_STEP = 2.0  # seconds: a point beyond a step of this length is not measured


@dataclass(frozen=True)
class Point:
    """What is trained at a point of a curve."""

    seeds: int = 1
    batch: int = BATCH
    side: int = 32  # pixels
    units: int = 1  # discrete latents of ten categories each


BASE = Point()
CURVES = {
    "seeds": [replace(BASE, seeds=n) for n in (1, 2, 4, 8, 16, 32, 64)],
    "batch": [replace(BASE, batch=n) for n in (64, 128, 256, 512, 1024, 2048, 4096)],
    "side": [replace(BASE, side=n) for n in (32, 64)],
    "units": [replace(BASE, units=n) for n in (1, 2, 4, 8, 16)],
}


def steps(point: Point) -> Iterator[torch.Tensor]:
    """Train that for ever, on random images."""
    device = runs.choose_device()
    config = replace(
        training.recipe("mnist"),
        batch_size=point.batch,
        image=ImageShape(1, point.side),
        latents=LatentSpec(10, (10,) * point.units),
    )
    shape = STEPS_OF_DATA * point.batch, 1, point.side, point.side
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)
    training.keep_freed_memory()
    if point.seeds == 1 and device.type == "cpu":  # the plain loop is what a single run uses there
        trainer = training.Trainer(config, device)
        while True:
            for batch in images.split(point.batch):
                yield trainer.train_step(batch.float() / 255)
    trainers = [training.Trainer(replace(config, seed=seed), device) for seed in range(point.seeds)]
    batched, dataset = BatchedTrainer(trainers), Dataset("random", "train", images, torch.zeros(len(images)).long(), {})
    while True:
        yield from batched.epoch_steps(dataset)


def measure(point: Point, base: Worker, rounds: int) -> dict[str, float]:
    """The time of a step over the base's, the median of the rounds, and the most memory in GiB."""
    worker = Worker(steps, point, warm_up=3)
    worker.ready()
    once, _ = worker.time(1)
    count, ratios, memory = max(1, round(SECONDS / once)), [], 0.0
    of_base = 10
    for _ in range(rounds):
        before, _ = base.time(of_base)
        taken, memory = worker.time(count)
        after, _ = base.time(of_base)
        ratios.append((taken / count) / ((before + after) / (2 * of_base)))
    worker.end()
    return {"step": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios), "memory_gib": memory}


def slope(x: list[int], y: list[float]) -> float:
    """Of the straight line through the logarithms, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def main() -> None:
    """Measure, print, record."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--largest", type=int, default=64, help="most seeds together")
    given = options.parse_args()
    base = Worker(steps, BASE)
    base.ready()
    found = {}
    for name, points in CURVES.items():
        points = [point for point in points if point.seeds <= given.largest]
        rows = [{name: getattr(point, name), **measure(point, base, given.rounds)} for point in points]
        found[name] = {
            "points": rows,
            "slope": slope([row[name] for row in rows], [row["step"] for row in rows]),
            "slope_upper_half": slope(
                *zip(*((row[name], row["step"]) for row in rows[len(rows) // 2 - 1 :]), strict=True)
            ),
        }
        costs = ", ".join(f"{row['step']:.2f}" for row in rows)
        print(f"{name}: a step takes {costs} times the base's", flush=True)
    base.end()
    save("growth", found, given.record)


if __name__ == "__main__":
    run(main)
