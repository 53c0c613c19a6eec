"""Folders, split files and draws as people have them: nothing is dropped, doubled or misread in silence."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from jclip.config import DataConfig
from jclip.data import splits
from jclip.data.folders import HIDDEN, assign_parts
from jclip.data.splits import PhotoData, Split, draw_shots, find_photos, read_photos
from jclip.errors import DataError
from tests.hostile.faulty_folder import faulty_folder, photo


@pytest.fixture(autouse=True)
def fresh_notes(monkeypatch):
    """Each note is written once in a process: these tests reset them."""
    monkeypatch.setattr(splits, "_noted", set())


def touch(root: Path, *files: str) -> Path:
    """Empty files below `root`: what counts is where they are."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def read(root: Path, **settings) -> PhotoData:
    return read_photos(DataConfig(**{"root": str(root), "shots": 0, "val_shots": 0} | settings))


def below(split: Split, root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in split.paths]


# --- folders

SYSTEM = [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".Trash-1000", "$RECYCLE.BIN", "lost+found", ".git", "#recycle"]
FILES = ["._1.jpg", ".hidden.jpg", "Thumbs.db", "desktop.ini", ".DS_Store"]


def test_what_systems_leave_behind_is_no_class_and_no_photo(tmp_path, capsys):
    places = [f"{name}/1.jpg" for name in SYSTEM] + [f"a/{name}/2.jpg" for name in SYSTEM] + [f"a/{f}" for f in FILES]
    data = read(touch(tmp_path / "r", "a/1.jpg", "b/1.jpg", *places))
    assert data.classnames == ("a", "b") and below(data.train, tmp_path / "r") == ["a/1.jpg", "b/1.jpg"]
    stderr = capsys.readouterr().err
    assert (
        stderr.count("\n") == 1 and f"left out: {2 * len(SYSTEM) + len(FILES)} {HIDDEN} (first: {tmp_path}/r/" in stderr
    )
    assert len(find_photos([tmp_path / "r"])) == 2
    assert find_photos([tmp_path / "r" / ".git"]) == [f"{tmp_path}/r/.git/1.jpg"]  # who names it wants it


@pytest.mark.parametrize("names, wanted", [
    ([str(i) for i in range(12)], [str(i) for i in range(12)]),
    (["007", "10", "9"], ["007", "9", "10"]),
    (["c1", "c10", "c2"], ["c1", "c10", "c2"]),
    (["1", "10", "2", "x"], ["1", "10", "2", "x"]),
])  # fmt: skip
def test_numbers_are_in_order_and_other_orders_are_shown(names, wanted, tmp_path, capsys):
    data = read(touch(tmp_path, *(f"{name}/1.jpg" for name in names)))
    assert list(data.classnames) == wanted
    shown = capsys.readouterr().err
    assert ("in byte order of their names: 0 " in shown) == (not all(name.isdigit() for name in names))


def test_links_and_folders_within_a_class(tmp_path, capsys):
    root = touch(
        tmp_path / "r", "a/1.jpg", "a/x/y/10.JFIF", "a/x/2.avif", "b/3.jpe", "a/notes.txt", "a/clip.mp4", "a/none"
    )
    touch(tmp_path / "far", "4.tga")
    for link, target in (("b/far", "far"), ("a/up", "r"), ("a/x/round", "r/a"), ("a/beside", "r/b"), ("c", "far")):
        (root / link).symlink_to(tmp_path / target)
    (root / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    data = read(root)
    assert data.classnames == ("a", "b", "c")
    assert below(data.train, root) == ["a/1.jpg", "a/x/2.avif", "a/x/y/10.JFIF", "b/3.jpe", "c/4.tga"]
    assert data.left.counts == {".txt files": 1, ".mp4 files": 1, "files without an ending": 1,
                                "links that lead nowhere": 1, "links to folders that are read elsewhere": 4}  # fmt: skip
    assert "2 photos lie in folders within their class's (first: " in capsys.readouterr().err
    for k in range(8):  # a circle in every folder, to every folder
        for to in range(8):
            (root / "a" / "m" / str(k)).mkdir(parents=True, exist_ok=True)
            (root / "a" / "m" / str(k) / f"to{to}").symlink_to(root / "a" / "m" / str(to))
    assert len(read(root).train) == 5


PARTS = [
    (["train", "val", "test"], ("train", "val", "test")), (["Train", "valid"], ("Train", "valid", None)),
    (["training", "validation", "TEST"], ("training", "validation", "TEST")), (["train", "dev"], ("train", "dev", None)),
    (["train", "eval"], ("train", None, "eval")), (["train", "eval", "test"], ("train", "eval", "test")),
    (["训练集", "测试集"], ("训练集", None, "测试集")), (["test"], (None, None, "test")),
]  # fmt: skip


@pytest.mark.parametrize("names, wanted", PARTS, ids=lambda p: "-".join(map(str, p)))
def test_parts_go_by_many_names(names, wanted, tmp_path):
    """In folders, in a table's column, and in the lists of a JSON file alike."""
    root = touch(tmp_path / "r", *(f"{name}/{c}/{i}.jpg" for i, name in enumerate(names) for c in "ab"))
    rows = [(f"{name}/{c}/{i}.jpg", c, name) for i, name in enumerate(names) for c in "ab"]
    (tmp_path / "t.csv").write_text("path,classname,split\n" + "".join(f"{','.join(row)}\n" for row in rows))
    lists = {n: [[p, "ab".index(c), c] for p, c, part in rows if part == n] for n in names}
    (tmp_path / "s.json").write_text(json.dumps(lists))
    for settings in ({}, {"split_file": str(tmp_path / "t.csv")}, {"split_file": str(tmp_path / "s.json")}):
        data = read(root, **settings)
        for part, name in zip(("train", "val", "test"), wanted, strict=True):
            assert [p.split("/")[0] for p in below(getattr(data, part), root)] == ([name] * 2 if name else [])


def test_a_class_may_be_called_as_a_part(tmp_path):
    assert read(touch(tmp_path, "train/1.jpg", "bus/1.jpg", "test/1.jpg")).classnames == ("bus", "test", "train")


def test_what_lies_beside_parts_is_counted(tmp_path, capsys):
    data = read(touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "extra/a/1.jpg", "more/b/1.jpg", "test/1.jpg"))
    assert len(data.train) == 2 and not len(data.test)
    stderr = capsys.readouterr().err
    assert "2 folders beside" in stderr and f"(first: {tmp_path}/extra)" in stderr
    assert f"1 photos outside of class folders (first: {tmp_path}/test/1.jpg)" in stderr


def test_a_class_spelled_otherwise_in_another_part_is_one_class(tmp_path, capsys):
    data = read(touch(tmp_path, "train/Cafe\u0301/1.jpg", "train/b c/1.jpg", "test/caf\u00e9/1.jpg", "test/B_c/1.jpg"))
    assert data.classnames == ("Cafe\u0301", "b c") and data.test.labels.tolist() == [0, 1]
    assert "2 class folders are spelled otherwise than in" in capsys.readouterr().err
    data = read(touch(tmp_path / "letters", "A/1.jpg", "a/1.jpg"))
    assert data.classnames == ("A", "a") and "differ only in case" in capsys.readouterr().err


REFUSED = [
    (
        ["trian/a/1.jpg", "trian/b/1.jpg", "test/a/1.jpg"],
        "1 folders (first: trian, did you mean 'train'?) beside its test",
    ),
    (["train/a/1.jpg", "training/a/1.jpg"], "'train' and 'training' both name the train part: keep one of them"),
    (
        ["dogs/1.jpg"],
        "only one class (dogs): at least two are needed; add photos of another class, or name others",
    ),
    (["set/train/a/1.jpg", "set/train/b/1.jpg"], "/set holds folders: if these are the classes, set data.root="),
    (["1.jpg", "2.jpg"], "2 photos lie there without one; expected"),
]


@pytest.mark.parametrize("files, message", REFUSED, ids=[m[:30] for _, m in REFUSED])
def test_folders_that_may_be_misread_are_refused(files, message, tmp_path):
    with pytest.raises(DataError) as error:
        read(touch(tmp_path / "root", *files))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_nearest_folder_is_named(tmp_path):
    touch(tmp_path, "photos/a/1.jpg")
    with pytest.raises(DataError, match="data.root must be a folder, got .*/photo, did you mean 'photos'"):
        read(tmp_path / "photo")


def test_names_that_are_no_utf8(tmp_path, capsys):
    """Folders and files as a .zip of Chinese Windows leaves them: the class's name is text, the paths are as they are."""
    apple = os.fsdecode("苹果".encode("gb18030"))
    touch(tmp_path / "r", f"{apple}/{apple}.jpg", "b/1.jpg")
    data = read(tmp_path / "r")
    assert data.classnames == ("b", "苹果") and Path(data.train.paths[1]).is_file()
    assert "1 class names are read as GB18030 (first: 苹果)" in capsys.readouterr().err
    assert data.train.digest() != data.train.take([0]).digest()
    (tmp_path / "s.json").write_text(json.dumps({"train": [["苹果/苹果.jpg", 0, "x"], ["b/1.jpg", 1, "y"]]}))
    named = read_photos(DataConfig(root=str(tmp_path / "r"), split_file=str(tmp_path / "s.json"), shots=0))
    assert named.train.paths[0] == data.train.paths[1]
    touch(tmp_path / "neither", os.fsdecode(b"\xff\xfe") + "/1.jpg", "b/1.jpg")
    with pytest.raises(DataError, match="must be UTF-8 or GB18030, got b'.xff.xfe': rename it"):
        read(tmp_path / "neither")


# --- split files


@pytest.mark.parametrize("label", [-1, 2**31, 2**32, 2**70, True, 1.0, "1", None, [1]], ids=repr)
def test_labels_of_a_split_file_are_whole_numbers(label, tmp_path):
    rows = [["a.jpg", 0, "a"], ["b.jpg", label, "b"]]
    (tmp_path / "s.json").write_text(json.dumps({"train": rows}))
    with pytest.raises(DataError, match=r"train\[1\]: label must be an integer from 0 to 2147483647, got|64 bits"):
        read_photos(DataConfig(split_file=str(tmp_path / "s.json")))


SPLITS = [
    ("t.csv", "path,classname,split\n1.jpg,a,train\n2.jpg,b,holdout\n3.jpg,b,tset\n",
     "2 of 3 splits must be called train, val or test (2 rows, first: 'holdout'): rename or remove them"),
    ("t.csv", "path,classname,split\n1.jpg,a,train\n2.jpg,,train\n", "line 3: classname must not be empty"),
    ("t.csv", "path,classname,split\n1.jpg,a,train\n2.jpg,b,Train\n", "'train' and 'Train' both name the train part"),
    ("s.json", '{"train": [["1.jpg", 0, "a"]], "tset": [["2.jpg", 1, "b"]]}', "first: 'tset', did you mean 'test'?"),
    ("s.json", '{"train": [["1.jpg", 0]]}', "train[0] must be [path, label, class], got ['1.jpg', 0]"),
    ("s.json", '[["1.jpg", 0, "a"]]', "must be a split file of the form"),
    ("s.json", "[" * 100_000, "nested too deeply"),
]  # fmt: skip


@pytest.mark.parametrize("name, text, message", SPLITS, ids=[m[:30] for *_, m in SPLITS])
def test_split_files_that_say_something_else_are_refused(name, text, message, tmp_path):
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        read_photos(DataConfig(split_file=str(tmp_path / name), shots=0))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_eval_is_test_or_validation():
    assert assign_parts(["train", "eval"], "")["eval"] == "test"
    assert assign_parts(["train", "eval", "Testing"], "")["eval"] == "val"
    with pytest.raises(DataError, match="'val' and 'eval' both name the val part"):
        assign_parts(["val", "eval", "test"], "")


# --- draws


def few_shots(items: list[tuple[str, int]], shots: int) -> list[str]:
    """Dassl's draw, restated: classes as they first appear, `random.sample` wherever there are enough."""
    by_label = defaultdict(list)
    for item in items:
        by_label[item[1]].append(item)
    drawn = []
    for members in by_label.values():
        drawn.extend(random.sample(members, shots) if len(members) >= shots else members)
    return [path for path, _ in drawn]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 2, 4, 16])
def test_draws_are_dassls(shots, seed):
    """Also where a class has exactly as many photos as are drawn, or fewer: that moves all draws after it."""
    counts = [5, 4, 1, 16, 2, 17, 4]
    rows = [(f"{label}/{i}", label) for label, count in enumerate(counts) for i in range(count)]
    random.Random(7).shuffle(rows)
    parts = {"train": rows, "val": [(f"v{path}", label) for path, label in rows], "test": []}
    data = PhotoData(tuple("abcdefg"), *(splits._split(part, "") for part in parts.values()))
    drawn = draw_shots(data, shots, -1, seed)
    random.seed(seed)
    assert list(drawn.train.paths) == few_shots(parts["train"], shots)
    assert list(drawn.val.paths) == few_shots(parts["val"], min(shots, 4))


# --- one reader


def test_test_photos_that_are_copies_are_reported(tmp_path, capsys):
    from jclip.features.extraction import warn_photos

    for i in range(4):
        photo(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", i)
    for part, name in (("test", "x.png"), ("val", "y.png")):
        (tmp_path / part / "a").mkdir(parents=True)
        shutil.copyfile(tmp_path / "train" / "a" / "0.png", tmp_path / part / "a" / name)
    photo(tmp_path / "test" / "b" / "new.png", 9)
    warn_photos(read(tmp_path), 0)
    stderr = capsys.readouterr().err
    assert f"1 of 1 val and 1 of 2 test photos are training photos too (first: {tmp_path}/val/a/y.png)" in stderr


def test_epochs_do_not_read_the_lists_again(monkeypatch):
    from jclip.features import extraction as features
    from jclip.features.precomputed import FeatureSet

    split, none = Split(("1", "2"), np.zeros(2, np.int32)), np.zeros((0, 3), np.float32)
    seen = FeatureSet(
        ("a", "b"), *[none, none[:, 0]] * 3, None, 1.0, photos=PhotoData(("a", "b"), split, Split(), Split())
    )
    monkeypatch.setattr(features, "read_photos", lambda data: pytest.fail("the lists are read again"))
    monkeypatch.setattr(features, "_labelled", lambda source, of, **options: (of, options["first_view"], None))
    for epoch in range(3):
        assert features.training_view(DataConfig(root="x"), None, seen, "mirror", 1, epoch) == (split, epoch)


def test_the_faulty_folder_is_read_as_a_person_would(tmp_path):
    data = read(faulty_folder(tmp_path / "root"))
    assert len(data.classnames) == 13 and [len(data.train), len(data.val), len(data.test)] == [48, 24, 27]
    assert data.classnames[-1] == "苹果" and sum(data.left.counts.values()) == 15


def test_hold_out_takes_names_that_are_no_utf8(tmp_path):
    from jclip.commands.hold_out import main

    apple = os.fsdecode("苹果".encode("gb18030"))
    for i in range(6):
        photo(tmp_path / "TrainSet" / apple / f"{i}.png", i)
    names = [f"TrainSet/苹果/{i}.png {i % 2}\n" for i in range(6)]
    (tmp_path / "train.txt").write_text("".join(names), encoding="gb18030")
    (tmp_path / "classes.txt").write_text("Animal_Bear 0\nAnimal_Cat 1\n")
    assert main([str(tmp_path), "--count", "2", "--shots", "1"]) == 0
    assert "苹果" in (tmp_path / "train_4class.txt").read_text(encoding="utf-8")
    data = read(tmp_path, shots=4)
    assert len(data.train) == len(data.val) == 2 and all(map(os.path.isfile, data.train.paths))
