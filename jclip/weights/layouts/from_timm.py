"""Image towers that open_clip takes from timm, `visual.trunk.…`, and MobileCLIP's own files, to the names of `CLIP`.

PE-Core's and MobileCLIP's; EVA's keep timm's names, see `from_eva`. The rules read backwards give open_clip's files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import replace

import numpy as np

from jclip.readers import LazyTensor
from jclip.weights.families import refused
from jclip.weights.layouts.keymap import Report, Rule, apply, both, unapply
from jclip.weights.mobile_configs import MobileConfig, as_timm
from jclip.weights.perception_configs import PerceptionConfig
from jclip.weights.variants import AnyImage, CLIPConfig, ViTConfig

OPEN_CLIP, OWN = "open_clip, a tower of timm", "MobileCLIP original"
POOL, CLASS, STEM = "visual.trunk.attn_pool.q.weight", "visual.trunk.cls_token", "visual.trunk.patch_embed.backbone."
BIAS = "visual.proj_bias"  # which open_clip's files have, the authors' don't
PRE_NORM = "visual.trunk.norm_pre.weight"
APPLE = "image_encoder.model."  # MobileCLIP's own files
_BLOCK, _OURS = "visual.trunk.blocks.{}", "visual.transformer.resblocks.{}"
_PARTS = {
    "norm1": "ln_1", "norm2": "ln_2", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
_STEM = [
    *both("visual.trunk.patch_embed.backbone.{}.conv", "visual.patch_embed.backbone.{}.conv"),
    *(
        Rule((f"visual.trunk.patch_embed.backbone.{{}}.bn.{kind}",), f"visual.patch_embed.backbone.{{}}.bn.{kind}")
        for kind in ("weight", "bias", "running_mean", "running_var")
    ),
]
RULES = [
    Rule(("visual.trunk.patch_embed.proj.weight",), "visual.conv1.weight"),
    *_STEM,
    Rule((CLASS,), "visual.class_embedding", "vector"),
    Rule(("visual.trunk.pos_embed",), "visual.positional_embedding", "rows"),
    *both("visual.trunk.norm_pre", "visual.ln_pre"),
    *(Rule((f"{_BLOCK}.attn.qkv.{kind}",), f"{_OURS}.attn.in_proj_{kind}") for kind in ("weight", "bias")),
    *(rule for theirs, ours in _PARTS.items() for rule in both(f"{_BLOCK}.{theirs}", f"{_OURS}.{ours}")),
    *both("visual.trunk.norm", "visual.ln_post"),
    Rule(("visual.trunk.attn_pool.latent",), "visual.attn_pool.probe"),
    *(
        Rule(
            (f"visual.trunk.attn_pool.q.{kind}", f"visual.trunk.attn_pool.kv.{kind}"),
            f"visual.attn_pool.attn.in_proj_{kind}",
            "third and rest",
        )
        for kind in ("weight", "bias")
    ),
    *both("visual.trunk.attn_pool.proj", "visual.attn_pool.attn.out_proj"),
    *both("visual.trunk.attn_pool.norm", "visual.attn_pool.layernorm"),
    *both("visual.trunk.attn_pool.mlp.fc1", "visual.attn_pool.mlp.c_fc"),
    *both("visual.trunk.attn_pool.mlp.fc2", "visual.attn_pool.mlp.c_proj"),
    Rule(("visual.trunk.head.weight",), "visual.proj", "transpose"),
    Rule(("visual.trunk.head.bias",), BIAS),
]
_IMAGE, _TEXT = f"{APPLE}transformer.{{}}", "text_encoder.transformer.{}"
_SEQUENCES = {
    "pre_norm_mha.0": "ln_1", "pre_norm_mha.1.out_proj": "attn.out_proj", "pre_norm_ffn.0": "ln_2",
    "pre_norm_ffn.1": "mlp.c_fc", "pre_norm_ffn.4": "mlp.c_proj",
}  # fmt: skip


def _sequence_rules(source: str, target: str) -> list[Rule]:
    packed = [
        Rule((f"{source}.pre_norm_mha.1.qkv_proj.{kind}",), f"{target}.attn.in_proj_{kind}")
        for kind in ("weight", "bias")
    ]
    return packed + [r for theirs, ours in _SEQUENCES.items() for r in both(f"{source}.{theirs}", f"{target}.{ours}")]


APPLE_RULES = [
    *both(f"{APPLE}patch_emb.{{}}.block.conv", "visual.patch_embed.backbone.{}.conv"),
    *(
        Rule((f"{APPLE}patch_emb.{{}}.block.norm.{kind}",), f"visual.patch_embed.backbone.{{}}.bn.{kind}")
        for kind in ("weight", "bias", "running_mean", "running_var")
    ),
    Rule((f"{APPLE}cls_token",), "visual.class_embedding", "vector"),
    Rule((f"{APPLE}pos_embed.pos_embed.pos_embed",), "visual.positional_embedding", "deep rows"),
    *_sequence_rules(_IMAGE, _OURS),
    *both(f"{APPLE}post_transformer_norm", "visual.ln_post"),
    Rule((f"{APPLE}classifier.proj",), "visual.proj"),
    *_sequence_rules(_TEXT, "transformer.resblocks.{}"),
    Rule(("text_encoder.embedding_layer.weight",), "token_embedding.weight"),
    Rule(("text_encoder.positional_embedding.pos_embed.pos_embed",), "positional_embedding", "deep rows"),
    *both("text_encoder.final_layer_norm", "ln_final"),
    Rule(("text_encoder.projection_layer",), "text_projection"),
    Rule(("logit_scale",), "logit_scale"),
]


def canonical(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], Report]:
    """Return an open_clip model's tensors under the names of `CLIP`: the tower by the rules, text without `text.`."""
    image = {k: t for k, t in tensors.items() if k.startswith("visual.trunk.")}
    made, report = apply(image, RULES)
    kept = {k: t for k, t in tensors.items() if k not in image and not k.endswith("attn_mask")}
    report.copied += list(kept)
    report.dropped += [k for k in tensors if k not in image and k not in kept]
    return {**made, **{k.removeprefix("text."): t for k, t in kept.items()}}, report


def apple(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], Report]:
    """Return the tensors of MobileCLIP B's own file under the names of `CLIP`."""
    return apply(tensors, APPLE_RULES)


def to_apple(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return tensors under the names of MobileCLIP B's own file: the inverse of `apple`, counters of batch norms kept."""
    counters = {k: t for k, t in tensors.items() if k.endswith("num_batches_tracked")}
    place = re.compile(r"visual\.patch_embed\.backbone\.(\d)\.bn\.")
    named = {place.sub(rf"{APPLE}patch_emb.\1.block.norm.", k): t for k, t in counters.items()}
    return {**unapply({k: t for k, t in tensors.items() if k not in counters}, APPLE_RULES), **named}


def layout_of(names: Set[str], place: object) -> str | None:
    """Return the layout if the keys are of these towers; None for another model's. Raises `CheckpointError` for a
    MobileCLIP of a FastViT, and for a PE that is an image tower alone."""
    if kind_of(names):
        return OPEN_CLIP
    if any(name.startswith(f"{APPLE}patch_emb.0.block.") for name in names):
        return OWN
    if any(name.startswith((APPLE, "visual.trunk.stem.", "visual.trunk.stages.")) for name in names):
        raise refused("fastvit", place)
    if {"conv1.weight", "ln_pre.weight"} <= names:
        raise refused("pe-tokens", place)
    return None


def kind_of(names: Set[str]) -> str | None:
    """Return which of these towers a file of open_clip's holds: "pe", "mobile", "vit", or None."""
    if not {"visual.trunk.blocks.0.attn.qkv.weight", "visual.trunk.head.weight"} <= names:
        return None
    if POOL in names:
        return "pe" if PRE_NORM in names else None
    if CLASS not in names or "visual.trunk.blocks.0.attn.qkv.bias" not in names:
        return None
    if f"{STEM}0.conv.weight" in names:
        return "mobile"
    return "vit" if PRE_NORM in names else None


def is_timm(config: CLIPConfig) -> bool:
    """Return whether open_clip takes this model's image tower from timm, with these rules."""
    return is_timm_tower(config.vision)


def is_timm_tower(v: AnyImage | None) -> bool:
    """Return whether open_clip takes this image tower from timm, with these rules."""
    return isinstance(v, (PerceptionConfig, MobileConfig)) or (isinstance(v, ViTConfig) and v.proj_bias)


def as_of_timm(v: AnyImage) -> AnyImage:
    """Return a tower as timm builds it: with a bias of the projection, and MobileCLIP's with timm's epsilon and padding."""
    if isinstance(v, MobileConfig):
        return replace(as_timm(v), proj_bias=True)
    return replace(v, proj_bias=True) if isinstance(v, (PerceptionConfig, ViTConfig)) else v


def as_trunk(tensors: Mapping[str, LazyTensor], config: CLIPConfig) -> dict[str, LazyTensor]:
    """Return the image tower under timm's names, the rest as it is; a projection without a bias gets one of zeros."""
    image = {k: t for k, t in tensors.items() if k.startswith("visual.")}
    if BIAS not in image:
        zeros = np.zeros(config.embed_dim, np.float32)
        image[BIAS] = LazyTensor(zeros.shape, "float32", lambda: zeros)
    counters = {k: image.pop(k) for k in list(image) if k.endswith("num_batches_tracked")}
    rest = {k: t for k, t in tensors.items() if not k.startswith("visual.")}
    more = {k.replace("visual.", "visual.trunk.", 1): t for k, t in counters.items()}
    return {**unapply(image, RULES), **more, **rest}
