"""Operators that Jittor computes slowly, fused: one name each, the implementation chosen by where the numbers are.

`plain` holds the formulas in Jittor's own operators: the oracle of the others, and what runs where they don't (half
precision, CUDA, no oneDNN). `JCLIP_KERNELS=plain` asks for it everywhere.
"""

from __future__ import annotations

import os
from functools import lru_cache

from jclip.kernels import cpu, plain
from jclip.runtime import jt


def attention(qkv, heads: int, causal: bool = False):
    """(B, N, 3D), q, k and v side by side → (B, N, D): softmax(q k^T / sqrt(d) [+ mask]) v per head."""
    return (cpu.attention if _fused(qkv) else plain.attention)(qkv, heads, causal)


def layer_norm(x, weight, bias, eps: float):
    """(..., D) → (..., D): (x - mean) / sqrt(variance + eps) * weight + bias over the last axis, in float32."""
    fused = _fused(x) and weight.dtype == bias.dtype == "float32"
    return (cpu.layer_norm if fused else plain.layer_norm)(x, weight, bias, eps)


def batch_norm(x, weight, bias, eps: float):
    """(B, C, H, W) by the batch's own statistics → output, mean (C,), biased variance (C,), the latter two float32."""
    fused = _fused(x) and weight.dtype == bias.dtype == "float32"
    return (cpu.batch_norm if fused else plain.batch_norm)(x, weight, bias, eps)


def chosen() -> str:
    """The implementation that runs for float32: "cpu" or "plain"."""
    return "cpu" if not jt.flags.use_cuda and _available() else "plain"


def _fused(x) -> bool:
    return x.dtype == "float32" and chosen() == "cpu"


@lru_cache(maxsize=1)
def _available() -> bool:
    return os.environ.get("JCLIP_KERNELS", "") != "plain" and cpu.available()
