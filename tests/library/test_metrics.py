"""Numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.functional.metrics import (
    classification_report,
    confusion_matrix,
    expected_calibration_error,
    per_class_recall,
    ranking,
    softmax,
    top_k,
)

SCORES = np.array([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [2.0, 2.0, 2.0], [0.0, 1.0, 5.0], [9.0, 8.0, 7.0]])
LABELS = np.array([0, 2, 1, 2, 2])


def test_ranking_breaks_ties_by_the_lowest_class():
    assert ranking(SCORES, 3).tolist() == [[0, 1, 2], [1, 2, 0], [0, 1, 2], [2, 1, 0], [0, 1, 2]]
    assert ranking(SCORES, 9).shape == (5, 3)


def test_top_k_by_hand():
    assert top_k(SCORES, LABELS, 1) == 2 / 5
    assert top_k(SCORES, LABELS, 2) == 4 / 5
    assert top_k(SCORES, LABELS, 5) == 1.0
    with pytest.raises(ValueError, match="0 rows of scores and 0 labels"):
        top_k(np.zeros((0, 3)), np.zeros(0, int))


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
