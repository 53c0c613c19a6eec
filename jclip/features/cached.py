"""Arrays kept in the cache under what made them: sealed when written, compared with their seal when read. No Jittor."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jclip.errors import CheckpointError, notice
from jclip.machine import work_meter
from jclip.machine.toolchain import ONEDNN_PACKAGES
from jclip.paths import ASSETS
from jclip.readers import safetensors

COMPUTES = ("kernels", "model", "data/preprocess.py", "data/augment.py", "data/patch_counts.py", "data/photo_file.py")
LIBRARIES = ("jittor", "numpy", "pillow", *ONEDNN_PACKAGES)


def key_of(made_of: Any) -> str:
    """SHA-256 of plain values that arrays are made of, and of the build that makes them: another build's differ in their
    last digits, and are not mixed with its own."""
    return hashlib.sha256(json.dumps([_build(), made_of], sort_keys=True).encode()).hexdigest()


def build_name() -> str:
    """16 hexadecimal digits that tell the build that computes from others."""
    return hashlib.sha256(json.dumps(_build()).encode()).hexdigest()[:16]


def _build() -> list[str]:
    return [build_digest(), os.environ.get("JCLIP_KERNELS", "")]


@cache
def build_digest() -> str:
    """SHA-256 of the library's sources that compute, and of the versions of what they compute with."""
    found = hashlib.sha256(json.dumps([_version(name) for name in LIBRARIES]).encode())
    for place in (ASSETS.parent / name for name in COMPUTES):
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if file.is_file() and "__pycache__" not in file.parts:
                found.update(f"{file.name}\n".encode() + file.read_bytes())
    return found.hexdigest()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def read_cached(file: Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """The arrays of a file that `safetensors.write` wrote; None where it is absent, damaged or lacks one of `names`.

    Damage is reported in one line on stderr: the arrays must be computed again, and the file replaced.
    """
    if (meter := work_meter.running()) and (held := meter.held(file)) is not None:
        return held
    if not file.is_file():
        return None
    try:
        arrays = {name: np.array(tensor.read()) for name, tensor in safetensors.read_sealed(file).items()}
    except (CheckpointError, OSError) as e:
        notice(f"{e}; it is computed again")
        return None
    return arrays if {*names} <= {*arrays} else None


def keep(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes what `read_cached` finds; where work is only measured, of parts of it, nothing is written."""
    if meter := work_meter.running():
        meter.hold(file, arrays)
        return
    safetensors.write(file, arrays)
