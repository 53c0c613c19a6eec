"""On the CPU: products and convolutions by oneDNN, small ones inside OpenMP loops, nothing transposed or copied.

Each operator is a `jt.Function` of two `jt.code` operators, forward and backward. Sums run in a fixed order, so results
are bit-equal from run to run at one number of threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from jclip.kernels.function import Function
from jclip.machine import toolchain
from jclip.paths import plain_path
from jclip.runtime import jt

_SOURCES = Path(__file__).resolve().parent / "sources"  # a linked checkout recompiles nothing


def available() -> bool:
    """Whether Jittor was built with oneDNN."""
    return jt.compile_extern.mkl_ops is not None


class _Attention(Function):
    def execute(self, qkv, heads, causal):
        self.keep(qkv)
        self.options = {"heads": heads, "causal": int(causal)}
        return _attention("attention_forward", qkv, self.options)

    def grad(self, gradient):
        (qkv,) = self.kept()
        return _one("attention_backward", qkv.shape, [qkv, gradient], PACKED, self.options), None, None


class _MaskedAttention(Function):
    def execute(self, qkv, keys, heads, rate, seed):
        self.keep(qkv, keys)
        self.options = {"heads": heads, "rate": rate, "seed": seed}
        B, N, width = qkv.shape
        return _one("attention_masked_forward", (B, N, width // 3), [qkv, keys], PACKED, self.options)

    def grad(self, gradient):
        qkv, keys = self.kept()
        arrays = [qkv, keys, gradient]
        return _one("attention_masked_backward", qkv.shape, arrays, PACKED, self.options), None, None, None, None


class _LayerNorm(Function):
    def execute(self, x, weight, bias, eps):
        self.keep(x, weight)
        self.options = {"eps": eps}
        return _one("layer_norm_forward", x.shape, [x, weight, bias], ROWS, self.options)

    def grad(self, gradient):
        x, weight = self.kept()
        shapes = [x.shape, weight.shape, weight.shape]
        return (*_code("layer_norm_backward", shapes, [x, weight, gradient], ROWS, self.options), None)


class _Linear(Function):
    def execute(self, x, weight, bias, residual):
        self.keep(x, weight)
        self.given, self.options = (bias is not None, residual is not None), {"half": int(_rounding.on)}
        return _linear(x, weight, bias, residual)

    def grad(self, gradient):
        (x, weight), (biased, added) = self.kept(), self.given
        for_x = _one("linear_input_gradient", x.shape, [gradient, weight], _sizes(weight), self.options)
        for_weight = for_bias = None
        if weight.dtype == "float32":  # weights in half precision are frozen
            for_weight = _one("linear_weight_gradient", weight.shape, [gradient, x], GRADIENT_FIRST, self.options)
        if biased:
            for_bias = _one("linear_bias_gradient", gradient.shape[-1:], [gradient], COLUMNS)
        return for_x, for_weight, for_bias, gradient if added else None


class _Activation(Function):
    def execute(self, x, name):
        self.keep(x)
        self.options = {"activation": ACTIVATIONS[name]}
        return _one("activation_forward", x.shape, [x], "in0->num", self.options)

    def grad(self, gradient):
        (x,) = self.kept()
        return _one("activation_backward", x.shape, [x, gradient], "in0->num", self.options), None


class _Dropout(Function):
    def execute(self, x, rate, seed, rows):
        first = rows[0] * (x.numel() // x.shape[0]) if rows else 0
        self.options = {"rate": rate, "seed": seed, "first": first}
        return self.grad(x)[0]

    def grad(self, gradient):
        return _one("dropout_forward", gradient.shape, [gradient], "in0->num", self.options), None, None, None


class _CrossEntropy(Function):
    def execute(self, scores, labels):
        shapes = [labels.shape, scores.shape]
        losses, probabilities = _code("cross_entropy_forward", shapes, [scores, labels], ROWS_OF_FIRST)
        self.keep(probabilities, labels)
        return losses

    def grad(self, gradient):
        probabilities, labels = self.kept()
        inputs = [probabilities, labels, gradient]
        return _one("cross_entropy_backward", probabilities.shape, inputs, ROWS_OF_FIRST), None


class _BatchNorm(Function):
    def execute(self, x, weight, bias, eps):
        shapes = [x.shape, weight.shape, weight.shape]
        self.options = {"eps": eps}
        y, mean, variance = _code("batch_norm_forward", shapes, [x, weight, bias], CHANNELS, self.options)
        self.keep(x, weight, mean, variance)
        return y, mean, variance

    def grad(self, gradient, *_):  # nothing flows back through the statistics, which are not part of any loss
        x, weight, mean, variance = self.kept()
        shapes, inputs = [x.shape, weight.shape, weight.shape], [x, weight, mean, variance, gradient]
        return (*_code("batch_norm_backward", shapes, inputs, CHANNELS, self.options), None)


def attention(qkv, heads: int, causal: bool = False, angles=None):
    """As `kernels.attention`; the backward pass computes the softmax again instead of keeping it. angles: without gradient."""
    if qkv.dtype == "float32" and angles is None:
        return _Attention.apply(qkv, heads, causal)
    kind = "attention_forward" if qkv.dtype == "float32" else "attention_half_forward"
    return _attention(kind, qkv, {"heads": heads, "causal": int(causal)}, angles)


def _attention(function: str, qkv, options: dict, angles=None):
    B, N, width = qkv.shape
    sizes = f"{PACKED}, {'in1_shape0' if angles else '0'}"
    return _one(function, (B, N, width // 3), [qkv, *(angles or (None, None))], sizes, options, qkv.dtype)


def masked_attention(qkv, keys, heads: int, rate: float = 0.0, seed: int = 0):
    """As `kernels.masked_attention`; masked keys are left out of the products, and dropout is drawn again backwards."""
    return _MaskedAttention.apply(qkv, keys, heads, rate, seed)


def linear(x, weight, bias=None, activation: str | None = None, residual=None, half: bool = False):
    """As `kernels.linear`; one operator where no gradient is asked for, else the activation is one of its own."""
    if jt.flags.no_grad:
        return _linear(x, weight, bias, residual, activation, weight.dtype if half else "float32")
    if activation is None:
        return _Linear.apply(x, weight, bias, residual)
    y = _Activation.apply(_Linear.apply(x, weight, bias, None), activation)
    return y if residual is None else y + residual


def _linear(x, weight, bias, residual, activation: str | None = None, dtype: str = "float32"):
    shape = [*x.shape[:-1], weight.shape[0] * (BLOCK[0] if weight.ndim > 2 else 1)]
    options = {"activation": ACTIVATIONS[activation], "half": int(_rounding.on)}
    inputs = [x, weight, bias, residual]
    return _one("linear_forward", shape, inputs, _sizes(weight), options, dtype)


class _Rounding:
    """Whether products of float32 arrays round them to bfloat16 first, forward and backward."""

    on = False


_rounding = _Rounding()


@contextlib.contextmanager
def half_products() -> Iterator[None]:
    """Linear maps made in the block multiply in bfloat16 and add up in float32; weights and gradients stay float32."""
    before, _rounding.on = _rounding.on, True
    try:
        yield
    finally:
        _rounding.on = before


def products_are_half() -> bool:
    """Whether this is inside of `half_products`."""
    return _rounding.on


def class_attention(q, kv, heads: int):
    """As `kernels.class_attention`, without a gradient; q in float32."""
    sizes = "in1_shape0, in1_shape1, in0_shape1"
    return _one("class_attention_forward", q.shape, [q, kv], sizes, {"heads": heads})


def probe_attention(q, x, weight, bias, heads: int):
    """As `kernels.probe_attention`, without a gradient; q, x and bias in float32, the weight in any form."""
    rows = "0" if weight.ndim == 2 else "in2_shape1" if weight.dtype == "int8" else str(BLOCK[0])
    shape, sizes = (x.shape[0], x.shape[2]), f"in1_shape0, in1_shape1, in1_shape2, {rows}"
    return _one("probe_attention_forward", shape, [q, x, weight, bias], sizes, {"heads": heads})


def cells(images, patch: int, dtype: str):
    """As `kernels.cells`, in `dtype` and without a gradient."""
    B, C, H, W = images.shape
    shape = (B, (H // patch) * (W // patch), C * patch * patch)
    return _one("cells_forward", shape, [images], MAPS, {"patch": patch}, dtype)


def layer_norm(x, weight, bias, eps: float, half: bool = False):
    """As `kernels.layer_norm`; `half`: rounded to bfloat16, without a gradient."""
    if half:
        return _one("layer_norm_forward", x.shape, [x, weight, bias], ROWS, {"eps": eps}, "bfloat16")
    return _LayerNorm.apply(x, weight, bias, eps)


def dropout(x, rate: float, seed: int, rows: tuple[int, int] | None = None):
    """As `kernels.dropout`; the mask is drawn again in the backward pass instead of kept."""
    return _Dropout.apply(x, rate, seed, rows)


def adamw(p, m, v, g, betas: tuple[float, float], keep: float, step: float, root: float, eps: float) -> list:
    """As `kernels.adamw`; the moments are moved where they lie, which takes no memory for new ones."""
    options = {"b1": betas[0], "b2": betas[1], "keep": keep, "step": step, "root": root, "eps": eps}
    return [_one("adamw_forward", p.shape, [p, m, v, g], "in0->num", options), m, v]


def cross_entropy(scores, labels):
    """As `kernels.cross_entropy`."""
    return _CrossEntropy.apply(scores, labels)


def batch_norm(x, weight, bias, eps: float):
    """As `kernels.batch_norm`."""
    return _BatchNorm.apply(x, weight, bias, eps)


def convolution(x, weight, norm, stride: int, relu: bool, residual):
    """As `maps.ChannelsLast.convolve`, in the weight's dtype: (B, H, W, C) → (B, H', W', outputs)."""
    B, H, W, _ = x.shape
    outputs, _, k, _ = weight.shape
    height, width = ((side + 2 * (k // 2) - k) // stride + 1 for side in (H, W))
    inputs = [x, weight, norm.weight, norm.bias, norm.running_mean, norm.running_var, residual]
    options = {"eps": norm.eps, "stride": stride, "relu": int(relu)}
    return _one("convolution_forward", (B, height, width, outputs), inputs, MAPS_AND_KERNEL, options, weight.dtype)


def pool(x, size: int):
    """(B, H, W, C) → (B, H // size, W // size, C): the mean of each cell."""
    B, H, W, C = x.shape
    return _one("pool_forward", (B, H // size, W // size, C), [x], MAPS, {"size": size}, x.dtype)


def to_half(x):
    """bfloat16, each value rounded to the nearest; Jittor's own cast cuts the bits off."""
    return _one("half_forward", x.shape, [x], "in0->num", dtype="bfloat16")


def packed(weight):
    """A bfloat16 weight (N, K) as oneDNN's products like to read it, (N/64, K/32, 16, 64, 2); as it is where it can't be."""
    (N, K), (n, k) = weight.shape, BLOCK
    if N % n or K % k or not _packs():
        return weight
    return _one("pack_forward", (N // n, K // k, k // 2, n, 2), [weight], "in0_shape0, in0_shape1", dtype="bfloat16")


def unpacked(weight):
    """The inverse of `packed`."""
    if weight.ndim == 2:
        return weight
    blocks, (n, k) = weight.shape, BLOCK
    return weight.permute(0, 3, 1, 2, 4).reshape((blocks[0] * n, blocks[1] * k))


def to_int8(weight):
    """(N, K) float32 → the bytes of int8_weight.h, (N/R, R, K + 8) int8; R: rows that oneDNN multiplies at once, else 1."""
    N, K = weight.shape
    fitting = (R for R in INT8_BLOCKS if N % R == 0 and K % 64 == 0)
    R = next(fitting, 1) if _multiplies_int8() else 1
    sizes = "in0_shape0, in0_shape1"
    return _one("int8_weight_forward", (N // R, R, K + 8), [weight], sizes, {"rows": R}, "int8")


def int8_linear(x, weight, bias, activation: str | None, residual, dtype: str):
    """As `kernels.linear`, with what `to_int8` returns and the output in `dtype`."""
    blocks, R, _ = weight.shape
    shape, options = [*x.shape[:-1], blocks * R], {"activation": ACTIVATIONS[activation]}
    sizes = "in0->num, in1_shape0 * in1_shape1, in1_shape2 - 8, in1_shape1"
    return _one("int8_linear_forward", shape, [x, weight, bias, residual], sizes, options, dtype)


@lru_cache(maxsize=1)
def _multiplies_int8() -> bool:
    """Whether oneDNN multiplies weights of 8 bits with sums that are exact."""
    return bool(_one("int8_weight_choice", (1,), [], "", dtype="int32").item())


@lru_cache(maxsize=1)
def _packs() -> bool:
    return bool(_one("pack_choice", (1,), [], "", dtype="int32").item())


BLOCK = (64, 32)  # rows and columns of a packed block
INT8_BLOCKS = (256, 128, 64)  # rows of one in 8 bits
ACTIVATIONS = {None: 0, "quickgelu": 1, "gelu": 2, "gelu_tanh": 4}  # as linear.h numbers them

# Sizes that the C++ functions take after the arrays.
PACKED = "in0_shape0, in0_shape1, in0_shape2"
ROWS = "in0->num, in1_shape0"
ROWS_OF_FIRST = "in0->num, in0_shape1"
CHANNELS = "in0_shape0, in0_shape1, in0_shape2 * in0_shape3"
GRADIENT_FIRST = "in0->num, out0_shape0, out0_shape1"
COLUMNS = "in0->num, out0_shape0"
MAPS = "in0_shape0, in0_shape1, in0_shape2, in0_shape3"
MAPS_AND_KERNEL = f"{MAPS}, in1_shape0, in1_shape2"


def _sizes(weight) -> str:
    """For an operator whose second array is a weight, packed or not."""
    if weight.ndim == 2:
        return "in0->num, in1_shape0, in1_shape1, false"
    return f"in0->num, in1_shape0 * {BLOCK[0]}, in1_shape1 * {BLOCK[1]}, true"


def _one(function: str, shape, inputs: list, sizes: str, options=None, dtype: str = "float32"):
    """The output of an operator with one, made as by `_code`."""
    return _code(function, [shape], inputs, sizes, options, dtype)[0]


def _code(function: str, shapes: list, inputs: list, sizes: str, options=None, dtype: str | list = "float32") -> list:
    """One `jt.code` operator that calls `function` of its header on the raw arrays: a list of its outputs.

    An input that is None is passed as a null pointer. dtype: of all outputs, or a list.
    """
    header, options = _header_of(function), options or {}
    given = [v for v in inputs if v is not None]
    numbers = iter(range(len(given)))
    arrays = ["nullptr" if v is None else f"in{next(numbers)}_p" for v in inputs]
    arrays += [f"out{i}_p" for i in range(len(shapes))]
    values = [f'data["{name}"]' for name in options]
    call = f"jclip::{function}({', '.join(filter(None, [*arrays, sizes, *values]))});"
    made = jt.code(
        [tuple(s) for s in shapes],
        dtype if isinstance(dtype, list) else [dtype] * len(shapes),
        given,
        cpu_header=f'#include "{header}.h"  // {_digest(header)}\n',  # Jittor looks for changes in what it is handed
        cpu_src=call,
        data=options,
    )
    for var in made:
        var.compile_options = _flags()
    return made


@lru_cache
def _header_of(function: str) -> str:
    """The header whose name the function's begins with."""
    return max((f.stem for f in _SOURCES.glob("*.h") if function.startswith(f"{f.stem}_")), key=len)


@lru_cache
def _digest(header: str) -> str:
    """Hash of the header and all that it includes of ours."""
    text = (_SOURCES / f"{header}.h").read_text(encoding="utf-8")
    included = re.findall(r'#include "(\w+)\.h"', text)
    return hashlib.sha256("".join([text, *map(_digest, included)]).encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def _flags() -> dict[str, int]:
    """Where the headers and oneDNN are, in the form in which Jittor hands options to the compiler."""
    onednn = plain_path(toolchain.jittor_home() / ".cache/jittor/mkl/dnnl_lnx_2.2.0_cpu_gomp")
    sources = plain_path(_SOURCES)
    return {f"FLAGS: -I{sources} -I{onednn}/include -L{onednn}/lib -Wl,-rpath,{onednn}/lib -lmkldnn ": 1}
