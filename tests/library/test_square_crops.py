"""A model that sees photos padded to squares is trained on crops of the padded photos."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jclip.data.augment import AUGMENTS, Augment, Views, random_crop_box
from jclip.data.preprocess import Preprocess

WIDE = Image.fromarray(np.random.default_rng(0).integers(1, 256, (30, 71, 3), dtype=np.uint8))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_padded_photo_is_cropped(seed):
    """Beside a photo that is padded by hand: 20 black rows above and below, of the odd 41 that are lacking."""
    padded = Image.new("RGB", (71, 70))
    padded.paste(WIDE, (0, 20))
    box = random_crop_box(70, 71, (0.9, 1.0), (3 / 4, 4 / 3), np.random.default_rng((seed, 0, 5)))
    top, left, height, width = box
    crop = padded.crop((left, top, left + width, top + height)).resize((24, 24), Image.Resampling.BICUBIC)
    p = Preprocess(size=(24, 24), resize="square-pad")
    made = Views(p, AUGMENTS["wise_ft"], seed)(WIDE, 5)[0]
    assert np.array_equal(made, p.normalise(crop))
    black = Preprocess(size=(24, 24)).normalise(Image.new("RGB", (24, 24)))[:, 0, 0]
    assert np.allclose(made[:, 0], black[:, None]) and not np.allclose(made[:, 12], black[:, None])


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest-pad"])
def test_other_ways_of_resizing_crop_the_photo_itself(resize):
    made = Views(Preprocess(size=(24, 24), resize=resize), Augment(area=(0.9, 1.0), flip=0.0), 3)(WIDE, 5)
    plain = Views(Preprocess(size=(24, 24)), Augment(area=(0.9, 1.0), flip=0.0), 3)(WIDE, 5)
    assert np.array_equal(made, plain)
