"""Image-caption pairs: the files that people have, and the embedded world."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from jclip.config import CaptionConfig
from jclip.data import shapes
from jclip.data.captions import ahead, read_pairs
from jclip.errors import ConfigError, DataError


@pytest.fixture
def images(tmp_path):
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (9 + i, 8), colour).save(tmp_path / f"图 {i}.png")
    return tmp_path


FILES = {
    "a.csv": 'filepath,title\n图 0.png,"a red, red thing"\n图 1.png,green\n图 2.png,green\n',
    "a.tsv": "filepath\ttitle\n图 0.png\ta red, red thing\n图 1.png\tgreen\n图 2.png\tgreen\n",
    "a.jsonl": '{"filepath": "图 0.png", "title": "a red, red thing"}\n{"filepath": "图 1.png", "title": "green"}\n'
    '{"filepath": "图 2.png", "title": "green"}\n',
    "a.txt": "图 0.png$white$a red, red thing\n图 1.png$x,y$green\n图 2.png$z$green\n",
}


@pytest.mark.parametrize("name", FILES)
def test_formats(images, name):
    (images / name).write_text(FILES[name], encoding="utf-8")
    pairs = read_pairs(CaptionConfig(train=str(images / name)), "train", (8, 8), 0)
    texts, meanings = pairs.texts(range(3))
    assert texts == ["a red, red thing", "green", "green"] and meanings[1] == meanings[2] != meanings[0]
    made = pairs.batches([2, 0, 1], 0, 2, lambda image, row: np.full((1, 3, 1, 1), 10 * row + image.width, np.float32))
    assert [(rows.tolist(), x[:, 0, 0, 0].tolist()) for rows, x in made] == [([2, 0], [31.0, 9.0]), ([1], [20.0])]
    assert read_pairs(CaptionConfig(train=str(images / name)), "val", (8, 8), 0) is None


def test_a_broken_image_stops_or_is_skipped_and_reported_once(images, capsys):
    (images / "图 1.png").write_bytes(b"nonsense")
    (images / "a.csv").write_text(FILES["a.csv"], encoding="utf-8")

    def rows_of(on_error):
        pairs = read_pairs(CaptionConfig(train=str(images / "a.csv"), on_error=on_error), "train", (8, 8), 0)
        made = [pairs.batches([2, 1, 0], epoch, 2, lambda image, row: np.zeros((1, 3, 1, 1))) for epoch in range(2)]
        return [rows.tolist() for batches in made for rows, _ in batches]

    assert rows_of("skip") == [[2, 0], [2, 0]]
    assert capsys.readouterr().err.count("图 1.png does not decode") == 1
    with pytest.raises(DataError, match="图 1.png does not decode"):
        rows_of("stop")


def test_other_columns_and_another_root(images, tmp_path_factory):
    table = tmp_path_factory.mktemp("elsewhere") / "b.csv"
    table.write_text("image,text\n图 0.png,x\n", encoding="utf-8")
    config = CaptionConfig(train=str(table), root=str(images), image_key="image", caption_key="text")
    assert read_pairs(config, "train", (8, 8), 0).texts([0])[0] == ["x"]
    with pytest.raises(DataError, match=r"lacks the column filepath, title \(has image, text\): set data.image_key"):
        read_pairs(CaptionConfig(train=str(table)), "train", (8, 8), 0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "filepath,title\nno.png,x\n", r"1 of 1 images are missing: .*no.png"),
        ("a.csv", "filepath,title\n", "lists no image with its caption"),
        ("a.jsonl", '{"filepath": "x"}\n', "line 1: must be a JSON object with filepath and title"),
        ("a.jsonl", "nonsense\n", "line 1: must be a JSON object"),
        ("a.txt", "x.png$a$b\nnonsense\n", r"line 2: must be `image\$attributes\$caption`"),
        (
            "a.parquet",
            "x",
            "captions must be .csv, .tsv, .jsonl, .txt, .token, .json, .tar .or `shapes`., got .parquet",
        ),
    ],
)
def test_bad_files_are_reported(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_pairs(CaptionConfig(train=str(tmp_path / name)), "train", (8, 8), 0)


def test_absent_file_and_bad_numbers(tmp_path):
    with pytest.raises(DataError, match="can't read .*no.csv: No such file"):
        read_pairs(CaptionConfig(train=str(tmp_path / "no.csv")), "train", (8, 8), 0)
    with pytest.raises(ConfigError, match="data.scenes must be at least 2, got 1"):
        CaptionConfig(scenes=1)


def test_the_embedded_world_is_new_in_each_epoch_and_the_same_again():
    config = CaptionConfig(train="shapes", val="shapes", scenes=60, val_scenes=40, easy_epochs=4)
    train = read_pairs(config, "train", (32, 32), seed=3)
    assert len(train) == 60 and not train.paths
    first, again, later = (train.texts(range(60), epoch)[0] for epoch in (0, 0, 9))
    assert first == again != later
    one = [np.asarray(train.render(7, epoch)) for epoch in (0, 0, 9)]
    assert np.array_equal(one[0], one[1]) and not np.array_equal(one[0], one[2])
    assert all(" and " not in text for text in first), "the first epoch shows single things"
    assert sum(" and " in t or " of a" in t or "above" in t or "below" in t for t in later) > 15
    hidden = {" ".join(p) for p in shapes.UNSEEN_PAIRS}
    assert not [t for epoch in range(8) for t in train.texts(range(60), epoch)[0] if any(h in t for h in hidden)]
    val = read_pairs(config, "val", (32, 32), seed=3)
    assert val.texts(range(40), 0) == val.texts(range(40), 5) and len(val) == 40
    assert not set(val.texts(range(40))[0]) <= set(first)


@pytest.mark.parametrize(
    "easy, epoch, alone, styles, radius",
    [(4, 0, 100, 1, 0.26), (4, 1, 88, 1, 0.235), (4, 2, 75, 1, 0.21), (4, 3, 63, 4, 0.185), (4, 4, 50, 4, 0.16),
     (4, 9, 50, 4, 0.16), (0, 0, 50, 4, 0.16)],
)  # fmt: skip
def test_scenes_get_harder_by_epochs(easy, epoch, alone, styles, radius, monkeypatch):
    """Of a hundred scenes so many show one thing; several styles come when the second half begins."""
    asked = []

    def spy(seed, **settings):
        asked.append(settings)
        return drawn

    drawn = shapes.draw_scene((0,), count=(1, 1))
    monkeypatch.setattr(shapes, "draw_scene", spy)
    read_pairs(CaptionConfig(train="shapes", scenes=200, easy_epochs=easy), "train", (8, 8), 0).texts(range(200), epoch)
    counts = [settings["count"] for settings in asked[:200]]
    assert counts == ([(1, 1)] * alone + [(2, 4)] * (100 - alone)) * 2
    assert {s["styles"] for s in asked} == {shapes.SEEN_STYLES[:styles]} and styles <= len(shapes.SEEN_STYLES)
    assert all(s["radius"] == (pytest.approx(radius), 0.36) for s in asked)


def test_scenes_come_in_batches_of_all_rows():
    pairs = read_pairs(CaptionConfig(train="shapes", scenes=9), "train", (8, 8), 0)
    made = list(pairs.batches([4, 0, 8, 2, 6], 0, 2, lambda image, row: np.full((1, 3, 8, 8), row, np.float32)))
    assert [rows.tolist() for rows, _ in made] == [[4, 0], [8, 2], [6]]
    assert [x[:, 0, 0, 0].tolist() for _, x in made] == [[4, 0], [8, 2], [6]]


def test_what_is_made_ahead_comes_in_order_and_errors_come_through():
    assert list(ahead(lambda i: i * i, 5)) == [0, 1, 4, 9, 16] and list(ahead(lambda i: i, 0)) == []

    def make(i):
        if i == 2:
            raise DataError("x.png does not decode")
        return i

    made = ahead(make, 4)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(DataError, match=r"x.png does not decode"):
        next(made)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "filepath,title\n图 0.png,x\n图 1.png\n", "line 3: must have 2 fields .filepath, title., got 1"),
        ("a.csv", "filepath,title\n图 1.png,x\n图 0.png,a,b\n", "line 3: must have 2 fields .filepath, title., got 3"),
        ("a.csv", "filepath,title\n图 0.png,x\n图 1.png,\n", "line 3: must have a caption as text, got ''"),
        ("a.csv", "filepath,title\n图 0.png,x\n图 1.png,NaN\n", "line 3: must have a caption as text, got 'NaN'"),
        ("a.csv", "filepath,title\n图 0.png,x\n,y\n", "line 3: must have an image as text"),
        ("a.csv", "filepath,title,title\n图 0.png,x,y\n", "column 'title' must be unique"),
        ("a.csv", f'filepath,title\n图 0.png,x\n图 1.png,"{"y" * 200_000}\n', "line 3: is not valid CSV"),
        ("a.csv", "filepath,title\n图 0.png,x\nno.png,y\n", r"1 of 2 images are missing: .*no.png \(first in line 3"),
        ("a.tsv", "filepath\ttitle\n图 0.png\tx\n图 1.png\n", "line 3: must have 2 fields"),
        ("a.csv", "filepath| title\n图 0.png| x\n图 1.png| a | b\n", "line 3: must have 2 fields .*, got 3"),
        (
            "a.jsonl",
            '{"filepath": "图 0.png", "title": "x"}\n{"filepath": "图 1.png", "title": null}\n',
            "line 2: .* got None",
        ),
        (
            "a.jsonl",
            '{"filepath": "图 0.png", "title": "x"}\n{"filepath": "图 1.png", "title": ["y"]}\n',
            "must have a cap",
        ),
        (
            "a.jsonl",
            '{"filepath": "图 0.png", "title": "x"}\n{"filepath": NaN, "title": "y"}\n',
            "line 2: .*NaN is no",
        ),
        ("a.jsonl", '{"filepath": "图 0.png", "title": "x"}\n[1]\n', "line 2: must be a JSON object .*, got .1"),
        (
            "a.txt",
            "图 0.png$white$x\n图 1.png$red$costs $5\n",
            r"line 2: must be `image\$attributes\$caption`, got 4 fields",
        ),
        ("a.txt", "图 0.png$x\n图 2.png$z\n图 1.png$red$y\n", r"line 3: must be `image\$caption`, got 3 fields"),
    ],
)
def test_rows_that_are_broken_stop_or_are_left_out_and_counted(images, capsys, name, text, message):
    (images / name).write_text(text, encoding="utf-8")
    if "column" not in message:
        pairs = read_pairs(CaptionConfig(train=str(images / name), on_error="skip"), "train", (8, 8), 0)
        line = capsys.readouterr().err
        assert "x" in pairs.texts(range(len(pairs)))[0] or name == "a.csv"
        assert line.count("\n") == 1 and f"1 of {len(pairs) + 1} rows left out (first left out: " in line
    with pytest.raises(DataError, match=message):
        read_pairs(CaptionConfig(train=str(images / name)), "train", (8, 8), 0)


def test_captions_keep_what_belongs_to_them(images):
    (images / "a.csv").write_bytes('filepath,title\r\n"图 0.png","a ""red"",\r\nlong thing"\r\n'.encode())
    assert read_pairs(CaptionConfig(train=str(images / "a.csv")), "train", (8, 8), 0).texts([0])[0] == [
        'a "red",\nlong thing'
    ]
    (images / "b.csv").write_text("image_name| n| comment\n图 1.png| 0| a, green thing\n", encoding="utf-8")
    config = CaptionConfig(train=str(images / "b.csv"), image_key="image_name", caption_key="comment")
    assert read_pairs(config, "train", (8, 8), 0).texts([0])[0] == ["a, green thing"]
    lines = [{"filepath": ".\\图 0.png", "title": "a\u2028b"}, {"filepath": str(images / "图 2.png"), "title": "c"}]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (images / "c.jsonl").write_text(text, encoding="utf-16")
    assert read_pairs(CaptionConfig(train=str(images / "c.jsonl")), "train", (8, 8), 0).texts([0, 1])[0] == [
        "a\u2028b",
        "c",
    ]


def test_a_file_of_broken_rows_alone_is_refused(images):
    (images / "a.csv").write_text("filepath,title\nno.png,x\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"lists no image with its caption .first left out: .*line 2: there is no image"
    ):
        read_pairs(CaptionConfig(train=str(images / "a.csv"), on_error="skip"), "train", (8, 8), 0)
