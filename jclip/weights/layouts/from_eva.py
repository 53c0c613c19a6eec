"""EVA-CLIP's layouts: the authors' own files, and the hub repositories (BAAI/EVA-CLIP-8B, -18B)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jclip.errors import CheckpointError
from jclip.readers import LazyTensor
from jclip.readers.schema import FLAG, NOTHING, SIDE, TABLE, Condition, either, obey, one_of
from jclip.weights.layouts.from_huggingface import TEXT_RULES, text_from
from jclip.weights.layouts.keymap import Report, Rule, apply, both
from jclip.weights.tower_sizes import EPSILON, HEADS, HIDDEN, LAYERS, PATCH, WIDTH
from jclip.weights.variants import CLIPConfig, EVAConfig

TRUNK, BLOCK = "visual.trunk", "visual.trunk.blocks.{}"
_SAME = ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")
_GATED = {"attn.inner_attn_ln": "attn.norm", "mlp.w1": "mlp.fc1_g", "mlp.w2": "mlp.fc1_x", "mlp.w3": "mlp.fc2",
          "mlp.ffn_ln": "mlp.norm", "attn.q_proj": "attn.q_proj", "attn.k_proj": "attn.k_proj",
          "attn.v_proj": "attn.v_proj"}  # fmt: skip


def _original_rules(apart: bool) -> list[Rule]:
    """Return rules from the authors' names to timm's; `apart`: q, k and v have separate matrices, and so biases."""
    parts = {f"visual.{part}": f"{TRUNK}.{part}" for part in ("patch_embed.proj", "norm", "head")}
    parts |= {f"visual.blocks.{{}}.{part}": f"{BLOCK}.{part}" for part in _SAME}
    parts |= {f"visual.blocks.{{}}.{theirs}": f"{BLOCK}.{ours}" for theirs, ours in _GATED.items()}
    bias = "attn.{}_proj.bias" if apart else "attn.{}_bias"
    return [
        Rule(("visual.cls_token",), f"{TRUNK}.cls_token"),
        Rule(("visual.pos_embed",), f"{TRUNK}.pos_embed"),
        Rule(("visual.blocks.{}.attn.qkv.weight",), f"{BLOCK}.attn.qkv.weight"),
        *(Rule((f"visual.blocks.{{}}.attn.{w}_bias",), f"{BLOCK}.{bias.format(w)}") for w in "qv"),
        *(rule for theirs, ours in parts.items() for rule in both(theirs, ours)),
    ]


HUGGING_FACE = [
    Rule(("vision_model.embeddings.class_embedding",), f"{TRUNK}.cls_token", "token"),
    Rule(("vision_model.embeddings.position_embedding.weight",), f"{TRUNK}.pos_embed", "table"),
    *both("vision_model.embeddings.patch_embedding", f"{TRUNK}.patch_embed.proj"),
    *both("vision_model.encoder.layers.{}.layer_norm1", f"{BLOCK}.norm1"),
    *both("vision_model.encoder.layers.{}.layer_norm2", f"{BLOCK}.norm2"),
    *both("vision_model.encoder.layers.{}.self_attn.out_proj", f"{BLOCK}.attn.proj"),
    *both("vision_model.encoder.layers.{}.mlp.fc1", f"{BLOCK}.mlp.fc1"),
    *both("vision_model.encoder.layers.{}.mlp.fc2", f"{BLOCK}.mlp.fc2"),
    Rule(
        tuple(f"vision_model.encoder.layers.{{}}.self_attn.{which}_proj.weight" for which in "qkv"),
        f"{BLOCK}.attn.qkv.weight",
        "stack",
    ),
    *(Rule((f"vision_model.encoder.layers.{{}}.self_attn.{w}_proj.bias",), f"{BLOCK}.attn.{w}_bias") for w in "qv"),
    *both("vision_model.post_layernorm", f"{TRUNK}.norm"),
    *both("visual_projection", f"{TRUNK}.head"),
    *TEXT_RULES,
]


def original(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], Report]:
    """Map the authors' file: text keys bare or under `text.`; rotary tables in each block are dropped, since they are
    recomputed."""
    kept = {k: t for k, t in tensors.items() if "rope" not in k.split(".") and not k.endswith("attn_mask")}
    image = {k: t for k, t in kept.items() if k.startswith("visual.")}
    apart = any(k.endswith("attn.q_proj.weight") for k in image)
    made, report = apply(image, _original_rules(apart))
    text = {k.removeprefix("text."): t for k, t in kept.items() if k not in image}
    report.copied += list(text)
    report.dropped += [k for k in tensors if k not in kept]
    return {**made, **text}, report


def hugging_face(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], Report]:
    """Map the hub's layout: Hugging Face's names, the patch convolution with a bias, no norm before the blocks."""
    return apply(tensors, HUGGING_FACE)


_FLAGS = (
    "post_layernorm", "use_rms_norm", "q_bias", "use_rope", "use_sub_ln", "use_swiglu_mlp", "x_attention", "k_bias",
)  # fmt: skip
_VISION: dict[str, Condition] = {
    "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "image_size": SIDE, "patch_size": PATCH, "layer_norm_eps": EPSILON, "num_channels": one_of(3),
    **dict.fromkeys(_FLAGS, either(FLAG, NOTHING)),
}  # fmt: skip


def is_config(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json belongs to EVA-CLIP's code on the hub. Raises `ConfigError`."""
    named, tables = Condition("a list of names", lambda v: v is None or isinstance(v, list)), either(TABLE, NOTHING)
    obey(config, {"architectures": named, "vision_config": tables, "text_config": tables})
    kinds = (name for name in config.get("architectures") or [] if isinstance(name, str))
    return "EvaCLIP" in " ".join(kinds) or "use_rms_norm" in (config.get("vision_config") or {})


def config_from(config: Mapping[str, Any], place: object) -> CLIPConfig:
    """Return the configuration from the flags of the hub's code; `post_layernorm` there is the order of norms in a
    block. Raises `CheckpointError`."""
    vision = config.get("vision_config") or {}
    obey(config, {"projection_dim": WIDTH})
    obey(vision, _VISION, "vision_config")
    unread = [k for k in ("use_rope", "use_sub_ln", "use_swiglu_mlp", "x_attention", "k_bias") if vision.get(k)]
    if unread:
        raise CheckpointError(f"{place}: an EVA tower with {unread[0]} is not read from the hub's layout")
    try:
        width, side = vision["hidden_size"], vision["image_size"]
        tower = EVAConfig(
            image_size=(side, side), patch_size=vision["patch_size"], width=width, layers=vision["num_hidden_layers"],
            heads=vision["num_attention_heads"], mlp_width=vision["intermediate_size"],
            post_norm=bool(vision.get("post_layernorm")), rms_norm=bool(vision.get("use_rms_norm")),
            bias=bool(vision.get("q_bias", True)), norm_eps=vision.get("layer_norm_eps", 1e-6),
        )  # fmt: skip
        text = config.get("text_config") or {}
        return CLIPConfig(config["projection_dim"], tower, text_from(text), "gelu", text.get("layer_norm_eps", 1e-5))
    except KeyError as e:
        raise CheckpointError(f"{place} lacks {e.args[0]}") from e
