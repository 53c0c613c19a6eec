"""Ensembles, co-occurrence, thresholds and sigmoids: worked values, scikit-learn, published systems' scores."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.errors import ConfigError, DataError, UnknownName
from jclip.functional.calibration import (
    Calibration,
    best_f1_threshold,
    fitted_sigmoids,
    fitted_thresholds,
    platt,
    prevalence_thresholds,
    sigmoid,
)
from jclip.functional.cooccurrence import (
    count_cooccurrence,
    modulated,
    normalised,
    ranking_weights,
)
from jclip.functional.multi_label_metrics import ranking_report
from jclip.functional.score_ensemble import (
    by_columns,
    column_ranks,
    mean,
    pair_weights,
    rank_mean,
    scaled,
    searched_merge,
    standardised,
    weighted,
)

ADJ = np.array([[0, 8, 2], [8, 0, 1], [2, 1, 0]])
A, B = np.array([[1.0, 5.0], [3.0, 2.0], [2.0, 4.0]]), np.array([[10.0, 0.0], [0.0, 5.0], [5.0, 10.0]])


def test_cooccurrence_by_hand(close):
    close(normalised(ADJ), [[0, 0.8, 0.2], [0.888889, 0, 0.111111], [0.666667, 0.333333, 0]], "loss")
    close(modulated(np.array([[1, 0.2, -0.4]]), normalised(ADJ)), [[0.955556, 0.533333, -0.288889]], "loss")
    assert normalised(np.array([[0, 0], [0, 0]])).tolist() == [[0, 0], [0, 0]]


def test_the_weighted_ranking_loss_by_hand(close):
    """Σ over absent i, present j of w[i, j] max(0, 1 - S_j + S_i), mean over the two samples."""
    w = ranking_weights(normalised(ADJ))
    S, Y = np.array([[2, 0.5, 1.2], [0, 0, 0]]), np.array([[1, 0, 0], [0, 1, 1]])
    losses = [sum(w[i, j] * max(0, 1 - s[j] + s[i]) for i in range(3) for j in range(3) if y[i] == 0 and y[j] == 1)
              for s, y in zip(S, Y, strict=True)]  # fmt: skip
    close(np.mean(losses), 1.580873, "loss")
    assert (np.diagonal(w) == 0).all()
    close(w.mean(axis=1), np.ones(3), "closed_form")


def test_cooccurrence_is_counted_in_parts():
    rng = np.random.default_rng(0)
    targets = rng.choice([1, 0, -1], (50, 6), p=[0.4, 0.4, 0.2]).astype(np.int8)
    whole = count_cooccurrence(targets)
    parts = count_cooccurrence(iter([targets[:13], targets[13:13], targets[13:]]), "labels")
    wanted = [[0 if i == j else sum((t[i] == 1) and (t[j] == 1) for t in targets) for j in range(6)] for i in range(6)]
    assert whole.adj.tolist() == parts.adj.tolist() == wanted
    assert whole.counts.tolist() == (targets == 1).sum(axis=0).tolist()
    assert parts.uses_label_statistics and not whole.uses_label_statistics
    assert np.array_equal(whole.shares, normalised(np.array(wanted)))
    with pytest.raises(DataError, match="at least one row"):
        count_cooccurrence([])


def test_centred_modulation_adds_nothing_on_average(close):
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(9, 3))
    shares = normalised(ADJ)
    centred = modulated(scores, shares, center=scores.mean(axis=0))
    close(centred.mean(axis=0), scores.mean(axis=0), "closed_form")
    close(centred - modulated(scores, shares), np.tile(-0.5 * scores.mean(axis=0) @ shares, (9, 1)), "closed_form")


def test_ensembles_by_hand(close):
    close(scaled(A), [[0, 1], [0.5, 0.25], [0.25, 0.75]], "closed_form")
    assert scaled(np.full((2, 3), 7.0)).tolist() == [[0] * 3] * 2
    close(weighted({"a": A, "b": B}, pair_weights(0.8)).scores, 0.2 * scaled(A) + 0.8 * B / 10, "closed_form")
    assert mean({"a": A, "b": B}).scores.tolist() == ((A + B) / 2).tolist()
    assert column_ranks(np.array([[1.0], [3.0], [3.0], [0.0]])).tolist() == [[0.5], [0.875], [0.875], [0.25]]
    assert rank_mean({"a": A, "b": B}).scores[:, 0].tolist() == [(1 / 3 + 1) / 2, (1 + 1 / 3) / 2, 2 / 3]
    assert standardised(np.array([[1.0, 2.0], [1.0, 4.0]])).tolist() == [[0, -1], [0, 1]]


def test_columns_by_names():
    names = ["cat", "dog"]
    found = by_columns({"a": A, "b": B}, names, {"b": ["dog"]})
    assert found.scores.tolist() == np.stack([A[:, 0], B[:, 1]], axis=1).tolist()
    with pytest.raises(ConfigError, match="top-k, thresholds for all classes, OP, OR and OF1 mean nothing"):
        found.compare_classes()
    for norm, wanted in (("zscore", standardised), ("rank", column_ranks)):
        normed = by_columns({"a": A, "b": B}, names, {"b": ["dog"]}, norm)
        assert np.array_equal(normed.compare_classes(), wanted(found.scores))
    with pytest.raises(UnknownName, match="unknown class 'dgo', did you mean 'dog'"):
        by_columns({"a": A, "b": B}, names, {"b": ["dgo"]})
    with pytest.raises(UnknownName, match="unknown model of an ensemble 'c'"):
        by_columns({"a": A, "b": B}, names, {"c": ["dog"]})
    with pytest.raises(ConfigError, match="one model, got a and b for 'dog'"):
        by_columns({"a": A, "b": B}, names, {"a": ["dog"], "b": ["dog"]})
    with pytest.raises(UnknownName, match="unknown column norm 'minmax'"):
        by_columns({"a": A}, names, {}, "minmax")


def test_what_makes_no_ensemble():
    with pytest.raises(DataError, match=r"one shape, got \(3, 2\) of a and \(2, 2\) of b"):
        mean({"a": A, "b": B[:2]})
    with pytest.raises(DataError, match="b: scores must be finite"):
        rank_mean({"a": A, "b": B * np.nan})
    with pytest.raises(DataError, match="at least one model"):
        mean({})
    for weights in ([1.0], [1, -1], [0, 0], [1, np.nan]):
        with pytest.raises(ConfigError, match="as many weights"):
            weighted({"a": A, "b": B}, weights)
    with pytest.raises(ConfigError, match=r"rho must be in \[0, 1\], got 1.5"):
        pair_weights(1.5)


def test_published_ensemble_and_merges(published):
    own = (published["targets"] == 1).astype(np.int8)
    tai, dual = published["tai_global"] / 2 + published["tai_local"] / 2, published["dualcoop_local"]

    def percent(scores):
        return f"{100 * ranking_report(scores, own).mean:.3f}"

    wanted = {0.5: "93.761", 0.6: "94.288", 0.8: "94.759", 0.9: "94.613", 1.0: "94.183"}
    assert {rho: percent(weighted({"a": tai, "b": dual}, pair_weights(rho)).scores) for rho in wanted} == wanted
    few = own[:400]
    g, local = published["tai_global"][:400], published["tai_local"][:400]
    r = searched_merge(g, local, few, 4)
    values = {k / 4: ranking_report(k / 4 * g + (1 - k / 4) * local, few).mean for k in range(5)}
    assert values[r] == max(values.values())
    assert searched_merge(g, local, few) in {k / 20 for k in range(21)} - {k / 4 for k in range(5)}
    assert searched_merge(g, g, few) == 0.5


def test_the_threshold_of_the_best_f1(published):
    own = published["targets"] == 1
    merged = published["tai_global"] / 2 + published["tai_local"] / 2
    t, f1 = best_f1_threshold(merged.ravel(), own.ravel(), 60)
    assert f"{t:.4f} {f1:.4f}" == "0.4275 0.7688"
    equal = best_f1_threshold(np.array([0.0] * 8 + [1.0] * 8), np.array([False] * 8 + [True] * 8), 9)
    assert equal == (1.0, 1.0)
    t, f1 = best_f1_threshold(merged.ravel(), own.ravel())
    assert f1 > 0.7688 and t in merged.astype(np.float64)


@pytest.mark.parametrize("seed", [0, 1])
def test_thresholds_against_trying_all(seed):
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 9, (40, 5)) / 8
    targets = rng.choice([1, 0, -1], (40, 5), p=[0.3, 0.5, 0.2]).astype(np.int8)
    targets[:, 3] = np.minimum(targets[:, 3], 0)  # no positives
    known = targets >= 0

    def tried(s, y):
        return max((f1_score(y, s >= t, zero_division=0), t) for t in np.unique(s))

    overall = tried(scores[known], targets[known] == 1)
    assert fitted_thresholds(scores, targets, "global_f1").tolist() == [overall[1]] * 5
    wanted = [overall[1] if c == 3 else tried(scores[k, c], targets[k, c] == 1)[1] for c, k in enumerate(known.T)]
    assert fitted_thresholds(scores, targets, "class_f1").tolist() == wanted
    assert fitted_thresholds(scores, targets, "fixed", 0.25).tolist() == [0.25] * 5
    assert fitted_thresholds(scores, targets, "fixed").tolist() == [0.5] * 5


def test_prevalence_predicts_as_many_as_there_are():
    rng = np.random.default_rng(3)
    scores, targets = rng.normal(size=(50, 4)), (rng.random((50, 4)) < 0.3).astype(np.int8)
    targets[:, 2] = 0
    predicted = scores >= fitted_thresholds(scores, targets, "prevalence")
    assert predicted.sum(axis=0).tolist() == targets.sum(axis=0).tolist()
    assert (scores >= prevalence_thresholds(scores, np.array([0, 0.1, 0.5, 1]))).sum(axis=0).tolist() == [0, 5, 25, 50]
    with pytest.raises(DataError, match="a class with none"):
        fitted_thresholds(scores, np.where([False, True, False, False], -1, targets), "prevalence")


@pytest.mark.parametrize("seed, scale, shift", [(0, 1, 0), (1, 0.01, 0.2), (2, 100, -3000)])
def test_sigmoids_against_scikit_learn(seed, scale, shift, close):
    """Scores around one, cosines, and logits of hundreds; theirs is 1 / (1 + exp(a s + b))."""
    from sklearn.calibration import _sigmoid_calibration

    rng = np.random.default_rng(seed)
    own = rng.random(400) < 0.2
    raw = rng.normal(size=400) + 1.5 * own
    a, b = platt(shift + scale * raw, own)
    theirs = _sigmoid_calibration(raw, own.astype(float))
    close(sigmoid(a * (shift + scale * raw) + b), 1 / (1 + np.exp(theirs[0] * raw + theirs[1])), "sigmoid_fit")
    assert a > 0


def test_sigmoids_are_the_maximum_of_the_likelihood(close):
    """Platt's targets as weighted labels of a logistic regression without penalty."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(5)
    own, scores = rng.random(200) < 0.4, rng.normal(size=200)
    scores += own
    goal = np.where(own, (own.sum() + 1) / (own.sum() + 2), 1 / ((~own).sum() + 2))
    fit = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
    fit.fit(np.r_[scores, scores][:, None], np.r_[np.ones(200), np.zeros(200)], np.r_[goal, 1 - goal])
    close(platt(scores, own), [fit.coef_[0, 0], fit.intercept_[0]], "sigmoid_fit")


def test_sigmoids_of_separable_and_constant_scores(close):
    a, b = platt(np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, False, True, True]))
    p = sigmoid(a * np.arange(4.0) + b)
    assert np.isfinite([a, b]).all() and (np.diff(p) > 0).all()
    a, b = platt(np.ones(5), np.array([True, False, False, False, False]))
    assert a == 0
    close(sigmoid(np.array([b])), [(2 / 3 + 4 / 6) / 5], "closed_form")
    with pytest.raises(DataError, match="both kinds, got 0 positives among 3"):
        platt(np.arange(3.0), np.zeros(3, bool))
    assert sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist() == [0.0, 0.5, 1.0]


def test_a_class_without_both_kinds_has_no_probability():
    scores = np.array([[0.1, 0.2, 0.3], [0.5, 0.6, 0.2], [0.9, 0.1, 0.4]])
    targets = np.array([[0, 0, 1], [1, 0, 1], [1, 0, -1]], np.int8)
    a, b = fitted_sigmoids(scores, targets)
    assert np.isnan(a).tolist() == np.isnan(b).tolist() == [False, True, True]
    found = Calibration(("x", "y", "z"), "fixed", np.full(3, 0.4), a, b, "list.txt", "0" * 64, 3)
    assert found.predicted(scores).tolist() == [[False] * 3, [True, True, False], [True, False, True]]
    assert np.isnan(found.probabilities(scores)).tolist() == [[False, True, True]] * 3
    assert found.probabilities(scores)[:, 0].tolist() == pytest.approx(
        (1 / (1 + np.exp(-a[0] * scores[:, 0] - b[0]))).tolist()
    )
