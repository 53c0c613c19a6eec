"""Photos with a box as grounding networks see them: long side to the square's, padded, the box moved along.

CLIP-VG's views (Xiao et al., arXiv 2305.08685), which are TransVG's at 224 pixels. A box is corners x1, y1, x2, y2 in
pixels until it is handed out as centres cx, cy, w, h, shares of the padded square.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from jclip.config import BoxViewConfig
from jclip.functional import boxes

DIRECTIONS = ("left", "right", "top", "bottom", "middle")  # as substrings: "laptop" holds one, too, in the reference
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
TRIES = 20
SMALLEST = 32  # long side in the square


@dataclass(frozen=True)
class Placement:
    """Where a resized picture lies in its padded square of `side` pixels.

    ratio: square pixels per pixel of the photo, not rounded; width, height: of the resized picture; left, top: its corner.
    """

    side: int
    ratio: float
    width: int
    height: int
    left: int
    top: int

    def into(self, corners: np.ndarray) -> np.ndarray:
        """Corners (..., 4) in the photo's pixels → centres (..., 4), shares of the square."""
        moved = np.asarray(corners, float) * self.ratio + [self.left, self.top, self.left, self.top]
        return boxes.corners_to_centres(moved) / self.side

    def back(self, centres: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Centres (..., 4), shares of the square → corners (..., 4) in pixels of a photo of size (W, H), cut at its edges."""
        corners = boxes.centres_to_corners(np.asarray(centres, float)) * self.side
        return boxes.clipped((corners - [self.left, self.top, self.left, self.top]) / self.ratio, *size)

    def masked_patches(self, patch: int) -> np.ndarray:
        """(side / patch, side / patch) bool: patches whose middle 2 x 2 pixels are mostly padding, which no token looks at.

        The reference halves its pixel mask bilinearly, without antialiasing, and rounds: only the middle pixels count.
        """
        first = np.arange(self.side // patch) * patch + patch // 2 - 1
        inside = [
            ((first >= low) & (first < low + length)) * 1.0 + ((first + 1 >= low) & (first + 1 < low + length))
            for low, length in ((self.top, self.height), (self.left, self.width))
        ]
        return 4 - np.multiply.outer(*inside) > 2


def fitted(size: tuple[int, int], side: int, long_side: int | None = None) -> tuple[float, int, int]:
    """A photo's size (W, H) → the ratio that makes its long side `long_side` (default: side), new width, new height."""
    ratio = (long_side or side) / max(size)
    return ratio, max(round(size[0] * ratio), 1), max(round(size[1] * ratio), 1)


def centred(size: tuple[int, int], side: int) -> Placement:
    """Where the evaluation puts a photo of size (W, H): long side to the square's, in the middle (.5 goes down)."""
    ratio, width, height = fitted(size, side)
    return Placement(side, ratio, width, height, round((side - width) / 2 - 0.1), round((side - height) / 2 - 0.1))


@dataclass(frozen=True)
class Normalisation:
    """Mean and deviation of the channels: the model's own, or ImageNet's for imported CLIP-VG weights."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def evaluated(photo: Image.Image, side: int, normalisation: Normalisation) -> tuple[np.ndarray, Placement]:
    """The whole photo, bilinear, in a square of zeros: float32 (3, side, side) and where it lies."""
    place = centred(photo.size, side)
    resized = photo.convert("RGB").resize((place.width, place.height), Image.Resampling.BILINEAR)
    return in_square(resized, place, normalisation), place


def in_square(picture: Image.Image, place: Placement, normalisation: Normalisation) -> np.ndarray:
    """A resized RGB picture, normalised, in a square of zeros: float32 (3, side, side)."""
    square = np.zeros((3, place.side, place.side), np.float32)
    pixels = np.asarray(picture, np.float32).transpose(2, 0, 1) / 255
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (normalisation.mean, normalisation.std))
    square[:, place.top : place.top + place.height, place.left : place.left + place.width] = (pixels - mean) / std
    return square


@dataclass(frozen=True)
class BoxAugment(BoxViewConfig):
    """The training view, as its settings say. A photo is never mirrored."""

    def __call__(
        self,
        photo: Image.Image,
        corners: np.ndarray,
        phrase: str,
        side: int,
        normalisation: Normalisation,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray, Placement]:
        """One random view: float32 (3, side, side), the box as centres (4,), and where the picture lies."""
        photo, corners = photo.convert("RGB"), np.asarray(corners, float)
        directed = any(word in phrase.lower() for word in DIRECTIONS)
        if not directed and rng.random() < self.crop:
            photo, corners = self._short_side(photo, corners, rng)
            photo, corners = self._cropped(photo, corners, rng)
        scales = [side - self.scale_step * i for i in range(self.scale_count)]
        scales = [scale for scale in scales if scale >= min(side, SMALLEST)]  # all of those for 224 pixels
        ratio, width, height = fitted(photo.size, side, scales[rng.integers(len(scales))])
        photo = photo.resize((width, height), Image.Resampling.BILINEAR)
        photo = self._blurred(self._jittered(photo, rng), rng)
        place = Placement(side, ratio, width, height, *self._corner(side - width, side - height, rng))
        return in_square(photo, place, normalisation), place.into(corners), place

    def _short_side(self, photo, corners, rng):
        ratio = self.short_sides[rng.integers(len(self.short_sides))] / min(photo.size)
        size = round(photo.width * ratio), round(photo.height * ratio)
        return photo.resize(size, Image.Resampling.BILINEAR), corners * ratio

    def _cropped(self, photo, corners, rng):
        """A crop that passes the check, or after 20 tries the photo as it is."""
        low, high = self.crop_sides
        for _ in range(TRIES):
            width = int(rng.integers(low, min(photo.width, high) + 1))
            height = int(rng.integers(low, min(photo.height, high) + 1))
            top = int(rng.integers(0, photo.height - height + 1))
            left = int(rng.integers(0, photo.width - width + 1))
            cut = boxes.clipped(corners - [left, top, left, top], width, height)
            if self._kept(corners, cut, left, top, width, height):
                return photo.crop((left, top, left + width, top + height)), cut
        return photo, corners

    def _kept(self, corners, cut, left, top, width, height) -> bool:
        x, y = (corners[:2] + corners[2:]) / 2
        if self.crop_check == "reference":
            return x > top and y > left
        inside = left < x < left + width and top < y < top + height
        return bool(inside and (cut[2:] - cut[:2] >= 1).all())

    def _jittered(self, photo, rng):
        if rng.random() < self.jitter_share:
            for kind in rng.permutation(len(ENHANCERS)):
                photo = ENHANCERS[kind](photo).enhance(rng.uniform(1 - self.jitter, 1 + self.jitter))
        return photo

    def _blurred(self, photo, rng):
        if rng.random() < self.blur_share:
            photo = photo.filter(ImageFilter.GaussianBlur(radius=rng.uniform(0.1, 2.0)))
        return photo

    def _corner(self, wide: int, high: int, rng) -> tuple[int, int]:
        if self.translate:
            top = int(rng.integers(0, high + 1))
            return int(rng.integers(0, wide + 1)), top
        return round(wide / 2 - 0.1), round(high / 2 - 0.1)
