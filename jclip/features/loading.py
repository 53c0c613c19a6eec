"""A model by name, ready for use, with the preprocessing that belongs to it."""

from __future__ import annotations

import os

from PIL import Image

from jclip.config import Dtype
from jclip.data.preprocess import Preprocess
from jclip.features.source import ModelSource
from jclip.model.clip import CLIP
from jclip.runtime import jt
from jclip.weights.variants import SHIPPED, VARIANTS


def load(
    name_or_path: str | os.PathLike,
    family: str | None = None,
    dtype: Dtype = "fp32",
    image_size: int | tuple[int, int] | None = None,
    stream: bool | None = None,
    weights_key: str | None = None,
    prefix: str | None = None,
) -> tuple[CLIP, ToVar]:
    """A model ready for inference, and the preprocessing that belongs to it: `model, preprocess = jclip.load("ViT-B/32")`.

    name_or_path: one of `available_models()` or of docs/published_weights.md, downloaded when it is absent; a weight file or
    folder in any layout that `convert` knows. family: for a file that doesn't say its activation, see
    `jclip.weights.families.FAMILIES`. dtype: fp16 on a GPU only. image_size: H, W other than the model's own. stream: whether
    blocks stay on disk and are read in each pass; by default only where the memory is too small for them. weights_key:
    one set of weights of several in a file, such as "state_dict_ema". prefix: what the model's names begin with in a file
    of another project, such as "model.clip.". Raises `CheckpointError` or `ConfigError`.
    """
    source = ModelSource(name_or_path, family, dtype, image_size, stream=stream, weights_key=weights_key, prefix=prefix)
    return source.model, ToVar(source.preprocess)


def available_models() -> list[str]:
    """Names that `load` knows."""
    return [*VARIANTS, *SHIPPED]


class ToVar:
    """A `Preprocess` that returns a Jittor Var (3, H, W), as `load` hands it out."""

    def __init__(self, preprocess: Preprocess):
        self.preprocess = preprocess

    def __call__(self, image: Image.Image):
        return jt.array(self.preprocess(image))
