"""Training of both towers on images with captions: the batches, the loss of a step, and its gradients.

The loss is that which pre-trained the model (softmax) or SigLIP's (sigmoid), and on top of either that of a teacher.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jclip.data.augment import Augment, Views
from jclip.data.captions import Pairs
from jclip.data.preprocess import Preprocess
from jclip.errors import ConfigError, DataError
from jclip.features.caption_features import encode_pairs, ids_of
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.functional.losses import (
    contrastive_loss,
    contrastive_loss_of_rows,
    distillation_loss,
    positive_pairs,
    positive_targets,
    sigmoid_loss,
    sigmoid_loss_of_rows,
)
from jclip.functional.metrics import softmax
from jclip.kernels import collectives
from jclip.machine import ranks
from jclip.model.clip import inference
from jclip.model.low_rank import Adapters
from jclip.model.patch_dropout import draw_patches, encode_kept_patches
from jclip.runtime import jt
from jclip.train.on_photos import OF_THE_LOSS, features_in_parts

LossKind = Literal["softmax", "sigmoid"]
SIZES = 1000  # files of which ranks compare the size: each costs a look at the disk
Positives = Literal["own", "same", "caption", "image", "both"]


class Part(NamedTuple):
    """A part of a step: n images (n, 3, H, W), or features (n, E) of a locked tower, with tokens (n, L) of their captions.

    meanings, photos: (n,), equal where two captions mean the same, or two images are one. kept: (n, k) patches that the
    tower sees; None: all. teacher_tokens: (n, L') in the teacher's vocabulary. own: of several ranks, which rows of the
    whole part this one has (n,); meanings and photos are those of the whole part.
    """

    images: np.ndarray
    tokens: np.ndarray
    meanings: np.ndarray
    photos: np.ndarray | None = None
    kept: np.ndarray | None = None
    teacher_tokens: np.ndarray | None = None
    own: np.ndarray | None = None


@dataclass(frozen=True)
class Objective:
    """What a step minimises.

    positives: "own": each image's caption alone; "same" and "caption": captions of one meaning belong to each other's images
    as well; "image": captions of one image; "both": either. teacher: a model whose scores are wanted too, `distill` times.
    adapters: low-rank updates of the model, whose dropout draws by `seed` and the step's number. by_rows: of several ranks
    each computes the loss of its own rows, among all; else all compute the whole loss.
    """

    loss: LossKind = "softmax"
    positives: Positives = "own"
    teacher: Any = None
    distill: float = 1.0
    adapters: Adapters | None = None
    seed: int = 0
    by_rows: bool = False
    further: Mapping[str, jt.Var] = field(default_factory=dict)  # what is trained and no weight of the model, by name


class PairBatches:
    """The pairs of an epoch in seeded order, prepared ahead; what a locked tower makes of them is computed once.

    size, accumulate: pairs of a part, parts of a step. dropped: the share of patches that a ViT does not see.
    """

    def __init__(
        self, model: Any, preprocess: Preprocess, pairs: Pairs, pipeline: Augment | None, seed: int, size: int,
        accumulate: int = 1, dropped: float = 0.0, teacher: Any = None, locked: bool = False,
    ):  # fmt: skip
        self._model, self._preprocess, self._pairs, self._pipeline = model, preprocess, pairs, pipeline
        self._seed, self._size, self._accumulate = seed, size, accumulate
        self._dropped, self._teacher = dropped, teacher
        self._rows, self._known = np.arange(len(pairs)), None
        if locked and pairs.paths and pipeline is None and teacher is None:
            encoded = encode_pairs(model, pairs, preprocess)
            self._rows, self._known = encoded.rows, dict(zip(encoded.rows.tolist(), encoded.images, strict=True))
        self._broken = broken_images(pairs, preprocess) if self._known is None else np.zeros(0, np.int64)

    def epoch(self, epoch: int) -> Iterator[list[Part]]:
        """Lists of `accumulate` parts; a rest that fills no step is left out. Of several ranks each has its rows of each
        part."""
        rng, parts = np.random.default_rng((self._seed, epoch, 0xD40)), []
        for rows, images in self._images(epoch):
            if len(rows) < self._size:
                return
            parts.append(self._part(rows, images, epoch, self._draw(rng) if self._dropped else None))
            if len(parts) == self._accumulate:
                yield parts
                parts = []

    def _part(self, rows: np.ndarray, images: np.ndarray, epoch: int, kept: np.ndarray | None) -> Part:
        """rows: of the whole part; images: those of this rank's rows."""
        here, own = ranks.here(), ranks.here().share(len(rows))
        texts, meanings = self._pairs.texts(rows, epoch)
        tokens = self._model.tokenize(texts[own], truncate=True)
        taught = self._teacher.tokenize(texts[own], truncate=True) if self._teacher else None
        places = np.arange(own.start, own.stop) if here.several else None
        kept = None if kept is None else kept[own]
        return Part(images, tokens, np.array(meanings), self._pairs.images[rows], kept, taught, places)

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        rows, columns = self._model.config.vision.grid
        return draw_patches(rng, self._size, rows * columns, self._dropped)

    def _images(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of a part, and the pixels, or a locked tower's features, of those that are this rank's."""
        order = np.random.default_rng((self._seed, epoch)).permutation(self._rows)
        if self._known is None and not ranks.here().several:
            return self._pairs.batches(order, epoch, self._size, self._views(epoch))
        order = order[~np.isin(order, self._broken)]
        ends = range(self._size, len(order) + 1, self._size)
        parts, own = [order[end - self._size : end] for end in ends], ranks.here().share(self._size)
        if self._known is None:
            return self._read(parts, own, epoch)
        return ((rows, np.stack([self._known[row] for row in rows[own].tolist()])) for rows in parts)

    def _views(self, epoch: int) -> Views:
        return Views(self._preprocess, self._pipeline, self._seed, (epoch,))

    def _read(self, parts: list[np.ndarray], own: slice, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Whole parts, and the pixels of their own rows, which decoded when training began."""
        wanted = np.concatenate([rows[own] for rows in parts]) if parts else np.zeros(0, np.int64)
        read = self._pairs.batches(wanted, epoch, own.stop - own.start, self._views(epoch))
        for rows in parts:
            got, images = next(read, (rows[:0], None))
            if not np.array_equal(rows[own], got):
                lost = self._pairs.paths[np.setdiff1d(rows[own], got)[0]]
                raise DataError(f"{lost} decoded when training began, and does not now: put it back, then go on")
            yield rows, images


def pairs_digest(*parts: Pairs | None) -> str:
    """A hash of the pairs' captions, of their photos' folders and names, and of some files' sizes; nothing in one process.
    Scenes are known by the config."""
    if not ranks.here().several:
        return ""
    made = hashlib.sha256()
    for pairs in (part for part in parts if part is not None and part.paths):
        made.update(f"{len(pairs)}\n".encode())
        for path, text in zip(pairs.paths, pairs.texts(range(len(pairs)))[0], strict=True):
            made.update(f"{Path(path).parent.name}/{Path(path).name}\t{text}\n".encode("utf-8", "surrogateescape"))
        for path in pairs.paths[:: -(-len(pairs.paths) // SIZES)]:
            with contextlib.suppress(OSError):  # who reads it says that it is missing
                made.update(f"{Path(path).stat().st_size}\n".encode())
    return made.hexdigest()


def broken_images(pairs: Pairs, preprocess: Preprocess) -> np.ndarray:
    """Rows whose images do not decode, where several ranks leave such out: each reads its share of the images once.

    One process meets them on its way.
    """
    if not (ranks.here().several and pairs.paths and pairs.on_error == "skip"):
        return np.zeros(0, np.int64)
    firsts = np.unique(pairs.images, return_index=True)[1]
    own = firsts[ranks.here().share(len(firsts))]
    read = [at for at, _ in pairs.batches(own, 0, 64, Views(preprocess))]
    decoded = collectives.joined(np.concatenate([np.zeros(0, np.int64), *read]))
    return np.flatnonzero(~np.isin(pairs.images, pairs.images[decoded]))


def caption_gradients(
    model: Any, parts: Sequence[Sequence], names: Sequence[str], objective: Objective, number: int = 0
) -> tuple[jt.Var, list[jt.Var]]:
    """Loss and gradients of one step over all `parts` together, those of `names`' parameters in their order.

    parts: each a `Part`, or its first fields. Of several parts one at a time is kept in memory
    (`jclip.kernels.gradient_parts`). number: the step's, for what is drawn at random. Of several ranks each has some rows
    of each part, and all get the loss and gradients of all rows.
    """
    given = [Part(*part) for part in parts]
    params = {**model.state_dict(), **objective.further}
    wanted = {name: params[name] for name in names}
    encoders: dict[Literal["image", "text"], Callable] = {
        "image": lambda part: image_features(model, part.images, part.kept),
        "text": lambda part: model.encode_text(part.tokens),
    }

    def features(tower: Literal["image", "text"]) -> jt.Var:
        def encode(place: int):
            if objective.adapters:
                objective.adapters.draw(objective.seed, number, place, tower == "text")
            return encoders[tower](given[place])

        return features_in_parts(model, encode, range(len(given)), wanted, tower)

    own = features("image"), features("text")
    if not ranks.here().several:
        loss = loss_of(*own, params, given, objective)
        return loss, jt.grad(loss, list(wanted.values()))
    places, count = places_of(given)
    whole = collectives.gathered(own, places, count, shared_loss=not objective.by_rows)
    if objective.by_rows:
        loss = loss_of_rows(own, whole, places, params, given, objective)
    else:
        loss = loss_of(*whole, params, given, objective)
    once = [name in OF_THE_LOSS and not objective.by_rows for name in names]
    return collectives.summed_gradients(loss, jt.grad(loss, list(wanted.values())), once, not objective.by_rows)


def places_of(parts: Sequence[Part]) -> tuple[np.ndarray, int]:
    """(n,): where this rank's rows of all parts stand among those of all ranks, and how many these are."""
    starts = np.cumsum([0, *(len(part.meanings) for part in parts)])
    return np.concatenate([start + part.own for start, part in zip(starts[:-1], parts, strict=True)]), int(starts[-1])


def loss_of(images: jt.Var, texts: jt.Var, params: Mapping, parts: Sequence[Part], objective: Objective) -> jt.Var:
    """The objective of features (B, E) of length one."""
    scale = params["logit_scale"].exp()
    pairs = _positives(parts, objective.positives)
    if objective.loss == "sigmoid":
        loss = sigmoid_loss(
            images, texts, scale, params["logit_bias"], None if pairs is None else positive_pairs(*pairs)
        )
    else:
        loss = contrastive_loss(images, texts, scale, None if pairs is None else positive_targets(*pairs))
    if objective.teacher is None:
        return loss
    return loss + objective.distill * distillation_loss(images, texts, scale, teacher_scores(objective.teacher, parts))


def loss_of_rows(
    own: Sequence[jt.Var],
    whole: Sequence[jt.Var],
    places: np.ndarray,
    params: Mapping,
    parts: Sequence[Part],
    objective: Objective,
) -> jt.Var:
    """What the rows at `places` (n,) add to `loss_of` of all: features (n, E) of them and (B, E) of all, images and texts."""
    scale = params["logit_scale"].exp()
    pairs, count = _positives(parts, objective.positives), len(whole[0])
    if objective.loss == "sigmoid":
        same = np.eye(count, dtype=bool) if pairs is None else positive_pairs(*pairs)
        loss = sigmoid_loss_of_rows(own[0], whole[1], scale, params["logit_bias"], same[places])
    else:
        wanted = np.eye(count, dtype=np.float32) if pairs is None else positive_targets(*pairs)
        loss = contrastive_loss_of_rows(own, whole, scale, wanted[places], wanted.T[places])
    if objective.teacher is None:
        return loss
    taught = teacher_scores(objective.teacher, parts)
    halves = (softmax(scores)[places].astype(np.float32) for scores in (taught, taught.T))
    return loss + objective.distill * contrastive_loss_of_rows(own, whole, scale, *halves)


def _positives(parts: Sequence[Part], kind: Positives) -> tuple[np.ndarray, ...] | None:
    """Ids of captions, or of images, or both; None where each text is its image's alone."""
    if kind == "own":
        return None
    captions, photos = ids_of(np.concatenate([part.meanings for part in parts])), [part.photos for part in parts]
    if kind in ("same", "caption"):
        return (captions,)
    return (np.concatenate(photos),) if kind == "image" else (captions, np.concatenate(photos))


def teacher_scores(teacher: Any, parts: Sequence[Part]) -> np.ndarray:
    """(B, B) scores of all parts at the teacher's own scale, a row per image."""
    with inference(teacher):
        images = [teacher.encode_image(part.images).float32().numpy() for part in parts]
        texts = [teacher.encode_text(part.teacher_tokens).float32().numpy() for part in parts]
        scale = float(np.exp(teacher.logit_scale.numpy().ravel()[0]))
    features = [np.concatenate(images), np.concatenate(texts)]
    if ranks.here().several:
        features = [collectives.placed(x, *places_of(parts)) for x in features]
    return scale * unit(features[0]) @ unit(features[1]).T


def image_features(model: Any, images: np.ndarray, kept: np.ndarray | None = None) -> jt.Var:
    """Image features of pixels (n, 3, H, W), by all patches or those kept; what comes as features (n, E) is that."""
    if images.ndim != 4:
        return jt.array(images)
    return model.encode_image(images) if kept is None else encode_kept_patches(model, images, kept)


def open_teacher(name: str, preprocess: Preprocess) -> Any:
    """The teacher's model. Raises `ConfigError` where it sees photos otherwise than `preprocess` makes them."""
    source = ModelSource(name)
    theirs, ours = source.preprocess.fixed().to_dict(), preprocess.to_dict()
    differing = [k for k in ours if k not in ("upright", "draft") and theirs[k] != ours[k]]
    if differing:
        k = differing[0]
        raise ConfigError(
            f"teacher {name} must see photos as the model does: its {k} is {theirs[k]}, the model's {ours[k]} "
            "(set preprocess, or take another teacher)"
        )
    return source.model
