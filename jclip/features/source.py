"""A model that is named, opened and described, but loaded only when something must be computed. Imports no Jittor."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jclip.choices import PreprocessChoice
from jclip.config import WithDtype, WithFeatureLayer, WithModel
from jclip.data.preprocess import Preprocess, notice_squashed, with_choice
from jclip.data.splits import Split
from jclip.errors import ConfigError, LayoutError
from jclip.machine import work_meter
from jclip.model import clip, deep_prompts, streaming
from jclip.postponed import jt
from jclip.prompts.scripts import SIGLIP_ENGLISH
from jclip.prompts.tokenizer import OPENAI_BPE
from jclip.prompts.vocabularies import TextTokenizer
from jclip.weights.checkpoint import Checkpoint, open_checkpoint
from jclip.weights.download import find_weights
from jclip.weights.families import Stated
from jclip.weights.identify import identify
from jclip.weights.siglip_variants import C4
from jclip.weights.stored_vocabulary import tokenizer_of
from jclip.weights.variants import CLIPConfig


class ModelSource:
    """What a name or path stands for; wrong ones are refused here, before Jittor is imported.

    draft: large JPEGs are decoded at a fraction of their size; upright: EXIF orientations are applied, see `Preprocess`.
    stream: whether the blocks stay on
    disk, see `jclip.model.streaming`; by default where the memory is too small. penultimate: image features are meant as they
    are before the projection. preprocess: what is set otherwise than the weights say, before `image_size`, `draft`
    and `upright`. weights_key, prefix: which tensors of a file are the model's, see `jclip.weights.plain_names`.
    Raises `CheckpointError` for a file that is absent, unreadable or doesn't say what it is, `ConfigError` for
    penultimate features of a tower without a projection of its own.
    """

    def __init__(
        self,
        name_or_path: str | os.PathLike,
        family: str | None = None,
        dtype: str = "fp32",
        image_size: int | tuple[int, int] | None = None,
        draft: bool = False,
        stream: bool | None = None,
        penultimate: bool = False,
        preprocess: PreprocessChoice | None = None,
        upright: bool = True,
        weights_key: str | None = None,
        prefix: str | None = None,
    ):
        chosen = preprocess or PreprocessChoice()
        image_size = image_size if chosen.size is None else chosen.size
        checkpoint = open_any(find_weights(name_or_path), Stated(family=family, weights_key=weights_key, prefix=prefix))
        self.checkpoint = checkpoint if image_size is None else checkpoint.resized(image_size)
        self.family, self.dtype, self._stream = family, dtype, stream
        self.preprocess: Preprocess = with_choice(
            replace(self.checkpoint.preprocess, draft=draft, upright=upright), chosen
        )
        self.penultimate, self.width = penultimate, self.config.feature_width(penultimate)

    @property
    def config(self) -> CLIPConfig:
        return self.checkpoint.config

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the weights, opened at first use. Raises `ConfigError` and `DataError` as `tokenizer_of`."""
        return tokenizer_of(self.config.text, self.checkpoint.vocabulary)

    def tokenize(self, texts: str | Sequence[str], truncate: bool = False) -> np.ndarray:
        """Texts → (B, L) ids in the weights' vocabulary and context length; no model is loaded. Raises `DataError` for one
        that is too long, unless `truncate`."""
        return self.tokenizer(texts, self.config.text.context_length, truncate)

    def squared(self, what: str = "training photos") -> ModelSource:
        """This source with all photos squashed to the model's size, where its weights take any proportions; `what` needs that,
        and is reported once."""
        notice_squashed(self.preprocess, what)
        self.preprocess = self.preprocess.fixed()
        self.checkpoint = replace(self.checkpoint, preprocess=self.checkpoint.preprocess.fixed())
        return self

    @property
    def identity(self) -> list:
        """What features depend on: the file's bytes, the architecture, the dtype."""
        return [self.checkpoint.sha256, self.config.to_dict(), self.dtype]

    @property
    def text_identity(self) -> list:
        """What heads depend on."""
        return self.identity

    @property
    def vocabulary_kind(self) -> str:
        """The kind of vocabulary, as `TextTokenizer.kind`, or `scripts.SIGLIP_ENGLISH`; none is opened for it."""
        text = self.config.text
        if text is not None and text.kind == "siglip" and text.vocab_size == C4:
            return SIGLIP_ENGLISH
        return OPENAI_BPE if self.checkpoint.vocabulary is None else self.checkpoint.vocabulary.kind

    @property
    def vocabulary_digest(self) -> str:
        """What ids depend on beside that; CLIP's own vocabulary is not opened for it."""
        return OPENAI_BPE if self.checkpoint.vocabulary is None else self.tokenizer.digest

    @property
    def logit_bias(self) -> float | None:
        """The bias of logits of weights that were trained with the sigmoid loss; None of others."""
        if not self.config.sigmoid:
            return None
        return float(self.checkpoint.tensors["logit_bias"].read().reshape(()))

    @property
    def has_text(self) -> bool:
        """Whether texts have features in the space of the photos'."""
        return not self.penultimate and self.config.text is not None

    @property
    def weights_sha256(self) -> str:
        """Of the file."""
        return self.checkpoint.sha256

    def release(self) -> None:
        """Free the model's memory; it is loaded again at its next use."""
        if self.__dict__.pop("model", None) is not None:
            jt.sync_all()
            jt.gc()

    @cached_property
    def model(self):
        """The `CLIP` itself, loaded at first use. Raises `MisfitError` when the weights do not fit."""
        with work_meter.phase("loading the model"):
            return self._loaded()

    def _loaded(self) -> clip.CLIP:
        if not (streaming.wanted(self.checkpoint) if self._stream is None else self._stream):
            return self._sharing(clip.build(self.checkpoint, self.dtype))
        if self.dtype != "fp32":
            raise ConfigError(
                f"{self.checkpoint.path} is read block by block, in fp32 only: leave dtype {self.dtype} out"
            )
        return self._sharing(streaming.build_streamed(self.checkpoint))

    def _sharing(self, model: clip.CLIP) -> clip.CLIP:
        """The model with the tokenizer that is open already: a large one takes a second to open."""
        if "tokenizer" in vars(self):
            model._tokenizer = self.tokenizer
        return model


def source_as_stated(model: str | os.PathLike, family: str, dtype: str, preprocess: Mapping[str, Any]) -> ModelSource:
    """The model of that name or file with the dtype and the preprocessing that features on file say they were made with.

    preprocess: as `Preprocess.to_dict` gives it.
    """
    seen = Preprocess.from_dict(dict(preprocess))
    options = {"dtype": dtype, "draft": seen.draft, "upright": seen.upright}
    found = ModelSource(model, family or None, **options)
    if found.preprocess.size != seen.size:
        found = ModelSource(model, family or None, image_size=seen.size, **options)
    found.preprocess = seen
    return found


class PromptedSource:
    """A `ModelSource` in all but this: its image tower sees learned vectors (J, n, D) beside the patches, those of the
    j-th block in row j, and its features depend on them."""

    def __init__(self, source: ModelSource, vectors: np.ndarray):
        self._source, self._vectors = source, np.ascontiguousarray(vectors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    @property
    def identity(self) -> list:
        """What features depend on."""
        digest = hashlib.sha256(self._vectors.tobytes()).hexdigest()
        return [*self._source.identity, "prompts", list(self._vectors.shape), digest]

    @cached_property
    def model(self):
        """The `CLIP` with these vectors, loaded at first use."""
        return deep_prompts.PromptedModel(self._source.model, jt.array(self._vectors).stop_grad())


class SideBySide:
    """Several sources in place of one: a photo's features of each, of length one, stand side by side in a row.

    Models are loaded one after the other, never together. views: how each sees a photo, by names of `views.TEST_VIEWS`.
    """

    penultimate = has_text = False

    def __init__(self, sources: Sequence[ModelSource], views: Sequence[str]):
        self.sources, self.views = tuple(sources), tuple(views)
        self._extracted: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]] = {}
        self.width = sum(source.width for source in self.sources)

    @staticmethod
    def of(members: Sequence[OneOfSeveral]) -> SideBySide:
        """The sources of `jclip.features.member.Member`s, each opened: wrong weights are refused here."""
        return SideBySide([member.source() for member in members], [member.views for member in members])

    def extracted(
        self, number: int, split: Split, extract: Callable[[], tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and features of `split` of source `number`: what `extract` returns, called once per process."""
        key = (number, split.digest())
        if key not in self._extracted:
            self._extracted[key] = extract()
        return self._extracted[key]

    @property
    def weights_sha256(self) -> str:
        """Of all files, in order."""
        return hashlib.sha256(" ".join(source.weights_sha256 for source in self.sources).encode()).hexdigest()


def with_vectors(source: ModelSource, learned: Mapping[str, np.ndarray]) -> ModelSource | PromptedSource:
    """`source` with the image vectors that were `learned`, if any."""
    return (
        PromptedSource(source.squared("photos with learned vectors"), learned["image"])
        if "image" in learned
        else source
    )


def open_any(path: Path, stated: Stated) -> Checkpoint:
    """Weights in any layout, as they lie: OpenAI's and jclip's are read here, others by the rules of `convert`.

    Raises `CheckpointError` with what is wrong or must be stated.
    """
    with contextlib.suppress(LayoutError):
        if path.is_file():
            return open_checkpoint(path, stated=stated)
    found = identify(path, stated)
    found.check()
    return found.checkpoint


class OneOfSeveral(Protocol):
    """What a config says of one model of several, as `jclip.features.member.Member`."""

    @property
    def views(self) -> str: ...
    def reading(self, upright: bool) -> OneOfSeveral: ...
    def source(self) -> ModelSource: ...


@runtime_checkable
class WithModels(Protocol):
    """A config of several models."""

    @property
    def models(self) -> Sequence[OneOfSeveral]: ...


def source_of(config: WithModel, model: str = "") -> ModelSource | SideBySide | None:
    """The model that a recipe's `config` names (or `model` in its place), in its family and dtype; None without any.
    Of a config with `models`, all of them side by side.

    A config with `features: penultimate` asks for image features before the projection, wherever they are made.
    """
    upright = getattr(config.data, "upright", True)
    if isinstance(config, WithModels) and config.models:
        return SideBySide.of([member.reading(upright) for member in config.models])
    name = model or config.model
    dtype = config.dtype if isinstance(config, WithDtype) else "fp32"
    penultimate = isinstance(config, WithFeatureLayer) and config.features == "penultimate"
    seen = {"draft": getattr(config.data, "draft", False), "upright": upright}  # captions have no draft
    seen["preprocess"] = getattr(config, "preprocess", None)
    return ModelSource(name, config.family, dtype, penultimate=penultimate, **seen) if name else None
