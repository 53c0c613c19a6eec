"""CLIP itself, and what recipes put into it."""

from __future__ import annotations

from jclip.postponed import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "clip": (
            "build",
            "clamp_logit_scale",
            "held_statistics",
            "image_tower",
            "inference",
            "put_arrays",
            "running_statistics",
            "save_model",
            "training_mode",
        ),
        "deep_prompts": ("Arrays", "DeepPrompts", "PromptedModel", "gapped"),
        "grounding": ("Found", "FusionShape", "GroundingNetwork", "initial_arrays"),
        "last_block": ("LastBlock",),
        "learned_prompts": ("Frame", "Layout", "Position", "Prompts", "write_nearest"),
        "low_rank": ("Adapters",),
        "parameter_groups": ("Lock", "LowRank", "Prompting", "trained_patterns"),
        "prompt_sets": ("PromptSets", "texts_with"),
        "tower_levels": ("block_levels", "fusion_shape", "image_parts", "spread"),
        "trainable": ("check_in_memory", "no_weight_decay"),
    },
)
