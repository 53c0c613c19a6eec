"""On the CPU: operators of layers over sequences of unequal lengths, and of layers with ReLU and dropout, fused."""

from __future__ import annotations

from jclip.kernels.cpu import GRADIENT_FIRST, _code, _one, _rounding, _sizes
from jclip.kernels.function import Function
from jclip.kernels.sequences import Sequences

# Sizes that the C++ functions take after the arrays.
PACKED = "in2_shape0 - 1, in1_shape0, in0_shape1"
FIRST = "in4_shape0 - 1, in1_shape0, in0_shape1"
TOKENS = "in0_shape0, in0_shape1"


class _PackedAttention(Function):
    def execute(self, qkv, moved, sequences, heads, rate, seed):
        self.keep(qkv, moved, *sequences.arrays)
        self.options = {"heads": heads, "rate": rate, "seed": seed, "first": sequences.first}
        shape = (qkv.shape[0], qkv.shape[1] // 3)
        return _one("packed_attention_forward", shape, [qkv, moved, *sequences.arrays], PACKED, self.options)

    def grad(self, gradient):
        qkv, moved, *arrays = self.kept()
        inputs = [qkv, moved, *arrays, gradient]
        made = _code("packed_attention_backward", [qkv.shape, moved.shape], inputs, PACKED, self.options)
        return (*made, None, None, None, None)


class _FirstAttention(Function):
    def execute(self, x, table, weight, bias, sequences, heads, rate, seed):
        inputs = [x, table, weight, bias, *sequences.arrays]
        self.keep(*inputs)
        self.options = {"heads": heads, "rate": rate, "seed": seed, "first": sequences.first}
        return _one("first_attention_forward", (len(sequences), x.shape[1]), inputs, FIRST, self.options)

    def grad(self, gradient):
        inputs = self.kept()
        shapes = [v.shape for v in inputs[:4]]
        made = _code("first_attention_backward", shapes, [*inputs, gradient], FIRST, self.options)
        return (*made, None, None, None, None)


class _ResidualNorm(Function):
    def execute(self, x, y, bias, weight, shift, tokens, eps, rate, seed):
        self.keep(x, y, bias, weight, tokens)
        self.options = {"eps": eps, "rate": rate, "seed": seed}
        return _one("residual_norm_forward", x.shape, [x, y, bias, weight, shift, tokens], TOKENS, self.options)

    def grad(self, gradient):
        x, y, bias, weight, tokens = self.kept()
        shapes, inputs = [x.shape, y.shape, *[bias.shape] * 3], [x, y, bias, weight, tokens, gradient]
        return (*_code("residual_norm_backward", shapes, inputs, TOKENS, self.options), None, None, None, None)


class _ReluLinear(Function):
    def execute(self, x, weight, bias, tokens, rate, seed):
        self.rate, self.half = rate, int(_rounding.on)
        sizes = "in0_shape0, in1_shape0, in1_shape1"
        options = {"rate": rate, "seed": seed, "half": self.half}
        y = _one("relu_linear_forward", (x.shape[0], weight.shape[0]), [x, weight, bias, tokens], sizes, options)
        self.keep(x, weight, y)
        return y

    def grad(self, gradient):
        x, weight, y = self.kept()
        shapes = [y.shape, weight.shape[:1]]
        g, for_bias = _code("relu_linear_backward", shapes, [y, gradient], TOKENS, {"rate": self.rate})
        half = {"half": self.half}
        for_x = _one("linear_input_gradient", x.shape, [g, weight], _sizes(weight), half)
        for_weight = _one("linear_weight_gradient", weight.shape, [g, x], GRADIENT_FIRST, half)
        return for_x, for_weight, for_bias, None, None, None


class _Rows(Function):
    def execute(self, table, index):
        self.index, self.shape = index, table.shape
        return _one("rows_forward", (index.shape[0], table.shape[1]), [table, index], "in1_shape0, in0_shape1")

    def grad(self, gradient):
        sizes = "in0_shape0, out0_shape0, in0_shape1"
        return _one("rows_backward", self.shape, [gradient, self.index], sizes), None


def packed_attention(qkv, moved, sequences: Sequences, heads: int, rate: float = 0.0, seed: int = 0):
    """As `kernels.packed_attention`; the backward pass computes the softmax, and draws, again."""
    return _PackedAttention.apply(qkv, moved, sequences, heads, rate, seed)


def first_attention(x, table, weight, bias, sequences: Sequences, heads: int, rate: float = 0.0, seed: int = 0):
    """As `kernels.first_attention`; keys and values are never made."""
    return _FirstAttention.apply(x, table, weight, bias, sequences, heads, rate, seed)


def residual_norm(x, y, bias, weight, shift, tokens, eps: float, rate: float = 0.0, seed: int = 0):
    """As `kernels.residual_norm`; the sum is computed again in the backward pass."""
    return _ResidualNorm.apply(x, y, bias, weight, shift, tokens, eps, rate, seed)


def relu_linear(x, weight, bias, tokens, rate: float = 0.0, seed: int = 0):
    """As `kernels.relu_linear`."""
    return _ReluLinear.apply(x, weight, bias, tokens, rate, seed)


def rows_of(table, index):
    """As `kernels.rows_of`; gradients are added in a fixed order."""
    return _Rows.apply(table, index)
