"""Choosing among seeds without labels: the exact worth of a choice, rank correlations, intervals, agreement."""

import math
from dataclasses import replace
from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr, ttest_1samp

from jointvae import results, selection
from jointvae.errors import JointVAEError
from jointvae.objectives import Capacity

runs = st.lists(st.tuples(st.integers(-3, 3), st.floats(0, 1)), min_size=1, max_size=7)


@given(runs, st.data())
def test_best_of_is_the_mean_over_all_subsets(pairs, data):
    k = data.draw(st.integers(1, len(pairs)))
    scores, values = zip(*pairs, strict=True)

    def best(subset: tuple[int, ...]) -> float:
        top = max(scores[i] for i in subset)
        return float(np.mean([values[i] for i in subset if scores[i] == top]))

    by_hand = np.mean([best(subset) for subset in combinations(range(len(pairs)), k)])
    assert selection.best_of(k, scores, values) == pytest.approx(by_hand)


def test_the_best_of_one_is_the_mean_and_of_all_the_best():
    scores, values = [3.0, 1.0, 2.0], [0.1, 0.5, 0.9]
    assert selection.best_of(1, scores, values) == pytest.approx(np.mean(values))
    assert selection.best_of(3, scores, values) == pytest.approx(0.1)
    assert selection.best_of(3, values, values) == pytest.approx(0.9)  # the oracle


@pytest.mark.parametrize("k", [0, 4, -1])
def test_best_of_refuses_more_than_there_are(k):
    with pytest.raises(JointVAEError, match="must be from 1 to 3"):
        selection.best_of(k, [1, 2, 3], [1, 2, 3])


def test_a_bootstrap_interval_of_the_mean_is_that_of_theory():
    values = np.random.default_rng(0).normal(0.6, 0.1, 400)
    low, high = selection.mean(values).interval
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


@pytest.mark.parametrize("name", ["normal", "skewed"])
def test_intervals_of_a_mean_of_eight_hold_the_truth_as_often_as_they_say(monkeypatch, name):
    # Binomial tolerance: 0.95 - 3 sqrt(.05 .95/400) = 0.917. The percentile bootstrap stays below it.
    generator, hits = np.random.default_rng(0), 0
    monkeypatch.setattr(selection, "RESAMPLES", 999)
    for _ in range(400):
        values = generator.normal(size=8) if name == "normal" else generator.beta(5, 1.5, size=8)
        low, high = selection.mean(values).interval
        hits += low <= (0.0 if name == "normal" else 5 / 6.5) <= high
    assert 0.917 <= hits / 400 <= 0.983


def test_intervals_of_a_rank_correlation_hold_the_truth_as_often_as_they_say(monkeypatch):
    # For two normals with correlation r, Spearman's is 6/pi asin(r/2). Binomial tolerance: 0.95 - 3 sqrt(.05 .95/200).
    generator, r, hits = np.random.default_rng(0), 0.6, 0
    truth = 6 / math.pi * math.asin(r / 2)
    monkeypatch.setattr(selection, "RESAMPLES", 999)
    for _ in range(200):
        a, b = generator.multivariate_normal([0, 0], [[1, r], [r, 1]], size=60).T
        low, high = selection.rank_correlation(a, b).interval
        hits += low <= truth <= high
    assert 0.90 <= hits / 200 <= 1


def test_few_or_equal_runs_have_no_interval():
    assert selection.mean([0.5] * (selection.FEWEST - 1) + [0.6])[1] is not None
    assert selection.mean([0.5, 0.6, 0.7]).interval is None
    found = selection.rank_correlation([1.0] * 9, list(range(9)))
    assert math.isnan(found.value)
    assert found.interval is None


def test_chance_counts_the_orders_that_rank_as_well():
    values = [0.1, 0.4, 0.2, 0.9, 0.5]
    for scores in ([1, 2, 3, 4, 5], [5, 1, 4, 2, 3]):
        ours = selection.spearman(scores, values)
        orders = [selection.spearman(order, values) for order in permutations(scores)]
        assert selection.chance(scores, values) == pytest.approx(np.mean(np.array(orders) >= ours - 1e-9))
    # More runs than have all their orders counted: a perfect order is as rare as the draws can tell.
    assert selection.chance(range(20), range(20)) == pytest.approx(1 / (selection.ORDERS + 1))


@given(st.integers(2, 3), st.integers(2, 3), st.integers(0, 10**6))
def test_chance_within_seeds_counts_the_orders_within_them(settings, seeds, draw):
    scores, values = np.random.default_rng(draw).normal(size=(2, seeds, settings))
    orders = product(*(permutations(row) for row in scores))
    found = [spearmanr(np.ravel(order), values.ravel()).statistic for order in orders]
    asked = spearmanr(scores.ravel(), values.ravel()).statistic
    p = selection.chance(scores.ravel(), values.ravel(), [seed for seed in range(seeds) for _ in range(settings)])
    assert p == pytest.approx(np.mean(np.array(found) >= asked - 1e-12))


def test_what_a_seed_brings_along_is_no_merit_of_a_score():
    """Scores and values that only follow the seed: ranked well, and no order within the seeds ranks much worse."""
    noise = np.random.default_rng(0).normal(size=(2, 4, 3)) / 100
    scores, values = (np.arange(4)[:, None] + noise).reshape(2, -1)
    assert selection.chance(scores, values) < 0.001
    assert selection.chance(scores, values, [seed for seed in range(4) for _ in range(3)]) > 0.05


def test_of_too_many_orders_within_seeds_random_ones_are_counted():
    """Eight settings of two seeds have 8! squared orders. One ranks as well as a perfect score: the score's own."""
    values, seeds = list(range(16)), [0] * 8 + [1] * 8
    assert selection.chance(values, values, seeds) == pytest.approx(1 / (selection.ORDERS + 1))
    shuffled = [*reversed(range(8)), *range(8, 16)]
    assert 0 < selection.chance(shuffled, values, seeds) < 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_p_lies_between_that_of_one_test_and_bonferronis(chances):
    shared = selection.holm(chances)
    assert shared[int(np.argmin(chances))] == pytest.approx(min(1, len(chances) * min(chances)))
    assert all(p <= q <= min(1, len(chances) * p) + 1e-12 for p, q in zip(chances, shared, strict=True))
    order = np.argsort(chances, kind="stable")
    assert sorted(shared) == pytest.approx([shared[i] for i in order])
    # Holm's own words: go up from the smallest, and stop at the first that is above its share of the level.
    for level in (0.05, 0.3):
        below = [chances[i] <= level / (len(chances) - rank) for rank, i in enumerate(order)]
        stopped = below.index(False) if False in below else len(below)
        assert sum(p <= level for p in shared) == pytest.approx(stopped, abs=int(np.isclose(shared, level).sum()))


def test_the_worth_of_a_choice_comes_with_an_interval_if_there_are_runs_to_draw_from():
    generator = np.random.default_rng(0)
    values = generator.normal(0.6, 0.1, size=32)
    # The best of one is the mean, and its interval is Student's.
    student = ttest_1samp(values, 0).confidence_interval()
    assert selection.choice(1, generator.normal(size=32), values).interval == pytest.approx(student)
    found = selection.choice(4, values, values)
    assert found.value == selection.best_of(4, values, values)
    assert found.interval[0] < found.value < found.interval[1]
    assert selection.choice(9, values, values).interval is None


@pytest.mark.parametrize("follows", [0.5, 1.0])  # the correlation of score and value; at 1 it is the oracle
def test_the_interval_of_a_choice_holds_the_truth_as_often_as_it_says(follows):
    n, k, tries = 32, 8, 150
    generator = np.random.default_rng(0)

    def draw(*shape):
        values, noise = generator.normal(size=(2, *shape))
        return follows * values + np.sqrt(1 - follows**2) * noise, values

    scores, values = draw(100_000, k)
    truth = np.take_along_axis(values, scores.argmax(1)[:, None], axis=1).mean()
    held = 0
    for _ in range(tries):
        low, high = selection.choice(k, *draw(n)).interval
        held += low <= truth <= high
    # 95 % of 150 tries is 142.5, and three standard deviations below it is 134.
    assert held >= 134


def test_a_rank_correlation_heeds_ranks_only():
    scores, values = [1, 2, 3, 4, 5], [0.2, 0.1, 0.4, 0.3, 0.9]
    found = selection.rank_correlation(scores, values).value
    assert found == selection.rank_correlation(np.exp(scores), np.log(values)).value
    assert found == pytest.approx(1 - 6 * 4 / (5 * 24))  # by hand: 1 - 6 sum d^2 / n(n^2 - 1)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=20))
def test_a_rank_correlation_is_scipys_also_with_ties(pairs):
    scores, values = map(list, zip(*pairs, strict=True))
    if min(len(set(scores)), len(set(values))) > 1:
        assert selection.spearman(scores, values) == pytest.approx(spearmanr(scores, values).statistic)


def test_agreement_of_a_perfect_a_random_and_an_odd_partition():
    generator = np.random.default_rng(0)
    truth = generator.integers(10, size=5000)
    renamed, noise = (truth + 3) % 10, generator.integers(10, size=5000)
    assert selection.agreement(selection.agreement_index([truth, renamed])) == [1.0, 1.0]
    assert selection.agreement(selection.agreement_index([truth, noise])) == pytest.approx([0, 0], abs=0.01)
    assert np.argmin(selection.agreement(selection.agreement_index([truth, renamed, noise]))) == 2


def test_a_choice_by_agreement_sees_the_drawn_runs_only():
    values = [0.9, 0.8, 0.1, 0.4]
    index = np.array([[0, 0.9, 0.2, 0.2], [0.9, 0, 0.3, 0.2], [0.2, 0.3, 0, 0.8], [0.2, 0.2, 0.8, 0]])
    mean = pytest.approx(np.mean(values))
    assert selection.best_by_agreement(1, index, values) == mean
    assert selection.best_by_agreement(2, index, values) == mean  # the two agree equally with each other
    # By hand, of three: 012 keeps 1 (1.2); 013 keeps 0 or 1 (1.1); 023 keeps 2 or 3 (1.0); 123 keeps 2 (1.1).
    assert selection.best_by_agreement(3, index, values) == pytest.approx((0.8 + 0.85 + 0.25 + 0.1) / 4)
    assert selection.best_by_agreement(4, index, values) == pytest.approx(0.8)
    with pytest.raises(JointVAEError, match="must be from 1 to 4"):
        selection.best_by_agreement(5, index, values)


def test_a_choice_by_agreement_among_many_finds_the_cluster_that_is_right():
    generator = np.random.default_rng(0)
    truth = generator.integers(4, size=300)
    right = [np.where(generator.random(300) < 0.9, truth, generator.integers(4, size=300)) for _ in range(12)]
    wrong = [generator.integers(4, size=300) for _ in range(12)]
    index = selection.agreement_index(right + wrong)
    assert selection.best_by_agreement(8, index, [1.0] * 12 + [0.0] * 12) > 0.98


@pytest.mark.parametrize("partitions", [[np.zeros(3)], [np.zeros(3), np.zeros(4)], []])
def test_agreement_needs_two_partitions_of_the_same_images(partitions):
    with pytest.raises(JointVAEError, match="two or more"):
        selection.agreement_index(partitions)


def test_runs_that_sort_nothing_do_not_vote_for_one_another():
    nothing, other, sorts = np.zeros(40, dtype=int), np.full(40, 3), np.arange(40) % 4
    assert selection.agreement_index([nothing, other, sorts, sorts]).sum() == 2  # the two that sort, either way round


def test_the_final_objective_is_the_loss_of_the_config():
    record = results.read(results.RESULTS / "runs" / "mnist-seed0.json")
    train, objective = record.train, record.config.objective
    by_hand = (
        train.reconstruction
        + objective.gamma * abs(sum(train.kl_z) - 5)
        + objective.gamma * abs(sum(train.kl_c) - math.log(10))
    )
    assert selection.final_objective(record) == pytest.approx(by_hand, rel=1e-6)
    assert selection.criteria(record)["objective"] == -selection.final_objective(record)


@given(st.integers(1, 6), st.integers(1, 6))
def test_how_often_luck_alone_puts_all_on_one_side(k, n):
    ways = list(combinations(range(n + k), k))
    sides = [selection.side(way, sorted({*range(n + k)} - {*way})) for way in ways]
    assert selection.side_by_luck(k, n) == pytest.approx(sum(one != "within" for one in sides) / len(ways))
    assert sides.count("above") == sides.count("below") == 1


def test_a_tie_is_no_side():
    assert selection.side([1, 2], [1, 0]) == selection.side([0, 1], [1, 2]) == "within"


@given(st.integers(2, 6), st.integers(0, 2**16))
def test_halving_over_all_draws_is_the_game_played_by_hand(k, seed):
    generator = np.random.default_rng(seed)
    scores, values = generator.normal(size=(6, 8)), generator.random(6)

    def play(drawn):
        left = list(drawn)
        for epoch in (1, 3):  # the ends of a quarter and of a half of eight
            keep = max(1, len(left) // 2)
            left = sorted(left, key=lambda run: -scores[run, epoch])[:keep]
        return values[max(left, key=lambda run: scores[run, -1])]

    kept, cost = selection.best_by_halving(k, scores, values, (1 / 4, 1 / 2))
    assert kept == pytest.approx(np.mean([play(drawn) for drawn in combinations(range(6), k)]))
    assert cost == pytest.approx(k / 4 + max(1, k // 2) / 4 + max(1, k // 4) / 2)
    with pytest.raises(JointVAEError, match="must be from 1 to 6"):
        selection.best_by_halving(7, scores, values, (1 / 2,))


def test_halving_of_a_short_training_looks_at_no_later_epoch():
    assert selection.halving(np.array([[2, 0], [1, 9]]), shares=(1 / 4,)) == (0, 3)


def test_the_objective_of_an_epoch_charges_for_a_missed_capacity(make_record):
    record = make_record()  # epochs of one step
    objective = replace(record.config.objective, C_z=Capacity(end=1.0, steps=1), C_c=Capacity(end=2.0, steps=1))
    curves = {
        "step": [2, 4],
        "reconstruction": [200.0, 150.0],
        "kl_z": [[0.5, 0.5], [1.5, 0.5]],
        "kl_c": [[2.0], [1.5]],
    }
    found = selection.objective_curve(
        replace(record, config=replace(record.config, objective=objective), curves=curves)
    )
    gamma = objective.gamma
    assert found == pytest.approx([-200.0, -150.0 - gamma * (1.0 + 0.5)])


def test_the_objective_of_recorded_epochs_ends_near_that_of_the_finished_runs():
    for record in results.records(recipe="mnist"):
        # The one from draws of (z, c), in the mean over an epoch, the other from their modes, at its end.
        assert selection.objective_curve(record)[-1] == pytest.approx(-selection.final_objective(record), rel=0.15)
