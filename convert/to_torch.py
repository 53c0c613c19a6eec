"""Out to the PyTorch world under OpenAI's names: open_clip's folder, openai/CLIP's state dict, a plain state dict."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convert.to_jclip import dtypes_of, scalar_scale, write_description
from jclip.data.preprocess import Preprocess
from jclip.errors import ConfigError, notice
from jclip.readers import LazyTensor, safetensors, torch_writer
from jclip.weights.checkpoint import Checkpoint, in_memory
from jclip.weights.layouts import from_long_clip, from_siglip, from_timm
from jclip.weights.mobile_configs import APPLE_EPS, APPLE_PADDING, MobileConfig, as_apple, as_timm
from jclip.weights.text_configs import TEXT_NAMES
from jclip.weights.variants import EVAConfig, SigLIPImageConfig, TextConfig, ViTConfig


def write_open_clip(folder: Path, checkpoint: Checkpoint, dtype: str) -> None:
    """What `open_clip.create_model("local-dir:…")` loads. Raises `ConfigError` for a model that open_clip lacks."""
    refuse_other_towers(checkpoint, "open_clip")
    if not write_description(folder, checkpoint):
        raise ConfigError("open_clip has no such model: an EVA tower that it doesn't name, or one tower alone")
    tensors, vision = as_torch(checkpoint), checkpoint.config.vision
    if isinstance(vision, SigLIPImageConfig) and from_siglip.timm_differs(vision):
        notice(
            f"open_clip computes this image tower with timm's {from_siglip.timm_name(vision)}, whose GELU is not "
            f"{vision.activation} as here: features there differ in the third digit"
        )
    if isinstance(vision, MobileConfig) and vision != as_timm(vision):
        notice(
            "open_clip computes this image tower without the pixel that Apple's own code adds around photos, and with a "
            "smaller epsilon: features there differ in the second digit"
        )
    if from_timm.is_timm(checkpoint.config):
        tensors = from_timm.as_trunk(tensors, checkpoint.config)
    if from_timm.is_timm(checkpoint.config) or isinstance(vision, EVAConfig):  # a model with a separate text tower
        own = ("visual.", "logit_scale")
        tensors = {k if k.startswith(own) else f"text.{k}": t for k, t in tensors.items()}
    dtypes = _dtypes(tensors, checkpoint, dtype)
    safetensors.write_tensors(folder / "open_clip_model.safetensors", tensors, dtypes, {"format": "pt"})
    if checkpoint.vocabulary is not None:
        (folder / "tokenizer.json").write_bytes(checkpoint.vocabulary.data)


def refuse_other_towers(checkpoint: Checkpoint, target: str) -> None:
    """Raises `ConfigError` for a text tower that neither OpenAI's names nor open_clip's stand for."""
    text = checkpoint.config.text
    if text is None or text.kind in ("clip", "siglip"):  # whose names are OpenAI's and open_clip's
        return
    raise ConfigError(
        f"--to {target} must be of CLIP's text tower and vocabulary, got {TEXT_NAMES[text.kind]}: use --to jclip, "
        "huggingface or cn_clip"
    )


def write_state_dict(path: Path, checkpoint: Checkpoint, dtype: str) -> None:
    """A plain state dict under OpenAI's names, as torch saves it."""
    refuse_other_towers(checkpoint, "torch")
    tensors = _of_authors(as_torch(checkpoint))
    torch_writer.write(path, tensors, _dtypes(tensors, checkpoint, dtype))


def _of_authors(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors as PE-Core's own code reads them, which knows no bias of the projection: without one of zeros."""
    if from_timm.BIAS not in tensors:
        return tensors
    if tensors[from_timm.BIAS].read().any():
        notice(f"{from_timm.BIAS} is not zero: open_clip and jclip add it to image features, other code leaves it out")
        return tensors
    return {name: tensor for name, tensor in tensors.items() if name != from_timm.BIAS}


def write_openai(path: Path, checkpoint: Checkpoint, dtype: str) -> None:
    """What openai/CLIP's `load` reads, with its three scalars. Raises `ConfigError` for what its code would miscompute."""
    if reason := _not_openai(checkpoint):
        raise ConfigError(
            f"openai/CLIP's code must support the model, which has {reason}: use --to jclip or another target"
        )
    v, t = checkpoint.config.vision, checkpoint.config.text
    numbers = {"input_resolution": v.image_size[0], "context_length": t.context_length, "vocab_size": t.vocab_size}
    tensors = as_torch(checkpoint) | {k: in_memory(np.array(n, np.int64)) for k, n in numbers.items()}
    torch_writer.write(path, tensors, _dtypes(tensors, checkpoint, dtype))


def write_long_clip(path: Path, checkpoint: Checkpoint, dtype: str) -> None:
    """What Long-CLIP's `longclip.load` reads. Raises `ConfigError` for what its code would miscompute."""
    text = checkpoint.config.text
    reason = _not_openai(checkpoint)
    if not reason and text.context_length != from_long_clip.CONTEXT:
        reason = f"a context of {text.context_length} tokens and not {from_long_clip.CONTEXT}"
    if reason:
        raise ConfigError(
            f"Long-CLIP's code must support the model, which has {reason}: use --to jclip or another target"
        )
    tensors = from_long_clip.parted(as_torch(checkpoint))
    dtypes = _dtypes(tensors, checkpoint, dtype)
    torch_writer.write(path, tensors, dtypes)


def write_mobileclip(path: Path, checkpoint: Checkpoint, dtype: str) -> None:
    """What Apple's code reads as a file of MobileCLIP B. Raises `ConfigError` for another tower, and for a bias of the
    projection, which that code lacks."""
    config, text = checkpoint.config, checkpoint.config.text
    own = isinstance(config.vision, MobileConfig) and isinstance(text, TextConfig) and checkpoint.vocabulary is None
    if not own or config.vision.layer_scale or text.layer_scale:
        raise ConfigError(
            "--to mobileclip must be of both towers of MobileCLIP B, got others: use --to jclip or open_clip"
        )
    tensors = as_torch(checkpoint)
    bias = tensors.pop(from_timm.BIAS, None)
    if bias is not None and bias.read().any():
        raise ConfigError(
            "--to mobileclip must be of weights without a bias of the projection, got one that is not zero"
        )
    if config.vision != as_apple(config.vision):
        notice(
            f"Apple's code adds {APPLE_EPS:g} in the image tower's norms and {APPLE_PADDING} pixel around photos, these "
            f"weights are computed with {config.vision.norm_eps:g} and {config.vision.stem_padding} here: features there "
            "differ in the second digit"
        )
    made = from_timm.to_apple(tensors)
    torch_writer.write(path, made, _dtypes(made, checkpoint, dtype))


def _not_openai(checkpoint: Checkpoint) -> str:
    """What openai/CLIP's loader can't infer from the shapes and would get wrong; nothing when all is as it assumes."""
    v, t, shown = checkpoint.config.vision, checkpoint.config.text, checkpoint.preprocess
    if v is None or t is None:
        return "one tower"
    if isinstance(v, EVAConfig):
        return "an EVA tower"
    if from_timm.is_timm_tower(v):
        return "a tower of PE-Core, MobileCLIP or timm"
    if v.kind == "siglip":
        return "SigLIP's towers"
    if t.kind != "clip" or checkpoint.vocabulary is not None:
        return "another text tower or vocabulary"
    usual = Preprocess(size=shown.size)
    reasons = {
        "GELU": checkpoint.config.activation != "quickgelu",
        "a non-square input": v.image_size[0] != v.image_size[1],
        "an end of text that is not the highest id": t.end is not None,
        "a text tower that is not causal": not t.causal,
        "layer scale": t.layer_scale or (isinstance(v, ViTConfig) and v.layer_scale),
        "another normalisation or resize mode": shown != usual,
        "an epsilon other than 1e-5": checkpoint.config.norm_eps != 1e-5,
        "heads of another width than 64": _other_heads(t) or _other_heads(v),
        "MLPs of another width than four times the tower's": _other_mlp(t) or _other_mlp(v),
    }
    return next((reason for reason, true in reasons.items() if true), "")


def _other_heads(tower: object) -> bool:
    if isinstance(tower, (ViTConfig, TextConfig)):
        return tower.width != 64 * tower.heads
    return tower.width * 32 != 64 * tower.heads


def _other_mlp(tower: object) -> bool:
    return isinstance(tower, (ViTConfig, TextConfig)) and tower.mlp_width != 4 * tower.width


def as_torch(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """The tensors with a logit scale without axes, and the counters of batches that torch's batch norms keep."""
    made: dict[str, LazyTensor] = {}
    for name, tensor in scalar_scale(checkpoint.tensors).items():
        made[name] = tensor
        if name.endswith("running_var"):
            made[name.replace("running_var", "num_batches_tracked")] = in_memory(np.array(0, np.int64))
    return made


def _dtypes(tensors: dict[str, LazyTensor], checkpoint: Checkpoint, dtype: str) -> dict[str, str]:
    floats = dtypes_of(checkpoint, dtype)
    return {k: floats.get(k.removeprefix("text."), dtype) if t.is_float else t.dtype for k, t in tensors.items()}
