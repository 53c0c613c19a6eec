"""Predicted boxes of any file against true ones: which is for which, all figures, the sheet of the worst. Without Jittor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jclip.cli import main
from jclip.data import predicted_boxes
from jclip.data.box_files import write_box_file
from jclip.data.box_predictions import write_coco_results, write_prediction_lines
from jclip.data.box_rows import BoxRow, boxes_of
from jclip.errors import ConfigError, DataError
from jclip.report.box_measures import FOUND, TRUE, measured_boxes, write_worst
from tests.library.test_box_files import put

ROWS = [
    BoxRow("a.png", (0.0, 0.0, 10.0, 10.0), "dog", (60, 50), id=0),
    BoxRow("a.png", (20.0, 10.0, 40.0, 30.0), "the left one of two dogs", (60, 50), id=1),
    BoxRow("b c.png", (5.0, 5.0, 55.0, 45.0), "sky", (60, 50), id=2),
    BoxRow("b c.png", None, "a cat", (60, 50), id=3),
]
FOUND_BOXES = np.array([[0, 0, 10, 5], [22, 10, 42, 30], [5, 5, 15, 15], [1, 2, 3, 4]], float)
IOUS = [0.5, 18 * 20 / (2 * 400 - 18 * 20), 100 / 2000]


def test_figures_are_those_of_hand(close):
    measured = measured_boxes(ROWS, FOUND_BOXES[:, None], present=[0.9, 0.4, 0.8, 0.6])
    m = measured.metrics
    close(measured.overlaps, IOUS, "closed_form")
    assert (m["acc@0.5"], m["acc@0.25"], m["acc@0.75"], m["acc@0.9"]) == (2 / 3, 2 / 3, 1 / 3, 0)
    close(m["mean_iou"], np.mean(IOUS), "closed_form")
    close(m["cumulative_iou"], (50 + 360 + 100) / (100 + 440 + 2000), "closed_form")
    assert (m["count"], m["absent"], m["present_auroc"]) == (3, 1, 2 / 3)
    p, n, z = 2 / 3, 3, 1.959963984540054
    spread = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    close(
        [m["acc_low"], m["acc_high"]],
        (p + z * z / (2 * n)) / (1 + z * z / n) + spread * np.array([-1, 1]),
        "closed_form",
    )
    groups = {name: (g["count"], g["acc"]) for name, g in measured.groups.items()}
    assert groups == {
        "1-3 words": (2, 0.5), "4-6 words": (1, 1.0), "with a direction word": (1, 1.0), "without": (2, 0.5),
        "small box": (1, 1.0), "medium box": (1, 1.0), "large box": (1, 0.0),
    }  # fmt: skip
    for text in ("0.6667", "95 % interval", "with a direction word"):
        assert text in measured.tables()


def test_giou_and_the_best_of_several():
    away = np.array([[50, 40, 60, 50]], float)
    ranked = [
        np.concatenate([away, FOUND_BOXES[:1]]), FOUND_BOXES[1:2],
        np.concatenate([away] * 6 + [boxes_of(ROWS[2:3])]), FOUND_BOXES[3:],
    ]  # fmt: skip
    m = measured_boxes(ROWS, ranked).metrics
    assert (m["acc@0.5"], m["acc@0.5_top5"], m["acc@0.5_top10"]) == (1 / 3, 2 / 3, 1.0)
    beside = np.array([[[1.8, 1.8, 11.8, 11.8]]])  # IoU 67.24 / 132.76 = .506, less 6.48 / 139.24 of the hull .460
    for criterion, right in (("iou", 1.0), ("giou", 0.0)):
        m = measured_boxes(ROWS[:1], beside, criterion=criterion, thresholds=(0.45,)).metrics
        assert m["acc@0.5"] == right and m["acc@0.45"] == 1 and m["criterion"] == criterion


def test_the_square_cuts_true_boxes_to_integers_and_found_ones_at_its_edges(close):
    raw = (100.7, 50.2, 200.9, 120.6)
    row = BoxRow("a.jpg", (100.7, 50.2, 301.6, 170.8), "x", (640, 427), box_raw=raw, box_raw_format="xywh")
    found = np.array([[100, 50, 300, 170]], float)
    square = measured_boxes([row], found[:, None], frame="square")
    assert square.overlaps[0] == pytest.approx(1.0, abs=1e-12)  # the cut box exactly
    assert measured_boxes([row], found[:, None]).overlaps[0] < 0.995
    wide = BoxRow("a.jpg", (0.0, 100.0, 640.0, 300.0), "x", (640, 427))
    outside = np.array([[-64.0, -500.0, 640.0, 300.0]])  # the square begins 107 pixels above the photo
    got = measured_boxes([wide], outside[:, None], frame="square").overlaps[0]
    top = -(224 - 149) // 2 / (224 / 640)  # 37 rows of padding, see Golden 640 x 427
    assert got == pytest.approx(640 * 200 / (640 * (300 + 37 / 0.35)), rel=1e-9) and top < -100
    with pytest.raises(ConfigError, match="frame square must know each photo's size, got none of a.jpg: give --root"):
        measured_boxes([BoxRow("a.jpg", (0.0, 0.0, 1.0, 1.0), "x")], found[:, None], frame="square")
    with pytest.raises(ConfigError, match="there must be rows with a box"):
        measured_boxes(ROWS[3:], FOUND_BOXES[3:, None])


def written(folder: Path, kind: str) -> Path:
    """The predictions in a file of that kind."""
    if kind == "lines":
        write_prediction_lines(folder / "p.jsonl", ROWS, FOUND_BOXES, np.array([0.5, 0.25, 1, 0]))
        return folder / "p.jsonl"
    if kind == "coco":
        write_coco_results(folder / "p.json", ROWS, FOUND_BOXES)
        return folder / "p.json"
    pairs = [*zip(ROWS, FOUND_BOXES.tolist(), strict=True)]
    if kind == "ground":  # what `jclip ground --json` prints
        found = [
            {"photo": f"/x/{image}", "width": 60, "height": 50, "method": "network",
             "found": [{"phrase": r.phrase, "box": b, "xywh": [0, 0, 1, 1], "support": 0.1, "present": 0.5}
                       for r, b in pairs if r.image == image]}
            for image in ("b c.png", "a.png")
        ]  # fmt: skip
        return put(folder / "p.jsonl", found, lines=True)
    values = [{"photo": f"/else/{r.image}", "phrase": r.phrase.upper(), "box": b} for r, b in reversed(pairs)]
    return put(folder / "p.json", values)


@pytest.mark.parametrize("kind", ["lines", "coco", "ground", "run"])
def test_predictions_of_each_form_find_their_rows(kind, tmp_path):
    found = predicted_boxes.read_predicted_boxes(written(tmp_path, kind))
    kept, own = predicted_boxes.matched(found, ROWS, "true.jsonl")
    assert kept == [0, 1, 2, 3] and [len(ps) for ps in own] == [1] * 4
    assert np.array_equal(np.array([ps[0].box for ps in own]), FOUND_BOXES)


def test_several_boxes_of_a_row_stand_by_score(tmp_path):
    values = [{"row": 0, "bbox": [0, 0, 9, n + 1], "score": score} for n, score in enumerate((0.1, 0.9, 0.9, 0.5))]
    kept, (own,) = predicted_boxes.matched(
        predicted_boxes.read_predicted_boxes(put(tmp_path / "x.json", values)), ROWS[:1], "t"
    )
    assert kept == [0] and [p.box[3] for p in own] == [2, 3, 4, 1]


def test_the_command_measures_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("the photos, all").mkdir()
    Image.new("RGB", (60, 50), (90, 90, 200)).save("the photos, all/a.png")
    write_box_file("true.jsonl", ROWS)
    path = written(tmp_path, "lines")
    arguments = ["measure-boxes", str(path), "true.jsonl"]
    assert main([*arguments, "--out", "m.json", "--at", "0.6"]) == 0
    printed = capsys.readouterr()
    assert "1 row without a box" in printed.err and "written: m.json" in printed.out
    found = json.loads(Path("m.json").read_text())
    assert found["acc@0.5"] == 2 / 3 and found["acc@0.6"] == 1 / 3 and found["groups"]["large box"]["count"] == 1
    assert main(["measure-boxes", str(path), "--out", "own.json"]) == 0  # the file brings its true boxes along
    assert json.loads(Path("own.json").read_text())["mean_iou"] == found["mean_iou"]
    Image.new("RGB", (60, 50)).save("the photos, all/b c.png")
    assert main([*arguments, "--root", "the photos, all", "--worst", "worst.png", "--worst-count", "2"]) == 0
    assert "worst.png (2 phrases)" in capsys.readouterr().out
    assert main([*arguments, "--root", "the photos, all", "--worst", "w.html"]) == 0
    page = Path("w.html").read_text()
    assert page.count("<figure") == 3 and page.index("b c.png") < page.index("a.png") and ">0.05<" in page


def test_the_sheet_has_both_boxes_where_they_are(tmp_path):
    Image.new("RGB", (60, 50), (90, 90, 200)).save(tmp_path / "a.png")
    measured = measured_boxes(ROWS[1:2], np.array([[[5.0, 30, 15, 45]]]))
    assert write_worst(tmp_path / "w.png", measured, tmp_path) == 1
    sheet = np.asarray(Image.open(tmp_path / "w.png").convert("RGB"), int)
    at = {}
    for name, colour in (("true", TRUE), ("found", FOUND)):
        rows, columns = np.nonzero(np.abs(sheet - colour).sum(axis=2) < 60)
        at[name] = columns.min(), rows.min(), columns.max(), rows.max()
    scale, left = 192 / 60, at["true"][0] - 20 * 192 / 60  # a card is 192 pixels wide
    for name, box in (("true", (20, 10, 40, 30)), ("found", (5, 30, 15, 45))):
        assert abs(at[name][2] - at[name][0] - (box[2] - box[0]) * scale) < 4
        assert abs(at[name][3] - at[name][1] - (box[3] - box[1]) * scale) < 4
        assert abs(at[name][0] - left - box[0] * scale) < 4
    assert abs(at["found"][1] - at["true"][1] - 20 * scale) < 4


WRONG = {
    "another row": ([{"row": 9, "bbox": [0, 0, 1, 1]}], r"entry 0: must be for a row of .*true.jsonl"),
    "of other data": (
        [{"id": 0, "phrase": "cat", "predicted": [0, 0, 1, 1]}],
        "entry 0: must be for row 0 .* of other data",
    ),
    "another phrase": ([{"image": "a.png", "phrase": "hen", "box": [0, 0, 1, 1]}], "entry 0: must be for a row of"),
    "too few": ([{"row": 0, "bbox": [0, 0, 1, 1]}], r"true.jsonl, line 2: has no prediction .* --common"),
    "flipped": ([{"row": 0, "bbox": [9, 9, -1, 1]}], "entry 0: bbox must not be flipped .* --box-format xyxy"),
    "three numbers": ([{"row": 0, "bbox": [9, 9, 1]}], "entry 0: bbox must be four finite numbers"),
    "NaN": ('[{"row": 0, "bbox": [9, NaN, 1, 1]}]', "NaN is not a number"),
    "no box": ([{"row": 0, "phrase": "x"}], "entry 0: must have a box, predicted or bbox or box"),
    "no row": ([{"bbox": [9, 9, 1, 1]}], "entry 0: must name its row, or image and phrase"),
    "a row of text": ([{"row": "0", "bbox": [9, 9, 1, 1]}], "entry 0: row must be a whole number"),
    "a phrase of numbers": ([{"image": "a.png", "phrase": 5, "box": [9, 9, 10, 10]}], "entry 0: phrase must be text"),
    "a score of text": ([{"row": 0, "bbox": [9, 9, 1, 1], "score": "high"}], "entry 0: score must be a number"),
    "an object": ({"predictions": []}, "must be JSON lines, or a list of predictions"),
    "none": ([], "has no predictions"),
    "a number": ([5], "entry 0: must be an object"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_predictions_are_one_line(what, tmp_path, capsys):
    given, said = WRONG[what]
    write_box_file(tmp_path / "true.jsonl", ROWS)
    path = tmp_path / "p.json"
    path.write_text(given if isinstance(given, str) else json.dumps(given))
    with pytest.raises(DataError, match=said):
        predicted_boxes.matched(predicted_boxes.read_predicted_boxes(path), _rows(tmp_path), tmp_path / "true.jsonl")
    assert main(["measure-boxes", str(path), str(tmp_path / "true.jsonl")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def _rows(folder: Path):
    from jclip.data.box_files import read_box_file

    return read_box_file(folder / "true.jsonl").rows


def test_what_only_one_file_has_is_left_out_when_asked(tmp_path, capsys):
    write_box_file(tmp_path / "true.jsonl", ROWS)
    values = [{"row": 0, "bbox": [0, 0, 10, 5]}, {"row": 77, "bbox": [0, 0, 10, 5]}]
    path = put(tmp_path / "p.json", values)
    assert main(["measure-boxes", str(path), str(tmp_path / "true.jsonl"), "--common"]) == 0
    printed = capsys.readouterr()
    assert "measured are 1 of 4 rows" in printed.err and "1.0000" in printed.out
    path = put(tmp_path / "p.json", values[1:])
    assert main(["measure-boxes", str(path), str(tmp_path / "true.jsonl"), "--common"]) == 2
    assert main(["measure-boxes", str(path)]) == 2
    assert "has no true box: name the file of true boxes" in capsys.readouterr().err


def test_predictions_of_a_turned_or_resized_photo_are_refused(tmp_path, capsys):
    row = {"image": "a.jpg", "width": 64, "height": 48, "box": [4, 8, 40, 30], "phrase": "it"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    found = {"photo": "photos/a.jpg", "width": 64, "height": 48, "found": [{"phrase": "it", "box": [4, 8, 40, 30]}]}
    for size, said in (((64, 48), ""), ((48, 64), "turned by EXIF"), ((128, 96), "got 128 x 96")):
        (tmp_path / "found.jsonl").write_text(json.dumps({**found, "width": size[0], "height": size[1]}))
        code = main(["measure-boxes", str(tmp_path / "found.jsonl"), str(tmp_path / "rows.jsonl")])
        error = capsys.readouterr().err
        assert (code, error.count("\n")) == ((2, 1) if said else (0, 0)) and said in error


def test_boxes_of_a_run_bring_their_true_ones_along(tmp_path, capsys):
    """boxes.jsonl of `train` and `eval`: photo, phrase, box (found), true."""
    pairs = [*zip(ROWS[:3], FOUND_BOXES.tolist(), strict=False)]
    lines = [{"photo": f"/x/{r.image}", "phrase": r.phrase, "box": b, "true": [*r.box], "iou": 0.1} for r, b in pairs]
    path = put(tmp_path / "boxes.jsonl", lines, lines=True)
    assert main(["measure-boxes", str(path), "--out", str(tmp_path / "m.json")]) == 0
    assert "the photos' sizes are unknown" in capsys.readouterr().err
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["mean_iou"] == pytest.approx(np.mean(IOUS)) and "large box" not in found["groups"]
