"""On a GPU: attention in tiles, without a table of all scores; float32, float16 or bfloat16, computed in float32.

Products are cuBLAS's through Jittor, elementwise work Jittor's own fusion.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from jclip.kernels.function import Function
from jclip.paths import plain_path
from jclip.runtime import jt

SOURCES = Path(__file__).resolve().parent / "sources"
WIDEST_HEAD = 128


def attention(qkv, heads: int, causal: bool = False):
    """As `kernels.attention`, for heads of at most `WIDEST_HEAD` dimensions."""
    return _Attention.apply(qkv, heads, causal)


def masked_attention(qkv, keys, heads: int, rate: float = 0.0, seed: int = 0):
    """As `kernels.masked_attention`, for heads of at most `WIDEST_HEAD` dimensions."""
    return _MaskedAttention.apply(qkv, keys, heads, rate, seed)


class _Attention(Function):
    def execute(self, qkv, heads, causal):
        (B, N, width), self.options = qkv.shape, {"heads": heads, "causal": int(causal)}
        shapes, dtypes = [(B, N, width // 3), (B * heads, N)], [qkv.dtype, "float32"]
        out, logsum = _code("attention_forward", shapes, dtypes, [qkv], self.options)
        self.keep(qkv, out, logsum)
        return out

    def grad(self, gradient):
        qkv, out, logsum = self.kept()
        shapes, dtypes = [qkv.shape, logsum.shape], [qkv.dtype, "float32"]
        return _code("attention_backward", shapes, dtypes, [qkv, out, logsum, gradient], self.options)[0], None, None


class _MaskedAttention(Function):
    def execute(self, qkv, keys, heads, rate, seed):
        (B, N, width), self.options = qkv.shape, {"heads": heads, "rate": rate, "seed": seed}
        shapes, dtypes = [(B, N, width // 3), (B * heads, N)], [qkv.dtype, "float32"]
        out, logsum = _code("attention_masked_forward", shapes, dtypes, [qkv, keys], self.options)
        self.keep(qkv, keys, out, logsum)
        return out

    def grad(self, gradient):
        qkv, keys, out, logsum = self.kept()
        shapes, dtypes = [qkv.shape, logsum.shape], [qkv.dtype, "float32"]
        arrays = [qkv, keys, out, logsum, gradient]
        made = _code("attention_masked_backward", shapes, dtypes, arrays, self.options)
        return made[0], None, None, None, None


def _code(function: str, shapes: list, dtypes: list, inputs: list, options: dict) -> list:
    """One `jt.code` operator that launches `function` of attention.cuh on the raw arrays: a list of its outputs."""
    arrays = [f"in{i}_p" for i in range(len(inputs))] + [f"out{i}_p" for i in range(len(shapes))]
    sizes = ["in0_shape0", "in0_shape1", "in0_shape2", *(f'data["{name}"]' for name in options)]
    made = jt.code(
        [tuple(s) for s in shapes],
        dtypes,
        inputs,
        cuda_header=f'#include "attention.cuh"  // {_digest()}\n',
        cuda_src=f"jclip::{function}({', '.join([*arrays, *sizes])});",
        data=options,
    )
    for var in made:
        var.compile_options = {f"FLAGS: -I{plain_path(SOURCES)} ": 1}
    return made


@lru_cache(maxsize=1)
def _digest() -> str:
    return hashlib.sha256((SOURCES / "attention.cuh").read_bytes()).hexdigest()[:12]
