"""Chinese-CLIP's two layouts: Hugging Face's `ChineseCLIPModel`, and the checkpoints of the authors' package cn_clip.

Yang et al., 2022, arXiv 2211.01335. The image towers are CLIP's, the text tower is a BERT; neither layout states the
length of a text, which is 52 tokens wherever the authors use the models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jclip.data.preprocess import Preprocess
from jclip.errors import CheckpointError
from jclip.readers import LazyTensor
from jclip.readers.schema import FLAG, NOTHING, TABLE, TEXT, Condition, either, obey, one_of
from jclip.weights.layouts import from_huggingface
from jclip.weights.layouts.keymap import Report, Rule, apply, both
from jclip.weights.text_configs import BertConfig
from jclip.weights.tower_sizes import CONTEXT, EPSILON, HEADS, HIDDEN, LAYERS, TOKEN, VOCABULARY, WIDTH
from jclip.weights.variants import CLIPConfig

HUGGING_FACE, CN_CLIP = "Hugging Face ChineseCLIPModel", "cn_clip"  # names of the layouts
MODEL_TYPE, FAMILY = "chinese_clip", "chinese-clip"
CONTEXT_LENGTH = 52
PREPROCESSOR = {"do_center_crop": False}  # what the authors' preprocessor_config.json says, where there is none
_BLOCK = "text.transformer.resblocks.{}"
_PARTS = {  # within a layer of BERT
    "attention.output.dense": "attn.out_proj", "attention.output.LayerNorm": "ln_1",
    "intermediate.dense": "mlp.c_fc", "output.dense": "mlp.c_proj", "output.LayerNorm": "ln_2",
}  # fmt: skip
_TABLES = {
    "word_embeddings": "token_embedding.weight", "position_embeddings": "positional_embedding",
    "token_type_embeddings": "token_type_embedding",
}  # fmt: skip


def _bert_rules(bert: str) -> list[Rule]:
    """Return rules from BERT's names below `bert` to ours; what nothing computes with is dropped."""
    layer, rules = f"{bert}.encoder.layer.{{}}", []
    for kind in ("weight", "bias"):
        thirds = tuple(f"{layer}.attention.self.{which}.{kind}" for which in ("query", "key", "value"))
        rules.append(Rule(thirds, f"{_BLOCK}.attn.in_proj_{kind}", "stack"))
        rules.append(Rule((f"{bert}.pooler.dense.{kind}",), ""))
    rules += [rule for a, b in _PARTS.items() for rule in both(f"{layer}.{a}", f"{_BLOCK}.{b}")]
    rules += [Rule((f"{bert}.embeddings.{a}.weight",), f"text.{b}") for a, b in _TABLES.items()]
    buffers = [Rule((f"{bert}.embeddings.{name}",), "") for name in ("position_ids", "token_type_ids")]
    return [*rules, *both(f"{bert}.embeddings.LayerNorm", "text.ln_pre"), *buffers]


HUGGING_FACE_RULES = [
    *from_huggingface.IMAGE_RULES,
    *_bert_rules("text_model"),
    Rule(("text_projection.weight",), "text.text_projection", "transpose"),
    Rule(("logit_scale",), "logit_scale"),
    Rule(("vision_model.embeddings.position_ids",), ""),
]
CN_CLIP_RULES = [
    *_bert_rules("bert"),
    Rule(("text_projection",), "text.text_projection"),
    Rule(("logit_scale",), "logit_scale"),
]
_FLASH = re.compile(r"\.attn\.Wqkv\.(weight|bias)$")
_FLASH_RULES = [
    Rule(("bert.encoder.layer.{}.attention.self.Wqkv.weight",), f"{_BLOCK}.attn.in_proj_weight"),
    Rule(("bert.encoder.layer.{}.attention.self.Wqkv.bias",), f"{_BLOCK}.attn.in_proj_bias"),
    *both("bert.encoder.layer.{}.attention.self.out_proj", f"{_BLOCK}.attn.out_proj"),
]
_TEXT: dict[str, Condition] = {  # what config.json may say of the text tower
    "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "type_vocab_size": HEADS, "hidden_act": TEXT,
    "layer_norm_eps": EPSILON, "pad_token_id": either(TOKEN, NOTHING), "is_decoder": either(FLAG, NOTHING),
    "position_embedding_type": either(one_of("absolute"), NOTHING),
}  # fmt: skip


def hugging_face(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], Report]:
    """Map Hugging Face's names."""
    return apply(tensors, HUGGING_FACE_RULES)


def cn_clip(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], Report]:
    """Map the authors' names: the image tower has OpenAI's; packed projections, as training with flash attention saves
    them, are unpacked."""
    image = {k: t for k, t in tensors.items() if k.startswith("visual.")}
    made, report = apply({k: t for k, t in tensors.items() if k not in image}, [*_FLASH_RULES, *CN_CLIP_RULES])
    report.copied += list(image)
    return {**{_FLASH.sub(r".attn.in_proj_\1", k): t for k, t in image.items()}, **made}, report


def is_config(config: Mapping[str, Any]) -> bool:
    """Return whether config.json is a `ChineseCLIPModel`'s."""
    return config.get("model_type") == MODEL_TYPE


def config_from(config: Mapping[str, Any], place: object) -> CLIPConfig:
    """Return the configuration, with transformers' own values for missing keys. Raises `CheckpointError` for a tower
    that jclip lacks, `ConfigError` for values out of range."""
    obey(config, {"projection_dim": WIDTH, "vision_config": TABLE, "text_config": TABLE})
    vision, text = from_huggingface.side(config, "vision_config"), from_huggingface.side(config, "text_config")
    obey(vision, from_huggingface.VISION, "vision_config")
    obey(text, _TEXT, "text_config")
    if text.get("is_decoder"):
        raise CheckpointError(f"{place} has a text tower that attends backwards only (is_decoder), a BERT is needed")
    return CLIPConfig(
        embed_dim=config.get("projection_dim", 512),
        vision=from_huggingface.vision_from(vision),
        text=text_from(text, place),
        activation=_activation(vision.get("hidden_act", "quick_gelu"), place, "vision_config"),
        norm_eps=vision.get("layer_norm_eps", 1e-5),
    )


def text_from(text: Mapping[str, Any], place: object) -> BertConfig:
    """Return the text tower, with transformers' values for missing keys."""
    positions, pad = text.get("max_position_embeddings", 512), text.get("pad_token_id")
    return BertConfig(
        width=text.get("hidden_size", 768), heads=text.get("num_attention_heads", 12),
        layers=text.get("num_hidden_layers", 12), mlp_width=text.get("intermediate_size", 3072),
        context_length=min(CONTEXT_LENGTH, positions), vocab_size=text.get("vocab_size", 30522), positions=positions,
        types=text.get("type_vocab_size", 2), pad=0 if pad is None else pad,
        activation=_activation(text.get("hidden_act", "gelu"), place, "text_config"),
        norm_eps=text.get("layer_norm_eps", 1e-12),
    )  # fmt: skip


def _activation(name: str, place: object, side: str) -> str:
    known = from_huggingface.ACTIVATIONS
    if name not in known:
        raise CheckpointError(f"{place}: {side}.hidden_act must be one of {', '.join(known)}, got {name[:60]!r}")
    return known[name]


def preprocess_from(said: Mapping[str, Any], config: CLIPConfig) -> Preprocess:
    """Return the preprocessing in preprocessor_config.json, or in `PREPROCESSOR`."""
    return from_huggingface.preprocess_from(said, config)
