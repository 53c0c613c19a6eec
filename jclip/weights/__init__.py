"""Weights: architectures, families, published files, downloads, layouts, checkpoints. Imports no Jittor."""

from __future__ import annotations

from jclip.postponed import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "checkpoint": (
            "Checkpoint",
            "LazyTensor",
            "compare_keys",
            "describe",
            "in_memory",
            "load_strict",
            "open_checkpoint",
            "random_arrays",
            "save_checkpoint",
        ),
        "download": ("find_weights", "local_path"),
        "families": ("Stated",),
        "identify": ("Source", "described_by"),
        "layouts": ("from_eva", "from_huggingface", "from_open_clip"),
        "variants": (
            "CLIPConfig",
            "EVAConfig",
            "PatchTower",
            "ResNetConfig",
            "TextConfig",
            "ViTConfig",
            "architecture_name",
            "canonical_name",
            "config_of",
            "slug",
        ),
    },
)
