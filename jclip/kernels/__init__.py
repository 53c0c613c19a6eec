"""Operators that Jittor computes slowly, fused: one name each, the implementation chosen by where the arrays are.

`plain` holds the formulas in Jittor's own operators: the oracle of the others, and what runs where they don't.
`JCLIP_KERNELS=plain` asks for it everywhere.
"""

from __future__ import annotations

import contextlib
import os

from jclip.config import Dtype
from jclip.errors import ConfigError
from jclip.kernels import collectives as collectives
from jclip.kernels import cpu, cpu_sequences, cuda, int8, maps, plain, rotation
from jclip.kernels import gradient_parts as gradient_parts
from jclip.kernels.sequences import Sequences as Sequences
from jclip.machine import ranks
from jclip.machine.gpu import find_gpus
from jclip.machine.toolchain import ONEDNN_INSTALL, why_no_avx512
from jclip.runtime import jt

BF16_CAPABILITY = 8.0  # Ampere


def attention(qkv, heads: int, causal: bool = False, angles=None):
    """(B, N, 3D), q, k and v side by side → (B, N, D): softmax(q k^T / sqrt(d) [+ mask]) v per head.

    angles: cosines and sines as of `rotated`, by which q and k are turned before they meet.
    """
    if angles is not None:
        if jt.flags.no_grad and chosen() == "cpu" and (qkv.dtype == "bfloat16" or _fused(qkv)):
            return cpu.attention(qkv, heads, causal, angles)
        qkv = rotated(qkv, *angles)
    if chosen() == "cuda" and qkv.shape[-1] // 3 // heads <= cuda.WIDEST_HEAD:
        return cuda.attention(qkv, heads, causal)
    half = qkv.dtype == "bfloat16" and chosen() == "cpu"
    return (cpu.attention if half or _fused(qkv) else plain.attention)(qkv, heads, causal)


def masked_attention(qkv, keys, heads: int, rate: float = 0.0, seed: int = 0):
    """(B, N, 3D), keys (B, N) float32 0/1 → (B, N, D): attention to the keys marked 1, of each sample at least one.

    A share `rate` of the weights, drawn from `seed`, is set to zero and the others divided by 1 - rate, as
    torch.nn.MultiheadAttention does. Which weight is dropped depends on its place (sample, head, query, key) alone.
    """
    if chosen() == "cuda" and qkv.shape[-1] // 3 // heads <= cuda.WIDEST_HEAD:
        return cuda.masked_attention(qkv, keys, heads, rate, seed)
    return (cpu if _fused(qkv, keys) else plain).masked_attention(qkv, keys, heads, rate, seed)


def rotated(qkv, cosines, sines):
    """(B, N, 3D), q, k and v side by side → the same with q and k turned: pairs (a, b) of neighbouring numbers become
    (a cos - b sin, b cos + a sin).

    cosines, sines: (T, d/2), of the first T tokens and of each head alike; tokens after these, and v, stay as they are.
    """
    half = qkv.dtype == "bfloat16" and chosen() == "cpu" and jt.flags.no_grad
    return (rotation if half or _fused(qkv) else plain).rotated(qkv, cosines, sines)


def class_attention(q, kv, heads: int):
    """q (B, D) of each sample's first token, kv (B, N, 2D) of all, k and v side by side → (B, D): what the first one takes."""
    if jt.flags.no_grad and chosen() == "cpu" and q.dtype == "float32":
        return cpu.class_attention(q, kv, heads)
    return plain.class_attention(q, kv, heads)


def probe_attention(q, x, weight, bias, heads: int):
    """q (D,) of a learned query, x (B, N, D), weight (2D, D) and bias (2D,) of keys and values → (B, D): what it takes.

    Where no gradient is asked for, the CPU makes no keys or values: see probe_attention.h.
    """
    if jt.flags.no_grad and chosen() == "cpu" and q.dtype == x.dtype == "float32":
        return cpu.probe_attention(q, x, weight, bias, heads)
    kv = linear(x, weight, bias)
    return plain.class_attention(q.unsqueeze(0).expand((x.shape[0], q.shape[0])), kv, heads)


def packed_attention(qkv, moved, sequences: Sequences, heads: int, rate: float = 0.0, seed: int = 0):
    """(T, 3D), q, k and v side by side → (T, D): each token's attention to the tokens of its own sequence that are keys.

    moved: (rows, 3D), what a token's place adds to its q, k and v. rate, seed: of dropout as of `masked_attention`; which
    weight is dropped depends on sequence, head and the places of both tokens alone, not on what else is there. Raises
    `ConfigError` where several ranks can't draw alike.
    """
    if sequences.first and rate and not _fused(qkv, moved):
        raise ConfigError("dropout must be 0 where several ranks train without the CPU's fused operators")
    if chosen() == "cuda" and qkv.shape[-1] // 3 // heads <= cuda.WIDEST_HEAD:
        return plain.packed_attention(qkv, moved, sequences, heads, rate, seed, cuda.masked_attention)
    return (cpu_sequences if _fused(qkv, moved) else plain).packed_attention(qkv, moved, sequences, heads, rate, seed)


def first_attention(x, table, weight, bias, sequences: Sequences, heads: int, rate: float = 0.0, seed: int = 0):
    """(T, D) → (B, D): what the first token of each sequence takes, as `packed_attention` of its q, k and v would give it.

    q, k and v of a token x at place p are W_q (x + t_p) + b_q, W_k (x + t_p) + b_k and W_v x + b_v: table (rows, D) holds t,
    weight (3D, D) the W and bias (3D,) the b.
    """
    options = (sequences, heads, rate, seed)
    if chosen() == "cuda" and x.shape[-1] // heads <= cuda.WIDEST_HEAD:
        return plain.first_attention(x, table, weight, bias, *options, cuda.masked_attention)
    return (cpu_sequences if _fused(x, table, weight, bias) else plain).first_attention(
        x, table, weight, bias, *options
    )


def residual_norm(x, y, bias, weight, shift, tokens, eps: float, rate: float = 0.0, seed: int = 0):
    """(T, D), (T, D) → (T, D): LayerNorm(x + dropout(y + bias)) with `weight` and `shift`, all of them (D,).

    tokens: (T,) int32, each row's number, which with `seed` says what of it is dropped.
    """
    own = cpu_sequences if _fused(x, y, bias, weight, shift) else plain
    return own.residual_norm(x, y, bias, weight, shift, tokens, eps, rate, seed)


def relu_linear(x, weight, bias, tokens, rate: float = 0.0, seed: int = 0):
    """(T, K) → (T, N): dropout(ReLU(x W^T + bias)); `tokens` as of `residual_norm`."""
    own = cpu_sequences if _fused(x, weight, bias) else plain
    return own.relu_linear(x, weight, bias, tokens, rate, seed)


def rows_of(table, index):
    """(R, D), (n,) int32 → (n, D): rows of a table by number; gradients of a row that is taken more than once add up."""
    return (cpu_sequences if _fused(table) else plain).rows_of(table, index)


def linear(x, weight, bias=None, activation: str | None = None, residual=None, half: bool = False):
    """(..., K) with weight (N, K) → (..., N): act(x W^T + b) + residual; activation: "quickgelu", "gelu",
    "gelu_tanh" or None.

    On the CPU a product with a bfloat16 weight is float32, or with `half` bfloat16 where no gradient is asked for: what
    only goes into another product or attention. With a weight of `to_int8` alike, and without a gradient.
    """
    if weight.dtype == "int8":
        return int8.linear(x, weight, bias, activation, residual, half, fused=chosen() == "cpu")
    if chosen() == "cpu" and (weight.dtype == "bfloat16" or _fused(x, weight)):
        return cpu.linear(x, weight, bias, activation, residual, half)
    return plain.linear(x, weight, bias, activation, residual)


def layer_norm(x, weight, bias, eps: float, reader=None):
    """(..., D) → (..., D): (x - mean) / sqrt(variance + eps) * weight + bias over the last axis, in float32.

    reader: the weight that alone multiplies what comes out, which is bfloat16 with it where no gradient is asked for.
    """
    if not _fused(x, weight, bias):
        return plain.layer_norm(x, weight, bias, eps)
    return cpu.layer_norm(x, weight, bias, eps, half=_rounds(reader))


def cells(images, patch: int, reader):
    """(B, C, H, W) → (B, N, C patch²): a row of numbers per square of pixels, row by row; `reader` as of `layer_norm`."""
    if jt.flags.no_grad and _fused(images):
        return cpu.cells(images, patch, "bfloat16" if _rounds(reader) else "float32")
    return plain.cells(images, patch)


def dropout(x, rate: float, seed: int, rows: tuple[int, int] | None = None):
    """x with a share `rate` of its elements set to zero and the others times 1 / (1 - rate); drawn from `seed`.

    rows: of which row of how many x is the first; these get what they would as a part of all of them.
    """
    return (cpu.dropout if _fused(x) else plain.dropout)(x, rate, seed, rows)


def adamw(p, m, v, g, betas: tuple[float, float], keep: float, step: float, root: float, eps: float) -> list:
    """A parameter, its two moments and its gradient, of one shape → [p', m', v'], without gradient.

    m' and v' may be `m` and `v` themselves, changed once p' is computed: nothing else may hold these two.

    m' = β₁ m + (1 - β₁) g,  v' = β₂ v + (1 - β₂) g²,  p' = keep p - step m' / (√v' root + eps)
    """
    return (cpu if _fused(p, m, v, g) else plain).adamw(p, m, v, g, betas, keep, step, root, eps)


def cross_entropy(scores, labels):
    """(B, C), (B,) int32 → (B,): -log softmax(scores)_y of each row."""
    return (cpu.cross_entropy if _fused(scores) else plain.cross_entropy)(scores, labels)


def batch_norm(x, weight, bias, eps: float):
    """(B, C, H, W) by the batch's own statistics → output, mean (C,), biased variance (C,), the latter two float32."""
    return (cpu.batch_norm if _fused(x, weight, bias) else plain.batch_norm)(x, weight, bias, eps)


def feature_maps(images, training: bool) -> maps.Plain | maps.ChannelsLast | maps.Trained:
    """Layout and operators for a ResNet's maps; `training`: whether a batch norm moves its statistics.

    Of several ranks these are all ranks' statistics, which `Plain` asks for.
    """
    together = training and ranks.here().several
    if together or not _fused(images):
        return maps.Plain(together)
    return maps.ChannelsLast() if jt.flags.no_grad and not training else maps.Trained(cpu.products_are_half())


def why_no_half(dtype: str) -> str:
    """Why the CPU does not compute in `dtype`; nothing when it does."""
    if dtype == "fp16":
        return "no operator here computes it; bf16 is the half precision of CPUs"
    if not cpu.available():
        return f"it needs oneDNN: {ONEDNN_INSTALL}"
    if chosen() != "cpu":
        return "it needs the operators that JCLIP_KERNELS=plain switches off"
    return why_no_avx512()


def products_in(dtype: Dtype):
    """A block in which training multiplies in `dtype`: "bf16" rounds what linear maps multiply, and on CPUs convolutions.

    Parameters, norms of tokens, statistics, attention and gradients of parameters stay float32; a ResNet's maps between
    its convolutions are bfloat16 on CPUs. Raises `ConfigError` for what the device
    doesn't do.
    """
    if dtype == "fp32":
        return contextlib.nullcontext()
    if dtype == "int8":
        raise ConfigError(int8.NO_TRAINING)
    if reason := why_no_half_on_gpu(dtype) if jt.flags.use_cuda else why_no_half(dtype):
        raise ConfigError(f"training with dtype {dtype}: {reason}; use dtype=fp32")
    return plain.products_in("bfloat16") if jt.flags.use_cuda else cpu.half_products()


def why_no_half_on_gpu(dtype: str) -> str:
    """Why a GPU does not train in `dtype`; nothing when it does."""
    if dtype == "fp16":
        return "gradients underflow in it; bf16 is the half precision to train in"
    gpus, _ = find_gpus()
    old = next((gpu for gpu in gpus if float(gpu.capability) < BF16_CAPABILITY), None)
    return f"{old.name} ({old.capability}) has no bf16, which begins with {BF16_CAPABILITY}" if old else ""


def to_half(weight, pack: bool):
    """A weight as bfloat16 on the CPU, each value rounded to the nearest; (N, K) with `pack` in blocks of its own order."""
    half = cpu.to_half(weight)
    return cpu.packed(half) if pack else half


def to_int8(weight):
    """A weight (N, K) as integers of 8 bits with a scale per row, see `jclip.kernels.int8`."""
    return int8.quantised(weight, fused=chosen() == "cpu")


def unpacked(weight):
    """(N, K) float32 of a weight in any of these forms."""
    return int8.restored(weight) if weight.dtype == "int8" else cpu.unpacked(weight.float32())


def rows(weight, first: int, end: int | None = None):
    """weight[first:end] of a weight (N, K) in any of these forms."""
    in_block = 1 if weight.ndim == 2 else weight.shape[1] if weight.dtype == "int8" else cpu.BLOCK[0]
    return weight[first // in_block : None if end is None else end // in_block]


def chosen() -> str:
    """The implementation that runs: "cuda", "cpu" or "plain"."""
    if os.environ.get("JCLIP_KERNELS", "") == "plain":
        return "plain"
    if jt.flags.use_cuda:
        return "cuda"
    return "cpu" if cpu.available() else "plain"


def _rounds(reader) -> bool:
    """Whether the CPU's products with that weight, if there is one, round what they multiply, and nothing is lost by it."""
    return reader is not None and reader.dtype == "bfloat16" and bool(jt.flags.no_grad)


def _fused(*inputs) -> bool:
    return all(v.dtype == "float32" for v in inputs) and chosen() == "cpu"
