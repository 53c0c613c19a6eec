"""The order in which a gallery's photos answer a query: by cosine, or re-ranked, mirrored photos counted where asked for.

By cosine nothing but the best rows is kept. The re-rankings of `jclip.functional.reranking` compare all photos, so they
see the whole of a gallery up to `WHOLE` rows, and of a larger one each query's best candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from jclip.config import apply_overrides
from jclip.data.gallery_store import Store
from jclip.errors import ConfigError, quoted
from jclip.functional.nearest import nearest, take
from jclip.functional.reranking import Method, Photos, Plain, QueryBank, method_of, rerank

Flips = Literal["none", "max", "mean"]
Mirrored = Callable[[np.ndarray], np.ndarray]  # rows (n,) → features (n, E) of their mirror images
WHOLE = 50_000  # rows: 200 MB of float64 at 512 dimensions
FLIPPED = 200  # candidates whose mirror images are encoded
AT_ONCE = 64  # queries
MOST_ORDERS = 1 << 27  # row numbers of all queries' orders together


@dataclass(frozen=True)
class Ranking:
    """How answers are sorted: a re-ranking, its bank of captions (B, E) where it needs one, mirrored photos.

    flips: "max" takes the better of a photo and its mirror image in each comparison, "mean" their mean as the photo.
    candidates: each query's best photos by cosine that are sorted anew; 0 for all of up to `WHOLE` rows, with mirrored
    photos for `FLIPPED`. Raises `ConfigError`.
    """

    method: Method = field(default_factory=Plain)
    bank: np.ndarray | None = None
    flips: Flips = "none"
    candidates: int = 0

    def __post_init__(self):
        if self.candidates < 0:
            raise ConfigError(f"candidates must be at least 1, or 0 for the default, got {self.candidates}")
        if isinstance(self.method, QueryBank) and (self.bank is None or not len(self.bank)):
            raise ConfigError("the re-ranking querybank needs training captions: name a file of them by --bank")

    @property
    def plain(self) -> bool:
        """Whether the cosine alone decides."""
        return isinstance(self.method, Plain) and self.flips == "none"

    @property
    def uses_other_queries(self) -> bool:
        """Whether an answer depends on what else is asked in the same call."""
        return bool(self.method.uses_other_queries)

    @property
    def needs_all(self) -> bool:
        """Whether candidates alone are not enough."""
        return self.uses_other_queries or isinstance(self.method, QueryBank)

    def count(self, total: int) -> int:
        """How many of `total` photos are sorted anew. Raises `ConfigError` where that must be all and is not."""
        count = min(total, self.candidates or (WHOLE if self.flips == "none" else FLIPPED))
        if count < total and self.needs_all:
            raise ConfigError(
                f"this re-ranking compares all {total:,} photos, and {count:,} are its candidates: set --candidates "
                f"{total}, or take another"
            )
        return count


def parse_method(text: str) -> Method:
    """A re-ranking of its name and settings: `expand`, `expand,k=5,mix=0.6`. Raises `ConfigError`, `UnknownName`."""
    kind, *settings = text.split(",")
    if bad := [setting for setting in settings if "=" not in setting]:
        raise ConfigError(f"a re-ranking must be a name and settings such as expand,k=5, got {quoted(bad[0], 60)}")
    return method_of({**apply_overrides({}, settings), "kind": kind.strip()}, "--rerank")


class Reranker:
    """Sorts photos of a gallery anew; features that were read are kept for the next query."""

    def __init__(self, store: Store, ranking: Ranking, mirrored: Mirrored):
        self._store, self._ranking, self._mirrored = store, ranking, mirrored
        self._whole: tuple[bytes, Photos] | None = None

    def orders(
        self, vectors: np.ndarray, rows: np.ndarray | None, most: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each query (Q, E) rows and cosines, best first, at most `most`; rows: those that count, by default all."""
        total = len(self._store) if rows is None else len(rows)
        count = self._ranking.count(total)
        if count < total:
            ids, _ = nearest(self._store.parts, vectors, count, rows)
            mirrored = self._mirrored_of(ids)
            for vector, own in zip(vectors, ids, strict=True):
                photos = self._photos(own, None if mirrored is None else mirrored[own])
                (order,) = rerank(self._ranking.method, vector[None], photos, self._ranking.bank)
                yield _best(vector, photos, own, order[:most])
            return
        own = np.arange(total) if rows is None else rows
        photos = self._all(own)
        step = len(vectors) if self._ranking.uses_other_queries else AT_ONCE
        if step * total > MOST_ORDERS:
            raise ConfigError(
                f"{step:,} queries that depend on each other and {total:,} photos are too many at once: ask fewer"
            )
        for at in range(0, len(vectors), step):
            some = vectors[at : at + step]
            for vector, order in zip(some, rerank(self._ranking.method, some, photos, self._ranking.bank), strict=True):
                yield _best(vector, photos, own, order[:most])

    def _all(self, own: np.ndarray) -> Photos:
        key = own.tobytes()
        if self._whole is None or self._whole[0] != key:
            mirrored = self._mirrored_of(own)
            self._whole = key, self._photos(own, None if mirrored is None else mirrored[own])
        return self._whole[1]

    def _mirrored_of(self, ids: np.ndarray) -> _ByRow | None:
        if self._ranking.flips == "none":
            return None
        distinct = np.unique(ids)
        return _ByRow(distinct, self._mirrored(distinct))

    def _photos(self, ids: np.ndarray, mirrored: np.ndarray | None) -> Photos:
        flips = "max" if self._ranking.flips == "none" else self._ranking.flips
        return Photos(take(self._store.parts, ids), mirrored, flips)


@dataclass(frozen=True)
class _ByRow:
    rows: np.ndarray  # ascending
    features: np.ndarray

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        return self.features[np.searchsorted(self.rows, ids)]


def _best(vector: np.ndarray, photos: Photos, ids: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (scores,) = photos.scores(np.asarray(vector, np.float64)[None], order)
    return ids[order], scores.astype(np.float32)
