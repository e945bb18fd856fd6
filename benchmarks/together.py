"""Seeds trained together as one batched model against the same seeds alone: is what they learn distributed alike?

    python benchmarks/together.py [--seeds 32] [--jobs 2]

Every seed of the digits recipe is trained both ways, from the same weights, with the same images in the same order and
the same noise. Losses and gradients are equal up to rounding, and training makes much of the last bit: so single runs
differ, and only their distributions can be compared.

The rule, fixed before the first run: these seeds see no difference if the 95 % interval of the mean difference of
accuracy holds 0, and if the largest distance between the two distribution functions of accuracy (Smirnov) is one that
labels exchanged within the pairs reach at least one time in twenty.

A run that is done is kept in `runs/`; a benchmark that was interrupted goes on where it was.
"""

import numpy as np
from _pairs import outcomes, tell
from _shared import parser, run, save
from scipy.stats import ks_2samp, permutation_test

from jointvae import runs, selection, training

RECIPE = training.recipe("digits")


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest distance between the empirical distribution functions of two samples, from 0 to 1."""
    return float(ks_2samp(one, other, method="asymp").statistic)  # its p-value, for unpaired samples, is not used


def chance(one: np.ndarray, other: np.ndarray) -> float:
    """How often pairs whose labels are exchanged at random are at least as far apart: a p-value."""
    found = permutation_test((one, other), distance, permutation_type="samples", alternative="greater", rng=0)
    return float(found.pvalue)


def main() -> None:
    """Train, compare, record."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=32)
    options.add_argument("--jobs", type=int, default=2, help="runs at a time, of those that are trained alone")
    given = options.parse_args()
    configs, folder = runs.seeds(RECIPE, 0, given.seeds), runs.RUNS / "together"
    alone = outcomes(runs.sweep(configs, folder / "alone", "cpu", given.jobs, tell))
    together = outcomes(runs.sweep_together(configs, folder / "as-one", "cpu", tell))
    one, other = (np.array([found["accuracy"] for found in way]) for way in (alone, together))
    apart = selection.mean(other - one)
    found = {"difference": apart.value, "interval": apart.interval}
    found |= {"distance": distance(one, other), "chance": chance(one, other)}
    print(
        f"accuracy over {given.seeds} seeds: {100 * apart.value:+.1f} points, interval {apart.interval}; "
        f"distance of the distributions {found['distance']:.2f}, by chance {found['chance']:.0%} of the time"
    )
    save("together", {"recipe": RECIPE.recipe, "alone": alone, "together": together} | found, given.record, "cpu")


if __name__ == "__main__":
    run(main)
