"""Photos scored for concepts, and for class names beside them, as `jclip.features.tagging` has scorers.

A concept scores the whole photo's feature, as it was taught: its probability says whether the photo is above the concept's
own line. Names beside it are scored by the model that the concept was taught with, in the way that was asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jclip.data.loader import OnError
from jclip.data.splits import Split
from jclip.errors import ConfigError, DataError
from jclip.features import extraction
from jclip.features.concepts import Concept
from jclip.features.heads import check_directions
from jclip.features.source import ModelSource
from jclip.features.tagging import NothingScored, PhotoScores, Tagger, check_names
from jclip.functional.calibration import sigmoid
from jclip.functional.directions import unit


class ConceptTagger:
    """Scores photos for class names of which some are concepts.

    source: the model that all concepts were taught with. classes: names and concepts, in the order of their columns. tagger:
    what scores the names, in their order; None where there are none. Raises `ConfigError` for a name that stands twice.
    """

    def __init__(self, source: ModelSource, classes: Sequence[str | Concept], tagger: Tagger | None = None):
        self.source, self._classes, self._tagger = source, tuple(classes), tagger
        self.classnames = tuple(one.name if isinstance(one, Concept) else one for one in classes)
        check_names(self.classnames)
        self.concepts = [one for one in classes if isinstance(one, Concept)]
        named = len(self._classes) - len(self.concepts)
        if named != (0 if tagger is None else len(tagger.classnames)):
            raise ConfigError(f"the names beside concepts must be those of their tagger, got {named} names")

    @property
    def columns(self) -> np.ndarray:
        """(C,) true for concepts."""
        return np.array([isinstance(one, Concept) for one in self._classes])

    @property
    def made_of(self) -> list:
        """What scores depend on but the photos, as plain values."""
        heads = [
            [hashlib.sha256(c.head.vector.tobytes()).hexdigest(), c.head.scale, c.head.bias] for c in self.concepts
        ]
        beside = [] if self._tagger is None else self._tagger.made_of
        return [
            "concepts",
            self.source.identity,
            self.source.preprocess.to_dict(),
            heads,
            self.columns.tolist(),
            beside,
        ]

    def scored(self, photos: Sequence[str], on_error: OnError = "stop", label: str = "photos") -> PhotoScores:
        """Scores of the names, and in the concepts' columns their logits; see `jclip.report.tags` for what makes a tag.

        With "skip" photos that can't be scored are left out and reported. Raises `DataError` where none can be scored.
        """
        if self._tagger is not None:
            found = self._tagger.scored(photos, on_error, label)
            photos, names = found.photos, found.scores
        split = Split(tuple(photos), np.full(len(photos), -1, np.int32))
        try:
            rows, features = extraction.extract(self.source, split, on_error=on_error, label=label)
        except DataError as e:
            if on_error == "stop":
                raise
            raise NothingScored(str(e)) from None  # another part may have photos that decode
        kept = tuple(photos[row] for row in rows)
        check_directions(features, kept)
        features = unit(features.astype(np.float32))
        scores = np.zeros((len(kept), len(self._classes)), np.float32)
        logits = np.stack([c.head.logits(features @ c.head.vector) for c in self.concepts], axis=1)
        scores[:, self.columns] = logits
        if self._tagger is None:
            gone = {*photos} - {*kept}
            return PhotoScores(
                kept, scores, np.zeros((len(kept), 0), np.float32), tuple(p for p in photos if p in gone)
            )
        scores[:, ~self.columns] = names[rows]
        return replace(found, photos=kept, scores=scores, background=found.background[rows])


def concept_probabilities(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of concepts' logits (N, C) the probabilities, and which are above each concept's line."""
    return sigmoid(logits.astype(np.float64)).astype(np.float32), logits > 0
