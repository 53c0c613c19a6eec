"""How large a photo becomes for towers that take any proportions: SigLIP 2's NaFlex towers, and FG-CLIP 2's.

Both sides are scaled alike, then each is stretched to whole patches, and there are as many patches as the photo may have.
How many that are is one number for NaFlex; of FG-CLIP 2's steps it is the first that the photo's own patches do not exceed,
as its authors' examples choose it. Tschannen et al., 2025, arXiv 2502.14786; Xie et al., 2025, arXiv 2510.10921.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

FG_CLIP_STEPS = (128, 256, 576, 784, 1024)
_LEAST, _MOST, _STEP = 1e-6, 100.0, 1e-5  # of the scale: the reference's range, and where its search ends


def size_in_patches(height: int, width: int, patch: int, counts: Sequence[int]) -> tuple[int, int]:
    """(H, W) in pixels, multiples of `patch`, of a photo of `height` x `width` that may have `counts` patches."""
    return grid_within(height, width, patch, count_for(height, width, patch, counts))


def count_for(height: int, width: int, patch: int, counts: Sequence[int]) -> int:
    """The first of `counts` that the photo's whole patches do not exceed; the last where all are fewer."""
    own = (height // patch) * (width // patch)
    return next((count for count in counts if own <= count), counts[-1])


def grid_within(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """(H, W) in pixels at the largest scale at which the patches, begun ones counted whole, are at most `most`.

    The scale is searched by bisection as the reference does it, to the same last step: near a patch's edge an exact
    solution would differ from it.
    """
    low, high = _LEAST, _MOST
    while high - low >= _STEP:
        scale = (low + high) / 2
        rows, columns = (_side(length * scale, patch) // patch for length in (height, width))
        low, high = (scale, high) if rows * columns <= most else (low, scale)
    return _side(height * low, patch), _side(width * low, patch)


def _side(length: float, patch: int) -> int:
    return max(1, math.ceil(length / patch)) * patch
