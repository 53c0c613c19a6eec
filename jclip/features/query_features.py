"""Queries as vectors: texts, photos and stored rows, each of length one, added and subtracted with their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from jclip import paths
from jclip.data.augment import AUGMENTS, Views
from jclip.data.gallery_store import Store, map_array
from jclip.data.photo_file import header
from jclip.data.photo_hashes import is_hash, photo_hashes
from jclip.errors import ConfigError, DataError, quoted
from jclip.features import extraction, half_models, heads
from jclip.features.cached import key_of, read_cached
from jclip.features.concepts import read_concept
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.functional.nearest import take
from jclip.prompts.query_terms import Kind, Query
from jclip.prompts.scripts import warn_unread
from jclip.readers import safetensors

APART = 64  # texts up to which each has a cache file of its own
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
    are encoded. Raises `ConfigError` where terms cancel, `DataError` for a row that is not there or damaged, a photo that
    does not decode, a text that is too long.
    """
    terms = dict.fromkeys(term for query in queries for term in query.terms)
    by_kind = {kind: [t.value for t in terms if t.kind == kind] for kind in get_args(Kind)}
    features: dict[tuple[str, str], np.ndarray] = {}
    if texts := list(dict.fromkeys(by_kind["text"])):
        encoded = text_features(source(), [rewrite(text) for text in texts], truncate)
        features.update(zip((("text", t) for t in texts), encoded, strict=True))
    if photos := list(dict.fromkeys(by_kind["photo"])):
        features.update(zip((("photo", p) for p in photos), photo_features(source(), photos), strict=True))
    features.update({("row", row): _stored(store, int(row)) for row in by_kind["row"]})
    for path in by_kind["concept"]:
        concept = read_concept(path)
        concept.check_gallery(store.manifest, str(store.folder))
        features["concept", path] = concept.head.vector
    features.update({("feature", path): read_feature(Path(path), store.manifest.width) for path in by_kind["feature"]})
    return np.stack([_sum(query, features) for query in queries])


def _sum(query: Query, features: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
    """(E,) of length one. Raises `ConfigError` where its terms cancel."""
    total = sum(np.float32(term.weight) * features[term.kind, term.value] for term in query.terms)
    largest = max(abs(term.weight) for term in query.terms)
    if np.linalg.norm(total) < LEAST_LENGTH * largest:
        raise ConfigError(f"the terms of {quoted(query.name, 80)} cancel each other: change a weight")
    return unit(total).astype(np.float32)


def _stored(store: Store, row: int) -> np.ndarray:
    if row >= len(store):
        raise DataError(f"row:{row} must be in [0, {len(store) - 1}]: there are {len(store):,} rows")
    return direction(take(store.parts, np.array([row]))[0], store.manifest.width, f"row {row} of {store.folder}")


def read_feature(path: Path, width: int) -> np.ndarray:
    """(E,) float32 of length one from a .npy file of (E,) or (1, E). Raises `DataError` for another shape or no numbers."""
    found = map_array(path)
    if found.dtype.kind not in "fiu":
        raise DataError(f"{path} must hold numbers, got {found.dtype}")
    return direction(found[0] if found.ndim == 2 and len(found) == 1 else found, width, str(path))


def direction(feature: np.ndarray, width: int, place: str = "a feature") -> np.ndarray:
    """(E,) float32 of length one. Raises `DataError` for another shape, NaN, infinity and zeros."""
    feature = np.asarray(feature, np.float64)
    length = np.linalg.norm(feature)
    if feature.shape != (width,) or not np.isfinite(length) or length == 0:
        held = f"shape {feature.shape}" if feature.shape != (width,) else "zeros" if length == 0 else "NaN or infinity"
        raise DataError(f"{place} must hold {width} finite numbers, not all 0, got {held}")
    return (feature / length).astype(np.float32)


def text_features(source: ModelSource, texts: Sequence[str], truncate: bool = False) -> np.ndarray:
    """(T, E) features of length one, cached: of few texts each by itself, of many all together.

    The text tower is loaded only for new ones. Raises `ConfigError` for a model without one, `DataError` for a text that
    is too long, unless `truncate`.
    """
    if source.config.text is None:
        raise ConfigError(f"{source.checkpoint.path} must hold a text tower for text queries, got an image tower alone")
    warn_unread(texts, source.vocabulary_kind)
    if len(texts) > APART:
        return _cached_texts(source, list(texts), truncate)
    new = [text for text in texts if not _file_of(source, [text], truncate).is_file()]
    if new:  # one batch
        features = _encoded_texts(source, new, truncate)
        for text, feature in zip(new, features, strict=True):
            safetensors.write(_file_of(source, [text], truncate), {"features": feature[None]})
    return np.concatenate([_cached_texts(source, [text], truncate) for text in texts])


def _cached_texts(source: ModelSource, texts: list[str], truncate: bool) -> np.ndarray:
    """(T, E) of length one, from the file that holds just these; made and written first where it is absent or damaged."""
    file = _file_of(source, texts, truncate)
    saved = read_cached(file, ("features",))
    if saved is None:
        saved = {"features": _encoded_texts(source, texts, truncate)}
        safetensors.write(file, saved)
    return saved["features"]


def _encoded_texts(source: ModelSource, texts: list[str], truncate: bool) -> np.ndarray:
    tokens = source.tokenize(texts, truncate)
    encoded = heads.encode_prompts(half_models.load_half(source, "text"), tokens)
    heads.check_directions(encoded, texts)
    return unit(encoded)


def warm_up(source: ModelSource) -> None:
    """Loads the text tower and lets it read a short text, so that the next one is answered at once; without one nothing."""
    if source.config.text is not None:
        _encoded_texts(source, ["a photo"], False)


def _file_of(source: ModelSource, texts: Sequence[str], truncate: bool) -> Path:
    return _cache_file([source.text_identity, source.vocabulary_digest, "query", truncate, list(texts)])


def _cache_file(made_of: list) -> Path:
    return paths.cache_dir("queries") / f"{key_of(made_of)}.safetensors"


def photo_features(
    source: ModelSource, photos: Sequence[str], mirrored: bool = False, hashes: Sequence[str] = ()
) -> np.ndarray:
    """(P, E) features of length one of photos, or of their mirror images, cached by their bytes.

    hashes: their SHA-256, where they are known. Raises `DataError` for one that does not decode.
    """
    hashes = hashes or photo_hashes(list(photos))
    seen = [source.identity, source.preprocess.to_dict(), "mirrored" if mirrored else "plain"]
    file = _cache_file([*seen, list(hashes)]) if all(map(is_hash, hashes)) else None
    if file and (saved := read_cached(file, ("features",))):
        return saved["features"]
    for photo in photos:
        header(photo)  # before the model is loaded
    views = Views(source.preprocess, AUGMENTS["mirror"] if mirrored else None)
    batches = extraction.encoded_batches(half_models.load_half(source, "vision"), tuple(photos), views, "stop")
    features = unit(np.concatenate([found for _, found in batches]))
    if file:
        safetensors.write(file, {"features": features})
    return features
