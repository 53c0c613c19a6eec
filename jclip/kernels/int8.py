"""Linear maps with weights of 8 bits, for inference on the CPU.

A weight (N, K) is one scale and K integers per output channel, s_n q, |q| <= 127. Each row of what is multiplied becomes K
unsigned integers with a scale and a zero of its own. Their products are added up in 32 bits, which is exact: the sums are the
same on every processor, with VNNI, AMX or neither.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from jclip.errors import ConfigError
from jclip.kernels import cpu, plain
from jclip.kernels.function import Function
from jclip.machine.toolchain import cpu_flags, why_no_avx512
from jclip.runtime import jt

NO_TRAINING = "training with dtype int8: no gradient passes weights that are rounded to 8 bits; use dtype=fp32 or bf16"
EXACT = 8192  # so many products of 4 and 8 bits add up exactly in float32
LEAST_RANGE = 1e-30  # what is smaller counts as 0


def quantised(weight, fused: bool):
    """(N, K) float32 → the bytes of int8_weight.h, (N/R, R, K + 8) int8; `fused`: by the CPU's operators, for them."""
    return cpu.to_int8(weight) if fused else jt.array(_quantised(weight.numpy()))


def restored(weight):
    """The inverse of `quantised`, but for the rounding: scale times integer, (N, K) float32."""
    integers, scales, _ = parts(weight.numpy())
    return jt.array(integers * scales[:, None])


def linear(x, weight, bias, activation: str | None, residual, half: bool, fused: bool):
    """As `kernels.linear`; with `half` bfloat16 where the processor multiplies it for attention. No gradient passes."""
    return _Linear.apply(x, weight, bias, activation, residual, half, fused)


class _Linear(Function):
    def execute(self, x, weight, bias, activation, residual, half, fused):
        if fused:
            dtype = "bfloat16" if half and _has_bf16() else "float32"
            return cpu.int8_linear(x, weight, bias, activation, residual, dtype)
        return _plain_linear(x, weight, bias, activation, residual)

    def grad(self, gradient):
        raise ConfigError(NO_TRAINING)


def parts(array: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bytes of `quantised` → integers (N, K), scales (N,) float32, sums of the integers (N,) int32."""
    blocks, R, wide = array.shape
    K, flat = wide - 8, array.reshape(blocks, R * wide)
    integers = flat[:, : R * K]
    if R > 1:
        integers = integers.reshape(blocks, R // 64, K // 4, 64, 4).transpose(0, 1, 3, 2, 4)
    scales, sums = (
        np.ascontiguousarray(flat[:, R * begin : R * (begin + 4)]).view(kind).reshape(-1)
        for begin, kind in ((K, np.float32), (K + 4, np.int32))
    )
    return integers.reshape(blocks * R, K), scales, sums


def _quantised(weight: np.ndarray) -> np.ndarray:
    size = np.abs(weight).max(axis=1)
    scales = np.where(np.isfinite(size), size / np.float32(127), np.float32(np.nan)).astype(np.float32)
    usable = np.isfinite(size) & (size > LEAST_RANGE)
    inverse = np.where(usable, np.float32(127) / np.where(usable, size, 1), np.float32(0)).astype(np.float32)
    shifted = np.where(usable[:, None], weight, np.float32(0)) * inverse[:, None] + np.float32(0.5)
    integers = np.floor(shifted).astype(np.int8)
    sums = integers.sum(axis=1, dtype=np.int32)
    rows = [integers.view(np.uint8), *(a.view(np.uint8).reshape(-1, 4) for a in (scales, sums))]
    return np.concatenate(rows, axis=1).view(np.int8)[:, None, :]


def _plain_linear(x, weight, bias, activation: str | None, residual):
    """The formula: s_m s_n (Σ_k q w - z_m Σ_k w) + b, and so on."""
    integers, scales, sums = parts(weight.numpy())
    rows, scale, zero = _bytes_of(x.float32().reshape((-1, x.shape[-1])))
    total = _exact_product(rows, integers).int32() - zero.int32() * jt.array(sums)
    y = total.float32() * (scale * jt.array(scales))
    y = (y if bias is None else y + bias).reshape((*x.shape[:-1], len(scales)))
    y = y if activation is None else plain.ACTIVATIONS[activation](y)
    return y if residual is None else y + residual


def _bytes_of(rows):
    """(M, K) → integers 0 to 255 (M, K), scales (M, 1) and zeros (M, 1), as float32; x = scale (integer - zero)."""
    least, most = (jt.minimum(rows.min(dim=1, keepdims=True), 0), jt.maximum(rows.max(dim=1, keepdims=True), 0))
    finite = jt.isfinite(rows).float32().min(dim=1, keepdims=True) > 0
    span = jt.where(finite, most - least, jt.zeros_like(most))
    inverse = jt.where(span > LEAST_RANGE, 255.0 / jt.maximum(span, LEAST_RANGE), jt.zeros_like(span))
    zero = jt.floor(0.5 - jt.where(finite, least, jt.zeros_like(least)) * inverse)
    integers = jt.clamp(jt.floor(rows * inverse + (zero + 0.5)), 0.0, 255.0)
    scale = jt.where(finite, span / 255.0, jt.array([np.nan]).expand(span.shape))
    return jt.where(finite.expand(rows.shape), integers, jt.zeros_like(integers)), scale, zero


def _exact_product(rows, integers: np.ndarray):
    """(M, K) of 0 to 255 with (N, K) of -127 to 127 → (M, N) int32: in float32, of four bits at a time, without rounding."""
    high = jt.floor(rows / 16.0)
    low, total = rows - 16.0 * high, None
    for begin in range(0, integers.shape[1], EXACT):
        part = slice(begin, begin + EXACT)
        weight = jt.array(integers[:, part].astype(np.float32))
        of_high, of_low = (jt.nn.matmul_transpose(half[:, part], weight).int32() for half in (high, low))
        added = of_high * 16 + of_low
        total = added if total is None else total + added
    return total


@lru_cache(maxsize=1)
def _has_bf16() -> bool:
    """Whether attention in bfloat16 is faster here than in float32."""
    return not why_no_avx512() and bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})
