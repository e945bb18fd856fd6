"""Our training loop against one of the design that the paper's code uses, side by side on the CPU.

    python benchmarks/train_step.py [--rounds 27] [--steps 150]

The baseline, written for this comparison, does what that design does: a DataLoader over PIL images that are resized and
converted one by one, a separate linear layer for each parameter of the posterior, probabilities instead of logits, and
the plain Adam. Both train the same architecture on the same images with batches of 64, end to end, loading included.
Each has a process of its own, and they take turns (A B C A B C …), one idle while the other trains; each ratio compares
neighbours, and the median of the ratios is reported. The third in turn are as many runs of ours side by side as there
are cores, each with one thread: what a sweep does.
"""

import statistics
import timeit
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from _shared import BATCH, Worker, parser, run, save
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from jointvae import data, training
from jointvae.model import JointVAE

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


def baseline_steps(device: str = "cpu") -> Iterator[float]:
    """Train the baseline for ever; yields the loss of each step, as that design records it."""
    images, labels = data.raw_images("mnist", "train"), data.load("mnist", "train").labels
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # float32 on a GPU too, as ours
    model = Baseline().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    step = 0
    while True:
        for x, _ in DataLoader(PILImages(images, labels), batch_size=BATCH, shuffle=True):
            step += 1
            optimizer.zero_grad()
            loss = model.loss(x.to(device), 5 * step / 25_000)
            loss.backward()
            optimizer.step()
            yield loss.item()


def our_steps(
    recipe: str = "mnist",
    precision: training.Precision = "float32",
    change: Callable[[JointVAE], None] = lambda model: None,
) -> Iterator[float]:
    """Train a recipe on MNIST for ever, through the method that a run uses; yields the loss of each step.

    `change` is called with the model before the first step.
    """
    dataset = data.load("mnist", "train")
    training.keep_freed_memory()
    trainer = training.Trainer(replace(training.recipe(recipe), precision=precision))
    change(trainer.model)
    while True:
        batches = training.epoch_order(trainer.config, trainer.epoch, len(dataset)).split(BATCH)
        for batch in batches:
            losses = trainer.train_step(dataset.batch(batch))
            yield losses.sum().item()
        trainer.epoch += 1


def matmul_flops(size: int = 1024) -> float:
    """The float32 rate of a square matrix product on this machine, in FLOP/s.

    The faster of the two ways that torch has to compute one, through BLAS and, as a 1 x 1 convolution, through oneDNN:
    which of them knows a processor's widest instructions depends on the processor. The best of many tries.
    """
    a, b = torch.randn(size, size), torch.randn(size, size)
    image = a.view(1, size, size // 16, 16).to(memory_format=torch.channels_last)
    products: list[Callable[[], Tensor]] = [lambda: a @ b, lambda: F.conv2d(image, b[:, :, None, None])]
    fastest = min(min(timeit.repeat(product, number=5, repeat=20)) for product in products) / 5
    return FLOP_PER_MAC * size**3 / fastest


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


def main() -> None:
    """Measure, print, record."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=27)  # a shared machine has good and bad minutes
    options.add_argument("--steps", type=int, default=150)
    given = options.parse_args()
    data.load("mnist", "test")  # downloads what is missing, or fails with advice, before several processes need it
    peak = matmul_flops()  # while nothing else runs
    ours, baseline = Worker(our_steps), Worker(baseline_steps)
    runs_at_once = [Worker(our_steps, threads=1) for _ in range(torch.get_num_threads())]
    for worker in (ours, baseline, *runs_at_once):
        worker.ready()
    rows, memory = [], 0.0
    for round_ in range(given.rounds):
        (a, memory), (b, _) = ours.time(given.steps), baseline.time(given.steps)
        for worker in runs_at_once:
            worker.start(given.steps)
        c = max(worker.wait()[0] for worker in runs_at_once) / len(runs_at_once)
        rows.append((a, b, c))
        rates = [BATCH * given.steps / seconds for seconds in (a, b, c)]
        print("round {}: {:,.0f} against {:,.0f}; side by side {:,.0f} images/s".format(round_ + 1, *rates), flush=True)
    rate = statistics.median(BATCH * given.steps / a for a, _, _ in rows)
    found = {
        "ratio_median": statistics.median(b / a for a, b, _ in rows),
        "ratios": [b / a for a, b, _ in rows],
        "side_by_side": {
            "runs": len(runs_at_once),
            "ratio_median": statistics.median(b / c for _, b, c in rows),
            "ratios": [b / c for _, b, c in rows],
        },
        "mflop_per_image": flop_per_image() / 1e6,
        "gflop_per_second": {"training": rate * flop_per_image() / 1e9, "matrix_product": peak / 1e9},
        "share_of_matmul_rate": rate * flop_per_image() / peak,
        "resident_gib": memory,
        "rounds": given.rounds,
        "steps": given.steps,
    }
    print(
        f"images/s over the baseline, medians of {given.rounds} rounds: one run {found['ratio_median']:.2f}, "
        f"{len(runs_at_once)} runs side by side {found['side_by_side']['ratio_median']:.2f}\n"
        f"share of the measured float32 matrix-product rate: {found['share_of_matmul_rate']:.0%}\n"
        f"resident memory of MNIST training: {found['resident_gib']:.2f} GiB"
    )
    save("train_step", found, given.record, device="cpu")


if __name__ == "__main__":
    run(main)
