"""Many seeds of one config, trained as one model whose weights have an axis of seeds.

A small model leaves a GPU waiting for its launches: there one step for many seeds costs little more than for one. On
CUDA a step is besides captured once as a graph and then replayed, which makes it one launch. Every seed keeps its own
weights, order of images and noise, so what it learns does not depend on its companions, up to rounding.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from jointvae.categorical import gumbel_of_exponential
from jointvae.data import Dataset
from jointvae.errors import JointVAEError
from jointvae.latents import Noise
from jointvae.training import (
    REPORT_EVERY,
    Config,
    NonFiniteLossError,
    Progress,
    Trainer,
    build,
    epoch_order,
    images_of_c,
    step_losses,
)

PLAIN_STEPS = 3  # before a step is captured: libraries set themselves up in the first ones
SHARE = 0.8  # of the free memory that seeds may fill
CONTAINER = Path("/sys/fs/cgroup")  # where Linux tells a container what it may have


class _Losses(nn.Module):
    """The losses of a step as a module, so that they can be computed with weights from elsewhere."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.model = config, build(config).to("meta")

    def forward(self, x: Tensor, noise: Noise, step: Tensor, x_c: Tensor | None) -> tuple[Tensor, Tensor]:
        return step_losses(self.model, self.config, x, noise, step, x_c)


def check_precision(config: Config, device: torch.device) -> None:
    """Refuse what would be recorded as half the bits and computed with all of them.

    Raises:
        JointVAEError: for bfloat16 on a CPU. There autocast does not reach the convolutions of a stacked model.
    """
    if config.precision != "float32" and device.type == "cpu":
        raise JointVAEError(
            f"Seeds trained together on a CPU compute their convolutions in float32: for {config.precision}, leave out "
            "--together."
        )


class BatchedTrainer:
    """Trainers of one config that differ in the seed alone, an epoch at a time.

    Args:
        trainers: all at the same epoch and on the same device.

    Raises:
        JointVAEError: if they differ in more than the seed, or stand at different epochs; see `check_precision` too.
    """

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        first = trainers[0]
        check_precision(first.config, first.device)
        if len({(replace(t.config, seed=0), t.epoch, t.device) for t in trainers}) > 1:
            raise JointVAEError("Only runs that differ in nothing but the seed, at the same epoch, train together.")
        self.trainers, self.config, self.device = list(trainers), first.config, first.device
        self.losses = _Losses(self.config)
        parameters = [dict(t.model.named_parameters()) for t in trainers]
        self.weights = {
            f"model.{name}": torch.stack([own[name].detach() for own in parameters]).requires_grad_()
            for name in parameters[0]
        }
        self.captures = self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            self.weights.values(), lr=self.config.learning_rate, fused=True, capturable=self.captures
        )
        self._stack_moments()
        self.step = torch.tensor(float(first.step), device=self.device)
        self.graph: _Graph | None = None
        self.plain_steps = 0

    def _stack_moments(self) -> None:
        alike = zip(*(t.model.parameters() for t in self.trainers), strict=True)
        for stacked, own in zip(self.weights.values(), alike, strict=True):
            states = [dict(t.optimizer.state.get(p, {})) for t, p in zip(self.trainers, own, strict=True)]
            moments = {name: torch.stack([state[name] for state in states]) for name in states[0]}
            if moments:
                self.optimizer.state[stacked] = moments | {"step": states[0]["step"].clone()}

    def write_back(self) -> None:
        """Give every trainer its weights and its optimiser's state, as if it had trained alone."""
        alike = zip(*(t.model.parameters() for t in self.trainers), strict=True)
        for stacked, own in zip(self.weights.values(), alike, strict=True):
            moments = self.optimizer.state.get(stacked, {})
            for i, (trainer, p) in enumerate(zip(self.trainers, own, strict=True)):
                with torch.no_grad():
                    p.copy_(stacked[i])
                # The fused Adam walks parameter and moments through memory together, so both need the same strides.
                trainer.optimizer.state[p] = {
                    name: value.clone() if name == "step" else torch.empty_like(p).detach().copy_(value[i])
                    for name, value in moments.items()
                }

    def train_step(
        self, x: Float[Tensor, "seeds batch channels side side"], noise: Noise, x_c: Tensor | None = None
    ) -> Float[Tensor, "seeds terms"]:
        """One step of every seed on a batch of its own, with c read from the images x_c if they are others.

        Returns, for each seed, what `Trainer.train_step` returns.
        """
        self.step += 1
        axes = (0, 0, 0, None, None if x_c is None else 0)
        loss, losses = vmap(self._losses_of_one, in_dims=axes)(self.weights, x, noise, self.step, x_c)
        self.optimizer.zero_grad()
        loss.sum().backward()  # no seed's loss depends on another one's weights
        self.optimizer.step()
        return losses

    def _losses_of_one(
        self, weights: dict[str, Tensor], x: Tensor, noise: Noise, step: Tensor, x_c: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        loss, losses = functional_call(self.losses, weights, (x, noise, step, x_c))
        return loss, losses

    def draw_noise(self, batch: int) -> Noise:
        """Noise for a batch of every seed, along a first axis of seeds: what `latents.draw_noise` gives to each.

        Only the draws, each from its own generator, are made seed by seed: every call is a launch on a GPU.
        """
        spec, seeds = self.config.latents, len(self.trainers)
        epsilon = torch.empty(seeds, batch, spec.z, device=self.device)
        exponential = [torch.empty(seeds, batch, n, device=self.device) for n in spec.c]
        for i, trainer in enumerate(self.trainers):
            epsilon[i].normal_(generator=trainer.noise)
            for unit in exponential:
                unit[i].exponential_(generator=trainer.noise)
        return Noise(epsilon, tuple(map(gumbel_of_exponential, exponential)))

    def images_of_c(self, x: Float[Tensor, "seeds batch channels side side"], step: int) -> Tensor | None:
        """What each seed reads c from in that step, or None if it is x."""
        own = [images_of_c(trainer.config, images, step) for trainer, images in zip(self.trainers, x, strict=True)]
        others = [images for images in own if images is not None]
        return torch.stack(others) if others else None

    def _fast_step(self, x: Tensor, noise: Noise, x_c: Tensor | None) -> Tensor:
        """`train_step`, replayed from a graph where there is a GPU and the batch has its usual size."""
        if not self.captures or x.shape[1] != self.config.batch_size or self.plain_steps < PLAIN_STEPS:
            self.plain_steps += 1
            return self.train_step(x, noise, x_c)
        self.graph = self.graph or _Graph(self.train_step, x, noise, x_c)
        return self.graph.replay(x, noise, x_c)

    def epoch_steps(self, data: Dataset) -> Iterator[Float[Tensor, "seeds terms"]]:
        """The steps of one epoch, every image once for every seed; yields what `train_step` returns."""
        orders = torch.stack([epoch_order(t.config, t.epoch, len(data)) for t in self.trainers])
        batches, done = orders.to(self.device).split(self.config.batch_size, dim=1), self.trainers[0].step
        for step, batch in enumerate(batches, start=done + 1):
            x = data.batch(batch.flatten()).unflatten(0, batch.shape)
            yield self._fast_step(x, self.draw_noise(batch.shape[1]), self.images_of_c(x, step))

    def train_epoch(
        self, data: Dataset, hook: Callable[[Trainer, Progress], None] | None = None
    ) -> dict[int, NonFiniteLossError]:
        """Every image once, for every seed. Appends to each trainer's curves, and calls the hook every few steps.

        Returns:
            The errors of the seeds whose loss was not finite; the others are not touched by it.
        """
        started, failed = time.perf_counter(), dict[int, NonFiniteLossError]()
        steps = math.ceil(len(data) / self.config.batch_size)
        total, recent, since = torch.zeros(()), [], started
        for i, losses in enumerate(self.epoch_steps(data), start=1):
            recent.append(losses)
            if len(recent) == REPORT_EVERY or i == steps:
                latest = torch.stack(recent, dim=1).cpu()  # waits for the steps, so that the rate is theirs
                total, now = total + latest.sum(1), time.perf_counter()
                rate = len(recent) * self.config.batch_size / (now - since)
                for trainer, own in zip(self.trainers, latest, strict=True):
                    trainer.step += len(recent)
                    self._look_at(trainer, own, failed)
                    if hook and trainer.config.seed not in failed:
                        hook(trainer, trainer.progress(own.mean(0), steps, rate))
                recent, since = [], now
        seconds = time.perf_counter() - started
        for trainer, means in zip(self.trainers, total / steps, strict=True):
            self._look_at(trainer, means[None], failed)
            if trainer.config.seed not in failed:
                trainer.epoch += 1
                trainer.seconds += seconds / len(self.trainers)
                trainer.append_means(means.tolist())
        self.write_back()
        return failed

    def _look_at(self, trainer: Trainer, losses: Tensor, failed: dict[int, NonFiniteLossError]) -> None:
        try:
            trainer.stop_if_not_finite(losses)
        except NonFiniteLossError as error:
            failed.setdefault(trainer.config.seed, error)


class _Graph:
    """A training step captured as a CUDA graph. Capturing does not execute it."""

    def __init__(
        self, step: Callable[[Tensor, Noise, Tensor | None], Tensor], x: Tensor, noise: Noise, x_c: Tensor | None
    ) -> None:
        self.x, self.noise = x.clone(), Noise(noise.epsilon.clone(), tuple(g.clone() for g in noise.g))
        self.x_c = None if x_c is None else x_c.clone()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.losses = step(self.x, self.noise, self.x_c)

    def replay(self, x: Tensor, noise: Noise, x_c: Tensor | None) -> Tensor:
        """The step on these images and this noise."""
        for ours, given in zip((self.x, self.noise.epsilon, *self.noise.g), (x, noise.epsilon, *noise.g), strict=True):
            ours.copy_(given)
        if self.x_c is not None and x_c is not None:
            self.x_c.copy_(x_c)
        self.graph.replay()
        return self.losses.clone()


def bytes_per_seed(config: Config, images: int) -> int:
    """An estimate of the memory that one more seed takes, in bytes, from one step of one seed.

    Weights, gradients and two moments; and twice what the step keeps for its backward pass, for the gradients of the
    activations and the workspaces of the convolutions come on top.
    """
    model, kept = build(config), dict[int, int]()

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.zeros(min(config.batch_size, images), *config.image[:1], config.image.size, config.image.size)
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        step_losses(model, config, x, torch.Generator().manual_seed(0), 1, images_of_c(config, x, 1))
    weights = sum(p.nbytes for p in model.parameters())
    return 4 * weights + 2 * sum(kept.values())


def seeds_that_fit(config: Config, device: torch.device, images: int) -> int:
    """How many seeds of a config, on so many training images, the free memory takes at once; at least one."""
    return max(1, int(SHARE * free_memory(device) / bytes_per_seed(config, images)))


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device; on a CPU those of the machine, or of the container if it is allowed fewer."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    machine = psutil.virtual_memory().available  # of the host, even in a container
    try:
        limit, used = (int((CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        kinds = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
        return min(machine, limit - used + int(kinds["inactive_file"]))  # read files that the system drops first
    except (OSError, ValueError, KeyError):  # no container, or one without a limit
        return machine


def at_one_epoch(trainers: Sequence[Trainer]) -> list[list[Trainer]]:
    """Trainers in groups that stand at the same epoch, those that have come farthest first."""
    epochs = sorted({t.epoch for t in trainers}, reverse=True)
    return [[t for t in trainers if t.epoch == epoch] for epoch in epochs]
