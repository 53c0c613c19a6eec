"""Drawings of boxes and of where a network looks: what is painted where, labels that can be read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jclip.data.box_views import centred
from jclip.errors import ConfigError
from jclip.report import box_drawing
from jclip.report.box_drawing import COLOURS, DrawnBox, draw_attention, draw_boxes, font_for, wrapped


def painted(drawing: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Corners of the pixels of that colour."""
    rows, columns = np.nonzero((np.asarray(drawing) == colour).all(axis=2))
    return columns.min(), rows.min(), columns.max(), rows.max()


@pytest.mark.parametrize("grey", [0, 255])
def test_boxes_are_drawn_in_colours_of_their_own_around_what_they_name(grey):
    photo = Image.new("RGB", (600, 500), (grey,) * 3)
    boxes = [(50, 100, 200, 300), (350, 20, 590, 490)]
    drawing = draw_boxes(photo, [DrawnBox(box, "") for box in boxes])
    assert drawing.size == photo.size and photo.getpixel((50, 100)) == (grey,) * 3
    for box, colour in zip(boxes, COLOURS, strict=False):
        assert np.abs(np.array(painted(drawing, colour)) - box).max() <= 3
        inner = drawing.crop([box[0] + 6, box[1] + 6, box[2] - 6, box[3] - 6])
        assert np.ptp(np.asarray(inner)) == 0  # nothing is painted over the thing


def test_small_photos_are_enlarged_and_boxes_with_them():
    drawing = draw_boxes(Image.new("RGB", (64, 32)), [DrawnBox((16, 8, 32, 16), "")])
    assert drawing.size == (480, 240)
    assert np.abs(np.array(painted(drawing, COLOURS[0])) - (120, 60, 240, 120)).max() <= 3


def test_the_line_of_what_may_be_absent_is_broken():
    photo = Image.new("RGB", (600, 500), (90, 90, 90))
    counts = []
    for sure in (True, False):
        drawing = draw_boxes(photo, [DrawnBox((50, 100, 300, 400), "", sure)])
        counts.append((np.asarray(drawing) == COLOURS[0]).all(axis=2).sum())
    assert 0.3 < counts[1] / counts[0] < 0.8


def test_labels_stand_on_the_drawing_and_not_on_each_other():
    taken: list[tuple[float, ...]] = []
    for box in [(0, 0, 50, 50), (0, 0, 50, 50), (560, 460, 600, 500), (560, 470, 600, 500), (0, 0, 600, 500)]:
        left, top = box_drawing._free_place(box, (140, 30), (600, 500), taken)
        plate = (left, top, left + 140, top + 30)
        assert left >= 0 and top >= 0 and plate[2] <= 600 and plate[3] <= 500
        assert not box_drawing._meets(plate, taken)
        taken.append(plate)


def test_long_labels_are_broken_into_lines_and_cut():
    font = font_for("word", 16)
    lines = wrapped("the man with the red hat beside the tree", font, 150)
    assert 1 < len(lines) <= 3 and " ".join(lines) == "the man with the red hat beside the tree"
    for text in ("word " * 99, "x" * 999, "紅" * 99):
        lines = wrapped(text, font, 120)
        assert len(lines) == 3 and lines[-1].endswith("…") and all(font.getlength(line) <= 120 for line in lines)
    assert draw_boxes(Image.new("RGB", (500, 20)), [DrawnBox((0, 0, 9, 9), "word " * 99)]).size == (500, 20)


def test_a_font_with_the_letters_is_chosen_and_a_lack_is_said_once(monkeypatch, capsys):
    letters = {"one.ttf": "ab", "two.ttf": "abж"}
    monkeypatch.setattr(box_drawing, "_letters_of", lambda path: frozenset(letters.get(path, "")))
    monkeypatch.setattr(box_drawing, "FONTS", ("one.ttf",))
    monkeypatch.setattr(box_drawing.Path, "is_file", lambda self: self.name == "one.ttf")
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: ["two.ttf"])
    find = box_drawing._font_file.__wrapped__
    assert [find(frozenset(text)) for text in ("ab", "aж")] == ["one.ttf", "two.ttf"] and not capsys.readouterr().err
    assert find(frozenset("红")) == "one.ttf" and "no font here has the letters 红" in capsys.readouterr().err


def test_letters_of_fonts_are_read():
    assert {"a", "ж"} <= box_drawing._letters_of(font_for("a", 12).path) and not box_drawing._letters_of(__file__)


def test_heat_lies_where_the_network_looks():
    photo, weights = Image.new("RGB", (200, 100), (128, 128, 128)), np.zeros((8, 8))
    weights[3, 6] = 0.4  # in the square of 64: x 48 to 56, y 24 to 32; the photo has y 16 to 48
    panel = np.asarray(draw_attention(photo, [("", weights, centred(photo.size, 64))]), float)
    warm = panel[..., 0] - panel[..., 2]
    row, column = np.unravel_index(warm.argmax(), warm.shape)
    assert panel.shape[:2] == (240, 480) and abs(column - 480 * 52 / 64) < 12 and abs(row - 240 * 12 / 32) < 12
    several = draw_attention(photo, [("a", weights, centred(photo.size, 64))] * 5)
    assert several.size == (4 * 480, 2 * 240)


def test_a_drawing_is_written_by_its_ending(tmp_path):
    drawing = Image.new("RGB", (20, 10))
    for name in ("a, b.png", "a.jpg", "a.webp"):
        box_drawing.save_drawing(tmp_path / name, drawing)
        assert Image.open(tmp_path / name).size == (20, 10)
    with pytest.raises(ConfigError, match="a drawing is written as one of"):
        box_drawing.save_drawing(tmp_path / "a.gif", drawing)
