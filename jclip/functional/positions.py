"""Position tables for other input sizes: bicubic resampling in float64, equal to torch's with and without antialias.

Two dialects exist and they differ even when enlarging: open_clip and timm resize with antialias (cubic with a = -0.5),
Hugging Face and EVA without (a = -0.75). TagCLIP takes the bilinear kind; towers for photos of any proportions that with
antialias. DINO's and TaI-DPT's code asks torch for a factor,
(h' + 0.1) / h, in the place of a size, and so samples elsewhere: `margin`.
"""

from __future__ import annotations

import numpy as np

KEPT_ROWS = 20  # of a table of text positions, when Long-CLIP stretches it: few captions are longer


def resample_positions(
    table: np.ndarray,
    grid: tuple[int, int],
    new: tuple[int, int],
    antialias: bool = True,
    margin: float = 0.0,
    linear: bool = False,
) -> np.ndarray:
    """(1 + h*w, D) for `grid` (h, w) → (1 + h'*w', D) for `new`; row 0 belongs to the class token and stays.

    A table of h*w rows is of a tower without a class token, as SigLIP's.

    margin: what is added to h' and w' in the factor that cells are sampled by, without antialias. linear: bilinear with
    antialias, see `triangle_matrix`. Raises `ValueError` for a table of another number of rows.
    """
    first = table.shape[0] - grid[0] * grid[1]
    if first not in (0, 1):
        raise ValueError(
            f"a position table of {table.shape[0]} rows does not belong to a grid of {grid[0]} x {grid[1]}"
        )
    if grid == new:
        return table
    cells = table[first:].astype(np.float64).reshape(*grid, -1)
    rows, columns = (
        triangle_matrix(old, to) if linear else bicubic_matrix(old, to, antialias, margin)
        for old, to in zip(grid, new, strict=True)
    )
    cells = np.einsum("Hh,Ww,hwd->HWd", rows, columns, cells, optimize=True)
    return np.concatenate([table[:first], cells.reshape(new[0] * new[1], -1).astype(table.dtype)])


def resample_bilinearly(table: np.ndarray, grid: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """(1 + h*w, D) for `grid` → (1 + h'*w', D) for `new`, each row between four neighbours; row 0 stays."""
    if grid == new:
        return table
    cells = table[1:].reshape(*grid, -1).transpose(2, 0, 1)
    resized = resize_bilinearly(cells, new).reshape(table.shape[1], -1).T
    return np.concatenate([table[:1], resized.astype(table.dtype)])


def resize_bilinearly(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(..., h, w) → (..., *size), as torch's bilinear interpolation (align_corners=False, no antialias), in float64."""
    rows, columns = (bilinear_matrix(old, new) for old, new in zip(maps.shape[-2:], size, strict=True))
    return rows @ maps @ columns.T


def bilinear_matrix(size: int, new: int) -> np.ndarray:
    """(new, size) float64: row i holds the weights of the `size` samples in output i (align_corners=False)."""
    return resample_linearly(np.eye(size), new)


def triangle_matrix(size: int, new: int) -> np.ndarray:
    """(new, size) float64: row i holds the weights of the `size` samples in output i, linear with antialias as torch's.

    Of outputs that are fewer than the samples each is a mean whose weights fall off over `size / new` samples.
    """
    scale = size / new
    centres = (np.arange(new) + 0.5) * scale - 0.5
    weights = np.maximum(0.0, 1 - np.abs(np.arange(size) - centres[:, None]) / max(scale, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def resample_linearly(table: np.ndarray, length: int) -> np.ndarray:
    """(L, D) → (length, D): each row between its two neighbours, as torch's linear interpolation (align_corners=False)."""
    at = np.clip((np.arange(length) + 0.5) * len(table) / length - 0.5, 0, len(table) - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(table) - 1)
    part = (at - low)[:, None]
    return ((1 - part) * table[low] + part * table[high]).astype(table.dtype)


def stretch_fourfold(table: np.ndarray) -> np.ndarray:
    """(L, D) → (4 L - 60, D), CLIP's 77 rows to Long-CLIP's 248: the first twenty stay, each of the others becomes four.

    Rows between two are theirs in quarters; beyond the last row the last step goes on. Zhang et al., arXiv 2403.15378, in
    float64.
    """
    head, tail = table[:KEPT_ROWS], table[KEPT_ROWS:].astype(np.float64)
    steps = np.diff(tail, axis=0)
    steps = np.concatenate([steps, steps[-1:]])
    quarters = np.arange(4)[:, None] / 4
    rows = tail[:, None] + quarters * steps[:, None]
    return np.concatenate([head, rows.reshape(-1, table.shape[1]).astype(table.dtype)])


def bicubic_matrix(size: int, new: int, antialias: bool, margin: float = 0.0) -> np.ndarray:
    """(new, size) float64: row i holds the weights of the `size` samples in output i (align_corners=False)."""
    matrix = np.zeros((new, size))
    scale = size / (new + margin)
    for i in range(new):
        if antialias:
            stretch = max(scale, 1.0)
            centre = (i + 0.5) * scale
            first, last = max(int(centre - 2 * stretch + 0.5), 0), min(int(centre + 2 * stretch + 0.5), size)
            taps = np.arange(first, last)
            weights = _cubic((taps - centre + 0.5) / stretch, a=-0.5)
            matrix[i, taps] = weights / weights.sum()
        else:
            centre = (i + 0.5) * scale - 0.5
            taps = np.floor(centre) + np.arange(-1, 3)
            np.add.at(matrix[i], np.clip(taps, 0, size - 1).astype(int), _cubic(centre - taps, a=-0.75))
    return matrix


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
