"""Photos into class folders and back: nothing is lost, a break can be undone, what people changed is left alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jclip.cli import main
from jclip.errors import DataError
from jclip.features.gallery import Found, Hit
from jclip.functional.background import background
from jclip.report import sorted_folders as sorting
from jclip.report.predictions import Predictions
from jclip.report.search_results import plan_links

NAMES = ("cat", "绿 thing", "a/b: c?")


@pytest.fixture
def predictions(tmp_path):
    """Five photos of three classes, two of one name, one undecided."""
    scores = np.array([[9, 0, 0], [8, 0, 0], [0, 9, 0], [0, 0, 9], [1, 1, 1.1]], np.float64)
    photos = []
    for i, name in enumerate(("one/x.jpg", "two/x.jpg", "one/图.png", "one/z.png", "two/w.jpg")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([i]) * (100 + i))
        photos.append(str(path))
    return Predictions(tuple(photos), NAMES, scores)


WANTED = ["_unsure/w.jpg", "a_b_ c_/z.png", "cat/x-2.jpg", "cat/x.jpg", "绿 thing/图.png"]


def files(folder) -> list[str]:
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() and p.name != sorting.MANIFEST
    )


@pytest.mark.parametrize("how", ["copy", "link"])
def test_sorted_and_taken_back(how, predictions, tmp_path):
    out = tmp_path / "sorted"
    placed = sorting.plan(predictions, out, unsure=0.5)
    assert not out.exists()  # a plan does nothing
    manifest = sorting.place(placed, out, how)
    assert files(out) == sorted(WANTED)
    for one in placed:
        target = out / one.target
        assert target.is_symlink() == (how == "link") and target.read_bytes() == Path(one.photo).read_bytes()
    assert main(["unsort", str(manifest.parent)]) == 0
    assert not any(out.iterdir()) and all(Path(p).is_file() for p in predictions.photos)


@pytest.mark.parametrize("how", ["copy", "link"])
def test_more_photos_beside_those_placed_before(how, predictions, tmp_path):
    """As by ticked photos of the page, one class after another; nothing is overwritten, and one `unsort` takes all back."""
    out = tmp_path / "found"

    def put(label: str, *rows: int) -> int:
        hits = tuple(Hit(row, predictions.photos[row], 0.5, 0, True) for row in rows)
        before = sorting.placed_before(out, how)
        placed = plan_links([Found(label, hits, background(np.zeros(1), 1))], out, before)
        sorting.place(placed, out, how, before)
        return len(placed)

    assert put("Cat", 0, 2) == 2 and put("dog", 1) == 1
    assert (
        put("Cat", 1, 2) == 1 and put("cat", 3) == 1
    )  # another class whose folder a file system may take for the same
    assert files(out) == ["Cat/1-x-2.jpg", "Cat/1-x.jpg", "Cat/2-图.png", "cat-2/1-z.png", "dog/1-x.jpg"]
    said = (out / sorting.MANIFEST).read_bytes()
    (out / "owl").mkdir()
    (out / "owl" / "1-w.jpg").write_text("mine")
    with pytest.raises(DataError, match="1-w.jpg stands there already"):
        put("owl", 4)
    placed = [sorting.Placement(predictions.photos[4], "owl/1-w.jpg", "owl", score=0.5)]
    with pytest.raises(FileExistsError):
        sorting.place(placed, out, how, sorting.placed_before(out, how))
    assert (out / sorting.MANIFEST).read_bytes() == said and (out / "owl" / "1-w.jpg").read_text() == "mine"
    with pytest.raises(DataError, match="found was sorted by (copy|link): choose that again"):
        sorting.placed_before(out, "link" if how == "copy" else "copy")
    assert main(["unsort", str(out / sorting.MANIFEST)]) == 0 and files(out) == ["owl/1-w.jpg"]
    (out / sorting.MANIFEST).write_text("a note of mine")
    with pytest.raises(DataError, match="must be a manifest"):
        sorting.placed_before(out, how)


def test_everything_is_sure_without_a_threshold(predictions, tmp_path):
    assert not any(p.target.startswith("_unsure") for p in sorting.plan(predictions, tmp_path / "out"))


def test_a_photo_exactly_at_the_threshold_is_sure(tmp_path):
    half = Predictions(("x.jpg",), NAMES[:2], np.zeros((1, 2)))
    for unsure, target in ((0.5, "cat/x.jpg"), (np.nextafter(0.5, 1), "_unsure/x.jpg")):
        assert [p.target for p in sorting.plan(half, tmp_path / "out", unsure)] == [target]


def test_what_stands_there_is_never_overwritten(predictions, tmp_path):
    (tmp_path / "out" / "cat").mkdir(parents=True)
    (tmp_path / "out" / "cat" / "x.jpg").write_text("mine")
    with pytest.raises(DataError, match="x.jpg stands there already: name another folder"):
        sorting.plan(predictions, tmp_path / "out")
    assert files(tmp_path / "out") == ["cat/x.jpg"]


@pytest.mark.parametrize("how", ["copy", "link"])
def test_what_was_changed_since_is_left(how, predictions, tmp_path, capsys):
    out = tmp_path / "out"
    manifest = sorting.place(sorting.plan(predictions, out), out, how)
    changed = out / "cat" / "x.jpg"
    changed.unlink()
    changed.write_text("drawn over")
    (out / "cat" / "x-2.jpg").unlink()
    assert main(["unsort", str(manifest)]) == 0
    printed = capsys.readouterr().out
    reason = "was changed since" if how == "copy" else "is no longer a link"
    assert f"left, as it {reason}: cat/x.jpg" in printed and "removed: 3" in printed
    assert files(out) == ["cat/x.jpg"] and manifest.is_file()


@pytest.mark.parametrize("mine", [False, True], ids=["new folder", "a folder of the user's"])
@pytest.mark.parametrize("how", ["copy", "link"])
def test_an_error_in_the_middle_leaves_nothing(how, mine, predictions, tmp_path, capsys):
    out = tmp_path / "out"
    if mine:
        (out / "cat").mkdir(parents=True)
        (out / "cat" / "mine.txt").write_text("mine")
    placed = sorting.plan(predictions, out)
    (out / "绿 thing").mkdir(parents=True)
    (out / "绿 thing" / "图.png").write_text("made meanwhile")
    with pytest.raises(FileExistsError):
        sorting.place(placed, out, how)
    assert files(out) == [*(["cat/mine.txt"] if mine else []), "绿 thing/图.png"]
    assert (out / "绿 thing" / "图.png").read_text() == "made meanwhile" and not (out / sorting.MANIFEST).exists()


@pytest.mark.parametrize("text", ["", "{}", '{"how": "copy", "photos": [{"x": 1}]}', "[1]"])
def test_what_is_no_manifest_is_reported(text, tmp_path):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(DataError, match="must be a manifest of sorted photos"):
        sorting.undo(tmp_path / "m.json")
    with pytest.raises(DataError, match="must be a manifest"):
        sorting.undo(tmp_path / "absent.json")


def test_a_manifest_reaches_nothing_outside_its_folder(predictions, tmp_path):
    """A stranger's manifest can't remove files elsewhere."""
    victim = tmp_path / "victim.txt"
    victim.write_text("x")
    copy = tmp_path / "copy.txt"
    copy.write_text("x")
    folder = tmp_path / "in"
    folder.mkdir()
    one = {"photo": str(copy), "target": "../victim.txt", "label": "a", "probability": 1.0}
    (folder / sorting.MANIFEST).write_text(json.dumps({"how": "copy", "photos": [one]}))
    with pytest.raises(DataError, match="outside"):
        sorting.undo(folder / sorting.MANIFEST)
    assert victim.is_file()
