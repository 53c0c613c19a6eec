"""Scores of one vector per class, and means over own scores, against loops in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.functional.prototypes import cosine_scores, linear_scores, own_class_means
from jclip.functional.similarity import unit_rows
from jclip.runtime import jt


@pytest.mark.parametrize("seed", [0, 1])
def test_scores_equal_the_formulas(seed, close):
    rng = np.random.default_rng(seed)
    f, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((11, 7), (5, 7), (5,)))
    vars_ = [jt.array(x) for x in (f, w, b)]
    wanted = np.array([[float(x.astype(np.float64) @ row.astype(np.float64)) for row in w] for x in f])
    close(linear_scores(*vars_).numpy(), wanted + b, "scores", "prototypes: linear scores")
    lengths = np.linalg.norm(w.astype(np.float64), axis=1)
    close(cosine_scores(*vars_[:2], 12.0).numpy(), 12 * wanted / lengths, "scores", "prototypes: cosine scores")
    close(cosine_scores(vars_[0], 30 * vars_[1], 12.0).numpy(), 12 * wanted / lengths, "scores")


def test_a_row_of_zeros_has_no_direction_and_no_gradient_that_is_no_number():
    rows = jt.array(np.array([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]], np.float32))
    assert np.array_equal(unit_rows(rows).numpy(), np.array([[0, 0, 0], [0, 3, 4]], np.float32) / np.float32(5))
    assert np.isfinite(jt.grad(unit_rows(rows).sum(), rows).numpy()).all()


def test_own_class_means_by_hand_and_without_rows():
    scores = np.array([[1.0, 9, 9], [3, 9, 9], [9, 9, 5]], np.float32)
    means = own_class_means(scores, np.array([0, 0, 2]))
    assert means[0] == 2 and np.isnan(means[1]) and means[2] == 5


@pytest.mark.parametrize("seed", [0, 1])
def test_own_class_means_of_unequal_classes(seed, close):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(4), [1, 5, 2, 3]))
    scores = rng.standard_normal((11, 4)).astype(np.float32)
    wanted = [np.mean([float(s[k]) for s, y in zip(scores, labels, strict=True) if y == k]) for k in range(4)]
    close(own_class_means(scores, labels), wanted, "closed_form", "prototypes: own class means")
