"""Chinese-CLIP's five architectures: CLIP's image towers beside BERTs. Yang et al., 2022, arXiv 2211.01335, table 1."""

from __future__ import annotations

from jclip.weights.image_configs import ResNetConfig, ViTConfig
from jclip.weights.text_configs import BertConfig

_BASE = BertConfig(768, 12, 12, 3072)  # RoBERTa-wwm-ext-base-chinese
_LARGE = BertConfig(1024, 16, 24, 4096)  # RoBERTa-wwm-ext-large-chinese
_RBT3 = BertConfig(768, 12, 3, 3072)  # RBT3-chinese

CHINESE_TOWERS: dict[
    str, tuple[int, ViTConfig | ResNetConfig, BertConfig]
] = {  # width of the embedding, and both towers
    "Chinese-CLIP-RN50": (1024, ResNetConfig((224, 224), 64, (3, 4, 6, 3), 32), _RBT3),
    "Chinese-CLIP-ViT-B-16": (512, ViTConfig((224, 224), 16, 768, 12, 12, 3072), _BASE),
    "Chinese-CLIP-ViT-L-14": (768, ViTConfig((224, 224), 14, 1024, 24, 16, 4096), _BASE),
    "Chinese-CLIP-ViT-L-14-336": (768, ViTConfig((336, 336), 14, 1024, 24, 16, 4096), _BASE),
    "Chinese-CLIP-ViT-H-14": (1024, ViTConfig((224, 224), 14, 1280, 32, 16, 5120), _LARGE),
}
