"""Metrics of predictions: accuracy, calibration, retrieval. NumPy in, floats out; ties go to the lowest class."""

from __future__ import annotations

import numpy as np

TINY = 2.2250738585072014e-308  # the smallest normal float64


def ranking(scores: np.ndarray, k: int) -> np.ndarray:
    """(N, C) scores → (N, min(k, C)) class ids, best first; equal scores in order of the ids."""
    k = min(k, scores.shape[1])
    if k == 1:  # without sorting all classes of each row
        return scores.argmax(axis=1)[:, None]
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def top_k(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Share of rows whose label (N,) is among the k best of scores (N, C); k is cut at C. Raises `DataError` for no rows."""
    _refuse_empty(scores, labels)
    return float((ranking(scores, k) == labels[:, None]).any(axis=1).mean())


def harmonic_mean(a: float, b: float) -> float:
    """2 a b / (a + b), 0 where either is: of the accuracies on base and new classes."""
    return 2 * a * b / (a + b) if a + b else 0.0


def per_class_recall(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(C,) share of each class's rows that were found; NaN for a class without rows."""
    right = np.bincount(labels[predicted == labels], minlength=classes)
    with np.errstate(invalid="ignore"):
        return right / np.bincount(labels, minlength=classes)


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) counts, row: true class, column: predicted class."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Σ |B_m| / N · |accuracy(B_m) - confidence(B_m)| over equal-width bins (a, b] of the largest probability.

    probabilities: (N, C), labels: (N,). Raises `DataError` for no rows.
    """
    _refuse_empty(probabilities, labels)
    confidence = probabilities.max(axis=1)
    right = ranking(probabilities, 1)[:, 0] == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(which, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def softmax(scores: np.ndarray) -> np.ndarray:
    """exp(s) / Σ exp(s) over the last axis, in float64."""
    shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
    e = np.exp(shifted)
    return e / e.sum(axis=-1, keepdims=True)


def retrieval_ranks(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """(Q, G) scores, (Q, G) true where an entry is wanted → (Q,) rank from 0 of the best wanted one.

    Equal scores count in order of the entries, as a stable sort would put them. Raises `ValueError` for a query without
    anything wanted.
    """
    if not positives.any(axis=1).all():
        raise ValueError(f"{int((~positives.any(axis=1)).sum())} queries have nothing to find")
    best = np.where(positives, scores, -np.inf).argmax(axis=1)[:, None]
    own = np.take_along_axis(scores, best, axis=1)
    earlier = np.arange(scores.shape[1])[None, :] < best
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def macro_f1(predicted: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Mean over the classes that occur of 2 TP / (2 TP + FP + FN), of predicted (N,) and true labels (N,)."""
    right = np.bincount(labels[predicted == labels], minlength=classes)
    total = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    occurs = np.bincount(labels, minlength=classes) > 0
    return float((2 * right[occurs] / total[occurs]).mean())


def average_precisions(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N, C) scores, (N, C) true where a photo is of a class → (C,): for each class the mean, over its photos, of the share
    of photos ranked as high that are its own. NaN for a class without photos; their mean over the others is the mAP."""
    order = np.argsort(-scores, axis=0, kind="stable")
    own = np.take_along_axis(targets, order, axis=0)
    precision = own.cumsum(axis=0) / np.arange(1, len(scores) + 1)[:, None]
    with np.errstate(invalid="ignore"):
        return (precision * own).sum(axis=0) / own.sum(axis=0)


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p(true class), in nats, of probabilities (N, C) and labels (N,)."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, TINY)).mean())


def classification_report(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Fractions: top1, top5, mean_per_class and macro_f1 (over the classes that occur), ece; nll; of (N, C) scores."""
    predicted, probabilities = ranking(scores, 1)[:, 0], softmax(scores)
    return {
        "top1": top_k(scores, labels, 1),
        "top5": top_k(scores, labels, 5),
        "mean_per_class": float(np.nanmean(per_class_recall(predicted, labels, scores.shape[1]))),
        "macro_f1": macro_f1(predicted, labels, scores.shape[1]),
        "ece": expected_calibration_error(probabilities, labels),
        "nll": negative_log_likelihood(probabilities, labels),
        "correct": int((predicted == labels).sum()),
        "count": len(labels),
    }


def _refuse_empty(scores: np.ndarray, labels: np.ndarray) -> None:
    if len(labels) == 0 or scores.shape[0] != len(labels):
        raise ValueError(f"{scores.shape[0]} rows of scores and {len(labels)} labels give no accuracy")
