"""Chinese-CLIP out: Hugging Face's `ChineseCLIPModel` folder, and the checkpoint that the authors' cn_clip loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from convert.to_jclip import scalar_scale
from convert.to_torch import as_torch
from jclip.errors import ConfigError
from jclip.prompts.vocabularies import WORDPIECE, VocabularyFile
from jclip.readers import torch_writer
from jclip.weights.checkpoint import Checkpoint
from jclip.weights.layouts import from_chinese_clip, from_huggingface
from jclip.weights.layouts.keymap import unapply
from jclip.weights.text_configs import BertConfig

ACTIVATIONS = {ours: theirs for theirs, ours in from_huggingface.ACTIVATIONS.items()}


def is_chinese_clip(checkpoint: Checkpoint) -> bool:
    """Return whether the text tower is Chinese-CLIP's."""
    return isinstance(checkpoint.config.text, BertConfig)


def hugging_face_config(checkpoint: Checkpoint, vision: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return config.json; `vision`: the image tower's table as `CLIPModel`'s has it."""
    config, t = checkpoint.config, checkpoint.config.text
    text = {
        "hidden_size": t.width, "intermediate_size": t.mlp_width, "num_hidden_layers": t.layers,
        "num_attention_heads": t.heads, "max_position_embeddings": t.positions, "vocab_size": t.vocab_size,
        "type_vocab_size": t.types, "pad_token_id": t.pad, "hidden_act": ACTIVATIONS[t.activation],
        "layer_norm_eps": t.norm_eps, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    }  # fmt: skip
    image = {"hidden_act": ACTIVATIONS[config.activation], "layer_norm_eps": config.norm_eps}
    image |= {"projection_dim": config.embed_dim}
    return {
        "architectures": ["ChineseCLIPModel"], "model_type": from_chinese_clip.MODEL_TYPE,
        "projection_dim": config.embed_dim, "logit_scale_init_value": 2.6592, "initializer_factor": 1.0,
        "torch_dtype": dtype, "vision_config": {"model_type": "chinese_clip_vision_model", **vision, **image},
        "text_config": {"model_type": "chinese_clip_text_model", **text},
    }  # fmt: skip


def write_vocabulary(folder: Path, vocabulary: VocabularyFile, length: int) -> None:
    """vocab.txt or tokenizer.json as it came, and the settings by which transformers reads it alike."""
    name = "vocab.txt" if vocabulary.kind == WORDPIECE else "tokenizer.json"
    (folder / name).write_bytes(vocabulary.data)
    kept = {k: v for k, v in vocabulary.settings.items() if v is not None}
    said = {"tokenizer_class": "BertTokenizer", "model_max_length": length, **kept}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def write_cn_clip(path: Path, checkpoint: Checkpoint, dtype: str) -> None:
    """What cn_clip's `load_from_name` and its training's --resume read: {"state_dict": …, "epoch", "step", "name"}.

    Raises `ConfigError` for another model than Chinese-CLIP.
    """
    v, t, shown = checkpoint.config.vision, checkpoint.config.text, checkpoint.preprocess
    if not is_chinese_clip(checkpoint) or v is None:
        raise ConfigError("--to cn_clip must be of a Chinese-CLIP model, both towers, got another: use another target")
    reasons = {
        "GELU in the image tower": checkpoint.config.activation != "quickgelu",
        "another activation than GELU in the text tower": t.activation != "gelu",
        "another epsilon": (checkpoint.config.norm_eps, t.norm_eps) != (1e-5, 1e-12),
        "another padding id than 0": t.pad != 0,
        "layer scale": getattr(v, "layer_scale", False),
        "a non-square input": v.image_size[0] != v.image_size[1],
        f"resize mode {shown.resize}": shown.resize != "squash",
        f"an image tower of kind {v.kind}": v.kind not in ("vit", "resnet"),
    }
    if reason := next((reason for reason, true in reasons.items() if true), ""):
        raise ConfigError(f"cn_clip's code must compute the model, which has {reason}: use --to jclip or huggingface")
    tensors = as_torch(checkpoint)
    image = {k: x for k, x in tensors.items() if k.startswith("visual.")}
    own = {k: x for k, x in scalar_scale(checkpoint.tensors).items() if k not in image}
    text = unapply(own, from_chinese_clip.CN_CLIP_RULES)
    every = {**image, **text}
    dtypes = {k: ("float32" if k == "logit_scale" else dtype) if x.is_float else x.dtype for k, x in every.items()}
    torch_writer.write(path, every, dtypes, beside={"epoch": 0, "step": 0, "name": "jclip"}, under="state_dict")
