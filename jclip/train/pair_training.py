"""Training a positive and a negative prompt of each class on labelled photos whose labels may be known in part.

DualCoOp, Sun et al., NeurIPS 2022, arXiv 2206.09541; DualCoOp++, Hu et al., arXiv 2308.01890. The image tower stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jclip.config import WithAugmentation, WithSelection
from jclip.data.augment import Views
from jclip.data.augment import augment as augment_named
from jclip.data.label_files import PhotoLabels
from jclip.data.loader import batches as photo_batches
from jclip.data.loader import warn_once
from jclip.errors import notice
from jclip.features.extraction import batch_size, extract
from jclip.features.pair_maps import PairScorer, PairSource, scores_of_places, text_of
from jclip.features.photo_maps import maps_in_parts
from jclip.features.source import ModelSource
from jclip.functional.multi_label_losses import asymmetric_loss, pair_asymmetric_loss, ranking_loss
from jclip.functional.multi_label_metrics import best_k
from jclip.functional.multi_label_scores import Winner
from jclip.functional.similarity import normalise
from jclip.kernels import collectives
from jclip.machine import ranks
from jclip.model.learned_prompts import Position
from jclip.model.prompt_sets import PromptSets, texts_with
from jclip.runtime import jt
from jclip.train.loop import Outcome, fit
from jclip.train.multi_label_photos import mean_precision
from jclip.train.optim import TrainState, learning_rate, optimiser, step_together
from jclip.train.run import Run
from jclip.train.scored_photos import ScoredInParts

MOST_KEPT = 2**32  # bytes of features of training photos in memory
F1_AT = 3  # classes of a photo, in the tables of classes never seen in training


class LearnedFromPhotos(WithAugmentation, WithSelection, Protocol):
    """Photos, prompts and the loss: see the recipe `dual_prompt`."""

    @property
    def winner_among(self) -> Winner: ...
    @property
    def scale(self) -> float: ...
    @property
    def sharpness(self) -> float: ...
    @property
    def learn(self) -> Sequence[str]: ...
    @property
    def loss(self) -> str: ...
    @property
    def loss_weight(self) -> float: ...
    @property
    def margin(self) -> float: ...
    @property
    def negative_power(self) -> float: ...
    @property
    def positive_power(self) -> float: ...
    @property
    def clip(self) -> float: ...


class PairHead:
    """Prompts, and the scale and the sharpness of their scores; of these `cfg.learn` are learned, as logarithms."""

    def __init__(self, cfg: LearnedFromPhotos, prompts: PromptSets):
        self.prompts, self._cfg = prompts, cfg
        self.logs = {name: jt.array([np.float32(math.log(getattr(cfg, name)))]) for name in cfg.learn}

    @property
    def parameters(self) -> dict[str, jt.Var]:
        """What is trained, by name."""
        vectors = {f"context_{name}": v for name, v in self.prompts.vectors.items()}
        return vectors | {f"log_{name}": v for name, v in self.logs.items()}

    def factor(self, name: str) -> Any:
        """The "scale" or the "sharpness"."""
        return jt.exp(self.logs[name]) if name in self.logs else getattr(self._cfg, name)

    def loss(self, maps: np.ndarray, targets: np.ndarray):
        """Rows of places (B, P E) and labels (B, C), 1, 0 or -1 → a scalar."""
        cfg, text = self._cfg, self.prompts.features()
        places = normalise(jt.array(maps.reshape(len(maps), -1, text["positive"].shape[1]))).stop_grad()
        yes, no = scores_of_places(places, text, self.factor("sharpness"), self.factor("scale"), cfg.winner_among)
        if cfg.loss == "ranking":
            return cfg.loss_weight * ranking_loss(yes - no, targets, cfg.margin)
        powers = cfg.negative_power, cfg.positive_power, cfg.clip
        if cfg.loss == "pair":
            return pair_asymmetric_loss(yes, no, targets, *powers, weight=cfg.loss_weight)
        return cfg.loss_weight * asymmetric_loss(yes - no, targets, *powers)

    def learned(self, arrays: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """`context_<set>`, `text_<set>` (C, E), `scale` and `sharpness` (1,), of the parameters as they are or `arrays`."""
        found = arrays or {name: v.numpy() for name, v in self.parameters.items()}
        vectors = text_of(found, "context")
        with jt.no_grad():
            text = self.prompts.features({name: jt.array(v) for name, v in vectors.items()})
        factors = {
            name: np.exp(found[f"log_{name}"])
            if name in self.logs
            else np.array([getattr(self._cfg, name)], np.float32)
            for name in ("scale", "sharpness")
        }
        contexts = {f"context_{name}": v for name, v in vectors.items()}
        return {**contexts, **{f"text_{name}": t.numpy() for name, t in text.items()}, **factors}


class PlaceBatches:
    """Batches (rows of places (B, P E), labels (B, C)), reshuffled in each epoch by (seed, epoch); what fills no batch is
    left out.

    Without augmentation the photos are encoded once, where their features fit into memory; else each epoch re-encodes them.
    """

    def __init__(self, cfg: LearnedFromPhotos, source: PairSource, labels: PhotoLabels, targets: np.ndarray):
        self._cfg, self._source, self._split, self._targets = cfg, source, labels.split, targets
        self._reported: set[str] = set()
        self._kept = None
        if augment_named(cfg.augment) is None and self._fits():
            rows, self._kept = extract(source, self._split, on_error=cfg.data.on_error, label="train")
            self._targets = targets[rows]
        self._size = min(cfg.optim.batch, len(self._targets))

    def _fits(self) -> bool:
        needed = 4 * len(self._split) * self._source.count * self._source.width
        if needed > MOST_KEPT:
            notice(f"features of {len(self._split)} photos take {needed / 2**30:.0f} GiB: each epoch recomputes them")
        return needed <= MOST_KEPT

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return len(self._targets) // self._size

    def __call__(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = np.random.default_rng((self._cfg.seed, epoch)).permutation(len(self._targets))
        order = order[: self.steps * self._size]
        if self._kept is None:
            yield from self._encoded(epoch, order)
            return
        for rows in np.split(order, self.steps):
            yield self._kept[rows], self._targets[rows]

    def _encoded(self, epoch: int, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        cfg, failed = self._cfg, []
        views = Views(self._source.preprocess, augment_named(cfg.augment), cfg.seed, (epoch,))
        if ranks.here().several:
            yield from self._shared(np.split(order, self.steps), views)
            return
        paths = self._split.take(order).paths
        for at, pixels in photo_batches(paths, views, self._size, cfg.data.on_error, failed, order):
            yield self._places(pixels), self._targets[order[at]]
        warn_once(failed, self._reported)

    def _shared(self, batches: Sequence[np.ndarray], views: Views) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of several ranks each encodes its share of a batch, and all get all."""
        own = np.concatenate([rows[ranks.here().share(len(rows))] for rows in batches])
        size = len(own) // len(batches)
        read = photo_batches(self._split.take(own).paths, views, size, "stop", rows=own)
        for rows, (_, pixels) in zip(batches, read, strict=True):
            yield collectives.joined(self._places(pixels)), self._targets[rows]

    def _places(self, pixels: np.ndarray) -> np.ndarray:
        """(n, 1, 3, H, W) → rows of places (n, P E)."""
        at_once, encode = batch_size(), self._source.model.encode_image
        with jt.no_grad():
            parts = [encode(pixels[i : i + at_once, 0]).float32().numpy() for i in range(0, len(pixels), at_once)]
        return np.concatenate(parts)


def train(
    cfg: LearnedFromPhotos, run: Run, head: PairHead, batches: PlaceBatches, evaluate: Callable | None = None
) -> tuple[Outcome, TrainState]:
    """`cfg.optim`'s epochs. evaluate() measures validation photos after each; its "map_merged" chooses the best."""
    state = TrainState(optim := optimiser(cfg.optim, head.parameters))
    total = cfg.optim.epochs * batches.steps

    def step(batch: tuple[np.ndarray, np.ndarray], number: int):
        optim.lr = learning_rate(cfg.optim, number, total)
        loss = head.loss(*batch)
        step_together(optim, loss, once=lambda name: name.startswith("log_"))
        return loss

    epochs = cfg.optim.trained_epochs
    options = {"evaluate": evaluate, "select": "map_merged", "steps": epochs * batches.steps}
    return fit(step, batches, state=state, run=run, epochs=epochs, **options), state


class MeasuredPairs:
    """The val and test photos of a run, and its figures. taught: (C,) bool, classes that training photos taught."""

    def __init__(
        self, cfg: LearnedFromPhotos, source: PairSource, parts: Mapping[str, PhotoLabels], taught: np.ndarray
    ):
        self._cfg, self._source, self._parts, self._taught = cfg, source, parts, taught

    def validation(self, head: PairHead) -> Callable[[], dict[str, float]] | None:
        """Measures the validation photos with the prompts as they are; None without any."""
        if "val" not in self._parts:
            return None

        def measure() -> dict[str, float]:
            rows, scores = self._scored("val", head.learned())
            return {"map_merged": mean_precision(scores, self._parts["val"].targets[rows])}

        return measure

    def report(self, learned: Mapping[str, np.ndarray], run: Run) -> dict[str, float]:
        """Metrics of all photos; the test photos' scores are handed over to the run."""
        metrics: dict[str, float] = {}
        for part, labels in self._parts.items():
            rows, scores = self._scored(part, learned)
            targets = labels.targets[rows]
            metrics |= {f"{part}_{name}": value for name, value in self._figures(scores, targets).items()}
            if part == "test":
                photos, parts = tuple(labels.paths[row] for row in rows), {"local": scores, "merged": scores}
                run.hand_over(ScoredInParts(scores, targets, labels.classnames, photos, parts))
        return metrics

    def _figures(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        own = mean_precision(scores, targets)
        figures = {"map_local": own, "map_merged": own}
        if self._taught.all():
            return figures
        for name, columns in (("seen", self._taught), ("unseen", ~self._taught)):
            if (targets[:, columns] == 1).any():
                figures[f"map_{name}"] = mean_precision(scores[:, columns], targets[:, columns])
        figures[f"f1_at_{F1_AT}"] = overall_f1(scores, targets)
        return figures | {f"f1_at_{F1_AT}_unseen": overall_f1(scores[:, ~self._taught], targets[:, ~self._taught])}

    def _scored(self, part: str, learned: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        scorer, split = PairScorer(learned, self._cfg), self._parts[part].split
        found = [
            (rows, scorer(maps)) for rows, maps in maps_in_parts(self._source, split, self._cfg.data.on_error, part)
        ]
        rows, scores = (np.concatenate(column) for column in zip(*found, strict=True))
        return rows, scores


def overall_f1(scores: np.ndarray, targets: np.ndarray, k: int = F1_AT) -> float:
    """Overall F1 of the k best classes of each photo: 2 P R / (P + R) over all labels that are known."""
    chosen = best_k(scores, k) & (targets >= 0)
    hits, total = (chosen & (targets == 1)).sum(), chosen.sum() + (targets == 1).sum()
    return float(2 * hits / total) if total else 0.0


def with_names(
    learned: Mapping[str, np.ndarray], source: ModelSource, classnames: Sequence[str], position: Position
) -> dict[str, np.ndarray]:
    """What was learned, its text features those of other classes' names. Raises `DataError` for names that don't fit."""
    vectors = text_of(learned, "context")
    return {**learned, **texts_with(source.model, classnames, vectors, position)}
