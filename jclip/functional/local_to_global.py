"""TagCLIP's formulas: scores of patches become scores of a photo. NumPy in and out.

Lin et al., "TagCLIP: A Local-to-Global Framework to Enhance Open-Vocabulary Multi-Label Classification of CLIP Without
Training", AAAI 2024, arXiv 2312.12828; constants and edge cases as its code has them (linyq2117/TagCLIP, c32b640).
P patches of a grid of h rows and w columns, row by row; K names, the C classes first, background names after them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jclip.functional.metrics import softmax


@dataclass(frozen=True)
class LocalToGlobal:
    """The method's constants. Layers count from 0; None follows the tower's depth as the paper's choice for 12 layers.

    first: attention is averaged over layers `first` to the last but one. votes: a pair of patches counts where so many
    layers, of all, give it more than their mean. candidate: share of the photo's range of scores above which a class is
    looked at again. inside: share of a class's own range above which a patch belongs to it. local: weight of the refined
    score beside that of the crop. published: as the authors' code, boxes leave out the last row and column of patches,
    and the first class whose box is empty ends the looking again; else neither.
    """

    first: int | None = None
    votes: int | None = None
    candidate: float = 0.5
    inside: float = 0.5
    local: float = 0.5
    published: bool = True

    def layers(self, depth: int) -> tuple[range, int]:
        """The layers whose attention is averaged, at least one, and the votes that a pair needs."""
        first = min(2 * depth // 3, depth - 2) if self.first is None else self.first
        return range(first, depth - 1), max(1, depth // 3) if self.votes is None else self.votes


class Again(NamedTuple):
    """One class to be looked at again: in the rows and columns of patches of a crop, at those patches alone."""

    label: int
    rows: tuple[int, int]  # first, and after the last
    columns: tuple[int, int]
    mask: np.ndarray  # (rows, columns) bool


def coarse_scores(patches: np.ndarray, text: np.ndarray, scale: float) -> np.ndarray:
    """softmax over names of scale · x_p · t_k: (P, E), (K, E), all of length one → (P, K), eq. 3 of the paper."""
    return softmax(np.float32(scale) * (patches @ text.T)).astype(np.float32)


def refined_scores(coarse: np.ndarray, attention: np.ndarray, grid: tuple[int, int], published: bool) -> np.ndarray:
    """Dual-masking attention refinement: (P, K), (P, P) → (P, K), A (m_k ⊙ s_k) of each name k.

    attention: A, the mean of the layers' weights where enough of them vote, else 0. m_k are the patches in the boxes around
    what A s_k marks as k.
    """
    first = attention @ coarse
    return attention @ (marked_boxes(first, grid, published) * coarse)


def marked_boxes(scores: np.ndarray, grid: tuple[int, int], published: bool) -> np.ndarray:
    """(P, K) → (P, K) float32, 1 in the boxes around the connected patches above the mean of each name's own range.

    The range is measured in 255 steps, as of a grey picture; patches that touch at a corner are connected. A name that
    all patches score alike is in all of them.
    """
    low, high = scores.min(axis=0), scores.max(axis=0)
    spread = high - low
    flat = spread <= 0
    shares = (scores - low) / np.where(flat, np.float32(1), spread)
    grey = (shares * np.float32(255)).astype(np.uint8)
    limit = (shares.mean(axis=0, dtype=np.float32) * np.float32(255)).astype(np.int32)
    marked = (grey > limit).T.reshape(-1, *grid)
    boxes = box_union(marked, cut_edges=published).reshape(len(marked), -1).T
    return (boxes | flat).astype(np.float32)


def box_union(marked: np.ndarray, cut_edges: bool = False) -> np.ndarray:
    """(K, h, w) bool → (K, h, w) bool: the union of the boxes around each plane's 8-connected parts.

    cut_edges: a box that reaches the last row or column ends before it.
    """
    planes, rows, columns = marked.shape
    parts = connected_parts(marked)
    plane, y, x = np.nonzero(marked)
    number = plane * (rows * columns) + parts[marked] - 1
    own, at = np.unique(number, return_inverse=True)
    ends = np.zeros((4, len(own)), np.int64)  # top, left, bottom, right; the last two after the part
    ends[:2] = rows + columns
    for side, values, reduce in (
        (0, y, np.minimum),
        (1, x, np.minimum),
        (2, y + 1, np.maximum),
        (3, x + 1, np.maximum),
    ):
        reduce.at(ends[side], at, values)
    top, left, bottom, right = ends
    if cut_edges:
        bottom, right = np.minimum(bottom, rows - 1), np.minimum(right, columns - 1)
    edges = np.zeros((planes, rows + 1, columns + 1), np.int64)
    of = own // (rows * columns)
    for u, v, step in ((top, left, 1), (bottom, right, 1), (top, right, -1), (bottom, left, -1)):
        np.add.at(edges, (of, u, v), step)
    return edges.cumsum(axis=1).cumsum(axis=2)[:, :rows, :columns] > 0


def connected_parts(marked: np.ndarray) -> np.ndarray:
    """(K, h, w) bool → (K, h, w): equal numbers from 1 where patches are connected, 0 where nothing is marked."""
    planes, rows, columns = marked.shape
    parts = np.where(marked, np.arange(1, rows * columns + 1).reshape(rows, columns), 0)
    while True:
        padded = np.pad(parts, ((0, 0), (1, 1), (1, 1)))
        tall = np.maximum(np.maximum(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])
        near = np.maximum(np.maximum(tall[..., :-2], tall[..., 1:-1]), tall[..., 2:]) * marked
        known = np.concatenate([np.zeros((planes, 1), near.dtype), near.reshape(planes, -1)], axis=1)
        jumped = np.take_along_axis(known, near.reshape(planes, -1), axis=1).reshape(marked.shape)
        if np.array_equal(jumped, parts):
            return parts
        parts = jumped


def to_look_at_again(refined: np.ndarray, classes: int, grid: tuple[int, int], settings: LocalToGlobal) -> list[Again]:
    """The classes whose best patch stands out, each with its crop: class-wise re-identification. (P, K) → at most C."""
    best = refined[:, :classes].max(axis=0)
    low, high = refined.min(), refined.max()
    found = []
    for label in np.flatnonzero(best > low + np.float32(settings.candidate) * (high - low)).tolist():
        own = refined[:, label] - refined[:, label].min()
        spread = own.max()
        inside = (own / spread > settings.inside if spread > 0 else np.zeros(len(own), bool)).reshape(grid)
        rows, columns = (_extent(inside.any(axis=axis), settings.published) for axis in (1, 0))
        if rows[0] < rows[1] and columns[0] < columns[1]:
            found.append(Again(label, rows, columns, inside[slice(*rows), slice(*columns)]))
        elif settings.published:
            break
    return found


def _extent(marked: np.ndarray, cut_edge: bool) -> tuple[int, int]:
    """First of the marked ones and the place after the last; (0, 0) where none is."""
    at = np.flatnonzero(marked)
    if not len(at):
        return 0, 0
    return int(at[0]), min(int(at[-1]) + 1, len(marked) - 1 if cut_edge else len(marked))


def nearest_mask(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(h, w) → `grid` (h', w'): each cell as the one that it begins in."""
    rows, columns = (
        np.minimum(np.floor(np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(int), old - 1)
        for old, new in zip(mask.shape, grid, strict=True)
    )
    return mask[np.ix_(rows, columns)]


def photo_scores(refined: np.ndarray, again: dict[int, float], local: float) -> np.ndarray:
    """(P, K) → (K,): each name's best patch; of a class that was looked at again mixed with its probability in the crop."""
    scores = refined.max(axis=0)
    for label, probability in again.items():
        scores[label] = np.float32(local) * scores[label] + np.float32(1 - local) * np.float32(probability)
    return scores


def place_shares(cosines: np.ndarray, scale: float) -> np.ndarray:
    """(N, P, K) cosines of places and names → (N, K): max_p softmax_k(s a_pk), a name's share of the place that it has
    most of. Refined by nothing, it needs no attention: TagCLIP's first stage for any map."""
    return softmax(np.float32(scale) * cosines).max(axis=1).astype(np.float32)


def cell_scores(cosines: np.ndarray, scale: float) -> np.ndarray:
    """(N, P, K) cosines of cells and names → (N, K): Σ_p s a_pk softmax_p(s a_pk), the dense score without training.

    Guo et al., "Texts as Images in Prompt Tuning", CVPR 2023: the softmax is over positions, of the scaled scores.
    """
    logits = np.float32(scale) * cosines
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (logits * shares).sum(axis=1) / shares.sum(axis=1)


def halfway(scores: np.ndarray, logits: bool = False) -> np.ndarray:
    """(N, C) → (N,): the threshold of each photo, halfway between its least and its greatest score.

    logits: the scores are logarithms of what is halved; else a name of half the evidence would be far above halfway.
    """
    low, high = scores.min(axis=1), scores.max(axis=1)
    if logits:
        return high + np.log(np.float32(0.5) * (1 + np.exp(low - high)))
    return low + np.float32(0.5) * (high - low)


def chosen(scores: np.ndarray, above: np.ndarray, most: int | None = None, force: bool = True) -> np.ndarray:
    """(N, C), (N, C) bool → (N, C) bool: what is above its threshold, at most the `most` best; with `force` of a photo
    where nothing is the best one."""
    above = above.copy()
    if force:
        empty = np.flatnonzero(~above.any(axis=1))
        above[empty, scores[empty].argmax(axis=1)] = True
    if most is not None and most < scores.shape[1]:
        order = np.argsort(np.where(above, -scores, np.inf), axis=1, kind="stable")
        np.put_along_axis(above, order[:, most:], False, axis=1)
    return above


def normalised_both_ways(scores: np.ndarray) -> np.ndarray:
    """(N, K) → (N, K): less the mean and by the deviation of each photo over names, then of each name over photos.

    What is the same everywhere becomes 0. The idea is SPARC's; it needs no labels, but all photos at once.
    """
    return _standard(_standard(scores.astype(np.float64), axis=1), axis=0).astype(np.float32)


def _standard(values: np.ndarray, axis: int) -> np.ndarray:
    centred = values - values.mean(axis=axis, keepdims=True)
    deviation = values.std(axis=axis, keepdims=True)
    return np.where(deviation > 0, centred / np.where(deviation > 0, deviation, 1), 0.0)
