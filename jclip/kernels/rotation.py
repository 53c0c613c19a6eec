"""Rotary positions on the CPU: one pass over q, k and v, and one back."""

from __future__ import annotations

from jclip.kernels.cpu import _one
from jclip.kernels.function import Function
from jclip.runtime import jt

SIZES = "in0->num / in0_shape2, in0_shape1, in0_shape2, in1_shape0, in1_shape1"


class _Rotation(Function):
    def execute(self, qkv, cosines, sines):
        self.keep(cosines, sines)
        return turn(qkv, cosines, sines, 1)

    def grad(self, gradient):
        return turn(gradient, *self.kept(), -1), None, None


def rotated(qkv, cosines, sines):
    """As `kernels.rotated`."""
    return turn(qkv, cosines, sines, 1) if jt.flags.no_grad else _Rotation.apply(qkv, cosines, sines)


def turn(qkv, cosines, sines, direction: int):
    """As `kernels.rotated`, without a gradient; direction -1 turns back."""
    return _one("rotation_forward", qkv.shape, [qkv, cosines, sines], SIZES, {"direction": direction}, qkv.dtype)
