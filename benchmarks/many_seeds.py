"""Many seeds as one batched model on a GPU, against one run of the design that the paper's code uses, side by side.

    python benchmarks/many_seeds.py [--seeds 32] [--rounds 5] [--steps 100]

Both train the paper's MNIST recipe in float32, in processes of their own that take turns (A B A B …). Seeds per hour
are computed from the rates. Without a GPU nothing is measured, and the result says so.
"""

import statistics
from collections.abc import Iterator
from dataclasses import replace

import torch
from _shared import BATCH, Worker, parser, run, save
from train_step import baseline_steps, flop_per_image

from jointvae import data, runs, training
from jointvae.batched import BatchedTrainer, bytes_per_seed


def batched_steps(seeds: int) -> Iterator[torch.Tensor]:
    """Train that many seeds together for ever; yields the losses of each step."""
    config, device = training.recipe("mnist"), runs.choose_device("cuda")
    dataset = data.load("mnist", "train").to(device)
    batch = BatchedTrainer([training.Trainer(replace(config, seed=seed), device) for seed in range(seeds)])
    while True:
        yield from batch.epoch_steps(dataset)


def float32_limit() -> float:
    """The rate of a large matrix product in float32 on this GPU, in FLOP/s: the limit that was measured here."""
    a = torch.randn(8192, 8192, device="cuda")
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    rates = []
    for _ in range(10):
        start.record()
        a @ a
        end.record()
        torch.cuda.synchronize()
        rates.append(2 * 8192**3 / (start.elapsed_time(end) / 1000))
    return max(rates)


def main() -> None:
    """Measure, print, record."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=32)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--steps", type=int, default=100)
    given = options.parse_args()
    if not torch.cuda.is_available():
        print("many seeds on a GPU: not measured, there is no GPU here")
        save("many_seeds", {"measured": False}, given.record)
        return
    config = training.recipe("mnist")
    images = config.epochs * len(data.load(config.dataset, "train"))
    limit = float32_limit()
    ours, baseline = Worker(batched_steps, given.seeds), Worker(baseline_steps, "cuda")
    ours.ready(), baseline.ready()
    rows, memory = [], 0.0
    for _ in range(given.rounds):
        (a, memory), (b, _) = ours.time(given.steps), baseline.time(given.steps)
        rows.append((given.seeds * BATCH * given.steps / a, BATCH * given.steps / b))
        print(f"{rows[-1][0]:,.0f} against {rows[-1][1]:,.0f} images/s", flush=True)
    rate = statistics.median(a for a, _ in rows)
    found = {
        "measured": True,
        "seeds": given.seeds,
        "ratio_median": statistics.median(a / b for a, b in rows),
        "ratios": [a / b for a, b in rows],
        "images_per_second": rate,
        "minutes_for_all_seeds": given.seeds * images / rate / 60,
        "seeds_per_hour": 3600 * rate / images,
        "share_of_matmul_rate": rate * flop_per_image() / limit,
        "memory_gib": memory,
        "memory_estimate_gib": given.seeds * bytes_per_seed(config, config.batch_size) / 1024**3,
    }
    print(
        f"{given.seeds} seeds: {found['minutes_for_all_seeds']:.1f} minutes of steps, {found['ratio_median']:.0f} "
        f"times the seeds per hour of the baseline, {found['share_of_matmul_rate']:.0%} of the measured float32 rate, "
        f"{memory:.1f} GiB"
    )
    save("many_seeds", found, given.record)


if __name__ == "__main__":
    run(main)
