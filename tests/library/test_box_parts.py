"""Files of phrases with boxes as parts of grounding's data: splits, sources, photos that are absent or broken."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jclip.config import BoxDataConfig, build
from jclip.data import box_photos, loader
from jclip.data.box_parts import file_samples, joined, part_samples, warn_shared
from jclip.data.box_photo_views import BoxViews
from jclip.data.box_views import BoxAugment, Normalisation
from jclip.errors import DataError, UnknownName

SIZES = {"a.png": (90, 60), "b, c.png": (50, 80), "d.png": (64, 64)}
LOOK = Normalisation((0.4, 0.5, 0.6), (0.3, 0.2, 0.1))
ROWS = [
    {"image": "a.png", "box": [10, 20.7, 40.9, 50], "phrase": "the left one", "split": "train"},
    {"image": "b, c.png", "box": [1, 2, 30, 40], "phrase": "it", "split": "train", "source": "relation"},
    {"image": "a.png", "box": [50, 5, 80, 30], "phrase": "something else", "split": "val"},
    {"image": "d.png", "box": [5, 5, 60, 60], "phrase": "a thing", "split": "testA"},
    {"image": "d.png", "box": None, "phrase": "nothing", "split": "testA"},
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Three photos, and five rows of three splits."""
    (tmp_path / "photos").mkdir()
    for number, (name, size) in enumerate(SIZES.items()):
        noise = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / name)
    write(tmp_path, ROWS)
    return tmp_path


def write(folder, rows, name="rows one.jsonl"):
    (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def config(folder, **settings) -> BoxDataConfig:
    return BoxDataConfig(train=f"{folder}/rows one.jsonl", **settings)


def test_a_part_takes_the_rows_of_its_own_split_or_of_the_one_that_is_named(folder, capsys):
    data = config(folder, val=f"{folder}/rows one.jsonl", test=f"{folder}/rows one.jsonl:testA")
    train, val, test = (part_samples(data, part, 64) for part in ("train", "val", "test"))
    assert train.phrases == ("the left one", "it") and train.labels == ("human", "relation")
    assert train.sizes.tolist() == [[90, 60], [50, 80]] and train.photo(1).size == (50, 80)
    assert val.phrases == ("something else",) and val.boxes.tolist() == [[50, 5, 80, 30]]
    assert test.phrases == ("a thing",) and test.labels == ("testA",)
    assert "1 of 2 rows left out, whose thing is absent" in capsys.readouterr().err
    with pytest.raises(
        DataError, match="must have rows of the split test for data.test, got the splits train, val, testA"
    ):
        part_samples(replace(data, test=f"{folder}/rows one.jsonl"), "test", 64)
    (folder / "none.jsonl").write_text('{"image": "d.png", "box": [1, 2, 3, 4], "phrase": "it"}')
    with pytest.raises(
        DataError, match="of the split val for data.train, got rows of no split: .*none.jsonl takes all"
    ):
        part_samples(replace(data, train=f"{folder}/none.jsonl:val"), "train", 64)
    assert part_samples(data, "unseen", 64) is None and part_samples(config(folder), "val", 64) is None
    assert part_samples(BoxDataConfig(), "val", 64) is not None  # of the embedded world there are all parts


def test_photos_that_are_measured_on_and_learned_from_are_counted(folder, capsys):
    data = config(folder, val=f"{folder}/rows one.jsonl", test=f"{folder}/rows one.jsonl:testA")
    train, val, test = (part_samples(data, part, 64) for part in ("train", "val", "test"))
    capsys.readouterr()
    warn_shared(train, val, "val")
    warn_shared(train, test, "test")
    warn_shared(part_samples(BoxDataConfig(scenes=2), "train", 64), val, "val")
    assert capsys.readouterr().err == "1 of 1 photos of data.val are in data.train, too: its figures are too good\n"


def test_numbers_are_cut_as_clip_vg_cuts_them_if_asked(folder):
    rows = [{"image": "a.png", "bbox_xywh": [10.7, 20.2, 40.9, 30.6], "phrase": "x"}]
    write(folder, rows)
    assert part_samples(config(folder), "train", 64).boxes[0].tolist() == pytest.approx([10.7, 20.2, 51.6, 50.8])
    assert part_samples(config(folder, truncate=True), "train", 64).boxes[0].tolist() == [10, 20, 50, 50]


def test_several_sources_share_their_photos_and_the_embedded_world_joins_in(folder):
    write(folder, ROWS[1:2], "second.jsonl")
    data = BoxDataConfig(train=(f"{folder}/rows one.jsonl", f"{folder}/second.jsonl", "shapes"), scenes=2)
    samples = part_samples(data, "train", 64)
    assert samples.phrases[:3] == ("the left one", "it", "it") and samples.of[:3].tolist() == [0, 1, 1]
    assert len(samples.photos) == 4 and samples.photo(3).size == (64, 64)
    assert samples.counts()["of"]["relation"] == 2
    both = joined([samples, samples.of_rows([2, 0])])
    assert len(both) == len(samples) + 2 and both.of[-2:].tolist() == [1, 0]
    assert samples.of_photos([1]).phrases == ("it", "it")


def test_photos_that_are_absent_or_broken_and_boxes_outside_stop_or_are_left_out(folder, capsys):
    broken = (folder / "photos" / "b, c.png").read_bytes()
    (folder / "photos" / "b, c.png").write_bytes(broken[: len(broken) // 2])
    bad = [{**ROWS[0], "image": "no such.png"}, {**ROWS[0], "box": [50, 5, 180, 30]}]
    wrong = ("there is no photo: no such.png below", "box must lie within the picture of 90 x 60")
    for row, said in zip(bad, wrong, strict=True):
        write(folder, [ROWS[0], row])
        with pytest.raises(DataError, match=f"rows one.jsonl, line 2: {said}.*data.on_error=skip"):
            part_samples(config(folder), "train", 64)
    write(folder, [ROWS[0], *bad, ROWS[1]])
    samples = part_samples(config(folder, on_error="skip"), "train", 64)
    assert samples.phrases == ("the left one",) and len(samples.photos) == 1
    said = capsys.readouterr().err
    assert (
        "2 of 4 rows left out" in said and "1 of 2 photos and their phrases are left out" in said and "b, c.png" in said
    )
    stopping = file_samples(config(folder), _only(folder, ROWS[1]), "train")
    views = BoxViews(32, LOOK)
    with pytest.raises(DataError, match="b, c.png does not decode.*on_error=skip"):
        list(box_photos.views_of_photos(stopping, [0], views, 4))


def _only(folder, row) -> str:
    write(folder, [row], "only.jsonl")
    return f"{folder}/only.jsonl"


def test_files_and_folders_that_are_not_there_are_named(folder, tmp_path):
    with pytest.raises(DataError, match="there is no file .*none.jsonl"):
        part_samples(BoxDataConfig(train=f"{tmp_path}/none.jsonl"), "train", 64)
    with pytest.raises(DataError, match="there is no file .*rows_one.jsonl, did you mean 'rows one.jsonl'"):
        part_samples(BoxDataConfig(train=f"{folder}/rows_one.jsonl"), "train", 64)
    with pytest.raises(DataError, match="folder of photos must be there.*data.images=FOLDER"):
        part_samples(config(folder, images=f"{tmp_path}/nowhere"), "train", 64)
    for name in ("form", "box_format"):
        with pytest.raises(UnknownName, match=f"unknown {name.replace('_', ' ')} 'xyz'"):
            part_samples(config(folder, **{name: "xyz"}), "train", 64)
    write(folder, ROWS[4:])
    with pytest.raises(DataError, match="has no row with a box"):
        part_samples(config(folder), "train", 64)


def test_the_folder_of_photos_has_the_name_that_other_data_give_it_too():
    assert build(BoxDataConfig, {"root": "/photos", "train": "x"}, "a.yaml").images == "/photos"


def test_views_are_the_augmentations_own_and_equal_in_threads_and_processes(folder, monkeypatch):
    samples = part_samples(config(folder), "train", 64)
    views = BoxViews(64, LOOK, BoxAugment(crop_sides=(384, 390), short_sides=(384,)), seed=3, epoch=5)
    photos, rows = [1, 0, 1], [1, 0, 1]
    monkeypatch.setattr(loader, "_WORTH_PROCESSES", 10**9)
    here = list(box_photos.views_of_photos(samples, photos, views, 2, rows))
    monkeypatch.setattr(loader, "_WORTH_PROCESSES", 1)
    there = list(box_photos.views_of_photos(samples, photos, views, 2, rows))
    assert [place for place, _ in there] == [0, 1, 2]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(here, there, strict=True))
    for (_, array), photo, row in zip(here, photos, rows, strict=True):
        seen, rng = views.view_of(array), np.random.default_rng((3, 5, row))
        pixels, box, place = views.augment(
            samples.photo(photo), samples.boxes[row], samples.phrases[row], 64, LOOK, rng
        )
        assert np.array_equal(seen.pixels, pixels) and np.array_equal(seen.box, box.astype(np.float32))
        assert seen.place.masked_patches(8).tolist() == place.masked_patches(8).tolist()
    other = replace(views, seed=4)(samples.photo(1), [1, "it", *samples.boxes[1]])
    assert np.array_equal(here[0][1], here[2][1]) and not np.array_equal(here[0][1], other)
