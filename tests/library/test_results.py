"""Results files: what people hand in, byte for byte."""

from __future__ import annotations

import csv
import json
import zipfile

import numpy as np
import pytest

from jclip.errors import ConfigError, DataError
from jclip.results import Predictions, check_challenge, check_format, show, table, write_predictions, zip_challenge

SCORES = np.log(
    np.array([[0.5, 0.3, 0.2, 1e-9, 1e-9, 1e-9], [0.1, 0.2, 0.3, 0.15, 0.05, 0.2], [0.2, 0.2, 0.2, 0.2, 0.1, 0.1]])
)
P = Predictions(("b/image_10.jpg", "a/image 9.jpg", "图.png"), tuple("abcdef"), SCORES)


def test_the_challenges_lines(tmp_path):
    write_predictions(P, str(tmp_path / "sub" / "result.txt"))
    assert (tmp_path / "sub" / "result.txt").read_bytes() == (
        "image 9.jpg 2 1 5 3 0\nimage_10.jpg 0 1 2 3 4\n图.png 0 1 2 3 4\n".encode()
    )


def test_the_challenges_lines_refuse_two_photos_of_one_name(tmp_path):
    twice = Predictions(("a/x.jpg", "b/x.jpg"), tuple("abcdef"), SCORES[:2])
    with pytest.raises(DataError, match="'x.jpg' stands there twice"):
        write_predictions(twice, str(tmp_path / "r.txt"))
    assert not list(tmp_path.iterdir())


HANDED_IN = {
    "b.jpg 0 1 2 3 4\na.jpg 0 1 2 3 4\n": "not those of the 2 photos",  # not in order
    "a.jpg 0 1 2 3 4\n": "not those of the 2 photos",
    "a.jpg 0 1 2 3 4\na.jpg 0 1 2 3 4\nb.jpg 0 1 2 3 4\n": "not those of the 2 photos",
    "a.jpg 0 1 2 3 4\nb.jpg 0 1 2 3 1\n": "b.jpg has 0 1 2 3 1, expected five different classes",
    "a.jpg 0 1 2 3 4\nb.jpg 0 1 2 3\n": "b.jpg has 0 1 2 3, expected five",
    "a.jpg 0 1 2 3 4\nb.jpg 0 1 2 3 x\n": "b.jpg has 0 1 2 3 x, expected five",
}


@pytest.mark.parametrize("text, message", HANDED_IN.items())
def test_what_is_handed_in_is_checked(text, message, tmp_path):
    (tmp_path / "r.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        check_challenge(tmp_path / "r.txt", ["photos/b.jpg", "photos/a.jpg"])


def test_equal_results_give_equal_zips(tmp_path):
    write_predictions(P, str(tmp_path / "one.txt"))
    check_challenge(tmp_path / "one.txt", P.photos)
    (tmp_path / "two.txt").write_bytes((tmp_path / "one.txt").read_bytes())
    one, two = (zip_challenge(tmp_path / name) for name in ("one.txt", "two.txt"))
    assert one.read_bytes() == two.read_bytes() and one.name == "one.zip"
    with zipfile.ZipFile(one) as archive:
        assert archive.read("result.txt") == (tmp_path / "one.txt").read_bytes()


def test_csv_and_json(tmp_path):
    write_predictions(P, str(tmp_path / "r.csv"))
    rows = list(csv.reader((tmp_path / "r.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0][:3] == ["photo", "class_1", "probability_1"] and len(rows[0]) == 11
    assert rows[1][:5] == ["b/image_10.jpg", "a", "0.500000", "b", "0.300000"] and rows[3][0] == "图.png"
    write_predictions(P, str(tmp_path / "r.json"))
    told = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert told[1]["photo"] == "a/image 9.jpg"
    assert told[1]["predictions"][0] == {"class": "c", "label": 2, "probability": 0.3}


def test_an_ending_that_names_no_format_is_told_before_the_work():
    check_format(None)
    with pytest.raises(ConfigError, match=r"r.xls: .*none of .csv, .json, .txt"):
        check_format("r.xls")


def test_fewer_classes_than_asked_for():
    assert Predictions(("x",), ("a", "b"), np.array([[1.0, 2.0]]), top=5).best.tolist() == [[1, 0]]


def test_the_table_counts_wide_characters():
    text = table(["photo", "top 1"], [["图.png", "a"], ["b.png", "cc"]])
    assert text.splitlines() == ["photo   top 1", "------  -----", "图.png  a", "b.png   cc"]
    assert show(P, limit=2).splitlines()[-1] == "… and 1 more (--out FILE has them all)"
