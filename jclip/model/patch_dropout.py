"""Patch dropout: while training a ViT sees a random part of each image's patches. Li et al., 2023, arXiv 2212.00794 (FLIP).

A class token is always kept; positions are added before, so that each patch keeps its own.
"""

from __future__ import annotations

import numpy as np

from jclip.errors import ConfigError
from jclip.model.clip import CLIP
from jclip.runtime import jt
from jclip.weights.mobile_configs import MobileConfig
from jclip.weights.variants import SigLIPImageConfig, ViTConfig


def check_patch_dropout(model: CLIP) -> None:
    """Raises `ConfigError` for an image tower without patches that can be left out."""
    if not isinstance(model.config.vision, (ViTConfig, MobileConfig, SigLIPImageConfig)):
        raise ConfigError("patch_dropout must be 0 for an image tower other than a plain ViT or SigLIP's")


def draw_patches(rng: np.random.Generator, images: int, patches: int, dropped: float) -> np.ndarray:
    """(B, n) int32: of each image the max(1, ⌊(1 - dropped) N⌋) patches that are kept, in order."""
    kept = max(1, int(patches * (1 - dropped)))
    return np.sort(rng.permuted(np.tile(np.arange(patches, dtype=np.int32), (images, 1)), axis=1)[:, :kept], axis=1)


def encode_kept_patches(model: CLIP, images: np.ndarray, kept: np.ndarray) -> jt.Var:
    """(B, 3, H, W) and (B, n) numbers of patches → (B, E), not normalised: the image features from these patches alone."""
    tokens = model.visual.embed(jt.array(images))
    count, length, width = tokens.shape
    first = model.config.vision.class_tokens
    before = np.zeros((count, first), np.int32)
    places = np.concatenate([before, first + kept], axis=1) + length * np.arange(count)[:, None]
    chosen = tokens.reshape((count * length, width))[jt.array(places.ravel().astype(np.int32))]
    return model.visual.encode(chosen.reshape((count, -1, width)))
