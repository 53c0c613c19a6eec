"""Windows that slide over a photo, as boxes: several scales and shapes, evenly, exactly as published, or of a map. NumPy.

A box is (left, top, right, bottom) in pixels or cells, right and bottom not included, as Pillow's `crop` takes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import numpy as np

from jclip.errors import ConfigError

Mode = Literal["even", "seed"]
Shapes = Literal["all", "unit"]
MODES, SHAPES = map(get_args, (Mode, Shapes))
SCALES = (2, 3, 4)
LEAST = 8  # pixels of a window's side
_UNIT, _LONGER = Fraction(1), Fraction(3, 2)


@dataclass(frozen=True)
class Windows:
    """Boxes (V, 4) int32 and the scale (V,) of each; `skipped` are scales that the photo is too small for."""

    boxes: np.ndarray
    scales: np.ndarray
    skipped: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)


def sliding_windows(
    height: int,
    width: int,
    mode: Mode = "even",
    scales: Sequence[int] = SCALES,
    shapes: Shapes = "all",
    least: int = LEAST,
) -> Windows:
    """The windows of a photo of `height` x `width` pixels: by scale, then by shape, then row by row.

    At scale b the shapes are 1 x 1, 1 x 2, 2 x 1, 1 x 1.5, 1.5 x 1 and for b of 3 and more 2 x 3, 3 x 2, height x width
    in units of 1/b; `unit`: 1 x 1 alone. `even`: starts spread over the whole photo, no window twice. `seed`: the
    published arithmetic; unit windows may reach beyond the photo, which is continued by reflection (`cut`), the others
    end at its border. Windows with a side below `least` are left out, and scales b with a photo's side below least · b.
    Raises `ConfigError`.
    """
    check_windows(mode, scales, shapes)
    if height < 1 or width < 1:
        raise ConfigError(f"a photo must have pixels, got {height} x {width}")
    rule = _seed_boxes if mode == "seed" else _even_boxes
    boxes: dict[tuple[int, int, int, int], int] = {}
    found, skipped = [], []
    for b in scales:
        if min(height, width) < least * b:
            skipped.append(b)
            continue
        for tall, wide in shapes_of(b, shapes):
            found += [(box, b) for box in rule(height, width, b, tall, wide) if _large(box, least)]
    if mode == "even":
        for box, b in found:
            boxes.setdefault(box, b)
        found = [*boxes.items()]
    return Windows(
        np.array([box for box, _ in found], np.int32).reshape(-1, 4),
        np.array([b for _, b in found], np.int32),
        tuple(skipped),
    )


def map_windows(rows: int, columns: int, scale: int, shapes: Shapes = "all") -> Windows:
    """The `even` windows of one scale on a feature map of `rows` x `columns` cells, in cells (`dense`).

    For a network that is run once on the photo enlarged `scale` times: a unit window is as many cells as the network's map
    of a single crop.
    """
    return sliding_windows(rows, columns, "even", (scale,), shapes, least=1)


def check_windows(mode: str, scales: Sequence[int], shapes: str) -> None:
    """Raises `ConfigError` for an unknown mode, scales that are no different integers from 2, and unknown shapes."""
    if mode not in MODES:
        raise ConfigError(f"windows must be one of {', '.join(MODES)}, got {mode!r}")
    if shapes not in SHAPES:
        raise ConfigError(f"shapes of windows must be one of {', '.join(SHAPES)}, got {shapes!r}")
    if not scales or len({*scales}) < len(scales) or not all(isinstance(b, int) and 2 <= b <= 32 for b in scales):
        raise ConfigError(f"scales of windows must be different integers in [2, 32], got {[*scales]}")


def shapes_of(b: int, shapes: Shapes = "all") -> list[tuple[Fraction, Fraction]]:
    """Height and width of each shape at scale b, in units of 1/b."""
    pairs = [(1, 1)]
    if shapes == "all":
        pairs += [(1, 2), (2, 1), (1, _LONGER), (_LONGER, 1)]
        pairs += [(2, 3), (3, 2)] if b >= 3 else []
    return [(Fraction(tall), Fraction(wide)) for tall, wide in pairs]


def _large(box: tuple[int, int, int, int], least: int) -> bool:
    left, top, right, bottom = box
    return right - left >= least and bottom - top >= least


def _even_boxes(height: int, width: int, b: int, tall: Fraction, wide: Fraction) -> Iterator[tuple[int, int, int, int]]:
    bh, bw = int(height * tall / b), int(width * wide / b)
    for top in _even_starts(height, bh, b, tall):
        for left in _even_starts(width, bw, b, wide):
            yield left, top, left + bw, top + bh


def _even_starts(whole: int, side: int, b: int, units: Fraction) -> list[int]:
    """round(k (whole - side) / (n - 1)), halves upwards: n = 2b for a side of one unit, else one each half side."""
    room = whole - side
    if side < 1 or not room:
        return [0] * (side > 0)
    n = 2 * b if units == _UNIT else -(-2 * room // side) + 1
    return sorted({(2 * k * room + n - 1) // (2 * (n - 1)) for k in range(n)})


def _seed_boxes(height: int, width: int, b: int, tall: Fraction, wide: Fraction) -> Iterator[tuple[int, int, int, int]]:
    (bh, sh, rows), (bw, sw, columns) = _seed_steps(height, b, tall), _seed_steps(width, b, wide)
    padded = tall == wide == _UNIT
    for i in range(rows):
        for j in range(columns):
            top, left = i * sh, j * sw
            bottom, right = (top + bh, left + bw) if padded else (min(top + bh, height), min(left + bw, width))
            if bottom > top and right > left:
                yield left, top, right, bottom


def _seed_steps(whole: int, b: int, units: Fraction) -> tuple[int, int, int]:
    """Side, stride and number of windows along one axis. The stride counts (b - 1) sides also of longer ones, so that many
    of these begin outside of the photo: as published."""
    side, count = int(whole * units / b), int(2 * b / units)
    return side, (b - 1) * side // (count - 1) + 1, count


def reflected(start: int, end: int, length: int) -> np.ndarray:
    """Places start … end - 1 of an axis of `length`, those beyond its end mirrored at its last: 0 1 2 3 2 1 0 1 …"""
    places = np.arange(start, end)
    if length == 1:
        return np.zeros_like(places)
    period = 2 * (length - 1)
    folded = places % period
    return np.where(folded < length, folded, period - folded)


def cut(pixels: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """The pixels (H, W, …) of a box; beyond the right and lower border by reflection, the border itself not repeated."""
    left, top, right, bottom = map(int, box)
    if bottom <= pixels.shape[0] and right <= pixels.shape[1]:
        return pixels[top:bottom, left:right]
    rows, columns = reflected(top, bottom, pixels.shape[0]), reflected(left, right, pixels.shape[1])
    return pixels[rows[:, None], columns]
