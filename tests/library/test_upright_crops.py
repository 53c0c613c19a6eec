"""A photo that its camera held sideways is trained on as people see it."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from PIL import Image, ImageOps

from jclip.data.augment import AUGMENTS, Views
from jclip.data.preprocess import Preprocess

TURNS = next(f.name for f in fields(Preprocess) if f.name in ("upright", "exif_rotate"))
ORIENTATION = 0x0112


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", [name for name, pipeline in AUGMENTS.items() if pipeline])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_photo_is_trained_on_upright(name, orientation, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    noise(61, 40).save(tmp_path / "turned.png", exif=exif)
    turned = Image.open(tmp_path / "turned.png")
    upright = ImageOps.exif_transpose(turned)
    upright.getexif().clear()
    assert upright.size == ((61, 40) if orientation == 3 else (40, 61))
    views = Views(Preprocess(size=(20, 24), **{TURNS: True}), AUGMENTS[name], seed=1, numbers=(0, 1, 2))
    assert np.array_equal(views(turned, 5), views(upright, 5))
    assert not np.array_equal(views(turned, 5), views(noise(61, 40), 5))
