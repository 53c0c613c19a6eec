"""Seeded random weights for parameters by name: what tests and trials run on where no weights are at hand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np


def random_arrays(shapes: Mapping[str, tuple], seed: int) -> dict[str, np.ndarray]:
    """Return seeded random weights for parameters of these names: the same on every machine, activations of order
    one.

    Norms and statistics are random as well, so that tests notice swapped or missing ones.
    """
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes.items():
        x = rng.standard_normal(shape, dtype=np.float32)
        if name == "logit_scale":
            x = np.full(shape, math.log(100.0), np.float32)
        elif name == "logit_bias":
            x = np.full(shape, -10.0, np.float32)
        elif name.endswith("running_var"):
            x = 0.5 + np.abs(x)
        elif re.search(r"(ln_\w+|bn\d|norm\d?|downsample\.1)\.weight$|\.gamma$", name):
            x = 1.0 + 0.1 * x
        elif name.endswith(("bias", "running_mean")):
            x = 0.05 * x
        else:
            fan_in = shape[0] if name.endswith(("proj", "text_projection")) else math.prod(shape[1:]) or shape[0]
            x = x * fan_in**-0.5
        made[name] = x.astype(np.float32)
    return made
