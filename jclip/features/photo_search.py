"""Queries answered from a gallery: rewritten by rules, encoded once, sorted, and sorted again by a re-ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from jclip.data.loader import OnError
from jclip.data.photo_queries import PhotoSearch
from jclip.data.splits import Split
from jclip.errors import DataError
from jclip.features import extraction, heads
from jclip.features.source import ModelSource
from jclip.functional.ranking_metrics import front_report
from jclip.functional.reranking import Method, Photos, Plain, QueryBank, rerank
from jclip.prompts.query_rules import QueryRules

Flips = Literal["none", "max", "mean"]
AT_ONCE = 256  # queries whose whole order is in memory


@dataclass(frozen=True)
class SearchedWith:
    """How queries are answered. rules: how a text is rewritten before it is encoded. flips: how mirrored photos count."""

    rules: QueryRules
    method: Method = field(default_factory=Plain)
    flips: Flips = "none"

    @property
    def uses_other_queries(self) -> bool:
        """Whether an answer depends on what else is asked."""
        return bool(self.method.uses_other_queries)


@dataclass(frozen=True)
class SearchFeatures:
    """A search by a model: features come from the cache where they are there, and are computed when they are asked for.

    bank: training captions, for `querybank`. Photos that do not decode stop the search, or with on_error "skip" are never
    found.
    """

    source: ModelSource
    search: PhotoSearch
    bank: tuple[str, ...] = ()
    on_error: OnError = "stop"
    _kept: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    def texts(self, texts: Sequence[str], rules: QueryRules) -> np.ndarray:
        """(n, E) of length one. Each distinct text is encoded once; one that is too long is cut off."""
        said = [rules(text) for text in texts]
        distinct = {text: number for number, text in enumerate(dict.fromkeys(said))}
        if empty := [text for text, made in zip(texts, said, strict=True) if not made.strip()]:
            raise DataError(f"a query must keep some words behind its rules, got none of {empty[0]!r:.80}")
        embedded, _ = heads.prompt_embeddings(self.source, [[text] for text in distinct], truncate=True)
        return embedded[[distinct[text] for text in said]]

    def photos(self, flips: Flips) -> tuple[list[str], Photos]:
        """Names of the photos that decoded, and their features."""
        rows, plain = self._features("none")
        names = [self.search.names[row] for row in rows]
        return names, Photos(plain) if flips == "none" else Photos(plain, self._features("mirror")[1], flips)

    def _features(self, view: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows and features in that view; kept here as well, since the cache keeps none where a photo was skipped."""
        if view not in self._kept:
            split = Split(self.search.photos, np.full(len(self.search.photos), -1, np.int32))
            label = "gallery" if view == "none" else "gallery, mirrored"
            self._kept[view] = extraction.extract(self.source, split, augment=view, on_error=self.on_error, label=label)
            rows, features = self._kept[view]
            heads.check_directions(features, [split.paths[row] for row in rows])
        return self._kept[view]

    def found(self, how: SearchedWith, depth: int = 10) -> list[list[str]]:
        """Of each query the names of its `depth` best photos, best first; equal ones in the gallery's order."""
        texts = self.texts(self.search.texts, how.rules)
        names, photos = self.photos(how.flips)
        bank = self.texts(self.bank, how.rules) if isinstance(how.method, QueryBank) else None
        step = max(1, len(texts)) if how.uses_other_queries else AT_ONCE
        best = [rerank(how.method, texts[i : i + step], photos, bank)[:, :depth] for i in range(0, len(texts), step)]
        return [[names[row] for row in rows] for part in best for rows in part]

    def figures(self, how: SearchedWith, depth: int = 10) -> dict[str, float]:
        """Both mean average precisions, see `front_report`. Raises `DataError` where no right photos are known."""
        if self.search.wanted is None:
            raise DataError("figures of a search need the right photos of each query, got none")
        return front_report(self.found(how, depth), self.search.wanted, depth)
