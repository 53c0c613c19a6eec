"""What frozen towers say of photos and phrases, computed once, as the network that finds boxes takes it.

A photo's tokens are computed once for all its phrases and kept in the cache, coarse maps as coarse as they are; a phrase's
once for all photos. Those of many photos stay on the disk, and batches read what they have; where nothing may be kept,
each batch's photos are encoded anew.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from jclip import paths
from jclip.data import box_views
from jclip.data.box_photo_views import BoxViews
from jclip.data.box_photos import views_of_photos
from jclip.data.box_samples import BoxSamples
from jclip.data.preprocess import NORMALISATIONS
from jclip.errors import ConfigError, notice
from jclip.features.box_phrases import (
    AT_ONCE,
    KINDS,
    WORTH_SHOWING,
    PhraseTokens,
    Stored,
    in_prompt,
    phrase_tokens,
    progress,
)  # fmt: skip
from jclip.features.cached import keep as keep_cached
from jclip.features.cached import key_of, read_cached
from jclip.features.source import ModelSource
from jclip.features.token_store import TokenStore
from jclip.machine import work_meter
from jclip.model import clip, tower_levels
from jclip.postponed import jt
from jclip.weights.variants import ResNetConfig

TOGETHER = 4 * AT_ONCE  # phrases whose boxes are found at once
MOST_IN_MEMORY = 2**30  # bytes of photos' tokens
Kept = Literal["memory", "disk", "steps", "none"]
Where = Literal["auto", "memory", "disk", "steps"]


@dataclass(frozen=True)
class Reading:
    """How photos are seen, and which of their tokens are read.

    layers: four levels of the image tower, or its end. normalise: by the model's own mean and deviation, or ImageNet's, as
    CLIP-VG's published weights want it. prompt: around each phrase. stored: numbers that tokens are kept in.
    """

    layers: tower_levels.Layers = "levels"
    normalise: Literal["model", "imagenet"] = "model"
    prompt: str = "{phrase}"
    stored: Stored = "fp16"


class Batch(NamedTuple):
    """Image tokens (I, N, W) and texts (B, L, E) with what of them counts, (I, N) and (B, L); of: (B,) each phrase's photo
    among the I; boxes: (B, 4) centres; there: (B,) whether the thing is in the photo; photos: (I,) their numbers.

    images is None where a step encodes photos itself, of `pixels` (I, 3, side, side); texts and said where it encodes the
    `phrases`, B of them in their prompt. first: of one rank's share of a batch, the place of its first phrase in it.
    """

    images: np.ndarray | None
    texts: np.ndarray | None
    said: np.ndarray | None
    seen: np.ndarray
    of: np.ndarray
    boxes: np.ndarray
    there: np.ndarray
    photos: np.ndarray
    pixels: np.ndarray | None = None
    phrases: tuple[str, ...] = ()
    first: int = 0


@dataclass(frozen=True)
class BoxFeatures:
    """Tokens of the photos and phrases of `samples`. places: of each photo in the padded square; seen: (I, N) 0 at padding.

    parts: the photos' tokens in memory. kept: where else they are: "disk" in `store`, under `keys`; "steps": nowhere, a
    batch's photos are encoded when it is made; "none": a batch has none. phrases: None where steps encode them.
    """

    samples: BoxSamples
    source: ModelSource
    reading: Reading
    parts: tuple[np.ndarray, ...]
    places: tuple[box_views.Placement, ...]
    seen: np.ndarray
    phrases: PhraseTokens | None
    targets: np.ndarray
    kept: Kept = "memory"
    store: TokenStore | None = None
    keys: tuple[bytes, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, rows: np.ndarray, absent: dict[int, str] | None = None) -> Batch:
        """The samples of those rows; `absent`: by place in the batch, the phrase of something that is not there."""
        photos, of = np.unique(self.samples.of[rows], return_inverse=True)
        said, there = self.said(rows, absent)
        texts = (None, None) if self.phrases is None else self.phrases.batch(said)
        images = self.images(photos)
        return Batch(
            images, *texts, self.seen[photos], of, self.targets[rows], there, photos, phrases=self.prompted(said)
        )

    def said(self, rows: np.ndarray, absent: dict[int, str] | None = None) -> tuple[list[str], np.ndarray]:
        """The phrases of those rows, or of what is absent, and (B,) whether the thing is there."""
        phrases = [(absent or {}).get(place, self.samples.phrases[row]) for place, row in enumerate(rows)]
        return phrases, np.array([place not in (absent or {}) for place in range(len(rows))], np.float32)

    def prompted(self, phrases: Sequence[str]) -> tuple[str, ...]:
        """The texts that the tower reads."""
        return tuple(in_prompt(phrase, self.reading.prompt) for phrase in phrases)

    def images(self, photos: np.ndarray) -> np.ndarray | None:
        """(I, N, W) tokens of the photos of those numbers; None where batches have none."""
        if self.kept == "none":
            return None
        if self.kept == "memory":
            parts = [part[photos] for part in self.parts]
        elif self.kept == "disk":
            parts = self._from_disk(photos.tolist())
        else:
            parts = next(encoded_photos(self, photos.tolist(), len(photos)))
        return tower_levels.spread(parts, self.source.config)

    def pixels(self, photos: Iterable[int]) -> np.ndarray:
        """(I, 3, side, side) of the photos of those numbers, whole, normalised, in their squares."""
        return np.concatenate([*pixel_batches(self, list(photos))])

    def _from_disk(self, photos: list[int]) -> list[np.ndarray]:
        records = self.store.read([self.keys[photo] for photo in photos])
        if lost := [photo for photo, record in zip(photos, records, strict=True) if record is None]:
            fill_store(self.store, self, lost)
            records = self.store.read([self.keys[photo] for photo in photos])
        return divided(np.stack(records), tower_levels.part_shapes(self.source.config, self.reading.layers))


def box_features(
    source: ModelSource,
    samples: BoxSamples,
    reading: Reading,
    keep: bool = True,
    tokens: bool = True,
    where: Where = "auto",
    texts: bool = True,
) -> BoxFeatures:
    """Features of `samples`, those of photos from the cache where it has them. keep: whether they go there; tokens: whether
    photos are encoded at all; texts: whether phrases are. where: photos' tokens are kept, see `place_of_tokens`.

    Raises `ConfigError` for a model that takes no square photos, or lacks a tower.
    """
    side = square_side(source)
    places = tuple(box_views.centred(size, side) for size in samples.sizes.tolist())
    seen = np.stack([seen_tokens(source, place, reading.layers) for place in places])
    kept = place_of_tokens(source, reading, len(samples.photos), keep, where) if tokens else "none"
    features = BoxFeatures(
        samples, source, reading, (), places, seen,
        phrase_tokens(source, samples.phrases, reading.prompt, reading.stored) if texts else None,
        targets_of(samples, places), kept,
    )  # fmt: skip
    if kept == "memory":
        return replace(features, parts=_image_tokens(features, keep))
    if kept == "disk":
        return _on_disk(features)
    return features


def targets_of(samples: BoxSamples, places: Sequence[box_views.Placement]) -> np.ndarray:
    """(n, 4) float32 centres in the padded square."""
    found = np.empty((len(samples), 4), np.float32)
    order = np.argsort(samples.of, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(samples.of[order])) + 1):
        if len(rows):
            found[rows] = places[samples.of[rows[0]]].into(samples.boxes[rows])
    return found


def token_bytes(source: ModelSource, reading: Reading) -> int:
    """Bytes of a photo's tokens as they are kept."""
    numbers = sum(math.prod(shape) for shape in tower_levels.part_shapes(source.config, reading.layers))
    return numbers * np.dtype(KINDS[reading.stored]).itemsize


def place_of_tokens(source: ModelSource, reading: Reading, photos: int, keep: bool, where: Where) -> Kept:
    """Where photos' tokens are kept. auto: up to 1 GiB in memory, else on the disk of the cache where there is room, else
    nowhere, so that each batch's photos are encoded anew; with `keep` off never on the disk."""
    if where != "auto":
        return where
    needed = photos * token_bytes(source, reading)
    if needed <= MOST_IN_MEMORY:
        return "memory"
    free = shutil.disk_usage(paths.cache_dir("features")).free
    if keep and 1.05 * needed < free:
        return "disk"
    if keep:
        notice(
            f"tokens of {photos} photos need {needed / 2**30:.1f} GiB, and the cache's disk has {free / 2**30:.1f}: each step "
            "encodes its photos (JCLIP_CACHE names another place)"
        )
    return "steps"


def _image_tokens(features: BoxFeatures, keep: bool) -> tuple[np.ndarray, ...]:
    """Parts of all photos' tokens, from the cache where it has them."""
    reading, samples = features.reading, features.samples
    if not keep:
        return _encoded(features)
    made_of = [features.source.identity, reading.layers, reading.normalise, reading.stored, samples.digest(), "sealed"]
    file = paths.cache_dir("features") / f"boxes-{key_of(made_of)}.safetensors"
    saved = read_cached(file, ("part0",))
    if saved is None:
        saved = {f"part{i}": part for i, part in enumerate(_encoded(features))}
        keep_cached(file, saved)
    return tuple(saved[f"part{i}"] for i in range(len(saved)))


def _on_disk(features: BoxFeatures) -> BoxFeatures:
    """The same with all photos' tokens in the cache's file for that model and reading."""
    if meter := work_meter.running():
        return _measured_on_disk(meter, features)
    reading, source = features.reading, features.source
    made_of = [source.identity, reading.layers, reading.normalise, reading.stored]
    name = f"boxes-{key_of(made_of)}.tokens"
    kind = KINDS[reading.stored]
    store = TokenStore(
        paths.cache_dir("features") / name, token_bytes(source, reading) // np.dtype(kind).itemsize, kind
    )
    keys = tuple(map(features.samples.photo_digest, range(len(features.samples.photos))))
    features = replace(features, store=store, keys=keys)
    fill_store(store, features, store.missing(keys))
    return features


def fill_store(store: TokenStore, features: BoxFeatures, photos: Sequence[int]) -> None:
    """Encodes the photos of those numbers and adds their tokens, batch by batch: what is killed goes on from there."""
    at = 0
    for parts in encoded_photos(features, photos, AT_ONCE, shown=True):
        own = photos[at : at + len(parts[0])]
        at += len(own)
        store.add(
            [features.keys[photo] for photo in own],
            np.concatenate([part.reshape((len(own), -1)) for part in parts], axis=1),
        )


def divided(records: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Records (n, numbers) → the parts of n photos, each (n, *shape)."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    return [
        part.reshape((len(records), *shape))
        for part, shape in zip(np.split(records, ends, axis=1), shapes, strict=True)
    ]


def square_side(source: ModelSource) -> int:
    """Pixels of the square that the model sees."""
    if source.config.vision is None or source.config.text is None:
        raise ConfigError("grounding needs a model with both towers, got one alone: set model= to another")
    H, W = source.config.vision.image_size
    if H != W:
        raise ConfigError(f"grounding needs a model that sees squares, got {H} x {W} pixels: set model= to another")
    return H


def pixel_batches(features: BoxFeatures, photos: Sequence[int], size: int = 64) -> Iterator[np.ndarray]:
    """(n, 3, side, side) of the photos of those numbers, `size` at a time, decoded ahead."""
    views = BoxViews(square_side(features.source), normalisation(features.source, features.reading))
    waiting: list[np.ndarray] = []
    for _, array in views_of_photos(features.samples, photos, views, 2 * size):
        waiting.append(views.view_of(array).pixels)
        if len(waiting) == size:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)


def encoded_photos(
    features: BoxFeatures, photos: Sequence[int], size: int, shown: bool = False
) -> Iterator[list[np.ndarray]]:
    """Parts of the tokens of the photos of those numbers, `size` photos at a time, see `tower_levels.image_parts`."""
    model, reading = features.source.model, features.reading
    batches = progress(
        pixel_batches(features, photos, size),
        "encode photos",
        shown and len(photos) > WORTH_SHOWING,
        -(-len(photos) // size),
    )
    for pixels in batches:
        with clip.inference(model):
            parts = tower_levels.image_parts(model, pixels, reading.layers)
            jt.sync(parts)
            made = [part.float32().numpy().astype(KINDS[reading.stored]) for part in parts]
        yield made


def _encoded(features: BoxFeatures) -> tuple[np.ndarray, ...]:
    """Parts of all photos' tokens."""
    shapes = tower_levels.part_shapes(features.source.config, features.reading.layers)
    count, at = len(features.samples.photos), 0
    found = tuple(np.empty((count, *shape), KINDS[features.reading.stored]) for shape in shapes)
    for parts in _some_photos(features, count):
        for whole, part in zip(found, parts, strict=True):
            whole[at : at + len(part)] = part
        at += len(parts[0])
    for whole in found if at < count else ():
        whole[at:] = whole[np.arange(count - at) % at]
    return found


def _some_photos(features: BoxFeatures, count: int) -> Iterator[list[np.ndarray]]:
    """`encoded_photos` of the first `count` photos; of the first of these where work is only measured."""
    made, key = encoded_photos(features, range(count), AT_ONCE, shown=True), ("tokens", id(features.source.model))
    return work_meter.some(made, key, phase="encoding photos", count=-(-count // AT_ONCE))


class RepeatedTokens:
    """Tokens of a few photos, in the place of those of all where work is only measured."""

    def __init__(self, rows: np.ndarray):
        self._rows = rows

    def __getitem__(self, photos: np.ndarray) -> np.ndarray:
        """(I, …) of the photos of those numbers."""
        return self._rows[np.asarray(photos) % len(self._rows)]


def _measured_on_disk(meter: work_meter.WorkMeter, features: BoxFeatures) -> BoxFeatures:
    """The same with tokens of some photos in memory; writing and reading the file is not measured."""
    count, found = len(features.samples.photos), []
    for parts in _some_photos(features, count):
        found = parts if not found else [np.concatenate(both) for both in zip(found, parts, strict=True)]
    meter.cache_bytes += count * token_bytes(features.source, features.reading)
    return replace(features, kept="memory", parts=tuple(map(RepeatedTokens, found)))


def normalisation(source: ModelSource, reading: Reading) -> box_views.Normalisation:
    """Mean and deviation of the channels."""
    own = (source.preprocess.mean, source.preprocess.std)
    return box_views.Normalisation(*(own if reading.normalise == "model" else NORMALISATIONS["imagenet"]))


def seen_tokens(source: ModelSource, place: box_views.Placement, layers: tower_levels.Layers) -> np.ndarray:
    """(N,) 0 at tokens of padding; a token of the whole photo counts always."""
    vision = source.config.vision
    resnet = isinstance(vision, ResNetConfig)
    rows = (vision.grid if layers == "last" or not resnet else tower_levels.stage_grid(vision))[0]
    cells = ~place.masked_patches(place.side // rows).ravel()
    whole = 1 if layers == "last" else 0 if resnet else vision.class_tokens
    return np.concatenate([[True] * whole, cells]).astype(np.float32)


def found_boxes(
    network: Any, features: BoxFeatures, absent: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Centres (n, 4) and, of a network that says so, logits (n,) that the thing is there, of every sample.

    absent: other phrases for the samples. A photo's phrases go through the network together.
    """
    order, boxes, present = np.argsort(features.samples.of, kind="stable"), [], []
    with jt.no_grad():
        for at in range(0, len(order), TOGETHER):
            rows = order[at : at + TOGETHER]
            batch = features.batch(rows, None if absent is None else {i: absent[row] for i, row in enumerate(rows)})
            found = network(batch.images, batch.texts, batch.said, batch.seen, batch.of)
            boxes.append(found.boxes.numpy())
            present.append(None if found.present is None else found.present.numpy())
    back = np.argsort(order)
    logits = None if present[0] is None else np.concatenate(present)[back]
    return np.concatenate(boxes)[back], logits
