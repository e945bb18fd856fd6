"""What it costs to read c from a second image: a step of the augmented recipe beside a step of the paper's.

    python benchmarks/second_image.py [--rounds 9] [--steps 100]

Two processes, a thread each, take turns on MNIST; what counts is the median of the ratios of neighbours.
"""

from _shared import Worker, in_turns, parser, run, save
from train_step import our_steps

from jointvae import data


def main() -> None:
    """Measure, print, record."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--steps", type=int, default=100)
    given = options.parse_args()
    data.load("mnist", "test")  # downloads what is missing, or fails with advice, before two processes need it
    plain, augmented = (Worker(our_steps, recipe, threads=1) for recipe in ("mnist", "mnist-augmented"))
    found = in_turns(augmented, plain, given.rounds, given.steps, "a step takes {:.2f} times as long")
    print(f"median of {given.rounds} rounds: {found['ratio_median']:.2f}")
    save("second_image", found, given.record, device="cpu")


if __name__ == "__main__":
    run(main)
