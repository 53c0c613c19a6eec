"""Files of captions as others publish them, in many forms, and what is refused in each with its place."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jclip.config import CaptionConfig
from jclip.data.augment import Views
from jclip.data.captions import read_pairs
from jclip.data.chinese_clip import prediction_bytes, prediction_recalls, read_predictions
from jclip.data.photo_file import open_photo
from jclip.data.preprocess import Preprocess
from jclip.data.stored_photos import StoredPhoto, spoken_path
from jclip.errors import ConfigError, DataError

SHARED = Path(__file__).parent.parent.parent.parent / "shared" / "data"
NAMES = ("1.jpg", "2.jpg", "3.jpg")
COCO = {
    "images": [{"id": i, "file_name": name} for i, name in enumerate(NAMES)],
    "annotations": [
        {"image_id": 2, "id": 7, "caption": "three, and more"},
        {"image_id": 0, "id": 8, "caption": "one"},
        {"image_id": 0, "id": 9, "caption": "a second of one"},
        {"image_id": 1, "id": 10, "caption": "two"},
    ],
}
KARPATHY = {
    "dataset": "coco",
    "images": [
        {"filename": "1.jpg", "filepath": ".", "split": "train", "sentences": [{"raw": "one"}, {"raw": "uno"}]},
        {"filename": "2.jpg", "split": "restval", "sentences": [{"raw": "two"}]},
        {"filename": "3.jpg", "split": "test", "sentences": [{"raw": "three"}]},
    ],
}
THREE = [("1.jpg", "one"), ("1.jpg", "uno"), ("2.jpg", "two")]
FILES = {
    "coco.json": (
        json.dumps(COCO),
        [("3.jpg", "three, and more"), ("1.jpg", "one"), ("1.jpg", "a second of one"), ("2.jpg", "two")],
    ),
    "karpathy.json": (json.dumps(KARPATHY), THREE),
    "list.json": (
        json.dumps([{"image": "1.jpg", "captions": ["one", "uno"]}, {"image": "2.jpg", "caption": "two"}]),
        THREE,
    ),
    "kaggle.txt": (
        'image,caption\n1.jpg,one, or so\n1.jpg,"uno, ""one"""\n2.jpg,two .\n',
        [("1.jpg", "one, or so"), ("1.jpg", 'uno, "one"'), ("2.jpg", "two .")],
    ),
    "benchmark.csv": ("image,caption\n1.jpg,one, or so\n3.jpg,three\n", [("1.jpg", "one, or so"), ("3.jpg", "three")]),
    "headless.txt": ("1.jpg,one, or so\n2.jpg,two\n", [("1.jpg", "one, or so"), ("2.jpg", "two")]),
    "flickr30k.csv": (
        "image_name| comment_number| comment\n1.jpg| 0| one , or so .\n1.jpg| 1| uno\n",
        [("1.jpg", "one , or so ."), ("1.jpg", "uno")],
    ),
    "flickr8k.token": ("1.jpg#0\tone\n1.jpg#1\tuno\n2.jpg#0\ttwo\n", THREE),
    "completed.txt": (
        "1.jpg$white Audi$A white Audi.$white Audi SUV\n2.jpg$SUV$An SUV$red SUV\n",
        [("1.jpg", "white Audi SUV"), ("2.jpg", "red SUV")],
    ),
    "truth.txt": (
        "A white Audi.$1.jpg$3.jpg\nAn SUV.$2.jpg\n",
        [("1.jpg", "A white Audi."), ("3.jpg", "A white Audi."), ("2.jpg", "An SUV.")],
    ),
}


@pytest.fixture
def photos(tmp_path) -> Path:
    for i, name in enumerate(NAMES):
        Image.new("RGB", (9 + i, 8), (60 * i, 10, 200)).save(tmp_path / name)
    return tmp_path


def read(file: Path, part: str = "train", **settings):
    return read_pairs(CaptionConfig(train=str(file), val=str(file), **settings), part, (8, 8), 0)


def rows_of(pairs) -> list[tuple[str, str]]:
    return list(zip([Path(spoken_path(p)).name for p in pairs.paths], pairs.texts(range(len(pairs)))[0], strict=True))


@pytest.mark.parametrize("name", FILES)
def test_formats(photos, name):
    text, wanted = FILES[name]
    (photos / name).write_text(text, encoding="utf-8")
    assert rows_of(read(photos / name)) == wanted


def test_which_rows_share_images_and_texts(photos):
    (photos / "coco.json").write_text(json.dumps(COCO), encoding="utf-8")
    pairs = read(photos / "coco.json")
    assert pairs.images.tolist() == [0, 1, 1, 2] and pairs.queries.tolist() == [0, 1, 2, 3]
    assert read(photos / "coco.json", captions_per_image=1).images.tolist() == [0, 1, 2]
    (photos / "truth.txt").write_text(FILES["truth.txt"][0], encoding="utf-8")
    pairs = read(photos / "truth.txt")
    assert pairs.images.tolist() == [0, 1, 2] and pairs.queries.tolist() == [0, 0, 1]
    (photos / "equal.tsv").write_text("filepath\ttitle\n1.jpg\tred\n2.jpg\tred\n3.jpg\tblue\n", encoding="utf-8")
    assert read(photos / "equal.tsv").queries.tolist() == [0, 1, 2]
    assert read(photos / "equal.tsv", queries="texts").queries.tolist() == [0, 0, 1]


def test_karpathys_splits(photos):
    (photos / "k.json").write_text(json.dumps(KARPATHY), encoding="utf-8")
    assert rows_of(read(photos / "k.json", "val", val_split="test")) == [("3.jpg", "three")]
    with pytest.raises(DataError, match="must have images of the split val, got restval, test, train"):
        read(photos / "k.json", "val")


def test_chinese_clips_texts_and_images(photos):
    lines = [f"{i}\t{base64.urlsafe_b64encode((photos / n).read_bytes()).decode()}\n" for i, n in enumerate(NAMES)]
    (photos / "valid_imgs.tsv").write_text("".join(lines), encoding="utf-8")
    texts = [{"text_id": 5, "text": "一", "image_ids": [0, 2]}, {"text_id": 6, "text": "二", "image_ids": [1]}]
    file = photos / "valid_texts.jsonl"
    file.write_text("".join(json.dumps(t, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8")
    pairs = read(file)
    assert pairs.queries.tolist() == [0, 0, 1] and pairs.texts(range(3))[0] == ["一", "一", "二"]
    assert [open_photo(p).size for p in pairs.paths] == [(9, 8), (11, 8), (10, 8)]
    ((rows, pixels),) = pairs.batches([2, 0], 0, 5, Views(Preprocess(size=(8, 8))))
    assert rows.tolist() == [2, 0] and np.array_equal(pixels[0], Preprocess(size=(8, 8))(open_photo(photos / "2.jpg")))
    (photos / "valid_imgs.tsv").write_text("0\t???\n1\tAA==\n1\tAA==\n3\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"valid_imgs.tsv, line 3: the id 1 must be unique"):
        read(file)
    broken = read(file, on_error="skip")
    assert len(broken) == 2
    with pytest.raises(DataError, match=r"valid_imgs.tsv::0 does not decode: the photo must be base64"):
        open_photo(broken.paths[0])
    file.rename(photos / "other.jsonl")
    with pytest.raises(DataError, match="must be called <part>_texts.jsonl, beside <part>_imgs.tsv, got other.jsonl"):
        read(photos / "other.jsonl")


def test_chinese_clips_predictions(tmp_path):
    """Its evaluation by hand: hits at places 1 and 6 of two texts, none of the third."""
    file = tmp_path / "p.jsonl"
    predictions = {"5": ["0", "x"], "6": [str(i) for i in range(10)], "7": ["3"]}
    file.write_bytes(prediction_bytes(predictions))
    assert json.loads(file.read_text().splitlines()[0]) == {"text_id": 5, "image_ids": [0, "x"]}
    assert read_predictions(file) == predictions
    found = prediction_recalls(predictions, {"5": {"0"}, "6": {"5", "77"}, "7": {"9"}})
    assert found == pytest.approx({"recall@1": 1 / 3, "recall@5": 1 / 3, "recall@10": 2 / 3, "mean_recall": 4 / 9})
    with pytest.raises(DataError, match="must be of the 2 texts of the truth, got 3 without 8"):
        prediction_recalls(predictions, {"5": {"0"}, "8": {"1"}})
    for text, message in (
        ('{"text_id": 1, "image_ids": [2, 2]}\n', "line 1: an image must be listed once"),
        ('{"text_id": 1}\n', "line 1: must have text_id and image_ids"),
        ('{"text_id": 1, "image_ids": []}\n{"text_id": "1", "image_ids": []}\n', "line 2: the text 1 must be unique"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            read_predictions(file)


def test_chinese_clips_ids():
    """Ids of digits are integers, as its scorer wants them, unless that would change them."""
    lines = prediction_bytes({"5": ["0", "x"], "07": ["é", "12"]}).decode().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"text_id": 5, "image_ids": [0, "x"]}, {"text_id": "07", "image_ids": ["é", 12]}
    ]  # fmt: skip


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_shards_as_img2dataset_writes_them(photos):
    photo = {n: (photos / n).read_bytes() for n in NAMES}
    folder = photos / "shards"
    folder.mkdir()
    shard(
        folder / "00001.tar", {"000010000.jpg": photo["3.jpg"], "000010000.json": b'{"caption": "three", "url": "x"}'}
    )
    shard(
        folder / "00000.tar",
        {"000000000.jpg": photo["1.jpg"], "000000000.txt": b" one", "000000000.json": b'{"caption": "other"}',
         "000000001.json": b'{"caption": null}', "000000001.txt": "zwei ü".encode(), "000000001.jpg": photo["2.jpg"]},
    )  # fmt: skip
    (folder / "00000.parquet").write_bytes(b"x")
    pairs = read(folder)
    assert rows_of(pairs) == [
        ("00000.tar::000000000.jpg", "one"),
        ("00000.tar::000000001.jpg", "zwei ü"),
        ("00001.tar::000010000.jpg", "three"),
    ]
    assert [open_photo(p).size for p in pairs.paths] == [(9, 8), (10, 8), (11, 8)]
    assert rows_of(read(folder / "00001.tar")) == [("00001.tar::000010000.jpg", "three")]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b"x"}, "key a: must have a caption"),
        ({"a.txt": b"x"}, "key a: must have a photo"),
        ({"a.jpg": b"x", "a.png": b"x", "a.txt": b"t"}, "key a: must have one photo, got a second"),
        ({"a.jpg": b"x", "a.json": b"{nonsense"}, "member a.json is not valid JSON"),
        ({"a.jpg": b"x", "a.json": b'{"caption": 5}'}, "key a: must have a caption as text, got 5"),
    ],
)
def test_broken_shards(tmp_path, members, message):
    with pytest.raises(DataError, match=message):
        read(shard(tmp_path / "a.tar", members))


@pytest.mark.parametrize("seed", [0, 1])
def test_mutants_of_archives_and_tables_are_refused_or_read(photos, seed, capsys):
    """Bytes changed, taken out and put in: each ends in one line, or in rows whose photos decode or are refused."""
    photo = (photos / "1.jpg").read_bytes()
    members = {"a/0.jpg": photo, "a/0.txt": b"one", "1.json": b'{"caption": "two"}', "1.png": photo}
    whole = shard(photos / "s.tar", members).read_bytes()
    table = b"".join(b"%d\t%s\n" % (i, base64.b64encode(photo)) for i in range(3))
    (photos / "p_texts.jsonl").write_text('{"text_id": 1, "text": "t", "image_ids": [2, 0]}\n')
    rng, refused = np.random.default_rng(seed), 0
    for number in range(200):
        data = bytearray(table if number % 2 else whole)
        for place in rng.integers(len(data) if number % 2 else 2 * 512, size=3).tolist():
            cut = int(rng.integers(0, 40)) if rng.random() < 0.3 else 0
            data[place : place + cut] = rng.integers(0, 256, int(rng.integers(0, 9)), dtype=np.uint8).tobytes()
        name = "p_imgs.tsv" if number % 2 else "m.tar"
        (photos / name).write_bytes(data)
        try:
            pairs = read(
                photos / ("p_texts.jsonl" if number % 2 else name), on_error="skip" if number % 4 < 2 else "stop"
            )
            for path in pairs.paths:
                open_photo(path)
        except DataError as e:
            refused += 1
            assert "\n" not in str(e)
    assert 50 < refused < 200
    capsys.readouterr()


def test_archives_that_are_none_or_cut_off(photos):
    whole = shard(photos / "a.tar", {"a.txt": b"x", "a.jpg": (photos / "1.jpg").read_bytes()})
    (photos / "cut.tar").write_bytes(whole.read_bytes()[:1600])
    with pytest.raises(DataError, match=r"cut.tar, member a.jpg: the archive ends in the middle of it"):
        read(photos / "cut.tar")
    (photos / "no.tar").write_bytes(b"nonsense" * 300)
    with pytest.raises(DataError, match=r"no.tar must be a plain .tar archive"):
        read(photos / "no.tar")
    (photos / "empty").mkdir()
    with pytest.raises(DataError, match="must hold .tar shards with images and captions, got none"):
        read(photos / "empty")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.json",
            json.dumps({**COCO, "annotations": [{"image_id": 9, "caption": "x"}]}),
            "annotation 1: there is no image of the id 9",
        ),
        (
            "a.json",
            json.dumps({**COCO, "annotations": [{"image_id": 1, "caption": None}]}),
            "annotation 1: must have a caption as text, got None",
        ),
        (
            "a.json",
            json.dumps({**COCO, "annotations": [{"caption": "x"}]}),
            "annotation 1: must have image_id and caption, got an object with caption",
        ),
        (
            "a.json",
            json.dumps({**COCO, "annotations": [{"image_id": [1], "caption": "x"}]}),
            r"annotation 1: there is no image of the id \[1\]",
        ),
        ("a.json", json.dumps({**COCO, "images": [COCO["images"][0]] * 2}), "image 2: its id 0 must be unique"),
        (
            "a.json",
            json.dumps({**COCO, "images": [{"id": 1}]}),
            "image 1: must have id and file_name, got an object with id",
        ),
        (
            "a.json",
            json.dumps({"images": [{"sentences": 5, "filename": "1.jpg"}]}),
            "image 1: must have filename and sentences",
        ),
        (
            "a.json",
            json.dumps({"images": [{**KARPATHY["images"][0], "sentences": [{}]}]}),
            "image 1: must have a caption as text, got None",
        ),
        ("a.json", "[1]", "entry 1: must have an image and its captions, got 1"),
        ("a.json", '[{"image": "1.jpg", "captions": []}]', "entry 1: must have an image and its captions"),
        (
            "a.json",
            '[{"image": "1.jpg\\u00000:5:raw\\u0000x", "captions": ["x"]}]',
            "entry 1: must have an image as text",
        ),
        ("a.json", "{}", "must be COCO's captions"),
        (
            "a.txt",
            'image,caption\n1.jpg,"one\nor so"\n',
            "line 2: must be `image.jpg,caption`, got a quotation mark that nothing closes",
        ),
        ("a.txt", "image,caption\n1.jpg,one\nno caption\n", "line 3: must be `image.jpg,caption`, got no caption"),
        ("a.txt", "image,caption\n1.jpg,\n", "line 2: must have a caption as text, got ''"),
        ("a.token", "1.jpg#0\tone\n1.jpg one\n", "line 2: must be `image#number<tab>caption`, got 1.jpg one"),
        ("a.csv", "image_name| comment_number| comment\n1.jpg| 0\n", "line 2: must have 3 fields"),
        ("a.txt", "A car.$1.jpg\nAn SUV.$nothing\n", r"line 2: must be `caption\$image\$image…`"),
        ("x_texts.jsonl", '{"text_id": 1, "text": "x", "image_ids": [1]}\n', "can't read .*x_imgs.tsv: No such file"),
    ],
)
def test_hostile_forms_are_refused_with_their_place(photos, name, text, message):
    (photos / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as refused:
        read(photos / name)
    assert "\n" not in str(refused.value)


def test_a_stored_photo_outside_of_its_file(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"x" * 10)
    for offset, size in ((5, 10), (-1, 2), (0, -1), (0, 2**40)):
        with pytest.raises(DataError, match=r"a.tar.*k.jpg does not decode"):
            open_photo(StoredPhoto(str(tmp_path / "a.tar"), offset, size, "k.jpg").address)
    with pytest.raises(DataError, match="does not decode"):
        open_photo("a\0nonsense")
    with pytest.raises(ConfigError, match="data.captions_per_image must be at least 0"):
        CaptionConfig(captions_per_image=-1)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not there")
def test_published_caption_files():
    flickr = read(SHARED / "flickr8k_1000" / "captions.json", root=str(SHARED / "flickr8k_1000" / "images"))
    assert len(flickr) == 5000 and flickr.images.max() + 1 == 1000
    coco, root = SHARED / "coco" / "captions_val2017.json", SHARED / "coco" / "images"
    pairs = read(coco, root=str(root), on_error="skip")
    named = {note["file_name"]: note["id"] for note in json.loads(coco.read_text())["images"]}
    there = {named[photo.name] for photo in root.iterdir() if photo.name in named}
    assert pairs.images.max() + 1 == len(there) and len(pairs) > 5 * len(there)
