"""Half the bits: what a training costs, and what comes of it, when its layers compute in bfloat16.

    python benchmarks/precision.py [--rounds 9] [--steps 100] [--jobs 2]

First the price: two processes, a thread each, train the paper's MNIST recipe in turns, one in float32 and one in
bfloat16; the median of the ratios of neighbours counts. Then the result: every seed of the digits recipe that is
recorded is trained again in bfloat16, from the same weights, with the same images in the same order and the same noise.

The rule, fixed before the first run: if the 95 % interval of the mean difference of accuracy holds 0, these seeds see
no loss, and its lower end is the largest loss that they leave open.

A run that is done is kept in `runs/`; a benchmark that was interrupted goes on where it was.
"""

from dataclasses import replace
from typing import Any

from _pairs import outcomes, tell
from _shared import Worker, in_turns, parser, run, save
from train_step import our_steps

from jointvae import claims, data, results, runs, selection, training

RECIPE = training.recipe("digits")
PRECISIONS: tuple[training.Precision, ...] = ("float32", "bfloat16")


def price(rounds: int, steps: int) -> dict[str, Any]:
    """How many times as many images per second bfloat16 trains, and the memory of both, in GiB."""
    plain, halved = (Worker(our_steps, "mnist", precision, threads=1) for precision in PRECISIONS)
    found = in_turns(plain, halved, rounds, steps, "bfloat16 trains {:.2f} times as many images per second")
    return found | {"memory_gib": dict(zip(PRECISIONS, found["memory_gib"], strict=True))}


def main() -> None:
    """Measure, train, compare, record."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--jobs", type=int, default=2, help="runs at a time")
    given = options.parse_args()
    data.load("mnist", "test")  # downloads what is missing, or fails with advice, before two processes need it
    cost = price(given.rounds, given.steps)
    plain = [run for run in results.records(recipe=RECIPE.recipe) if claims.is_plain(run) and run.test]
    configs = [replace(run.config, precision="bfloat16") for run in plain]
    halved = runs.sweep(configs, runs.RUNS, "cpu", given.jobs, tell)
    base, found = outcomes(plain), outcomes(halved)
    apart = selection.mean([one["accuracy"] - other["accuracy"] for one, other in zip(found, base, strict=True)])
    print(f"accuracy over {len(found)} seeds: {100 * apart.value:+.1f} points, interval {apart.interval}")
    save(
        "precision",
        {"recipe": RECIPE.recipe, "price": cost, "float32": base, "bfloat16": found}
        | {"difference": apart.value, "interval": apart.interval},
        given.record,
        device="cpu",
    )


if __name__ == "__main__":
    run(main)
