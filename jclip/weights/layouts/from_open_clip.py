"""open_clip's folders: open_clip_config.json beside the weights; names are OpenAI's, or the text tower's under
`text.`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jclip.data.preprocess import DEVIATIONS, FILL, MEANS, OPENAI_MEAN, OPENAI_STD, RESAMPLE, Preprocess
from jclip.errors import CheckpointError
from jclip.readers import LazyTensor
from jclip.readers.schema import FLAG, NOTHING, SIDE, TABLE, TEXT, Condition, either, number, obey, one_of, several
from jclip.weights.families import refused
from jclip.weights.layouts import from_siglip, from_timm
from jclip.weights.layouts.keymap import Report
from jclip.weights.perception_configs import PerceptionConfig
from jclip.weights.recent_architectures import ENDS, MT5, XLM_V
from jclip.weights.tower_sizes import CONTEXT, HEADS, LAYERS, PATCH, TOKEN, VOCABULARY, WIDTH
from jclip.weights.variants import (
    ARCHITECTURES,
    AnyImage,
    CLIPConfig,
    EVAConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
)

CONFIG = "open_clip_config.json"
TIMM = {  # towers that open_clip takes from timm, by their names there
    "eva02_base_patch16_clip_224": "EVA02-B-16",
    "eva02_large_patch14_clip_224": "EVA02-L-14",
    "eva02_large_patch14_clip_336": "EVA02-L-14-336",
    "eva02_enormous_patch14_clip_224": "EVA02-E-14",
    "vit_pe_core_tiny_patch16_384": "PE-Core-T-16-384",
    "vit_pe_core_small_patch16_384": "PE-Core-S-16-384",
    "vit_pe_core_base_patch16_224": "PE-Core-B-16",
    "vit_pe_core_large_patch14_336": "PE-Core-L-14-336",
    "vit_pe_core_gigantic_patch14_448": "PE-Core-bigG-14-448",
    "vit_base_mci_224": "MobileCLIP-B",
    "vit_large_patch14_clip_224": "MobileCLIP2-L-14",
}
_VISION = {  # keys that are read, or don't matter to inference; others must be plain
    "image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "ls_init_value", "patch_dropout",
    "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop",
    "timm_drop_path", "attn_pooler_queries", "attn_pooler_heads",
}  # fmt: skip
_TEXT = {
    "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value", "tokenizer_kwargs",
    "pad_id", "eos_id", "correct_cls_mask", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "pool_type",
    "no_causal_mask", "hf_tokenizer_name",
}  # fmt: skip
_RATIO = number(0, 64, above=True)
_RULES: dict[str, dict[str, Condition]] = {  # what open_clip_config.json may say, table by table
    "model_cfg": {"embed_dim": WIDTH, "quick_gelu": FLAG, "vision_cfg": TABLE, "text_cfg": TABLE},
    "vision_cfg": {
        "image_size": either(SIDE, several(SIDE, 2)), "width": WIDTH, "layers": either(LAYERS, several(LAYERS, 4)),
        "head_width": WIDTH, "mlp_ratio": _RATIO, "patch_size": PATCH, "ls_init_value": either(number(0, 1e3), NOTHING),
        "timm_model_name": either(TEXT, NOTHING),
    },
    "text_cfg": {
        "width": WIDTH, "heads": HEADS, "layers": LAYERS, "mlp_ratio": _RATIO, "context_length": CONTEXT,
        "vocab_size": VOCABULARY, "ls_init_value": either(number(0, 1e3), NOTHING),
        "hf_tokenizer_name": either(TEXT, NOTHING), "hf_model_name": either(TEXT, NOTHING),
        "pool_type": one_of("argmax", "eos"), "eos_id": TOKEN, "no_causal_mask": FLAG,
    },
    "preprocess_cfg": {
        "resize_mode": TEXT, "interpolation": one_of(*RESAMPLE), "mean": MEANS, "std": DEVIATIONS, "fill_color": FILL,
    },
}  # fmt: skip
_TOKENIZERS: dict[int, dict[str, Any]] = {  # end of text → MetaCLIP 2's tokenizer
    ENDS[XLM_V]: {"hf_tokenizer_name": "facebook/xlm-v-base"},
    ENDS[MT5]: {"hf_tokenizer_name": "google/mt5-base", "tokenizer_kwargs": {"clean": "canonicalize"}},
}
_PLAIN = ("learnable", "tok", "argmax", "linear", "default", "clean", None, False)


def canonical(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], Report]:
    """Return tensors under OpenAI's names: `text.` of separate text towers removed, the saved causal mask dropped."""
    kept = {k: t for k, t in tensors.items() if not k.endswith("attn_mask") and ".rope." not in k}
    made = {key.removeprefix("text."): tensor for key, tensor in kept.items()}
    return made, Report(copied=list(kept), dropped=[k for k in tensors if k not in kept])


def config_from(said: Mapping[str, Any], place: object) -> CLIPConfig:
    """Return the configuration, with open_clip's defaults for missing keys: heads of 64, MLPs four times as wide,
    GELU.

    Raises `CheckpointError` for towers that jclip lacks.
    """
    try:
        obey(said, _RULES["model_cfg"], "model_cfg")
        vision, text = said["vision_cfg"], said["text_cfg"]
        if from_siglip.is_siglip(vision):
            return from_siglip.config_from_open_clip(said, place)
        obey(vision, _RULES["vision_cfg"], "vision_cfg")
        obey(text, _RULES["text_cfg"], "text_cfg")
        _refuse(said, vision, text, place)
        activation = "quickgelu" if said.get("quick_gelu") else "gelu"
        return CLIPConfig(said["embed_dim"], tower_from(vision, place), text_from(text), activation)
    except KeyError as e:
        raise CheckpointError(f"{place} lacks {e.args[0]}") from e


def _refuse(said: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any], place: object) -> None:
    timm, words = str(vision.get("timm_model_name") or ""), str(text.get("hf_tokenizer_name") or "")
    if "multimodal_cfg" in said or vision.get("attentional_pool"):
        raise refused("coca", place)
    if timm.startswith(("eva_giant", "eva02_tiny", "eva02_small")):
        raise refused("eva01", place, timm)
    if timm.startswith("fastvit_mci"):
        raise refused("fastvit", place, timm)
    if timm.startswith(("vit_pe_lang", "vit_pe_spatial")):
        raise refused("pe-tokens", place, timm)
    if timm and timm not in TIMM:
        raise refused("foreign-tower", place, timm)
    if vision.get("no_ln_pre") or "bert" in words:
        raise refused("clipa", place, words)
    if text.get("hf_model_name") or (words and text.get("pool_type") != "eos"):
        raise refused("foreign-tower", place, text.get("hf_model_name") or words)
    unread = [k for k, v in vision.items() if k not in _VISION and v not in _PLAIN]
    unread += [k for k, v in text.items() if k not in _TEXT and v not in _PLAIN]
    if unread:
        raise CheckpointError(f"{place} sets {', '.join(unread)}, which jclip does not read")


def tower_from(vision: Mapping[str, Any], place: object) -> AnyImage:
    """Return the image tower: four stages make a ResNet, timm's name what it names."""
    side, width, layers = vision.get("image_size", 224), vision.get("width", 768), vision.get("layers", 12)
    size = tuple(side) if isinstance(side, list) else (side, side)
    if vision.get("timm_model_name"):
        return from_timm.as_of_timm(replace(ARCHITECTURES[TIMM[vision["timm_model_name"]]].vision, image_size=size))
    if isinstance(layers, list):
        return ResNetConfig(size, width, tuple(layers), heads=_heads(width * 32, vision, place))
    heads, hidden = _heads(width, vision, place), int(width * vision.get("mlp_ratio", 4.0))
    return ViTConfig(
        size, vision.get("patch_size", 16), width, layers, heads, hidden, bool(vision.get("ls_init_value"))
    )


def _heads(width: int, vision: Mapping[str, Any], place: object) -> int:
    head_width = vision.get("head_width", 64)
    if width % head_width:
        raise CheckpointError(f"{place}: vision_cfg.head_width must divide {width}, got {head_width}")
    return width // head_width


def text_from(text: Mapping[str, Any]) -> TextConfig:
    """Return the text tower."""
    width = text.get("width", 512)
    return TextConfig(
        width, text.get("heads", 8), text.get("layers", 12), int(width * text.get("mlp_ratio", 4.0)),
        text.get("context_length", 77), text.get("vocab_size", 49408), bool(text.get("ls_init_value")),
        end=text.get("eos_id", 2) if text.get("pool_type") == "eos" else None,
        causal=not text.get("no_causal_mask", False),
    )  # fmt: skip


def preprocess_from(said: Mapping[str, Any], config: CLIPConfig) -> Preprocess:
    """Return the preprocessing in the file; a resize mode that jclip lacks is refused by `Preprocess`. Raises
    `ConfigError`."""
    obey(said, _RULES["preprocess_cfg"], "preprocess_cfg")
    modes = {"longest": "longest-pad"}
    mode = said.get("resize_mode", "shortest")
    return Preprocess(
        size=config.vision.image_size,
        resize=modes.get(mode, mode),
        interpolation=said.get("interpolation", "bicubic"),
        mean=tuple(said.get("mean", OPENAI_MEAN)),
        std=tuple(said.get("std", OPENAI_STD)),
        fill=said.get("fill_color", 0),
    )


def described(config: CLIPConfig, preprocess: Preprocess) -> dict[str, Any] | None:
    """Return open_clip_config.json for a model, so that the folder loads in open_clip; None for a model that
    open_clip lacks."""
    if config.vision is None or config.text is None:
        return None
    of_siglip = config.text.kind == config.vision.kind == "siglip"
    model = from_siglip.described(config) if of_siglip else _described_model(config)
    if model is None:
        return None
    shown = {"mean": list(preprocess.mean), "std": list(preprocess.std), "interpolation": preprocess.interpolation}
    modes = {"longest-pad": "longest"}
    shown |= {"resize_mode": modes.get(preprocess.resize, preprocess.resize), "fill_color": preprocess.fill}
    return {"model_cfg": model, "preprocess_cfg": shown}


def _described_model(config: CLIPConfig) -> dict[str, Any] | None:
    t, vision = config.text, _described_vision(config.vision)
    if t.kind != "clip" or vision is None:
        return None
    text = {"context_length": t.context_length, "vocab_size": t.vocab_size, "width": t.width, "heads": t.heads}
    text |= {"layers": t.layers, "mlp_ratio": t.mlp_width / t.width} | _described_scale(t.layer_scale)
    text |= {} if t.causal else {"no_causal_mask": True}
    if t.end is not None:
        text |= {"pool_type": "eos", "eos_id": t.end} | _TOKENIZERS.get(t.end, _TOKENIZERS[ENDS[XLM_V]])
    model: dict[str, Any] = {"embed_dim": config.embed_dim, "quick_gelu": config.activation == "quickgelu"}
    if isinstance(config.vision, EVAConfig) or from_timm.is_timm(config):
        model["custom_text"] = True
    return {**model, "vision_cfg": vision, "text_cfg": text}


def _described_vision(v: AnyImage) -> dict[str, Any] | None:
    height, width = v.image_size
    said: dict[str, Any] = {"image_size": height if height == width else [height, width]}
    if isinstance(v, EVAConfig) or from_timm.is_timm_tower(v):
        known, pool = _timm_name(v), "map" if isinstance(v, PerceptionConfig) else "token"
        timm = {"timm_model_name": known, "timm_model_pretrained": False, "timm_pool": pool, "timm_proj": None}
        return {**said, **timm} if known else None
    said["width"] = v.width
    if isinstance(v, ResNetConfig):
        return said | {"layers": list(v.layers), "head_width": v.width * 32 // v.heads}
    said |= {"layers": v.layers, "patch_size": v.patch_size, "head_width": v.width // v.heads}
    return said | {"mlp_ratio": v.mlp_width / v.width} | _described_scale(v.layer_scale)


def _timm_name(v: AnyImage) -> str | None:
    """Return timm's name of a tower, that of its own input size where there are several."""
    own = from_timm.as_of_timm(v)
    towers = {name: from_timm.as_of_timm(ARCHITECTURES[known].vision) for name, known in TIMM.items()}
    same = [name for name, tower in towers.items() if type(tower) is type(v) and _but_size(tower) == _but_size(own)]
    return next((name for name in same if towers[name].image_size == v.image_size), (same or [None])[0])


def _but_size(tower: object) -> dict[str, Any]:
    return {key: value for key, value in vars(tower).items() if key != "image_size"}


def _described_scale(layer_scale: bool) -> dict[str, float]:
    return {"ls_init_value": 1e-4} if layer_scale else {}
