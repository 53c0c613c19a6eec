"""open_clip's folders: open_clip_config.json beside the weights; names are OpenAI's, or the text tower's under `text.`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.from_huggingface import read_json
from convert.keymap import Report
from jclip.checkpoint import plain_tensors
from jclip.errors import CheckpointError
from jclip.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess
from jclip.readers import LazyTensor, read_weights
from jclip.variants import CLIPConfig, ResNetConfig, TextConfig, ViTConfig

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
TEXT = "text."


def read(folder: Path) -> tuple[dict[str, LazyTensor], CLIPConfig, Preprocess, Report]:
    """Tensors in OpenAI's names, the architecture, the preprocessing, what became of each key. Raises `CheckpointError`."""
    said = read_json(folder / CONFIG)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder} holds no weights (one of {', '.join(WEIGHTS)})")
    config = config_from(said.get("model_cfg", {}), folder)
    kept, report = plain_tensors(read_weights(file)), Report()
    tensors = {key.removeprefix(TEXT): tensor for key, tensor in kept.items() if not key.endswith("attn_mask")}
    report.copied, report.dropped = list(tensors), [key for key in kept if key.endswith("attn_mask")]
    return tensors, config, preprocess_from(said.get("preprocess_cfg", {}), config), report


def config_from(said: Mapping[str, Any], folder: Path) -> CLIPConfig:
    """open_clip's own defaults stand for what a file leaves out: heads of 64, MLPs four times as wide, GELU."""
    try:
        vision, text = said["vision_cfg"], said["text_cfg"]
        foreign = [k for k in ("timm_model_name", "hf_model_name", "hf_tokenizer_name") if vision.get(k) or text.get(k)]
        if foreign:
            raise CheckpointError(f"{folder} names {foreign[0]}: towers of other libraries are not read yet")
        return CLIPConfig(
            said["embed_dim"], tower_from(vision), text_from(text), "quickgelu" if said.get("quick_gelu") else "gelu"
        )
    except KeyError as e:
        raise CheckpointError(f"{folder}/{CONFIG} lacks {e.args[0]}") from e


def tower_from(vision: Mapping[str, Any]) -> ViTConfig | ResNetConfig:
    """The image tower: four stages make a ResNet."""
    side, width, layers = vision.get("image_size", 224), vision.get("width", 768), vision.get("layers", 12)
    size = tuple(side) if isinstance(side, list) else (side, side)
    if isinstance(layers, list):
        return ResNetConfig(size, width, tuple(layers), heads=width * 32 // vision.get("head_width", 64))
    heads, hidden = width // vision.get("head_width", 64), int(width * vision.get("mlp_ratio", 4.0))
    return ViTConfig(size, vision["patch_size"], width, layers, heads, hidden)


def text_from(text: Mapping[str, Any]) -> TextConfig:
    """The text tower."""
    width = text.get("width", 512)
    return TextConfig(
        width, text.get("heads", 8), text.get("layers", 12), int(width * text.get("mlp_ratio", 4.0)),
        text.get("context_length", 77), text.get("vocab_size", 49408),
    )  # fmt: skip


def preprocess_from(said: Mapping[str, Any], config: CLIPConfig) -> Preprocess:
    """What the file says of photos; a resize mode that jclip lacks is refused by `Preprocess`."""
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


def described(config: CLIPConfig, preprocess: Preprocess) -> dict[str, Any]:
    """open_clip_config.json for these, so that the folder loads in open_clip as `local-dir:`."""
    v, t = config.vision, config.text
    height, width = v.image_size
    vision: dict[str, Any] = {"image_size": height if height == width else [height, width], "width": v.width}
    if isinstance(v, ViTConfig):
        vision |= {"layers": v.layers, "patch_size": v.patch_size, "head_width": v.width // v.heads}
        vision["mlp_ratio"] = v.mlp_width / v.width
    else:
        vision |= {"layers": list(v.layers), "head_width": v.width * 32 // v.heads}
    text = {"context_length": t.context_length, "vocab_size": t.vocab_size, "width": t.width, "heads": t.heads}
    text |= {"layers": t.layers, "mlp_ratio": t.mlp_width / t.width}
    model = {"embed_dim": config.embed_dim, "quick_gelu": config.activation == "quickgelu"}
    shown = {"mean": list(preprocess.mean), "std": list(preprocess.std), "interpolation": preprocess.interpolation}
    modes = {"longest-pad": "longest"}
    shown |= {"resize_mode": modes.get(preprocess.resize, preprocess.resize), "fill_color": preprocess.fill}
    return {"model_cfg": {**model, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": shown}
