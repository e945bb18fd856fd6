"""The paper's four objectives, all minimised, all in nats per image; four more; and the base of the reader's own.

Each is a frozen dataclass that is called with the batch means of the reconstruction loss and of the KL divergence of
every latent unit, and returns its named terms; the loss is their plain sum. A capacity is a pure function of the step,
so nothing about a schedule needs saving.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, get_args

from jaxtyping import Float
from pydantic_core import core_schema
from torch import Tensor
from torch.nn import functional as F

from jointvae.augmentation import Affine
from jointvae.errors import JointVAEError

Terms = dict[str, Float[Tensor, ""]]
NESTED = 3  # levels of settings within a setting of the reader's own; a file could have any number
Step = int | Float[Tensor, ""]  # a tensor where many seeds are trained at once: then the device does the counting


def reconstruction_loss(
    logits: Float[Tensor, "batch channels side side"], x: Float[Tensor, "batch channels side side"]
) -> Float[Tensor, ""]:
    """-E[log p(x | z, c)] with Bernoulli pixels: summed over pixels and channels, averaged over the batch, in nats."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise JointVAEError(message)


def minimum(value: Any, limit: float) -> Any:
    """The smaller of the two; for a tensor without looking at its value, so that the step can be captured on a GPU."""
    return value.clamp(max=limit) if isinstance(value, Tensor) else min(value, limit)


@dataclass(frozen=True)
class Capacity:
    """A capacity in nats that grows linearly from `start` to `end` over `steps` steps and then stays.

    `ceiling` cuts it off, as the authors cut C_c at the sum of log n_i, which is all that c can carry.

    Raises:
        JointVAEError: if a capacity is below zero, or there is no step to grow over.

    >>> C_c = Capacity(0.0, 5.0, steps=100, ceiling=2.3)
    >>> [C_c(step) for step in (0, 20, 50, 1000)]
    [0.0, 1.0, 2.3, 2.3]
    """

    start: float = 0.0
    end: float = 5.0
    steps: int = 25_000
    ceiling: float | None = None

    def __post_init__(self) -> None:
        ends = f"({self.start} to {self.end})"
        _require(self.start >= 0 and self.end >= 0, f"A capacity can't be below zero {ends}.")
        _require(math.isfinite(self.start) and math.isfinite(self.end), f"A capacity can't be infinite {ends}.")
        _require(self.steps > 0, f"A capacity needs at least 1 step to grow over, not {self.steps}.")
        sensible = self.ceiling is None or 0 <= self.ceiling < math.inf
        _require(sensible, f"A ceiling can't be below zero or infinite ({self.ceiling}).")

    def __call__(self, step: Step) -> Any:
        """The capacity at `step`, in nats; the first step of a run is 1, as in the authors' code.

        A tensor gives a tensor.
        """
        value = self.start + (self.end - self.start) * minimum(step / self.steps, 1.0)
        return value if self.ceiling is None else minimum(value, self.ceiling)


class _Objective:
    """What the training and the curves ask of every objective beside its terms: the paper's answers."""

    holds_information: ClassVar[bool] = False  # is called with I(x; c_i) of the batch in place of KL_c
    transformation: Affine | None = None  # of the images that c is read from
    agreed: ClassVar[bool] = False  # that information is that of the mean posterior of an image and its copy

    def capacities(self, step: int) -> dict[str, float]:
        """None of its terms has a capacity."""
        return {}

    def disagreement(self, price: Float[Tensor, " units"]) -> Terms:
        """No term for the nats by which c differs on an image and on its transformed copy."""
        return {}


@dataclass(frozen=True)
class ELBO(_Objective):
    """-ELBO = reconstruction + KL_z + KL_c (Kingma and Welling 2014, equation 3, with joint latents)."""

    name: Literal["elbo"] = "elbo"

    def __call__(
        self, reconstruction: Float[Tensor, ""], kl_z: Float[Tensor, " D"], kl_c: Float[Tensor, " units"], step: Step
    ) -> Terms:
        """The named terms, in nats per image, from batch means in nats."""
        return {"reconstruction": reconstruction, "kl_z": kl_z.sum(), "kl_c": kl_c.sum()}


@dataclass(frozen=True)
class BetaVAE(_Objective):
    """reconstruction + beta (KL_z + KL_c) (Higgins et al. 2017, equation 4, with joint latents).

    Raises:
        JointVAEError: if beta is below zero.
    """

    beta: float = 4.0
    name: Literal["beta_vae"] = "beta_vae"

    def __post_init__(self) -> None:
        _require(0 <= self.beta < math.inf, f"beta must be a number from zero, not {self.beta}.")

    def __call__(
        self, reconstruction: Float[Tensor, ""], kl_z: Float[Tensor, " D"], kl_c: Float[Tensor, " units"], step: Step
    ) -> Terms:
        """The named terms, in nats per image, from batch means in nats."""
        return {"reconstruction": reconstruction, "kl_z": self.beta * kl_z.sum(), "kl_c": self.beta * kl_c.sum()}


@dataclass(frozen=True)
class AnnealedCapacity(_Objective):
    """reconstruction + gamma |KL_z + KL_c - C|: one capacity for both (Burgess et al. 2018, equation 8).

    Raises:
        JointVAEError: if gamma is below zero.
    """

    gamma: float = 30.0
    C: Capacity = field(default_factory=lambda: Capacity(end=10.0))
    name: Literal["annealed_capacity"] = "annealed_capacity"

    def __post_init__(self) -> None:
        _require(0 <= self.gamma < math.inf, f"gamma must be a number from zero, not {self.gamma}.")

    def capacities(self, step: int) -> dict[str, float]:
        """C at this step, in nats."""
        return {"C": self.C(step)}

    def __call__(
        self, reconstruction: Float[Tensor, ""], kl_z: Float[Tensor, " D"], kl_c: Float[Tensor, " units"], step: Step
    ) -> Terms:
        """The named terms, in nats per image, from batch means in nats."""
        kl = kl_z.sum() + kl_c.sum()
        return {"reconstruction": reconstruction, "capacity": self.gamma * (kl - self.C(step)).abs()}


@dataclass(frozen=True)
class SplitCapacity(_Objective):
    """reconstruction + gamma |KL_z - C_z| + gamma |KL_c - C_c|: JointVAE (Dupont 2018, equation 7).

    Each absolute value is taken of the batch mean, as in the authors' code, not of every image.

    Raises:
        JointVAEError: if gamma is below zero.

    >>> import torch
    >>> objective = SplitCapacity(30.0, Capacity(end=5.0, steps=100), Capacity(end=2.0, steps=100))
    >>> terms = objective(torch.tensor(150.0), torch.tensor([3.0, 1.0]), torch.tensor([2.0]), step=100)
    >>> {name: float(term) for name, term in terms.items()}
    {'reconstruction': 150.0, 'capacity_z': 30.0, 'capacity_c': 0.0}
    """

    gamma: float = 30.0
    C_z: Capacity = field(default_factory=Capacity)
    C_c: Capacity = field(default_factory=Capacity)
    name: Literal["split_capacity"] = "split_capacity"

    def __post_init__(self) -> None:
        _require(0 <= self.gamma < math.inf, f"gamma must be a number from zero, not {self.gamma}.")

    def capacities(self, step: int) -> dict[str, float]:
        """C_z and C_c at this step, in nats."""
        return {"C_z": self.C_z(step), "C_c": self.C_c(step)}

    def __call__(
        self, reconstruction: Float[Tensor, ""], kl_z: Float[Tensor, " D"], kl_c: Float[Tensor, " units"], step: Step
    ) -> Terms:
        """The named terms, in nats per image, from batch means in nats."""
        terms = {"reconstruction": reconstruction}
        # A model without z, or without c, has no such term: the missing latent has nothing to be held to.
        if len(kl_z):
            terms["capacity_z"] = self.gamma * (kl_z.sum() - self.C_z(step)).abs()
        if len(kl_c):
            terms["capacity_c"] = self.gamma * (kl_c.sum() - self.C_c(step)).abs()
        return terms


@dataclass(frozen=True)
class SplitInformation(SplitCapacity):
    """reconstruction + gamma |KL_z - C_z| + gamma |I(x; c) - C_c|: not the paper's.

    KL_c can be full while all images share a category; the information can't. Called with `Posterior.information` of
    the batch in place of KL_c.

    Raises:
        JointVAEError: if gamma is below zero.
    """

    holds_information = True
    name: Literal["split_information"] = "split_information"  # type: ignore[assignment]


@dataclass(frozen=True)
class AugmentedInformation(SplitInformation):
    """The loss of `SplitInformation` with c read from a transformed image, in the mean over transformations.

    z is read from the image itself, which is rebuilt. Not the paper's. Still a bound, less what c tells about the
    transformation: the book's chapter *Beyond the paper* has the proof.

    Raises:
        JointVAEError: if gamma is below zero.
    """

    transformation: Affine = field(default_factory=Affine)
    name: Literal["augmented_information"] = "augmented_information"  # type: ignore[assignment]


@dataclass(frozen=True)
class AgreedInformation(AugmentedInformation):
    """The loss of `AugmentedInformation`, with the information of the mean posterior of an image and its copy.

    c is still drawn from the transformed copy. At a given I(x, a; c), each nat by which the two posteriors differ costs
    gamma while the information is below C_c, and gains gamma while it is above. Not the paper's.

    Raises:
        JointVAEError: if gamma is below zero.
    """

    agreed: ClassVar[bool] = True
    name: Literal["agreed_information"] = "agreed_information"  # type: ignore[assignment]


@dataclass(frozen=True)
class ChargedInformation(AugmentedInformation):
    """The loss of `AugmentedInformation` + gamma I(a; c | x): what c tells about the transformation a is paid for.

    It is the Jensen-Shannon divergence of the posteriors of an image and of its transformed copy; the information that
    is held is that of the copies alone, as there. Not the paper's; Hu et al. (2017) add such a term to the information
    too, with another divergence.

    Raises:
        JointVAEError: if gamma is below zero.
    """

    name: Literal["charged_information"] = "charged_information"  # type: ignore[assignment]

    def disagreement(self, price: Float[Tensor, " units"]) -> Terms:
        """The term for the nats by which c differs on an image and on its transformed copy."""
        return {"disagreement": self.gamma * price.sum()}


@dataclass(frozen=True)
class Own(_Objective):
    """The base of an objective of your own: a frozen dataclass whose fields are its settings.

    Settings are numbers, words, or frozen dataclasses of such, as a `Capacity` is.

    A subclass gives `name` a default and defines `__call__` as the objectives above do; with capacities that it wants
    to see in the curves, `capacities` too. With `holds_information = True` in its body it is called with I(x; c_i) in
    place of KL_c; with a setting `transformation`, an `Affine`, c is read from transformed images, and `disagreement`
    is called with the Jensen-Shannon divergence of the posteriors of an image and of its copy, for each discrete unit.
    With `agreed = True` beside these two, the information is that of the mean of the two posteriors. Where many seeds
    are trained at once, `step` is a tensor, whose value a GPU does not let one look at: `Capacity` and `minimum` don't.
    A record keeps the name and the settings. The code stays with its author.
    """

    name: str

    def __call__(
        self, reconstruction: Float[Tensor, ""], kl_z: Float[Tensor, " D"], kl_c: Float[Tensor, " units"], step: Step
    ) -> Terms:
        """The named terms, in nats per image, from batch means in nats."""
        raise JointVAEError(f"The objective '{self.name}' is known by name only: its code is not in this package.")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        """How a record reads and writes such an objective."""
        write = core_schema.plain_serializer_function_ser_schema(_settings)
        return core_schema.no_info_plain_validator_function(remember, serialization=write)


@dataclass(frozen=True)
class Remembered(Own):
    """What a record knows of an objective that its reader wrote."""

    settings: dict[str, Any] = field(default_factory=dict)


def _settings(objective: Own) -> dict[str, Any]:
    return {"name": objective.name, **objective.settings} if isinstance(objective, Remembered) else asdict(objective)


def remember(given: Any) -> Own:
    """What a record gives back of an objective that its reader wrote.

    Raises:
        ValueError: if the name is missing or one of the package's, or a setting is of another kind.
    """
    if isinstance(given, Own):
        return given
    known = {kind.__dataclass_fields__["name"].default for kind in get_args(Objective) if kind is not Own}
    if not isinstance(given, dict) or not isinstance(given.get("name"), str) or given["name"] in known:
        raise ValueError(f"an objective needs a name of its own, none of {', '.join(sorted(known))}")
    settings = {name: value for name, value in given.items() if name != "name"}
    for name, value in settings.items():
        if not _is_setting(value):
            raise ValueError(f"the setting '{name}' of an objective is made of more than numbers and words")
    return Remembered(given["name"], settings)


def _is_setting(value: Any, levels: int = NESTED) -> bool:
    if isinstance(value, dict):
        return levels > 0 and all(_is_setting(inner, levels - 1) for inner in value.values())
    return isinstance(value, float | int | str | None)


Objective = (
    ELBO
    | BetaVAE
    | AnnealedCapacity
    | SplitCapacity
    | SplitInformation
    | AugmentedInformation
    | AgreedInformation
    | ChargedInformation
    | Own
)
