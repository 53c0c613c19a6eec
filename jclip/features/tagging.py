"""Scores of photos for names, several of which may be right at once, without training.

Four ways from a photo to the score of a name; all but `whole` see the whole photo with its aspect, in one encoder pass:
tagclip (vision transformers): TagCLIP, see `jclip.functional.local_to_global` and `jclip.model.patch_attention`.
places (ResNets, vision transformers, EVA): a name's share of the place of the map that it has most of.
dense (the same towers): cosines of all places times the logit scale, places that agree with the name counting most.
whole (any): the feature of the whole photo, as zero-shot classification has it; of weights that were trained with the
sigmoid loss (SigLIP) a name's logit with its bias, whose sigmoid says whether the name belongs to the photo.
With windows each of them is scored like a photo of its own, and a name's score is the highest of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from jclip.choices import TAG_METHODS, TagMethod
from jclip.data.augment import Views
from jclip.data.loader import OnError, batches
from jclip.data.photo_file import header, open_photo
from jclip.data.preprocess import Preprocess, notice_squashed
from jclip.errors import ConfigError, DataError, advice_when_full, notice
from jclip.features.extraction import batch_size
from jclip.features.heads import ZeroShotHead, check_directions, zero_shot_head
from jclip.features.photo_windows import in_parts, photo_windows, window_of
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.functional.local_to_global import (
    Again,
    LocalToGlobal,
    cell_scores,
    coarse_scores,
    nearest_mask,
    photo_scores,
    place_shares,
    refined_scores,
    to_look_at_again,
)
from jclip.functional.positions import resize_bilinearly
from jclip.functional.windows import check_windows
from jclip.machine import work_meter
from jclip.model import dense_map as dense_maps
from jclip.model import patch_attention
from jclip.postponed import jt
from jclip.prompts.background_names import BACKGROUNDS, background_beside
from jclip.prompts.spelling import alike
from jclip.prompts.templates import (
    Templates,
    WithSentences,
    class_prompts,
    load_templates,
    prompts_of,
)
from jclip.weights.variants import AnyImage

TEMPLATES = "tagclip85"
SHARES = ("tagclip", "places")  # methods whose scores are shares of all names
LONGEST_SIDE = 640  # pixels, of photos for tagclip: COCO's, which its figures are of
LONGEST_BY_SHORT = 4  # of photos for dense; what is longer is made smaller
_WEIGHTS_AT_ONCE = 2**26  # numbers, of attention weights of one layer
_LYING = range(5, 9)  # EXIF orientations that swap width and height
_PLAIN = "a photo of a {}."
PUBLISHED = LocalToGlobal()


class NothingScored(DataError):
    """No photo of several can be scored; other `DataError`s are of what all photos share, such as a text too long."""


@dataclass(frozen=True)
class PhotoScores:
    """Scores (N, C) of the photos that decoded, in the order asked for, and of the background names (N, G)."""

    photos: tuple[str, ...]
    scores: np.ndarray
    background: np.ndarray
    skipped: tuple[str, ...] = ()  # why, of each photo that was left out
    logits: bool = False  # whether their exponentials, and not they themselves, compare as evidence
    sigmoid: bool = False  # whether they are logits of weights trained with the sigmoid loss, bias and all


class Scorer(Protocol):
    """Whatever scores photos for classes of which several may be right: a `Tagger`, or what a recipe learned."""

    @property
    def classnames(self) -> Sequence[str]:
        """The C classes."""

    def scored(self, photos: Sequence[str], on_error: OnError = "stop", label: str = "photos") -> PhotoScores:
        """Scores of the photos that decode."""


class Tagger:
    """A model that scores photos for class names without training; `scores` is all that others need of it.

    source: the model. classnames: one or more. templates: as `load_templates` has them. background: names of what is none
    of the classes, which takes part where scores are shares of all names. method: see the module; auto is tagclip for
    vision transformers, places for ResNets, whole for SigLIP. size: for tagclip the longest side in pixels (larger photos
    are made smaller), 640 by default; for places and dense the short side, the model's own by default; for whole nothing.
    windows: scales b, each 2b x 2b windows of 1/b of the sides, see `jclip.functional.windows`. settings: constants of
    tagclip. truncate: cut prompts that exceed the context length.
    Raises `ConfigError` for names that are missing or repeated, and for a tower that the method can't read.
    """

    def __init__(
        self,
        source: ModelSource,
        classnames: Sequence[str],
        templates: str = TEMPLATES,
        background: Sequence[str] = BACKGROUNDS["coco"],
        method: TagMethod = "auto",
        size: int | None = None,
        windows: Sequence[int] = (),
        settings: LocalToGlobal = PUBLISHED,
        truncate: bool = False,
    ):
        check_names(classnames)
        if windows:
            check_windows("even", windows, "unit")
        self.source, self.classnames, self.templates = source, tuple(classnames), templates
        self.background = background_beside(classnames, background)
        self.method: TagMethod = method_for(source, method, len(self.classnames) + len(self.background))
        self.size, self.windows, self.settings, self.truncate = size, tuple(windows), settings, truncate

    @property
    def made_of(self) -> list:
        """What scores depend on but the photos, as plain values."""
        loaded = load_templates(self.templates)
        texts = [
            prompts_of(self.classnames, self.templates),
            class_prompts(self.background, _without_sentences(loaded)),
        ]
        seen = [self.method, self.size, self.windows, asdict(self.settings), self.source.preprocess.to_dict()]
        return [self.source.identity, texts, seen, *(["truncate"] if self.truncate else [])]

    @cached_property
    def head(self) -> ZeroShotHead:
        """Text features of the classes, then of the background names; cached."""
        loaded = load_templates(self.templates)
        beside = class_prompts(self.background, _without_sentences(loaded))
        return zero_shot_head(self.source, [*prompts_of(self.classnames, self.templates), *beside], self.truncate)

    def scores(self, photos: Sequence[str]) -> np.ndarray:
        """(N, C) float32. Raises `DataError` for a photo that does not decode."""
        return self.scored(photos).scores

    def scored(self, photos: Sequence[str], on_error: OnError = "stop", label: str = "photos") -> PhotoScores:
        """Scores of classes and background names; with "skip" photos that can't be scored are left out and reported.

        Memory does not grow with the number of photos but for the scores. Raises `DataError` where none can be scored.
        """
        names = len(self.classnames) + len(self.background)
        scores, done, failed = np.zeros((len(photos), names), np.float32), np.zeros(len(photos), bool), []
        for rows, found in self._batches(photos, on_error, failed, label):
            scores[rows], done[rows] = found, True
        report_skipped(failed, len(photos))
        kept, own = np.flatnonzero(done), len(self.classnames)
        scores = scores if len(kept) == len(photos) else scores[kept]
        found = tuple(photos[row] for row in kept)
        if self.windows:
            self._raise_by_windows(scores, found, label)
        logits, sigmoid = self.method in ("dense", "whole"), self.method == "whole" and self.source.config.sigmoid
        scores = scores + np.float32(self.source.logit_bias) if sigmoid else scores
        return PhotoScores(found, scores[:, :own], scores[:, own:], tuple(failed), logits, sigmoid)

    def _batches(
        self, photos: Sequence[str], on_error: OnError, failed: list[str], label: str
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows (B,) of `photos` and their scores (B, K) by the whole photo; `failed` receives why others are left out."""
        from tqdm import tqdm

        sized, head, model = self._sized(photos, on_error, failed), self.head, self.source.model
        with tqdm(total=len(photos), desc=label, unit="photo", disable=None, leave=False) as bar:
            for rows, preprocess in sized:
                paths, size = [photos[row] for row in rows], self._at_once(preprocess)
                read, key = batches(paths, Views(preprocess), size, on_error, failed), ("places", preprocess.size)
                count = -(-len(paths) // size)
                for at, pixels in work_meter.some(read, key, phase="encoding photos", count=count):
                    yield rows[at], self._of_batch(model, pixels[:, 0], head, [paths[i] for i in at])
                    bar.update(len(at))

    def _raise_by_windows(self, scores: np.ndarray, photos: Sequence[str], label: str) -> None:
        """Scores (N, K), each raised to the highest of the photo's windows."""
        from tqdm import tqdm

        vision = self.source.config.vision
        notice_squashed(self.source.preprocess, "windows")
        preprocess = replace(self.source.preprocess, size=vision.image_size, resize="squash")
        size = self._at_once(preprocess)
        for row, path in enumerate(tqdm(photos, f"{label}, windows", unit="photo", disable=None, leave=False)):
            photo = open_photo(path, upright=preprocess.upright)
            whole, windows = photo_windows(photo, "even", self.windows, "unit")
            for some in in_parts(windows.boxes.tolist(), size):
                pixels = np.stack([preprocess(window_of(whole, box)) for box in some])
                found = self._of_batch(self.source.model, pixels, self.head, [path] * len(some))
                np.maximum(scores[row], found.max(axis=0), out=scores[row])

    def _sized(
        self, photos: Sequence[str], on_error: OnError, failed: list[str]
    ) -> list[tuple[np.ndarray, Preprocess]]:
        """Rows of photos that become equally large, with the preprocessing that makes them so; the largest first, so that
        what does not fit into memory fails at once."""
        preprocess = self.source.preprocess
        if self.method == "whole":
            return [(np.arange(len(photos)), preprocess)]
        rows: dict[tuple[int, int], list[int]] = {}
        for row, photo in enumerate(photos):
            try:
                rows.setdefault(self._size_of(photo), []).append(row)
            except DataError as e:
                if on_error == "stop":
                    raise
                failed.append(str(e))
        order = sorted(rows, key=math.prod, reverse=True)
        return [(np.array(rows[size]), replace(preprocess, size=size, resize="squash")) for size in order]

    def _size_of(self, photo: str) -> tuple[int, int]:
        """Height and width that a photo is resized to, multiples of the tower's step. Raises `DataError`."""
        vision = self.source.config.vision
        _, _, width, height, turn = header(photo)
        if turn in _LYING and self.source.preprocess.upright:
            width, height = height, width
        if self.method == "tagclip":
            step, ratio = vision.patch_size, min(1.0, (self.size or LONGEST_SIDE) / max(height, width))
        elif vision.kind in ("eva", "pe"):
            return vision.image_size
        else:
            step, short = getattr(vision, "patch_size", 32), self.size or min(vision.image_size)
            ratio = min(short / min(height, width), LONGEST_BY_SHORT * short / max(height, width))
        size = tuple(step * max(1, math.ceil(round(side * ratio / step, 6))) for side in (height, width))
        if self.method == "tagclip" and min(size) < 2 * step:
            raise DataError(
                f"{photo} of {width} x {height} pixels must give at least 2 x 2 patches of {step}: enlarge it, or use "
                "--method places, dense or whole"
            )
        return size

    def _at_once(self, preprocess: Preprocess) -> int:
        """Photos of a batch: no more pixels than a batch of the model's own size, of tagclip fewer weights than fit."""
        vision, (height, width) = self.source.config.vision, preprocess.size
        most = max(1, batch_size() * math.prod(vision.image_size) // (height * width))
        if self.method == "tagclip":
            tokens = 1 + (height // vision.patch_size) * (width // vision.patch_size)
            most = min(most, max(1, _WEIGHTS_AT_ONCE // (vision.heads * tokens * tokens)))
        return min(batch_size(), most)

    def _of_batch(self, model, pixels: np.ndarray, head: ZeroShotHead, photos: Sequence[str]) -> np.ndarray:
        """(B, 3, H, W) → (B, K): scores of all names."""

        full = f"set JCLIP_BATCH={max(1, batch_size() // 2)} (now {batch_size()})"
        with jt.no_grad(), advice_when_full(full):
            if self.method == "tagclip":
                return self._tagclip(model, pixels, head, photos)
            if self.method != "whole":
                cells = dense_maps.dense_map(model, pixels)[1].float32().numpy()
                check_directions(cells.reshape(len(cells), -1), photos)
                score = place_shares if self.method == "places" else cell_scores
                return score(unit(cells) @ head.weights.T, head.scale)
            encoded = model.encode_image(pixels).float32().numpy()
        check_directions(encoded, photos)
        return head(unit(encoded))

    def _tagclip(self, model, pixels: np.ndarray, head: ZeroShotHead, photos: Sequence[str]) -> np.ndarray:

        vision, settings = model.config.vision, self.settings
        grid = (pixels.shape[2] // vision.patch_size, pixels.shape[3] // vision.patch_size)
        patches, attention = patch_attention.patches_with_attention(model, pixels, *settings.layers(vision.layers))
        check_directions(patches.reshape(len(patches), -1), photos)
        coarse = (coarse_scores(one, head.weights, head.scale) for one in patches)
        refined = [refined_scores(s, a, grid, settings.published) for s, a in zip(coarse, attention, strict=True)]
        again = [to_look_at_again(one, len(self.classnames), grid, settings) for one in refined]
        crops = ((row, one) for row, found in enumerate(again) for one in found)
        probabilities: list[dict[int, float]] = [{} for _ in again]
        for some in in_parts(crops, batch_size()):
            for (row, one), probability in zip(some, self._look_again(model, pixels, some, head), strict=True):
                probabilities[row][one.label] = float(probability)
        return np.stack([photo_scores(*of, settings.local) for of in zip(refined, probabilities, strict=True)])

    def _look_again(
        self, model, pixels: np.ndarray, crops: Sequence[tuple[int, Again]], head: ZeroShotHead
    ) -> np.ndarray:
        """The probability of each crop's class among all names."""

        vision = model.config.vision
        seen = np.stack([_cut(pixels[row], one, vision.patch_size, vision.image_size) for row, one in crops])
        masks = np.stack([nearest_mask(one.mask, vision.grid).reshape(-1) for _, one in crops])
        features = patch_attention.crops_seen_in_part(model, seen, masks)
        shares = coarse_scores(features, head.weights, head.scale)
        return shares[np.arange(len(crops)), [one.label for _, one in crops]]


def _cut(pixels: np.ndarray, one: Again, patch: int, size: tuple[int, int]) -> np.ndarray:
    """(3, H, W) → (3, *size): the crop around a class's patches, made as large as the model's photos."""
    rows, columns = (slice(patch * first, patch * behind) for first, behind in (one.rows, one.columns))
    return resize_bilinearly(pixels[:, rows, columns], size).astype(np.float32)


def check_names(classnames: Sequence[str]) -> None:
    """Raises `ConfigError` for no names, an empty one, or a repeated one."""
    if not classnames or any(not name.strip() for name in classnames):
        raise ConfigError(f"class names must be at least one and none empty, got {list(classnames)[:5]!r:.200}")
    if twice := alike(classnames):
        first, second = (classnames[k] for k in twice)
        raise ConfigError(f"class names must be unique, got {first!r:.80} and {second!r:.80}")


def _has_tagclips_attention(vision: AnyImage) -> bool:
    return vision.kind == "vit" and vision.layers > 1


def method_for(source: ModelSource, method: TagMethod, names: int) -> TagMethod:
    """What `auto` stands for with this model. Raises `ConfigError` for a method that can't read its tower, or names that
    are too few for it."""
    vision = source.config.vision
    if vision is None:
        raise ConfigError("these weights are a text tower alone: they embed no images")
    if method not in TAG_METHODS:
        raise ConfigError(f"method must be one of {', '.join(TAG_METHODS)}, got {method!r}")
    if method == "auto" and source.config.sigmoid:
        method = "whole"
    if method == "auto":
        method = "tagclip" if _has_tagclips_attention(vision) else "places"
    if method == "tagclip" and not _has_tagclips_attention(vision):
        raise ConfigError(
            f"method tagclip reads the attention of vision transformers, got a tower of kind {vision.kind}: use "
            "--method places, dense or whole"
        )
    if method in SHARES and names < 2:
        raise ConfigError(
            f"method {method} scores by shares of all names, got one class and no background: name another class or a "
            "--background, or use --method dense"
        )
    return method


def _without_sentences(loaded: Templates) -> Templates:
    """The templates alone, which background names are put into; sentences are of the classes that they name."""
    kept = []
    for one in loaded if isinstance(loaded, list) else [loaded]:
        if isinstance(one, WithSentences):
            kept.append(one.templates)
        elif not isinstance(one, Mapping):
            kept.append(one)
    return kept or (_PLAIN,)


def report_skipped(failed: Sequence[str], total: int) -> None:
    """One line on stderr for photos that were left out. Raises `NothingScored` where that is all of them."""
    if failed and len(failed) == total:
        raise NothingScored(f"none of {total} photos can be scored: {failed[0]}")
    if failed:
        notice(f"skipped {len(failed)} of {total} photos (first: {failed[0]})")
