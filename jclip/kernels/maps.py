"""How a ResNet's feature maps lie in memory, and what is computed on them: one object, asked for by each image tower.

`Plain` maps are (B, C, H, W) and differentiable. The others lie (B, H, W, C) on the CPU: nothing is reordered in between,
cells are tokens as they lie. Of `ChannelsLast` maps a convolution, its batch norm with running statistics, the residual and
the ReLU are one operator, for inference; `Trained` maps are differentiable, and a convolution is an operator of its own.
"""

from __future__ import annotations

from jclip.kernels import cpu, cpu_maps
from jclip.kernels.function import Function
from jclip.runtime import jt

nn = jt.nn


class _Convolution(Function):
    """A convolution whose two gradients are computed at once.

    Where one of them is asked for alone, as by batch norms that wait for other ranks, Jittor keeps all products of inputs
    and weights for the other one: for a ResNet of width 16 that is 70 MB for each image of 64 x 64.
    """

    def execute(self, x, weight, conv):
        self.keep(x, weight)
        self.conv = conv
        return nn.conv2d(x, weight, None, conv.stride, conv.padding)

    def grad(self, gradient):
        given = [v.detach() for v in self.kept()]
        for v in given:
            v.start_grad()
        y = nn.conv2d(*given, None, self.conv.stride, self.conv.padding)
        found = jt.grad((y * gradient.detach()).sum(), given, retain_graph=False)
        jt.sync(found)
        with jt.no_grad():
            return *(g.detach() for g in found), None


class Plain:
    """Jittor's operators. together: whether batch norms wait for other ranks between convolutions."""

    def __init__(self, together: bool = False):
        self._together = together

    def enter(self, images):
        """(B, 3, H, W) → maps."""
        return images

    def convolve(self, x, conv, norm, relu: bool = True, residual=None):
        """relu(norm(conv(x)) + residual)"""
        y = norm(_Convolution.apply(x, conv.weight, conv) if self._together else conv(x))
        y = y if residual is None else y + residual
        return nn.relu(y) if relu else y

    def pool(self, x, size: int):
        """Mean of `size` x `size` cells; rows and columns that don't fill a cell are dropped."""
        if size == 1:
            return x
        B, C, H, W = x.shape
        x = x[:, :, : H // size * size, : W // size * size] if H % size or W % size else x
        return x.reshape((B, C, H // size, size, W // size, size)).mean(dims=[3, 5])

    def cells(self, x):
        """→ (B, h*w, C), row by row."""
        B, C, h, w = x.shape
        return x.reshape((B, C, h * w)).permute(0, 2, 1)

    def leave(self, x):
        """→ (B, C, H, W), in the maps' own dtype."""
        return x


class ChannelsLast:
    """oneDNN's operators; see `Plain` for what each does."""

    def enter(self, images):
        return images.permute(0, 2, 3, 1)

    def convolve(self, x, conv, norm, relu: bool = True, residual=None):
        return cpu.convolution(x, conv.weight, norm, conv.stride[0], relu, residual)

    def pool(self, x, size: int):
        return x if size == 1 else cpu.pool(x, size)

    def cells(self, x):
        B, h, w, C = x.shape
        return x.reshape((B, h * w, C)).float32()

    def leave(self, x):
        return x.permute(0, 3, 1, 2).float32()


class Shared:
    """A map that several operators read: each takes a reading of its own, so that their gradients arrive apart and are
    added where they are used."""

    def __init__(self, *readings):
        self._left = list(readings)

    def read(self):
        """(B, H, W, C); the last reading is given again."""
        return self._left.pop() if len(self._left) > 1 else self._left[0]


class Trained:
    """oneDNN's operators with their gradients; see `Plain` for what each does.

    half: maps and what they are multiplied by are bfloat16; statistics, parameters and their gradients stay float32.
    """

    def __init__(self, half: bool):
        self._half = half

    def enter(self, images):
        x = images.permute(0, 2, 3, 1)
        return Shared(cpu_maps.narrow(x) if self._half else x)

    def convolve(self, x, conv, norm, relu: bool = True, residual=None):
        y = cpu_maps.convolution(x.read(), conv.weight.float32(), conv.stride[0])
        added = None if residual is None else residual.read()
        if not norm.is_training():
            statistics = norm.running_mean, norm.running_var
            return Shared(*cpu_maps.norm(y, norm.weight, norm.bias, norm.eps, relu, added, *statistics)[:-2])
        *readings, mean, variance = cpu_maps.norm(y, norm.weight, norm.bias, norm.eps, relu, added)
        norm.update_statistics(mean, variance, samples=y.shape[0] * y.shape[1] * y.shape[2])
        return Shared(*readings)

    def pool(self, x, size: int):
        return x if size == 1 else Shared(*cpu_maps.pool(x.read(), size))

    def cells(self, x):
        x = cpu_maps.widen(x.read())
        B, h, w, C = x.shape
        return x.reshape((B, h * w, C))

    def leave(self, x):
        return cpu_maps.widen(x.read()).permute(0, 3, 1, 2)
