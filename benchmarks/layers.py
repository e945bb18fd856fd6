"""The decoder's layers as the package computes them, and as PyTorch does: what it gains, and whether it matters.

    python benchmarks/layers.py [--rounds 9] [--steps 100] [--seeds 32] [--jobs 2]

First the price: two processes, a thread each, train the paper's MNIST recipe in turns, one with the package's
transposed convolutions and one with PyTorch's; the median of the ratios of neighbours counts. Then the result: every
seed of the digits recipe is trained both ways, from the same weights, with the same images in the same order and the
same noise. The functions are equal, so only the rounding differs.

The rule, fixed before the first run: if the 95 % interval of the mean difference of accuracy holds 0, these seeds see
no difference.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from _pairs import Variant, outcome
from _shared import Worker, in_turns, parser, run, save
from torch import nn
from train_step import our_steps

from jointvae import data, selection, training
from jointvae.model import JointVAE, TransposedConvolution

RECIPE = training.recipe("digits")


def ours(model: JointVAE) -> None:
    """The layers as the package computes them."""


def pytorchs(model: JointVAE) -> None:
    """Let PyTorch compute the transposed convolutions, with the same weights."""
    for layer in model.modules():
        if isinstance(layer, TransposedConvolution):
            layer.__class__ = nn.ConvTranspose2d


WAYS: dict[str, Callable[[JointVAE], None]] = {"ours": ours, "pytorchs": pytorchs}


def price(rounds: int, steps: int) -> dict[str, Any]:
    """How many times as many images per second our layers train."""
    fast, plain = (Worker(our_steps, "mnist", "float32", change, threads=1) for change in WAYS.values())
    return in_turns(plain, fast, rounds, steps, "our layers train {:.2f} times as many images per second")


def trained(way: str, seed: int) -> dict[str, Any]:
    """One run with these layers: its measures on the test set and the sum of its weights."""
    trainer = Variant(replace(RECIPE, seed=seed), training.step_losses)
    WAYS[way](trainer.model)
    return outcome(trainer)


def main() -> None:
    """Measure, train, compare, record."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--seeds", type=int, default=32)
    options.add_argument("--jobs", type=int, default=2, help="runs at a time, a thread each")
    given = options.parse_args()
    data.load("mnist", "test")  # downloads what is missing, or fails with advice, before two processes need it
    cost = price(given.rounds, given.steps)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with ProcessPoolExecutor(given.jobs, get_context("spawn"), partial(torch.set_num_threads, 1)) as pool:
        asked = [(way, pool.submit(trained, way, seed)) for seed in range(given.seeds) for way in WAYS]
        for way, future in asked:
            row = future.result()
            found[way].append(row)
            print(f"{way}, seed {row['seed']}: accuracy {row['accuracy']:.3f}", flush=True)
    pairs = zip(found["ours"], found["pytorchs"], strict=True)
    apart = selection.mean([one["accuracy"] - other["accuracy"] for one, other in pairs])
    print(f"accuracy over {given.seeds} seeds: {100 * apart.value:+.1f} points, interval {apart.interval}")
    difference = {"difference": apart.value, "interval": apart.interval}
    save("layers", {"recipe": RECIPE.recipe, "price": cost} | found | difference, given.record, device="cpu")


if __name__ == "__main__":
    run(main)
