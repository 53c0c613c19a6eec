"""The contact sheet: the photos that it says, in the colours that it says."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jclip.errors import ConfigError
from jclip.results import Predictions
from jclip.sheet import GAP, RIGHT, TILE, WRONG, check_sheet, write_sheet


def test_photos_stand_in_order_with_right_and_wrong_in_their_colours(tmp_path):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    for i, colour in enumerate(colours):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{i}.png")
    photos = tuple(str(tmp_path / f"{i}.png") for i in range(3))
    predictions = Predictions(photos, ("a", "b"), np.array([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0]]))
    write_sheet(tmp_path / "s.png", predictions, labels=[0, 1, -1])
    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    for i, colour in enumerate(colours):
        x = GAP + i * (TILE + GAP)
        assert tuple(sheet[GAP + TILE // 2, x + TILE // 2]) == colour
        below = sheet[GAP + TILE + 1 :, x : x + TILE].reshape(-1, 3)
        assert (RIGHT in map(tuple, below)) == (i == 0) and (WRONG in map(tuple, below)) == (i == 1)
    write_sheet(tmp_path / "one.jpg", predictions, count=1)
    assert Image.open(tmp_path / "one.jpg").format == "JPEG" and not list(tmp_path.glob(".*"))


def test_other_endings_are_refused_before_the_work():
    check_sheet(None)
    with pytest.raises(ConfigError, match="x.gif: a sheet is written as one of .png, .jpg"):
        check_sheet("x.gif")
