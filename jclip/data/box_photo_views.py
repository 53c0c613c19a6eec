"""A photo of phrases as networks see it, as one array that may come from another process: whole, or in a training view."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image

from jclip.data.box_views import BoxAugment, Normalisation, Placement, evaluated

_PLACE = 9  # numbers behind the pixels: the box's centres, and where the picture lies


class View(NamedTuple):
    """pixels: float32 (3, side, side). box: centres (4,), shares of the square. place: where the picture lies in it."""

    pixels: np.ndarray
    box: np.ndarray
    place: Placement


@dataclass(frozen=True)
class BoxViews:
    """photo, row → a view as one array of numbers, which `view_of` takes apart.

    augment: None for the whole photo, of which the row counts for nothing; else a row is [number, phrase, x1, y1, x2, y2],
    and (seed, epoch, number) are all that its view's randomness depends on.
    """

    side: int
    normalisation: Normalisation
    augment: BoxAugment | None = None
    seed: int = 0
    epoch: int = 0
    upright: ClassVar[bool] = False  # boxes are of the photo as it is stored
    draft: ClassVar[None] = None

    def __call__(self, photo: Image.Image, row: Any) -> np.ndarray:
        if self.augment is None:
            pixels, place = evaluated(photo, self.side, self.normalisation)
            box = np.zeros(4)
        else:
            number, phrase, *corners = row
            rng = np.random.default_rng((self.seed, self.epoch, number))
            pixels, box, place = self.augment(photo, np.array(corners), phrase, self.side, self.normalisation, rng)
        where = [*box, place.ratio, place.width, place.height, place.left, place.top]
        return np.concatenate([pixels.ravel(), np.array(where, np.float32)])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return (3 * self.side**2 + _PLACE,)

    @property
    def largest(self) -> int:
        """Numbers of the array."""
        return self.shape[0]

    def view_of(self, array: np.ndarray) -> View:
        """The view that the array holds; the placement's ratio is rounded to float32."""
        *box, ratio, width, height, left, top = array[-_PLACE:].tolist()
        place = Placement(self.side, ratio, *map(int, (width, height, left, top)))
        return View(array[:-_PLACE].reshape((3, self.side, self.side)), np.array(box, np.float32), place)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which `from_dict` reads back."""
        return {**asdict(self), "kind": "BoxViews"}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> BoxViews:
        """The inverse of `to_dict`, through JSON as well."""
        given, drawn = values["normalisation"], values["augment"]
        look = Normalisation(tuple(given["mean"]), tuple(given["std"]))
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in (drawn or {}).items()}
        return BoxViews(values["side"], look, BoxAugment(**fields) if drawn else None, values["seed"], values["epoch"])
