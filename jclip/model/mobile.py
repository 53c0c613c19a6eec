"""MobileCLIP's and MobileCLIP 2's B: a vision transformer behind three convolutions.

Vasu et al., CVPR 2024, arXiv 2311.17049; the stem as Xiao et al., NeurIPS 2021, arXiv 2106.14881. Parameters have OpenAI's
names, those of the stem timm's.
"""

from __future__ import annotations

from jclip import kernels
from jclip.model.layers import BatchNorm, LayerNorm, Transformer
from jclip.model.vit import VisionTransformer
from jclip.runtime import jt
from jclip.weights.mobile_configs import STEM_NARROWER, STEM_STRIDES, MobileConfig

nn = jt.nn


class MobileTower(VisionTransformer):
    """As `VisionTransformer`, but for the stem, positions of the patches alone, and no norm before the blocks."""

    def __init__(self, config: MobileConfig, embed_dim: int, activation: str):
        width, (rows, columns) = config.width, config.grid
        scale = width**-0.5
        self.patch_embed = Stem(width, config.stem_padding)
        self.class_embedding = jt.init.gauss((width,), "float32", std=scale)
        self.positional_embedding = jt.init.gauss((rows * columns, width), "float32", std=scale)
        self.transformer = Transformer(config, activation, config.norm_eps)
        self.ln_post = LayerNorm(width, config.norm_eps)
        self.proj = jt.init.gauss((width, embed_dim), "float32", std=scale)
        self.proj_bias = jt.zeros((embed_dim,)) if config.proj_bias else None
        self.image_size = config.image_size
        self._patches = rows * columns

    def ln_pre(self, x):
        """No norm: x as it is."""
        return x

    def embed(self, images, positions=None):
        """(B, 3, H, W) → (B, 1 + N, D): class token, and patches with their positions.

        positions: (N, D) in place of the tower's own, for photos of another size.
        """
        patches = self.patch_embed(images)
        patches = patches + (self.positional_embedding if positions is None else positions)
        first = self.class_embedding.reshape((1, 1, -1)).expand((patches.shape[0], 1, patches.shape[2]))
        return jt.concat([first.cast(patches.dtype), patches], dim=1)


class Stem(nn.Module):
    """(B, 3, H, W) → (B, N, D), patches row by row.

    padding: of the first convolution, whose stride is its kernel: the last rows and columns fall out of the patches.
    """

    def __init__(self, width: int, padding: int = 0):
        narrow, (first, second, third) = width // STEM_NARROWER, STEM_STRIDES
        self.backbone = nn.Sequential(
            StemConvolution(3, narrow, first),
            StemConvolution(narrow, narrow, second),
            LastConvolution(narrow, width, third),
        )
        self.padding = padding

    def execute(self, images):
        x = _moved(images.permute(0, 2, 3, 1), self.padding) if self.padding else images.permute(0, 2, 3, 1)
        for i in range(len(self.backbone)):
            x = self.backbone[i](x)
        return x.reshape((x.shape[0], -1, x.shape[3]))


def _moved(x, pixels: int):
    """Maps (B, H, W, C) moved down and to the right, zeros where nothing was."""
    x = jt.concat([jt.zeros_like(x[:, :pixels]), x[:, :-pixels]], dim=1)
    return jt.concat([jt.zeros_like(x[:, :, :pixels]), x[:, :, :-pixels]], dim=2)


class StemConvolution(nn.Module):
    """GELU(norm(convolution x)) of maps with channels last, the stride as large as the kernel."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        self.conv = Kernel(inputs, outputs, stride)
        self.bn = BatchNorm(outputs)

    def execute(self, x):
        """(B, H, W, C) → (B, H/s, W/s, C')."""
        if self.bn.is_training():
            maps = self.bn(self.conv(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            return kernels.plain.gelu(maps)
        scale = self.bn.weight.float32() / jt.sqrt(self.bn.running_var + self.bn.eps)
        shift = self.bn.bias.float32() - self.bn.running_mean * scale
        return self.conv(x, scale, shift, "gelu")


class LastConvolution(nn.Module):
    """A convolution with a bias, the stride as large as the kernel."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        self.conv = Kernel(inputs, outputs, stride, bias=True)

    def execute(self, x):
        """(B, H, W, C) → (B, H/s, W/s, C')."""
        return self.conv(x)


class Kernel(nn.Module):
    """The weight of a convolution whose stride is its kernel, multiplied as a matrix."""

    def __init__(self, inputs: int, outputs: int, stride: int, bias: bool = False):
        fan_in = inputs * stride * stride
        self.weight = jt.init.gauss((outputs, inputs, stride, stride), "float32", std=fan_in**-0.5)
        self.bias = jt.zeros((outputs,)) if bias else None
        self.stride = stride

    def execute(self, x, scale=None, shift=None, activation: str | None = None):
        """(B, H, W, C) → (B, H/s, W/s, C'); each output times `scale` plus `shift`, both (C',), before the activation."""
        (B, H, W, C), s = x.shape, self.stride
        cells = (
            x.reshape((B, H // s, s, W // s, s, C)).permute(0, 1, 3, 5, 2, 4).reshape((B, H // s, W // s, C * s * s))
        )
        weight = self.weight.reshape((self.weight.shape[0], -1))
        if scale is not None:
            weight = (weight.float32() * scale.unsqueeze(1)).cast(weight.dtype)
        bias = self.bias if shift is None else shift.cast(weight.dtype)
        return kernels.linear(cells, weight, bias, activation)
