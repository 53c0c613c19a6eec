"""Photos of several classes each: what a run reads, how it scores them, and the metrics that it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from jclip.config import WithPhotos, WithSearch
from jclip.data.class_names import read_class_names
from jclip.data.label_files import PhotoLabels
from jclip.data.labelled_photos import read_labelled_photos
from jclip.data.lexicons import spoken_names
from jclip.data.multi_label import has_photos
from jclip.data.shapes import CLASSNAMES
from jclip.errors import ConfigError, DataError
from jclip.features.heads import zero_shot_head
from jclip.features.photo_maps import MapScorer, MapSource, Scored, WithMapScores, score_photos
from jclip.functional.multi_label_metrics import average_precision_per_class, mean_over_classes
from jclip.prompts.spelling import name_key
from jclip.prompts.templates import prompts_of
from jclip.runtime import jt
from jclip.train.run import Run
from jclip.train.scored_photos import ScoredInParts

ZERO_SHOT_SHARPNESS = 100.0  # of the softmax over places, as TaI-DPT's code has its baseline
SHARES = tuple(k / 20 for k in range(21))  # of the global scores, that a search tries


class MeasuredPhotos(WithMapScores, WithPhotos, WithSearch, Protocol):
    """Photos of several classes each, and how they are measured."""

    @property
    def classes(self) -> str: ...
    @property
    def captions(self) -> tuple[str, ...]: ...
    @property
    def selection(self) -> str: ...
    @property
    def merge(self) -> float: ...
    @property
    def templates(self) -> str: ...


def read_parts(cfg: MeasuredPhotos) -> dict[str, PhotoLabels]:
    """The val and test photos that `cfg.data` names, by part. Raises `DataError`, or `ConfigError` where something is
    chosen on validation photos and there are none."""
    parts = {part: read_labelled_photos(cfg.data, part) for part in ("val", "test") if has_photos(cfg.data, part)}
    chosen = "the epoch (selection=val)" if cfg.selection == "val" else "merge (search=true)" if cfg.search else ""
    if chosen and "val" not in parts:
        raise ConfigError(
            f"{chosen} needs labelled validation photos, got none: set data.val, or switch the choice off"
        )
    return parts


def names_of(cfg: MeasuredPhotos, parts: Mapping[str, PhotoLabels]) -> tuple[str, ...]:
    """The class names in the order of the photos' labels, else those that the config names. Raises `DataError`."""
    named = cfg.classes or cfg.data.classes
    for part in parts.values():
        own = part.classnames
        if cfg.classes and [*map(name_key, own)] != [*map(name_key, read_class_names(cfg.classes).names)]:
            raise DataError(f"classes must be those of the photos, in their order, got {cfg.classes}: leave it out")
        return own
    if not named and "shapes" in cfg.captions:
        return CLASSNAMES
    if not named:
        raise ConfigError("there are no class names: set data.classes to a file of them, or classes=a,b,c")
    return read_class_names(named).names


def facts(parts: Mapping[str, PhotoLabels]) -> dict[str, str]:
    """What photos were measured on, for the result."""
    return {f"{name}_sha256": part.split.digest() for name, part in parts.items()}


class Measured:
    """The photos that a run is measured on, and its figures.

    extras: `shares` (C, C) and `bank` (Q, E), as far as scores need them.
    """

    def __init__(
        self, cfg: MeasuredPhotos, source: MapSource, parts: Mapping[str, PhotoLabels], extras: Mapping[str, np.ndarray]
    ):
        self._cfg, self._source, self._parts, self._extras = cfg, source, parts, extras

    def validation(self, prompts: Any) -> Callable[[], dict[str, float]] | None:
        """Measures the validation photos with the prompts as they are; None without any."""
        if "val" not in self._parts:
            return None

        def measure() -> dict[str, float]:
            with jt.no_grad():
                text = {f"text_{name}": t.numpy() for name, t in prompts.features().items()}
            rows, scored = self._scored("val", {**text, **self._extras})
            targets = self._parts["val"].targets[rows]
            share = self._share(scored, targets)
            return {"map_merged": mean_precision(scored.merged(share), targets)}

        return measure

    def report(self, learned: Mapping[str, np.ndarray], run: Run) -> tuple[float, dict[str, float]]:
        """The share of the global scores, searched on val where the config says so, and the metrics of all photos; the test
        photos' scores are handed over to the run."""
        share, metrics = self._cfg.merge, {}
        for part in self._parts:  # val comes first
            rows, scored = self._scored(part, learned)
            targets = self._parts[part].targets[rows]
            if part == "val":
                share = self._share(scored, targets)
            found = {"global": scored.whole, "local": scored.places, "merged": scored.merged(share)}
            metrics |= {f"{part}_map_{name}": mean_precision(scores, targets) for name, scores in found.items()}
            if part == "test":
                photos = tuple(self._parts[part].paths[row] for row in rows)
                run.hand_over(ScoredInParts(found["merged"], targets, self._parts[part].classnames, photos, found))
        return share, {"merge": share, **metrics} if metrics else {}

    def zero_shot(self, classnames: Sequence[str]) -> dict[str, float]:
        """Figures of the model without training: the classes' names in `cfg.templates`, for the whole photo and for its
        places, without whatever else the recipe has."""
        if not self._parts:
            return {}
        head = zero_shot_head(self._source, prompts_of(spoken_names(classnames), self._cfg.templates))
        plain = replace(self._cfg, tau_image=ZERO_SHOT_SHARPNESS, winner="none", scale=1.0)
        scorer, metrics = MapScorer({"text_global": head.weights, "text_local": head.weights}, plain), {}
        for part, photos in self._parts.items():
            rows, scored = score_photos(self._source, photos.split, scorer, self._cfg.data.on_error, part)
            found = {"global": scored.whole, "local": scored.places, "merged": scored.merged(0.5)}
            metrics |= {f"zero_shot_{part}_map_{k}": mean_precision(v, photos.targets[rows]) for k, v in found.items()}
        return metrics

    def _share(self, scored: Scored, targets: np.ndarray) -> float:
        return best_share(scored, targets) if self._cfg.search else self._cfg.merge

    def _scored(self, part: str, learned: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Scored]:
        cfg = self._cfg
        return score_photos(self._source, self._parts[part].split, MapScorer(learned, cfg), cfg.data.on_error, part)


def best_share(scored: Scored, targets: np.ndarray) -> float:
    """The share of the global scores with the best mAP, the smallest among equals."""
    return max(SHARES, key=lambda share: (mean_precision(scored.merged(share), targets), -share))


def mean_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """mAP of scores (N, C), labels (N, C) in {1, 0, -1}: the mean average precision of the classes that photos are of.

    Raises `DataError` for none.
    """
    if not (targets == 1).any():
        raise DataError("none of the photos is of any class: average precision needs some that are")
    return mean_over_classes(average_precision_per_class(scores, targets))
