"""Features without their length, NumPy in and out. Jittor's counterpart is `jclip.functional.similarity.normalise`."""

from __future__ import annotations

import numpy as np


def unit(x: np.ndarray) -> np.ndarray:
    """(…, E) → x / ‖x‖ over the last axis, in the dtype of `x`; a row of zeros becomes NaN."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
