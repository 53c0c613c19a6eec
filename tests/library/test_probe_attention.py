"""The attention of one learned query, which makes no keys and values, against NumPy in double precision that makes them."""

from __future__ import annotations

import numpy as np
import pytest

from jclip import kernels
from jclip.kernels import cpu
from jclip.runtime import jt
from tests.library.test_kernels import needs_onednn

pytestmark = needs_onednn
SIZES = [
    (3, 7, 12, 2),
    (1, 5, 64, 4),
    (2, 9, 128, 4),
]  # B, N, D, heads; the latter's weights have the blocks of products


def by_numpy(q, x, weight, bias, heads):
    B, N, D = x.shape
    k, v = (x.astype(np.float64) @ weight.T + bias).reshape(B, N, 2, heads, -1).transpose(2, 0, 3, 1, 4)
    scores = (k @ q.reshape(heads, -1, 1))[..., 0] / np.sqrt(D // heads)
    shares = np.exp(scores - scores.max(axis=2, keepdims=True))
    shares /= shares.sum(axis=2, keepdims=True)
    return (shares[:, :, None] @ v).reshape(B, D)


def drawn(size, seed):
    B, N, D, _ = size
    rng = np.random.default_rng(seed)
    shapes = (D,), (B, N, D), (2 * D, D), (2 * D,)
    return [rng.standard_normal(s).astype(np.float32) * f for s, f in zip(shapes, (2, 1, D**-0.5, 1), strict=True)]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int8 by rows"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("size", SIZES)
def test_what_a_query_takes(size, seed, dtype, close, monkeypatch):
    if dtype == "bf16" and (reason := kernels.why_no_half("bf16")):
        pytest.skip(reason)
    if dtype == "int8 by rows":
        monkeypatch.setattr(cpu, "INT8_BLOCKS", ())
    q, x, weight, bias = drawn(size, seed)
    forms = {"fp32": lambda w: w, "bf16": lambda w: kernels.to_half(w, pack=True)}
    form = forms.get(dtype, kernels.to_int8)(jt.array(weight))
    with jt.no_grad():
        got = kernels.probe_attention(jt.array(q), jt.array(x), form, jt.array(bias), size[3])
    wanted = by_numpy(q, x, kernels.unpacked(form).numpy(), bias, size[3])
    close(got.numpy(), wanted, "kernel", "a learned query's attention")


@pytest.mark.parametrize("size", SIZES[:1])
def test_the_same_with_a_gradient(size, close):
    q, x, weight, bias = drawn(size, 3)
    got = kernels.probe_attention(*map(jt.array, (q, x, weight, bias)), size[3])
    close(got.numpy(), by_numpy(q, x, weight, bias, size[3]), "kernel", "a learned query's attention, recorded")
