"""Phrases with boxes written in each form and read again: equal rows, and what a form has no room for is said."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jclip.cli import main
from jclip.data import box_files
from jclip.data.box_forms import WRITTEN
from jclip.data.box_rows import BoxRow
from jclip.errors import ConfigError, DataError, SetupError, UnknownName
from tests.library.test_box_files import put

SHARED = Path(__file__).parents[3] / "shared" / "data" / "grounding"
EACH = [(form, ending) for form, endings in WRITTEN.items() for ending in endings]
ROWS = (
    BoxRow("a b,c.jpg", (1.0, 2.0, 30.0, 40.0), "a dog", (60, 50), id=0, split="val", box_raw=(1, 2, 30, 40)),
    BoxRow("a b,c.jpg", (3.0, 4.5, 9.25, 8.5), 'say "x", é', (60, 50), id=1, split="val", box_raw=(3, 4.5, 9.25, 8.5)),
    BoxRow("d.jpg", (0.1, 0.2, 30.3, 40.4), "a dog", (64, 48), id=2, split="test", box_raw=(0.1, 0.2, 30.3, 40.4)),
    BoxRow("d.jpg", (0.1, 0.2, 30.3, 40.4), "it", (64, 48), id=3, split="test", box_raw=(0.1, 0.2, 30.3, 40.4)),
)


def lean(row: BoxRow) -> tuple:
    """What every form has room for, numbers to a billionth of a pixel: x2 - x1 + x1 need not be x2."""
    return row.image, row.phrase, tuple(round(v, 9) for v in row.box)


def written(path: Path, rows, form: str, dataset: str = "unc"):
    box_files.write_box_file(path, rows, dataset if form == "split" else "", form)
    return box_files.read_box_file(path)


@pytest.mark.parametrize("form, ending", EACH)
def test_each_form_comes_back(form, ending, tmp_path, capsys):
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install '.[parquet]'")
    path = tmp_path / f"unc_val{ending}"
    found = written(path, ROWS, form)
    assert found.form == form and [*map(lean, found.rows)] == [*map(lean, ROWS)] and capsys.readouterr().err == ""
    if form != "split":
        assert [row.size for row in found.rows] == [row.size for row in ROWS]
    if form in ("lines", "list", "table", "parquet"):
        assert found.rows == ROWS
    if form == "refs":
        assert [row.split for row in found.rows] == [row.split for row in ROWS]
    again = written(tmp_path / f"unc_again{ending}", found.rows, form)
    assert [*map(lean, again.rows)] == [*map(lean, found.rows)]
    first = path.read_bytes()
    written(path, found.rows, form)
    assert form == "parquet" or path.read_bytes() == first  # nothing moves any more


@pytest.mark.parametrize("form", ["lines", "list", "parquet"])
def test_whole_forms_lose_nothing(form, tmp_path):
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install '.[parquet]'")
    rows = (
        BoxRow("a.jpg", (1.0, 2.0, 3.0, 4.0), "x", (640, 427), "template", {"template": 0.83, "é": 1 / 3}, 4, "unc", "val",
               (1.0, 2.0, 2.0, 2.0), "xywh", {"caption": "é", "deep": {"a": [1, None, "b"]}}),
        BoxRow("d.jpg", None, "nothing\nthere", None, "caption", {}, 9, "", "", None, "xyxy", {}),
    )  # fmt: skip
    assert written(tmp_path / f"x{WRITTEN[form][0]}", rows, form).rows == rows


def test_a_table_says_what_it_leaves_out(tmp_path, capsys):
    rows = [
        replace(ROWS[0], reliability={"template": 0.5}, extra={"mood": "calm"}),
        BoxRow("e.jpg", None, "gone", id=7),
    ]
    found = written(tmp_path / "x.tsv", rows, "table").rows
    assert found == (ROWS[0], rows[1])
    assert "x.tsv: a table has no column for extra.mood, reliability: left out" in capsys.readouterr().err


def test_files_of_odvg_mdetr_and_refs_come_back_as_they_were(tmp_path):
    """Read, written, read again: captions, several boxes of a phrase, numbers, splits."""
    regions = [{"bbox": [1, 2, 30, 40], "phrase": "a dog"}, {"bbox": [[1, 2, 3, 4], [2, 1, 9, 3]], "phrase": "two men"}]
    odvg = [
        {
            "filename": "a.jpg",
            "height": 50,
            "width": 60,
            "grounding": {"caption": "a dog, two men", "regions": regions},
        },
        {"filename": "a.jpg", "height": 50, "width": 60, "grounding": {"caption": "other", "regions": regions[:1]}},
    ]
    path = put(tmp_path / "o.jsonl", odvg, lines=True)
    read = box_files.read_box_file(path).rows
    box_files.write_box_file(tmp_path / "o2.jsonl", read, form="odvg")
    assert [json.loads(line) for line in (tmp_path / "o2.jsonl").read_text().splitlines()] == odvg
    image = {"id": 1, "file_name": "a.jpg", "height": 50, "width": 60, "caption": "a dog and a cat", "original_id": 77}
    notes = [
        {"id": 1, "image_id": 1, "bbox": [1, 2, 3, 4], "tokens_positive": [[0, 5]], "category_id": 17},
        {"id": 2, "image_id": 1, "bbox": [5, 1, 4, 2], "tokens_positive": [[0, 5]], "category_id": 17},
        {"id": 3, "image_id": 1, "bbox": [9, 9, 9, 9], "tokens_positive": [[10, 15]], "category_id": 3},
    ]
    path = put(tmp_path / "m.json", {"images": [image], "annotations": notes})
    read = box_files.read_box_file(path).rows
    found = written(tmp_path / "m2.json", read, "mdetr").rows
    assert found == read and len(read) == 2
    values = json.loads((tmp_path / "m2.json").read_text())
    assert values["images"] == [image] and [*map(_plain, values["annotations"])] == notes
    said = [{"sent": "left man", "raw": "Left man", "sent_id": 10}, {"sent": "him", "raw": "him", "sent_id": 11}]
    refs = [{"ref_id": 4, "ann_id": 3, "image_id": 8, "split": "testA", "sentences": said},
            {"ref_id": 5, "ann_id": 2, "image_id": 8, "split": "val", "sentences": [{"sent": "a", "sent_id": 4}]}]  # fmt: skip
    coco = {
        "images": [{"id": 8, "file_name": "COCO_8.jpg", "width": 60, "height": 50}],
        "annotations": [{"id": 3, "image_id": 8, "bbox": [1.5, 2, 3, 4], "category_id": 1},
                        {"id": 2, "image_id": 8, "bbox": [2, 2, 3, 4], "category_id": 9}],
    }  # fmt: skip
    read = box_files.read_box_file(put(tmp_path / "r.json", {"refs": refs, **coco})).rows
    assert written(tmp_path / "r2.json", read, "refs").rows == read and len(read) == 3
    values = json.loads((tmp_path / "r2.json").read_text())
    assert [(ref["ref_id"], len(ref["sentences"])) for ref in values["refs"]] == [(4, 2), (5, 1)]
    assert values["images"] == coco["images"] and [*map(_plain, values["annotations"])] == coco["annotations"]


def _plain(note: dict) -> dict:
    assert note["area"] == note["bbox"][2] * note["bbox"][3] and note["iscrowd"] == 0
    return {k: v for k, v in note.items() if k not in ("area", "iscrowd")}


def test_one_phrase_twice_for_one_photo_stays_two_rows(tmp_path):
    """MDETR's annotations of the same letters are boxes of one phrase: another caption keeps them apart."""
    rows = (ROWS[0], replace(ROWS[0], box=(5.0, 6.0, 7.0, 9.0), box_raw=(5, 6, 7, 9), id=1))
    for form in ("mdetr", "odvg", "refs"):
        found = written(tmp_path / f"x{WRITTEN[form][0]}", rows, form).rows
        assert [*map(lean, found)] == [*map(lean, rows)]


def test_what_a_form_cannot_hold_is_refused_and_the_old_file_stays(tmp_path):
    for form in ("odvg", "mdetr", "refs"):
        path = tmp_path / f"x{WRITTEN[form][0]}"
        path.write_text("old")
        for row, said in (
            (
                BoxRow("a.jpg", None, "gone", (9, 9), id=4),
                r"can't hold row 4 \('gone'\).*no rows whose thing is absent",
            ),
            (BoxRow("a.jpg", (1.0, 2.0, 3.0, 4.0), "b"), "needs the photo's width and height, which are unknown"),
        ):
            with pytest.raises(DataError, match=said):
                box_files.write_box_file(path, [ROWS[0], row], form=form)
        assert path.read_text() == "old"
    with pytest.raises(ConfigError, match=r"x.json must end in .jsonl to be written as odvg, got '.json'"):
        box_files.write_box_file(tmp_path / "x.json", ROWS, form="odvg")
    with pytest.raises(
        ConfigError, match=r"x.txt must end in .jsonl, .pth, .csv, .tsv, .json or .parquet to be written"
    ):
        box_files.write_box_file(tmp_path / "x.txt", ROWS)
    with pytest.raises(UnknownName, match="form to write"):
        box_files.write_box_file(tmp_path / "x.json", ROWS, form="coco")


def test_parquet_of_others_and_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"no table")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        for call in (lambda: box_files.read_box_file(tmp_path / "x.parquet"),
                     lambda: box_files.write_box_file(tmp_path / "y.parquet", ROWS)):  # fmt: skip
            with pytest.raises(SetupError, match=r"need pyarrow: pip install 'jclip\[parquet\]'"):
                call()
    assert not (tmp_path / "y.parquet").exists()
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install '.[parquet]'")
    from pyarrow import parquet

    with pytest.raises(DataError, match="x.parquet must be a Parquet file"):
        box_files.read_box_file(tmp_path / "x.parquet")
    columns = {
        "image": ["a.jpg", "b.jpg"],
        "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]],
        "phrase": ["x", "y"],
        "mood": ["calm", None],
    }
    parquet.write_table(arrow.table(columns), tmp_path / "x.parquet")
    rows = box_files.read_box_file(tmp_path / "x.parquet", box_format="xywh").rows
    assert [(r.box, r.extra) for r in rows] == [((1, 2, 4, 6), {"mood": "calm"}), ((5, 6, 12, 14), {})]
    parquet.write_table(arrow.table({"image": ["a"], "phrase": ["b"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet, row 0: must have a box"):
        box_files.read_box_file(tmp_path / "x.parquet")
    parquet.write_table(arrow.table({"photo": ["a"], "phrase": ["b"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet: columns must be image, box, phrase, got photo, phrase: no image"):
        box_files.read_box_file(tmp_path / "x.parquet")


DETECTED = {"sent": "person in red", "pred_boxes": [[0, 5, 8.5, 7], [1, 2, 3, 4]],
            "pred_boxes_img_id": ["COCO_train2014_000000266240_0.jpg", "COCO_train2014_000000266240_1.jpg"],
            "gt_box": [0.0, 9.5, 11.25, 24.0]}  # fmt: skip


def test_rows_with_a_detectors_boxes_give_proposals(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = [
        DETECTED,
        {**DETECTED, "sent": "it"},
        {**DETECTED, "pred_boxes": [[9, 9, 9, 9]], "pred_boxes_img_id": ["b_0.png"]},
    ]
    path = put(tmp_path / "a, b.json", values)
    file = box_files.read_box_file(path)
    assert file.form == "detected" and file.rows[0].image == "COCO_train2014_000000266240.jpg"
    assert file.rows[0].box == (0, 9.5, 11.25, 33.5) and file.rows[0].extra["proposals"] == [
        [0, 5, 8.5, 12],
        [1, 2, 4, 6],
    ]
    assert main(["boxes", str(path), "--proposals", "p.json", "--out", "rows.jsonl"]) == 0
    assert "written: p.json (3 boxes of 2 photos)" in capsys.readouterr().out
    found = json.loads(Path("p.json").read_text())
    assert [(v["image_id"], v["file_name"], v["bbox"]) for v in found] == [
        (266240, "COCO_train2014_000000266240.jpg", [0, 5, 8.5, 7]),
        (266240, "COCO_train2014_000000266240.jpg", [1, 2, 3, 4]), ("b.png", "b.png", [9, 9, 9, 9]),
    ]  # fmt: skip
    assert box_files.read_box_file("rows.jsonl").rows == file.rows
    assert main(["boxes", "rows.jsonl", "--proposals", "again.json"]) == 0
    assert json.loads(Path("again.json").read_text()) == found
    capsys.readouterr()
    put(tmp_path / "plain.json", [{"image": "a.jpg", "box": [1, 2, 3, 4], "phrase": "x"}])
    assert main(["boxes", "plain.json", "--proposals", "none.json"]) == 2
    assert "no row has boxes of a detector" in capsys.readouterr().err and not Path("none.json").exists()
    for change, said in (
        ({"pred_boxes": [[1, 2, 3]]}, "entry 0: pred_boxes must be of four finite numbers"),
        ({"pred_boxes": [[1, 2, 0, 4]]}, "entry 0: pred_boxes must not be flipped or zero-sized"),
        ({"pred_boxes": 3}, "entry 0: pred_boxes must be a list of boxes"),
        ({"pred_boxes_img_id": ["a_0.jpg", "b_0.jpg"]}, "entry 0: pred_boxes_img_id must name crops of one photo"),
    ):
        with pytest.raises(DataError, match=said):
            box_files.read_box_file(put(tmp_path / "w.json", [{**DETECTED, **change}]))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not there")
def test_real_rows_with_boxes_of_a_detector(tmp_path):
    rows = box_files.read_box_file(SHARED / "refcoco_testA_unc_50.json").rows
    assert len(rows) == 50 and all(len(row.extra["proposals"]) >= 1 for row in rows)
    triples = {(r.image, r.phrase): r.box for r in box_files.read_box_file(SHARED / "triples.json").rows}
    known = [(row.box, triples[row.image, row.phrase]) for row in rows if (row.image, row.phrase) in triples]
    assert len(known) >= 20 and all(abs(a - b) < 0.02 for pair in known for a, b in zip(*pair, strict=True))


def test_the_command_writes_every_form(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    box_files.write_box_file("rows.jsonl", ROWS)
    for form, ending in EACH:
        if form != "parquet":
            assert main(["boxes", "rows.jsonl", "--dataset", "unc", "--to", form, "--out", f"unc_x{ending}"]) == 0
            assert main(["boxes", f"unc_x{ending}"]) == 0
            assert f"{form} " in capsys.readouterr().out.replace("|", " ")
    assert main(["boxes", "rows.jsonl", "--to", "odvg", "--out", "x.json"]) == 2
    assert main(["boxes", "rows.jsonl", "--to", "odvg"]) == 2
    assert main(["boxes", "rows.jsonl", "--out", "x.txt"]) == 2
    assert capsys.readouterr().err.count("\n") >= 3
