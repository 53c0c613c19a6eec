"""Values that parameters start from. NumPy in, NumPy out."""

from __future__ import annotations

import numpy as np


def linear_start(rng: np.random.Generator, outputs: int, inputs: int) -> np.ndarray:
    """(outputs, inputs) float32 as torch's Linear starts: uniform within 1 / sqrt(inputs)."""
    return (rng.uniform(-1, 1, (outputs, inputs)) / np.sqrt(inputs)).astype(np.float32)
