"""Batches of phrases whose photos are encoded in each step, whole or in fresh views, and steps over several batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jclip.data.box_photo_views import BoxViews
from jclip.data.box_photos import views_of_photos
from jclip.data.box_views import BoxAugment
from jclip.data.loader import OnError, warn_once
from jclip.features.box_features import Batch, normalisation, seen_tokens, square_side
from jclip.kernels import collectives
from jclip.machine import ranks
from jclip.runtime import jt
from jclip.train.box_towers import LearningTowers
from jclip.train.box_training import PhraseBatches, absent_phrases, batch_loss, check_step, own_batch


@dataclass(frozen=True)
class PhotoBatches(PhraseBatches):
    """Batches of `size` phrases with the pixels of their photos, in an order drawn anew for each epoch by `seed`.

    augment: each phrase's photo in a view of its own, drawn by seed, epoch and phrase; None: each photo of a batch once,
    whole. absent: share of a batch's phrases that are replaced by phrases of other photos. What is left over is dropped; a
    photo that does not decode stops, or with `skip` is left out and named once.
    """

    augment: BoxAugment | None = None
    on_error: OnError = "stop"
    _reported: set[str] = field(default_factory=set)

    def _batches(self, chunks: Sequence[np.ndarray], epoch: int, rng: np.random.Generator) -> Iterator[Batch]:
        yield from (self._drawn if self.augment else self._whole)(chunks, epoch, rng)

    def _views(self, epoch: int) -> BoxViews:
        source = self.features.source
        return BoxViews(
            square_side(source), normalisation(source, self.features.reading), self.augment, self.seed, epoch
        )

    def _whole(self, chunks: Sequence[np.ndarray], epoch: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Each photo of a batch once."""
        samples, views = self.features.samples, self._views(epoch)
        wanted = [np.unique(samples.of[rows[ranks.here().share(len(rows))]]) for rows in chunks]
        found = views_of_photos(samples, np.concatenate(wanted).tolist(), views, 2 * self.size)
        for rows, photos in zip(chunks, wanted, strict=True):
            pixels = np.stack([views.view_of(next(found)[1]).pixels for _ in photos])
            absent = absent_phrases(self.features, rows, self.absent, rng)
            yield own_batch(self.features, rows, absent)._replace(pixels=pixels)

    def _drawn(self, chunks: Sequence[np.ndarray], epoch: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Each phrase with a view of its own; where photos are left out a later phrase takes the place."""
        samples, views, failed = self.features.samples, self._views(epoch), []
        own = ranks.here().share(self.size)
        rows = np.concatenate([chunk[own] for chunk in chunks])
        whole = iter(chunks) if ranks.here().several else None
        prepared = views_of_photos(
            samples, samples.of[rows].tolist(), views, 2 * self.size, rows.tolist(), self.on_error, failed
        )
        waiting: list[tuple[int, np.ndarray]] = []
        for place, array in prepared:
            waiting.append((int(rows[place]), array))
            if len(waiting) == own.stop - own.start:
                yield self._batch_of(waiting, views, rng, next(whole) if whole else None)
                waiting = []
        warn_once(failed, self._reported)

    def _batch_of(
        self,
        waiting: list[tuple[int, np.ndarray]],
        views: BoxViews,
        rng: np.random.Generator,
        whole: np.ndarray | None,
    ) -> Batch:
        """whole: of several ranks, the rows of the batch of which `waiting` are this one's."""
        features, rows = self.features, np.array([row for row, _ in waiting])
        seen = [views.view_of(array) for _, array in waiting]
        every = rows if whole is None else whole
        batch = own_batch(features, every, absent_phrases(features, every, self.absent, rng))
        return batch._replace(
            images=None, pixels=np.stack([view.pixels for view in seen]), of=np.arange(len(rows)),
            seen=np.stack([seen_tokens(features.source, view.place, features.reading.layers) for view in seen]),
            boxes=np.stack([view.box for view in seen]), photos=features.samples.of[rows],
        )  # fmt: skip


@dataclass(frozen=True)
class SteppedBatches:
    """`accumulate` batches for each step; a rest that fills no step is left out."""

    batches: Any
    accumulate: int = 1

    def __post_init__(self):
        check_step(len(self.batches.features), self.batches.size, self.accumulate)

    def __len__(self) -> int:
        return len(self.batches) // self.accumulate

    def epoch(self, epoch: int) -> Iterator[list[Batch]]:
        """Lists of batches, the same at every call."""
        together: list[Batch] = []
        for batch in self.batches.epoch(epoch):
            together.append(batch)
            if len(together) == self.accumulate:
                yield together
                together = []


def step_gradients(
    network: Any, towers: LearningTowers, batches: Sequence[Batch], params: Iterable[Any], seed: int, number: int
) -> tuple[Any, list[Any]]:
    """The loss of all batches together and its gradients by `params`, one batch at a time in memory.

    What of the towers learns, or has views that no cache has, is computed here. seed, number: of what is drawn, and the
    step's. Of several ranks each has its share of each batch, and all get the loss and gradients of all. Returns Jittor
    variables.
    """
    params, total, loss = list(params), None, None
    sums = np.array([sum(float(b.there.sum()) for b in batches), sum(len(b.there) for b in batches)])
    there, count = collectives.total(sums).tolist()
    for place, batch in enumerate(batches):
        towers.learn(number, place)
        draw = (seed, number) if len(batches) == 1 else (seed, number, place)
        shares = (float(batch.there.sum()) / there, len(batch.there) / count)
        own = batch_loss(network, whole_batch(towers, batch), int(np.random.default_rng(draw).integers(2**31)), shares)
        gradients = jt.grad(own, params, retain_graph=False)
        with jt.no_grad():  # sums that remember no part of themselves
            total = gradients if total is None else [a + b for a, b in zip(total, gradients, strict=True)]
            loss = own.detach() if loss is None else loss + own.detach()
        if len(batches) > 1:
            jt.sync([*total, loss])
    towers.rest()
    return collectives.summed_gradients(loss, total)


def whole_batch(towers: LearningTowers, batch: Batch) -> Batch:
    """The batch with tokens of photos and phrases that it has not yet."""
    if batch.images is None:
        batch = batch._replace(images=towers.images(batch.pixels))
    if batch.texts is None:
        texts, said = towers.texts(batch.phrases)
        batch = batch._replace(texts=texts, said=said)
    return batch
