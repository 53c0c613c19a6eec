"""Scores of photos for names in parts, which several processes may share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jclip.data.loader import OnError
from jclip.features import tagging
from jclip.features.part_arrays import Arrays, PhotoParts, array_lines, lines_array


class ScoredParts(PhotoParts):
    """Scores of photos in parts, which several processes may share. made_of: what the scorer is, beside its class names."""

    def __init__(self, scorer: tagging.Scorer, made_of: Any, photos: Sequence[str], on_error: OnError):
        self._scorer, self._on_error, self._named = scorer, on_error, tuple(photos)
        names = ("scores", "background", "kept", "skipped", "kind")
        super().__init__([made_of, [*scorer.classnames], on_error], photos, self._scored, names)
        self._own: list[str] = []  # reported by the scorer itself

    def together(self) -> tagging.PhotoScores:
        """Of all photos. Raises `DataError` where none can be scored."""
        parts = [*self.arrays()]
        starts = np.cumsum([0, *self.sizes[:-1]])
        kept = np.concatenate([part["kept"] + start for part, start in zip(parts, starts, strict=True)])
        skipped = [line for part in parts for line in array_lines(part["skipped"])]
        if len(skipped) == len(self._named) or any(line not in self._own for line in skipped):
            tagging.report_skipped(skipped, len(self._named))
        full = [part for part in parts if len(part["kept"])]  # in another there may be no background
        scores, background = (np.concatenate([part[name] for part in full]) for name in ("scores", "background"))
        logits, sigmoid = map(bool, full[0]["kind"])
        return tagging.PhotoScores(
            tuple(self._named[i] for i in kept), scores, background, tuple(skipped), logits, sigmoid
        )

    def _scored(self, photos: Sequence[str]) -> Arrays:
        try:
            found = self._scorer.scored(photos, self._on_error, "photos")
        except tagging.NothingScored as e:
            if self._on_error != "skip":
                raise
            none = np.zeros((0, len(self._scorer.classnames)), np.float32)
            found = tagging.PhotoScores((), none, np.zeros((0, 0), np.float32), (str(e),) * len(photos))
        else:
            self._own += found.skipped
        place = {photo: i for i, photo in enumerate(photos)}
        return {
            "scores": found.scores, "background": found.background,
            "kept": np.array([place[photo] for photo in found.photos], np.int64),
            "skipped": lines_array(found.skipped), "kind": np.array([found.logits, found.sigmoid]),
        }  # fmt: skip
