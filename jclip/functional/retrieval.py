"""How well images and texts find each other: any number of texts an image, any number of images a text. NumPy.

A search is one of the queries against the whole gallery. Of each pair that belongs together its rank is counted, from 0:
entries with a higher score, and entries with the same score that stand earlier. All figures follow from these ranks:

    R@k     share of the queries with a wanted entry among the first k (CLIP_benchmark's `recall@k`)
    AP      1/R Σ_i i / r_i over the ranks r_1 < … < r_R (from 1) of the R wanted entries; mAP its mean over the queries
    AP@K    the same over r_i <= K, divided by min(R, K); `map@K_of_found` divided by the number of hits among the K
    R-precision   share of wanted entries among the first R
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jclip.errors import DataError

Scores = Callable[[slice, slice], np.ndarray]  # of these images (n) and these texts (m): (n, m)
AT_ONCE = 4096  # rows and columns of a block of scores
MOST_COMPARED = 1 << 24  # scores that are compared at once
RECALLS = (1, 5, 10)
HEAD_START = 1e-6  # which the A3R challenge's scorer counts as found before it begins


@dataclass(frozen=True)
class Links:
    """Which images and texts belong together: image `images[p]` and text `texts[p]`, for P pairs, each pair once.

    Raises `DataError` for ids out of range, and for an image or a text without any partner.
    """

    images: np.ndarray  # (P,) ids
    texts: np.ndarray  # (P,) ids
    image_count: int
    text_count: int

    def __post_init__(self):
        for what, ids, count in (("image", self.images, self.image_count), ("text", self.texts, self.text_count)):
            if len(ids) and not 0 <= ids.min() <= ids.max() < count:
                raise DataError(f"ids of {what}s must be in [0, {count}), got {ids.min()} to {ids.max()}")
            if alone := count - len(np.unique(ids)):
                raise DataError(f"each {what} must belong to something, got {alone} of {count} that do not")

    @staticmethod
    def of(images: Sequence[int], texts: Sequence[int]) -> Links:
        """The links of pairs of ids, which count from 0; a pair given twice is one."""
        pairs = np.unique(np.stack([np.asarray(images, np.int64), np.asarray(texts, np.int64)], axis=1), axis=0)
        return Links(
            pairs[:, 0], pairs[:, 1], int(pairs[:, 0].max(initial=-1)) + 1, int(pairs[:, 1].max(initial=-1)) + 1
        )

    @staticmethod
    def of_captions(image_of: Sequence[int]) -> Links:
        """Links of T captions, each of one image."""
        return Links.of(image_of, np.arange(len(image_of)))

    @property
    def are_pairs(self) -> bool:
        """Whether each image has one text and each text one image, of the same number."""
        return self.image_count == self.text_count == len(self.images) and bool((self.images == self.texts).all())


def feature_scores(images: np.ndarray, texts: np.ndarray) -> Scores:
    """Scores of features (I, E) and (T, E) of length one."""
    return lambda rows, columns: images[rows] @ texts[columns].T


def grouped_report(scores: Scores, links: Links, depth: int = 10, at_once: int = AT_ONCE) -> dict[str, float]:
    """Both directions: `image_retrieval_…` of texts that look for images, `text_retrieval_…` of images that look for texts.

    Each: recall@1, @5, @10 and their mean, median and mean rank from 1 of the best wanted entry, map, map@depth with both
    divisors, r_precision. Blocks of `at_once` images and texts are scored at a time; a smaller one changes no figure but
    by the rounding of scores. Raises `DataError` for scores that are no numbers.
    """
    report = {}
    for name, of_texts in (("image_retrieval", True), ("text_retrieval", False)):
        ranks, queries, count = link_ranks(scores, links, of_texts, at_once)
        report.update({f"{name}_{key}": value for key, value in rank_report(ranks, queries, count, depth).items()})
    return report


def paired_report(scores: Scores, count: int, at_once: int = AT_ONCE) -> dict[str, float]:
    """open_clip's figures of N images against their N texts, where the own one alone is right however many are equal.

    R@1/5/10, mean and median rank both ways; of equal scores the earlier entry ranks first.
    """
    report, links = {}, Links.of_captions(np.arange(count))
    for name, of_texts in (("i2t", False), ("t2i", True)):
        ranks, *_ = link_ranks(scores, links, of_texts, at_once)
        report.update({f"{name}_r{k}": float((ranks < k).mean()) for k in RECALLS})
        report[f"{name}_mean_rank"] = float(ranks.mean() + 1)
        report[f"{name}_median_rank"] = float(np.floor(np.median(ranks)) + 1)
    return report


def link_ranks(
    scores: Scores, links: Links, of_texts: bool, at_once: int = AT_ONCE
) -> tuple[np.ndarray, np.ndarray, int]:
    """Rank from 0 of each link's entry in the search of its query, and its query, both (P,), in order of queries and ranks;
    and the number of queries. of_texts: texts look for images, else images for texts."""
    queries, entries = (links.texts, links.images) if of_texts else (links.images, links.texts)
    count, gallery = (links.text_count, links.image_count) if of_texts else (links.image_count, links.text_count)
    order = np.argsort(queries, kind="stable")
    queries, entries, ranks = queries[order], entries[order], np.empty(len(order), np.int64)
    for start in range(0, count, at_once):
        rows = slice(start, min(start + at_once, count))
        own = slice(*np.searchsorted(queries, (rows.start, rows.stop)))

        def block(columns: slice, rows: slice = rows) -> np.ndarray:
            return _finite(scores(columns, rows).T if of_texts else scores(rows, columns))

        ranks[own] = _ranks(block, queries[own] - start, entries[own], gallery, at_once)
    order = np.lexsort((ranks, queries))
    return ranks[order], queries[order], count


def _ranks(block: Callable[[slice], np.ndarray], queries, entries, gallery: int, at_once: int) -> np.ndarray:
    """Ranks of some queries' links; each block of the gallery is scored twice where there are several."""
    parts = [slice(i, min(i + at_once, gallery)) for i in range(0, gallery, at_once)]
    only = block(parts[0]) if len(parts) == 1 else None
    wanted, ranks = np.empty(len(queries), np.float64), np.zeros(len(queries), np.int64)
    for part in parts:
        here = (entries >= part.start) & (entries < part.stop)
        wanted[here] = (block(part) if only is None else only)[queries[here], entries[here] - part.start]
    for part in parts:
        found = block(part) if only is None else only
        columns, step = np.arange(part.start, part.stop), max(1, MOST_COMPARED // found.shape[1])
        for i in range(0, len(queries), step):
            few = slice(i, i + step)
            rows, own = found[queries[few]], wanted[few, None].astype(found.dtype)
            earlier = columns[None, :] < entries[few, None]
            ranks[few] += ((rows > own) | ((rows == own) & earlier)).sum(axis=1)
    return ranks


def _finite(scores: np.ndarray) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise DataError("scores of images and texts must be numbers, got NaN or infinity: look for broken features")
    return scores


def rank_report(ranks: np.ndarray, queries: np.ndarray, count: int, depth: int = 10) -> dict[str, float]:
    """Figures of one direction, of what `link_ranks` returns.

    ranks: (L,) from 0, of each right pair; queries: (L,) which of the `count` queries it is of, in order. Returns recalls,
    ranks from 1, and the mean average precision of all and of the first `depth`.
    """
    first = np.concatenate([[True], queries[1:] != queries[:-1]]) if len(queries) else np.zeros(0, bool)
    best, wanted = ranks[first], np.bincount(queries, minlength=count)
    number = np.arange(1, len(ranks) + 1) - np.flatnonzero(first)[np.cumsum(first) - 1]  # from 1, within its query
    near = ranks < depth
    found = np.bincount(queries[near], minlength=count)
    precision = number / (ranks + 1)
    recalls = {f"recall@{k}": float((best < k).mean()) for k in RECALLS}
    return {
        **recalls,
        "mean_recall": float(np.mean(list(recalls.values()))),
        "median_rank": float(np.floor(np.median(best)) + 1),
        "mean_rank": float(best.mean() + 1),
        "map": float((np.bincount(queries, precision, count) / wanted).mean()),
        f"map@{depth}": float((np.bincount(queries[near], precision[near], count) / np.minimum(wanted, depth)).mean()),
        f"map@{depth}_of_found": float(_of_found(ranks[near], number[near], queries[near], count, found).mean()),
        "r_precision": float((np.bincount(queries[ranks < wanted[queries]], minlength=count) / wanted).mean()),
    }


def _of_found(ranks, number, queries, count: int, found: np.ndarray) -> np.ndarray:
    """(Q,) average precisions as the A3R challenge's scorer has them: divided by the hits that were found."""
    total = np.bincount(queries, (number + HEAD_START) / (ranks + 1), count)
    return total / (found + HEAD_START)
