"""CLIP's modified ResNet: a stem of three convolutions, average pools in front of strides, an attention pool at the end."""

from __future__ import annotations

from jclip import kernels
from jclip.model.layers import BatchNorm, Linear
from jclip.runtime import jt
from jclip.weights.variants import ResNetConfig

nn = jt.nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1):
    """A convolution without bias that keeps the size at stride 1."""
    return nn.Conv(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


class Bottleneck(nn.Module):
    """1x1, 3x3, average pool where the stage strides, 1x1; the shortcut pools and projects alike."""

    def __init__(self, inputs: int, planes: int, stride: int):
        outputs = 4 * planes
        self.conv1, self.bn1 = conv(inputs, planes, 1), BatchNorm(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3), BatchNorm(planes)
        self.conv3, self.bn3 = conv(planes, outputs, 1), BatchNorm(outputs, weight=0.0)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1), BatchNorm(outputs))
        self.stride = stride

    def execute(self, x, maps):
        y = maps.convolve(x, self.conv1, self.bn1)
        y = maps.pool(maps.convolve(y, self.conv2, self.bn2), self.stride)
        if self.downsample is not None:
            x = maps.convolve(maps.pool(x, self.stride), *self.downsample, relu=False)
        return maps.convolve(y, self.conv3, self.bn3, residual=x)


class AttentionPool(nn.Module):
    """One query, the mean of all cells, attends to the mean and the cells: (B, N, D) → (B, E)."""

    def __init__(self, grid: tuple[int, int], width: int, heads: int, embed_dim: int):
        std = width**-0.5
        self.positional_embedding = jt.init.gauss((1 + grid[0] * grid[1], width), "float32", std=std)
        self.q_proj = Linear(width, width, std=std)
        self.k_proj = Linear(width, width, std=std)
        self.v_proj = Linear(width, width, std=std)
        self.c_proj = Linear(width, embed_dim, std=std)
        self.heads = heads

    def execute(self, cells):
        return self.attend(self.with_mean(cells) + self.positional_embedding)

    def with_mean(self, cells):
        """(B, N, D) → (B, 1 + N, D): the mean of all cells, then the cells."""
        return jt.concat([cells.mean(dim=1, keepdims=True), cells], dim=1)

    def attend(self, tokens):
        """(B, 1 + N, D) → (B, E): what the first token gathers from all."""
        B, N, D = tokens.shape
        d = D // self.heads
        q = self.q_proj(tokens[:, :1]).reshape((B, self.heads, d, 1)) * d**-0.5
        k = self.k_proj(tokens).reshape((B, N, self.heads, d))
        v = self.v_proj(tokens).reshape((B, N, self.heads, d))
        scores = (k * q.permute(0, 3, 1, 2)).sum(dim=3)  # (B, N, heads)
        weights = nn.softmax(scores.float32(), dim=1).cast(v.dtype)
        pooled = (weights.unsqueeze(3) * v).sum(dim=1)
        return self.c_proj(pooled.reshape((B, D)))

    def values(self, cells):
        """(B, N, D) → (B, N, E): each cell through value and output projection, without attention or positions."""
        return self.c_proj(self.v_proj(cells))


class ModifiedResNet(nn.Module):
    """Images to one embedding each; on request to one per cell of the last feature map as well."""

    def __init__(self, config: ResNetConfig, embed_dim: int):
        width = config.width
        self.conv1, self.bn1 = conv(3, width // 2, 3, stride=2), BatchNorm(width // 2)
        self.conv2, self.bn2 = conv(width // 2, width // 2, 3), BatchNorm(width // 2)
        self.conv3, self.bn3 = conv(width // 2, width, 3), BatchNorm(width)
        self.layer1 = _stage(width, width, config.layers[0], stride=1)
        self.layer2 = _stage(4 * width, 2 * width, config.layers[1], stride=2)
        self.layer3 = _stage(8 * width, 4 * width, config.layers[2], stride=2)
        self.layer4 = _stage(16 * width, 8 * width, config.layers[3], stride=2)
        self.attnpool = AttentionPool(config.grid, config.output_width, config.heads, embed_dim)
        self.image_size = config.image_size

    def cells(self, images, taps: dict | None = None):
        """(B, 3, H, W) → (B, H/32 * W/32, 32 * width), row by row."""
        maps = kernels.feature_maps(images, any(m.is_training() for m in self._norms()))
        x = maps.enter(images)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = maps.convolve(x, conv, norm)
        x = maps.pool(x, 2)
        if taps is not None:
            taps["visual.stem"] = maps.leave(x)
        for i, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4), start=1):
            for block in stage:
                x = block(x, maps)
            if taps is not None:
                taps[f"visual.layer{i}"] = maps.leave(x)
        return maps.cells(x)

    def _norms(self) -> list[BatchNorm]:
        return [m for m in self.modules() if isinstance(m, BatchNorm)]

    def execute(self, images, dense: str | None = None, taps: dict | None = None):
        """(B, 3, H, W) → (B, E); with `dense` ("value") also (B, N, E), cells row by row, not normalised."""
        cells = self.cells(images, taps)
        pooled = self.attnpool(cells)
        return pooled if dense is None else (pooled, self.attnpool.values(cells))


def _stage(inputs: int, planes: int, blocks: int, stride: int):
    rest = (Bottleneck(4 * planes, planes, 1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(inputs, planes, stride), *rest)
