"""Photos with a feature at each place, and their scores by a positive and a negative prompt of each class.

DualCoOp, Sun et al., NeurIPS 2022, arXiv 2206.09541; a row is the places' features one after the other, P E numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from jclip.choices import Interpolation, Resize
from jclip.data.preprocess import notice_squashed
from jclip.errors import ConfigError
from jclip.features.source import ModelSource
from jclip.features.stacked_text import BranchScores, StackedText
from jclip.functional import multi_label_scores, similarity
from jclip.model import dense_map
from jclip.postponed import jt
from jclip.weights.variants import ResNetConfig, SigLIPImageConfig, ViTConfig

NUMBERS_AT_ONCE = 1 << 24  # cosines and features of a step
SETS = ("positive", "negative", "evidence")  # of prompts, the last of DualCoOp++ alone


class PairSource:
    """A `ModelSource` in all but this: its features are rows of places, not normalised, of photos of another size.

    size: of both sides in pixels, 0: the model's own. places, vit: see `jclip.model.dense_map.value_places`. `width` is that
    of a place, E. Raises `ConfigError` for a size that the tower's step does not divide.
    """

    def __init__(
        self,
        source: ModelSource,
        size: int = 0,
        resize: Resize = "squash",
        interpolation: Interpolation | None = None,
        places: dense_map.Places = "dualcoop",
        vit: dense_map.ViTMap = "value",
    ):
        vision = source.config.vision
        if vision is None:
            raise ConfigError("these weights are a text tower alone: they embed no images")
        self._source, self._places, self._vit = source, places, vit
        self._is_resnet = isinstance(vision, ResNetConfig)
        notice_squashed(source.preprocess, "photos whose places are scored")
        seen = replace(source.preprocess.fixed(), resize=resize, size=(size, size) if size else source.preprocess.size)
        self.preprocess = replace(seen, interpolation=interpolation or seen.interpolation)
        step = dense_map.STRIDE if self._is_resnet else vision.patch_size
        if size % step:
            raise ConfigError(f"size must be a multiple of {step}, the model's step, or 0 (its own), got {size}")
        any_size = self._is_resnet or isinstance(vision, (ViTConfig, SigLIPImageConfig))
        if size and not any_size and (size, size) != vision.image_size:
            raise ConfigError(f"this image tower takes photos of its own size, got size={size}: leave size out")
        self._step = step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    @property
    def identity(self) -> list:
        """What features depend on."""
        return [*self._source.identity, "places", self._places if self._is_resnet else self._vit]

    @property
    def count(self) -> int:
        """P, how many places a photo has."""
        cells = math.prod(side // self._step for side in self.preprocess.size)
        return cells + (self._is_resnet and self._places != "cells")

    @cached_property
    def model(self):
        """What encodes pixels to rows of places; loaded at first use."""
        return _PlacesModel(self._source.model, self._places, self._vit)


class _PlacesModel:
    """A `CLIP` whose image features are rows of places."""

    def __init__(self, model, places: dense_map.Places, vit: dense_map.ViTMap):
        self._model, self._places, self._vit = model, places, vit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode_image(self, pixels, penultimate: bool = False):
        """(B, 3, H, W) → (B, P E)."""
        rows = dense_map.value_places(self._model, pixels, self._places, self._vit)
        return rows.reshape((rows.shape[0], -1))


class WithPairScores(Protocol):
    """How rows of places become scores: see the recipe `dual_prompt`."""

    @property
    def winner_among(self) -> multi_label_scores.Winner: ...


def text_of(learned: Mapping[str, np.ndarray], kind: str = "text") -> dict[str, np.ndarray]:
    """Arrays `<kind>_positive`, … of what was learned, by set."""
    return {name: learned[f"{kind}_{name}"] for name in SETS if f"{kind}_{name}" in learned}


class PairScorer:
    """Scores of rows of places, S+ - S-, see `jclip.functional.multi_label_scores.pair_scores`.

    learned: `text_positive`, `text_negative` and perhaps `text_evidence` (C, E), rows of length one; `scale` and `sharpness`
    (1,). cfg: what has `winner_among`.
    """

    def __init__(self, learned: Mapping[str, np.ndarray], cfg: WithPairScores):
        self._text, self._winner = text_of(learned), cfg.winner_among
        self._scale, self._sharpness = (float(learned[name][0]) for name in ("scale", "sharpness"))

    branches = ("local",)

    @staticmethod
    def heads(scorers: Sequence[PairScorer]) -> PairHeads:
        """Several of them as one."""
        return PairHeads(scorers)

    @property
    def text(self) -> Mapping[str, np.ndarray]:
        """(C, E) by set of prompts."""
        return self._text

    @cached_property
    def _alone(self) -> PairHeads:
        return PairHeads([self])

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """(N, P E), of any length at each place → (N, C)."""
        classes, width = self._text["positive"].shape
        step = max(1, NUMBERS_AT_ONCE // (rows.shape[1] // width * (width + 4 * classes)))
        found = [np.zeros((0, classes), np.float32)]
        for i in range(0, len(rows), step):
            some = rows[i : i + step]
            places = similarity.normalise(jt.array(some.reshape(len(some), -1, width)))
            found.append(self._alone(places)[0].branches[0])
        return np.concatenate(found)

    def difference(self, found: Mapping[str, Any]):
        """S+ - S- (N, C) of cosines (N, P, C) by set."""
        yes, no = multi_label_scores.pair_scores(
            found["positive"], found["negative"], self._sharpness, self._scale, evidence=found.get("evidence"),
            winner=self._winner,
        )  # fmt: skip
        return yes - no


class PairHeads:
    """Scores of the same places by several `PairScorer`, of one product with the prompts of all."""

    def __init__(self, scorers: Sequence[PairScorer]):
        self._scorers = [*scorers]
        self._text = StackedText([rows for one in scorers for rows in one.text.values()])

    def __call__(self, places) -> list[BranchScores]:
        """Places (N, P, E) of length one → for each scorer S+ - S-."""
        step = max(1, NUMBERS_AT_ONCE // (places.shape[1] * (places.shape[2] + 2 * len(self._text))))
        parts = [self._of(places[i : i + step]) for i in range(0, places.shape[0], step)]
        return [BranchScores([np.concatenate(own)]) for own in zip(*parts, strict=True)]

    def _of(self, places) -> list[np.ndarray]:
        with jt.no_grad():
            cut = iter(self._text.cut(multi_label_scores.cosines(places, self._text.rows)))
            scores = [one.difference({name: next(cut) for name in one.text}) for one in self._scorers]
            ends = np.cumsum([x.shape[1] for x in scores])[:-1]
            return np.split((jt.concat(scores, dim=1) if len(scores) > 1 else scores[0]).numpy(), ends, axis=1)


def scores_of_places(places, text: Mapping[str, Any], sharpness, scale, winner: multi_label_scores.Winner) -> tuple:
    """S+ and S- (B, C) of places (B, P, E) of length one and text features by set."""
    evidence = multi_label_scores.cosines(places, text["evidence"]) if "evidence" in text else None
    pair = [multi_label_scores.cosines(places, text[name]) for name in ("positive", "negative")]
    return multi_label_scores.pair_scores(*pair, sharpness, scale, evidence=evidence, winner=winner)
