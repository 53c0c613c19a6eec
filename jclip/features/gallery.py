"""A gallery in use: photos found by texts, photos and stored rows. Jittor is loaded only to encode a new text or photo."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.gallery_inputs import shown_path
from jclip.data.gallery_store import Store, made_by, open_store
from jclip.data.preprocess import Preprocess
from jclip.data.row_filters import parse_condition, rows_where
from jclip.errors import ConfigError, DataError
from jclip.features import gallery_index
from jclip.features import source as sources
from jclip.features.query_features import query_vectors
from jclip.functional.background import Background, background, sample_rows
from jclip.functional.near_pairs import groups_of, near_pairs
from jclip.functional.nearest import NotFinite, nearest, take
from jclip.prompts.query_terms import Query, parse_terms

QUERIES_AT_ONCE = 4096


@dataclass(frozen=True)
class Hit:
    """One photo that was found: its row, where it lies, score (cosine), deviations above the background, whether it stands
    out from it, caption and columns."""

    row: int
    path: str
    score: float
    z: float
    above: bool
    caption: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """The photos of one query, best first."""

    query: str
    hits: tuple[Hit, ...]
    background: Background


class Gallery:
    """Photos as features on disk: `Gallery.open("photos.gallery").search("two parrots")`."""

    def __init__(self, store: Store, root: str = "", source: sources.ModelSource | None = None):
        self.store, self.root, self._source = store, root or store.manifest.root, source
        self._filters: dict[tuple[str, ...], np.ndarray | None] = {}
        self._sample: np.ndarray | None = None

    @classmethod
    def open(cls, path: str | os.PathLike, root: str = "", source: sources.ModelSource | None = None) -> Gallery:
        """Opens a gallery's folder; nothing is read yet.

        root: where its photos lie now, if they were moved. source: the model, if it is at hand. Raises `DataError` for
        what is no gallery or is damaged.
        """
        return cls(open_store(path), root, source)

    def __len__(self) -> int:
        return len(self.store)

    @property
    def source(self) -> sources.ModelSource:
        """The gallery's model. Raises `ConfigError` where what has its name now is another."""
        if self._source is None:
            manifest = self.store.manifest
            seen = Preprocess.from_dict(manifest.preprocess)
            options = {"dtype": manifest.identity[2], "draft": seen.draft, "upright": seen.upright}
            found = sources.ModelSource(manifest.model, manifest.family or None, **options)
            if found.preprocess.size != seen.size:
                found = sources.ModelSource(manifest.model, manifest.family or None, image_size=seen.size, **options)
            found.preprocess = seen
            self._source = found
            check_model(self.store, found)
        return self._source

    def path_of(self, row: int) -> str:
        """Where a row's photo lies; of a tar's photo `tar::member`."""
        return os.path.join(self.root, shown_path(self.store.rows[row]))  # noqa: PTH118

    def search(
        self,
        query: str | Sequence[str] | Query | np.ndarray,
        top: int = 10,
        where: Sequence[str] = (),
        unique: float | None = None,
        cut: bool = False,
        **options: Any,
    ) -> Found:
        """The `top` photos of one query: a text, terms as `jclip search` takes them, or a feature (E,).

        where: conditions on columns, such as "year>=2020". unique: photos with a higher cosine to a better one are hidden.
        cut: only what stands out from the query's background. Others as in `search_many`.
        """
        return next(self.search_many([query], top, where, unique, cut, **options))

    def search_many(
        self,
        queries: Sequence[str | Sequence[str] | Query | np.ndarray],
        top: int = 10,
        where: Sequence[str] = (),
        unique: float | None = None,
        cut: bool = False,
        *,
        line: float | None = None,
        rewrite: Callable[[str], str] = str,
        truncate: bool = False,
        exact: bool = False,
    ) -> Iterator[Found]:
        """As `search`, query by query, encoded and searched together.

        line: deviations above the background where the line stands, by default where chance leaves one photo above.
        rewrite: applied to texts (`jclip.prompts.query_rules`). exact: an index is not used. Raises `ConfigError`,
        `UnknownName` and `DataError`.
        """
        vectors = self._vectors(queries, rewrite, truncate)
        rows = self._rows_where(where)
        for at in range(0, len(vectors), QUERIES_AT_ONCE):
            some = vectors[at : at + QUERIES_AT_ONCE]
            grounds = some @ self._background_sample().T
            for place, (ids, scores) in enumerate(self._found(some, top, rows, unique, exact)):
                ground = background(grounds[place], len(self), line)
                yield Found(_name(queries[at + place]), self._hits(ids, scores, ground, cut), ground)

    def duplicates(self, least: float = 0.98) -> list[list[int]]:
        """Groups of rows whose cosines reach `least`, photos of equal bytes among them; each connected by such pairs."""
        return groups_of(near_pairs(self.store.parts, least), len(self))

    def _vectors(self, queries: Sequence, rewrite: Callable[[str], str], truncate: bool) -> np.ndarray:
        width = self.store.manifest.width
        vectors = np.zeros((len(queries), width), np.float32)
        spoken = [i for i, query in enumerate(queries) if not isinstance(query, np.ndarray)]
        for i, query in enumerate(queries):
            if isinstance(query, np.ndarray):
                vectors[i] = _direction(query, width)
        if spoken:
            parsed = [_parsed(queries[i]) for i in spoken]
            vectors[spoken] = query_vectors(parsed, self.store, lambda: self.source, rewrite, truncate)
        return vectors

    def _rows_where(self, where: Sequence[str]) -> np.ndarray | None:
        key = tuple(where)
        if key not in self._filters:
            self._filters[key] = rows_where(self.store, [parse_condition(text) for text in where])
        return self._filters[key]

    def _background_sample(self) -> np.ndarray:
        if self._sample is None:
            self._sample = take(self.store.parts, sample_rows(len(self)))
        return self._sample

    def _nearest(self, vectors: np.ndarray, top: int, rows: np.ndarray | None, exact: bool):
        try:
            if not exact and rows is None and (index := gallery_index.open_index(self.store)):
                return index.nearest(vectors, top)
            return nearest(self.store.parts, vectors, top, rows)
        except NotFinite as e:
            raise DataError(f"{self.store.folder}: {e}: its features are damaged, embed the photos again") from None

    def _found(self, vectors, top, rows, unique, exact) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if unique is None:
            yield from zip(*self._nearest(vectors, top, rows, exact), strict=True)
            return
        for vector in vectors:
            yield self._unlike(vector[None], top, rows, unique, exact)

    def _unlike(self, vector, top: int, rows, unique: float, exact: bool) -> tuple[np.ndarray, np.ndarray]:
        """The best rows, none of which is near to a better one."""
        total, asked = len(self) if rows is None else len(rows), 2 * top
        while True:
            (ids,), (scores,) = self._nearest(vector, asked, rows, exact)
            kept = _apart(take(self.store.parts, ids), unique, top)
            if len(kept) >= top or len(ids) >= total or len(ids) < asked:
                return ids[kept], scores[kept]
            asked *= 4

    def _hits(self, ids: np.ndarray, scores: np.ndarray, ground: Background, cut: bool) -> tuple[Hit, ...]:
        z, above = ground.z(scores), ground.above(scores)
        hits = []
        for row, score, own, out in zip(ids.tolist(), scores.tolist(), z.tolist(), above.tolist(), strict=True):
            if out or not cut:
                found = self.store.rows[row]
                path = os.path.join(self.root, shown_path(found))  # noqa: PTH118
                hits.append(Hit(row, path, score, own, out, found["caption"], found["columns"]))
        return tuple(hits)


def check_model(store: Store, source: sources.ModelSource) -> None:
    """Raises `ConfigError` unless the model and its preprocessing are those of the gallery."""
    if store.manifest.made_by == made_by(source.identity, source.preprocess.to_dict()):
        return
    same = made_by(source.identity, {}) == made_by(store.manifest.identity, {})
    raise ConfigError(
        f"{store.folder} was made with {store.manifest.model}, and queries must have the same "
        f"{'preprocessing' if same else 'weights'}, got {source.checkpoint.path}: name the gallery's own model, or embed again"
    )


def _parsed(query: str | Sequence[str] | Query) -> Query:
    if isinstance(query, Query):
        return query
    return parse_terms([query] if isinstance(query, str) else list(query))


def _name(query: object) -> str:
    if isinstance(query, np.ndarray):
        return "feature"
    return query.name if isinstance(query, Query) else query if isinstance(query, str) else " ".join(query)


def _direction(query: np.ndarray, width: int) -> np.ndarray:
    query = np.asarray(query, np.float32)
    length = np.linalg.norm(query)
    if query.shape != (width,) or not np.isfinite(length) or length == 0:
        raise ConfigError(f"a feature must hold {width} finite numbers, not all zero, got shape {query.shape}")
    return query / length


def _apart(features: np.ndarray, most: float, top: int) -> list[int]:
    """Places of the first `top` rows (n, E) whose cosine with no kept one before is above `most`."""
    kept: list[int] = []
    chosen = np.empty((min(top, len(features)), features.shape[1]), np.float32)
    for place, feature in enumerate(features):
        if not (chosen[: len(kept)] @ feature > most).any():
            chosen[len(kept)] = feature
            kept.append(place)
            if len(kept) == top:
                break
    return kept
