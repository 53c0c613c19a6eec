"""Features of images with captions by a model at hand, and how well each finds the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jclip.data.augment import Views
from jclip.data.captions import Pairs
from jclip.data.preprocess import Preprocess
from jclip.errors import DataError
from jclip.features.heads import encode_prompts_by_ranks
from jclip.functional.directions import unit
from jclip.functional.metrics import retrieval_ranks
from jclip.functional.retrieval import Links, Scores, feature_scores, grouped_report, paired_report
from jclip.kernels import collectives
from jclip.machine import ranks, work_meter
from jclip.model import clip

AT_ONCE = 256
MOST_SCORES = 1 << 24  # of a block that is compared with the captions' meanings


@dataclass(frozen=True)
class Encoded:
    """Features, not normalised, of the pairs that decoded: of each image once, (I, E), and of each text once, (T, E).

    rows: (n,) of these pairs. image_of, text_of: (n,), their images and texts. groups: (n,) ids of their captions' meanings.
    """

    rows: np.ndarray
    photos: np.ndarray
    captions: np.ndarray
    image_of: np.ndarray
    text_of: np.ndarray
    groups: np.ndarray

    @property
    def images(self) -> np.ndarray:
        """(n, E), of each pair."""
        return self.photos[self.image_of]

    @property
    def texts(self) -> np.ndarray:
        """(n, E), of each pair."""
        return self.captions[self.text_of]

    @cached_property
    def pair_scores(self) -> Scores:
        """Cosines of the n images and n texts of the pairs, in blocks."""
        return feature_scores(unit(self.images), unit(self.texts))

    @cached_property
    def links(self) -> Links:
        """Which images and texts belong together."""
        return Links.of(self.image_of, self.text_of)

    def report(self) -> dict[str, float]:
        """`paired_report`, as `same_…` recall at 1 where a caption of equal meaning counts as found too, and `grouped_report`
        where an image has several texts, or a text several images."""
        paired = {**paired_report(self.pair_scores, len(self.rows)), **self._same()}
        return paired if self.links.are_pairs else {**paired, **self.grouped()}

    def grouped(self) -> dict[str, float]:
        """`grouped_report`, and the numbers of images and texts that it is of."""
        found = grouped_report(feature_scores(unit(self.photos), unit(self.captions)), self.links)
        return {**found, "images": self.links.image_count, "texts": self.links.text_count}

    def _same(self) -> dict[str, float]:
        count, found = len(self.rows), {"same_i2t_r1": 0, "same_t2i_r1": 0}
        step = max(1, MOST_SCORES // count)
        for start in range(0, count, step):
            rows, every = slice(start, min(start + step, count)), slice(0, count)
            same = self.groups[rows, None] == self.groups[None, :]
            found["same_i2t_r1"] += int((retrieval_ranks(self.pair_scores(rows, every), same) < 1).sum())
            found["same_t2i_r1"] += int((retrieval_ranks(self.pair_scores(every, rows).T, same) < 1).sum())
        return {name: hits / count for name, hits in found.items()}


def encode_pairs(model: Any, pairs: Pairs, preprocess: Preprocess) -> Encoded:
    """Features of all pairs by a model at hand, as its weights are now; each image and each text is encoded once.

    Several ranks encode a share each, and all get all.
    """
    here, firsts = ranks.here(), np.unique(pairs.images, return_index=True)[1]
    places: list[np.ndarray] = [np.zeros(0, np.int64)]
    images = [np.zeros((0, model.config.embed_dim), np.float32)]
    with clip.inference(model):
        wanted = firsts[here.share_of_batches(len(firsts), AT_ONCE)]
        read = pairs.batches(wanted, 0, AT_ONCE, Views(preprocess))
        made = ((at, model.encode_image(pixels).float32().numpy()) for at, pixels in read)
        for at, features in work_meter.stretched_rows(("images", id(model)), made, wanted, each=AT_ONCE):
            places.append(at)
            images.append(features)
        order = np.argsort(pairs.images[np.concatenate(places)])  # of photos that vary, batches are by shape
        decoded = pairs.images[collectives.joined(np.concatenate(places)[order])]
        if not len(decoded):
            raise DataError(f"none of {len(firsts)} images decoded")
        rows = np.flatnonzero(np.isin(pairs.images, decoded))
        _, first, text_of = np.unique(pairs.queries[rows], return_index=True, return_inverse=True)
        texts, _ = pairs.texts(rows[first])
        captions = encode_prompts_by_ranks(model, model.tokenize(texts, truncate=True))
    image_of = np.searchsorted(decoded, pairs.images[rows])
    return Encoded(
        rows,
        collectives.joined(np.concatenate(images)[order]),
        captions,
        image_of,
        text_of,
        ids_of(pairs.texts(rows)[1]),
    )


def ids_of(meanings: Iterable[str]) -> np.ndarray:
    """(n,) ids, equal where the captions' meanings are."""
    return np.unique(np.asarray(meanings), return_inverse=True)[1]
