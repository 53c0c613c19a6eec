"""Hugging Face's `CLIPModel` folders: config.json, preprocessor_config.json, weights whole or in shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jclip.data.preprocess import DEVIATIONS, MEANS, OPENAI_MEAN, OPENAI_STD, Preprocess
from jclip.errors import CheckpointError
from jclip.readers import LazyTensor
from jclip.readers.schema import FLAG, NOTHING, SIDE, TABLE, TEXT, Condition, either, obey, one_of, whole
from jclip.weights.layouts.keymap import Report, Rule, apply, both
from jclip.weights.layouts.photo_sizes import is_squashed
from jclip.weights.tower_sizes import CONTEXT, EPSILON, HEADS, HIDDEN, LAYERS, PATCH, VOCABULARY, WIDTH
from jclip.weights.variants import CLIPConfig, TextConfig, ViTConfig

ACTIVATIONS = {"quick_gelu": "quickgelu", "gelu": "gelu"}
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's codes
_PARTS = {  # within a layer
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


def _layer_rules(source: str, target: str) -> list[Rule]:
    rules = []
    for kind in ("weight", "bias"):
        thirds = tuple(f"{source}.self_attn.{which}_proj.{kind}" for which in "qkv")
        rules.append(Rule(thirds, f"{target}.attn.in_proj_{kind}", "stack"))
    return rules + [rule for a, b in _PARTS.items() for rule in both(f"{source}.{a}", f"{target}.{b}")]


TEXT_RULES = [
    *_layer_rules("text_model.encoder.layers.{}", "transformer.resblocks.{}"),
    Rule(("text_model.embeddings.token_embedding.weight",), "token_embedding.weight"),
    Rule(("text_model.embeddings.position_embedding.weight",), "positional_embedding"),
    *both("text_model.final_layer_norm", "ln_final"),
    Rule(("text_projection.weight",), "text_projection", "transpose"),
    Rule(("logit_scale",), "logit_scale"),
    *(Rule((f"{tower}_model.embeddings.position_ids",), "") for tower in ("vision", "text")),  # of old exports
]
IMAGE_RULES = [
    *_layer_rules("vision_model.encoder.layers.{}", "visual.transformer.resblocks.{}"),
    Rule(("vision_model.embeddings.class_embedding",), "visual.class_embedding"),
    Rule(("vision_model.embeddings.patch_embedding.weight",), "visual.conv1.weight"),
    Rule(("vision_model.embeddings.position_embedding.weight",), "visual.positional_embedding"),
    *both("vision_model.pre_layrnorm", "visual.ln_pre"),  # sic
    *both("vision_model.post_layernorm", "visual.ln_post"),
    Rule(("visual_projection.weight",), "visual.proj", "transpose"),
]
RULES = [*IMAGE_RULES, *TEXT_RULES]
_TOWER: dict[str, Condition] = {  # what config.json may say of a tower
    "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "hidden_act": TEXT, "layer_norm_eps": EPSILON,
}  # fmt: skip
VISION = {**_TOWER, "image_size": SIDE, "patch_size": PATCH, "num_channels": one_of(3)}
_TEXT = {
    **_TOWER, "max_position_embeddings": CONTEXT, "vocab_size": VOCABULARY,
    "eos_token_id": either(whole(0, 1 << 24), NOTHING),
}  # fmt: skip
_PHOTOS = {  # what preprocessor_config.json may say of photos
    "do_center_crop": FLAG, "do_convert_rgb": FLAG, "resample": one_of(*RESAMPLE), "image_mean": MEANS, "image_std": DEVIATIONS,
}  # fmt: skip
WORLDWIDE = "metaclip_2"  # MetaCLIP 2: read at the first token that is `eos_token_id`, whichever it is
READ = ("clip", WORLDWIDE, "chinese_clip", "siglip", "siglip2", "fgclip2")  # whose folders are read, here and beside
TOWERS = {  # exports of one tower
    "clip_vision_model": "image", "clip_text_model": "text", f"{WORLDWIDE}_vision_model": "image",
    f"{WORLDWIDE}_text_model": "text",
}  # fmt: skip


def canonical(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], Report]:
    """Return tensors under OpenAI's names, and the report of all keys."""
    return apply(tensors, RULES)


def config_from(config: Mapping[str, Any], place: object) -> CLIPConfig:
    """Return the configuration. Old files leave out ViT-B/32's values, or put the towers under `…_config_dict`;
    exports of one tower are flat.

    Raises `CheckpointError` for a model of another kind, `ConfigError` for values out of range.
    """
    obey(config, {"model_type": TEXT, "projection_dim": WIDTH})
    kind = config.get("model_type", "clip")
    if kind not in ("clip", WORLDWIDE, *TOWERS):
        raise CheckpointError(
            f"{place} is of a {kind} model, which jclip does not know: models of transformers are read whose model_type is "
            f"{', '.join(READ)}, and towers of the first two ({', '.join(TOWERS)})"
        )
    tower = TOWERS.get(kind)
    vision = None if tower == "text" else config if tower else side(config, "vision_config")
    text = None if tower == "image" else config if tower else side(config, "text_config")
    obey(vision or {}, VISION, "" if tower else "vision_config")
    obey(text or {}, _TEXT, "" if tower else "text_config")
    said = {str(tower.get("hidden_act", "quick_gelu")) for tower in (vision, text) if tower is not None}
    if len(said) != 1 or not said <= set(ACTIVATIONS):
        raise CheckpointError(f"{place} names the activations {', '.join(sorted(said))}: one of "
                              f"{', '.join(ACTIVATIONS)} is known, the same in both towers")  # fmt: skip
    eps = {tower.get("layer_norm_eps", 1e-5) for tower in (vision, text) if tower is not None}
    if len(eps) != 1:
        raise CheckpointError(f"{place} names two values of layer_norm_eps: one for both towers is known")
    return CLIPConfig(
        embed_dim=config.get("projection_dim", 512),
        vision=None if vision is None else vision_from(vision),
        text=None if text is None else replace(text_from(text), end=_end(text, kind)),
        activation=ACTIVATIONS[said.pop()],
        norm_eps=eps.pop(),
    )


def _end(text: Mapping[str, Any], kind: str) -> int | None:
    """Return the id at which a text is read; None where it is the highest. CLIP's configurations say 2 for that, a
    historic error that CLIPModel still reads so."""
    eos = text.get("eos_token_id")
    if kind.startswith(WORLDWIDE):
        return 2 if eos is None else eos
    return None if eos in (None, 2, text.get("vocab_size", 49408) - 1) else eos


def side(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what config.json says of one tower, in either of its forms."""
    obey(config, dict.fromkeys((name, f"{name}_dict"), either(TABLE, NOTHING)))
    return {**(config.get(f"{name}_dict") or {}), **(config.get(name) or {})}


def vision_from(vision: Mapping[str, Any]) -> ViTConfig:
    """Return the image tower, with ViT-B/32's values for missing keys."""
    width, side = vision.get("hidden_size", 768), vision.get("image_size", 224)
    return ViTConfig(
        image_size=(side, side), patch_size=vision.get("patch_size", 32), width=width,
        layers=vision.get("num_hidden_layers", 12), heads=vision.get("num_attention_heads", 12),
        mlp_width=vision.get("intermediate_size", 4 * width),
    )  # fmt: skip


def text_from(text: Mapping[str, Any]) -> TextConfig:
    """Return the text tower, with ViT-B/32's values for missing keys."""
    obey(text, _TEXT, "text_config")
    return TextConfig(
        width=text.get("hidden_size", 512), heads=text.get("num_attention_heads", 8),
        layers=text.get("num_hidden_layers", 12), mlp_width=text.get("intermediate_size", 2048),
        context_length=text.get("max_position_embeddings", 77), vocab_size=text.get("vocab_size", 49408),
    )  # fmt: skip


def preprocess_from(said: Mapping[str, Any], config: CLIPConfig) -> Preprocess:
    """Return the preprocessing in preprocessor_config.json, with OpenAI's at the model's size for missing keys.

    Photos become RGB before they are resized, as in transformers. null counts as missing. Raises `ConfigError`.
    """
    said = {key: value for key, value in said.items() if value is not None}
    obey(said, _PHOTOS)
    return Preprocess(
        size=config.vision.image_size if config.vision else (224, 224),
        resize="squash" if is_squashed(said, crops=True) else "shortest",
        interpolation=RESAMPLE[said.get("resample", 3)],
        mean=tuple(said.get("image_mean", OPENAI_MEAN)),
        std=tuple(said.get("image_std", OPENAI_STD)),
        rgb_first=said.get("do_convert_rgb", True),
    )
