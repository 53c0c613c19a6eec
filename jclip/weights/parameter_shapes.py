"""Names and shapes of parameters from an architecture, and the architecture from shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from jclip.errors import CheckpointError, ConfigError
from jclip.weights import siglip_shapes
from jclip.weights.block_shapes import Shapes, affine, linear, transformer_shapes
from jclip.weights.families import Stated, refused
from jclip.weights.mobile_configs import STEM_STRIDES, MobileConfig, as_apple, as_timm
from jclip.weights.perception_configs import PerceptionConfig
from jclip.weights.recent_architectures import ENDS, PERCEPTION
from jclip.weights.text_configs import AnyText, TextConfig
from jclip.weights.text_shapes import BERT_RANKS, bert_from_shapes, count_of, text_shapes
from jclip.weights.tower_shapes import (
    PROBE,
    RANKS,
    STEM,
    mobile_shapes,
    perception_fields,
    perception_shapes,
    projection,
)
from jclip.weights.tower_sizes import Activation
from jclip.weights.variants import AnyImage, CLIPConfig, EVAConfig, ResNetConfig, ViTConfig

HEAD_WIDTHS = {
    384: 64, 512: 64, 768: 64, 896: 64, 1024: 64, 1280: 80, 1408: 88, 1664: 104, 1792: 112, 4096: 128, 5120: 128,
}  # fmt: skip
POST_NORM = {768: False, 1024: False, 1792: True, 4096: False, 5120: True}  # EVA's, by width
_RANKS = {  # axes of the tensors whose shapes are read below
    "visual.conv1.weight": 4, "visual.positional_embedding": 2, "visual.proj": 2,
    "visual.transformer.resblocks.0.mlp.c_fc.weight": 2,
    "visual.trunk.patch_embed.proj.weight": 4, "visual.trunk.pos_embed": 3, "visual.trunk.head.weight": 2,
    "visual.trunk.blocks.0.mlp.fc1.weight": 2, "visual.trunk.blocks.0.mlp.fc1_g.weight": 2,
    "visual.layer1.0.conv1.weight": 4, "visual.attnpool.positional_embedding": 2, "visual.attnpool.c_proj.weight": 2,
    "token_embedding.weight": 2, "positional_embedding": 2, "text_projection": 2, "ln_final.weight": 1,
    "transformer.resblocks.0.mlp.c_fc.weight": 2, **BERT_RANKS, **RANKS,
}  # fmt: skip
_FOREIGN_VOCABULARIES = {32000: "clipa"}
PERCEPTION_HEADS = {v.width: v.width // v.heads for _, v, _ in PERCEPTION.values()}
PERCEPTION_GRIDS = {(v.width, v.patch_size): v.rope_grid for _, v, _ in PERCEPTION.values()}


def parameter_shapes(config: CLIPConfig) -> Shapes:
    """Return names and shapes of all parameters and statistics of `CLIP(config)`, without building it.

    Names are OpenAI's; those of an EVA or SigLIP tower are timm's and open_clip's (`visual.trunk.…`).
    """
    image = IMAGE_SHAPES[config.vision.kind](config.vision, config.embed_dim) if config.vision else {}
    text = text_shapes(config.text, config.embed_dim) if config.text else {}
    scale = {"logit_scale": (1,)} if image and text else {}
    if scale and config.sigmoid:
        scale["logit_bias"] = (1,)
    return {**{f"visual.{k}": shape for k, shape in image.items()}, **text, **scale}


def _vit_shapes(v: ViTConfig, embed: int) -> Shapes:
    return {
        "conv1.weight": (v.width, 3, v.patch_size, v.patch_size),
        "class_embedding": (v.width,),
        "positional_embedding": (1 + v.grid[0] * v.grid[1], v.width),
        **affine("ln_pre", v.width),
        **transformer_shapes("transformer", v),
        **affine("ln_post", v.width),
        **projection(v, embed),
    }


def _eva_shapes(v: EVAConfig, embed: int) -> Shapes:
    shapes = {
        "cls_token": (1, 1, v.width),
        "pos_embed": (1, 1 + v.grid[0] * v.grid[1], v.width),
        "patch_embed.proj.weight": (v.width, 3, v.patch_size, v.patch_size),
        "patch_embed.proj.bias": (v.width,),
    }
    for block in (f"blocks.{i}" for i in range(v.layers)):
        shapes |= _eva_norm(v, f"{block}.norm1") | _eva_norm(v, f"{block}.norm2")
        shapes |= _eva_attention_shapes(v, f"{block}.attn") | _eva_mlp_shapes(v, f"{block}.mlp")
    shapes |= _eva_norm(v, "norm") | linear("head", v.width, embed)
    if not v.bias:
        del shapes["head.bias"]
    return {f"trunk.{k}": shape for k, shape in shapes.items()}


def _eva_norm(v: EVAConfig, name: str, width: int = 0) -> Shapes:
    shapes = affine(name, width or v.width)
    return {f"{name}.weight": shapes[f"{name}.weight"]} if v.rms_norm else shapes


def _eva_attention_shapes(v: EVAConfig, name: str) -> Shapes:
    shapes = linear(f"{name}.proj", v.width, v.width)
    biases = ("q_bias", "v_bias") if not v.sub_norm else ("q_proj.bias", "v_proj.bias")
    if v.bias:
        shapes |= {f"{name}.{bias}": (v.width,) for bias in biases}
    if not v.sub_norm:
        return shapes | {f"{name}.qkv.weight": (3 * v.width, v.width)}
    shapes |= {f"{name}.{which}_proj.weight": (v.width, v.width) for which in "qkv"}
    return shapes | _eva_norm(v, f"{name}.norm")


def _eva_mlp_shapes(v: EVAConfig, name: str) -> Shapes:
    shapes = linear(f"{name}.fc2", v.mlp_width, v.width)
    for first in ("fc1_g", "fc1_x") if v.swiglu else ("fc1",):
        shapes |= linear(f"{name}.{first}", v.width, v.mlp_width)
    return shapes | (_eva_norm(v, f"{name}.norm", v.mlp_width) if v.swiglu and v.sub_norm else {})


def _resnet_shapes(v: ResNetConfig, embed: int) -> Shapes:
    shapes: Shapes = {}

    def convolve(conv: str, norm: str, inputs: int, outputs: int, size: int) -> None:
        shapes[f"{conv}.weight"] = (outputs, inputs, size, size)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{kind}"] = (outputs,)

    widths = (3, v.width // 2, v.width // 2, v.width)
    for i in (1, 2, 3):
        convolve(f"conv{i}", f"bn{i}", widths[i - 1], widths[i], 3)
    inputs = v.width
    for stage, blocks in enumerate(v.layers, start=1):
        planes = v.width * 2 ** (stage - 1)
        for block in (f"layer{stage}.{i}" for i in range(blocks)):
            convolve(f"{block}.conv1", f"{block}.bn1", inputs, planes, 1)
            convolve(f"{block}.conv2", f"{block}.bn2", planes, planes, 3)
            convolve(f"{block}.conv3", f"{block}.bn3", planes, 4 * planes, 1)
            if block.endswith(".0"):  # it strides or widens
                convolve(f"{block}.downsample.0", f"{block}.downsample.1", inputs, 4 * planes, 1)
            inputs = 4 * planes
    shapes["attnpool.positional_embedding"] = (1 + v.grid[0] * v.grid[1], inputs)
    for part in ("q_proj", "k_proj", "v_proj"):
        shapes |= linear(f"attnpool.{part}", inputs, inputs)
    return shapes | linear("attnpool.c_proj", inputs, embed)


IMAGE_SHAPES: dict[str, Callable[[Any, int], Shapes]] = {
    "vit": _vit_shapes,
    "resnet": _resnet_shapes,
    "eva": _eva_shapes,
    "pe": perception_shapes,
    "mobile": mobile_shapes,
    "siglip": siglip_shapes.image_shapes,
}


def config_from_shapes(shapes: Mapping[str, tuple], stated: Stated, place: object = "") -> CLIPConfig:
    """Return the configuration that shapes determine. Raises `CheckpointError` for what is neither there nor stated,
    with what to pass.

    A single tower makes a model of one tower.
    """
    activation = stated.stated_activation(place)
    for key, rank in {**_RANKS, **siglip_shapes.RANKS}.items():
        if key in shapes and (len(shapes[key]) != rank or 0 in shapes[key]):
            raise CheckpointError(f"{place}: {key} must have {rank} axes, none of them empty, got {tuple(shapes[key])}")
    try:
        if siglip_shapes.are_siglips(shapes):
            return _siglip_from_shapes(shapes, activation, stated, place)
        vision = _vision_from_shapes(shapes, stated, place)
        text = _text_from_shapes(shapes, stated)
        if text and text.kind == "clip" and text.vocab_size in _FOREIGN_VOCABULARIES:
            raise refused(_FOREIGN_VOCABULARIES[text.vocab_size], place, f"a vocabulary of {text.vocab_size}")
        if vision is None and text is None:
            raise CheckpointError(f"{place} holds neither an image tower nor a text tower")
        return CLIPConfig(_embed_dim(shapes), vision, text, activation)
    except KeyError as e:
        raise CheckpointError(f"{place}: a CLIP model needs {e.args[0]}, which is missing") from e
    except ConfigError as e:
        raise CheckpointError(f"{place}: its shapes make no CLIP model: {e}") from e


def _siglip_from_shapes(
    shapes: Mapping[str, tuple], activation: Activation, stated: Stated, place: object
) -> CLIPConfig:
    def size(cells: int, patch: int) -> tuple[int, int]:
        return _image_size(cells, patch, stated, place)

    image, text = siglip_shapes.LATENT in shapes, siglip_shapes.TOKENS in shapes
    vision = siglip_shapes.image_from_shapes(shapes, activation, stated.head_width, size) if image else None
    words = siglip_shapes.text_from_shapes(shapes, activation, stated.head_width) if text else None
    tower = vision or words
    embed = vision.width if vision else shapes.get("text.text_projection.bias", (words.width,))[0]
    return CLIPConfig(embed, vision, words, activation, tower.norm_eps, sigmoid="logit_bias" in shapes)


def _embed_dim(shapes: Mapping[str, tuple]) -> int:
    for key, axis in (("text_projection", 1), ("visual.proj", 1), ("text.text_projection", 1)):
        if key in shapes:
            return shapes[key][axis]
    key = "visual.trunk.head.weight" if "visual.trunk.head.weight" in shapes else "visual.attnpool.c_proj.weight"
    return shapes[key][0]


def _vision_from_shapes(shapes: Mapping[str, tuple], stated: Stated, place: object) -> AnyImage | None:
    if not any(k.startswith("visual.") for k in shapes):
        return None
    for key, reader in _BY_KEY.items():
        if key in shapes:
            return reader(shapes, stated, place)
    return _vit_from_shapes(shapes, stated, place)


def _text_from_shapes(shapes: Mapping[str, tuple], stated: Stated) -> AnyText | None:
    if "text.token_type_embedding" in shapes:
        return bert_from_shapes(shapes)
    if "token_embedding.weight" not in shapes:
        return None
    width = shapes["ln_final.weight"][0]
    return TextConfig(
        width=width,
        heads=max(width // 64, 1),
        layers=count_of(shapes, r"transformer\.resblocks\.(\d+)\."),
        mlp_width=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        context_length=shapes["positional_embedding"][0],
        vocab_size=shapes["token_embedding.weight"][0],
        layer_scale="transformer.resblocks.0.ls_1.gamma" in shapes,
        end=ENDS.get(shapes["token_embedding.weight"][0]),
        causal=stated.causal,
    )


def _vit_from_shapes(shapes: Mapping[str, tuple], stated: Stated, place: object) -> ViTConfig:
    width, _, patch, _ = shapes["visual.conv1.weight"]
    heads, cells = _heads(width, stated, place), shapes["visual.positional_embedding"][0] - 1
    sizes = _block_sizes(shapes, patch, width, heads, _image_size(cells, patch, stated, place))
    return ViTConfig(**sizes, proj_bias="visual.proj_bias" in shapes)


def _perception_from_shapes(shapes: Mapping[str, tuple], stated: Stated, place: object) -> PerceptionConfig:
    width, _, patch, _ = shapes["visual.conv1.weight"]
    more = perception_fields(shapes)
    heads = _heads(width, stated, place, PERCEPTION_HEADS)
    cells = shapes["visual.positional_embedding"][0] - more["class_token"]
    sizes = _block_sizes(shapes, patch, width, heads, _image_size(cells, patch, stated, place))
    return PerceptionConfig(**sizes, **more, rope_grid=PERCEPTION_GRIDS.get((width, patch), (0, 0)))


def _mobile_from_shapes(shapes: Mapping[str, tuple], stated: Stated, place: object) -> MobileConfig:
    width, patch = shapes["visual.class_embedding"][0], math.prod(STEM_STRIDES)
    size = _image_size(shapes["visual.positional_embedding"][0], patch, stated, place)
    sizes, bias = _block_sizes(shapes, patch, width, _heads(width, stated, place), size), "visual.proj_bias" in shapes
    return (as_timm if bias else as_apple)(MobileConfig(**sizes, proj_bias=bias))


def _block_sizes(shapes: Mapping[str, tuple], patch: int, width: int, heads: int, size: tuple) -> dict[str, Any]:
    block = "visual.transformer.resblocks.0"
    return {
        "image_size": size, "patch_size": patch, "width": width, "heads": heads,
        "layers": count_of(shapes, r"visual\.transformer\.resblocks\.(\d+)\."),
        "mlp_width": shapes[f"{block}.mlp.c_fc.weight"][0],
        "layer_scale": f"{block}.ls_1.gamma" in shapes,
    }  # fmt: skip


def _eva_from_shapes(shapes: Mapping[str, tuple], stated: Stated, place: object) -> EVAConfig:
    width, _, patch, _ = shapes["visual.trunk.patch_embed.proj.weight"]
    block = "visual.trunk.blocks.0"
    gated, sub_norm = f"{block}.mlp.fc1_g.weight" in shapes, f"{block}.attn.q_proj.weight" in shapes
    post_norm = stated.post_norm if stated.post_norm is not None else POST_NORM.get(width)
    if post_norm is None and not sub_norm:  # towers with inner norms are of the pre-norm kind
        raise CheckpointError(
            f"{place}: an EVA tower of width {width} does not give the order of its norms: pass --post-norm yes "
            "(as E and 18B have it) or no (as B, L and 8B)"
        )
    bias = f"{block}.attn.q_bias" in shapes or f"{block}.attn.q_proj.bias" in shapes
    if bias and not sub_norm and (width == 1408 or f"{block}.gamma_1" in shapes):
        raise refused("eva01", place)
    return EVAConfig(
        image_size=_image_size(shapes["visual.trunk.pos_embed"][1] - 1, patch, stated, place),
        patch_size=patch,
        width=width,
        layers=count_of(shapes, r"visual\.trunk\.blocks\.(\d+)\."),
        heads=_heads(width, stated, place),
        mlp_width=shapes[f"{block}.mlp.fc1_g.weight" if gated else f"{block}.mlp.fc1.weight"][0],
        swiglu=gated,
        sub_norm=sub_norm,
        rope=sub_norm,
        post_norm=bool(post_norm),
        rms_norm="visual.trunk.norm.bias" not in shapes,
        bias=bias,
    )


def _resnet_from_shapes(shapes: Mapping[str, tuple], stated: Stated, place: object) -> ResNetConfig:
    width = shapes["visual.layer1.0.conv1.weight"][0]
    size = _image_size(shapes["visual.attnpool.positional_embedding"][0] - 1, 32, stated, place)
    blocks = tuple(count_of(shapes, rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
    return ResNetConfig(size, width, blocks, heads=max(width * 32 // 64, 1))


_BY_KEY: dict[str, Callable[[Mapping[str, tuple], Stated, object], AnyImage]] = {  # what one kind of tower alone has
    "visual.trunk.cls_token": _eva_from_shapes,
    "visual.attnpool.c_proj.weight": _resnet_from_shapes,
    PROBE: _perception_from_shapes,
    STEM: _mobile_from_shapes,
}


def _heads(width: int, stated: Stated, place: object, known: Mapping[int, int] = HEAD_WIDTHS) -> int:
    head_width = known.get(width) if stated.head_width is None else stated.head_width
    if not head_width:
        raise CheckpointError(
            f"{place}: an image tower of width {width} does not give its head width: pass head_width= (--vision-head-width)"
        )
    if width % head_width:
        raise CheckpointError(f"{place}: heads of width {head_width} do not divide an image tower of width {width}")
    return width // head_width


def _image_size(cells: int, step: int, stated: Stated, place: object) -> tuple[int, int]:
    """Return (H, W) in pixels. The number of positions determines a square only; other grids must be stated."""
    if stated.image_size and (stated.image_size[0] // step) * (stated.image_size[1] // step) == cells:
        return stated.image_size
    side = math.isqrt(cells)
    if side * side != cells:
        raise CheckpointError(
            f"{place}: positions must form a square grid, got {cells}: pass --image-size HEIGHT WIDTH"
        )
    return side * step, side * step
