"""Where the time of a training step goes: operators of one run on one thread, grouped, as shares of the whole.

    python benchmarks/profile_step.py [--steps 100]

The profiler's own cost is in the shares, so they say where to look and not how fast a step is.
"""

from collections import Counter

import torch
from _shared import BATCH, WARM_UP, parser, run, save
from torch.profiler import ProfilerActivity, profile

from jointvae import data, training

GROUPS = {  # the first that fits counts
    "noise": ("normal_", "exponential_"),
    "convolutions": ("convolution", "conv2d", "mkldnn", "conv_transpose", "col2im", "im2col"),
    "linear layers": ("mm", "addmm", "linear"),
    "optimiser (Adam)": ("adam",),
    "activations and losses": ("relu", "threshold", "binary_cross_entropy", "softmax", "exp", "log"),
    "moving data": ("copy_", "index", "fill_", "zero_", "cat", "stack", "clone", "empty", "to"),
}
AT_A_TIME = 20  # steps of one profile: the records of a longer one break up the heap, and the page faults are timed too


def group_of(operator: str) -> str:
    """The group of an operator of the profile; what fits nowhere is called the rest."""
    name = operator.removeprefix("aten::").lower()
    return next((group for group, words in GROUPS.items() if any(word in name for word in words)), "the rest")


def main() -> None:
    """Measure, print, record."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=100)
    given = options.parse_args()
    torch.set_num_threads(1)
    training.keep_freed_memory()
    dataset, trainer = data.load("mnist", "train"), training.Trainer(training.recipe("mnist"))
    batches = training.epoch_order(trainer.config, 0, len(dataset)).split(BATCH)

    def step(batch: torch.Tensor) -> None:
        trainer.train_step(dataset.batch(batch))

    for batch in batches[:WARM_UP]:
        step(batch)
    spent: Counter[str] = Counter()
    for first in range(WARM_UP, WARM_UP + given.steps, AT_A_TIME):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for batch in batches[first : min(first + AT_A_TIME, WARM_UP + given.steps)]:
                step(batch)
        for row in profiled.key_averages():
            spent[group_of(row.key)] += row.self_cpu_time_total
    shares = {group: time / spent.total() for group, time in spent.most_common()}
    for group, share in shares.items():
        print(f"{group:<24} {share:6.1%}")
    save("profile_step", {"steps": given.steps, "shares": shares}, given.record, device="cpu")


if __name__ == "__main__":
    run(main)
