"""Tokens of frozen or trained towers as grounding reads them: several levels of the image tower, every token of a text.

Of a ViT the outputs of four blocks stand side by side, a class token first where there is one; of a ResNet the four
stages' maps, brought to one grid: finer ones averaged, coarser ones repeated.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from jclip.errors import ConfigError
from jclip.model.grounding import FusionShape
from jclip.runtime import jt
from jclip.weights.variants import CLIPConfig, ResNetConfig

Layers = Literal["levels", "last"]
FEWEST = 8  # rows and columns of a ResNet's grid, where a stage has so many


def block_levels(blocks: int) -> tuple[int, ...]:
    """Blocks whose outputs are read: 0, 3, 7, 11 of 12; 0, 7, 15, 23 of 24."""
    return tuple(sorted({0, max(blocks // 3 - 1, 0), max(2 * blocks // 3 - 1, 0), blocks - 1}))


def stage_grid(vision: ResNetConfig) -> tuple[int, int]:
    """Rows and columns that a ResNet's stages are brought to: the coarsest stage's with 8 at least, else the first's."""
    rows, columns = vision.grid
    factor = next((f for f in (1, 2, 4) if min(rows, columns) * f >= FEWEST), 8)
    return rows * factor, columns * factor


def token_grid(config: CLIPConfig, visual: Layers = "levels") -> tuple[int, int]:
    """Rows and columns of the image tokens, which stand at the end of the sequence, row by row."""
    vision = config.vision
    return stage_grid(vision) if isinstance(vision, ResNetConfig) and visual == "levels" else vision.grid


def fusion_shape(config: CLIPConfig, visual: Layers = "levels", **sizes) -> FusionShape:
    """The network's sizes for towers of that architecture; `sizes` are those that the towers leave open.

    Hidden units are by default as many as the text tower's. Raises `ConfigError` for weights without both towers.
    """
    vision, text = config.vision, config.text
    if vision is None or text is None:
        raise ConfigError("grounding needs weights with both towers, got one alone")
    last = visual == "last"
    if isinstance(vision, ResNetConfig):
        (rows, columns), stages = (vision.grid if last else stage_grid(vision)), 4 * vision.width * (1 + 2 + 4 + 8)
        width, tokens = (config.embed_dim, 1 + rows * columns) if last else (stages, rows * columns)
    else:
        rows, columns = vision.grid
        width = config.embed_dim if last else vision.width * len(block_levels(vision.layers))
        tokens = (1 if last else vision.class_tokens) + rows * columns
    own = {"max_text": text.context_length, "hidden": text.width, "last": last}
    return FusionShape(width, config.embed_dim, tokens, **{**own, **sizes})


def image_parts(model, pixels, layers: Layers = "levels") -> list:
    """(B, 3, H, W) → the tower's tokens as they are kept: (B, N, W), or of a ResNet's levels maps (B, h, w, C), none of them
    finer than the grid. `spread` makes the network's input of them."""
    if layers == "last":
        pooled, cells = model.encode_image(pixels, dense="value" if _is_resnet(model.config) else "token")
        return [jt.concat([pooled.unsqueeze(1), cells], dim=1)]
    taps: dict = {}
    model.encode_image(pixels, taps=taps)
    if _is_resnet(model.config):
        grid = stage_grid(model.config.vision)
        return [_averaged(taps[f"visual.layer{i}"], grid).permute(0, 2, 3, 1) for i in (1, 2, 3, 4)]
    return [jt.concat([taps[f"visual.block{i}"] for i in block_levels(model.config.vision.layers)], dim=2)]


def part_shapes(config: CLIPConfig, layers: Layers = "levels") -> list[tuple[int, ...]]:
    """The shapes of a photo's parts, as `image_parts` has them without the batch."""
    vision = config.vision
    if layers == "last" or not _is_resnet(config):
        rows, columns = vision.grid
        if layers == "last":
            return [(1 + rows * columns, config.embed_dim)]
        return [(vision.class_tokens + rows * columns, vision.width * len(block_levels(vision.layers)))]
    most = stage_grid(vision)
    finest = [tuple(side * 2 ** (3 - stage) for side in vision.grid) for stage in range(4)]
    return [(*map(min, own, most), 4 * vision.width * 2**stage) for stage, own in enumerate(finest)]


def spread(parts: list, config: CLIPConfig):
    """Parts of `image_parts`, NumPy arrays → (B, N, W): coarser maps repeated, all side by side, in float32.

    What is one part stays in the numbers that it is kept in: the network widens what it reads.
    """
    if parts[0].ndim == 3:
        return parts[0]
    arrays = [np.asarray(part, np.float32) for part in parts]
    rows, columns = stage_grid(config.vision)
    full = [a.repeat(rows // a.shape[1], axis=1).repeat(columns // a.shape[2], axis=2) for a in arrays]
    return np.concatenate(full, axis=3).reshape((len(full[0]), rows * columns, -1))


def _is_resnet(config: CLIPConfig) -> bool:
    return isinstance(config.vision, ResNetConfig)


def _averaged(maps, grid: tuple[int, int]):
    """(B, C, H, W) → the same with at most `grid` rows and columns, each the mean of a block."""
    B, C, H, W = maps.shape
    high, wide = max(H // grid[0], 1), max(W // grid[1], 1)
    return maps.reshape((B, C, H // high, high, W // wide, wide)).mean(dims=[3, 5])
