"""How the network that finds boxes is trained and measured: batches of phrases, the loss, the figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jclip.data.box_samples import BoxSamples
from jclip.errors import DataError
from jclip.features.box_features import Batch, BoxFeatures, found_boxes
from jclip.functional import boxes as box_forms
from jclip.functional.box_metrics import auroc, box_report, group_report, phrase_groups
from jclip.machine import ranks
from jclip.postponed import jt

GROUPS = {"with a direction word": "sides", "without": "no_sides"}  # of phrases, in the metrics' names


def check_step(phrases: int, size: int, accumulate: int = 1) -> None:
    """Raises `DataError` where there are too few phrases for one step."""
    if phrases // size < 1:
        raise DataError(f"a batch must fit the {phrases} phrases to learn from, got optim.batch={size}")
    if phrases // size < accumulate:
        raise DataError(
            f"a step of {accumulate} x {size} phrases (accumulate x optim.batch) must fit the {phrases} phrases to learn "
            "from: lower them"
        )


def samples_digest(parts: Mapping[str, BoxSamples]) -> str:
    """A hash of phrases, boxes, and names and sizes of photos; nothing in one process."""
    if not ranks.here().several:
        return ""
    made = hashlib.sha256()
    for part, samples in parts.items():
        photos = [Path(samples.name(number)).name for number in range(len(samples.photos))]
        facts = [part, photos, samples.sizes.tolist(), samples.of.tolist(), samples.phrases, samples.boxes.tolist()]
        made.update(json.dumps(facts).encode())
    return made.hexdigest()


@dataclass(frozen=True)
class PhraseBatches:
    """Batches of `size` phrases, drawn anew for each epoch by `seed`; what is left over is dropped.

    absent: share of a batch's phrases that are replaced by phrases of other photos, for things that are not there.
    """

    features: BoxFeatures
    size: int
    seed: int
    absent: float = 0.0

    def __post_init__(self):
        check_step(len(self.features), self.size)

    def __len__(self) -> int:
        return len(self.features) // self.size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, the same at every call."""
        rng = np.random.default_rng((self.seed, epoch))
        yield from self._batches(self._rows(rng), epoch, rng)

    def _rows(self, rng: np.random.Generator) -> list[np.ndarray]:
        """The numbers of the phrases of each batch."""
        order = rng.permutation(len(self.features))
        return [order[number * self.size : (number + 1) * self.size] for number in range(len(self))]

    def _batches(self, chunks: Sequence[np.ndarray], epoch: int, rng: np.random.Generator) -> Iterator[Batch]:
        for rows in chunks:
            yield own_batch(self.features, rows, absent_phrases(self.features, rows, self.absent, rng))


def own_batch(features: BoxFeatures, rows: np.ndarray, absent: Mapping[int, str]) -> Batch:
    """The batch of these rows; of several ranks, this one's share of it."""
    own = ranks.here().share(len(rows))
    absent = {place - own.start: phrase for place, phrase in absent.items() if own.start <= place < own.stop}
    return features.batch(rows[own], absent)._replace(first=own.start)


def absent_phrases(features: BoxFeatures, rows: np.ndarray, share: float, rng: np.random.Generator) -> dict[int, str]:
    """By place in the batch a phrase of another photo, for about that share of the rows; one thing at least is there."""
    places = np.flatnonzero(rng.random(len(rows)) < share)[: len(rows) - 1].tolist() if share else []
    phrases = features.samples.absent_phrases(rows[places], rng) if places else []
    return dict(zip(places, phrases, strict=True))


def batch_loss(network: Any, batch: Batch, seed: int, shares: tuple[float, float] = (1.0, 1.0)):
    """Σ|p - t| + 1 - GIoU(p, t), the mean over the things that are there, and the cross-entropy of whether they are.

    seed: of dropout. shares: what both are multiplied with, of a part of a larger batch. Returns a Jittor variable.
    """
    found = network(batch.images, batch.texts, batch.said, batch.seen, batch.of, seed=seed, first=batch.first)
    there = np.flatnonzero(batch.there).astype(np.int32)
    boxes = found.boxes if len(there) in (0, len(batch.there)) else found.boxes[jt.array(there)]
    loss = (
        box_forms.box_loss(boxes, jt.array(batch.boxes[there])) * shares[0] if len(there) else (boxes * 0).sum()
    )  # a rank's share of a batch may show nothing
    if found.present is None:
        return loss
    x, y = found.present, jt.array(batch.there)
    return loss + (jt.maximum(x, jt.zeros_like(x)) - x * y + jt.log(1 + jt.exp(-jt.abs(x)))).mean() * shares[1]


@dataclass(frozen=True)
class FoundBoxes:
    """What a network found: corners (n, 4) in pixels of the photo, cut at its edges, and (n,) logits that things are there;
    square: the same boxes and the true ones in the padded square, pixels. criterion, frame: what is compared, and where."""

    features: BoxFeatures
    predicted: np.ndarray
    square: tuple[np.ndarray, np.ndarray]
    present: np.ndarray | None = None
    of_absent: np.ndarray | None = None
    criterion: Literal["iou", "giou"] = "iou"
    frame: Literal["square", "image"] = "square"

    @property
    def compared(self) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and true corners."""
        return (
            self.square if self.frame == "square" else (self.predicted, np.asarray(self.features.samples.boxes, float))
        )

    def report(self) -> dict[str, float]:
        """acc@t, mean_iou, cumulative_iou, count, acc_sides and acc_no_sides by direction words where there are both,
        and of a network that says whether things are there how well: present_auroc, present_acc. Of
        several files the first of these also for each, after its name."""
        samples, compared = self.features.samples, self.compared
        sizes = samples.sizes[samples.of]
        groups = {name: m for name, m in phrase_groups(samples.phrases, samples.boxes, sizes).items() if name in GROUPS}
        found = group_report(*compared, groups, self.criterion)
        parts = {f"acc_{GROUPS[name]}": row["acc"] for name, row in found.items()} if len(found) == len(GROUPS) else {}
        present = {} if self.present is None else presence(self.present, self.of_absent)
        own = {**box_report(*compared, self.criterion), "count": len(samples)}
        return {**own, **parts, **present, **self._by_label()}

    def _by_label(self) -> dict[str, float]:
        labels = np.array(self.features.samples.labels)
        names = list(dict.fromkeys(self.features.samples.labels))
        found = {}
        for name in names if len(names) > 1 else ():
            predicted, true = (boxes[labels == name] for boxes in self.compared)
            report = {**box_report(predicted, true, self.criterion), "count": len(true)}
            found |= {f"{name}_{k}": v for k, v in report.items()}
        return found


def found_in(network: Any, features: BoxFeatures, seed: int = 0, **compared: Any) -> FoundBoxes:
    """The boxes of all samples; with a present head its logits for them and for as many absent things, drawn by `seed`.

    compared: criterion and frame of the report.
    """
    centres, present = found_boxes(network, features)
    samples = features.samples
    predicted = [
        features.places[photo].back(box, tuple(samples.sizes[photo].tolist()))
        for photo, box in zip(samples.of.tolist(), centres, strict=True)
    ]
    side = features.places[0].side
    wanted = box_forms.centres_to_corners(np.asarray(features.targets, float)) * side
    square = box_forms.clipped(box_forms.centres_to_corners(np.asarray(centres, float)) * side, side, side)
    absent = None
    if present is not None:
        phrases = samples.absent_phrases(np.arange(len(samples)), np.random.default_rng((seed, 9)))
        absent = found_boxes(network, features, phrases)[1]
    return FoundBoxes(features, np.array(predicted), (square, wanted), present, absent, **compared)


def presence(of_present: np.ndarray, of_absent: np.ndarray) -> dict[str, float]:
    """How well logits tell things that are there from those that aren't, as many of each: present_auroc, and present_acc, the
    share on the right side of 0."""
    right = (of_present > 0).sum() + (of_absent <= 0).sum()
    return {
        "present_auroc": auroc(of_present, of_absent),
        "present_acc": float(right / (len(of_present) + len(of_absent))),
    }
