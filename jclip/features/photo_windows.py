"""A photo's windows as pixels: what `jclip score` and `jclip tag` cut out of it, before it is brought to a model's size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image

from jclip.functional.windows import Mode, Shapes, Windows, cut, sliding_windows

Item = TypeVar("Item")
SHORTEST = 32  # pixels: photos with a shorter side are enlarged to it before windows are cut


def photo_windows(image: Image.Image, mode: Mode, scales: Sequence[int], shapes: Shapes) -> tuple[np.ndarray, Windows]:
    """Pixels (H, W, 3) of a photo, enlarged where a side has fewer than `SHORTEST`, and its windows as boxes in them."""
    rgb = _large_enough(image.convert("RGB"))
    return np.asarray(rgb), sliding_windows(rgb.height, rgb.width, mode, scales, shapes)


def in_parts(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`, the last one shorter."""
    part: list[Item] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def window_of(pixels: np.ndarray, box: Sequence[int]) -> Image.Image:
    """One window of these pixels, continued by reflection where it reaches beyond them."""
    return Image.fromarray(cut(pixels, box))


def _large_enough(rgb: Image.Image) -> Image.Image:
    if min(rgb.size) >= SHORTEST:
        return rgb
    return rgb.resize((max(SHORTEST, rgb.width), max(SHORTEST, rgb.height)), Image.Resampling.BICUBIC)
