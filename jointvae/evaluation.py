"""What a trained model found: clusters against labels, information, divergences. Labels are used here and only here.

A cluster is the arg max of a discrete unit's posterior. Divergences and information are in nats, accuracies in [0, 1].
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from jointvae.data import Dataset, as_floats
from jointvae.errors import JointVAEError
from jointvae.latents import Posterior
from jointvae.model import JointVAE
from jointvae.objectives import reconstruction_loss

BATCH = 1000
MOST_IMAGES = 10**12
ACTIVE = 0.1  # nats: a unit of z that carries less is called unused
COLLAPSED = math.log(2)  # nats: less than two categories can carry


@dataclass(frozen=True)
class Evaluation:
    """One model on one split. Lists over units follow the model's order.

    Without a discrete unit there are no clusters, and without labels there is nothing to compare them with: then the
    scores are None.

    Raises:
        JointVAEError: if there are no images, or the confusion matrix is none or counts more.
    """

    split: str
    images: int
    reconstruction: float  #: nats per image, decoding the mode of (z, c)
    kl_z: list[float]  #: nats, per unit
    kl_c: list[float]  #: nats, per unit
    information: list[float]  #: I(x; c_i) in nats, per discrete unit
    unit: int | None = None  #: the discrete unit that carries most information; the scores below are of its categories
    accuracy: float | None = None  #: best one-to-one match of categories to classes
    accuracy_majority: float | None = None  #: every category votes for its commonest class
    nmi: float | None = None
    ari: float | None = None
    usage: list[float] | None = None  #: share of the images in each category
    confusion: list[list[int]] | None = None  #: a row per class, a column per category

    def __post_init__(self) -> None:
        if not 0 < self.images <= MOST_IMAGES:
            raise JointVAEError(f"An evaluation is of 1 to {MOST_IMAGES:,} images, not {self.images}.")
        if self.confusion is None:
            return
        counts = [count for row in self.confusion for count in row]
        if len({len(row) for row in self.confusion}) != 1 or not counts or min(counts) < 0 or sum(counts) > self.images:
            raise JointVAEError("A confusion matrix has rows of one length that count the images.")

    @property
    def collapsed(self) -> bool:
        """Whether c says less than two categories can carry; a run without c says nothing in it."""
        return sum(self.information) < COLLAPSED


def confusion_matrix(
    labels: Int[Tensor, " n"], clusters: Int[Tensor, " n"], n_classes: int, n_categories: int
) -> Int[np.ndarray, "classes categories"]:
    """How many images of each class fell into each category.

    >>> confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0]), n_classes=2, n_categories=2)
    array([[0, 2],
           [1, 0]])
    """
    flat = torch.bincount(labels * n_categories + clusters, minlength=n_classes * n_categories)
    return flat.view(n_classes, n_categories).numpy()


def one_to_one(confusion: Int[np.ndarray, "classes categories"]) -> tuple[float, dict[int, int]]:
    """The best accuracy of a one-to-one match, and the match: category to class (Hungarian algorithm).

    With more categories than classes, or fewer, some stay unmatched and their images count as wrong.

    >>> one_to_one(np.array([[1, 3], [1, 0]]))
    (0.8, {1: 0, 0: 1})
    """
    classes, categories = linear_sum_assignment(confusion, maximize=True)
    accuracy = confusion[classes, categories].sum() / confusion.sum()
    return float(accuracy), {int(k): int(label) for label, k in zip(classes, categories, strict=True)}


def majority(confusion: Int[np.ndarray, "classes categories"]) -> float:
    """The accuracy when every category stands for its commonest class; several may stand for the same one.

    >>> confusion = np.array([[3, 2], [0, 1]])
    >>> majority(confusion), one_to_one(confusion)[0]
    (0.8333333333333334, 0.6666666666666666)
    """
    return float(confusion.max(axis=0).sum() / confusion.sum())


def mutual_information(logits: Float[Tensor, "n categories"]) -> float:
    """I(x; c) = H(mean of q(c|x)) - mean of H(q(c|x)), in nats, over the images that the logits belong to.

    Unlike KL(q(c|x) || uniform) it is zero when all images share one category, however sure the encoder is.

    >>> each_its_own = 100 * torch.eye(2)
    >>> f"{mutual_information(each_its_own):.4f}"
    '0.6931'
    """
    log_probs = logits.double().log_softmax(-1)
    probs = log_probs.exp()
    conditional = -(probs * log_probs).sum(-1).mean()
    mean = probs.mean(0)
    return float(-torch.special.xlogy(mean, mean).sum() - conditional)


def batches(data: Dataset) -> Iterator[Tensor]:
    """All images in order, with values in [0, 1]."""
    for images in data.images.split(BATCH):
        yield as_floats(images)


@torch.no_grad()
def encode(model: JointVAE, data: Dataset) -> Posterior:
    """The posterior of every image of a data set, on the CPU."""
    device = next(model.parameters()).device
    parts = [model.encode(x.to(device)) for x in batches(data)]
    logits = tuple(torch.cat([part.logits[i] for part in parts]).cpu() for i in range(len(model.spec.c)))
    return Posterior(torch.cat([p.mu for p in parts]).cpu(), torch.cat([p.logvar for p in parts]).cpu(), logits)


@torch.no_grad()
def mode_reconstruction(model: JointVAE, data: Dataset, posterior: Posterior) -> float:
    """-log p(x | mode of (z, c)), in nats per image."""
    device = next(model.parameters()).device
    total = 0.0
    for x, latent in zip(batches(data), posterior.mode().split(BATCH), strict=True):
        total += reconstruction_loss(model.decode(latent.to(device)), x.to(device)).item() * len(x)
    return total / len(data)


def evaluate(model: JointVAE, data: Dataset) -> Evaluation:
    """Everything that a run record says of a model on one split."""
    posterior = encode(model, data)
    information = [mutual_information(logits) for logits in posterior.logits]
    found = Evaluation(
        split=data.split,
        images=len(data),
        reconstruction=mode_reconstruction(model, data, posterior),
        kl_z=posterior.kl_z().mean(0).tolist(),
        kl_c=posterior.kl_c().mean(0).tolist(),
        information=information,
    )
    if not posterior.logits:
        return found
    unit = int(np.argmax(information))
    clusters = posterior.logits[unit].argmax(-1)
    usage = torch.bincount(clusters, minlength=model.spec.c[unit]).double() / len(clusters)
    found = replace(found, unit=unit, usage=usage.tolist())
    if data.labels is None:
        return found
    labels = data.labels.cpu()
    confusion = confusion_matrix(labels, clusters, len(data.classes), model.spec.c[unit])
    return replace(
        found,
        accuracy=one_to_one(confusion)[0],
        accuracy_majority=majority(confusion),
        nmi=float(normalized_mutual_info_score(labels, clusters)),
        ari=float(adjusted_rand_score(labels, clusters)),
        confusion=confusion.tolist(),
    )
