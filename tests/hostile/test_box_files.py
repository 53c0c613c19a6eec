"""Files of phrases with boxes that are wrong, damaged or malicious: one line that names file and row, nothing run."""

from __future__ import annotations

import json
import os
import pickle
import random

import pytest
from PIL import Image

from jclip.cli import main
from jclip.data.box_files import read_box_file, write_box_file
from jclip.data.box_rows import BoxRow
from jclip.errors import DataError, JclipError
from jclip.readers.plain_values import read_plain_values
from tests.library.test_box_files import CONTAINERS, UNC, put

GOOD = {"image": "a.jpg", "width": 60, "height": 50, "phrase": "a dog", "box": [1, 2, 30, 40]}


class Malicious:
    def __init__(self, function, *arguments):
        self.made = (function, arguments)

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("function", [os.system, eval, getattr, bytearray, __import__])
def test_what_would_run_is_refused(container, function, tmp_path):
    path, trace = tmp_path / "unc_val.pth", tmp_path / "ran"
    rows = [*UNC, Malicious(function, f"touch '{trace}'")]
    path.write_bytes(CONTAINERS[container](rows))
    name = f"{function.__module__}.{function.__name__}".replace("builtins", r"(builtins|__builtin__)")
    with pytest.raises(DataError, match=f"names {name}, which loading it would run or import: refused") as refused:
        read_box_file(path)
    assert "\n" not in str(refused.value) and not trace.exists()


def test_objects_that_weights_may_have_are_no_data(tmp_path):
    import argparse
    import collections
    import datetime

    for value in (argparse.Namespace(a=1), {1, 2}, datetime.date(2020, 1, 2), b"bytes", 1j, collections.Counter("a")):
        for container in CONTAINERS.values():
            (tmp_path / "x.pth").write_bytes(container([value]))
            with pytest.raises(DataError):
                read_plain_values(tmp_path / "x.pth")


@pytest.mark.parametrize("container", CONTAINERS)
def test_values_that_nest_or_repeat_without_end_are_refused(container, tmp_path):
    path = tmp_path / "x.pth"
    endless: list = []
    endless.append(endless)
    shared: list = [0] * 100
    for _ in range(6):
        shared = [shared] * 100
    deep: list = []
    for _ in range(25):
        deep = [deep]
    for values in (endless, shared, deep, [1 << 70]):
        path.write_bytes(CONTAINERS[container](values))
        with pytest.raises(DataError, match=r"x.pth holds "):
            read_plain_values(path)


@pytest.mark.parametrize("opcode", [b"]", b"}", b"(", b"N", b")", b"]2\x85"])
def test_many_small_instructions_are_refused_before_they_fill_the_memory(opcode, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"\x80\x02" + opcode * (1 << 17) + b".")
    with pytest.raises(DataError, match=r"x.pth is not a readable pickle \(more than [\d,]+ instructions\)"):
        read_plain_values(path)


def test_other_files_are_no_split_files(tmp_path):
    path = tmp_path / "unc_val.pth"
    for data in (b"", b"text", pickle.dumps(UNC), b"\x80\x02.", b"PK\x03\x04", b"\x80\x02]q\x00."):
        path.write_bytes(data)
        with pytest.raises(DataError, match="unc_val.pth"):
            read_box_file(path)
    for values in ([], {}, 5, ["row"], [("a.jpg", [1, 2, 3, 4])]):
        path.write_bytes(CONTAINERS["zip"](values))
        with pytest.raises(DataError, match="unc_val.pth"):
            read_box_file(path)
    path = path.rename(tmp_path / "mine.pth")
    path.write_bytes(CONTAINERS["zip"](UNC))
    with pytest.raises(DataError, match="the data set must be known"):
        read_box_file(path)
    assert len(read_box_file(path, dataset="unc").rows) == 2


@pytest.mark.parametrize("container", CONTAINERS)
def test_mutants_end_in_rows_or_in_one_line(container, tmp_path):
    rng, path = random.Random(1), tmp_path / "unc_val.pth"
    whole, ends = CONTAINERS[container](UNC), set()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at, kind = rng.randrange(len(data)), rng.randrange(4)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                del data[at : at + rng.randint(1, 9)]
            else:
                data[at:at] = data[max(0, at - rng.randint(1, 9)) : at]
        path.write_bytes(data)
        try:
            ends.add(len(read_box_file(path).rows))
        except JclipError as e:
            ends.add("refused")
            assert str(path) in str(e)
    assert "refused" in ends


WRONG = {
    "flipped": ({"box": [300, 2, 60, 40], "width": 400}, "1 of 2 boxes are flipped or leave the picture as xyxy"),
    "flipped both ways": ({"box": [60, 50, 1, 2]}, r"line 2: box must not be flipped"),
    "zero wide": ({"box": [30, 45, 30, 48]}, r"line 2: box must not be zero-sized"),
    "outside": (
        {"box": [1, 2, 99, 48]},
        r"line 2: box must lie within the picture of 60 x 50 pixels, got \[1, 2, 99, 48\]",
    ),
    "far outside": ({"box": [61, 45, 61.5, 50]}, r"line 2: box must lie within the picture of 60 x 50"),
    "negative": ({"box": [-9, 2, 5, 40], "width": None, "height": None}, "line 2: box must lie within the picture"),
    "NaN": ({"box": [1, 2, float("nan"), 4]}, "line 2.* NaN is not a number"),
    "infinite": ({"box": [1, 2, 1e300, 4]}, "line 2: box must be four finite numbers"),
    "three numbers": ({"box": [1, 2, 3]}, r"line 2: box must be four finite numbers, got \[1, 2, 3\]"),
    "texts": ({"box": ["1", "2", "3", "4"]}, "line 2: box must be four finite numbers"),
    "truths": ({"box": [True, False, 3, 4]}, "line 2: box must be four finite numbers"),
    "no phrase": ({"phrase": " "}, "line 2: must have a phrase as text, got ' '"),
    "phrase of half a character": ({"phrase": "\ud800"}, "line 2.*surrogate"),
    "no image": ({"image": None}, "line 2: must have an image as text, got None"),
    "a source": (
        {"source": "robot"},
        "line 2: source must be human, template, relation, caption or other, got 'robot'",
    ),
    "a format": ({"box_format": "cxcywh"}, "line 2: box format must be xywh or xyxy, got 'cxcywh'"),
    "reliability": ({"reliability": {"t": 1.5}}, r"line 2: reliability must be numbers in \[0, 1\]"),
    "size": ({"width": "60"}, "line 2: width and height must be whole numbers of pixels"),
    "half a size": ({"width": None}, "line 2: width and height must be whole numbers of pixels"),
    "two boxes": ({"box_raw": [1, 2, 3, 4], "box_raw_format": "xywh"}, "line 2: box and box_raw must be the same box"),
    "raw without format": ({"box_raw": [1, 2, 30, 40]}, "line 2: box_raw must have its box_raw_format"),
    "id": ({"id": -1}, "line 2: id must be a whole number"),
    "extra": ({"extra": []}, "line 2: extra must be an object"),
}


@pytest.mark.parametrize("what", WRONG)
def test_bad_rows_name_file_and_row(what, tmp_path, capsys):
    change, said = WRONG[what]
    path = put(tmp_path / "x.jsonl", [GOOD, GOOD | change], lines=True)
    with pytest.raises(DataError, match=f"x.jsonl.*{said}") as refused:
        read_box_file(path)
    assert "line 2" in str(refused.value) and "\n" not in str(refused.value)
    assert main(["boxes", str(path)]) == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_row_without_a_box_says_so(tmp_path):
    path = put(tmp_path / "x.jsonl", [{k: v for k, v in GOOD.items() if k != "box"}], lines=True)
    with pytest.raises(DataError, match=r"x.jsonl, line 1: must have a box \(null where the thing is absent\)"):
        read_box_file(path)


def test_a_wrong_format_is_noticed_from_one_percent_on(tmp_path):
    good = GOOD | {"box": [30, 20, 50, 40]}  # as xywh it leaves the picture
    other = GOOD | {"box": [30, 20, 20, 20]}  # as xyxy it is flipped
    path = put(tmp_path / "x.jsonl", [good] * 99 + [other], lines=True)
    with pytest.raises(DataError, match="x.jsonl, line 100: box must not be flipped"):
        read_box_file(path)
    assert len(read_box_file(path, max_bad=0.01).rows) == 99
    path = put(tmp_path / "x.jsonl", [good] * 98 + [other] * 2, lines=True)
    with pytest.raises(DataError, match=r"2 of 100 boxes .* as xyxy, but fit as xywh \(first in line 99: "):
        read_box_file(path, max_bad=0.5)
    with pytest.raises(DataError, match=r"98 of 100 boxes .* as xywh, but fit as xyxy \(first in line 1: "):
        read_box_file(path, box_format="xywh")


def test_refs_need_the_instances_beside_them(tmp_path):
    path = put(tmp_path / "refs.json", [{"ann_id": 1, "image_id": 5, "sentences": [{"sent": "it"}]}])
    with pytest.raises(DataError, match=r"refs.json needs COCO's images and annotations: .*instances.json"):
        read_box_file(path)


def test_boxes_may_leave_by_rounding(tmp_path):
    path = put(tmp_path / "x.jsonl", [GOOD | {"box": [-0.5, 2, 61, 50.7]}], lines=True)
    assert read_box_file(path).rows[0].box == (-0.5, 2, 61, 50.7)


def test_photos_that_are_listed_must_be_there(tmp_path, capsys):
    photos = tmp_path / "my photos, new"
    (photos / "sub").mkdir(parents=True)
    Image.new("RGB", (60, 50)).save(photos / "a.jpg")
    (photos / "broken.jpg").write_bytes(b"no photo")
    path = put(tmp_path / "x.json", [GOOD, GOOD | {"image": "b.jpg"}, GOOD | {"image": "broken.jpg"}])
    with pytest.raises(DataError, match=r"x.json, entry 1: there is no photo: b.jpg below .*1 more of 3 rows"):
        read_box_file(path, photos=photos)
    assert main(["boxes", str(path), "--root", str(photos), "--max-bad", "0.7"]) == 0
    assert "entry 2: there is a photo that does not open: broken.jpg" in capsys.readouterr().err
    path = put(tmp_path / "x.json", [GOOD | {"image": "val2017/a.jpg"}])
    assert read_box_file(path, photos=photos).rows[0].image == "a.jpg"
    path = put(tmp_path / "x.json", [GOOD | {"width": 61}])
    with pytest.raises(DataError, match="entry 0: is declared 61 x 50 pixels, the photo is 60 x 50"):
        read_box_file(path, photos=photos)
    with pytest.raises(DataError, match="the folder of photos must be there"):
        read_box_file(path, photos=tmp_path / "none")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "unc_val.pth"
    path.write_bytes(b"old")
    with pytest.raises(DataError, match=r"can't hold row 1 .* split files have no rows whose thing is absent"):
        write_box_file(path, [BoxRow("a.jpg", (1.0, 2.0, 3.0, 4.0), "a"), BoxRow("a.jpg", None, "b", id=1)])
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["unc_val.pth"]


@pytest.mark.parametrize("name", ["odvg.jsonl", "mdetr.json", "refs.json", "refcocos.json", "list.json", "x.csv"])
def test_other_values_in_any_place_are_one_line(name, tmp_path):
    """Each value of a good file replaced in turn by what does not belong there."""
    image = {"id": 5, "file_name": "a.jpg", "height": 50, "width": 60, "caption": "a dog and a cat"}
    note = {"id": 1, "image_id": 5, "bbox": [1, 2, 3, 4], "tokens_positive": [[0, 5]], "category_id": 1}
    ref = {"ref_id": 1, "ann_id": 1, "image_id": 5, "split": "val", "sentences": [{"sent": "it", "sent_id": 1}]}
    region = {"bbox": [1, 2, 30, 40], "phrase": "a dog"}
    solved = {
        "image": "a.jpg",
        "normal_caption": "x",
        "solution": [1, 2, 3, 4],
        "width": 60,
        "height": 50,
        "dataset": "d",
    }
    good = {
        "odvg.jsonl": {
            "filename": "a.jpg",
            "height": 50,
            "width": 60,
            "grounding": {"caption": "c", "regions": [region]},
        },
        "mdetr.json": {"images": [image], "annotations": [note]},
        "refs.json": {"refs": [ref], "images": [image], "annotations": [note]},
        "refcocos.json": [solved],
        "list.json": [GOOD],
        "x.csv": [],
    }[name]
    path = tmp_path / name
    if name == "x.csv":
        for text in ("image,phrase\na,b\n", "image,box,phrase\n", "image,box,phrase\na.jpg,1 2 3,x\n", "a\n", "\n"):
            path.write_text(text)
            with pytest.raises(DataError, match="x.csv"):
                read_box_file(path)
        return
    put(path, good)
    assert len(read_box_file(path).rows) == 1
    for mutant in replaced(good):
        put(path, mutant)
        try:
            read_box_file(path)
        except JclipError as e:
            assert name in str(e) and "\n" not in str(e)


def replaced(value):
    """Every value within, replaced by each of a few others, or left out."""
    for other in (None, [], {}, "", "x", -1, 1e300, True, [[]], [[1, 2, 3]], {"a": {}}):
        yield json.loads(json.dumps(other))
    if isinstance(value, dict):
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: other} for other in replaced(value[key]))
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from ([*value[:at], other, *value[at + 1 :]] for other in replaced(item))
