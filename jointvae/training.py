"""From a config to a trained model: one loop, resumable at any epoch, bit for bit on the CPU.

The loop knows neither plots nor scores. It calls one hook with what it measured, and it stops on a loss that is not
finite with the step and the term that broke.
"""

import contextlib
import ctypes
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float
from pydantic import ConfigDict, NonNegativeInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from jointvae import augmentation, checkpoints
from jointvae.data import Dataset
from jointvae.errors import JointVAEError
from jointvae.latents import LatentSpec, Noise, Posterior
from jointvae.model import GREY_32, ImageShape, JointVAE
from jointvae.objectives import (
    AugmentedInformation,
    Capacity,
    Objective,
    SplitCapacity,
    Step,
    reconstruction_loss,
)

LOG10 = LatentSpec(0, (10,)).max_kl_c
LARGEST_SEED = 2**31 - 1  # torch's generator on the CPU heeds 32 bits
LARGEST = 10**9  # value of a setting; torch counts in 64 bits
LOWEST_TAU = 1e-6
LONGEST_NAME = 50  # characters; files are named after the recipe
CURVES = {"step", "reconstruction", "kl_z", "kl_c"}  # and those of the objective's capacities
REPORT_EVERY = 50  # steps between two looks at the losses
Precision = Literal["float32", "bfloat16"]  # of the layers; weights, losses and the optimiser stay in float32


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. The defaults are the paper's MNIST recipe, but for the end of C_c.

    `recipe("mnist")` ends C_c at log 10; other latents end it elsewhere, so here it has no ceiling.

    Raises:
        JointVAEError: if a value makes no sense, or the architecture can't take the images.
    """

    recipe: str = "mnist"
    dataset: str = "mnist"
    image: ImageShape = GREY_32
    latents: LatentSpec = field(default_factory=LatentSpec)
    objective: Objective = field(default_factory=SplitCapacity)
    tau: float = 0.67
    batch_size: int = 64
    learning_rate: float = 5e-4
    epochs: int = 100
    seed: int = 0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        ImageShape(*self.image).check()
        for name in (self.recipe, self.dataset):
            if not (0 < len(name) <= LONGEST_NAME and name.isprintable()) or "/" in name:
                raise JointVAEError(
                    f"A recipe or data set has a name of 1 to {LONGEST_NAME} printable characters without a slash, "
                    f"not {name!r:.60}."
                )
        for name in ("batch_size", "epochs", "seed"):
            if type(getattr(self, name)) is not int:
                raise JointVAEError(f"{name} must be a whole number (int), not {getattr(self, name)!r:.60}.")
        if not self.tau >= LOWEST_TAU:
            raise JointVAEError(
                f"tau must be {LOWEST_TAU} or more, not {self.tau}: it divides logits in single precision."
            )
        for name in ("tau", "learning_rate", "batch_size", "epochs"):
            if not 0 < getattr(self, name) <= LARGEST:
                raise JointVAEError(f"{name} must be above zero and up to {LARGEST:,}, not {getattr(self, name)}.")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise JointVAEError(f"The seed must be from 0 to {LARGEST_SEED:,}, not {self.seed}.")
        if self.precision not in get_args(Precision):
            raise JointVAEError(f"The precision is {' or '.join(get_args(Precision))}, not {self.precision!r:.60}.")

    @property
    def run_name(self) -> str:
        """A name that tells runs apart, of recipe and seed, and a short hash where it departs from the recipe."""
        name = f"{self.recipe}-seed{self.seed}"
        published = RECIPES.get(self.recipe)
        if published == replace(self, seed=published.seed if published else 0):
            return name
        # As a record reads it back: 20 and 20.0 are one setting, and of a reader's objective its values alone remain.
        adapter = _adapter()
        fields = as_fields(adapter.validate_json(adapter.dump_json(replace(self, seed=0), warnings=False)))
        if self.precision == "float32":  # runs had names before there was a choice
            del fields["precision"]
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
        return f"{name}-{digest[:8]}"


@cache
def _adapter() -> Any:  # to build it takes longer than to read a hundred configs with it
    return TypeAdapter(Config)


def as_fields(config: Config) -> dict[str, Any]:
    """A config as a record writes it."""
    fields: dict[str, Any] = _adapter().dump_python(config, mode="json")
    return fields


def with_latents(config: Config, latents: LatentSpec) -> Config:
    """The config with other latents; C_c ends where these can carry no more (Dupont 2018, section 3)."""
    objective = config.objective
    if isinstance(objective, SplitCapacity) and latents != config.latents:
        objective = replace(objective, C_c=replace(objective.C_c, ceiling=latents.max_kl_c))
    return replace(config, latents=latents, objective=objective)


def _recipes() -> dict[str, Config]:
    mnist = Config(
        # Dupont 2018, appendix, and the authors' published training specification.
        objective=SplitCapacity(30.0, Capacity(0.0, 5.0, 25_000), Capacity(0.0, 5.0, 25_000, ceiling=LOG10))
    )
    fashion = replace(
        mnist,
        recipe="fashion",
        dataset="fashion",
        objective=SplitCapacity(100.0, Capacity(0.0, 5.0, 50_000), Capacity(0.0, 10.0, 50_000, ceiling=LOG10)),
    )
    digits = replace(
        mnist,
        # Not from the paper: a short schedule for the 1,437 embedded digits. With the
        # paper's gamma of 30 every image went to one category before the decoder had learned to use the others.
        recipe="digits",
        dataset="digits",
        objective=SplitCapacity(10.0, Capacity(0.0, 5.0, 2_500), Capacity(0.0, 5.0, 2_500, ceiling=LOG10)),
        batch_size=32,
        learning_rate=1e-3,
        epochs=67,
    )
    papers = (mnist, fashion, digits, *(_shortened(config, epochs=32) for config in (mnist, fashion)))
    return {config.recipe: config for config in (*papers, *map(_augmented, papers))}


def _shortened(config: Config, epochs: int) -> Config:
    """The recipe NAME-short: fewer epochs, and ramps of the capacities that take the same share of them.

    Not from the paper: for comparisons of many settings where only a processor is at hand.
    """
    objective, share = config.objective, epochs / config.epochs
    assert isinstance(objective, SplitCapacity), "every recipe has the paper's objective"
    C_z, C_c = (replace(C, steps=round(share * C.steps)) for C in (objective.C_z, objective.C_c))
    return replace(
        config, recipe=f"{config.recipe}-short", objective=replace(objective, C_z=C_z, C_c=C_c), epochs=epochs
    )


def _augmented(config: Config) -> Config:
    """The recipe NAME-augmented: c is read from transformed images, and its information is held in place of KL_c.

    Not from the paper: see the book's chapter *Beyond the paper*.
    """
    objective = config.objective
    assert isinstance(objective, SplitCapacity), "every recipe has the paper's objective"
    changed = AugmentedInformation(objective.gamma, objective.C_z, objective.C_c)
    return replace(config, recipe=f"{config.recipe}-augmented", objective=changed)


RECIPES = _recipes()


def recipe(name: str) -> Config:
    """The config that goes by this name.

    Raises:
        JointVAEError: if there is no such recipe.

    >>> recipe("mnist").run_name
    'mnist-seed0'
    """
    if name not in RECIPES:
        raise JointVAEError(f"There is no recipe '{name}'; choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]


class NonFiniteLossError(JointVAEError):
    """A term of the loss became infinite or not a number."""


class Progress(NamedTuple):
    """What the hook is told every few steps: means over the steps since the last call, in nats per image."""

    step: int
    steps: int
    epoch: int
    reconstruction: float
    kl_z: float
    kl_c: float
    capacities: dict[str, float]
    images_per_second: float


Hook = Callable[[Progress], None]


def build(config: Config, device: torch.device | str = "cpu") -> JointVAE:
    """An untrained model whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = JointVAE(config.latents, config.image)
    return model.to(device)


def epoch_order(config: Config, epoch: int, n: int) -> Tensor:
    """The order of the images in one epoch: a pure function of the seed and the epoch, so it needs no saving.

    The two are mixed into one number first: torch's generator on the CPU heeds no more than 32 bits of a seed.
    """
    mixed = int(np.random.SeedSequence([config.seed, epoch]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(mixed)
    return torch.randperm(n, generator=generator)


def images_of_c(config: Config, x: Float[Tensor, "batch channels side side"], step: int) -> Tensor | None:
    """The images that a step reads c from, or None if they are x, as in the paper."""
    transformation = config.objective.transformation
    if transformation is None:
        return None
    drawn = augmentation.draw(config.seed, step, len(x))
    return transformation(x, drawn.to(x))


def in_precision(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Where the layers of a model compute in this precision: torch casts their inputs and weights, and nothing else.

    Out of it come float32 numbers (see `JointVAE.encode`), so that samples, divergences and losses are not rounded.
    """
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def step_losses(
    model: JointVAE,
    config: Config,
    x: Tensor,
    noise: torch.Generator | Noise,
    step: Step,
    x_c: Tensor | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " terms"]]:
    """The loss of one step on a batch of images in [0, 1], and what it is made of, in nats per image.

    Args:
        model: whose loss it is.
        config: of the run.
        x: the images that z is read from, and that are rebuilt.
        noise: of the draws of z and c, or a generator for it.
        step: from 1.
        x_c: the images that c is read from, if they are others.

    Returns:
        The loss to minimise; and, detached, the reconstruction loss and the KL of every unit of z, then of c.
    """
    with in_precision(config.precision, x.device):
        posterior = of_x = model.encode(x)
        if x_c is not None:
            posterior = Posterior(of_x.mu, of_x.logvar, model.encode(x_c).logits)
        logits = model.decode(posterior.sample(noise, config.tau))
    reconstruction = reconstruction_loss(logits, x)
    kl_z, kl_c = posterior.kl_z().mean(0), posterior.kl_c().mean(0)
    informed = posterior.averaged(of_x) if config.objective.agreed else posterior
    held = informed.information() if config.objective.holds_information else kl_c
    terms = list(config.objective(reconstruction, kl_z, held, step).values())
    if x_c is not None:
        terms += config.objective.disagreement(posterior.divergence(of_x).mean(0)).values()
    loss = torch.stack(terms).sum()
    return loss, torch.cat([reconstruction.view(1), kl_z, kl_c]).detach()


@checked_dataclass(frozen=True, config=ConfigDict(strict=True))
class State:
    """What a file of an unfinished run says beside its tensors.

    Raises:
        JointVAEError: if one of the curves is missing.
    """

    config: dict[str, Any]
    step: NonNegativeInt
    epoch: NonNegativeInt
    seconds: float
    sessions: list[dict[str, Any]]
    curves: dict[str, list[Any]]
    data: dict[str, str] | None = None  #: file to SHA-256; states of old don't say

    def __post_init__(self) -> None:
        if missing := CURVES - self.curves.keys():
            raise JointVAEError(f"the curve of {min(missing)} is missing")


class Trainer:
    """A run in progress: the model, its optimiser, its noise, the steps done and the curves so far."""

    def __init__(self, config: Config, device: torch.device | str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        self.model = build(config, self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate, fused=True)
        self.noise = torch.Generator(self.device).manual_seed(config.seed)
        self.step = 0
        self.epoch = 0
        self.seconds = 0.0
        self.sessions: list[dict[str, Any]] = []  # a note of each time that the run was started or resumed
        self.curves: dict[str, list[Any]] = {"step": [], "reconstruction": [], "kl_z": [], "kl_c": []}
        self.data: dict[str, str] | None = None  # the checksums of the images, where they are known

    def train_step(self, x: Tensor) -> Tensor:
        """One step of the optimiser on a batch of images in [0, 1].

        Returns the reconstruction loss and the KL of every unit of z, then of c, in nats per image.
        """
        self.step += 1
        x_c = images_of_c(self.config, x, self.step)
        loss, losses = step_losses(self.model, self.config, x, self.noise, self.step, x_c)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return losses

    def train_epoch(self, data: Dataset, hook: Hook | None = None) -> None:
        """Every image once. Appends the epoch's means to the curves, and calls the hook every few steps."""
        config, started = self.config, time.perf_counter()
        batches = epoch_order(config, self.epoch, len(data)).to(self.device).split(config.batch_size)
        total, recent, images, since = torch.zeros((), device=self.device), [], 0, started
        for i, batch in enumerate(batches, start=1):
            recent.append(self.train_step(data.batch(batch)))
            images += len(batch)
            if len(recent) == REPORT_EVERY or i == len(batches):
                losses = torch.stack(recent)
                self.stop_if_not_finite(losses)
                total, now = total + losses.sum(0), time.perf_counter()
                if hook:
                    hook(self.progress(losses.mean(0), len(batches), images / (now - since)))
                recent, images, since = [], 0, now
        means = total / len(batches)
        self.stop_if_not_finite(means[None])
        self.epoch += 1
        self.append_means(means.tolist())
        self.seconds += time.perf_counter() - started

    def append_means(self, means: list[float]) -> None:
        """Add an epoch to the curves: the means of what `train_step` returned, in nats per image."""
        D = self.config.latents.z
        row = {"step": self.step, "reconstruction": means[0], "kl_z": means[1 : 1 + D], "kl_c": means[1 + D :]}
        for name, value in (row | self.config.objective.capacities(self.step)).items():
            self.curves.setdefault(name, []).append(value)

    def progress(self, means: Tensor, steps_per_epoch: int, images_per_second: float) -> Progress:
        """What the hook is told, from the means of what `train_step` returned since the last call."""
        reconstruction, *kl = means.tolist()
        D = self.config.latents.z
        return Progress(
            self.step,
            steps_per_epoch * self.config.epochs,
            self.epoch + 1,
            reconstruction,
            sum(kl[:D]),
            sum(kl[D:]),
            self.config.objective.capacities(self.step),
            images_per_second,
        )

    def stop_if_not_finite(self, losses: Float[Tensor, "steps terms"]) -> None:
        """Look at what the last steps returned, or at such losses of the model that they left.

        Raises:
            NonFiniteLossError: with the first step and the term that are infinite or not a number.
        """
        bad = (~losses.isfinite()).nonzero()
        if len(bad) == 0:
            return
        row, column = bad[0].tolist()
        D, step = self.config.latents.z, self.step - len(losses) + row + 1
        name = "the reconstruction" if column == 0 else f"KL_z of unit {column - 1}" if column <= D else "KL_c"
        raise NonFiniteLossError(
            f"Training stopped at step {step}: {name} is {losses[row, column].item()}; "
            f"lower the learning rate ({self.config.learning_rate}) or gamma, and check that pixels lie in [0, 1]."
        )

    def save(self, path: Path) -> None:
        """Everything that the next epoch depends on, in one file, atomically."""
        checkpoints.save_training(
            path,
            self.model,
            self.optimizer,
            self.noise,
            {
                "config": asdict(self.config),
                "step": self.step,
                "epoch": self.epoch,
                "seconds": self.seconds,
                "sessions": self.sessions,
                "curves": self.curves,
                "data": self.data,
            },
        )

    def resume(self, path: Path) -> None:
        """Go back to the state that `save` wrote.

        Raises:
            JointVAEError: if the file is damaged or belongs to a run with another config.
        """
        state = checkpoints.load_training(path, self.model, self.optimizer, self.noise, asdict(self.config))
        try:
            found = State(**state)
        except (ValidationError, TypeError):
            raise checkpoints.damaged(path) from None
        if found.epoch > self.config.epochs or any(len(curve) != found.epoch for curve in found.curves.values()):
            raise checkpoints.damaged(path)
        self.step, self.epoch, self.seconds = found.step, found.epoch, found.seconds
        self.sessions, self.curves, self.data = found.sessions, found.curves, found.data


def keep_freed_memory() -> None:
    """Make glibc keep the memory that a step frees for the next step; elsewhere this does nothing.

    By default it hands the activations back to the system after every step, and the system maps and clears the same
    pages again for the next one.
    """
    trim_threshold, mmap_threshold = -1, -3  # the names that mallopt(3) gives to these two parameters
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        # Older versions refuse a threshold above half their largest heap. To set the other one alone would do harm: it
        # ends the growth of this one, which starts small.
        if mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 32 << 20):
            mallopt(trim_threshold, 1 << 30)


def train(
    trainer: Trainer,
    data: Dataset,
    state: Path,
    hook: Hook | None = None,
    after_epoch: Callable[[Trainer], None] | None = None,
) -> None:
    """Train to the config's last epoch, saving the whole state to the file `state` after each.

    `after_epoch` comes before the save: after an interruption, an epoch and its call are both repeated, or neither.
    """
    keep_freed_memory()
    data = data.to(trainer.device)
    while trainer.epoch < trainer.config.epochs:
        trainer.train_epoch(data, hook)
        if after_epoch:
            after_epoch(trainer)
        trainer.save(state)
