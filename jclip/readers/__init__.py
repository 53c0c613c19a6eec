"""Weight files to named tensors, without executing what they hold and without torch."""

from __future__ import annotations

import os
from pathlib import Path

from jclip.errors import CheckpointError
from jclip.readers import jittor_pickle, safetensors, torch_zip
from jclip.readers.tensors import LazyTensor, WeightFile

__all__ = ["LazyTensor", "WeightFile", "read_weights"]

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_weights(path: str | os.PathLike) -> WeightFile:
    """Names, shapes and metadata of a weight file; tensors are read when asked for.

    The format is told from the first bytes, not from the name. Raises `CheckpointError` for what it can't or won't read.
    """
    path = Path(path)
    try:
        with open(path, "rb") as f:
            head = f.read(16)
    except OSError as e:
        raise CheckpointError(f"can't read {path}: {e.strerror}") from e
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return safetensors.read(path)
    if head[:4] == b"PK\x03\x04":
        return torch_zip.read(path)
    if head[:15] == _LEGACY_TORCH:
        raise CheckpointError(
            f"{path} was written by torch before 1.6, in a format that is not read here: load it in torch and save it again"
        )
    if head[:1] == b"\x80":
        return jittor_pickle.read(path)
    raise CheckpointError(
        f"{path} is no weight file that jclip knows (safetensors, torch zip, TorchScript, Jittor .pkl)"
    )
