"""Every metric on a perfect, a random and a hand-computed case, and against an independent oracle."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import mutual_info_score

from jointvae import evaluation, training
from jointvae.latents import LatentSpec
from jointvae.model import JointVAE

matrices = arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 9)).filter(
    lambda matrix: matrix.sum() > 0
)


@given(matrices)
def test_one_to_one_against_all_matches(matrix):
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    rows, columns = wide.shape
    best = max(wide[range(rows), list(columns_)].sum() for columns_ in itertools.permutations(range(columns), rows))
    accuracy, match = evaluation.one_to_one(matrix)
    assert accuracy == pytest.approx(best / matrix.sum())
    assert len(set(match.values())) == len(match) == min(matrix.shape)


@given(matrices)
def test_majority_is_never_below_one_to_one(matrix):
    assert evaluation.majority(matrix) >= evaluation.one_to_one(matrix)[0] - 1e-12


def test_scores_of_perfect_clusters_under_other_names():
    confusion = np.diag([4, 5, 6])[:, [2, 0, 1]]
    assert evaluation.one_to_one(confusion) == (1.0, {1: 0, 2: 1, 0: 2})
    assert evaluation.majority(confusion) == 1.0


def test_scores_by_hand():
    confusion = np.array([[6, 0], [5, 1]])
    assert evaluation.one_to_one(confusion)[0] == 7 / 12
    assert evaluation.majority(confusion) == 7 / 12
    assert evaluation.majority(np.array([[5, 5, 0], [0, 0, 10]])) == 1.0
    assert evaluation.one_to_one(np.array([[5, 5, 0], [0, 0, 10]]))[0] == 0.75


def test_random_clusters_score_near_chance(generator):
    labels, clusters = torch.randint(10, (2, 20_000), generator=generator)
    confusion = evaluation.confusion_matrix(labels, clusters, 10, 10)
    assert confusion.sum() == 20_000
    assert 0.1 < evaluation.one_to_one(confusion)[0] < 0.12


def test_confusion_counts_pairs():
    labels, clusters = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 1, 0, 3])
    assert evaluation.confusion_matrix(labels, clusters, 3, 4).tolist() == [[0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]


def test_information_of_sure_categories_is_that_of_the_labels(generator):
    clusters = torch.randint(4, (500,), generator=generator)
    logits = 1000.0 * torch.nn.functional.one_hot(clusters, 4)
    # A sure encoder: I(x; c) is the entropy of the clusters, which is their information on themselves.
    expected = mutual_info_score(clusters, clusters)
    assert evaluation.mutual_information(logits) == pytest.approx(expected, abs=1e-9)


def test_information_at_its_extremes():
    even = 1000.0 * torch.eye(5).repeat(3, 1)
    assert evaluation.mutual_information(even) == pytest.approx(math.log(5))
    assert evaluation.mutual_information(torch.zeros(7, 5)) == pytest.approx(0, abs=1e-9)
    one_for_all = torch.zeros(7, 5)
    one_for_all[:, 2] = 1000.0
    assert evaluation.mutual_information(one_for_all) == pytest.approx(0, abs=1e-9)


def test_collapsed_says_less_than_two_categories_can(make_record):
    def of(*information):
        return replace(make_record().test, information=list(information)).collapsed

    two_sure_categories = evaluation.mutual_information(100 * torch.eye(2))
    assert not of(two_sure_categories + 1e-6)
    assert of(two_sure_categories - 1e-6)
    assert not of(0.5, 0.5), "the units of c speak together"
    assert of()


@pytest.mark.parametrize("spec", [LatentSpec(3, (4, 12)), LatentSpec(0, (10,)), LatentSpec(4, ())], ids=str)
def test_evaluation_of_any_layout(spec, digits):
    found = evaluation.evaluate(JointVAE(spec), digits)
    assert (len(found.kl_z), len(found.kl_c)) == (spec.z, len(spec.c))
    if not spec.c:
        assert found.accuracy is found.confusion is found.unit is None
        return
    assert np.shape(found.confusion) == (10, spec.c[found.unit])
    assert found.unit == int(np.argmax(found.information))
    assert sum(found.usage) == pytest.approx(1)
    assert found.accuracy <= found.accuracy_majority
    # KL to the uniform prior bounds the information from above (the rest is the divergence of the mean).
    assert all(i <= kl + 1e-6 for i, kl in zip(found.information, found.kl_c, strict=True))


def test_batches_do_not_change_the_result(digits, monkeypatch):
    model = training.build(training.recipe("digits"))
    whole = evaluation.evaluate(model, digits)
    monkeypatch.setattr(evaluation, "BATCH", 7)
    parts = evaluation.evaluate(model, digits)
    assert parts.reconstruction == pytest.approx(whole.reconstruction, rel=1e-5)
    assert parts.kl_z == pytest.approx(whole.kl_z, rel=1e-4)
    assert parts.confusion == whole.confusion
