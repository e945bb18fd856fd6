"""Choosing among seeds without labels: how well a score ranks the runs, and what a choice by it is worth.

Every score here is one where more is better; a loss comes with its sign turned.
"""

from collections.abc import Callable, Sequence
from itertools import combinations, permutations, product
from math import comb, factorial, isfinite, prod
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Num
from scipy.stats import bootstrap, permutation_test, rankdata, t
from sklearn.metrics import adjusted_rand_score

from jointvae.errors import JointVAEError
from jointvae.results import Record

CONFIDENCE = 0.95  # of every interval
RESAMPLES = 9999
FEWEST = 8  # runs; of fewer, the bootstrap says little
ORDERS = factorial(FEWEST)  # that a permutation test looks at: all of them, of so few runs
TIE = 1e-12  # what rounding makes of equal rank correlations
SUBSETS = 2000  # of the runs that a choice by agreement is tried on
Numbers = Sequence[float | int] | Num[np.ndarray, " runs"]  # one for each run


class Estimate(NamedTuple):
    """A statistic over runs, and its interval; None where there are too few runs, or too equal ones, for one."""

    value: float
    interval: tuple[float, float] | None


def mean(values: Numbers) -> Estimate:
    """The mean over runs, with the interval of the bootstrap-t (Efron and Tibshirani 1993, chapter 12).

    Each resample has its mean measured in its own standard error. The percentile bootstrap, which does not do that, is
    too narrow for as few runs as ours: of eight normal draws its 95 % interval holds the mean about nine times in ten.

    >>> mean([0.5, 0.25]).value
    0.375
    """
    found = np.array(values, dtype=float)
    value, n = float(found.mean()), len(found)
    if _too_few(found):
        return Estimate(value, None)
    generator = np.random.default_rng(0)  # the same interval each time that the book is built
    drawn = found[generator.integers(n, size=(RESAMPLES, n))]
    drawn = drawn[np.ptp(drawn, axis=1) > 0]  # equal values have no error to measure in
    studentised = (drawn.mean(1) - value) / drawn.std(1, ddof=1)
    low, high = np.quantile(studentised, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) * found.std(ddof=1)
    return Estimate(value, (value - float(high), value - float(low)))


def rank_correlation(scores: Numbers, values: Numbers) -> Estimate:
    """Spearman's rank correlation of a score with what it is to predict, with its bootstrap interval.

    >>> rank_correlation([1.0, 2.0, 3.0], [10.0, 20.0, 90.0]).value
    1.0
    """
    return _estimate(_spearman, scores, values)


def spearman(scores: Numbers, values: Numbers) -> float:
    """Spearman's rank correlation, from -1 to 1; nan where all entries of one are equal, as they have no ranks."""
    return float(_spearman(np.array(scores), np.array(values)))


def _spearman(scores: np.ndarray, values: np.ndarray, axis: int = -1) -> Any:  # a number, or an array of them
    """Pearson's correlation of the ranks along an axis; SciPy's own takes one pair of columns at a time."""
    ranks = [rankdata(column, axis=axis) for column in (scores, values)]
    a, b = (rank - rank.mean(axis=axis, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis) / np.sqrt((a**2).sum(axis) * (b**2).sum(axis))


def chance(scores: Numbers, values: Numbers, seeds: Sequence[int] | None = None) -> float:
    """The chance that a useless score ranks the runs as well as this one does, or better: a one-sided p-value.

    If a score has nothing to do with the values, all orders of the runs are equally likely. Up to eight runs all orders
    are counted, of more as many random ones. Turn the sign of a score that should be low where values are high.

    Runs of several settings share `seeds`, and what a seed brings along is no merit of the score: with the seed of each
    run, scores change places between the runs of one seed only.

    >>> chance([1, 2, 3], [10, 20, 30])  # one of six orders
    0.16666666666666666
    >>> chance([1, 2, 3, 4], [10, 20, 30, 40], seeds=[0, 0, 1, 1])  # one of four
    0.25
    """
    column, blocks = np.array(values), np.array([0] * len(scores) if seeds is None else seeds)
    if len(set(blocks)) > 1:
        drawn = _spearman(_orders_within(np.array(scores, dtype=float), blocks), column)
        return float((drawn >= _spearman(np.array(scores), column) - TIE).mean())
    found = permutation_test(
        (np.array(scores),),
        lambda permuted, axis: _spearman(permuted, column, axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=ORDERS,
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def _orders_within(scores: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """The scores in all orders that keep them in their blocks, or in as many random ones, and as they are, of more."""
    places = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
    if prod(factorial(len(place)) for place in places) <= ORDERS:
        orders = [np.concatenate(order) for order in product(*(list(map(list, permutations(p))) for p in places))]
        drawn = np.array(orders)
    else:
        generator = np.random.default_rng(0)
        shuffled = [generator.permuted(np.tile(place, (ORDERS, 1)), axis=1) for place in places]
        drawn = np.vstack([np.concatenate(places), np.hstack(shuffled)])
    found = np.empty(drawn.shape)
    found[:, np.concatenate(places)] = scores[drawn]
    return found


def holm(chances: Sequence[float]) -> list[float]:
    """p-values as they are when that many tests are made at once (Holm 1979): what stays below a level holds at it.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(chances), 0.0
    for rank, i in enumerate(np.argsort(chances)):
        largest = max(largest, min(1.0, (len(chances) - rank) * chances[i]))
        adjusted[i] = largest
    return adjusted


def side(values: Numbers, others: Numbers) -> Literal["above", "below", "within"]:
    """Whether all values of one setting lie above, or all below, all values of another.

    >>> side([0.9, 0.8], [0.7, 0.1]), side([0.9, 0.5], [0.7, 0.1])
    ('above', 'within')
    """
    return "above" if min(values) > max(others) else "below" if max(values) < min(others) else "within"


def side_by_luck(k: int, n: int) -> float:
    """The chance that `k` values lie above or below all of `n` others, if all orders of all values are equally likely.

    It is the smallest two-sided value of the exact rank test of Mann and Whitney (1947) at these sizes.

    >>> side_by_luck(1, 1), side_by_luck(2, 4)
    (1.0, 0.13333333333333333)
    """
    return 2 / comb(n + k, k)


def _too_few(*columns: Numbers) -> bool:
    return len(columns[0]) < FEWEST or any(len(set(column)) < 2 for column in columns)


def _estimate(statistic: Callable[..., Any], *columns: Numbers) -> Estimate:
    """A statistic with the interval of the percentile bootstrap (Efron and Tibshirani 1993, chapter 13)."""
    value = float(statistic(*map(np.array, columns), axis=-1))
    if _too_few(*columns):
        return Estimate(value, None)
    found = bootstrap(
        columns,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=0,  # the same interval each time that the book is built
    ).confidence_interval
    return Estimate(value, (float(found.low), float(found.high)) if isfinite(found.low + found.high) else None)


def best_of(k: int, scores: Numbers, values: Numbers) -> float:
    """The mean value of the run with the best score among `k` of them, over all ways to draw these without return.

    Exact: with the runs sorted from the worst score, the j-th wins if the other k - 1 are drawn from the j - 1 before
    it. Runs of equal score share their chances. `best_of(1, ...)` is the mean, and `values` as their own scores make
    the oracle.

    Raises:
        JointVAEError: if there are fewer than `k` runs, or `k` is below 1.

    >>> accuracy, loss = [0.2, 0.9, 0.4], [3.0, 1.0, 2.0]
    >>> [round(best_of(k, [-value for value in loss], accuracy), 3) for k in (1, 2, 3)]
    [0.5, 0.733, 0.9]
    """
    n = len(scores)
    if not 1 <= k <= n:
        raise JointVAEError(f"The best of {k} can't be had from {n} runs: k must be from 1 to {n}.")
    order = np.argsort(scores, kind="stable")
    chances = np.zeros(n)
    chances[order] = [comb(j, k - 1) / comb(n, k) for j in range(n)]
    for score in set(scores):
        equal = np.array(scores) == score
        chances[equal] = chances[equal].mean()
    return float(chances @ np.array(values, dtype=float))


def choice(k: int, scores: Numbers, values: Numbers) -> Estimate:
    """`best_of` with its interval by the jackknife (Arvesen 1969); None with fewer than four times `k` runs.

    The n runs make n / k choices that share no run, so Student's t gets n / k - 1 degrees of freedom. With n - 1 of
    them, or by the percentile bootstrap, the interval is too narrow: a resample repeats runs, and the best of `k` is
    worse if some of them are the same.

    >>> choice(2, [1.0, 2.0, 3.0], [0.1, 0.2, 0.3]).interval is None
    True
    """
    value, n = best_of(k, scores, values), len(scores)
    if n < 4 * k or _too_few(values):
        return Estimate(value, None)
    without = [best_of(k, np.delete(np.array(scores), i), np.delete(np.array(values), i)) for i in range(n)]
    error = float(np.sqrt((n - 1) * np.var(without)))
    reach = float(t.ppf((1 + CONFIDENCE) / 2, n / k - 1)) * error
    return Estimate(value, (value - reach, value + reach))


def agreement_index(partitions: Sequence[Num[np.ndarray, " n"]]) -> Num[np.ndarray, "runs runs"]:
    """The adjusted Rand index of every two partitions of the same images, and 0 of each with itself.

    1 if they are the same up to the names of the categories, about 0 if independent (Hubert and Arabie 1985). A
    partition with a single category agrees with none, where the index says that two of them agree perfectly: else runs
    that have collapsed would vote for one another.

    Raises:
        JointVAEError: if there are fewer than two, or they are not of the same images.
    """
    if len(partitions) < 2 or len({len(partition) for partition in partitions}) > 1:
        raise JointVAEError("Agreement is between two or more partitions of the same images.")
    index = np.zeros((len(partitions), len(partitions)))
    sorting = [i for i, partition in enumerate(partitions) if len(np.unique(partition)) > 1]
    for i, j in combinations(sorting, 2):
        index[i, j] = index[j, i] = adjusted_rand_score(partitions[i], partitions[j])
    return index


def agreement(index: Num[np.ndarray, "runs runs"]) -> list[float]:
    """How far each run agrees with the others: the mean of its row of `agreement_index`, without itself.

    >>> same, renamed = np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])
    >>> agreement(agreement_index([same, renamed]))
    [1.0, 1.0]
    """
    return (index.sum(1) / (len(index) - 1)).tolist()


def best_by_agreement(k: int, index: Num[np.ndarray, "runs runs"], values: Numbers) -> float:
    """The mean value of the run that agrees most with the other k - 1, over ways to draw `k` runs.

    Unlike the other scores this one belongs to a set of runs: who trains `k` of them sees the agreement among these and
    no other. Runs that agree equally share their chances, so for `k` of 1 or 2 it is the mean. Where there are more
    than 2,000 ways to draw, as many random ones are tried.

    Raises:
        JointVAEError: if there are fewer than `k` runs, or `k` is below 1.
    """
    n, found = len(index), np.array(values, dtype=float)
    if not 1 <= k <= n:
        raise JointVAEError(f"The best of {k} can't be had from {n} runs: k must be from 1 to {n}.")
    if k <= 2:
        return float(found.mean())
    subsets = _subsets(n, k)
    agree = index[subsets[:, :, None], subsets[:, None, :]].sum(2)
    top = agree >= agree.max(1, keepdims=True) - 1e-12
    return float(((top * found[subsets]).sum(1) / top.sum(1)).mean())


def _subsets(n: int, k: int) -> Num[np.ndarray, "ways k"]:
    """All ways to draw `k` of `n` runs, or 2,000 random ones where there are more."""
    if comb(n, k) <= SUBSETS:
        return np.array(list(combinations(range(n), k)))
    return np.random.default_rng(0).permuted(np.tile(np.arange(n), (SUBSETS, 1)), axis=1)[:, :k]


def halving(scores: Num[np.ndarray, "runs epochs"], shares: Sequence[float]) -> tuple[int, int]:
    """Successive halving (Jamieson and Talwalkar 2016), played on runs that were trained to their end.

    At each share of the epochs the half of the runs with the lower score in that epoch is dropped.

    Returns:
        The run that is kept, and the epochs that would have been trained in all.

    >>> halving(np.array([[1, 1, 9, 9], [2, 2, 2, 2], [3, 0, 9, 9], [0, 9, 9, 9]]), shares=(1 / 4, 1 / 2))
    (1, 8)
    """
    runs, epochs = scores.shape
    left, trained, before = np.arange(runs), 0, 0
    for share in (*shares, 1):
        now = max(1, round(share * epochs))  # the first epoch is the earliest that has a score
        trained += len(left) * (now - before)
        before = now
        left = left[np.argsort(-scores[left, now - 1], kind="stable")[: max(1, len(left) // 2)]]
    return int(left[0]), trained


def best_by_halving(
    k: int, scores: Num[np.ndarray, "runs epochs"], values: Numbers, shares: Sequence[float]
) -> tuple[float, float]:
    """The mean value of the run that `halving` keeps of `k`, over ways to draw them, and its mean cost in full runs.

    Where there are more than 2,000 ways to draw, as many random ones are tried.

    Raises:
        JointVAEError: if there are fewer than `k` runs, or `k` is below 1.
    """
    n, epochs = scores.shape
    if not 1 <= k <= n:
        raise JointVAEError(f"The best of {k} can't be had from {n} runs: k must be from 1 to {n}.")
    subsets = _subsets(n, k)
    played = [halving(scores[subset], shares) for subset in subsets]
    kept = [float(values[subset[best]]) for subset, (best, _) in zip(subsets, played, strict=True)]
    return float(np.mean(kept)), float(np.mean([trained for _, trained in played])) / epochs


def objective_curve(record: Record) -> list[float]:
    """Minus the objective of a run's config in each epoch, from the epoch's means, in nats per image.

    Where the objective holds the information of c, KL_c stands in its place, since the curves have that, and what it
    charges for disagreement is left out. The capacities are those in the middle of the epoch: they rise evenly, as the
    means do.
    """
    curves, objective = record.curves, record.config.objective
    half = curves["step"][0] // 2
    means = (map(torch.tensor, curves[name]) for name in ("reconstruction", "kl_z", "kl_c"))
    epochs = zip(curves["step"], *means, strict=True)
    return [-sum(map(float, objective(R, kl_z, kl_c, step - half).values())) for step, R, kl_z, kl_c in epochs]


def final_objective(record: Record) -> float:
    """The objective of a run's config on the whole training set, in nats per image, with the mode of (z, c) decoded.

    The training minimised it with draws in place of the mode, which rebuild an image less well. An objective with a
    transformation read c from transformed images; here it is that of the images as they are, and what two images
    disagree on is left out.
    """
    assert record.train is not None, "a failed run has no objective"
    objective, train = record.config.objective, record.train
    held = train.information if objective.holds_information else train.kl_c
    reconstruction, kl_z, kl_c = map(torch.tensor, (train.reconstruction, train.kl_z, held))
    terms = objective(reconstruction, kl_z, kl_c, record.curves["step"][-1])
    return sum(float(term) for term in terms.values())


def criteria(record: Record) -> dict[str, float]:
    """What a finished run can be chosen by without labels, from its training set: in nats, more is better.

    `reconstruction` and `objective` decode the mode of (z, c) after the training; `in training` is the reconstruction
    loss in its mean over the last epoch, from the draws that were trained on.
    """
    assert record.train is not None, "a failed run can't be chosen"
    return {
        "reconstruction": -record.train.reconstruction,
        "in training": -record.curves["reconstruction"][-1],
        "objective": -final_objective(record),
        "information": sum(record.train.information),
    }
