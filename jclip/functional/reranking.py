"""Photos sorted by how well they answer a text, and sorted again by how they resemble each other. NumPy, float64.

A method's `order` gives for each query all photos, best first. None looks at labels; what looks at the other queries of
the same list says so in `uses_other_queries`, as results then depend on what else is asked.

    none        cosine of text and photo
    expand      the text and a weighted mean of its best photos, side by side (query expansion)
    reciprocal  k-reciprocal encoding of the best photos: Zhong et al., 2017, arXiv 1701.08398
    a3r         shared and mutual neighbours among the best photos, as the winners of the traffic challenge published
    querybank   scores divided by how much other captions like a photo: Bogolin et al., 2022, arXiv 2112.12777
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from jclip.config import build
from jclip.errors import ConfigError, DataError, UnknownName
from jclip.functional.directions import unit

AT_ONCE = 64  # queries
Order = np.ndarray  # (Q, G) row numbers of photos, best first


@dataclass(frozen=True)
class Photos:
    """Features (G, E) of a gallery, of length one, and those of the mirrored photos where these were made.

    flips: "max" takes the better of a photo and its mirror image in each comparison, "mean" their mean as the photo.
    Raises `DataError` for features that are no numbers, or of mirrored photos that do not belong to these.
    """

    features: np.ndarray
    mirrored: np.ndarray | None = None
    flips: Literal["max", "mean"] = "max"

    def __post_init__(self):
        if self.mirrored is not None and self.mirrored.shape != self.features.shape:
            raise DataError(
                f"mirrored photos must have features {self.features.shape}, got {self.mirrored.shape}: recompute both"
            )
        for name in ("features", "mirrored"):
            if (found := getattr(self, name)) is not None:
                object.__setattr__(self, name, finite_unit(found, "photos"))
        if self.mirrored is not None and self.flips == "mean":
            object.__setattr__(self, "features", unit(self.features + self.mirrored))
            object.__setattr__(self, "mirrored", None)

    def scores(self, texts: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """(Q, n) cosines of queries (Q, E) and the photos `rows`, or the better of photo and mirrored photo."""
        plain = texts @ self.features[rows].T
        return plain if self.mirrored is None else np.maximum(plain, texts @ self.mirrored[rows].T)

    def between(self, rows: np.ndarray) -> np.ndarray:
        """(n, n) cosines among the photos `rows`."""
        return self.scores(self.features[rows], rows)


def finite_unit(features: np.ndarray, what: str) -> np.ndarray:
    """(N, E) in float64 and of length one. Raises `DataError` for NaN, infinity and rows of zeros, with the first row."""
    with np.errstate(invalid="ignore"):  # 0 / 0
        found = unit(np.asarray(features, np.float64))
    if (broken := ~np.isfinite(found).all(axis=1)).any():
        raise DataError(
            f"features of {what} must be numbers and not all 0, got {int(broken.sum())} broken of {len(found)}, the first "
            f"in row {int(broken.argmax())}: recompute them"
        )
    return found


def best_first(scores: np.ndarray) -> Order:
    """(…, N) → row numbers (…, N) by falling score; equal scores in order of the rows."""
    return np.argsort(-scores, axis=-1, kind="stable")


def front_sorted(order: Order, scores: np.ndarray) -> Order:
    """(Q, G) an order, whose first n photos are sorted by their new `scores` (Q, n); equal ones, and all after, stay."""
    front = np.take_along_axis(order, best_first(scores), axis=1)
    return np.concatenate([front, order[:, scores.shape[1] :]], axis=1)


@dataclass(frozen=True)
class Plain:
    """The order by the cosine of text and photo alone."""

    uses_other_queries: ClassVar[bool] = False

    def order(self, texts: np.ndarray, photos: Photos) -> Order:
        """The order for queries (Q, E)."""
        return best_first(photos.scores(finite_unit(texts, "texts")))


@dataclass(frozen=True)
class Expand:
    """Query expansion, mixed with the text: sorts by m S/σ(S) + (1 - m) S'/σ(S'), where S are the text's scores and S'
    those of q' = unit(Σ w_i f_i) over its `k` best photos, w_i = max(S_i, 0)^alpha.

    mix: m, 1 for the text alone, 0 for q' alone. spread: σ of one query's scores over the gallery ("own"), or one of all
    queries together ("all"), which makes results depend on the other queries.
    """

    k: int = 10
    alpha: float = 3.0
    mix: float = 0.5
    spread: Literal["own", "all"] = "own"

    def __post_init__(self):
        if self.k < 1 or self.alpha < 0 or not 0 <= self.mix <= 1:
            raise ConfigError(
                f"k must be at least 1, alpha at least 0, mix in [0, 1], got {self.k}, {self.alpha:g}, {self.mix:g}"
            )

    @property
    def uses_other_queries(self) -> bool:
        """Whether results depend on the other queries: with `spread: all`."""
        return self.spread == "all"

    def order(self, texts: np.ndarray, photos: Photos) -> Order:
        """The order for queries (Q, E)."""
        texts = finite_unit(texts, "texts")
        known = self._spreads(texts, photos) if self.spread == "all" else None
        return np.concatenate([best_first(self._mixed(part, photos, known)) for part in _parts(texts)])

    def _mixed(self, texts: np.ndarray, photos: Photos, known: tuple[float, float] | None) -> np.ndarray:
        both = self._both(texts, photos)
        spreads = [_or_one(s.std(axis=1, keepdims=True)) for s in both] if known is None else known
        return self.mix * both[0] / spreads[0] + (1 - self.mix) * both[1] / spreads[1]

    def _both(self, texts: np.ndarray, photos: Photos) -> tuple[np.ndarray, np.ndarray]:
        scores = photos.scores(texts)
        return scores, photos.scores(expanded_queries(scores, photos.features, self.k, self.alpha))

    def _spreads(self, texts: np.ndarray, photos: Photos) -> tuple[float, float]:
        """σ(S) and σ(S') over all queries, a part of them in memory at a time."""
        sums = np.zeros((2, 3))
        for part in _parts(texts):
            sums += [[s.size, s.sum(), (s**2).sum()] for s in self._both(part, photos)]
        count, total, squares = sums.T
        first, second = _or_one(np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0)))
        return float(first), float(second)


def _or_one(spread: np.ndarray) -> np.ndarray:
    return np.where(spread > 0, spread, 1.0)


def expanded_queries(scores: np.ndarray, features: np.ndarray, k: int, alpha: float) -> np.ndarray:
    """(Q, E) unit(Σ max(s_i, 0)^alpha f_i) over the `k` best photos of each query; all weights 1 where no score is above 0."""
    best = best_first(scores)[:, :k]
    weights = np.maximum(np.take_along_axis(scores, best, axis=1), 0) ** alpha
    weights[~(weights > 0).any(axis=1)] = 1.0
    return unit(np.einsum("qk,qke->qe", weights, features[best]))


def _parts(texts: np.ndarray) -> Iterator[np.ndarray]:
    return (texts[i : i + AT_ONCE] for i in range(0, max(len(texts), 1), AT_ONCE))


class Front(ABC):
    """A method that re-sorts each query's `candidates` best photos, by scores among themselves."""

    candidates: int

    def order(self, texts: np.ndarray, photos: Photos) -> Order:
        """The order for queries (Q, E)."""
        return np.concatenate([self._of(part, photos) for part in _parts(finite_unit(texts, "texts"))])

    @abstractmethod
    def scores_of(self, to_query: np.ndarray, photos: Photos, few: np.ndarray) -> np.ndarray:
        """(n,) scores of the query's best photos `few`, of which it has the cosines `to_query` (n,)."""

    def _of(self, texts: np.ndarray, photos: Photos) -> Order:
        scores = photos.scores(texts)
        order = best_first(scores)
        found = [self.scores_of(scores[i, few], photos, few) for i, few in enumerate(order[:, : self.candidates])]
        return front_sorted(order, np.stack(found)) if found else order


@dataclass(frozen=True)
class Reciprocal(Front):
    """k-reciprocal encoding of each query's `candidates` best photos; those after keep the text's order.

    Sorts by (1 - share) J + share D_q; J is the Jaccard distance of encodings, see `reciprocal_distances`.
    """

    uses_other_queries: ClassVar[bool] = False
    k1: int = 20
    k2: int = 6
    share: float = 0.3
    candidates: int = 200

    def __post_init__(self):
        if min(self.k1, self.k2, self.candidates) < 1 or not 0 <= self.share <= 1:
            raise ConfigError(
                "k1, k2 and candidates must be at least 1, share in [0, 1], "
                f"got {self.k1}, {self.k2}, {self.candidates}, {self.share:g}"
            )

    def scores_of(self, to_query: np.ndarray, photos: Photos, few: np.ndarray) -> np.ndarray:
        cosines = np.block([[np.ones((1, 1)), to_query[None]], [to_query[:, None], photos.between(few)]])
        jaccard, distance = reciprocal_distances(cosines, self.k1, self.k2)
        return -((1 - self.share) * jaccard + self.share * distance)


def reciprocal_distances(cosines: np.ndarray, k1: int, k2: int) -> tuple[np.ndarray, np.ndarray]:
    """(n + 1, n + 1) cosines of a query and n photos, the query first → (n,) Jaccard distances and (n,) distances D_q.

    D = 2 - 2 cos, each column divided by its largest, transposed. N(i, k): the k nearest of i beside itself;
    R(i) = {j in N(i, k1): i in N(j, k1)}; for j in R(i), whose R½(j) is the same with round(k1 / 2), R(i) grows by R½(j)
    where more than two thirds of that are in R(i). V_ij = exp(-D_ij) on R(i), divided by its sum, then the mean of V over
    the k2 nearest of i. J = 1 - Σ min(V_q, V_i) / (2 - Σ min(V_q, V_i)).
    """
    distance = 2 - 2 * cosines
    distance = (distance / _or_one(distance.max(axis=0))).T
    nearest = np.argsort(distance, axis=1, kind="stable")
    near, nearer = (_mutual(nearest, k) for k in (k1, int(np.around(k1 / 2))))
    shared = near.astype(np.float64) @ nearer.T
    adds = near & (3 * shared > 2 * nearer.sum(axis=1))
    kept = near | ((adds.astype(np.float64) @ nearer) > 0)
    encoding = np.where(kept, np.exp(-distance), 0.0)
    encoding /= encoding.sum(axis=1, keepdims=True)
    encoding = encoding[nearest[:, :k2]].mean(axis=1)
    common = np.minimum(encoding[0], encoding[1:]).sum(axis=1)
    return 1 - common / (2 - common), distance[0, 1:]


def _mutual(nearest: np.ndarray, k: int) -> np.ndarray:
    """(n, n) true where each is among the first k + 1 of the other."""
    near = members(nearest[:, : k + 1], len(nearest))
    return near & near.T


def members(rows: np.ndarray, count: int) -> np.ndarray:
    """(n, k) ids → (n, count) true at a row's ids."""
    found = np.zeros((len(rows), count), bool)
    np.put_along_axis(found, rows, True, axis=1)
    return found


@dataclass(frozen=True)
class A3R(Front):
    """The re-ranking of A3R (CVPR 2023 workshop, traffic retrieval) among each query's `candidates` best photos.

    kNN: the k best, itself among them, of the query and of each photo. c_i: how many kNN(q) and kNN(i) share. Mutual
    photos p: the best photo is in kNN(p), and p in kNN(q). r_i: mutual photos in kNN(i), plus photos of kNN(q) that are
    mutual with i, plus 2 where i is mutual.

        bounded    S_i (1 + J)(1 + r / (2k + 2)),  J = c / (2k - c)
        quantised  S_i · (c + 2) / (2k - c - 2) · r / (2k - r), as published

    Faults of the published code, so that nobody meets them twice. (1) r / (2k - r) is infinite at r = 2k and negative
    above, so exactly the best photos of a tight cluster end last. (2) Its "query" among the photos is photo 0: the best
    match stands for the query in each test of mutuality; the bounded form keeps that. (3) Its adapted query is minus a
    principal component, whose sign depends on the release of scikit-learn: since 1.5 it is the query's opposite. Here
    `adapted_query` fixes the sign; `adapted` is the number of photos that it is made of, 0 for the text itself.
    """

    uses_other_queries: ClassVar[bool] = False
    k: int = 10
    candidates: int = 50
    adapted: int = 0
    form: Literal["bounded", "quantised"] = "bounded"

    def __post_init__(self):
        if self.k < 3 or self.candidates < 1 or self.adapted < 0:
            raise ConfigError(
                "k must be at least 3, candidates at least 1, adapted at least 0, "
                f"got {self.k}, {self.candidates}, {self.adapted}"
            )

    def scores_of(self, to_query: np.ndarray, photos: Photos, few: np.ndarray) -> np.ndarray:
        if self.adapted:
            query = adapted_query(to_query[: self.adapted], photos.features[few[: self.adapted]])
            to_query = photos.scores(query[None], few)[0]
        common, mutual = neighbour_counts(to_query, photos.between(few), self.k)
        if self.form == "bounded":
            return to_query * (1 + common / (2 * self.k - common)) * (1 + mutual / (2 * self.k + 2))
        with np.errstate(divide="ignore", invalid="ignore"):  # fault 1, as published
            factor = (common + 2) / (2 * self.k - common - 2) * (mutual / (2.0 * self.k - mutual))
            return to_query * factor


def neighbour_counts(to_query: np.ndarray, between: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) scores of candidates, best match first, (n, n) scores among them → (n,) c and (n,) r of `A3R`."""
    near = members(best_first(between)[:, :k], len(between))
    of_query = members(best_first(to_query)[None, :k], len(between))[0]
    mutual = near[:, 0] & of_query
    both = (near & near.T & of_query).sum(axis=1)
    return (near & of_query).sum(axis=1), (near & mutual).sum(axis=1) + both + 2 * mutual


def adapted_query(scores: np.ndarray, features: np.ndarray) -> np.ndarray:
    """(k,) text scores, (k, E) features of the best photos → (E,) the query that A3R adapts to the photos.

    First left singular vector of the photos' features as columns, weighted by scores that are scaled to [0, 1], each
    centred over its dimensions; its sign such that it points along their sum. The photo itself where all weigh alike.
    """
    span = scores.max() - scores.min()
    if not span > 0:
        return unit(features.sum(axis=0))
    weighted = features * ((scores - scores.min()) / span)[:, None]
    left, _, _ = np.linalg.svd((weighted - weighted.mean(axis=1, keepdims=True)).T, full_matrices=False)
    return left[:, 0] * (1.0 if left[:, 0] @ weighted.sum(axis=0) >= 0 else -1.0)


@dataclass(frozen=True)
class QueryBank:
    """Querybank normalisation with a dynamic inverted softmax: of photos that many captions like, less is made.

    A query whose best photo is also the best one of some caption of the bank is sorted by
    β s(q, g) - log Σ_b exp(β s(b, g)), others by s. The bank are training captions, never other queries: `order` takes
    them as `bank` (B, E).
    """

    uses_other_queries: ClassVar[bool] = False
    beta: float = 20.0

    def __post_init__(self):
        if not self.beta > 0:
            raise ConfigError(f"beta must be above 0, got {self.beta:g}")

    def order(self, texts: np.ndarray, photos: Photos, bank: np.ndarray | None = None) -> Order:
        """The order for queries (Q, E). Raises `DataError` without a bank."""
        if bank is None or not len(bank):
            raise DataError("the re-ranking querybank needs training captions, got none: name them, or take another")
        activated, liked = self._liked(finite_unit(bank, "captions of the bank"), photos)
        return np.concatenate(
            [self._of(part, photos, activated, liked) for part in _parts(finite_unit(texts, "texts"))]
        )

    def _of(self, texts: np.ndarray, photos: Photos, activated: np.ndarray, liked: np.ndarray) -> Order:
        scores = photos.scores(texts)
        normal = activated[scores.argmax(axis=1)] if scores.size else np.zeros(len(scores), bool)
        return best_first(np.where(normal[:, None], self.beta * scores - liked, scores))

    def _liked(self, bank: np.ndarray, photos: Photos) -> tuple[np.ndarray, np.ndarray]:
        """(G,) true for the best photo of some caption; (G,) log Σ_b exp(β s(b, g)), parts of the bank at a time."""
        activated, liked = np.zeros(len(photos.features), bool), np.full(len(photos.features), -np.inf)
        for part in _parts(bank):
            scores = photos.scores(part)
            activated[scores.argmax(axis=1)] = True
            liked = np.logaddexp(liked, np.logaddexp.reduce(self.beta * scores, axis=0))
        return activated, liked


Method = Plain | Expand | Reciprocal | A3R | QueryBank
METHODS: Mapping[str, type[Method]] = {
    "none": Plain,
    "expand": Expand,
    "reciprocal": Reciprocal,
    "a3r": A3R,
    "querybank": QueryBank,
}


def method_of(settings: Mapping[str, Any], place: str = "rerank") -> Method:
    """The method of settings such as {"kind": "expand", "k": 5}; `place` is what errors name. Raises `ConfigError`."""
    given = dict(settings)
    kind = given.pop("kind", "none")
    if kind not in METHODS:
        raise UnknownName("re-ranking", str(kind), METHODS)
    return build(METHODS[kind], given, place)


def rerank(method: Method, texts: np.ndarray, photos: Photos, bank: np.ndarray | None = None) -> Order:
    """(Q, E) queries → (Q, G) photos, best first. bank: (B, E) training captions, for the method `querybank`."""
    return method.order(texts, photos, bank) if isinstance(method, QueryBank) else method.order(texts, photos)
