"""Arrays kept in the cache under what made them: sealed when written, compared with their seal when read. No Jittor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jclip.errors import CheckpointError, notice
from jclip.machine import work_meter
from jclip.readers import safetensors


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
