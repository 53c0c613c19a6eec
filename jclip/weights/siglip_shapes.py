"""SigLIP's towers: shapes of their parameters from a configuration, and the configuration from shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from jclip.errors import ConfigError
from jclip.weights.block_shapes import Shapes, affine, linear
from jclip.weights.image_configs import SigLIPImageConfig
from jclip.weights.text_configs import SigLIPTextConfig
from jclip.weights.tower_sizes import Activation

LATENT = "visual.trunk.attn_pool.latent"  # marks of the two towers, the second beside no BERT
TOKENS = "text.token_embedding.weight"
RANKS = {  # axes of the tensors whose shapes are read below
    "visual.trunk.patch_embed.proj.weight": 4, "visual.trunk.pos_embed": 3, "visual.trunk.blocks.0.mlp.fc1.weight": 2,
    "text.positional_embedding": 2, TOKENS: 2, "text.transformer.resblocks.0.mlp.c_fc.weight": 2,
}  # fmt: skip
HEAD_WIDTHS = {384: 64, 512: 64, 768: 64, 1024: 64, 1152: 72, 1536: 96}  # by width of a tower


def are_siglips(shapes: Mapping[str, tuple]) -> bool:
    """Return whether these are names of SigLIP's towers, or of one of them."""
    return LATENT in shapes or (TOKENS in shapes and "text.token_type_embedding" not in shapes)


def image_shapes(v: SigLIPImageConfig, embed: int) -> Shapes:
    """Return names and shapes of an image tower's parameters, without `visual.`; `embed` is its width."""
    shapes = {
        "patch_embed.proj.weight": (v.width, 3, v.patch_size, v.patch_size),
        "patch_embed.proj.bias": (v.width,),
        "pos_embed": (1, v.grid[0] * v.grid[1], v.width),
    }
    for block in (f"blocks.{i}" for i in range(v.layers)):
        shapes |= affine(f"{block}.norm1", v.width) | affine(f"{block}.norm2", v.width)
        shapes |= linear(f"{block}.attn.qkv", v.width, 3 * v.width) | linear(f"{block}.attn.proj", v.width, v.width)
        shapes |= _mlp(f"{block}.mlp", v)
    shapes |= affine("norm", v.width) | {"attn_pool.latent": (1, 1, v.width)}
    shapes |= linear("attn_pool.q", v.width, v.width) | linear("attn_pool.kv", v.width, 2 * v.width)
    shapes |= linear("attn_pool.proj", v.width, v.width) | affine("attn_pool.norm", v.width)
    return {f"trunk.{k}": shape for k, shape in (shapes | _mlp("attn_pool.mlp", v)).items()}


def _mlp(name: str, v: SigLIPImageConfig) -> Shapes:
    return linear(f"{name}.fc1", v.width, v.mlp_width) | linear(f"{name}.fc2", v.mlp_width, v.width)


def image_from_shapes(
    shapes: Mapping[str, tuple],
    activation: Activation,
    head_width: int | None,
    image_size: Callable[[int, int], tuple[int, int]],
) -> SigLIPImageConfig:
    """Return the image tower that shapes determine. image_size: (H, W) of a number of patches and their side."""
    width, _, patch, _ = shapes["visual.trunk.patch_embed.proj.weight"]
    return SigLIPImageConfig(
        image_size=image_size(shapes["visual.trunk.pos_embed"][1], patch),
        patch_size=patch,
        width=width,
        layers=_count(shapes, r"visual\.trunk\.blocks\.(\d+)\."),
        heads=_heads(width, head_width or HEAD_WIDTHS.get(width), "an image"),
        mlp_width=shapes["visual.trunk.blocks.0.mlp.fc1.weight"][0],
        activation=activation,
    )


def text_from_shapes(
    shapes: Mapping[str, tuple], activation: Activation, head_width: int | None = None
) -> SigLIPTextConfig:
    """Return the text tower that shapes determine. head_width: of a tower whose width no published one has."""
    vocabulary, width = shapes[TOKENS]
    return SigLIPTextConfig(
        width=width,
        heads=_heads(width, HEAD_WIDTHS.get(width, head_width), "a text"),
        layers=_count(shapes, r"text\.transformer\.resblocks\.(\d+)\."),
        mlp_width=shapes["text.transformer.resblocks.0.mlp.c_fc.weight"][0],
        context_length=shapes["text.positional_embedding"][0],
        vocab_size=vocabulary,
        projection="text.text_projection.weight" in shapes,
        activation=activation,
    )


def _heads(width: int, head_width: int | None, tower: str) -> int:
    if not head_width:
        raise ConfigError(f"{tower} tower of width {width} does not give its head width: pass head_width= "
                          "(--vision-head-width), or keep config.json beside the weights")  # fmt: skip
    if width % head_width:
        raise ConfigError(f"heads of width {head_width} do not divide {tower} tower of width {width}")
    return width // head_width


def _count(shapes: Mapping[str, tuple], pattern: str) -> int:
    return len({m.group(1) for m in (re.match(pattern, k) for k in shapes) if m})
