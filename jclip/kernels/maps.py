"""How a ResNet's feature maps lie in memory, and what is computed on them: one object, asked for by each image tower.

`Plain` maps are (B, C, H, W) and differentiable. `ChannelsLast` maps are (B, H, W, C): a convolution, its batch norm with
running statistics, the residual and the ReLU are one operator, nothing is reordered in between, cells are tokens as they
lie. For inference on the CPU.
"""

from __future__ import annotations

from jclip.kernels import cpu
from jclip.runtime import jt

nn = jt.nn


class Plain:
    """Jittor's operators."""

    def enter(self, images):
        """(B, 3, H, W) → maps."""
        return images

    def convolve(self, x, conv, norm, relu: bool = True, residual=None):
        """relu(norm(conv(x)) + residual)"""
        y = norm(conv(x))
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
