"""Architectures of 2025: PE-Core, MobileCLIP's vision transformers, MetaCLIP 2 worldwide, under open_clip's names."""

from __future__ import annotations

from typing import Any

from jclip.weights.mobile_configs import MobileConfig, as_apple
from jclip.weights.perception_configs import PerceptionConfig
from jclip.weights.text_configs import TextConfig

XLM_V, MT5 = 901_629, 250_100  # vocabularies of MetaCLIP 2
ENDS = {XLM_V: 2, MT5: 1}  # their ids of end-of-text


def _text(width: int, layers: int, **more: Any) -> TextConfig:
    return TextConfig(width, width // 64, layers, 4 * width, **more)


def _perception(image: int, patch: int, layers: int, width: int, heads: int, mlp: int = 0, **more: Any) -> Any:
    return PerceptionConfig((image, image), patch, width, layers, heads, mlp or 4 * width, **more)


_SMALL, _LARGE = _text(512, 12, context_length=32), _text(1024, 24, context_length=32)

# name → embedding, image tower, text tower, all with GELU
PERCEPTION: dict[str, tuple[int, PerceptionConfig, TextConfig]] = {
    "PE-Core-T-16-384": (512, _perception(384, 16, 12, 192, 3), _SMALL),
    "PE-Core-S-16-384": (512, _perception(384, 16, 12, 384, 6), _SMALL),
    "PE-Core-B-16": (1024, _perception(224, 16, 12, 768, 12), _LARGE),
    "PE-Core-L-14-336": (1024, _perception(336, 14, 24, 1024, 16), _LARGE),
    "PE-Core-bigG-14-448": (
        1280, _perception(448, 14, 50, 1536, 16, 8960, class_token=False), _text(1280, 24, context_length=72),
    ),
}  # fmt: skip
MOBILE: dict[str, tuple[int, MobileConfig, TextConfig]] = {
    "MobileCLIP-B": (512, as_apple(MobileConfig((224, 224), 16, 768, 12, 12, 3072)), _text(512, 12)),
}
# name → the plain ViT of OpenAI's or open_clip's that it is, with another text tower
WITH_TEXT: dict[str, tuple[str, TextConfig]] = {
    "MobileCLIP2-L-14": ("ViT-L/14", _text(768, 12, causal=False)),
    "ViT-L-14-worldwide": ("ViT-L/14", _text(768, 12, vocab_size=MT5, end=ENDS[MT5])),
    "ViT-H-14-worldwide": ("ViT-H-14", _text(1024, 24, vocab_size=XLM_V, end=ENDS[XLM_V])),
    "ViT-H-14-worldwide-378": ("ViT-H-14-378", _text(1024, 24, vocab_size=XLM_V, end=ENDS[XLM_V])),
    "ViT-bigG-14-worldwide": ("ViT-bigG-14", _text(1280, 32, vocab_size=XLM_V, end=ENDS[XLM_V])),
}
WITH_SIZE: dict[str, tuple[str, int]] = {"ViT-bigG-14-worldwide-378": ("ViT-bigG-14-worldwide", 378)}
