"""Image features of each place of a photo beside its pooled feature, for photos of any size that the tower divides.

Guo et al., CVPR 2023, arXiv 2211.12739, read a ResNet so: with F (P, D) the cells of its last feature map,

    cells_p = W_c (W_v F_p + b_v) + b_c            value and output projection of the attention pool at every cell
    pooled  = attention pool of [mean_p F_p; F]    without its table of positions

A ViT gives its patches' value projections in the last block (no attention), or its ordinary output tokens; SigLIP's tower
what its pool would take of each patch alone, or the patches themselves, which are not in the space of texts.
DualCoOp (Sun et al., NeurIPS 2022, arXiv 2206.09541) takes the values of [mean_p F_p; F] plus their positions: P + 1 places.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from jclip.errors import ConfigError
from jclip.functional.positions import resample_positions
from jclip.model import clip
from jclip.model.resnet import ModifiedResNet
from jclip.model.siglip import SigLIPTower
from jclip.model.vit import VisionTransformer
from jclip.runtime import jt

ViTMap = Literal["value", "token"]
Places = Literal["dualcoop", "tai_dpt", "cells"]
SCALED_MARGIN = 0.1  # of TaI-DPT's resampling, see `jclip.functional.positions`
STRIDE = 32  # pixels a side of a ResNet's cell


def dense_map(model: clip.CLIP, pixels, positions: bool = False, vit: ViTMap = "value"):
    """Pooled features (B, E) and those of each place (B, P, E), row by row, of normalised pixels (B, 3, H, W).

    Neither is normalised. positions: of a ResNet, whether its attention pool adds its table of positions: with it the
    pooled feature is that of `encode_image`, without it (as the papers have it) any size is as good as another. A table
    is resampled (bicubic) for sizes that are not the model's; a ViT always adds its own. vit: "value" or "token", see
    `VisionTransformer`; the class token is left out. H and W must be multiples of 32, of a ViT's patch. Raises
    `ConfigError` for other sizes, or a tower without a map.
    """
    if model.config.vision is None:
        raise ConfigError("these weights are a text tower alone: they embed no images")
    x, tower = model.image_input(pixels), model.visual
    if isinstance(tower, ModifiedResNet):
        return _of_resnet(tower, x, _grid(x, STRIDE), model.config.vision.grid, positions)
    vision = model.config.vision
    grid = vision.grid if tuple(x.shape[2:]) == vision.image_size else _grid(x, vision.patch_size)
    if grid == vision.grid:
        return tower(x, dense=vit)
    if isinstance(tower, SigLIPTower) and not vision.any_shape:
        table = _resampled(tower.trunk.pos_embed[0], vision.grid, grid, antialias=False)
        return tower.encode(tower.embed(x, table), dense=vit, patches=grid[0] * grid[1])
    if isinstance(tower, SigLIPTower):
        return tower(x, dense=vit)
    if not isinstance(tower, VisionTransformer):
        H, W = model.config.vision.image_size
        raise ConfigError(f"this image tower takes photos of {H} x {W}, got {x.shape[2]} x {x.shape[3]}")
    table = _resampled(tower.positional_embedding, model.config.vision.grid, grid)
    return tower.encode(tower.embed(x, table), dense=vit, patches=grid[0] * grid[1])


def _of_resnet(tower: ModifiedResNet, x, grid: tuple[int, int], own: tuple[int, int], positions: bool):
    cells, pool = tower.cells(x), tower.attnpool
    tokens = pool.with_mean(cells)
    if positions:
        tokens = tokens + _resampled(pool.positional_embedding, own, grid)
    return pool.attend(tokens), pool.values(cells)


class WindowsOfMap:
    """Pooled features and those of each place of windows of a ResNet's map, from one pass over the whole photo.

    Pixels are (B, 3, H, W). The attention pool, without its positions, reads a window's cells alone; its projections are
    of every cell once, as they are linear (the mean's are the mean of the cells'). Raises `ConfigError` for other towers.
    """

    def __init__(self, model: clip.CLIP, pixels):
        if not isinstance(model.visual, ModifiedResNet):
            raise ConfigError(
                "windows of one map (dense) need a ResNet, whose pool reads any part of it: use even windows"
            )
        x = model.image_input(pixels)
        self.rows, self.columns = _grid(x, STRIDE)
        self._pool, cells = model.visual.attnpool, model.visual.cells(x)
        self._q, self._k, self._v = (p(cells) for p in (self._pool.q_proj, self._pool.k_proj, self._pool.v_proj))
        self._values = self._pool.c_proj(self._v)

    def of(self, photo: int, boxes: np.ndarray):
        """(V, 1 + P, E), not normalised, of windows (V, 4) of one photo that all have the same number of cells P, as
        (left, top, right, bottom) in cells."""
        places = np.stack([
            (np.arange(top, bottom)[:, None] * self.columns + np.arange(left, right)).reshape(-1)
            for left, top, right, bottom in boxes.tolist()
        ])  # fmt: skip
        at = jt.array(places.astype(np.int32))
        q, k, v = (x[photo][at] for x in (self._q, self._k, self._v))  # (V, P, D)
        V, P, D = k.shape
        heads, d = self._pool.heads, D // self._pool.heads
        k, v = (jt.concat([x.mean(dim=1, keepdims=True), x], dim=1).reshape((V, 1 + P, heads, d)) for x in (k, v))
        q = q.mean(dim=1).reshape((V, 1, heads, d)) * d**-0.5
        weights = jt.nn.softmax((k * q).sum(dim=3).float32(), dim=1).cast(v.dtype)
        pooled = self._pool.c_proj((weights.unsqueeze(3) * v).sum(dim=1).reshape((V, D)))
        return jt.concat([pooled.unsqueeze(1), self._values[photo][at]], dim=1)


def value_places(model: clip.CLIP, pixels, places: Places = "dualcoop", vit: ViTMap = "value"):
    """Features (B, P, E) of a photo's places, not normalised, of normalised pixels (B, 3, H, W).

    places: of a ResNet; "dualcoop" its cells and before them their mean, with positions (bicubic, no antialias, where the
    grid is not the model's); "tai_dpt" the same with TaI-DPT's resampling, by factor; "cells" the cells alone, without
    positions. A ViT's places are its patches, see `dense_map`. Raises `ConfigError` as `dense_map` does.
    """
    if model.config.vision is None:
        raise ConfigError("these weights are a text tower alone: they embed no images")
    x, tower = model.image_input(pixels), model.visual
    if not isinstance(tower, ModifiedResNet) or places == "cells":
        return dense_map(model, pixels, False, vit)[1]
    grid, pool, own = _grid(x, STRIDE), tower.attnpool, model.config.vision.grid
    table = pool.positional_embedding
    if grid != own:
        margin = SCALED_MARGIN if places == "tai_dpt" else 0.0
        table = _resampled(table, own, grid, antialias=False, margin=margin)
    return pool.values(pool.with_mean(tower.cells(x)) + table)


def _grid(x, step: int) -> tuple[int, int]:
    """Rows and columns of the map of pixels (B, 3, H, W)."""
    height, width = x.shape[2:]
    if min(height, width) < step or height % step or width % step:
        raise ConfigError(f"height and width must be multiples of {step}, the model's step, got {height} x {width}")
    return height // step, width // step


def _resampled(table, own: tuple[int, int], grid: tuple[int, int], antialias: bool = True, margin: float = 0.0):
    """A table of positions (1 + N, D), or (N, D) without a class token, for another grid, by default as
    `Checkpoint.resized` makes a ViT's."""
    if own == grid:
        return table
    array = resample_positions(table.float32().numpy(), own, grid, antialias, margin)
    return jt.array(np.ascontiguousarray(array)).cast(table.dtype)
