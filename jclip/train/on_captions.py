"""Training of both towers on images with captions: the batches, the loss of a step, and its gradients.

The loss is that which pre-trained the model (softmax) or SigLIP's (sigmoid), and on top of either that of a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from jclip.data.augment import Augment, Views
from jclip.data.captions import Pairs
from jclip.data.preprocess import Preprocess
from jclip.errors import ConfigError
from jclip.features.caption_features import encode_pairs, ids_of
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.functional.losses import contrastive_loss, distillation_loss, positive_pairs, positive_targets, sigmoid_loss
from jclip.model.clip import inference
from jclip.model.low_rank import Adapters
from jclip.model.patch_dropout import draw_patches, encode_kept_patches
from jclip.runtime import jt
from jclip.train.on_photos import features_in_parts

LossKind = Literal["softmax", "sigmoid"]
Positives = Literal["own", "same", "caption", "image", "both"]


class Part(NamedTuple):
    """A part of a step: n images (n, 3, H, W), or features (n, E) of a locked tower, with tokens (n, L) of their captions.

    meanings, photos: (n,), equal where two captions mean the same, or two images are one. kept: (n, k) patches that the
    tower sees; None: all. teacher_tokens: (n, L') in the teacher's vocabulary.
    """

    images: np.ndarray
    tokens: np.ndarray
    meanings: np.ndarray
    photos: np.ndarray | None = None
    kept: np.ndarray | None = None
    teacher_tokens: np.ndarray | None = None


@dataclass(frozen=True)
class Objective:
    """What a step minimises.

    positives: "own": each image's caption alone; "same" and "caption": captions of one meaning belong to each other's images
    as well; "image": captions of one image; "both": either. teacher: a model whose scores are wanted too, `distill` times.
    adapters: low-rank updates of the model, whose dropout draws by `seed` and the step's number.
    """

    loss: LossKind = "softmax"
    positives: Positives = "own"
    teacher: Any = None
    distill: float = 1.0
    adapters: Adapters | None = None
    seed: int = 0
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

    def epoch(self, epoch: int) -> Iterator[list[Part]]:
        """Lists of `accumulate` parts; a rest that fills no step is left out."""
        rng, parts = np.random.default_rng((self._seed, epoch, 0xD40)), []
        for rows, images in self._images(epoch):
            if len(rows) < self._size:
                return
            texts, meanings = self._pairs.texts(rows, epoch)
            tokens = self._model.tokenize(texts, truncate=True)
            taught = self._teacher.tokenize(texts, truncate=True) if self._teacher else None
            kept = self._draw(rng) if self._dropped else None
            parts.append(Part(images, tokens, np.array(meanings), self._pairs.images[rows], kept, taught))
            if len(parts) == self._accumulate:
                yield parts
                parts = []

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        rows, columns = self._model.config.vision.grid
        return draw_patches(rng, self._size, rows * columns, self._dropped)

    def _images(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and their pixels, or the features of a locked tower."""
        order = np.random.default_rng((self._seed, epoch)).permutation(self._rows)
        if self._known is None:
            views = Views(self._preprocess, self._pipeline, self._seed, (epoch,))
            return self._pairs.batches(order, epoch, self._size, views)
        known, chunks = self._known, (order[i : i + self._size] for i in range(0, len(order), self._size))
        return ((rows, np.stack([known[row] for row in rows.tolist()])) for rows in chunks)


def caption_gradients(
    model: Any, parts: Sequence[Sequence], names: Sequence[str], objective: Objective, number: int = 0
) -> tuple[jt.Var, list[jt.Var]]:
    """Loss and gradients of one step over all `parts` together, those of `names`' parameters in their order.

    parts: each a `Part`, or its first fields. Of several parts one at a time is kept in memory
    (`jclip.kernels.gradient_parts`). number: the step's, for what is drawn at random.
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

    loss = loss_of(features("image"), features("text"), params, given, objective)
    return loss, jt.grad(loss, list(wanted.values()))


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
    return scale * unit(np.concatenate(images)) @ unit(np.concatenate(texts)).T


def image_features(model: Any, images: np.ndarray, kept: np.ndarray | None = None) -> jt.Var:
    """Image features of pixels (n, 3, H, W), by all patches or those kept; what comes as features (n, E) is that."""
    if images.ndim != 4:
        return jt.array(images)
    return model.encode_image(images) if kept is None else encode_kept_patches(model, images, kept)


def open_teacher(name: str, preprocess: Preprocess) -> Any:
    """The teacher's model. Raises `ConfigError` where it sees photos otherwise than `preprocess` makes them."""
    source = ModelSource(name)
    theirs, ours = source.preprocess.to_dict(), preprocess.to_dict()
    differing = [k for k in ours if k not in ("upright", "draft") and theirs[k] != ours[k]]
    if differing:
        k = differing[0]
        raise ConfigError(
            f"teacher {name} must see photos as the model does: its {k} is {theirs[k]}, the model's {ours[k]} "
            "(set preprocess, or take another teacher)"
        )
    return source.model
