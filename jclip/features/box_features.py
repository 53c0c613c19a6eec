"""What frozen towers say of photos and phrases, computed once, as the network that finds boxes takes it.

A photo's tokens are computed once for all its phrases and kept in the cache, coarse maps as coarse as they are; a phrase's
once for all photos.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from jclip import paths
from jclip.data import box_views
from jclip.data.box_samples import BoxSamples
from jclip.data.preprocess import NORMALISATIONS
from jclip.errors import ConfigError
from jclip.features.cached import read_cached
from jclip.features.source import ModelSource
from jclip.model import clip, tower_levels
from jclip.postponed import jt
from jclip.readers import safetensors
from jclip.weights.variants import ResNetConfig

AT_ONCE = 64  # photos, or phrases, in a tower at once


@dataclass(frozen=True)
class Reading:
    """How photos are seen, and which of their tokens are read.

    layers: four levels of the image tower, or its end. normalise: by the model's own mean and deviation, or ImageNet's, as
    CLIP-VG's published weights want it. prompt: around each phrase. stored: numbers that tokens are kept in.
    """

    layers: tower_levels.Layers = "levels"
    normalise: Literal["model", "imagenet"] = "model"
    prompt: str = "{phrase}"
    stored: Literal["fp16", "fp32"] = "fp16"


class Batch(NamedTuple):
    """Image tokens (I, N, W) and texts (B, L, E) with what of them counts, (I, N) and (B, L); of: (B,) each phrase's photo
    among the I; boxes: (B, 4) centres; there: (B,) whether the thing is in the photo; photos: (I,) their numbers.

    images is None where photos are encoded anew in each step.
    """

    images: np.ndarray | None
    texts: np.ndarray
    said: np.ndarray
    seen: np.ndarray
    of: np.ndarray
    boxes: np.ndarray
    there: np.ndarray
    photos: np.ndarray


@dataclass(frozen=True)
class PhraseTokens:
    """Text tokens (P, L, E) of distinct phrases, (P, L) which of them count, and each phrase's row."""

    tokens: np.ndarray
    said: np.ndarray
    rows: dict[str, int]

    def batch(self, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(B, L, E) and (B, L) of these phrases, cut at the longest."""
        rows = [self.rows[phrase] for phrase in phrases]
        longest = int(self.said[rows].sum(axis=1).max())
        return self.tokens[rows, :longest], self.said[rows, :longest]


@dataclass(frozen=True)
class BoxFeatures:
    """Tokens of the photos and phrases of `samples`. places: of each photo in the padded square; seen: (I, N) 0 at padding."""

    samples: BoxSamples
    source: ModelSource
    reading: Reading
    parts: tuple[np.ndarray, ...]
    places: tuple[box_views.Placement, ...]
    seen: np.ndarray
    phrases: PhraseTokens
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, rows: np.ndarray, absent: dict[int, str] | None = None) -> Batch:
        """The samples of those rows; `absent`: by place in the batch, the phrase of something that is not there."""
        photos, of = np.unique(self.samples.of[rows], return_inverse=True)
        said = [(absent or {}).get(place, self.samples.phrases[row]) for place, row in enumerate(rows)]
        there = np.array([place not in (absent or {}) for place in range(len(rows))], np.float32)
        parts = [part[photos] for part in self.parts]
        images = tower_levels.spread(parts, self.source.config) if parts else None
        return Batch(images, *self.phrases.batch(said), self.seen[photos], of, self.targets[rows], there, photos)

    def pixels(self, photos: Iterable[int]) -> np.ndarray:
        """(I, 3, side, side) of the photos of those numbers, whole, normalised, in their squares."""
        look, side = normalisation(self.source, self.reading), square_side(self.source)
        return np.stack([box_views.evaluated(self.samples.photo(i), side, look)[0] for i in photos])


def box_features(
    source: ModelSource, samples: BoxSamples, reading: Reading, keep: bool = True, tokens: bool = True
) -> BoxFeatures:
    """Features of `samples`, those of photos from the cache where it has them. keep: whether they go there; tokens: whether
    photos are encoded at all.

    Raises `ConfigError` for a model that takes no square photos, or lacks a tower.
    """
    side = square_side(source)
    places = tuple(box_views.centred(size, side) for size in samples.sizes.tolist())
    seen = np.stack([_seen(source, place, reading.layers) for place in places])
    targets = [places[photo].into(box) for photo, box in zip(samples.of.tolist(), samples.boxes, strict=True)]
    features = BoxFeatures(
        samples, source, reading, (), places, seen, phrase_tokens(source, samples.phrases, reading.prompt),
        np.array(targets, np.float32).reshape((-1, 4)),
    )  # fmt: skip
    return replace(features, parts=_image_tokens(features, keep)) if tokens else features


def _image_tokens(features: BoxFeatures, keep: bool) -> tuple[np.ndarray, ...]:
    """Parts of all photos' tokens, from the cache where it has them."""
    reading, samples = features.reading, features.samples
    if not keep:
        return _encoded(features)
    made_of = [features.source.identity, reading.layers, reading.normalise, reading.stored, samples.digest(), "sealed"]
    file = paths.cache_dir("features") / f"boxes-{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()}.safetensors"
    saved = read_cached(file, ("part0",))
    if saved is None:
        saved = {f"part{i}": part for i, part in enumerate(_encoded(features))}
        safetensors.write(file, saved)
    return tuple(saved[f"part{i}"] for i in range(len(saved)))


def square_side(source: ModelSource) -> int:
    """Pixels of the square that the model sees."""
    if source.config.vision is None or source.config.text is None:
        raise ConfigError("grounding needs a model with both towers, got one alone: set model= to another")
    H, W = source.config.vision.image_size
    if H != W:
        raise ConfigError(f"grounding needs a model that sees squares, got {H} x {W} pixels: set model= to another")
    return H


def phrase_tokens(source: ModelSource, phrases: Sequence[str], prompt: str = "{phrase}") -> PhraseTokens:
    """Every token of each distinct phrase, put into `prompt`; those too long are cut before their end token."""
    distinct = list(dict.fromkeys(phrases))
    ids = source.model.tokenize([prompt.replace("{phrase}", phrase.lower()) for phrase in distinct], truncate=True)
    lengths = ids.argmax(axis=1) + 1
    longest = int(lengths.max())
    tokens = np.zeros((len(distinct), longest, source.config.embed_dim), np.float32)
    with clip.inference(source.model):
        for at in range(0, len(distinct), AT_ONCE):
            _, every = source.model.encode_text(ids[at : at + AT_ONCE], dense=True)
            tokens[at : at + AT_ONCE, : every.shape[1]] = every.float32().numpy()
    said = (np.arange(longest) < lengths[:, None]).astype(np.float32)
    return PhraseTokens(tokens * said[:, :, None], said, {phrase: row for row, phrase in enumerate(distinct)})


def _encoded(features: BoxFeatures) -> tuple[np.ndarray, ...]:
    """Parts of all photos' tokens, see `tower_levels.image_parts`."""
    model, reading, count = features.source.model, features.reading, len(features.samples.photos)
    kind, found = {"fp16": np.float16, "fp32": np.float32}[reading.stored], []
    with clip.inference(model):
        for at in range(0, count, AT_ONCE):
            parts = tower_levels.image_parts(
                model, features.pixels(range(at, min(at + AT_ONCE, count))), reading.layers
            )
            jt.sync(parts)
            found.append([part.float32().numpy().astype(kind) for part in parts])
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))


def normalisation(source: ModelSource, reading: Reading) -> box_views.Normalisation:
    """Mean and deviation of the channels."""
    own = (source.preprocess.mean, source.preprocess.std)
    return box_views.Normalisation(*(own if reading.normalise == "model" else NORMALISATIONS["imagenet"]))


def _seen(source: ModelSource, place: box_views.Placement, layers: tower_levels.Layers) -> np.ndarray:
    """(N,) 0 at tokens of padding; a token of the whole photo counts always."""
    vision = source.config.vision
    resnet = isinstance(vision, ResNetConfig)
    rows = (vision.grid if layers == "last" or not resnet else tower_levels.stage_grid(vision))[0]
    cells = ~place.masked_patches(place.side // rows).ravel()
    return np.concatenate([[True], cells] if layers == "last" or not resnet else [cells]).astype(np.float32)


def found_boxes(
    network: Any, features: BoxFeatures, absent: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Centres (n, 4) and, of a network that says so, logits (n,) that the thing is there, of every sample.

    absent: other phrases for the samples. A photo's phrases go through the network together.
    """
    order, boxes, present = np.argsort(features.samples.of, kind="stable"), [], []
    with jt.no_grad():
        for at in range(0, len(order), 4 * AT_ONCE):
            rows = order[at : at + 4 * AT_ONCE]
            batch = features.batch(rows, None if absent is None else {i: absent[row] for i, row in enumerate(rows)})
            found = network(batch.images, batch.texts, batch.said, batch.seen, batch.of)
            boxes.append(found.boxes.numpy())
            present.append(None if found.present is None else found.present.numpy())
    back = np.argsort(order)
    logits = None if present[0] is None else np.concatenate(present)[back]
    return np.concatenate(boxes)[back], logits
