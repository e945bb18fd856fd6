"""Runs in pairs: the same seed, and one thing changed in the loss of a step. And the test of what came of it.

Runs of one seed start from the same weights, see the same images in the same order, and draw the same noise.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointvae import checkpoints, data, training
from jointvae.evaluation import Evaluation, evaluate
from jointvae.files import sha256
from jointvae.latents import Noise, Posterior, draw_noise
from jointvae.model import JointVAE
from jointvae.objectives import SplitCapacity, reconstruction_loss
from jointvae.results import Record
from jointvae.training import Config

MEASURES = ("accuracy", "information", "kl_z", "kl_c", "reconstruction")  # of the test set
Losses = tuple[Tensor, Tensor]  # what `training.step_losses` returns


def forward(model: JointVAE, config: Config, x: Tensor, noise: Noise) -> tuple[Posterior, Tensor]:
    """The posterior of a batch, and the reconstruction loss of one draw from it."""
    posterior = model.encode(x)
    return posterior, reconstruction_loss(model.decode(posterior.sample(noise, config.tau)), x)


def seen(posterior: Posterior, reconstruction: Tensor) -> Tensor:
    """What a trainer is told of a step."""
    return torch.cat([reconstruction.view(1), posterior.kl_z().mean(0), posterior.kl_c().mean(0)]).detach()


def split(config: Config) -> SplitCapacity:
    """The objective that all variants change."""
    assert isinstance(config.objective, SplitCapacity), "the recipe has the paper's objective"
    return config.objective


class Variant(training.Trainer):
    """A trainer whose step has another loss."""

    def __init__(self, config: Config, losses: Callable[..., Losses]) -> None:
        super().__init__(config)
        self.losses = losses

    def train_step(self, x: Tensor) -> Tensor:
        """As the package's, with the noise drawn first."""
        self.step += 1
        noise = draw_noise(self.config.latents, (len(x),), self.noise)
        loss, losses = self.losses(self.model, self.config, x, noise, self.step)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return losses


def outcome(trainer: Variant) -> dict[str, Any]:
    """Train to the last epoch: the measures on the test set, and the sum of the weights."""
    config = trainer.config
    train_data, test_data = (data.load(config.dataset, split) for split in data.SPLITS)
    training.keep_freed_memory()
    while trainer.epoch < config.epochs:
        trainer.train_epoch(train_data)
    with TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        checkpoints.save_model(weights, trainer.model)
        return {"seed": config.seed, **measures(evaluate(trainer.model, test_data)), "weights": sha256(weights)}


def outcomes(records: list[Record]) -> list[dict[str, Any]]:
    """The measures of every run on the test set, in the order of the seeds."""
    return [
        {"seed": run.config.seed, "collapsed": run.test.collapsed, **measures(run.test)} for run in records if run.test
    ]


def tell(name: str, news: training.Progress | str) -> None:
    """Print a line for every run that ends; what a sweep says in between is left out."""
    if isinstance(news, str):
        print(f"{name}: {news}", flush=True)


def measures(test: Evaluation) -> dict[str, float]:
    """The accuracy as a share; information, divergences and reconstruction loss in nats per image."""
    assert test.accuracy is not None, "the digits have labels"
    sums = {name: sum(getattr(test, name)) for name in ("information", "kl_z", "kl_c")}
    return {"accuracy": test.accuracy, **sums, "reconstruction": test.reconstruction}


def sign_flips(differences: np.ndarray) -> np.ndarray:
    """The p-value of every measure, from all patterns of signs of the seeds (max-T, exact and two-sided).

    Args:
        differences: of the paired runs, seeds by measures.
    """
    seeds = len(differences)
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=seeds)))  # the first pattern changes nothing
    flipped = signs[:, :, None] * differences
    spread = np.maximum(flipped.std(1, ddof=1), 1e-12)
    t = np.abs(flipped.mean(1)) / (spread / np.sqrt(seeds))
    return (t.max(1)[:, None] >= t[0] * (1 - 1e-9)).mean(0)
