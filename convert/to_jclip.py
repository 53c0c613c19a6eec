"""jclip's own forms: a folder that open_clip loads as well, one `.safetensors`, or Jittor's `.pkl` for older code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from jclip.errors import ConfigError
from jclip.readers import LazyTensor, jittor_pickle, safetensors
from jclip.weights.checkpoint import Checkpoint, describe, in_memory
from jclip.weights.layouts import from_open_clip, from_timm
from jclip.weights.stored_vocabulary import stored


def dtypes_of(checkpoint: Checkpoint, dtype: str) -> dict[str, str]:
    """How each tensor is stored; the logit scale and its bias stay float32."""
    return {name: "float32" if name in ("logit_scale", "logit_bias") else dtype for name in checkpoint.tensors}


def write_file(path: Path, checkpoint: Checkpoint, dtype: str) -> None:
    """One `.safetensors` that says all of itself."""
    tensors, scale = scalar_scale(checkpoint.tensors), None
    if "logit_scale" in tensors:
        scale = float(tensors["logit_scale"].read())
    source = {"source_sha256": checkpoint.sha256}  # of the first source, where it is of ours already
    described = describe(checkpoint.config, checkpoint.preprocess, scale, checkpoint.vocabulary)
    metadata = {**source, **checkpoint.metadata, **described}
    words = {name: in_memory(array) for name, array in stored(checkpoint.vocabulary)[0].items()}
    dtypes = dtypes_of(checkpoint, dtype) | dict.fromkeys(words, "uint8")
    safetensors.write_tensors(path, {**tensors, **words}, dtypes, metadata)


def write_folder(folder: Path, checkpoint: Checkpoint, dtype: str) -> None:
    """model.safetensors, and the description by which open_clip loads the folder as `local-dir:`, where it can: it
    refuses a file with a vocabulary inside."""
    write_file(folder / "model.safetensors", checkpoint, dtype)
    if checkpoint.vocabulary is None and not from_timm.is_timm(checkpoint.config):  # whose names open_clip lacks
        write_description(folder, checkpoint)


def write_description(folder: Path, checkpoint: Checkpoint) -> bool:
    """open_clip_config.json; nothing for a model that open_clip lacks."""
    said = from_open_clip.described(checkpoint.config, checkpoint.preprocess)
    if said:
        (folder / from_open_clip.CONFIG).write_text(json.dumps(said, indent=2) + "\n")
    return bool(said)


def write_pickle(path: Path, checkpoint: Checkpoint, dtype: str) -> None:
    """Jittor's `.pkl`, for code of the challenge; it says nothing of itself, and knows no bfloat16."""
    if dtype == "bfloat16":
        raise ConfigError(f"{path}: a .pkl holds NumPy's numbers, which lack bf16: use fp16 or a .safetensors")
    if checkpoint.vocabulary is not None:
        raise ConfigError("a .pkl holds weights alone, and this model needs its vocabulary: use a .safetensors")
    dtypes = dtypes_of(checkpoint, dtype)
    jittor_pickle.write(path, {k: t.read().astype(dtypes[k]) for k, t in checkpoint.tensors.items()})


def scalar_scale(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The arrays with the logit scale, and its bias, as numbers without axes, as everyone but Jittor has them."""
    return {**tensors, **reshaped_scale(tensors, ())}


def reshaped_scale(tensors: Mapping[str, LazyTensor], shape: tuple[int, ...]) -> dict[str, LazyTensor]:
    """The logit scale and its bias, as far as they are there, each in that shape of one number."""
    found = {name: tensors[name] for name in ("logit_scale", "logit_bias") if name in tensors}
    return {
        name: LazyTensor(shape, one.dtype, lambda one=one: one.read().reshape(shape)) for name, one in found.items()
    }
