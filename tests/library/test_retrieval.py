"""Retrieval by groups, against CLIP_benchmark's and open_clip's formulas, a challenge's scorer and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.errors import DataError
from jclip.functional.retrieval import Links, feature_scores, grouped_report, link_ranks, paired_report


def of_matrix(scores: np.ndarray):
    return lambda rows, columns: scores[rows, columns]


def drawn(seed: int, images: int = 23, texts: int = 71, levels: int = 40):
    """Scores with many ties, (I, T), and links of one to seven texts an image and up to three images a text."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (images, texts)).astype(np.float32) / levels
    image_of = np.concatenate([np.arange(images), rng.integers(0, images, texts - images)])
    more = [(int(rng.integers(images)), int(t)) for t in rng.choice(texts, 12, replace=False)]
    return scores, Links.of([*image_of, *(i for i, _ in more)], [*range(texts), *(t for _, t in more)])


def searches(scores: np.ndarray, links: Links, of_texts: bool):
    """Of each query its ranking, as a stable sort gives it, true where an entry is wanted."""
    wanted = np.zeros(scores.shape, bool)
    wanted[links.images, links.texts] = True
    scores, wanted = (scores.T, wanted.T) if of_texts else (scores, wanted)
    return [w[np.argsort(-s, kind="stable")] for s, w in zip(scores, wanted, strict=True)]


def average_precision(hits: np.ndarray, depth: int | None = None) -> float:
    cut, found, total = hits[:depth], 0, 0.0
    for rank, hit in enumerate(cut, start=1):
        found += hit
        total += found / rank if hit else 0.0
    return total / min(hits.sum(), depth or len(hits))


def official(hits: np.ndarray, depth: int) -> float:
    found, total = 1e-6, 0.0
    for rank, hit in enumerate(hits[:depth], start=1):
        if hit:
            found += 1
            total += found / rank
    return total / found


@pytest.mark.parametrize("seed", [0, 1])
def test_every_figure_equals_brute_force(seed, close):
    scores, links = drawn(seed)
    report = grouped_report(of_matrix(scores), links)
    for name, of_texts in (("image_retrieval", True), ("text_retrieval", False)):
        found = searches(scores, links, of_texts)
        best = np.array([hits.argmax() for hits in found])
        recalls = [(best < k).mean() for k in (1, 5, 10)]
        wanted = {
            **{f"recall@{k}": r for k, r in zip((1, 5, 10), recalls, strict=True)},
            "mean_recall": np.mean(recalls),
            "median_rank": np.floor(np.median(best)) + 1,
            "mean_rank": best.mean() + 1,
            "map": np.mean([average_precision(hits) for hits in found]),
            "map@10": np.mean([average_precision(hits, 10) for hits in found]),
            "map@10_of_found": np.mean([official(hits, 10) for hits in found]),
            "r_precision": np.mean([hits[: hits.sum()].mean() for hits in found]),
        }
        for key, value in wanted.items():
            close([report.pop(f"{name}_{key}")], [value], "closed_form", f"{name}_{key}")
    assert not report


@pytest.mark.parametrize("seed", [0, 1])
def test_recalls_equal_those_of_clip_benchmark(seed):
    """Its one-hot of the k best against the positive pairs, any hit counted once."""
    rng = np.random.default_rng(seed)
    scores = rng.permutation(11 * 37).reshape(11, 37).astype(np.float32)  # no ties
    image_of = np.concatenate([np.arange(11), rng.integers(0, 11, 26)])
    report = grouped_report(of_matrix(scores), Links.of_captions(image_of))
    positive_pairs = np.zeros((37, 11), bool)
    positive_pairs[np.arange(37), image_of] = True
    for name, searched, positives in (
        ("image_retrieval_recall", scores.T, positive_pairs),
        ("text_retrieval_recall", scores, positive_pairs.T),
    ):
        for k in (1, 5, 10):
            best = np.argsort(-searched, axis=1)[:, :k]
            one_hot = (best[:, :, None] == np.arange(searched.shape[1])).any(axis=1)
            true_positives = (one_hot & positives).sum(axis=1)
            assert report[f"{name}@{k}"] == (true_positives > 0).mean()


def test_the_paired_figures_by_hand():
    """Twelve images whose own texts have these ranks: the edges of R@1, R@5 and R@10 are among them."""
    ranks = [0, 0, 0, 1, 4, 5, 9, 10, 11, 2, 3, 0]
    scores = np.full((12, 12), -1.0)
    for i, rank in enumerate(ranks):
        others = [g for g in range(12) if g != i]
        scores[i, i], scores[i, others[:rank]] = 0.0, 1.0
    report = paired_report(of_matrix(scores), 12)
    wanted = {"r1": 4 / 12, "r5": 8 / 12, "r10": 10 / 12, "mean_rank": 1 + 45 / 12, "median_rank": 3.0}
    assert {k: report[f"i2t_{k}"] for k in wanted} == pytest.approx(wanted)
    turned = paired_report(of_matrix(scores.T), 12)
    assert {k: turned[f"t2i_{k}"] for k in wanted} == pytest.approx(wanted)
    assert report["t2i_r1"] == turned["i2t_r1"] != report["i2t_r1"] and len(report) == 10


@pytest.mark.parametrize("seed", [0, 1])
def test_the_paired_figures_are_open_clips_and_reported_apart(seed):
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, 9, (31, 31)) / 8).astype(np.float32)
    paired = paired_report(of_matrix(scores), 31)
    own = np.diag(scores)
    earlier = np.arange(31)[None, :] < np.arange(31)[:, None]
    for name, matrix in (("i2t", scores), ("t2i", scores.T)):
        preds = (matrix > own[:, None]).sum(1) + ((matrix == own[:, None]) & earlier).sum(1)
        assert paired[f"{name}_mean_rank"] == preds.mean() + 1
        assert paired[f"{name}_median_rank"] == np.floor(np.median(preds)) + 1
        assert [paired[f"{name}_r{k}"] for k in (1, 5, 10)] == [(preds < k).mean() for k in (1, 5, 10)]
    grouped = grouped_report(of_matrix(scores), Links.of_captions(np.arange(31)))
    assert grouped["text_retrieval_recall@5"] == paired["i2t_r5"] and not grouped.keys() & paired.keys()


@pytest.mark.parametrize("at_once", [1, 4, 7, 100])
def test_chunked_equals_full(at_once, monkeypatch):
    scores, links = drawn(3)
    asked = []

    def block(rows, columns):
        asked.append((rows.stop - rows.start, columns.stop - columns.start))
        return scores[rows, columns]

    monkeypatch.setattr("jclip.functional.retrieval.MOST_COMPARED", 30)
    assert grouped_report(block, links, at_once=at_once) == grouped_report(of_matrix(scores), links)
    assert max(max(pair) for pair in asked) <= at_once


def test_by_hand_with_equal_captions():
    """Two photos share a caption: paired, one of them must lose; by groups both are found."""
    scores = np.array([[0.9, 0.9, 0.1], [0.9, 0.9, 0.2], [0.3, 0.3, 0.8]], np.float32)
    assert paired_report(of_matrix(scores), 3)["i2t_r1"] == pytest.approx(2 / 3)
    links = Links.of([0, 1, 2], [0, 0, 1])
    assert (Links.of([0], [0]).image_count, Links.of([], []).text_count) == (1, 0)
    report = grouped_report(of_matrix(scores[:, 1:]), links)
    assert report["text_retrieval_recall@1"] == report["image_retrieval_recall@1"] == 1.0
    assert report["image_retrieval_map"] == report["image_retrieval_r_precision"] == 1.0
    ranks, queries, count = link_ranks(of_matrix(scores[:, 1:]), links, of_texts=True)
    assert (ranks.tolist(), queries.tolist(), count) == ([0, 1, 0], [0, 0, 1], 2)


def test_nothing_found_among_ten_counts_nothing():
    scores = np.concatenate([np.arange(20, 0, -1, dtype=np.float32)[None], np.zeros((1, 20), np.float32)])
    links = Links.of([0] + [1] * 19, [19, *range(19)])
    report = grouped_report(of_matrix(scores), links)
    assert report["text_retrieval_map@10_of_found"] == pytest.approx(0.5) == report["text_retrieval_map@10"]
    assert report["text_retrieval_r_precision"] == pytest.approx(0.5)


def test_bad_input_is_refused_in_one_line():
    with pytest.raises(DataError, match="each image must belong to something, got 1 of 3 that do not"):
        Links.of([0, 2], [0, 1])
    with pytest.raises(DataError, match=r"ids of texts must be in \[0, 2\), got 0 to 5"):
        Links(np.array([0, 1]), np.array([0, 5]), 2, 2)
    features = np.full((2, 3), np.nan, np.float32)
    with pytest.raises(DataError, match="scores of images and texts must be numbers, got NaN"):
        grouped_report(feature_scores(features, features), Links.of_captions([0, 1]))
    assert Links.of([1, 0, 1], [1, 0, 1]).are_pairs and not Links.of([0, 0], [0, 1]).are_pairs
