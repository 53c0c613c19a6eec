"""The formulas in Jittor's own operators."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np

from jclip.kernels.sequences import Sequences
from jclip.runtime import jt

nn = jt.nn


_GELU_TANH = 2.0 * math.sqrt(2.0 / math.pi)


def quickgelu(x):
    """x * sigmoid(1.702 x): what OpenAI trained with."""
    return x * jt.sigmoid(1.702 * x)


def gelu(x):
    """x * Φ(x), the exact (erf) form."""
    return 0.5 * x * (1.0 + jt.erf(x * (1.0 / math.sqrt(2.0))))


def gelu_tanh(x):
    """0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³))), the approximation that SigLIP was trained with; as x σ(2 …)."""
    return x * jt.sigmoid(x * (_GELU_TANH + (0.044715 * _GELU_TANH) * x * x))


ACTIVATIONS = {"quickgelu": quickgelu, "gelu": gelu, "gelu_tanh": gelu_tanh}


class _Products:
    """What float32 arrays are cast to before linear maps multiply them, forward and backward."""

    dtype = "float32"


@contextlib.contextmanager
def products_in(dtype: str) -> Iterator[None]:
    """Linear maps made in the block multiply in `dtype`, "bfloat16" or "float16"; weights and gradients stay float32.

    Where the sums are kept wide, as cuBLAS does, this is torch's autocast of these maps: a product leaves in `dtype`.
    """
    before, _Products.dtype = _Products.dtype, dtype
    try:
        yield
    finally:
        _Products.dtype = before


def linear(x, weight, bias=None, activation: str | None = None, residual=None):
    """One 2-D product: the only one that oneDNN computes for Jittor."""
    rows = x.reshape((-1, x.shape[-1]))
    if x.dtype == "float32" and _Products.dtype != "float32":
        y = nn.matmul_transpose(rows.cast(_Products.dtype), weight.cast(_Products.dtype)).float32()
    else:
        y = nn.matmul_transpose(rows, weight)
    y = (y if bias is None else y + bias).reshape((*x.shape[:-1], weight.shape[0]))
    y = y if activation is None else ACTIVATIONS[activation](y)
    return y if residual is None else y + residual


def attention(qkv, heads: int, causal: bool = False):
    """(B, N, 3D) → (B, N, D); the softmax in float32."""
    B, N, width = qkv.shape
    d = width // 3 // heads
    split = qkv.reshape((B, N, 3, heads, d)).permute(2, 0, 3, 1, 4)
    q, k, v = (t.reshape((B * heads, N, d)) for t in split)
    scores = nn.bmm_transpose(q * (1.0 / math.sqrt(d)), k).float32()
    weights = nn.softmax(scores + causal_mask(N) if causal else scores, dim=-1)
    mixed = nn.bmm(weights.cast(qkv.dtype), v).reshape((B, heads, N, d))
    return mixed.permute(0, 2, 1, 3).reshape((B, N, heads * d))


def masked_attention(qkv, keys, heads: int, rate: float = 0.0, seed: int = 0):
    """(B, N, 3D), keys (B, N) 0/1 → (B, N, D); weights of masked keys are zero, a share `rate` of the others is dropped."""
    B, N, width = qkv.shape
    d = width // 3 // heads
    q, k, v = qkv.float32().reshape((B, N, 3, heads, d)).permute(2, 0, 3, 1, 4)
    scores = jt.matmul(q * (1.0 / math.sqrt(d)), k.transpose(0, 1, 3, 2))  # (B, heads, N, N)
    masked = (1.0 - keys.float32()).reshape((B, 1, 1, N))
    weights = nn.softmax(scores + masked * -1e30, dim=-1)
    weights = dropout(weights, rate, seed) if rate else weights
    mixed = jt.matmul(weights, v)
    return mixed.permute(0, 2, 1, 3).reshape((B, N, heads * d)).cast(qkv.dtype)


def attention_weights(qkv, heads: int):
    """(B, N, 3D) → (B, N, N): softmax(q k^T / sqrt(d)), the mean over heads, in float32; row i is what token i looks at.

    On the CPU one product for each head: Jittor computes only those of two matrices fast.
    """
    B, N, width = qkv.shape
    d = width // 3 // heads
    split = qkv[:, :, : 2 * (width // 3)].float32().reshape((B, N, 2, heads, d)).permute(2, 0, 3, 1, 4)
    q, k = (t.reshape((B * heads, N, d)) for t in split)
    q = q * (1.0 / math.sqrt(d))
    if jt.flags.use_cuda:
        scores = nn.bmm_transpose(q, k)
    else:
        scores = jt.stack([nn.matmul_transpose(q[i], k[i]) for i in range(B * heads)])
    return nn.softmax(scores, dim=-1).reshape((B, heads, N, N)).mean(dim=1)


def attention_at_first(qkv, heads: int, keep):
    """(B, N, 3D), keep (B, N) 0/1 → (B, 1, D): what the first token takes from those that are kept, itself included."""
    B, N, width = qkv.shape
    d = width // 3 // heads
    q, k, v = qkv.float32().reshape((B, N, 3, heads, d)).permute(2, 0, 1, 3, 4)
    scores = (k * q[:, :1]).sum(dim=3) * (1.0 / math.sqrt(d)) + (1.0 - keep).unsqueeze(2) * -1e30
    shares = nn.softmax(scores, dim=1)  # (B, N, heads)
    return (shares.unsqueeze(3) * v).sum(dim=1).reshape((B, 1, width // 3)).cast(qkv.dtype)


def rotated(qkv, cosines, sines):
    """As `kernels.rotated`."""
    _, N, width = qkv.shape
    T, half = cosines.shape
    sizes = [jt.array([2 * half, width // 3 * 2, T])]
    places, still = ["i1", "i2 % @e0(0) / 2"], ["i1 >= @e0(2)", "i2 >= @e0(1)"]
    cos = cosines.reindex([1, N, width], places, 1.0, still, sizes)
    sin = sines.reindex([1, N, width], places, 0.0, still, sizes)
    sign = jt.index((1, 1, width), dim=2) % 2 * 2 - 1
    x = qkv.float32()
    swapped = x.reindex(list(x.shape), ["i0", "i1", "i2 ^ 1"])
    return (x * cos + swapped * (sin * sign)).cast(qkv.dtype)


def class_attention(q, kv, heads: int):
    """As `kernels.class_attention`."""
    B, N, width = kv.shape
    d = width // 2 // heads
    q = q.float32().reshape((B, 1, heads, d)) * (1.0 / math.sqrt(d))
    both = kv.float32().reshape((B, N, 2, heads, d))
    k, v = both[:, :, 0], both[:, :, 1]
    shares = nn.softmax((k * q).sum(dim=3), dim=1)  # (B, N, heads)
    return (shares.unsqueeze(3) * v).sum(dim=1).reshape((B, width // 2)).cast(kv.dtype)


def cells(images, patch: int):
    """As `kernels.cells`."""
    B, C, H, W = images.shape
    apart = images.reshape((B, C, H // patch, patch, W // patch, patch)).permute(0, 2, 4, 1, 3, 5)
    return apart.reshape((B, -1, C * patch * patch))


def causal_mask(length: int):
    """(N, N) float32: 0 on and below the diagonal, -inf above."""
    return jt.array(np.triu(np.full((length, length), -np.inf, np.float32), 1))


def packed_attention(qkv, moved, sequences: Sequences, heads: int, rate: float = 0.0, seed: int = 0, masked=None):
    """As `kernels.packed_attention`, sequences padded to the longest. masked: attention with a key mask, by default ours."""
    qkv = qkv + moved[sequences.arrays[1]]
    index, keys = sequences.spread
    padded = jt.concat([qkv, jt.zeros((1, qkv.shape[1]), qkv.dtype)], dim=0)[index]
    mixed = (masked or masked_attention)(padded.reshape((len(sequences), -1, qkv.shape[1])), keys, heads, rate, seed)
    return mixed.reshape((-1, qkv.shape[1] // 3))[sequences.gathered]


def first_attention(
    x, table, weight, bias, sequences: Sequences, heads: int, rate: float = 0.0, seed: int = 0, masked=None
):
    """As `kernels.first_attention`: what the first tokens take when all do."""
    D = x.shape[1]
    moved = jt.concat([linear(table, weight[: 2 * D]), jt.zeros((table.shape[0], D))], dim=1)
    mixed = packed_attention(linear(x, weight, bias), moved, sequences, heads, rate, seed, masked)
    return mixed[sequences.firsts]


def residual_norm(x, y, bias, weight, shift, tokens, eps: float, rate: float = 0.0, seed: int = 0):
    """As `kernels.residual_norm`; what is dropped depends on the array's shape instead of `tokens`."""
    y = y + bias
    return layer_norm(x + (dropout(y, rate, seed) if rate else y), weight, shift, eps)


def relu_linear(x, weight, bias, tokens, rate: float = 0.0, seed: int = 0):
    """As `kernels.relu_linear`; what is dropped depends on the array's shape instead of `tokens`."""
    y = nn.relu(linear(x, weight, bias))
    return dropout(y, rate, seed) if rate else y


def rows_of(table, index):
    """As `kernels.rows_of`."""
    return table[index]


def dropout(x, rate: float, seed: int, rows: tuple[int, int] | None = None):
    """The mask is computed at once: deferred draws come in no fixed order."""
    jt.set_global_seed(seed, different_seed_for_mpi=False)
    first, count = rows or (0, x.shape[0])
    kept = jt.random((count, *x.shape[1:]))[first : first + x.shape[0]] >= rate
    kept.sync()
    return x * kept.cast(x.dtype) * (1 / (1 - rate))


def adamw(p, m, v, g, betas: tuple[float, float], keep: float, step: float, root: float, eps: float) -> list:
    """As `kernels.adamw`."""
    b1, b2 = betas
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    return [keep * p - step * m / (jt.sqrt(v) * root + eps), m, v]


def cross_entropy(scores, labels):
    """One-hot rows (B, C) of labels, which Jittor computes on the fly."""
    shifted = scores - scores.max(dim=1, keepdims=True).detach()
    own = (labels.unsqueeze(1) == jt.index(scores.shape, 1)).float32()
    odds = jt.exp(shifted).stop_fuse()  # kept for the gradient: fused, they'd be computed again there
    return jt.log(odds.sum(dim=1)) - (shifted * own).sum(dim=1)


def batch_norm(x, weight, bias, eps: float):
    """Output, mean and biased variance, in float32; means of each map first, since one sum over all loses digits."""
    wide = x.float32()
    mean = wide.mean(dims=[2, 3]).mean(dim=0)
    centred = wide - mean.reshape((1, -1, 1, 1))
    variance = (centred * centred).mean(dims=[2, 3]).mean(dim=0)
    scale = weight.float32() / jt.sqrt(variance + eps)
    y = centred * scale.reshape((1, -1, 1, 1)) + bias.float32().reshape((1, -1, 1, 1))
    return y.cast(x.dtype), mean, variance


def layer_norm(x, weight, bias, eps: float):
    """The variance is that of the centred values: Jittor's own E[x²] - E[x]² loses digits."""
    wide = x.float32()
    centred = wide - wide.mean(dim=-1, keepdims=True)
    variance = (centred * centred).mean(dim=-1, keepdims=True)
    return (centred / jt.sqrt(variance + eps) * weight.float32() + bias.float32()).cast(x.dtype)
