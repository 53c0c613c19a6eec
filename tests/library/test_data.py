"""Folders, lists, split files and tables give the same data; shots are drawn by seed; broken photos are reported."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jclip.config import DataConfig
from jclip.data.challenge_folder import strip_prefix
from jclip.data.checks import check_apart, copied, repeated
from jclip.data.class_names import read_classes, read_names
from jclip.data.multi_label import read_multi_label
from jclip.data.splits import (
    PhotoData,
    Split,
    draw_shots,
    find_photos,
    natural_key,
    read_list,
    read_photos,
)
from jclip.errors import DataError
from tests.library.conftest import CLASSES


def names(split: Split) -> list[str]:
    return ["/".join(p.split("/")[-3:]) for p in split.paths]


def test_natural_order():
    assert sorted(["a10.jpg", "a2.jpg", "b1", "10", "9", "a"], key=natural_key) == [
        "9",
        "10",
        "a",
        "a2.jpg",
        "a10.jpg",
        "b1",
    ]


def test_folders_with_parts(photos):
    data = read_photos(DataConfig(root=str(photos), shots=0))
    assert data.classnames == tuple(sorted(CLASSES, key=lambda c: c.encode()))
    assert (len(data.train), len(data.val), len(data.test)) == (18, 0, 6)
    assert names(data.train)[:6] == [f"train/Polar Bear/{i}.png" for i in (5, 10, 15, 20, 25, 30)]
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6


def test_every_form_gives_the_same_data(photos, tmp_path):
    config = DataConfig(root=str(photos), shots=2, val_shots=1, seed=3)
    wanted = read_photos(config)
    order = list(wanted.classnames)

    def rows(part):
        whole = read_photos(DataConfig(root=str(photos), shots=0))
        return [
            (p.removeprefix(f"{photos}/"), int(y)) for p, y in zip(*vars(getattr(whole, part)).values(), strict=True)
        ]

    (tmp_path / "classes.txt").write_text("".join(f"{n} {i}\n" for i, n in enumerate(order)), encoding="utf-8")
    for part in ("train", "test"):
        lines = [f"{p} {y}" for p, y in rows(part)]
        (tmp_path / f"{part}.txt").write_text("\ufeff" + "\r\n".join(lines).replace("/", "\\"), encoding="utf-8")
    lists = DataConfig(
        root=str(photos), train=str(tmp_path / "train.txt"), test=str(tmp_path / "test.txt"),
        classes=str(tmp_path / "classes.txt"), shots=2, val_shots=1, seed=3,
    )  # fmt: skip
    split = {part: [[p, y, order[y]] for p, y in rows(part)] for part in ("train", "test")} | {"val": [], "extra": 1}
    (tmp_path / "split_zhou_Mine.json").write_text(json.dumps(split), encoding="utf-8")
    table = ["path\tdomain\tclassname\tsplit"] + [
        f"{p}\tx\t{order[y]}\t{part}" for part in ("train", "test") for p, y in rows(part)
    ]
    (tmp_path / "index.tsv").write_text("\n".join(table), encoding="utf-8")
    (tmp_path / "index.csv").write_text("\n".join(table).replace("\t", ","), encoding="utf-8")
    files = [replace(config, split_file=str(tmp_path / f)) for f in ("split_zhou_Mine.json", "index.tsv", "index.csv")]
    for other in (lists, *files):
        data = read_photos(other)
        assert data.classnames == wanted.classnames
        for part in ("train", "val", "test"):
            assert getattr(data, part).paths == getattr(wanted, part).paths, (other, part)
            assert (getattr(data, part).labels == getattr(wanted, part).labels).all()


def test_a_folder_per_class_without_parts_holds_photos_out(photos):
    data = read_photos(DataConfig(root=str(photos / "train"), shots=3, val_shots=2))
    assert (len(data.train), len(data.val), len(data.test)) == (9, 6, 0)
    assert not set(data.train.paths) & set(data.val.paths)
    assert np.bincount(data.train.labels).tolist() == [3, 3, 3] and np.bincount(data.val.labels).tolist() == [2, 2, 2]


def test_shots_follow_coops_protocol():
    """Classes in order of first appearance, `random.sample` from one stream: train first, then val."""
    train = Split(tuple(f"t{i}" for i in range(12)), np.array([1, 0, 1, 2, 0, 2] * 2, np.int32))
    val = Split(tuple(f"v{i}" for i in range(9)), np.array([0, 1, 2] * 3, np.int32))
    drawn = draw_shots(PhotoData(("a", "b", "c"), train, val, Split()), shots=2, val_shots=-1, seed=5)
    rng = random.Random(5)
    wanted = [
        p
        for y in (1, 0, 2)
        for p in rng.sample([t for t, label in zip(train.paths, train.labels, strict=True) if label == y], 2)
    ]
    assert list(drawn.train.paths) == wanted
    wanted = [
        p
        for y in (0, 1, 2)
        for p in rng.sample([v for v, label in zip(val.paths, val.labels, strict=True) if label == y], 2)
    ]
    assert list(drawn.val.paths) == wanted


def test_seeds_draw_different_photos_and_the_same_again(photos):
    draws = [read_photos(DataConfig(root=str(photos), shots=2, val_shots=1, seed=s)).train.paths for s in (1, 2, 1)]
    assert draws[0] == draws[2] != draws[1]


@pytest.mark.parametrize("shots, held", [(1, 1), (3, 3), (4, 4), (5, 4), (16, 4)])
@pytest.mark.parametrize("own", [True, False], ids=["val split", "held out of train"])
def test_as_many_are_drawn_to_choose_by_as_to_train_on_but_at_most_four(shots, held, own):
    train, val = (Split(tuple(f"{part}{i}" for i in range(60)), np.arange(60) % 3) for part in ("t", "v"))
    drawn = draw_shots(PhotoData(("a", "b", "c"), train, val if own else Split(), Split()), shots, -1, 1)
    assert np.bincount(drawn.train.labels).tolist() == [shots] * 3
    assert np.bincount(drawn.val.labels).tolist() == [held] * 3


@pytest.mark.parametrize("shots, val_shots, drawn, held", [(7, 0, 6, 0), (5, 2, 5, 1), (16, -1, 5, 1), (4, 2, 4, 2)])
def test_a_class_with_too_few_photos_gives_all_it_has(photos, shots, val_shots, drawn, held):
    """Six of each class: where training and validation want more, they share them in proportion."""
    data = read_photos(DataConfig(root=str(photos), shots=shots, val_shots=val_shots))
    assert np.bincount(data.train.labels).tolist() == [drawn] * 3
    assert np.bincount(data.val.labels, minlength=3).tolist() == [held] * 3
    assert not set(data.train.paths) & set(data.val.paths)


WRONG = [
    (dict(root="none"), "data.root must be a folder"),
    (dict(root="empty"), "no class folders below"),
    (dict(root="one"), "only one class \\(cat\\)"),
    (dict(), "no data named"),
    (dict(train="list.txt"), "need data.classes"),
    (dict(train="list.txt", classes="classes.txt"), "line 2: must be `relative/path label`, got 'b.png', whose f"),
    (dict(train="far.txt", classes="classes.txt"), "label 7 is beyond the 2 classes"),
    (dict(train="gone.txt", classes="classes.txt"), "train: 2 of 2 photos are missing: .*x.png"),
    (dict(train="nothing.txt", classes="classes.txt"), "nothing.txt is empty"),
    (dict(train="twice.txt", classes="classes.txt"), '/a.png has two labels, 0 \\("cat"\\) and 1 \\("dog"\\): keep'),
    (dict(train="once.txt", test="other.txt", classes="classes.txt"), "/a.png has two labels, 0 .* and 1"),
    (dict(train="list.txt", classes="gap.txt"), "labels must be 0 to 1, each once, got 0, 2"),
    (dict(train="list.txt", classes="unlabelled.txt"), "must have `name label` lines, got 'cat'"),
    (dict(train="list.txt", classes="absent.txt"), "can't read .*absent.txt: No such file"),
    (dict(split_file="broken.json"), "broken.json is not valid JSON, line 1"),
    (dict(split_file="gap.json"), "labels must be 0 to 1 without a gap, got 0, 2"),
    (
        dict(split_file="half.json"),
        "half.json: train\\[0\\]: label must be an integer from 0 to 2147483647, got 0.5",
    ),
    (dict(split_file="two_names.json"), "label 0 is called both 'a' and 'b'"),
    (dict(split_file="columns.tsv"), "lacks the column split"),
    (dict(split_file="none.json"), "no such split file"),
]


@pytest.mark.parametrize("config, message", WRONG, ids=[m[:40] for _, m in WRONG])
def test_what_is_wrong_is_reported(photos, tmp_path, config, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one" / "cat").mkdir(parents=True)
    texts = {
        "list.txt": "a.png 0\nb.png", "far.txt": "a.png 7", "gone.txt": "x.png 0\ny.png 1", "nothing.txt": "\n\n",
        "classes.txt": "cat 0\ndog 1", "gap.txt": "cat 0\ndog 2", "unlabelled.txt": "cat\ndog 1",
        "broken.json": "{", "gap.json": json.dumps({"train": [["a", 0, "a"], ["b", 2, "b"]]}),
        "twice.txt": "a.png 0\na.png 1", "once.txt": "a.png 0", "other.txt": "a.png 1",
        "half.json": json.dumps({"train": [["a", 0.5, "a"]]}),
        "two_names.json": json.dumps({"train": [["a", 0, "a"], ["b", 0, "b"]]}), "columns.tsv": "path\tclassname\na\tb",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "a.png").touch()
    config = {k: str(photos if v == "photos" else tmp_path / v) if isinstance(v, str) else v for k, v in config.items()}
    with pytest.raises(DataError, match=message) as error:
        read_photos(DataConfig(**config))
    assert "\n" not in str(error.value)


def test_class_files(tmp_path):
    (tmp_path / "c.txt").write_text("Animal_Polar Bear 1\nThu-dog_哈士奇 0\n", encoding="utf-8")
    assert read_classes(tmp_path / "c.txt") == ("Thu-dog_哈士奇", "Animal_Polar Bear")
    (tmp_path / "n.txt").write_text("Boeing 747\nBoeing 737\n")
    assert read_names(tmp_path / "n.txt") == ("Boeing 747", "Boeing 737")
    assert [strip_prefix(c) for c in ("Animal_Polar_Bear", "plain")] == ["Polar_Bear", "plain"]


def test_lists_take_backslashes_and_leading_slashes(tmp_path):
    (tmp_path / "l.txt").write_text("/TrainSet\\Animal\\a b.jpg 3\n")
    split = read_list(tmp_path / "l.txt", tmp_path)
    assert split.paths == (str(tmp_path / "TrainSet" / "Animal" / "a b.jpg"),) and split.labels.tolist() == [3]


NAMES = ("Animal_Bear", "Animal_Polar_bear", "Caltech-101_bear", "Thu-dog_pug", "Food-101_pie")


@pytest.mark.parametrize(
    "line, label",
    [
        ("/TrainSet/Animal/Bear/20.jpg", 0),
        ("TrainSet\\Animal\\Polar_bear\\a b 1.jpg", 1),
        ("TrainSet/Caltech-101/bear/1.jpg", 2),
        ("pug/7.jpg", 3),
        ("TrainSet/Animal/Bear/20.jpg 4", 4),  # what is said counts
    ],
)
def test_a_list_without_labels_infers_them_from_its_folders(line, label, tmp_path):
    (tmp_path / "train_4class.txt").write_text(line)
    assert read_list(tmp_path / "train_4class.txt", tmp_path, NAMES).labels.tolist() == [label]
    stripped = tuple(map(strip_prefix, NAMES))
    if label != 2:
        assert read_list(tmp_path / "train_4class.txt", tmp_path, stripped).labels.tolist() == [label]


@pytest.mark.parametrize("folder, near", [("Beer", "Animal_Bear"), ("Polar_bar", "Polar_bear")])
def test_a_class_name_that_does_not_fit_is_reported(folder, near, tmp_path):
    (tmp_path / "list.txt").write_text(f"TrainSet/Animal/Bear/1.jpg\nTrainSet/Animal/{folder}/1.jpg")
    with pytest.raises(
        DataError, match=f"line 2: .*{folder}/1.jpg', whose folder is not a class, did you mean '.*ear'"
    ):
        read_list(tmp_path / "list.txt", tmp_path, NAMES)
    (tmp_path / "list.txt").write_text("x/bear/1.jpg")
    with pytest.raises(DataError, match="whose folder is not a class"):  # two classes are called so
        read_list(tmp_path / "list.txt", tmp_path, ("A_bear", "B_bear", "A_pug"))


def test_the_challenges_folder_is_read_by_its_names(tmp_path):
    for place in ("TrainSet/Animal/Bear/1.jpg", "TrainSet/Animal/Bear/2.jpg", "TrainSet/Food/pie/1.jpg",
                  "TestSetZ/0.jpg", "TestSetZ/1.jpg"):  # fmt: skip
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    (tmp_path / "classes.txt").write_text("Animal_Bear 0\nFood_pie 1\n")
    (tmp_path / "classes_b.txt").write_text("Animal_Bear 0\nFood_pie 1\nStanford-Cars_Audi_2012 2\n")
    (tmp_path / "train.txt").write_text(
        "TrainSet/Animal/Bear/1.jpg 0\nTrainSet/Animal/Bear/2.jpg 0\nTrainSet/Food/pie/1.jpg 1"
    )
    data = read_photos(DataConfig(root=str(tmp_path), shots=1, val_shots=0, strip_prefix=True))
    assert data.classnames == ("Bear", "pie") and len(data.train) == 2 and not len(data.val)
    (tmp_path / "train_4class.txt").write_text("/TrainSet/Animal/Bear/2.jpg\n/TrainSet/Food/pie/1.jpg\n")
    (tmp_path / "TestSetZ-label.txt").write_text("1.jpg\t1\n0.jpg\t0\n")
    config = DataConfig(root=str(tmp_path), shots=4, val_shots=0, strip_prefix=True)
    data = read_photos(config)
    assert data.train.paths == tuple(f"{tmp_path}/TrainSet/{p}" for p in ("Animal/Bear/2.jpg", "Food/pie/1.jpg"))
    assert data.train.labels.tolist() == [0, 1]
    assert data.val.paths == (f"{tmp_path}/TestSetZ/1.jpg", f"{tmp_path}/TestSetZ/0.jpg") and not len(data.test)
    assert data.val.labels.tolist() == [1, 0]
    assert len(read_photos(replace(config, train=str(tmp_path / "train.txt"))).train) == 3
    assert read_photos(replace(config, classes=str(tmp_path / "classes_b.txt"))).classnames[2] == "Audi_2012"


def test_photos_that_stand_twice_are_found_by_path_link_and_bytes(tmp_path):
    for name, text in (("a.jpg", "one"), ("b.jpg", "two"), ("copy of a.jpg", "one"), ("c.jpg", "six")):
        (tmp_path / name).write_text(text)
    (tmp_path / "link to b.jpg").symlink_to(tmp_path / "b.jpg")
    a, b, c, copy, link = (str(tmp_path / n) for n in ("a.jpg", "b.jpg", "c.jpg", "copy of a.jpg", "link to b.jpg"))
    assert repeated([a, b], [a, c, copy, link]) == [a, link]
    assert copied([a, b], [a, c, copy, link]) == [a, copy, link]
    check_apart([a, b], [c, copy])
    with pytest.raises(DataError, match=r"1 of 2 validation photos are training photos too \(.*link to b.jpg\): take"):
        check_apart([a, b], [c, link])


def test_finding_photos(photos, tmp_path):
    found = find_photos([photos / "test" / "猫", photos / "train" / "zebra" / "5.png"])
    assert [f.split("/")[-1] for f in found] == ["5.png", "10.png", "5.png"]
    for place, message in ((tmp_path / "nowhere", "no such photo"), (tmp_path / "bare", "no photo below")):
        (tmp_path / "bare").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message):
            find_photos([place])


def test_digest_follows_content_and_labels(photos):
    split = read_photos(DataConfig(root=str(photos), shots=0)).test
    before = split.digest()
    assert before == split.digest() != split.take([1, 0, 2, 3, 4, 5]).digest()
    assert Split(split.paths, split.labels[::-1].copy()).digest() != before
    Image.new("RGB", (50, 50)).save(split.paths[0])
    assert split.digest() != before


LINES = {  # of a list → what it names below its folder, and the label
    "a.png 1": ("a.png", 1),
    "a.png\t\t 1  ": ("a.png", 1),
    "./a.png,1": ("a.png", 1),
    "a.png; 1": ("a.png", 1),
    "sub\\x\\..\\b c.png 1": ("sub/x/../b c.png", 1),
    "50%25 off.png 1": ("50%25 off.png", 1),
    "a, b.png 1": ("a, b.png", 1),
    "1 a.png": ("a.png", 1),
    "1,a.png": ("a.png", 1),
    "#1.png 0": ("#1.png", 0),
    "caf\u00e9.png 1": ("cafe\u0301.png", 1),
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_a_list(tmp_path, line):
    name, label = LINES[line]
    (tmp_path / "sub" / "x").mkdir(parents=True)
    (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text(line + "\n", encoding="utf-8")
    split = read_list(tmp_path / "list.txt", tmp_path, ("cat", "dog"))
    assert split.paths == (str(tmp_path / name),) and split.labels.tolist() == [label]


def test_absolute_paths_and_names_in_gb18030(tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    photo = tmp_path / "elsewhere" / os.fsdecode("黑狗.png".encode("gb18030"))
    photo.touch()
    (tmp_path / "elsewhere" / "b.png").touch()
    (tmp_path / "list.txt").write_bytes(
        "elsewhere/黑狗.png 0\n".encode("gb18030") + f"{tmp_path}/elsewhere/b.png 1\n".encode()
    )
    split = read_list(tmp_path / "list.txt", tmp_path, ("cat", "dog"))
    assert split.paths == (str(photo), str(tmp_path / "elsewhere" / "b.png"))
    assert "1 photos are found under another spelling of their names" in capsys.readouterr().err


@pytest.mark.parametrize("read", [read_list, "many"])
@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("2", "label 2 is beyond the 2 classes"),
        ("4294967296", "label 4294967296 is beyond the 2 classes"),
        ("9" * 5000, "label 9{40} is beyond the 2 classes"),
        ("-1", "labels must be integers from 0, got '-1'"),
        ("1.0", "labels must be integers from 0, got '1.0'"),
        ("True", "labels must be integers from 0, got 'True'"),
        ("nan", "labels must be integers from 0, got 'nan'"),
        ("١", "labels must be integers from 0"),
    ],
)
def test_labels_that_are_none_are_refused_with_their_line(tmp_path, read, label, message):
    (tmp_path / "a.png").touch()
    (tmp_path / "list.txt").write_text(f"a.png 1\n\na.png {label}\n", encoding="utf-8")
    (tmp_path / "classes.txt").write_text("cat 0\ndog 1\n")
    with pytest.raises(DataError, match=f"list.txt, line 3: {message}"):
        if read == "many":
            read_multi_label(DataConfig(test=str(tmp_path / "list.txt"), classes=str(tmp_path / "classes.txt")))
        else:
            read(tmp_path / "list.txt", tmp_path, ("cat", "dog"))


def test_labels_without_classes_fit_32_bits(tmp_path):
    (tmp_path / "list.txt").write_text("a.png 2147483648\n")
    with pytest.raises(DataError, match="line 1: labels must be at most 2147483647"):
        read_list(tmp_path / "list.txt", tmp_path)


def test_folders_of_a_list_are_compared_as_names_are(tmp_path):
    (tmp_path / "list.txt").write_text("x/Cafe\u0301 noir/1.png\nx/DOG/1.png\n", encoding="utf-8")
    assert read_list(tmp_path / "list.txt", tmp_path, ("caf\u00e9_noir", "dog")).labels.tolist() == [0, 1]


def test_the_challenges_folder_needs_its_classes_and_a_list(tmp_path):
    from jclip.data.challenge_folder import from_folder

    config = DataConfig(root=str(tmp_path))
    (tmp_path / "classes.txt").write_text("a 0\nb 1\n")
    assert from_folder(config) == config
    (tmp_path / "train.txt").write_text("a/0.jpg 0\n")
    found = from_folder(config)
    assert (found.classes, found.train) == (str(tmp_path / "classes.txt"), str(tmp_path / "train.txt"))
    (tmp_path / "train_4class.txt").write_text("a/0.jpg 0\n")
    assert from_folder(config).train == str(tmp_path / "train_4class.txt") and not from_folder(config).val
    (tmp_path / "classes.txt").unlink()
    assert from_folder(config) == config


def test_a_preview_shows_the_first_few_and_says_where_it_breaks_off():
    from jclip.data.checks import preview

    assert preview("abcde") == "a, b, c, d, e" and preview("abcdef") == "a, b, c, d, e, …" and preview("a") == "a"
