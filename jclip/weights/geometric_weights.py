"""Weights in geometric parametrisation, as fine-tuning by GmP stores those of linear maps: W = r θ / ‖θ‖, row by row.

Such files hold `….r` (out, 1) and `….theta` (out, in) in place of `….weight`; some keep q, k and v apart as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from jclip.errors import CheckpointError
from jclip.readers import LazyTensor
from jclip.weights.layouts.keymap import layers_of, stacked

_LEAST = 1e-12  # of a norm that is divided by
_BLOCKS = ("visual.transformer.resblocks.{}.attn.", "transformer.resblocks.{}.attn.")


def with_plain_weights(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the tensors with each `r` and `theta` as one `weight`, and of such files q, k and v in one; others as they
    are. Raises `CheckpointError` for shapes that do not belong together."""
    pairs = [name.removesuffix(".theta") for name in tensors if name.endswith(".theta")]
    pairs = [name for name in pairs if f"{name}.r" in tensors]
    if not pairs:
        return dict(tensors)
    made = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if kind == "theta" and f"{stem}.r" in tensors:
            made[f"{stem}.weight"] = _weight(stem, tensors[f"{stem}.r"], tensor)
        elif kind != "r" or f"{stem}.theta" not in tensors:
            made[name] = tensor
    return _with_joint_attention(made)


def _weight(name: str, r: LazyTensor, theta: LazyTensor) -> LazyTensor:
    if len(theta.shape) != 2 or r.shape not in ((theta.shape[0], 1), theta.shape[:1]):
        raise CheckpointError(
            f"{name}.theta must be a matrix (out, in) and {name}.r (out, 1), got {theta.shape} and {r.shape}"
        )
    return LazyTensor(theta.shape, "float32", partial(_read, r, theta))


def _read(r: LazyTensor, theta: LazyTensor) -> np.ndarray:
    directions = theta.read().astype(np.float64)
    norms = np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), _LEAST)
    return (r.read().astype(np.float64).reshape(-1, 1) * directions / norms).astype(np.float32)


def _with_joint_attention(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return q, k and v of each block, where they are apart, stacked as `in_proj_weight` and `in_proj_bias`."""
    for block in _BLOCKS:
        for layer in layers_of(tensors, f"{block}q_proj.weight"):
            start = block.replace("{}", layer)
            for kind in ("weight", "bias"):
                parts = [tensors.get(f"{start}{which}_proj.{kind}") for which in "qkv"]
                if None not in parts:
                    tensors = {k: t for k, t in tensors.items() if not _is_part(k, start, kind)}
                    tensors[f"{start}in_proj_{kind}"] = stacked(parts)
    return tensors


def _is_part(name: str, start: str, kind: str) -> bool:
    return name in [f"{start}{which}_proj.{kind}" for which in "qkv"]
