"""Numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.functional.metrics import (
    classification_report,
    confusion_matrix,
    expected_calibration_error,
    harmonic_mean,
    per_class_recall,
    ranking,
    retrieval_ranks,
    softmax,
    top_k,
)

SCORES = np.array([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [2.0, 2.0, 2.0], [0.0, 1.0, 5.0], [9.0, 8.0, 7.0]])
LABELS = np.array([0, 2, 1, 2, 2])


def test_ranking_breaks_ties_by_the_lowest_class():
    assert ranking(SCORES, 3).tolist() == [[0, 1, 2], [1, 2, 0], [0, 1, 2], [2, 1, 0], [0, 1, 2]]
    assert ranking(SCORES, 9).shape == (5, 3)


def test_ties_of_many_classes_stay_in_order():
    """An unstable sort keeps the order of up to 16 equal scores, and of more only by luck."""
    assert ranking(np.zeros((2, 400)), 400).tolist() == [[*range(400)]] * 2
    scores = np.random.default_rng(0).integers(0, 3, (5, 90)).astype(float)
    wanted = [sorted(range(90), key=lambda c, row=row: (-row[c], c)) for row in scores]
    assert ranking(scores, 90).tolist() == wanted and ranking(scores, 1)[:, 0].tolist() == [w[0] for w in wanted]


def test_top_k_by_hand():
    assert top_k(SCORES, LABELS, 1) == 2 / 5
    assert top_k(SCORES, LABELS, 2) == 4 / 5
    assert top_k(SCORES, LABELS, 5) == 1.0
    with pytest.raises(ValueError, match="0 rows of scores and 0 labels"):
        top_k(np.zeros((0, 3)), np.zeros(0, int))


def test_harmonic_mean_by_hand():
    assert harmonic_mean(0.5, 0.25) == pytest.approx(1 / 3) and harmonic_mean(0.75, 0.75) == 0.75
    assert harmonic_mean(0.0, 0.0) == harmonic_mean(0.5, 0.0) == 0.0


def test_per_class_and_confusion_by_hand():
    predicted = ranking(SCORES, 1)[:, 0]
    recall = per_class_recall(predicted, LABELS, 4)
    assert recall[:3].tolist() == [1.0, 0.0, 1 / 3] and np.isnan(recall[3])
    assert confusion_matrix(predicted, LABELS, 3).tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 1]]


def test_calibration_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    labels = np.array([0, 1, 0, 0])
    # bin of 0.9: accuracy 1/2, confidence 0.9, two rows; bin of 0.6: accuracy 1/2, confidence 0.6, two rows
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0.0


@pytest.mark.parametrize(
    "low, high, bins",
    [(0.5, 0.625, {"bins": 4}), (0.75, 0.8125, {"bins": 4}), (0.53, 0.54, {}), (0.6, 0.61, {})],
    ids=["a half", "three quarters", "of fifteen", "nine fifteenths"],
)
def test_a_bin_of_calibration_ends_with_its_upper_edge(low, high, bins):
    """The first is wrong and the second right: in one bin their gaps would cancel out."""
    probabilities = np.array([[low, 1 - low], [high, 1 - high]])
    error = expected_calibration_error(probabilities, np.array([1, 0]), **bins)
    assert error == pytest.approx((low + (1 - high)) / 2)
    inside = np.array([[high, 1 - high], [high + 0.01, 0.99 - high]])
    assert expected_calibration_error(inside, np.array([1, 0]), **bins) == pytest.approx(abs(0.99 - 2 * high) / 2)


def test_softmax_of_large_scores():
    assert softmax(np.array([[1000.0, 1000.0], [0.0, 1000.0]])).tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_report_of_absent_classes_and_few():
    report = classification_report(np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), np.array([0, 0]))
    assert (report["top1"], report["top5"], report["mean_per_class"]) == (0.5, 1.0, 0.5)
    assert (report["correct"], report["count"]) == (1, 2)


def test_macro_f1_and_likelihood_by_hand():
    """Classes 0, 1, 2 with 3, 2, 1 rows; predictions 0 0 1 | 1 1 | 0: F1 of 4/6, 4/5 and 0."""
    from jclip.functional.metrics import macro_f1, negative_log_likelihood

    labels, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])
    assert np.isclose(macro_f1(predicted, labels, 4), (4 / 6 + 4 / 5 + 0) / 3)
    probabilities = np.array([[0.5, 0.5], [0.25, 0.75]])
    assert np.isclose(negative_log_likelihood(probabilities, np.array([0, 1])), -(np.log(0.5) + np.log(0.75)) / 2)
    assert np.isfinite(negative_log_likelihood(np.array([[0.0, 1.0]]), np.array([0])))


def test_retrieval_ranks_by_hand():
    """The best of the wanted entries counts; of equal scores the earlier entry ranks first, wanted or not."""
    scores = np.array([[3.0, 2.0, 1.0, 0.0], [-4.0, -1.0, -2.0, -3.0], [5.0, 5.0, 5.0, 5.0], [1.0, 2.0, 2.0, 0.0]])
    positives = np.array([[0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0], [0, 1, 1, 0]], bool)
    assert retrieval_ranks(scores, positives).tolist() == [2, 0, 2, 0]
    with pytest.raises(ValueError, match="1 queries have nothing to find"):
        retrieval_ranks(scores, positives & np.array([[True], [True], [False], [True]]))


@pytest.mark.parametrize("seed", [0, 1])
def test_retrieval_ranks_are_places_in_a_sorted_list(seed):
    rng = np.random.default_rng(seed)
    scores, positives = rng.integers(-3, 3, (30, 25)).astype(float), rng.random((30, 25)) < 0.1
    positives[:, 7] |= ~positives.any(axis=1)
    order = [sorted(range(25), key=lambda g, row=row: (-row[g], g)) for row in scores]
    wanted = [min(o.index(g) for g in np.flatnonzero(p)) for o, p in zip(order, positives, strict=True)]
    assert retrieval_ranks(scores, positives).tolist() == wanted
