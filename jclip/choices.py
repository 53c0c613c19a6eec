"""What a config may say of how photos are seen and prompts scored, as names. Imports neither NumPy nor Pillow."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, get_args

from jclip.errors import ConfigError

Resize = Literal[
    "shortest", "squash", "longest-pad", "square-pad", "proportional"
]  # see `jclip.data.preprocess.Preprocess`
Interpolation = Literal["bicubic", "bilinear"]
TestViews = Literal["none", "flip", "five-crops", "ten-crops"]  # see `jclip.data.augment.TEST_VIEWS`
Mode = Literal["embed", "embed-raw", "max", "prob-prompts", "prob-templates"]  # see `jclip.functional.prompt_scores`
Mix = Literal[
    "prob", "logit", "geo"
]  # of several models: probabilities, scores as they are, logarithms of probabilities
TagMethod = Literal["auto", "tagclip", "places", "dense", "whole"]  # how names are scored, see `jclip.features.tagging`
WindowMode = Literal["none", "even", "seed", "dense"]  # see `jclip.features.window_scores.WindowPlan`
WindowFit = Literal["squash", "center_crop", "pad"]
FusionForm = Literal["plain", "sim_var", "var_sim_var", "mean", "max", "topk_mean", "logsumexp"]  # of windows' scores
WINDOW_MODES, WINDOW_FITS, FUSION_FORMS = map(get_args, (WindowMode, WindowFit, FusionForm))
RESIZES, VIEWS, MODES, MIXES, TAG_METHODS = map(get_args, (Resize, TestViews, Mode, Mix, TagMethod))
GALLERY_DTYPES = ("fp16", "fp32")  # of stored features
INDEX_KINDS = ("auto", "exact", "hnsw", "ivf", "pq")  # see `jclip.features.gallery_index`
HUGGING_FACE, MODEL_SCOPE = HUBS = "hf-hub:", "ms:"  # before owner/name, where a model is named
LARGEST_SIZE = 4096  # pixels of a side: a batch of 64 photos of that size takes 13 GB
LOGITS = ("embed", "embed-raw", "max")  # modes whose scores are logits


@dataclass(frozen=True)
class PreprocessChoice:
    """What a user sets otherwise than a model's weights say, of `jclip.data.preprocess.Preprocess`; None: as they say.

    size: of both sides; the model's table of positions is resampled to it, see `ModelSource`. sharpness: 0 blurs, 1
    leaves a photo as it is, above 1 sharpens. Mean and standard deviation are always those of the weights.
    """

    size: int | None = None
    resize: Resize | None = None
    interpolation: Interpolation | None = None
    sharpness: float | None = None
    rgb_first: bool | None = None
    upright: bool | None = None
    draft: bool | None = None

    def __post_init__(self):
        if self.size is not None and not 1 <= self.size <= LARGEST_SIZE:
            raise ConfigError(f"preprocess.size must be in [1, {LARGEST_SIZE}] pixels, got {self.size}")
        if self.sharpness is not None and not 0 <= self.sharpness <= 1_000:
            raise ConfigError(
                f"preprocess.sharpness must be in [0, 1000] (0 blurs, 1 leaves, 2 sharpens), got {self.sharpness}"
            )


SELECTED_ON_TEST = "selected_on_test"  # a metric that marks figures of settings chosen on test data


def default_model() -> str:
    """The model where none is named: what JCLIP_MODEL says, else ViT-B/32."""
    return os.environ.get("JCLIP_MODEL") or "ViT-B/32"
