"""Names and shapes of the parameters of PE-Core's and MobileCLIP's image towers, and these towers from shapes."""

from __future__ import annotations

from collections.abc import Mapping

from jclip.weights.block_shapes import Shapes, affine, linear, transformer_shapes
from jclip.weights.mobile_configs import STEM_NARROWER, STEM_STRIDES, MobileConfig
from jclip.weights.perception_configs import PerceptionConfig

PROBE, STEM = "visual.attn_pool.probe", "visual.patch_embed.backbone.0.conv.weight"  # what either alone has
RANKS = {PROBE: 3, STEM: 4, "visual.attn_pool.mlp.c_fc.weight": 2}


def perception_shapes(v: PerceptionConfig, embed: int) -> Shapes:
    """Return those of PE-Core's tower, under the authors' names."""
    return {
        "conv1.weight": (v.width, 3, v.patch_size, v.patch_size),
        **({"class_embedding": (v.width,)} if v.class_token else {}),
        "positional_embedding": (v.class_token + v.grid[0] * v.grid[1], v.width),
        **affine("ln_pre", v.width),
        **transformer_shapes("transformer", v),
        **affine("ln_post", v.width),
        "attn_pool.probe": (1, 1, v.width),
        "attn_pool.attn.in_proj_weight": (3 * v.width, v.width),
        "attn_pool.attn.in_proj_bias": (3 * v.width,),
        **linear("attn_pool.attn.out_proj", v.width, v.width),
        **affine("attn_pool.layernorm", v.width),
        **linear("attn_pool.mlp.c_fc", v.width, v.pool_mlp_width),
        **linear("attn_pool.mlp.c_proj", v.pool_mlp_width, v.width),
        **projection(v, embed),
    }


def mobile_shapes(v: MobileConfig, embed: int) -> Shapes:
    """Return those of MobileCLIP B's tower: OpenAI's names, those of the stem timm's."""
    shapes: Shapes = {}
    inputs = 3
    for i, (stride, last) in enumerate(zip(STEM_STRIDES, (False, False, True), strict=True)):
        outputs, part = v.width if last else v.width // STEM_NARROWER, f"patch_embed.backbone.{i}"
        shapes[f"{part}.conv.weight"] = (outputs, inputs, stride, stride)
        kinds = ("weight", "bias", "running_mean", "running_var")
        shapes |= {f"{part}.conv.bias": (outputs,)} if last else {f"{part}.bn.{kind}": (outputs,) for kind in kinds}
        inputs = outputs
    return {
        **shapes,
        "class_embedding": (v.width,),
        "positional_embedding": (v.grid[0] * v.grid[1], v.width),
        **transformer_shapes("transformer", v),
        **affine("ln_post", v.width),
        **projection(v, embed),
    }


def projection(v: object, embed: int) -> Shapes:
    """Return the projection of an image tower to the shared space."""
    shapes: Shapes = {"proj": (v.width, embed)}
    return shapes | {"proj_bias": (embed,)} if v.proj_bias else shapes


def perception_fields(shapes: Mapping[str, tuple]) -> dict[str, object]:
    """Return what of `PerceptionConfig` shapes say beside what they say of every ViT."""
    return {
        "pool_mlp_width": shapes["visual.attn_pool.mlp.c_fc.weight"][0],
        "class_token": "visual.class_embedding" in shapes,
        "proj_bias": "visual.proj_bias" in shapes,
    }
