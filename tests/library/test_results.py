"""Results files: what people hand in, byte for byte."""

from __future__ import annotations

import csv
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jclip.errors import ConfigError, DataError
from jclip.readers.spreadsheet import read_csv
from jclip.report.evaluation import write_csv
from jclip.report.predictions import (
    Predictions,
    check_challenge,
    check_format,
    show,
    table,
    write_predictions,
    zip_challenge,
)
from jclip.report.run_table import memory_lines, report

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
    "a.jpg 0 1 2 3 4\nb.jpg 0 1 2 3 1\n": "b.jpg must have five different classes, got 0 1 2 3 1",
    "a.jpg 0 1 2 3 4\nb.jpg 0 1 2 3\n": "b.jpg must have five different classes, got 0 1 2 3",
    "a.jpg 0 1 2 3 4\nb.jpg 0 1 2 3 x\n": "b.jpg must have five different classes, got 0 1 2 3 x",
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
    written = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert written[1]["photo"] == "a/image 9.jpg"
    assert written[1]["predictions"][0] == {"class": "c", "label": 2, "probability": 0.3, "score": -1.203973}
    assert set(written[1]) == {"photo", "predictions"}  # nobody asked for more


def test_an_ending_that_names_no_format_is_reported_before_the_work():
    check_format(None)
    with pytest.raises(ConfigError, match=r"r.xls: .*must be one of .csv, .json, .txt"):
        check_format("r.xls")

    with pytest.raises(ConfigError, match="unknown form 'ids' .known: id_idx"):
        check_format("r.csv", "ids")


@pytest.mark.parametrize("path, message", {"r.json": "r.json: the form id_idx is a .csv", None: "no file"}.items())
def test_the_numbered_form_is_a_csv(path, message, tmp_path):
    check_format(str(tmp_path / "r.CSV"), "id_idx")
    with pytest.raises(ConfigError, match=message):
        check_format(path, "id_idx")
    with pytest.raises(ConfigError, match=message):
        write_predictions(P, path and str(tmp_path / path), "id_idx")
    assert not list(tmp_path.iterdir())


def test_photos_are_numbered_in_natural_order_of_their_paths(tmp_path):
    photos = ("b/1.jpg", "a/10.jpg", "a/2.jpg", "a/1.png")
    scores = np.log([[0.6, 0.2, 0.2], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.4, 0.4, 0.2]])
    write_predictions(Predictions(photos, ("x", "y", "z"), scores), str(tmp_path / "all.csv"), "id_idx")
    assert (tmp_path / "all.csv").read_bytes() == b"id_idx,label\n0,0\n1,2\n2,1\n3,0\n"
    write_predictions(Predictions(photos, ("x", "y", "z"), scores, 1, 0.5), str(tmp_path / "some.csv"), "id_idx")
    assert (tmp_path / "some.csv").read_bytes() == b"id_idx,label\n0,-1\n1,-1\n2,1\n3,0\n"


UNSURE = Predictions(P.photos, P.classnames, SCORES, top=2, unknown=0.3001, prompts=("an a", 'a "c", or so', ""))


def test_an_unknown_photo_is_reported_in_every_form(tmp_path):
    assert UNSURE.known.tolist() == [True, False, False] and P.known.all()
    write_predictions(UNSURE, str(tmp_path / "r.csv"))
    head, *rows = csv.reader((tmp_path / "r.csv").read_text(encoding="utf-8").splitlines())
    assert head == ["photo", "class_1", "probability_1", "class_2", "probability_2", "prompt"]
    assert rows[0] == ["b/image_10.jpg", "a", "0.500000", "b", "0.300000", "an a"]
    assert rows[1] == ["a/image 9.jpg", "unknown", "0.300000", "b", "0.200000", 'a "c", or so']
    write_predictions(UNSURE, str(tmp_path / "r.json"))
    written = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [entry["unknown"] for entry in written] == [False, True, True]
    assert [entry["prompt"] for entry in written] == list(UNSURE.prompts)
    assert written[1]["predictions"][0]["class"] == "c"  # what it would have been
    lines = show(UNSURE).splitlines()
    assert "a 50.0 %" in lines[2] and "unknown (c 30.0 %)  b 20.0 %" in lines[3]
    for name, predictions in (("asked", Predictions(P.photos, P.classnames, SCORES, 5, 0.9)), ("not", P)):
        write_predictions(predictions, str(tmp_path / f"{name}.txt"))
    assert (tmp_path / "asked.txt").read_bytes() == (tmp_path / "not.txt").read_bytes()


def test_a_photo_at_the_threshold_is_known():
    assert Predictions(("x",), ("a", "b"), np.zeros((1, 2)), unknown=0.5).known.all()


def test_logarithms_of_tiny_probabilities(tmp_path):
    """Of sums over prompts: they give the probabilities back, ties go to the lowest class, 0 has no logarithm."""
    scores = np.array([[-690.0, 0.0, -690.0], [-np.inf, np.log(0.25), np.log(0.75)]])
    p = Predictions(("x", "y"), ("a", "b", "c"), scores, unknown=0.8)
    assert p.best.tolist() == [[1, 0, 2], [2, 1, 0]] and p.known.tolist() == [True, False]
    np.testing.assert_array_equal(p.probabilities[0], np.exp(scores[0]))
    write_predictions(p, str(tmp_path / "r.json"))
    written = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    assert [q["score"] for q in written[0]["predictions"]] == [0.0, -690.0, -690.0]
    assert written[1]["predictions"][2] == {"class": "a", "label": 0, "probability": 0.0, "score": None}


def test_no_photos(tmp_path):
    none = Predictions((), ("a", "b"), np.zeros((0, 2), np.float32), unknown=0.5)
    written = {"r.csv": 1, "r.json": 1, "r.txt": 0, "n.csv": 1}
    for name, lines in written.items():
        write_predictions(none, str(tmp_path / name), "id_idx" if name == "n.csv" else "")
        assert len((tmp_path / name).read_text().splitlines()) == lines
    assert len(show(none).splitlines()) == 2


def test_rows_and_prompts_that_are_not_the_photos():
    with pytest.raises(ValueError, match="2 photos, but 3 rows of scores and 0 prompts"):
        Predictions(("x", "y"), tuple("abcdef"), SCORES)
    with pytest.raises(ValueError, match="and 1 prompts"):
        Predictions(P.photos, P.classnames, SCORES, prompts=("a",))


def test_fewer_classes_than_asked_for():
    assert Predictions(("x",), ("a", "b"), np.array([[1.0, 2.0]]), top=5).best.tolist() == [[1, 0]]


def test_what_is_left_out_of_the_table_is_counted():
    assert "more" not in show(P, limit=3) and show(P, limit=2).endswith("\n… and 1 more (--out FILE has them all)")


def test_the_table_counts_wide_characters():
    text = table(["photo", "top 1"], [["图.png", "a"], ["b.png", "cc"]])
    assert text.splitlines() == ["photo   top 1", "------  -----", "图.png  a", "b.png   cc"]
    assert show(P, limit=2).splitlines()[-1] == "… and 1 more (--out FILE has them all)"


NAMES = (
    "plain", "=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2", "-2-3", "-", "'quoted", "'=x", "''-1", "\ttab", "a\nb",
    'say "x", y', "", "\rx", "＝全角", "'", "1e5", "-1.5e-3", "./=x",
)  # fmt: skip


def test_csv_runs_nothing_in_a_spreadsheet_and_reads_back_equal(tmp_path):
    """Names of classes and photos are text, never a formula; numbers stay as they are."""
    photos = tuple(f"{name}{i}" for i, name in enumerate(NAMES))
    count = len(NAMES)
    scores = np.eye(count)[:, ::-1]
    predictions = Predictions((*photos[1:], "gbk-\udcb2\udce2.jpg"), NAMES, scores, top=2, prompts=NAMES)
    write_predictions(predictions, str(tmp_path / "r.csv"))
    for cell in (cell for row in raw_cells(tmp_path / "r.csv") for cell in row if cell[:1] in (*"=+-@\t\r\n＝",)):
        assert np.isfinite(float(cell))
    rows = read_csv(tmp_path / "r.csv")
    assert [row["prompt"] for row in rows] == [*NAMES]
    assert [Path(row["photo"]) for row in rows] == [*map(Path, predictions.photos)]
    assert [row["class_1"] for row in rows] == [*NAMES[::-1]]
    assert rows[-1]["photo"].encode("utf-8", "surrogateescape") == b"gbk-\xb2\xe2.jpg"
    write_csv(tmp_path / "t.csv", ["a", *NAMES], [[name, *range(count)] for name in NAMES])
    assert [*read_csv(tmp_path / "t.csv")[0]] == ["a", *NAMES] and [r["a"] for r in read_csv(tmp_path / "t.csv")] == [
        *NAMES
    ]


def raw_cells(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as f:
        return [*csv.reader(f)]


def test_contests_files_have_names_byte_for_byte(tmp_path):
    photos = ("=1.jpg", "-2.jpg", "gbk-\udcb2.jpg", "a\u2028b.jpg", "x\x0by.jpg")
    predictions = Predictions(photos, tuple("abcdef"), np.tile(np.arange(6.0), (5, 1)))
    write_predictions(predictions, str(tmp_path / "r.txt"))
    assert {line.split(b" ")[0] for line in (tmp_path / "r.txt").read_bytes().split(b"\n")[:-1]} == {
        *map(os.fsencode, photos)
    }
    check_challenge(tmp_path / "r.txt", photos)
    write_predictions(predictions, str(tmp_path / "r.json"))
    assert [entry["photo"] for entry in json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))] == [*photos]
    with pytest.raises(DataError, match=r"a photo on each line, and 'a\\nb.jpg' has a line break: rename it"):
        write_predictions(Predictions(("a\nb.jpg",), tuple("abcdef"), np.ones((1, 6))), str(tmp_path / "n.txt"))
    assert not (tmp_path / "n.txt").exists()


def test_tables_print_nothing_that_a_terminal_obeys():
    text = table(
        ["a\x1b[31m"], [["b\nc"], ["\u202egpj.exe"], ["x" * 10_000_000], ["\ud800"], ["می\u200cخواهم"], ["全\u3000角"]]
    )
    assert (
        len(text.splitlines()) == 8 and all(c.isprintable() or c in "\n\u200c\u3000" for c in text) and len(text) < 3000
    )
    assert "\\x1b[31m" in text and "b\\nc" in text and "\\u202egpj" in text and "می\u200cخواهم" in text


def accuracies(prefix: str, top1: float, correct: int, count: int) -> dict[str, float]:
    return {f"{prefix}top1": top1, f"{prefix}correct": correct, f"{prefix}count": count}


BELOW = "below zero-shot on validation: nothing was gained by adapting"


def test_a_runs_table_by_hand():
    metrics = {
        **accuracies("val_", 0.75, 9, 12), **accuracies("zero_shot_val_", 0.5, 6, 12),
        **accuracies("test_", 0.6, 12, 20), **accuracies("zero_shot_test_", 0.55, 11, 20),
        "test_ece": 0.3, "alpha": 0.001, "lr": 0.0009876, "beta": 0.0, "best_epoch": 3,
    }  # fmt: skip
    assert [line.rstrip() for line in report(metrics).splitlines()] == [
        "top-1      val               test",
        "---------  ----------------  -----------------",
        "zero-shot  0.5000 (6 of 12)  0.5500 (11 of 20)",
        "this run   0.7500 (9 of 12)  0.6000 (12 of 20)",
        "alpha 0.0010, lr 0.000988, beta 0.0000, best_epoch 3",
    ]
    assert report({"steps": 7}) == "steps 7"


@pytest.mark.parametrize("adapted, below", [(0.5, False), (0.49, True), (0.51, False)])
def test_a_run_below_zero_shot_says_so_and_an_equal_one_does_not(adapted, below):
    metrics = {**accuracies("val_", adapted, 1, 2), **accuracies("zero_shot_val_", 0.5, 1, 2)}
    assert (report(metrics).splitlines()[-1] == BELOW) == below
    assert BELOW not in report(accuracies("val_", adapted, 1, 2))


def test_memory_as_far_as_it_is_known():
    assert memory_lines({}) == [] and memory_lines({"host": 812}) == ["peak memory 812 MiB"]
    assert memory_lines({"host": 812, "gpu": 2048}) == ["peak memory 812 MiB, of the GPU 2048 MiB"]
