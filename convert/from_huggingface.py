"""Hugging Face's `CLIPModel` folders: config.json, preprocessor_config.json, weights whole or in shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.keymap import Report, Rule, apply
from jclip.errors import CheckpointError
from jclip.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess
from jclip.readers import LazyTensor, read_weights
from jclip.variants import CLIPConfig, TextConfig, ViTConfig

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ACTIVATIONS = {"quick_gelu": "quickgelu", "gelu": "gelu"}
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_PARTS = {  # within a layer
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


def _layer_rules(source: str, target: str) -> list[Rule]:
    rules = []
    for kind in ("weight", "bias"):
        thirds = tuple(f"{source}.self_attn.{which}_proj.{kind}" for which in "qkv")
        rules.append(Rule(thirds, f"{target}.attn.in_proj_{kind}", "stack"))
        rules += [Rule((f"{source}.{a}.{kind}",), f"{target}.{b}.{kind}") for a, b in _PARTS.items()]
    return rules


RULES = [
    *_layer_rules("vision_model.encoder.layers.{}", "visual.transformer.resblocks.{}"),
    *_layer_rules("text_model.encoder.layers.{}", "transformer.resblocks.{}"),
    Rule(("vision_model.embeddings.class_embedding",), "visual.class_embedding"),
    Rule(("vision_model.embeddings.patch_embedding.weight",), "visual.conv1.weight"),
    Rule(("vision_model.embeddings.position_embedding.weight",), "visual.positional_embedding"),
    *(Rule((f"vision_model.pre_layrnorm.{k}",), f"visual.ln_pre.{k}") for k in ("weight", "bias")),  # sic
    *(Rule((f"vision_model.post_layernorm.{k}",), f"visual.ln_post.{k}") for k in ("weight", "bias")),
    Rule(("visual_projection.weight",), "visual.proj", "transpose"),
    Rule(("text_model.embeddings.token_embedding.weight",), "token_embedding.weight"),
    Rule(("text_model.embeddings.position_embedding.weight",), "positional_embedding"),
    *(Rule((f"text_model.final_layer_norm.{k}",), f"ln_final.{k}") for k in ("weight", "bias")),
    Rule(("text_projection.weight",), "text_projection", "transpose"),
    Rule(("logit_scale",), "logit_scale"),
    *(Rule((f"{tower}_model.embeddings.position_ids",), "") for tower in ("vision", "text")),  # of old exports
]


def read(folder: Path) -> tuple[dict[str, LazyTensor], CLIPConfig, Preprocess, Report]:
    """Tensors in OpenAI's names, the architecture, the preprocessing, what became of each key. Raises `CheckpointError`."""
    config = read_json(folder / "config.json")
    if config.get("model_type", "clip") != "clip":
        raise CheckpointError(
            f"{folder} holds a {config['model_type']} model: only CLIPModel is read (model_type clip)"
        )
    tensors, report = apply(weights_of(folder), RULES)
    described = config_from(config, folder)
    return tensors, described, preprocess_from(folder / "preprocessor_config.json", described), report


def weights_of(folder: Path) -> dict[str, LazyTensor]:
    """All tensors of a folder, from one file or from the shards that an index names."""
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return dict(read_weights(folder / name))
        if index.is_file():
            placed: Mapping[str, str] = read_json(index)["weight_map"]
            absent = sorted({f for f in placed.values() if not (folder / f).is_file()})
            if absent:
                raise CheckpointError(
                    f"{folder}: {', '.join(absent)} is missing, which {index.name} names: fetch it as well"
                )
            shards = {file: read_weights(folder / file) for file in sorted(set(placed.values()))}
            lost = [key for key, file in placed.items() if key not in shards[file]]
            if lost:
                raise CheckpointError(f"{folder}: {placed[lost[0]]} lacks {lost[0]}, which {index.name} places there")
            return {key: shards[file][key] for key, file in placed.items()}
    raise CheckpointError(f"{folder} holds no weights ({', '.join(WEIGHTS)}, or their index)")


def config_from(config: Mapping[str, Any], folder: Path) -> CLIPConfig:
    """Old files leave out what is ViT-B/32's, or put the towers under `…_config_dict`."""
    vision = {**(config.get("vision_config_dict") or {}), **(config.get("vision_config") or {})}
    text = {**(config.get("text_config_dict") or {}), **(config.get("text_config") or {})}
    said = {str(tower.get("hidden_act", "quick_gelu")) for tower in (vision, text)}
    if len(said) != 1 or not said <= set(ACTIVATIONS):
        raise CheckpointError(f"{folder}/config.json names the activations {', '.join(sorted(said))}: one of "
                              f"{', '.join(ACTIVATIONS)} is known, the same in both towers")  # fmt: skip
    width, side = vision.get("hidden_size", 768), vision.get("image_size", 224)
    return CLIPConfig(
        embed_dim=config.get("projection_dim", 512),
        vision=ViTConfig(
            image_size=(side, side), patch_size=vision.get("patch_size", 32), width=width,
            layers=vision.get("num_hidden_layers", 12), heads=vision.get("num_attention_heads", 12),
            mlp_width=vision.get("intermediate_size", 4 * width),
        ),
        text=TextConfig(
            width=text.get("hidden_size", 512), heads=text.get("num_attention_heads", 8),
            layers=text.get("num_hidden_layers", 12), mlp_width=text.get("intermediate_size", 2048),
            context_length=text.get("max_position_embeddings", 77), vocab_size=text.get("vocab_size", 49408),
        ),
        activation=ACTIVATIONS[said.pop()],
        norm_eps=vision.get("layer_norm_eps", 1e-5),
    )  # fmt: skip


def preprocess_from(file: Path, config: CLIPConfig) -> Preprocess:
    """What the folder says of photos, else OpenAI's pipeline at the model's size."""
    said = read_json(file) if file.is_file() else {}
    return Preprocess(
        size=config.vision.image_size,
        interpolation=RESAMPLE.get(said.get("resample", 3), "bicubic"),
        mean=tuple(said.get("image_mean", OPENAI_MEAN)),
        std=tuple(said.get("image_std", OPENAI_STD)),
    )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON table. Raises `CheckpointError`."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise CheckpointError(f"can't read {file}: {e.strerror}") from e
    except ValueError as e:
        raise CheckpointError(f"{file} is not valid JSON: {e}") from e
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} is not a table")
    return values
