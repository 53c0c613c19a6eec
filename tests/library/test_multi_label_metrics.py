"""Metrics of several labels a photo: numbers by hand, every order of ties, scikit-learn, published systems' scores."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jclip.errors import DataError
from jclip.functional.metrics import average_precisions
from jclip.functional.multi_label_metrics import (
    above,
    average_precision,
    average_precision_per_class,
    best_k,
    check_scores,
    check_targets,
    decision_report,
    mean_over_classes,
    ranking_report,
    thirds,
    tie_shares,
)


def drawn(seed: int, rows: int = 61, classes: int = 7, levels: int | None = None):
    """Scores (N, C), of few values where `levels` says so, and labels in three states; every class has all of them."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (rows, classes)).astype(float) if levels else rng.normal(size=(rows, classes))
    return scores, rng.choice([1, 0, -1], (rows, classes), p=[0.3, 0.5, 0.2]).astype(np.int8)


def test_ties_by_hand():
    """What an unstable reversed sort calls 1.0 is .8333 in order of the input."""
    scores, own = np.array([0.9, 0.8, 0.8, 0.1]), np.array([1, 0, 1, 0], bool)
    assert average_precision(scores, own) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(scores[::-1], own[::-1]) == 1.0
    assert average_precision(scores, own, ties="pessimistic") == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(scores[::-1], own[::-1], ties="pessimistic") == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(scores, own, ties="expected") == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)
    assert tie_shares(scores[:, None], own[:, None].astype(np.int8)).tolist() == [0.5]


@pytest.mark.parametrize("seed", [0, 1])
def test_ties_against_all_orders(seed, close):
    rng = np.random.default_rng(seed)
    scores, own = rng.integers(0, 3, 7).astype(float), rng.permutation([1, 1, 1, 0, 0, 0, 0]).astype(bool)
    orders = [list(order) for order in itertools.permutations(range(7))]
    values = [average_precision(scores[order], own[order]) for order in orders]
    close(average_precision(scores, own, ties="expected"), np.mean(values), "closed_form")
    close(average_precision(scores, own, ties="pessimistic"), min(values), "closed_form")


@pytest.mark.parametrize("seed", [0, 1])
def test_against_scikit_learn(seed, close):
    from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

    scores, targets = drawn(seed)
    found = ranking_report(scores, targets)
    known = [targets[:, c] >= 0 for c in range(7)]
    theirs = [average_precision_score(targets[k, c] == 1, scores[k, c]) for c, k in enumerate(known)]
    close(found.precisions, theirs, "closed_form")
    close(found.mean, np.mean(theirs), "closed_form")

    predicted, own = above(scores, 0.3), targets == 1
    sure = np.where(targets < 0, False, predicted)  # what is unknown counts nowhere
    values = decision_report(predicted, targets).values()
    for measure, macro, micro in (
        (precision_score, "CP", "OP"), (recall_score, "CR", "OR"), (f1_score, "CF1_classwise", "OF1"),
    ):  # fmt: skip
        close(values[macro], measure(own, sure, average="macro", zero_division=0), "closed_form")
        close(values[micro], measure(own, sure, average="micro", zero_division=0), "closed_form")
    close(values["CF1"], 2 / (1 / values["CP"] + 1 / values["CR"]), "closed_form")
    assert values["CF1"] != values["CF1_classwise"]


def test_envelopes_by_hand(close):
    """Ranks + - - + +: precisions 1, 2/4, 3/5; the envelope after the first is .6."""
    scores, own = np.array([5.0, 4, 3, 2, 1]), np.array([1, 0, 0, 1, 1], bool)
    close(average_precision(scores, own), (1 + 0.5 + 0.6) / 3, "closed_form")
    close(average_precision(scores, own, "interp"), (1 + 0.6 + 0.6) / 3, "closed_form")
    close(average_precision(scores, own, "voc11"), (4 * 1 + 7 * 0.6) / 11, "closed_form")
    ten = np.ones(10, bool)
    assert average_precision(np.arange(10.0), ten, "voc11") == 1.0
    with pytest.raises(DataError, match="expected is defined for average precision by rank, got voc11"):
        average_precision(scores, own, "voc11", "expected")


@pytest.mark.parametrize("seed", [0, 1])
def test_envelopes_against_their_definition(seed, close):
    scores, targets = drawn(seed, levels=9)
    own = targets == 1
    for c in range(7):
        order = np.argsort(-scores[:, c], kind="stable")
        precision = own[order, c].cumsum() / np.arange(1, 62)
        recall = own[order, c].cumsum() / own[:, c].sum()
        eleven = [max(precision[recall >= t], default=0) for t in np.arange(0, 1.1, 0.1)]
        close(average_precision(scores[:, c], own[:, c], "voc11"), np.mean(eleven), "closed_form")
        steps = np.diff(np.r_[0, recall]) * [precision[k:].max() for k in range(61)]
        close(average_precision(scores[:, c], own[:, c], "interp"), steps.sum(), "closed_form")


def test_equals_the_librarys_older_one_without_unknowns():
    scores, targets = drawn(2, levels=5)
    targets = np.abs(targets)
    assert average_precision_per_class(scores, targets).tolist() == pytest.approx(
        average_precisions(scores, targets == 1).tolist(), abs=0, rel=1e-14
    )


def test_an_unknown_label_is_as_if_the_photo_was_absent():
    scores, targets = drawn(3)
    for c in range(7):
        known = targets[:, c] >= 0
        assert (
            average_precision_per_class(scores[:, [c]], targets[:, [c]])
            == average_precision_per_class(scores[known][:, [c]], targets[known][:, [c]])
        ).all()
    other = np.where(targets < 0, 99.0, scores)
    assert ranking_report(other, targets).mean == ranking_report(scores, targets).mean
    assert decision_report(above(other, 0.0), targets).values() == decision_report(above(scores, 0.0), targets).values()


def test_classes_without_positives_or_negatives():
    scores = np.array([[0.9, 0.1, 0.3, 0.2], [0.2, 0.8, 0.4, 0.5], [0.5, 0.7, 0.6, 0.1]])
    targets = np.array([[1, 0, 1, -1], [0, 0, 1, 0], [1, 0, 1, -1]], np.int8)
    found = ranking_report(scores, targets)
    assert found.no_positive == (1, 3) and found.no_negative == (2,)
    assert found.precisions[[0, 2]].tolist() == [1, 1] and found.mean == 1.0
    assert ranking_report(scores, targets, no_positive="zero").mean == 0.5
    assert found.means({"seen": [0, 1], "unseen": [1]})["seen"] == 1.0
    assert np.isnan(found.means({"unseen": [1]})["unseen"])
    values = decision_report(above(scores, 0.4), targets).values()
    assert values["CP"] == (1 + 0 + 1 + 0) / 4 and values["CR"] == (1 + 2 / 3) / 2 and values["CF1_classwise"] == 0.9
    assert decision_report(above(scores, 0.4), targets, "zero").values()["CR"] == (1 + 2 / 3) / 4
    assert values["OP"] == 4 / 7 and values["OR"] == 4 / 5
    with pytest.raises(DataError, match="labels without any"):
        ranking_report(scores, np.zeros((3, 4), np.int8))
    with pytest.raises(DataError, match="labels without any"):
        decision_report(above(scores, 0.4), np.zeros((3, 4), np.int8))


def test_a_single_positive_counts():
    found = decision_report(np.array([[True, True], [True, False]]), np.array([[1, 0], [0, 1]], np.int8))
    assert (
        found.f1.tolist() == [2 / 3, 0.0]
        and found.recalls.tolist() == [1.0, 0.0]
        and found.precisions.tolist() == [0.5, 0.0]
    )
    assert found.values()["CF1_classwise"] == 1 / 3 and found.values()["CF1"] == 2 * 0.25 * 0.5 / 0.75


def test_nothing_predicted_is_zero():
    values = decision_report(np.zeros((2, 3), bool), np.ones((2, 3), np.int8)).values()
    assert {*values.values()} == {0.0}


def test_the_best_k_by_hand():
    scores = np.array([[0.5, 0.5, 0.5, 0.4], [0.1, 0.9, 0.2, 0.3]])
    assert best_k(scores, 2).tolist() == [[True, True, False, False], [False, True, False, True]]
    assert best_k(scores, 9).all() and best_k(scores, 3).sum() == 6
    assert best_k(scores, 3, 0.25).tolist() == [[True, True, True, False], [False, True, False, True]]
    assert best_k(scores, 3, np.array([0.6, 0, 0, 0])).tolist() == [
        [False, True, True, False],
        [False, True, True, True],
    ]


def test_photos_without_labels_stay_in():
    predicted = np.array([[True, False], [True, True]])
    targets = np.array([[1, 0], [0, 0]], np.int8)
    assert decision_report(predicted, targets).values()["OP"] == 1 / 3
    assert decision_report(predicted, targets, skip_empty=True).values()["OP"] == 1.0


def test_thirds_by_frequency():
    assert {k: v.tolist() for k, v in thirds(np.array([5, 9, 5, 1, 7, 0, 2])).items()} == {
        "head": [1, 4, 0], "medium": [2, 6], "tail": [3, 5],
    }  # fmt: skip


def test_what_is_no_score_is_refused():
    scores = np.ones((3, 4))
    scores[0, 1], scores[2, 0], scores[2, 3], scores[1, 1] = np.nan, np.inf, -np.inf, np.nan
    with pytest.raises(
        DataError, match=r"4 of 12 .* \(row 0, class 1: nan; row 1, class 1: nan; row 2, class 0: inf; …"
    ):
        check_scores(scores)
    with pytest.raises(DataError, match=r"f.npz: scores .* \(a.jpg, dog: nan; b.jpg, dog: nan; c.jpg, cat: inf"):
        check_scores(scores, ["a.jpg", "b.jpg", "c.jpg"], ["cat", "dog", "cow", "bird"], "f.npz")
    with pytest.raises(DataError, match="4 of 12"):
        ranking_report(scores, np.ones((3, 4), np.int8))
    for shape in ((0, 3), (3, 0), (4,)):
        with pytest.raises(DataError, match="at least one of each"):
            check_scores(np.ones(shape))
    with pytest.raises(DataError, match=r"the scores' shape \(3, 4\), got \(4, 3\)"):
        check_targets(np.ones((4, 3)), (3, 4))
    with pytest.raises(DataError, match="1, 0 or -1 .*got 2 others, such as 2"):
        check_targets(np.array([[2, 0], [2, 1]]), (2, 2))
    assert check_targets(np.array([[True, False]]), (1, 2)).tolist() == [[1, 0]]


def test_published_scores_give_published_numbers(published):
    """mAP in percent, to all digits that were recorded."""
    own = (published["targets"] == 1).astype(np.int8)
    merged = published["tai_global"] / 2 + published["tai_local"] / 2

    def percent(scores, targets=own, **more):
        return f"{100 * ranking_report(scores, targets, **more).mean:.4f}"

    assert percent(published["tai_global"]) == "86.0784" and percent(published["tai_local"]) == "73.5070"
    assert percent(merged) == "88.0747" and percent(published["dualcoop_local"]) == "94.1827"
    assert percent(published["dualcoop_global"]) == "86.2933" and percent(merged, kind="voc11") == "84.4562"
    without_difficult = np.where(published["targets"] == 0, -1, own)
    assert percent(merged, without_difficult) == "88.9862"
    assert max(ranking_report(merged, own).tie_share) < 1e-3


def test_published_scores_at_three_and_above_a_threshold(published):
    own = (published["targets"] == 1).astype(np.int8)
    merged = published["tai_global"] / 2 + published["tai_local"] / 2
    names = ("CP", "CR", "CF1", "OP", "OR", "OF1")
    for predicted, wanted in ((best_k(merged, 3), (46.03, 92.74, 61.52, 43.84, 92.87, 59.56)),
                              (above(merged, 0.4274768), (73.06, 86.96, 79.41, 74.05, 79.94, 76.88))):  # fmt: skip
        values = decision_report(predicted, own).values()
        assert [f"{100 * values[name]:.2f}" for name in names] == [f"{x:.2f}" for x in wanted]


def test_equals_scikit_learn_on_published_scores(published, close):
    from sklearn.metrics import average_precision_score

    own = published["targets"] == 1
    close(
        mean_over_classes(average_precision_per_class(published["tai_global"], own.astype(np.int8))),
        average_precision_score(own, published["tai_global"], average="macro"), "closed_form",
    )  # fmt: skip
