"""Tools for building and running Jittor: compiler, headers, oneDNN, CUDA. Imports no Jittor."""

from __future__ import annotations

from jclip.postponed import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "gpu": ("find_gpus",),
        "work_meter": ("WorkMeter",),
        "toolchain": ("cpu_flags",),
    },
)
