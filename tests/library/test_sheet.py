"""The contact sheet: the photos that it says, in the sections, colours and words that it says."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jclip.errors import ConfigError, DataError
from jclip.report import contact_sheet as sheet_module
from jclip.report.contact_sheet import (
    BAR,
    BARS,
    CARD,
    GAP,
    OTHERS,
    RIGHT,
    TILE,
    TITLE,
    TRACK,
    WRONG,
    check_sheet,
    write_sheet,
)
from jclip.report.predictions import Predictions
from jclip.report.tags import Tags
from jclip.report.tiles import sections, tag_tiles

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (200, 0, 200), (0, 200, 200)]
CERTAINTY = [0.7, 0.5, 0.9, 0.45, 0.6, 0.8]  # of the six photos
HOSTILE = '<b>&"x"'
NAMES = ("a_cat", HOSTILE, "dog", "rat")


@pytest.fixture
def photos(tmp_path):
    """Six photos, each of one colour."""
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{i}.png")
    return tuple(str(tmp_path / f"{i}.png") for i in range(6))


@pytest.fixture
def predictions(photos):
    """Photo i's best class is i % 4; of the rest, the next class has 70 %, the one after 20 %, the last 10 %."""
    scores = [np.roll([p, 0.7 * (1 - p), 0.2 * (1 - p), 0.1 * (1 - p)], i % 4) for i, p in enumerate(CERTAINTY)]
    return Predictions(photos, NAMES, np.log(scores))


class Page(HTMLParser):
    """What a page says, in its order: tags and attributes, and the texts of those that have a class or a name."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []  # (tag or its class, text)
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(dict(attrs).get("class", tag))

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def said(self, kind: str) -> list[str]:
        return [text for place, text in self.texts if place == kind]

    def having(self, kind: str) -> list[dict]:
        return [attrs for _, attrs in self.tags if attrs.get("class") == kind]

    def photos(self) -> list[Image.Image]:
        uris = [attrs["src"].removeprefix("data:image/jpeg;base64,") for tag, attrs in self.tags if tag == "img"]
        return [Image.open(io.BytesIO(base64.b64decode(uri, validate=True))) for uri in uris]


def sheet_of(tmp_path, *args, **options) -> Page:
    write_sheet(tmp_path / "s.html", *args, **options)
    return Page((tmp_path / "s.html").read_text(encoding="utf-8"))


def test_photos_stand_in_order_with_right_and_wrong_in_their_colours(tmp_path, photos):
    predictions = Predictions(photos[:3], ("a", "b"), np.array([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0]]))
    write_sheet(tmp_path / "s.png", predictions, labels=[0, 1, -1])
    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    for i, colour in enumerate(COLOURS[:3]):
        x = GAP + i * (TILE + GAP)
        assert tuple(sheet[GAP + TILE // 2, x + TILE // 2]) == colour
        below = sheet[GAP + TILE + 1 :, x : x + TILE].reshape(-1, 3)
        nearest = [np.abs(below - np.array(colour)).sum(axis=1).min() for colour in (RIGHT, WRONG)]
        assert [one < 50 for one in nearest] == [i == 0, i == 1]  # a font's strokes may be thinner than a pixel
    write_sheet(tmp_path / "one.jpg", predictions, count=1)
    assert Image.open(tmp_path / "one.jpg").format == "JPEG" and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "count, least, most",
    [(24, [3, 1, 4], [2, 5, 0]), (4, [3, 1], [2, 5]), (3, [3, 1], [2]), (1, [3], [])],
)
def test_the_least_and_the_most_certain_photos(count, least, most, predictions):
    wanted = {title: rows for title, rows in {"least certain": least, "most certain": most}.items() if rows}
    shown = sections(predictions, count=count, choice="certainty")
    assert {s.title: [predictions.photos.index(t.photo) for t in s.tiles] for s in shown} == wanted


def test_equally_certain_photos_stand_once_and_the_earlier_first(photos):
    shown = sections(Predictions(photos, ("a", "b"), np.zeros((6, 2))), count=4, choice="certainty")
    assert [[photos.index(t.photo) for t in s.tiles] for s in shown] == [[0, 1], [2, 3]]
    assert shown[0].span == "50.0 %"


def test_a_picture_of_certainty_has_bars_as_long_as_the_probabilities(predictions, tmp_path):
    labels = [-1, 1, 1, 3, 0, 0]  # photo 3 is right, 5 is wrong
    write_sheet(tmp_path / "s.png", predictions, labels, choice="certainty")
    sheet = np.asarray(Image.open(tmp_path / "s.png")).astype(int)
    columns = [(sheet.shape[1] - 3 * CARD) // 4 * (i + 1) + CARD * i for i in range(3)]
    track = (sheet[:, columns[0] + CARD - 1] == TRACK).all(-1)  # where bars would end, if a class had 100 %
    tops = [y for y in range(1, len(track)) if track[y : y + BAR].all() and not track[y - 1]]
    assert len(tops) == 6  # three classes in each of two rows of cards
    for place, photo in enumerate([3, 1, 4, 2, 5, 0]):
        x, rows = columns[place % 3], tops[place // 3 * 3 :][:3]
        assert tuple(sheet[rows[0] - CARD // 2, x + CARD // 2]) == COLOURS[photo]
        verdict = {3: "right", 1: "right", 4: "right", 2: "wrong", 5: "wrong", 0: "open"}[photo]
        p = CERTAINTY[photo]
        for y, share, colour in zip(
            rows, (p, 0.7 * (1 - p), 0.2 * (1 - p)), (BARS[verdict], OTHERS, OTHERS), strict=True
        ):
            strip = sheet[y, x : x + CARD]
            length = round(share * CARD)
            assert (strip[:length] == colour).all() and (strip[length:] == TRACK).all()


def test_a_page_shows_sections_classes_and_bars_in_order(predictions, tmp_path):
    shown = sheet_of(tmp_path, predictions, choice="certainty", count=4)
    assert shown.said("h2") == ["least certain", "most certain"] and shown.said("h1") == ["4 of 6 photos"]
    assert shown.said("file") == ["3.png", "1.png", "2.png", "5.png"]
    for photo, i in zip(shown.photos(), [3, 1, 2, 5], strict=True):
        assert photo.format == "JPEG" and max(photo.size) <= 160
        assert np.abs(np.subtract(photo.getpixel((20, 20)), COLOURS[i])).max() < 5
    assert list(zip(shown.said("span"), shown.said("b"), strict=True))[:4] == [
        ("rat", "45.0 %"), ("a cat", "38.5 %"), (HOSTILE, "11.0 %"), (HOSTILE, "50.0 %"),
    ]  # fmt: skip
    assert [attrs["style"] for attrs in shown.having("bar")][:3] == ["width:45.0%", "width:38.5%", "width:11.0%"]
    assert shown.said("small") == ["45.0 – 50.0 %", "80.0 – 90.0 %"]


def test_a_page_shows_right_from_wrong_and_the_true_class(predictions, tmp_path):
    shown = sheet_of(tmp_path, predictions, [0, 1, 1, 3, -1, 0])
    verdicts = [attrs["class"] for tag, attrs in shown.tags if tag == "figure"]
    assert verdicts == ["right", "right", "wrong", "right", "open", "wrong"] and not shown.said("h2")
    assert shown.said("true") == [f"is {HOSTILE}", "is a cat"]
    assert "green: right, red: wrong" in shown.said("p")[0]
    assert sheet_of(tmp_path, predictions, [-1] * 6).said("p") == ["4 classes"]


def test_a_page_needs_nothing_but_itself(photos, tmp_path):
    folder = tmp_path / "a&b"
    folder.mkdir()
    hostile = str(folder / '"><script>x&y;.png')
    Image.new("RGB", (400, 200)).save(hostile)
    asked = Predictions((hostile,), NAMES, np.array([[0.0, 9, 1, 2]]), prompts=('a "photo" of <b>',))
    shown = sheet_of(tmp_path, asked)
    assert shown.tags[0] == ("html", {"lang": "en"}) and not shown.open and shown.said("title")
    assert {tag for tag, _ in shown.tags}.isdisjoint({"script", "link", "iframe", "a"})
    assert shown.said("span")[0] == HOSTILE and shown.said("prompt") == ['a "photo" of <b>']
    assert shown.said("file") == ['"><script>x&y;.png'] and shown.having("file")[0]["title"] == hostile
    assert [attrs["alt"] for tag, attrs in shown.tags if tag == "img"] == ['"><script>x&y;.png']
    assert shown.photos()[0].size == (160, 80)
    text = re.sub(r"base64,[^\"]*", "", (tmp_path / "s.html").read_text(encoding="utf-8"))
    assert not re.search(r"//|url\(|@import", text)
    assert len(re.findall(r'\b(?:src|href)="(?!data:image/jpeg;)', text)) == 0


def test_an_unknown_photo_is_marked_and_neither_right_nor_wrong(photos, tmp_path):
    scores = np.log([[0.4, 0.6], [0.1, 0.9]])
    asked = Predictions(photos[:2], ("cat", "dog"), scores, unknown=0.7)
    shown = sheet_of(tmp_path, asked, labels=[1, 1])
    assert [attrs["class"] for tag, attrs in shown.tags if tag == "figure"] == ["unknown", "right"]
    assert shown.said("badge") == ["unknown"] and shown.said("true") == ["is dog"]
    assert "unknown: no class reaches 70 %" in shown.said("p")[0]
    for choice, corner in (("spread", (GAP, GAP)), ("certainty", (20 + TITLE, 20))):
        for predictions in (asked, replace(asked, unknown=0.0)):
            write_sheet(tmp_path / "s.png", predictions, labels=[1, 1], choice=choice)
            sheet = np.asarray(Image.open(tmp_path / "s.png"))
            down, across = corner
            assert (tuple(sheet[down + 12, across + 6]) == BARS["unknown"]) == (predictions is asked)


def test_long_names_stay_within_their_tile(photos, tmp_path):
    long = Predictions(photos[:1], ("a name " * 20, "b"), np.array([[3.0, 0.0]]))
    for choice, gap, side in (("spread", GAP, TILE), ("certainty", 20, CARD)):
        write_sheet(tmp_path / "s.png", long, [1], choice=choice)
        sheet = np.asarray(Image.open(tmp_path / "s.png"))
        assert sheet.shape[1] == side + 2 * gap and (sheet[:, -gap + 1 :] == 255).all()


def test_a_machine_without_the_usual_fonts(predictions, tmp_path, monkeypatch):
    """Matplotlib's own font serves then, with every sign that a sheet itself uses."""
    monkeypatch.setattr(sheet_module, "find_font", lambda: None)
    monkeypatch.setattr(sheet_module, "_font", sheet_module._font.__wrapped__)
    write_sheet(tmp_path / "s.png", predictions, choice="certainty")
    assert Path(sheet_module._font(11).path).name == "DejaVuSans.ttf"


@pytest.mark.parametrize("name", ["s.png", "s.JPG", "s.webp", "s.html"])
@pytest.mark.parametrize("choice", ["spread", "certainty"])
def test_no_photos_and_few_classes(name, choice, photos, tmp_path):
    none = Predictions((), ("a", "b"), np.zeros((0, 2)), unknown=0.5)
    write_sheet(tmp_path / name, none, [], choice=choice)
    if name.endswith("html"):
        assert Page((tmp_path / name).read_text(encoding="utf-8")).said("h1") == ["no photos"]
    else:
        assert Image.open(tmp_path / name).format == {"png": "PNG", "JPG": "JPEG", "webp": "WEBP"}[name[2:]]
    write_sheet(tmp_path / name, Predictions(photos[:1], ("a\nb", "b"), np.zeros((1, 2))), choice=choice)


@pytest.mark.parametrize("name", ["s.png", "s.html"])
def test_a_photo_that_stopped_to_decode_is_reported_and_nothing_is_written(name, predictions, tmp_path):
    (tmp_path / name).write_text("older")
    (tmp_path / "4.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"4\.png does not decode"):
        write_sheet(tmp_path / name, predictions, choice="certainty")
    assert (tmp_path / name).read_text() == "older" and not list(tmp_path.glob(".*"))


def test_what_no_sheet_can_be_is_refused(predictions, tmp_path):
    check_sheet(None)
    check_sheet("x.HTML")
    with pytest.raises(ConfigError, match="x.gif: a sheet is written as one of .png, .jpg, .jpeg, .webp, .html"):
        check_sheet("x.gif")
    with pytest.raises(ConfigError, match="unknown choice 'best' of photos .known: spread, certainty"):
        write_sheet(tmp_path / "s.png", predictions, choice="best")
    with pytest.raises(ConfigError, match="a sheet of 0 photos"):
        write_sheet(tmp_path / "s.png", predictions, count=0)
    assert not (tmp_path / "s.png").exists()


@pytest.mark.parametrize("choice", ["spread", "certainty"])
def test_sheets_show_photos_as_the_model_saw_them(tmp_path, choice):
    rows = np.zeros((40, 60, 3), np.uint8)
    rows[:20], rows[20:] = (200, 0, 0), (0, 0, 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, image, tag in (("lying", rows, exif), ("stored", rows, None), ("turned", np.rot90(rows, -1), None)):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "a.png", exif=tag)
    for kind in ("png", "html"):
        sheets = {}
        for name, upright in (("lying", True), ("turned", True), ("lying", False), ("stored", True)):
            predictions = Predictions((str(tmp_path / name / "a.png"),), ("cat", "dog"), np.array([[1.0, 2.0]]))
            file = tmp_path / f"s.{kind}"
            write_sheet(file, predictions, choice=choice, upright=upright)
            sheets[name, upright] = file.read_bytes().replace(f"/{name}/".encode(), b"/here/")
        assert sheets["lying", True] == sheets["turned", True] != sheets["lying", False] == sheets["stored", True]


@pytest.mark.parametrize(
    ("scores", "bars"),
    [
        ([[0.2, 0.9]], [0.9, 0.2]),  # shares of 1 as they are
        ([[-1.0, 3.0]], [1.0, 0.0]),  # beyond 0 to 1: of their range
        ([[0.5, 3.0]], [1.0, 0.0]),
        ([[2.0, 2.0]], [1.0, 1.0]),  # no range
    ],
)
def test_bars_of_tags_are_shares_of_one_or_of_the_range(scores, bars):
    tags = Tags(("a.png",), ("cat", "dog"), np.array(scores), threshold=-9.0)
    (part,) = tag_tiles(tags)
    assert [share for _, share in part.tiles[0].best] == bars
