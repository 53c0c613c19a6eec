"""Hugging Face's folders: CLIPModel, its towers alone, and the layout of EVA-CLIP 8B and 18B. The rules read backwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from convert import to_chinese_clip
from convert.to_jclip import reshaped_scale, scalar_scale
from jclip.data.preprocess import Preprocess
from jclip.errors import ConfigError
from jclip.prompts.tokenizer import tokenizer
from jclip.prompts.vocabularies import VocabularyFile
from jclip.readers import safetensors
from jclip.weights.checkpoint import Checkpoint
from jclip.weights.layouts import from_chinese_clip, from_eva, from_huggingface, from_siglip
from jclip.weights.layouts.keymap import unapply
from jclip.weights.mobile_configs import MobileConfig
from jclip.weights.perception_configs import PerceptionConfig
from jclip.weights.text_configs import SigLIPTextConfig
from jclip.weights.variants import EVAConfig, TextConfig, ViTConfig

ACTIVATIONS = {ours: theirs for theirs, ours in from_huggingface.ACTIVATIONS.items()}
RESAMPLE = {name: number for number, name in from_huggingface.RESAMPLE.items()}


def write(folder: Path, checkpoint: Checkpoint, dtype: str) -> None:
    """What `CLIPModel.from_pretrained(folder)` loads, its processor and tokenizer beside it.

    Raises `ConfigError` for a model that Hugging Face's classes can't hold.
    """
    if reason := _not_held(checkpoint):
        raise ConfigError(f"Hugging Face's CLIPModel holds no {reason}")
    if from_siglip.is_whole(checkpoint.config):
        return _write_siglip(folder, checkpoint, dtype)
    is_eva, is_chinese = isinstance(checkpoint.config.vision, EVAConfig), to_chinese_clip.is_chinese_clip(checkpoint)
    rules = from_eva.HUGGING_FACE if is_eva else from_huggingface.RULES
    rules = from_chinese_clip.HUGGING_FACE_RULES if is_chinese else rules
    tensors = unapply(scalar_scale(checkpoint.tensors), rules)
    dtypes = {name: "float32" if name == "logit_scale" else dtype for name in tensors}
    safetensors.write_tensors(folder / "model.safetensors", tensors, dtypes, {"format": "pt"})
    describe = _eva if is_eva else _chinese if is_chinese else _clip
    _write(folder, "config.json", describe(checkpoint, dtype))
    if checkpoint.config.vision:
        _write(folder, "preprocessor_config.json", _processor(checkpoint.preprocess))
    if checkpoint.vocabulary is not None:
        to_chinese_clip.write_vocabulary(folder, checkpoint.vocabulary, checkpoint.config.text.context_length)
    elif checkpoint.config.text and checkpoint.config.text.vocab_size == tokenizer().vocab_size:
        _write_tokenizer(folder, checkpoint.config.text)


def _write_siglip(folder: Path, checkpoint: Checkpoint, dtype: str) -> None:
    """What `SiglipModel.from_pretrained(folder)`, of NaFlex towers `Siglip2Model`, loads, its processor beside it."""
    config, shown = checkpoint.config, checkpoint.preprocess
    any_shape = config.vision is not None and config.vision.any_shape
    tensors = from_siglip.to_hugging_face(checkpoint.tensors, any_shape)
    tensors |= reshaped_scale(tensors, (1,))
    dtypes = {name: "float32" if name in ("logit_scale", "logit_bias") else dtype for name in tensors}
    safetensors.write_tensors(folder / "model.safetensors", tensors, dtypes, {"format": "pt"})
    _write(folder, "config.json", from_siglip.described_for_hugging_face(config, dtype))
    if config.vision:
        said = {
            **_processor(shown),
            "image_processor_type": "SiglipImageProcessor",
            "processor_class": "SiglipProcessor",
        }
        _write(folder, "preprocessor_config.json", _any_shape(said, checkpoint) if any_shape else said)
    if config.text and checkpoint.vocabulary:
        _write_vocabulary(folder, checkpoint.vocabulary, config.text)


def _any_shape(said: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """The processor of photos of any proportions; one number of patches is all that it can say, of several the positions'."""
    v, counts = checkpoint.config.vision, checkpoint.preprocess.patch_counts
    kept = ("do_convert_rgb", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_resize")
    names = {"image_processor_type": "Siglip2ImageProcessor", "processor_class": "Siglip2Processor"}
    most = counts[0] if len(counts) == 1 else v.grid[0] * v.grid[1]
    size = {"patch_size": v.patch_size, "max_num_patches": most, "resample": said["resample"]}
    return {**{key: said[key] for key in kept}, **names, **size}


def _write_vocabulary(folder: Path, words: VocabularyFile, text: SigLIPTextConfig) -> None:
    """tokenizer.json as it was read or made, with the padding that its settings say. A SentencePiece vocabulary's texts are
    cleaned by jclip, and by the class that transformers has for spiece.model alone: here it gets the plain one."""
    (folder / "tokenizer.json").write_bytes(words.data)
    own = "Siglip2Tokenizer" if words.settings.get("lower_case") else "PreTrainedTokenizerFast"
    settings = {"tokenizer_class": own, "model_max_length": text.context_length}
    kept = {key: words.settings[key] for key in ("padding_side", "pad_token") if words.settings.get(key)}
    _write(folder, "tokenizer_config.json", settings | kept)


def _not_held(checkpoint: Checkpoint) -> str:
    v, t, shown = checkpoint.config.vision, checkpoint.config.text, checkpoint.preprocess
    if v is not None and v.kind == "resnet":
        return "ResNet"
    if v is not None and t is not None and (v.kind == "siglip") != (t.kind == "siglip"):
        return "tower of SigLIP beside another's"
    if t is not None and t.kind == "siglip" and not t.projection:
        return "text tower of SigLIP without a projection"
    if v is not None and v.image_size[0] != v.image_size[1]:
        return "tower of a non-square input"
    if to_chinese_clip.is_chinese_clip(checkpoint) and (v is None or v.kind != "vit"):
        return "BERT without a vision transformer"
    if any(getattr(tower, "layer_scale", False) for tower in (v, t)):
        return "layer scale"
    if isinstance(v, (PerceptionConfig, MobileConfig)) or getattr(v, "proj_bias", False):
        return "tower of PE-Core, MobileCLIP or timm"
    if t is not None and not getattr(t, "causal", True):
        return "text tower that is not causal"
    if isinstance(v, EVAConfig) and (v.swiglu or v.sub_norm or v.rope or t is None):
        return "EVA02 tower of rotary positions"
    return f"resize mode {shown.resize}" if shown.resize not in ("shortest", "squash", "proportional") else ""


def _chinese(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    return to_chinese_clip.hugging_face_config(checkpoint, _vision(checkpoint.config.vision), dtype)


def _clip(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    config = checkpoint.config
    shared = {
        "hidden_act": ACTIVATIONS[config.activation], "layer_norm_eps": config.norm_eps,
        "projection_dim": config.embed_dim,
    }  # fmt: skip
    vision = _vision(config.vision) | shared if config.vision else {}
    text = _text(config.text) | shared if config.text else {}
    family, prefix = ("CLIP", "clip") if not text or config.text.end is None else ("MetaClip2", "metaclip_2")
    if not vision or not text:
        kind = f"{prefix}_vision_model" if vision else f"{prefix}_text_model"
        name = f"{family}VisionModelWithProjection" if vision else f"{family}TextModelWithProjection"
        return {"architectures": [name], "model_type": kind, "torch_dtype": dtype, **vision, **text}
    return {
        "architectures": [f"{family}Model"], "model_type": prefix, "projection_dim": config.embed_dim,
        "logit_scale_init_value": 2.6592, "torch_dtype": dtype, "initializer_factor": 1.0,
        "vision_config": {"model_type": f"{prefix}_vision_model", **vision},
        "text_config": {"model_type": f"{prefix}_text_model", **text},
    }  # fmt: skip


def _vision(v: ViTConfig | EVAConfig) -> dict[str, Any]:
    return {
        "hidden_size": v.width, "intermediate_size": v.mlp_width, "num_hidden_layers": v.layers,
        "num_attention_heads": v.heads, "patch_size": v.patch_size, "image_size": v.image_size[0], "num_channels": 3,
    }  # fmt: skip


def _text(t: TextConfig) -> dict[str, Any]:
    return {
        "hidden_size": t.width, "intermediate_size": t.mlp_width, "num_hidden_layers": t.layers,
        "num_attention_heads": t.heads, "max_position_embeddings": t.context_length, "vocab_size": t.vocab_size,
        **_special(t),
    }  # fmt: skip


def _special(t: TextConfig) -> dict[str, int | None]:
    """Ids of the tokens around a text: CLIP's, XLM-V's (end 2), mT5's (end 1)."""
    last = t.vocab_size - 1
    start, pad = (last - 1, last) if t.end is None else (None, 0) if t.end == 1 else (0, 1)
    return {"bos_token_id": start, "eos_token_id": last if t.end is None else t.end, "pad_token_id": pad}


def _eva(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    config, v = checkpoint.config, checkpoint.config.vision
    flags = {
        "layer_norm_eps": v.norm_eps, "use_rms_norm": v.rms_norm, "post_layernorm": v.post_norm, "q_bias": v.bias,
        "k_bias": False, "v_bias": v.bias, "use_rope": False, "use_sub_ln": False, "use_swiglu_mlp": False,
        "hidden_act": "gelu",
    }  # fmt: skip
    text = _text(config.text) | {"hidden_act": "gelu", "layer_norm_eps": config.norm_eps}
    return {
        "architectures": ["EvaCLIPModel"], "model_type": "clip", "projection_dim": config.embed_dim,
        "torch_dtype": dtype, "vision_config": _vision(v) | flags, "text_config": text,
    }  # fmt: skip


def _processor(shown: Preprocess) -> dict[str, Any]:
    height, width = shown.size
    crops = shown.resize == "shortest"
    return {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "resample": RESAMPLE[shown.interpolation],
        "size": {"shortest_edge": height} if crops else {"height": height, "width": width}, "do_center_crop": crops,
        "crop_size": {"height": height, "width": width}, "do_convert_rgb": True, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(shown.mean), "image_std": list(shown.std),
    }  # fmt: skip


def _write_tokenizer(folder: Path, text: TextConfig) -> None:
    """The vocabulary as `CLIPTokenizer` reads it."""
    words = tokenizer()
    _write(folder, "vocab.json", words.ids())
    lines = ["#version: 0.2", *(" ".join(pair) for pair in words.merges())]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    end = "<|endoftext|>"
    tokens = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": text.context_length, "do_lower_case": True}
    _write(folder, "tokenizer_config.json", settings | tokens)
    _write(folder, "special_tokens_map.json", tokens)


def _write(folder: Path, name: str, values: Any) -> None:
    (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
