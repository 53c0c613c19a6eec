"""Queries as vectors: texts, photos and stored rows, each of length one, added and subtracted with their weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jclip.data.augment import Views
from jclip.data.gallery_store import Store
from jclip.errors import ConfigError, DataError
from jclip.features import extraction, half_models, heads
from jclip.features.cached import read_cached
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.functional.nearest import take
from jclip.paths import cache_dir
from jclip.prompts import tokenizer
from jclip.prompts.query_terms import Query, Term
from jclip.readers import safetensors

LEAST_LENGTH = 1e-4  # of a sum of terms: below it they cancel, and what is left is rounding


def query_vectors(
    queries: Sequence[Query],
    store: Store,
    source: Callable[[], ModelSource],
    rewrite: Callable[[str], str] = str,
    truncate: bool = False,
) -> np.ndarray:
    """(Q, E) float32, rows of length one: norm(Σ weight · term).

    source: opens the gallery's model, and is asked only where there are texts or photos. rewrite: of texts, before they
    are encoded. Raises `ConfigError` where terms cancel, `DataError` for a row that is not there, a photo that does not
    decode, a text that is too long.
    """
    vectors = np.zeros((len(queries), store.manifest.width), np.float32)
    by_kind = {kind: [t for q in queries for t in q.terms if t.kind == kind] for kind in ("text", "photo", "row")}
    features: dict[Term, np.ndarray] = {}
    if texts := by_kind["text"]:
        encoded = text_features(source(), [rewrite(term.value) for term in texts], truncate)
        features.update(zip(texts, encoded, strict=True))
    if photos := by_kind["photo"]:
        features.update(zip(photos, photo_features(source(), [term.value for term in photos]), strict=True))
    for term in by_kind["row"]:
        features[term] = _stored(store, int(term.value))
    for place, query in enumerate(queries):
        for term in query.terms:
            vectors[place] += np.float32(term.weight) * features[term]
        largest = max(abs(term.weight) for term in query.terms)
        if np.linalg.norm(vectors[place]) < LEAST_LENGTH * largest:
            raise ConfigError(f"the terms of {query.name[:80]!r} cancel each other: change a weight")
    return unit(vectors)


def _stored(store: Store, row: int) -> np.ndarray:
    if row >= len(store):
        raise DataError(f"row:{row} must be in [0, {len(store) - 1}], the rows of {store.folder}")
    return unit(take(store.parts, np.array([row])))[0]


def text_features(source: ModelSource, texts: Sequence[str], truncate: bool = False) -> np.ndarray:
    """(T, E) features of length one, each text cached by itself; the text tower is loaded only for new ones."""
    files = {text: _file_of(source, text, truncate) for text in texts}
    found = {text: read_cached(file, ("feature",)) for text, file in files.items()}
    new = [text for text, saved in found.items() if saved is None]
    if new:
        if source.config.text is None:
            raise ConfigError(f"{source.checkpoint.path} must hold a text tower for text queries, got an image tower alone")
        tokens = tokenizer.tokenize_for(source.config.text, new, truncate)
        encoded = heads.encode_prompts(half_models.load_half(source, "text"), tokens)
        heads.check_directions(encoded, new)
        for text, feature in zip(new, unit(encoded), strict=True):
            found[text] = {"feature": feature}
            safetensors.write(files[text], found[text])
    return np.stack([found[text]["feature"] for text in texts])


def photo_features(source: ModelSource, paths: Sequence[str]) -> np.ndarray:
    """(P, E) features of length one of photos. Raises `DataError` for one that does not decode."""
    model = half_models.load_half(source, "vision")
    batches = extraction.encoded_batches(model, tuple(paths), Views(source.preprocess), "stop")
    return unit(np.concatenate([features for _, features in batches]))


def _file_of(source: ModelSource, text: str, truncate: bool) -> Path:
    made_of = [source.text_identity, "openai-bpe", "query", truncate, text]
    return cache_dir("queries") / f"{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()}.safetensors"
