"""Files of phrases with boxes: every form read, conversions both ways, merging, predictions. Without Jittor."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jclip.cli import main
from jclip.data import box_files
from jclip.data.box_forms import FORMATS, FORMS
from jclip.data.box_predictions import write_coco_results, write_prediction_lines
from jclip.data.box_rows import BoxRow
from jclip.errors import DataError
from jclip.functional.box_metrics import reliability_histogram
from jclip.readers.plain_values import read_plain_values

SHARED = Path(__file__).parents[3] / "shared" / "data" / "grounding"
ATTRIBUTES = [("r1", ["man"]), ("r2", ["none"])]
UNC = [
    ("COCO_train2014_000000000839.jpg", "482127.pth", [100.7, 50.2, 200.9, 120.6], "Man on the left, é", ATTRIBUTES),
    ["COCO_train2014_000000000839.jpg", "7.pth", [0, 1.5, 20, 30.25], "red one", "useless placeholder"],
]
FLICKR = [("36979.jpg", [1.0, 2.0, 30.0, 40.5], "a dog"), ("36979.jpg", [3, 4, 5, 60], "two men")]
KEYS = ["mask", "attributes"]


def zipped(values) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(values, 2))
        archive.writestr("x/version", "3\n")
    return file.getvalue()


def legacy(values) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = (0x1950A86A20F9469CFC6C, 1001, system, values, [])
    return b"".join(pickle.dumps(part, 2) for part in parts)


CONTAINERS = {"zip": zipped, "legacy": legacy}


def put(path: Path, values, lines: bool = False) -> Path:
    path.write_text("\n".join(map(json.dumps, values)) if lines else json.dumps(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("container", CONTAINERS)
def test_split_files_are_read_from_both_containers(container, tmp_path):
    path = tmp_path / "unc_train_pseudo.pth"
    path.write_bytes(CONTAINERS[container](UNC))
    file = box_files.read_box_file(path)
    first, second = file.rows
    assert file.form == "split" and not file.refusals
    assert (first.image, first.phrase, first.dataset, first.split) == (UNC[0][0], UNC[0][3], "unc", "train_pseudo")
    assert first.box == (100.7, 50.2, 100.7 + 200.9, 50.2 + 120.6) and first.source == "other"
    assert first.box_raw == (100.7, 50.2, 200.9, 120.6) and first.box_raw_format == "xywh"
    assert first.extra == {"mask": "482127.pth", "attributes": [["r1", ["man"]], ["r2", ["none"]]]}
    assert second.extra == {"mask": "7.pth"} and second.box == (0, 1.5, 20, 31.75) and second.id == 1
    assert first.truncated() == (100, 50, 300, 170)  # not 301: integers first, then x + w


def test_boxes_are_as_the_data_set_writes_them(tmp_path):
    path = tmp_path / "1_flickr_train_pseudo_template_0_5.pth"
    path.write_bytes(zipped(FLICKR))
    first = box_files.read_box_file(path).rows[0]
    assert first.box == (1, 2, 30, 40.5) and first.source == "template" and first.dataset == "flickr"
    referit = tmp_path / "referit_val.pth"
    referit.write_bytes(legacy([("1.jpg", "1.pth", [1, 2, 3, 4], "sky", [])]))
    assert box_files.read_box_file(referit).rows[0].box == (1, 2, 3, 4)
    assert box_files.read_box_file(referit, box_format="xywh").rows[0].box == (1, 2, 4, 6)
    assert FORMATS["unc+"] == FORMATS["gref"] == FORMATS["gref_umd"] == "xywh"


@pytest.mark.parametrize("name,rows", [("unc+_val.pth", UNC), ("flickr_test.pth", FLICKR)])
def test_split_to_lines_and_back_is_equal(name, rows, tmp_path):
    start, lines, end = tmp_path / name, tmp_path / "rows.jsonl", tmp_path / f"back_{name}"
    start.write_bytes(legacy(rows))
    read = box_files.read_box_file(start).rows
    box_files.write_box_file(lines, read)
    again = box_files.read_box_file(lines).rows
    assert again == read
    box_files.write_box_file(end, again)
    plain = json.loads(json.dumps(rows))  # tuples as lists
    assert read_plain_values(end) == read_plain_values(start) == plain
    written = end.read_bytes()
    box_files.write_box_file(end, again)
    assert end.read_bytes() == written


@pytest.mark.parametrize("new", [True, False])
def test_torch_reads_what_is_written_and_is_read(new, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "unc_val.pth"
    rows = [
        (UNC[0][0], "1.pth", torch.tensor([100.5, 50.25, 200.0, 120.0], dtype=torch.float64), "a", []),
        (UNC[0][0], "1.pth", np.array([1.5, 2, 3, 4], ">f4"), "b", []),
        (UNC[0][0], "1.pth", [np.float32(1.5), np.int64(2), 3, 4.0], "c", []),
        (UNC[0][0], "1.pth", torch.arange(8.0).reshape(4, 2)[:, 1], "d", []),
    ]
    torch.save(rows, path, _use_new_zipfile_serialization=new)
    read = box_files.read_box_file(path).rows
    raw = [(100.5, 50.25, 200, 120), (1.5, 2, 3, 4), (1.5, 2, 3, 4), (1, 3, 5, 7)]
    assert [row.box_raw for row in read] == raw
    box_files.write_box_file(path, read)
    loaded = torch.load(path, weights_only=True)
    assert [(image, tuple(box), phrase) for image, _, box, phrase, _ in loaded] == [
        (UNC[0][0], box, phrase) for box, phrase in zip(raw, "abcd", strict=True)
    ]


def test_lines_keep_everything(tmp_path):
    rows = (
        BoxRow("a b,c.jpg", (1.0, 2.0, 3.0, 4.0), 'say "x"\n', (640, 427), "template", {"template": 0.83}, 4, "unc", "val",
               (1.0, 2.0, 2.0, 2.0), "xywh", {"caption": "é"}),
        BoxRow("d.jpg", None, "nothing there", None, "caption", {}, 9, "", "", None, "xyxy", {}),
    )  # fmt: skip
    box_files.write_box_file(tmp_path / "x.jsonl", rows)
    assert box_files.read_box_file(tmp_path / "x.jsonl").rows == rows
    assert json.loads((tmp_path / "x.jsonl").read_text().splitlines()[0])["reliability"] == {"template": 0.83}


def test_odvg(tmp_path):
    regions = [
        {"bbox": [1, 2, 30, 40], "phrase": "a dog"},
        {"bbox": [[1, 2, 3, 4], [2, 1, 9, 3]], "phrase": ["two", "men"]},
    ]
    line = {
        "filename": "a.jpg",
        "height": 50,
        "width": 60,
        "grounding": {"caption": "a dog, two men", "regions": regions},
    }
    file = box_files.read_box_file(put(tmp_path / "x.jsonl", [line], lines=True))
    assert file.form == "odvg" and [(r.phrase, r.box, r.size) for r in file.rows] == [
        ("a dog", (1, 2, 30, 40), (60, 50)),
        ("two men", (1, 1, 9, 4), (60, 50)),
    ]
    assert file.rows[1].extra == {"caption": "a dog, two men", "boxes": [[1, 2, 3, 4], [2, 1, 9, 3]]}


def test_mdetr(tmp_path):
    image = {"id": 5, "file_name": "a.jpg", "height": 50, "width": 60, "caption": "a dog and a cat", "original_id": 77}
    notes = [
        {"id": 1, "image_id": 5, "bbox": [1, 2, 3, 4], "tokens_positive": [[0, 5]]},
        {"id": 2, "image_id": 5, "bbox": [9, 9, 9, 9], "tokens_positive": [[0, 1], [12, 15]], "category_id": 17},
        {"id": 3, "image_id": 5, "bbox": [5, 1, 4, 2], "tokens_positive": [[0, 5]]},
    ]
    path = put(tmp_path / "x.json", {"images": [image], "annotations": notes, "categories": []})
    file = box_files.read_box_file(path)
    found = [(r.phrase, r.box, r.box_raw, r.box_raw_format) for r in file.rows]
    assert file.form == "mdetr" and found == [
        ("a dog", (1, 1, 9, 6), (1, 1, 8, 5), "xywh"),  # the hull of two
        ("a cat", (9, 9, 18, 18), (9, 9, 9, 9), "xywh"),
    ]
    assert file.rows[1].extra == {"caption": image["caption"], "image_id": 5, "category_id": 17, "original_id": 77}
    notes[0]["tokens_positive"] = [[0, 16]]
    with pytest.raises(DataError, match="x.json, annotation 0: tokens_positive must lie within the 15 letters"):
        box_files.read_box_file(put(path, {"images": [image], "annotations": notes}))


@pytest.mark.parametrize("form", ["p", "json", "one"])
def test_refs(form, tmp_path):
    coco = {
        "images": [{"id": 8, "file_name": "COCO_8.jpg", "width": 60, "height": 50}],
        "annotations": [{"id": 3, "image_id": 8, "bbox": [1.5, 2, 3, 4], "category_id": 1}],
    }
    said = [{"sent": "left man", "raw": "Left man", "sent_id": 10}, {"raw": "him", "sent_id": 11}]
    refs = [{"ref_id": 4, "ann_id": 3, "image_id": 8, "split": "testA", "sentences": said, "file_name": "COCO_8_3.jpg"}]
    put(tmp_path / "instances.json", coco)
    path = tmp_path / ("refs(unc).p" if form == "p" else "refs.json")
    if form == "p":
        path.write_bytes(pickle.dumps(refs, 0))
    else:
        put(path, {"refs": refs, **coco} if form == "one" else refs)
    file = box_files.read_box_file(path)
    assert file.form == "refs" and [(r.image, r.phrase, r.box, r.split) for r in file.rows] == [
        ("COCO_8.jpg", "left man", (1.5, 2, 4.5, 6), "testA"),
        ("COCO_8.jpg", "him", (1.5, 2, 4.5, 6), "testA"),
    ]
    assert file.rows[0].extra == {"image_id": 8, "ann_id": 3, "ref_id": 4, "sent_id": 10, "category_id": 1}


TABLES = {
    "box.csv": 'image,box,phrase\na.jpg,"1, 2,30,40.5",a dog\nb.jpg,,"nothing, here"\n',
    "brackets.tsv": "image\tbox\tphrase\na.jpg\t[1 2 30 40.5]\ta dog\nb.jpg\tnull\tnothing, here\n",
    "corners.csv": 'phrase,image,x1,y1,x2,y2\na dog,a.jpg,1,2,30,40.5\n"nothing, here",b.jpg,,,,\n',
    "sides.csv": 'phrase,image,x,y,w,h\na dog,a.jpg,1,2,29,38.5\n"nothing, here",b.jpg,,,,\n',
    "named.csv": 'image,bbox_xywh,phrase\na.jpg,1;2;29;38.5,a dog\nb.jpg,,"nothing, here"\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name, tmp_path):
    (tmp_path / name).write_text(TABLES[name])
    rows = box_files.read_box_file(tmp_path / name, source="caption").rows
    assert [(r.image, r.box, r.phrase, r.source, r.id) for r in rows] == [
        ("a.jpg", (1, 2, 30, 40.5), "a dog", "caption", 0),
        ("b.jpg", None, "nothing, here", "caption", 1),
    ]


def test_lists_and_lines_of_others(tmp_path):
    values = [{"image": "a.jpg", "bbox_xywh": [1, 2, 3, 4], "phrase": "x", "width": 9, "height": 8, "mood": "calm"}]
    for path in (put(tmp_path / "x.json", values), put(tmp_path / "x.jsonl", values, lines=True)):
        (row,) = box_files.read_box_file(path).rows
        assert (row.box, row.size, row.extra) == ((1, 2, 4, 6), (9, 8), {"mood": "calm"})


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not there")
def test_real_rows_convert_and_their_boxes_fit(tmp_path, close):
    refcocos = box_files.read_box_file(SHARED / "refcocos_test_full.json")
    assert refcocos.form == "refcocos" and len(refcocos.rows) == 506
    assert sum(row.box is None for row in refcocos.rows) == 25
    triples = box_files.read_box_file(SHARED / "triples.json", photos=SHARED / "images").rows
    assert len(triples) == 67 and len({row.image for row in triples}) == 38
    for row in triples:
        with Image.open(SHARED / "images" / row.image) as photo:
            assert row.size == photo.size
    box_files.write_box_file(tmp_path / "t.jsonl", triples)
    assert box_files.read_box_file(tmp_path / "t.jsonl").rows == triples
    box_files.write_box_file(tmp_path / "unc_val.pth", triples, "unc")
    back = box_files.read_box_file(tmp_path / "unc_val.pth", photos=SHARED / "images").rows
    assert [row.image for row in back] == [row.image for row in triples]
    close([row.box for row in back], [row.box for row in triples], "closed_form", "boxes there and back")
    with pytest.raises(DataError, match=r"67 boxes are flipped or leave the picture as xywh, but fit as xyxy"):
        wrong = [{"image": r.image, "box": r.box, "phrase": r.phrase} for r in triples]
        path = put(tmp_path / "wrong.json", wrong)
        box_files.read_box_file(path, box_format="xywh", photos=SHARED / "images")


def test_merging_keeps_order_sources_and_drops_what_is_repeated():
    a = [BoxRow("a.jpg", (1.0, 2.0, 3.0, 4.0), "Dog", source="template", id=7), BoxRow("a.jpg", None, "cat", id=8)]
    b = [
        replace(a[0], box=(1.04, 2.0, 3.0, 4.0), phrase="dog", source="caption"),
        replace(a[0], box=(1.06, 2.0, 3.0, 4.0)),
    ]
    kept, dropped = box_files.merged([a, b])
    assert [(r.id, r.phrase, r.source) for r in kept] == [
        (0, "Dog", "template"), (1, "cat", "human"), (2, "dog", "caption"), (3, "Dog", "template"),
    ]  # fmt: skip
    assert dropped == 0
    kept, dropped = box_files.merged([a, b], "exact")
    assert [r.box for r in kept] == [a[0].box, None, (1.06, 2.0, 3.0, 4.0)] and dropped == 1
    assert box_files.merged([a])[0] == a
    assert box_files.merged([kept, kept], "exact")[0] == kept  # merging once more changes nothing


def test_every_form_that_the_command_offers_has_a_reader():
    assert tuple(box_files.READERS) == FORMS


def test_histograms_of_reliability():
    counts, zeros = reliability_histogram(np.array([0.5, 0.5004, 1.0, 0.0, 0.0, 1e-9, 0.001, 0.0011]))
    assert counts.shape == (1000,) and zeros == 2
    assert {int(k): int(counts[k]) for k in np.flatnonzero(counts)} == {0: 2, 1: 1, 499: 1, 500: 1, 999: 1}
    for wrong in (np.nan, -0.1, 1.1):
        with pytest.raises(DataError, match=r"in row 1"):
            reliability_histogram(np.array([0.5, wrong]))


def test_predictions_as_coco_results_and_lines(tmp_path):
    rows = [
        BoxRow("COCO_train2014_000000000139.jpg", (0.0, 0.0, 10.0, 10.0), "dog", id=3),
        BoxRow("a.jpg", None, "cat", id=4, extra={"image_id": 12, "category_id": 5}),
        BoxRow("b.jpg", (0.0, 0.0, 10.0, 10.0), "hen", id=5),
    ]
    boxes = np.array([[0, 0, 10, 5], [1, 2, 3, 5], [5, 5, 15, 15]], float)
    write_coco_results(tmp_path / "r.json", rows, boxes, np.array([0.5, 0.25, 1]))
    results = json.loads((tmp_path / "r.json").read_text())
    assert [(r["image_id"], r["category_id"], r["bbox"], r["score"], r["row"]) for r in results] == [
        (139, 1, [0, 0, 10, 5], 0.5, 3), (12, 5, [1, 2, 2, 3], 0.25, 4), ("b.jpg", 1, [5, 5, 10, 10], 1.0, 5),
    ]  # fmt: skip
    write_prediction_lines(tmp_path / "p.jsonl", rows, boxes)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["iou"] for line in lines] == [0.5, None, 25 / 175]
    assert lines[0]["predicted"] == [0, 0, 10, 5] and lines[0]["score"] is None and lines[1]["box"] is None
    with pytest.raises(DataError, match="must be finite numbers, got .* for row 4"):
        write_coco_results(tmp_path / "r.json", rows, np.array([[0, 0, 1, 1], [0, np.nan, 1, 1], [0, 0, 1, 1]]))
    assert json.loads((tmp_path / "r.json").read_text()) == results


def test_the_command_converts_and_joins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a folder, here").mkdir()
    for name in ("1_unc_train_pseudo_template_0_5.pth", "a folder, here/2_unc_train_pseudo_relation_0_5.pth"):
        Path(name).write_bytes(legacy(UNC))
    files = ["1_unc_train_pseudo_template_0_5.pth", "a folder, here/2_unc_train_pseudo_relation_0_5.pth"]
    assert main(["boxes", *files, "--out", "a folder, here/all.jsonl"]) == 0
    assert "rows: 4 (template 2, relation 2)" in capsys.readouterr().out
    assert main(["boxes", *files, "--dedup", "exact", "--sources", "human", "--out", "unc_train_pseudo.pth"]) == 0
    assert "rows: 2, 2 dropped as repeated (human 2)" in capsys.readouterr().out
    assert read_plain_values("unc_train_pseudo.pth") == json.loads(json.dumps(UNC))
    assert main(["boxes", "a folder, here/all.jsonl", "--split", "val"]) == 2
    assert "has no row of the split val (there are: train_pseudo_" in capsys.readouterr().err
    assert main(["boxes", "unc_train_pseudo.pth", "--out", "unc_train_pseudo.pth"]) == 2
    assert "would be overwritten" in capsys.readouterr().err
