"""The joint latent (z, c): its layout, its posterior q(z, c | x), and the divergence from the prior.

z is continuous with D units, prior N(0, 1) each. c is a tuple of discrete units, unit i with n_i categories and a
uniform prior. Given x they are independent, so the divergence is a sum over units.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from jointvae import categorical
from jointvae.errors import JointVAEError

LARGEST = 10_000  # entries of the joint latent; the paper's largest model has 42


@dataclass(frozen=True)
class LatentSpec:
    """How many units z has, and how many categories each unit of c has.

    Raises:
        JointVAEError: if there is no latent at all, there are too many, or a size makes no sense.

    >>> spec = LatentSpec(z=2, c=(10, 3))
    >>> spec.size, spec.n_parameters
    (15, 17)
    """

    z: int = 10
    c: tuple[int, ...] = (10,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "c", tuple(self.c))  # also of a list
        if self.z < 0:
            raise JointVAEError(f"z must have 0 or more units, not {self.z}.")
        for n in self.c:
            if n < 2:
                raise JointVAEError(f"A discrete latent needs at least 2 categories, not {n}.")
        if self.z == 0 and not self.c:
            raise JointVAEError("The model needs at least one latent, continuous or discrete.")
        if self.size > LARGEST:  # a file may ask for more than the memory holds
            raise JointVAEError(f"z and c together may have {LARGEST:,} entries, not {self.size:,}.")

    @property
    def size(self) -> int:
        """Length of the vector that the decoder reads, D plus one entry per category."""
        return self.z + sum(self.c)

    @property
    def n_parameters(self) -> int:
        """Length of the vector that the encoder emits, mean and log variance per unit of z, a logit per category."""
        return 2 * self.z + sum(self.c)

    @property
    def max_kl_c(self) -> float:
        """The most that the discrete latents can carry, the sum of log n_i, in nats.

        >>> round(LatentSpec(z=2, c=(2, 2)).max_kl_c, 4)
        1.3863
        """
        return sum(math.log(n) for n in self.c)


class Noise(NamedTuple):
    """All that is random in one draw of (z, c) for a batch: a normal for each unit of z, a Gumbel for each category."""

    epsilon: Float[Tensor, "*seeds batch D"]
    g: tuple[Float[Tensor, "*seeds batch _"], ...]


def draw_noise(spec: LatentSpec, batch: tuple[int, ...], generator: torch.Generator) -> Noise:
    """Noise for a batch of images of that shape, on the generator's device; z first, then the units of c in order."""
    epsilon = torch.randn((*batch, spec.z), generator=generator, device=generator.device)
    return Noise(epsilon, tuple(categorical.gumbel_noise((*batch, n), generator) for n in spec.c))


@dataclass(frozen=True)
class Posterior:
    """q(z|x) = N(mu, diag exp(logvar)) and q(c|x) = product of Cat(softmax(logits_i)), for a batch of images.

    >>> posterior = Posterior(torch.zeros(1, 2), torch.zeros(1, 2), (torch.tensor([[0.0, 100.0]]),))
    >>> posterior.mode()
    tensor([[0., 0., 0., 1.]])
    >>> posterior.kl_z(), posterior.kl_c()
    (tensor([[0., 0.]]), tensor([[0.6931]]))
    """

    mu: Float[Tensor, "batch D"]
    logvar: Float[Tensor, "batch D"]
    logits: tuple[Float[Tensor, "batch _"], ...]

    @classmethod
    def from_parameters(cls, parameters: Float[Tensor, "batch parameters"], spec: LatentSpec) -> "Posterior":
        """Cut the encoder's output into mean, log variance and the logits of each discrete unit."""
        mu, logvar, *logits = parameters.split([spec.z, spec.z, *spec.c], dim=-1)
        return cls(mu, logvar, tuple(logits))

    @property
    def spec(self) -> LatentSpec:
        """The layout of the latents."""
        return LatentSpec(self.mu.shape[-1], tuple(logits.shape[-1] for logits in self.logits))

    def sample(self, noise: torch.Generator | Noise, tau: float) -> Float[Tensor, "batch latent"]:
        """A reparameterised draw of (z, c), z first; c relaxed at temperature tau (Dupont 2018, section 3.1).

        Args:
            noise: a generator to draw it from, or the noise itself.
            tau: the temperature, above 0.
        """
        if isinstance(noise, torch.Generator):
            noise = draw_noise(self.spec, tuple(self.mu.shape[:-1]), noise)
        z = self.mu + (0.5 * self.logvar).exp() * noise.epsilon
        c = [categorical.gumbel_softmax(logits, g, tau) for logits, g in zip(self.logits, noise.g, strict=True)]
        return torch.cat([z, *c], dim=-1)

    def mode(self) -> Float[Tensor, "batch latent"]:
        """The most likely (z, c): the mean of z and the one-hot arg max of each discrete unit."""
        c = [F.one_hot(logits.argmax(-1), logits.shape[-1]).to(self.mu.dtype) for logits in self.logits]
        return torch.cat([self.mu, *c], dim=-1)

    def averaged(self, other: "Posterior") -> "Posterior":
        """The same z, and for every discrete unit the mean of the two distributions.

        >>> sure = Posterior(torch.zeros(1, 0), torch.zeros(1, 0), (torch.tensor([[50.0, 0.0]]),))
        >>> unsure = Posterior(torch.zeros(1, 0), torch.zeros(1, 0), (torch.tensor([[0.0, 0.0]]),))
        >>> sure.averaged(unsure).logits[0].exp()
        tensor([[0.7500, 0.2500]])
        """
        pairs = zip(self.logits, other.logits, strict=True)
        means = [torch.logaddexp(a.log_softmax(-1), b.log_softmax(-1)) - math.log(2) for a, b in pairs]
        return Posterior(self.mu, self.logvar, tuple(means))

    def divergence(self, other: "Posterior") -> Float[Tensor, "batch units"]:
        """The Jensen-Shannon divergence of q(c_i|x) from the other's, for each image and discrete unit, in nats.

        It is I(a; c_i | x) if a, the choice between the two, is a fair coin: at most log 2.

        >>> one, two = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]])
        >>> first, second = (Posterior(one[:, :0], one[:, :0], (logits,)) for logits in (one, two))
        >>> first.divergence(second), first.divergence(first)
        (tensor([[0.6931]]), tensor([[0.]]))
        """
        return 0.5 * (self.kl_c() + other.kl_c()) - self.averaged(other).kl_c()

    def kl_z(self) -> Float[Tensor, "batch D"]:
        """KL(q(z_j|x) || N(0, 1)) for each image and unit, in nats (Kingma and Welling 2014, appendix B)."""
        return 0.5 * (self.mu.square() + self.logvar.exp() - 1 - self.logvar)

    def kl_c(self) -> Float[Tensor, "batch units"]:
        """KL(q(c_i|x) || uniform) for each image and discrete unit, in nats."""
        if not self.logits:
            return self.mu.new_zeros(len(self.mu), 0)
        return torch.stack([categorical.kl_to_uniform(logits) for logits in self.logits], dim=-1)

    def information(self) -> Float[Tensor, " units"]:
        """I(x; c_i) over the images of the batch, for each discrete unit, in nats.

        KL_c less what the mean of the posteriors is away from uniform: all images in one category make it zero. Taken
        over a batch it is the information on which image *of the batch* it is, so it never exceeds log(batch). For
        training: it stays in the logs, so its gradient is finite also where a probability rounds to zero. What a record
        states is `evaluation.mutual_information`, from entropies in float64.

        >>> logits = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
        >>> Posterior(torch.zeros(2, 0), torch.zeros(2, 0), (logits, logits[:1].expand(2, 2))).information()
        tensor([0.6931, 0.0000])
        """
        if not self.logits:
            return self.mu.new_zeros(0)
        log_means = [logits.log_softmax(-1).logsumexp(0) - math.log(len(logits)) for logits in self.logits]
        return self.kl_c().mean(0) - torch.stack([categorical.kl_to_uniform(log_mean) for log_mean in log_means])
