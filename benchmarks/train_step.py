"""Our training loop against one of the design that the paper's code uses, side by side on the CPU.

    python benchmarks/train_step.py [--rounds 5] [--steps 150]

The baseline, written for this comparison, does what that design does: a DataLoader over PIL images that are resized and
converted one by one, a separate linear layer for each parameter of the posterior, probabilities instead of logits, and
the plain Adam. Both train the same architecture on the same images with batches of 64, end to end, loading included.
They alternate (A B A B …) in one process; each ratio compares neighbours, and the median of the ratios is reported.
The result goes to results/benchmarks/train_step.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from jointvae import data, results, training
from jointvae.files import write_atomic

FLOP_PER_MAC = 2
PASSES = 3  # forward, and backward for inputs and for weights


class PILImages(Dataset):
    """MNIST as torchvision serves it: each image becomes a PIL image, is resized and converted when asked for."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose([transforms.Resize(32), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index].numpy())), int(self.labels[index])


class Baseline(nn.Module):
    """The paper's architecture in the plain style of 2018."""

    def __init__(self) -> None:
        super().__init__()
        conv, up = lambda i, o: nn.Conv2d(i, o, 4, 2, 1), lambda i, o: nn.ConvTranspose2d(i, o, 4, 2, 1)
        self.features = nn.Sequential(conv(1, 32), nn.ReLU(), conv(32, 64), nn.ReLU(), conv(64, 64), nn.ReLU())
        self.hidden = nn.Sequential(nn.Linear(1024, 256), nn.ReLU())
        self.mean, self.log_var, self.alpha = nn.Linear(256, 10), nn.Linear(256, 10), nn.Linear(256, 10)
        self.expand = nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 1024), nn.ReLU())
        self.image = nn.Sequential(up(64, 32), nn.ReLU(), up(32, 32), nn.ReLU(), up(32, 1), nn.Sigmoid())

    def loss(self, x: Tensor, capacity: float) -> Tensor:
        """JointVAE's loss with probabilities and a small constant inside every logarithm."""
        eps = 1e-12
        hidden = self.hidden(self.features(x).view(len(x), -1))
        mean, log_var, alpha = self.mean(hidden), self.log_var(hidden), F.softmax(self.alpha(hidden), dim=1)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        gumbel = -torch.log(-torch.log(torch.rand_like(alpha) + eps) + eps)
        c = F.softmax((torch.log(alpha + eps) + gumbel) / 0.67, dim=1)
        rebuilt = self.image(self.expand(torch.cat([z, c], dim=1)).view(-1, 64, 4, 4))
        reconstruction = 1024 * F.binary_cross_entropy(rebuilt.view(-1, 1024), x.view(-1, 1024))
        kl_z = (-0.5 * (1 + log_var - mean.pow(2) - log_var.exp())).mean(0).sum()
        kl_c = training.LOG10 + (alpha * torch.log(alpha + eps)).sum(1).mean()
        return (reconstruction + 30 * (capacity - kl_z).abs() + 30 * (capacity - kl_c).abs()) / 1024


def baseline_steps(images: Tensor, labels: Tensor) -> Iterator[float]:
    """Train the baseline for ever; yields the loss of each step, as that design records it."""
    torch.manual_seed(0)
    model = Baseline()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    step = 0
    while True:
        for x, _ in DataLoader(PILImages(images, labels), batch_size=64, shuffle=True):
            step += 1
            optimizer.zero_grad()
            loss = model.loss(x, 5 * step / 25_000)
            loss.backward()
            optimizer.step()
            yield loss.item()


def our_steps(dataset: data.Dataset) -> Iterator[float]:
    """Train with the package for ever, through the method that a run uses; yields the loss of each step."""
    trainer = training.Trainer(training.recipe("mnist"))
    while True:
        batches = training.epoch_order(trainer.config, trainer.epoch, len(dataset)).split(64)
        for batch in batches:
            losses = trainer.train_step(data.as_floats(dataset.images[batch]))
            yield losses.sum().item()
        trainer.epoch += 1


def seconds(steps: Iterator[float], count: int) -> float:
    """Wall time of `count` steps."""
    started = time.perf_counter()
    for _ in range(count):
        next(steps)
    return time.perf_counter() - started


def matmul_flops(size: int = 1024, repeats: int = 20) -> float:
    """The float32 rate of a square matrix product on this machine, in FLOP/s: the best of five tries."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    rates = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(repeats):
            a @ b
        rates.append(FLOP_PER_MAC * size**3 * repeats / (time.perf_counter() - started))
    return max(rates)


def flop_per_image() -> float:
    """Forward and backward arithmetic of one image, from the shapes of the layers."""
    macs = 0.0
    model = training.build(training.recipe("mnist"))

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        places = output if isinstance(layer, nn.Conv2d) else inputs[0]
        positions = places.shape[-1] * places.shape[-2] if places.dim() == 4 else 1
        macs += layer.weight.numel() * positions

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.register_forward_hook(count)
    x = torch.zeros(1, 1, 32, 32)
    model.encode(x)
    model.decode(torch.zeros(1, model.spec.size))
    return PASSES * FLOP_PER_MAC * macs


def resident_gib() -> float:
    """The largest resident memory of a fresh process that loads MNIST and trains on it, in GiB."""
    code = (
        "import resource; from jointvae import data, training; from pathlib import Path\n"
        "trainer = training.Trainer(training.recipe('mnist')); d = data.load('mnist', 'train')\n"
        "order = training.epoch_order(trainer.config, 0, len(d)).split(64)[:50]\n"
        "[trainer.train_step(data.as_floats(d.images[b])) for b in order]\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    unit = 1024 if sys.platform == "darwin" else 1  # macOS counts bytes, Linux KiB
    return int(printed) / unit / 1024**2


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    dataset = data.load("mnist", "train")
    raw = data.raw_images("mnist", "train")
    ours, theirs = our_steps(dataset), baseline_steps(raw, dataset.labels)
    seconds(ours, 10), seconds(theirs, 10)  # warm-up
    rows = []
    for round_ in range(options.rounds):
        a, b = seconds(ours, options.steps), seconds(theirs, options.steps)
        rows.append((a, b))
        print(f"round {round_ + 1}: {64 * options.steps / a:,.0f} against {64 * options.steps / b:,.0f} images/s")
    rate = statistics.median(64 * options.steps / a for a, _ in rows)
    peak = matmul_flops()
    found = {
        "ratio_median": statistics.median(b / a for a, b in rows),
        "ratios": [b / a for a, b in rows],
        "mflop_per_image": flop_per_image() / 1e6,
        "share_of_matmul_rate": rate * flop_per_image() / peak,
        "resident_gib": resident_gib(),
        "rounds": options.rounds,
        "steps": options.steps,
        "provenance": vars(results.Provenance.now()),
    }
    path = results.RESULTS / "benchmarks" / "train_step.json"
    write_atomic(path, (json.dumps(found, indent=1) + "\n").encode())
    print(
        f"images/s, ours over the baseline: {found['ratio_median']:.2f} (median of {options.rounds} pairs)\n"
        f"share of the measured float32 matrix-product rate: {found['share_of_matmul_rate']:.0%}\n"
        f"resident memory of MNIST training: {found['resident_gib']:.2f} GiB\n"
        f"recorded in {path}"
    )


if __name__ == "__main__":
    main()
