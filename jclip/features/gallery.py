"""A gallery in use: photos found by texts, photos and stored rows. Jittor is loaded only to encode a new text or photo."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from jclip.data.gallery_inputs import photo_address, shown_path
from jclip.data.gallery_store import Store, made_by, open_store
from jclip.data.row_filters import parse_condition, rows_where
from jclip.errors import CheckpointError, ConfigError, DataError
from jclip.features import gallery_index
from jclip.features import source as sources
from jclip.features.concepts import read_concept
from jclip.features.gallery_ranking import Ranking, Reranker
from jclip.features.query_features import direction, photo_features, query_vectors
from jclip.functional.background import Background, background, sample_rows
from jclip.functional.near_pairs import groups_of, near_pairs
from jclip.functional.nearest import NotFinite, nearest, take
from jclip.prompts.query_terms import Query, parse_terms

QUERIES_AT_ONCE = 4096
COMPARED = 256  # photos at once, with all that are kept; so many at least are looked at for near-duplicates
Asked = str | Sequence[str] | Query | np.ndarray
Answer = tuple[np.ndarray, np.ndarray]  # rows (n,) and cosines (n,), best first
Unlike = tuple[np.ndarray, np.ndarray, Sequence[int]]  # the same, and how many near-duplicates each of them hides


@dataclass(frozen=True)
class Hit:
    """One photo that was found: its row, where it lies, score (cosine), deviations above the query's background, whether it
    stands out from it, caption and columns. hidden: photos among the best that are not shown, being near-duplicates of it."""

    row: int
    path: str
    score: float
    z: float
    above: bool
    caption: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    hidden: int = 0


@dataclass(frozen=True)
class Found:
    """The photos of one query, best first, and where its background ends."""

    query: str
    hits: tuple[Hit, ...]
    background: Background
    uses_other_queries: bool = False


@dataclass(frozen=True)
class Search:
    """What is asked for.

    top, page: photos of a page, and which page, from 1. where: conditions on columns, such as "year>=2020". unique: photos
    with a higher cosine to a better one are hidden. cut: only what stands out from the query's background. line: deviations
    above the background where it ends, by default where chance leaves one photo above. rewrite: applied to texts
    (`jclip.prompts.query_rules`). truncate: cut texts that are too long. ranking: how photos are sorted. exact: an index is
    not used. Raises `ConfigError`.
    """

    top: int = 10
    page: int = 1
    where: Sequence[str] = ()
    unique: float | None = None
    cut: bool = False
    line: float | None = None
    rewrite: Callable[[str], str] = str
    truncate: bool = False
    ranking: Ranking = field(default_factory=Ranking)
    exact: bool = False

    def __post_init__(self):
        if self.top < 1 or self.page < 1:
            raise ConfigError(f"top and page must be at least 1, got {self.top} and {self.page}")
        if self.unique is not None and not 0 <= self.unique <= 1:
            raise ConfigError(f"unique must be a cosine in [0, 1], got {self.unique:g}")
        if isinstance(self.where, str):
            raise ConfigError(
                f"where must be a list of conditions, got the text {self.where!r:.60}: put it into a list"
            )

    @property
    def count(self) -> int:
        """Photos up to the end of the page."""
        return self.top * self.page


class Gallery:
    """Photos as features on disk: `Gallery.open("photos.gallery").search("two parrots")`."""

    def __init__(self, store: Store, root: str = "", source: sources.ModelSource | None = None):
        self.store, self._source = store, source
        self.root = os.path.abspath(root or store.manifest.root)  # noqa: PTH100 - links stay
        if source is not None:
            check_model(store, source)
        self._filters: dict[tuple[str, ...], np.ndarray | None] = {}
        self._reranker: tuple[Ranking, Reranker] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike, root: str = "", source: sources.ModelSource | None = None) -> Gallery:
        """Opens a gallery's folder; nothing is read yet.

        root: where its photos lie now, if they were moved. source: the model, if it is at hand. Raises `DataError` for
        what is no gallery or is damaged, `ConfigError` for another model or preprocessing than the gallery's.
        """
        return cls(open_store(path), root, source)

    def __len__(self) -> int:
        return len(self.store)

    @property
    def source(self) -> sources.ModelSource:
        """The gallery's model. Raises `ConfigError` where what has its name now is another, `CheckpointError` for none."""
        if self._source is None:
            try:
                found = self.model_as_stated()
            except CheckpointError as e:
                raise CheckpointError(
                    f"{e}; {self.store.folder} was made with it: name where it is by --model"
                ) from None
            check_model(self.store, found)
            self._source = found
        return self._source

    def model_as_stated(self, model: str = "") -> sources.ModelSource:
        """The model of that name, by default the gallery's, with the dtype and preprocessing that the gallery states."""
        manifest = self.store.manifest
        return sources.source_as_stated(
            model or manifest.model, manifest.family, manifest.identity[2], manifest.preprocess
        )

    def with_model(self, model: str) -> Gallery:
        """The same gallery, searched with the weights of that name or file. Raises `ConfigError` for other ones."""
        return Gallery(self.store, self.root, self.model_as_stated(model))

    def path_of(self, row: int) -> str:
        """Where a row's photo lies; of a tar's photo `tar::member`."""
        return os.path.join(self.root, shown_path(self.store.rows[row]))  # noqa: PTH118

    def photo_at(self, row: int) -> str:
        """What `jclip.data.photo_file.open_photo` opens a row's photo by, in a tar as well."""
        return photo_address(self.root, self.store.rows[row])

    def search(self, query: Asked, top: int = 10, **options: Any) -> Found:
        """The `top` photos of one query: a text, terms as `jclip search` takes them, or a feature (E,).

        options: as `Search` has them.
        """
        return next(self.search_many([query], Search(top, **options)))

    def search_many(self, queries: Sequence[Asked], search: Search | None = None) -> Iterator[Found]:
        """Photos of each query, in order, encoded and searched together. Raises `ConfigError`, `UnknownName`, `DataError`."""
        search = search or Search()
        rows = self._rows_where(search.where)
        vectors = self._vectors(queries, search)
        step = len(vectors) if search.ranking.uses_other_queries else QUERIES_AT_ONCE
        for at in range(0, len(vectors), max(step, 1)):
            some = vectors[at : at + step]
            grounds = some @ self._sample.T
            for place, answer in enumerate(self._answers(some, rows, search)):
                ground = background(grounds[place], len(self), search.line)
                if search.line is None:
                    ground = _of_concept(queries[at + place], ground)
                hits = self._hits(*answer, ground, search)
                yield Found(_name(queries[at + place]), hits, ground, search.ranking.uses_other_queries)

    def duplicates(self, least: float = 0.98) -> list[list[int]]:
        """Groups of rows whose cosines reach `least`, photos of equal bytes among them; each connected by such pairs."""
        return groups_of(near_pairs(self.store.parts, least), len(self))

    def _vectors(self, queries: Sequence[Asked], search: Search) -> np.ndarray:
        width = self.store.manifest.width
        vectors = np.zeros((len(queries), width), np.float32)
        spoken = [i for i, query in enumerate(queries) if not isinstance(query, np.ndarray)]
        for i, query in enumerate(queries):
            if isinstance(query, np.ndarray):
                vectors[i] = direction(query, width)
        if spoken:
            parsed = [_parsed(queries[i]) for i in spoken]
            vectors[spoken] = query_vectors(parsed, self.store, lambda: self.source, search.rewrite, search.truncate)
        return vectors

    def _rows_where(self, where: Sequence[str]) -> np.ndarray | None:
        key = tuple(where)
        if key not in self._filters:
            self._filters[key] = rows_where(self.store, [parse_condition(text) for text in where])
        return self._filters[key]

    @cached_property
    def left_out(self) -> list[dict[str, str]]:
        """Photos without a row, which could not be read: path and reason of each."""
        return [*self.store.skipped()]

    @cached_property
    def _sample(self) -> np.ndarray:
        return take(self.store.parts, sample_rows(len(self)))

    def _mirrored(self, rows: np.ndarray) -> np.ndarray:
        photos = [self.photo_at(row) for row in rows.tolist()]
        return photo_features(self.source, photos, True, [self.store.rows[row]["sha256"] for row in rows.tolist()])

    def _answers(self, vectors: np.ndarray, rows: np.ndarray | None, search: Search) -> Iterator[Unlike]:
        """Rows, cosines and what each row hides, of each query, up to the end of the page."""
        try:
            if not search.ranking.plain:
                yield from self._reranked(vectors, rows, search)
            elif search.unique is None:
                for ids, scores in zip(*self._nearest(vectors, search.count, rows, search.exact), strict=True):
                    yield ids, scores, ()
            else:
                for vector in vectors:
                    yield self._unlike(vector[None], rows, search)
        except NotFinite as e:
            raise DataError(f"{self.store.folder}: {e}: its features are damaged, embed the photos again") from None

    def _nearest(self, vectors: np.ndarray, top: int, rows: np.ndarray | None, exact: bool) -> Answer:
        if not exact and rows is None and (index := gallery_index.open_index(self.store)):
            return index.nearest(vectors, top)
        return nearest(self.store.parts, vectors, top, rows)

    def _reranked(self, vectors: np.ndarray, rows: np.ndarray | None, search: Search) -> Iterator[Unlike]:
        if self._reranker is None or self._reranker[0] is not search.ranking:
            self._reranker = search.ranking, Reranker(self.store, search.ranking, self._mirrored)
        most = search.count if search.unique is None else len(self)
        for ids, scores in self._reranker[1].orders(vectors, rows, most):
            hidden: list[int] = []
            if search.unique is not None:
                kept, hidden = apart(lambda some: take(self.store.parts, some), ids, search.unique, search.count)
                ids, scores = ids[kept], scores[kept]
            yield ids, scores, hidden

    def _unlike(self, vector: np.ndarray, rows: np.ndarray | None, search: Search) -> Unlike:
        """The best rows, none of which is near to a better one."""
        total, asked = len(self) if rows is None else len(rows), max(2 * search.count, COMPARED)
        while True:
            (ids,), (scores,) = self._nearest(vector, asked, rows, search.exact)
            kept, hidden = apart(lambda some: take(self.store.parts, some), ids, search.unique, search.count)
            if len(kept) >= search.count or len(ids) >= total:
                return ids[kept], scores[kept], hidden
            asked *= 4

    def _hits(
        self, ids: np.ndarray, scores: np.ndarray, hidden: Sequence[int], ground: Background, search: Search
    ) -> tuple[Hit, ...]:
        first = search.top * (search.page - 1)
        ids, scores = ids[first:], scores[first:]
        hidden = hidden[first:] if hidden else [0] * len(ids)
        z, above = ground.z(scores), ground.above(scores)
        hits = []
        figures = zip(ids.tolist(), scores.tolist(), z.tolist(), above.tolist(), hidden, strict=True)
        for row, score, own, out, alike in figures:
            if out or not search.cut:
                found = self.store.rows[row]
                path = os.path.join(self.root, shown_path(found))  # noqa: PTH118
                hits.append(Hit(row, path, score, own, out, found["caption"], found["columns"], alike))
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


def _of_concept(query: Asked, ground: Background) -> Background:
    """The background of a query that is one concept ends where the concept's own line is."""
    terms = () if isinstance(query, np.ndarray) else _parsed(query).terms
    if len(terms) != 1 or terms[0].kind != "concept" or terms[0].weight < 0 or not ground.deviation > 0:
        return ground
    least = np.nextafter(read_concept(terms[0].value).head.threshold, np.inf)
    return replace(ground, line=float((least - ground.middle) / ground.deviation))


def _name(query: Asked) -> str:
    if isinstance(query, np.ndarray):
        return "feature"
    return query.name if isinstance(query, Query) else query if isinstance(query, str) else " ".join(query)


def apart(
    features: Callable[[np.ndarray], np.ndarray], ids: np.ndarray, most: float, top: int
) -> tuple[list[int], list[int]]:
    """Places of the first `top` rows `ids` whose cosine with no kept one before is above `most`, and how many of the rows
    that were looked at each of them hides, being the first that they are near to.

    features: rows (n,) → (n, E), of length one.
    """
    kept: list[int] = []
    hidden: list[int] = []
    chosen = np.zeros((0, 0), np.float32)
    for start in range(0, len(ids), COMPARED):
        block = features(ids[start : start + COMPARED])
        chosen = chosen if len(chosen) else np.zeros((0, block.shape[1]), np.float32)
        own: list[int] = []
        near, alike = block @ chosen.T > most, block @ block.T > most
        for place in range(len(block)):
            if (before := np.concatenate([near[place], alike[place, own]])).any():
                hidden[int(before.argmax())] += 1
            elif len(hidden) < top:
                own.append(place)
                hidden.append(0)
        kept += [start + place for place in own]
        if len(kept) == top:
            break
        chosen = np.concatenate([chosen, block[own]])
    return kept, hidden
