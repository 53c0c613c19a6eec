"""Rotary positions, fused and by the plain formula, against multiplication by complex numbers of length one."""

from __future__ import annotations

import numpy as np
import pytest

from jclip import kernels
from jclip.kernels import cpu, plain, rotation
from jclip.runtime import jt

B, N, H, D, T = 2, 7, 3, 8, 5  # of a head D; the last two tokens do not turn
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", [plain, rotation], ids=["plain", "fused"])


def drawn(seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((B, N, 3 * H * D)).astype(np.float32), rng.standard_normal((T, D // 2))


def by_complex_numbers(x, angles):
    turned = x.astype(np.float64).reshape(B, N, 3, H, D)
    q_and_k = turned[:, :T, :2, :, 0::2] + 1j * turned[:, :T, :2, :, 1::2]
    q_and_k = q_and_k * np.exp(1j * angles)[:, None, None]
    turned[:, :T, :2, :, 0::2], turned[:, :T, :2, :, 1::2] = q_and_k.real, q_and_k.imag
    return turned.reshape(x.shape)


def tables(angles):
    return tuple(jt.array(f(angles).astype(np.float32)).stop_grad() for f in (np.cos, np.sin))


@pytest.mark.parametrize("seed", [0, 1])
@IMPLEMENTATIONS
def test_turning_and_its_gradient(implementation, seed, close):
    if implementation is rotation and not cpu.available():
        pytest.skip("the fused operators need oneDNN")
    (x, angles), (weights, _) = drawn(seed), drawn(seed + 2)
    var = jt.array(x)
    y = implementation.rotated(var, *tables(angles))
    close(y.numpy(), by_complex_numbers(x, angles), "kernel")
    gradient = jt.grad((y * jt.array(weights)).sum(), var)
    close(gradient.numpy(), by_complex_numbers(weights, -angles), "kernel")
    with jt.no_grad():
        assert np.array_equal(implementation.rotated(jt.array(x), *tables(angles)).numpy(), y.numpy())


def test_bfloat16_is_rounded_once(close):
    if reason := kernels.why_no_half("bf16"):
        pytest.skip(reason)
    x, angles = drawn(0)
    with jt.no_grad():
        half = jt.array(x).cast("bfloat16")
        got = kernels.rotated(half, *tables(angles))
    assert got.dtype == "bfloat16"
    exact = by_complex_numbers(half.float32().numpy(), angles)
    close(got.float32().numpy(), exact, "half_relative", relative=True)


@pytest.mark.parametrize("tokens", [N, 129])  # few keys, and more than FEW_KEYS of attention_half.h
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_turns_first(dtype, tokens, close):
    if reason := kernels.why_no_half("bf16") if dtype == "bfloat16" else "" if cpu.available() else "it needs oneDNN":
        pytest.skip(reason)
    rng = np.random.default_rng(tokens)
    x = jt.array(rng.standard_normal((B, tokens, 3 * H * D)).astype(np.float32)).cast(dtype)
    angles = tables(rng.standard_normal((tokens - 2, D // 2)))
    with jt.no_grad():
        wanted = kernels.attention(kernels.rotated(x, *angles), H).float32().numpy()
        got = kernels.attention(x, H, angles=angles)
        unturned = kernels.attention(x, H).float32().numpy()
    assert got.dtype == dtype and abs(wanted - unturned).max() > 0.01
    close(got.float32().numpy(), wanted, "kernel", "attention that turns first")
    recorded = kernels.attention(x.float32(), H, angles=angles)  # where a gradient may be asked for
    close(recorded.numpy(), wanted, "half_relative" if dtype == "bfloat16" else "kernel", relative=True)
