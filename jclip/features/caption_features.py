"""Features of images with captions by a model at hand, and how well each finds the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jclip.data.augment import Views
from jclip.data.captions import Pairs
from jclip.data.preprocess import Preprocess
from jclip.features.heads import encode_prompts
from jclip.functional.directions import unit
from jclip.functional.metrics import retrieval_report
from jclip.model import clip

AT_ONCE = 256


@dataclass(frozen=True)
class Encoded:
    """Features (n, E) of the pairs that decoded, not normalised, their rows, and ids of their captions' meanings."""

    rows: np.ndarray
    images: np.ndarray
    texts: np.ndarray
    groups: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """(n, n) cosines, a row per image."""
        return unit(self.images) @ unit(self.texts).T

    def report(self) -> dict[str, float]:
        """`retrieval_report`, and as `same_…` recall at 1 where a caption of equal meaning counts as found too."""
        scores = self.scores
        same = retrieval_report(scores, self.groups)
        return {**retrieval_report(scores), **{f"same_{k}": same[k] for k in ("i2t_r1", "t2i_r1")}}


def encode_pairs(model: Any, pairs: Pairs, preprocess: Preprocess) -> Encoded:
    """Features of all pairs by a model at hand, as its weights are now."""
    rows, images = [], []
    with clip.inference(model):
        for at, pixels in pairs.batches(range(len(pairs)), 0, AT_ONCE, Views(preprocess)):
            rows.append(at)
            images.append(model.encode_image(pixels).float32().numpy())
        kept = np.concatenate(rows)
        texts, meanings = pairs.texts(kept)
        encoded = encode_prompts(model, model.tokenize(texts, truncate=True))
    return Encoded(kept, np.concatenate(images), encoded, ids_of(meanings))


def ids_of(meanings: Iterable[str]) -> np.ndarray:
    """(n,) numbers that are equal where meanings are."""
    return np.unique(np.asarray(meanings), return_inverse=True)[1]
