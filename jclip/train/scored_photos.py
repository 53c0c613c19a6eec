"""What a run that scores photos hands over once it has been measured, so that it need not be read from disk again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from jclip.features.precomputed import FeatureSet
from jclip.functional.metrics import classification_report
from jclip.train.run import Run


@dataclass(frozen=True)
class ScoredPhotos:
    """Scores (N, C) of the test photos, and what is true of them.

    targets: class ids (N,), or (N, C) bool where a photo may be of several classes. classnames: C names, their numbers where
    nobody named them. photos: N paths or names; empty where they are not known.
    """

    scores: np.ndarray
    targets: np.ndarray
    classnames: tuple[str, ...]
    photos: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoredInParts(ScoredPhotos):
    """Scores that were merged of several, and these by name, each (N, C)."""

    parts: Mapping[str, np.ndarray] = field(default_factory=dict)


def measured(run: Run, data: FeatureSet, score: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """Metrics of `score` on val and test, where there are any, as `FeatureSet.report` has them; the test scores are handed
    over to the run.

    score: features (N, E) as `data` has them → scores (N, C). It is asked once for each part.
    """
    parts = {part: (getattr(data, part), getattr(data, f"{part}_labels")) for part in ("val", "test")}
    scored = {part: (score(features), labels) for part, (features, labels) in parts.items() if len(labels)}
    if "test" in scored:
        scores, labels = scored["test"]
        names = data.classnames or tuple(map(str, range(scores.shape[1])))
        run.hand_over(ScoredPhotos(scores, labels, names, data.test_photos))
    return {
        f"{part}_{name}": value
        for part, (scores, labels) in scored.items()
        for name, value in classification_report(scores, labels).items()
    }
