"""On the CPU: the operators of channels-last maps (B, H, W, C), float32 or bfloat16, with their gradients."""

from __future__ import annotations

from jclip.kernels.cpu import MAPS_AND_KERNEL, _code, _one, to_half
from jclip.kernels.cpu import pool as _pooled
from jclip.kernels.function import Function

READERS = 3  # of a map: the next convolution, the shortcut, and who asked for it by name

# Sizes that the C++ functions take after the arrays.
ROWS_AND_CHANNELS = "in0->num / in1_shape0, in1_shape0"
INPUT_AND_KERNEL = "out0_shape0, out0_shape1, out0_shape2, out0_shape3, in1_shape0, in1_shape2"
KERNEL_GRADIENT = "in1_shape0, in1_shape1, in1_shape2, in1_shape3, out0_shape0, out0_shape2"
POOLED_FROM = "out0_shape0, out0_shape1, out0_shape2, out0_shape3"


class _Convolution(Function):
    def execute(self, x, weight, stride):
        self.keep(x, weight)
        self.options = {"stride": stride}
        B, H, W, _ = x.shape
        outputs, _, k, _ = weight.shape
        height, width = ((side + 2 * (k // 2) - k) // stride + 1 for side in (H, W))
        shape = (B, height, width, outputs)
        return _one("trained_convolution_forward", shape, [x, weight], MAPS_AND_KERNEL, self.options, x.dtype)

    def grad(self, gradient):
        x, weight = self.kept()
        inputs, name = [gradient, weight], "trained_convolution_input_gradient"
        for_x = _one(name, x.shape, inputs, INPUT_AND_KERNEL, self.options, x.dtype)
        inputs, name = [gradient, x], "trained_convolution_weight_gradient"
        return for_x, _one(name, weight.shape, inputs, KERNEL_GRADIENT, self.options), None


class _Norm(Function):
    def execute(self, x, weight, bias, mean, variance, residual, eps, relu):
        self.options, self.given, self.added = {"eps": eps, "relu": int(relu)}, mean is not None, residual is not None
        inputs, shapes = [x, weight, bias, mean, variance, residual], [x.shape, weight.shape, weight.shape]
        dtypes = [x.dtype, "float32", "float32"]
        y, mean, variance = _code("map_norm_forward", shapes, inputs, ROWS_AND_CHANNELS, self.options, dtypes)
        self.keep(x, weight, bias, mean, variance, *([y] if self.added else []))
        return [*[y] * READERS, mean, variance]

    def grad(self, *gradients):  # nothing flows back through the statistics, which are not part of any loss
        x, weight, bias, *others = self.kept()
        shapes, dtypes = [x.shape, weight.shape, weight.shape], [x.dtype, "float32", "float32"]
        if self.added:
            shapes, dtypes = [*shapes, x.shape], [*dtypes, x.dtype]
        name = "map_norm_added_backward" if self.added else "map_norm_backward"
        inputs, options = (
            [x, weight, bias, *others, *_given_first(gradients)],
            {**self.options, "given": int(self.given)},
        )
        for_x, for_weight, for_bias, *for_residual = _code(name, shapes, inputs, ROWS_AND_CHANNELS, options, dtypes)
        return for_x, for_weight, for_bias, None, None, *(for_residual or [None]), None, None


class _Pool(Function):
    def execute(self, x, size):
        self.shape, self.options = x.shape, {"size": size}
        return [_pooled(x, size)] * READERS

    def grad(self, *gradients):
        inputs = _given_first(gradients)
        return _one("pool_backward", self.shape, inputs, POOLED_FROM, self.options, inputs[0].dtype), None


class _Cast(Function):
    def execute(self, x, narrow):
        self.narrow = narrow
        return to_half(x) if narrow else x.float32()

    def grad(self, gradient):
        return gradient.float32() if self.narrow else to_half(gradient), None


def convolution(x, weight, stride: int):
    """(B, H, W, C) with a float32 kernel (O, C, k, k) → (B, H', W', O), padded by k // 2."""
    return _Convolution.apply(x, weight, stride)


def norm(x, weight, bias, eps: float, relu: bool, residual=None, mean=None, variance=None):
    """[relu](norm(x) + residual), `READERS` times, and the mean and biased variance (C,) of the norm: given, or the batch's."""
    return _Norm.apply(x, weight, bias, mean, variance, residual, eps, relu)


def pool(x, size: int):
    """(B, H, W, C) → (B, H // size, W // size, C), `READERS` times: the mean of each cell."""
    return _Pool.apply(x, size)


def narrow(x):
    """bfloat16, rounded to the nearest."""
    return _Cast.apply(x, True)


def widen(x):
    """float32; the gradient is rounded to the nearest bfloat16 where x is that."""
    return _Cast.apply(x, False) if x.dtype == "bfloat16" else x


def _given_first(gradients) -> list:
    """Those of `READERS` readings, the ones that are there first."""
    gradients = gradients[:READERS]
    return [g for g in gradients if g is not None] + [None] * sum(g is None for g in gradients)
