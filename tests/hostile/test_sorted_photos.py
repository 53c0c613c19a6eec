"""Sorting and `unsort` against links, strangers' manifests and odd names: no only copy is ever deleted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from jclip.errors import DataError
from jclip.report import sorted_folders as sorting
from jclip.report.folder_names import KEPT, folded
from jclip.report.predictions import Predictions


def predicted(photos, classnames=("cat", "dog"), labels=None) -> Predictions:
    labels = np.arange(len(photos)) % len(classnames) if labels is None else np.asarray(labels)
    return Predictions(tuple(map(str, photos)), tuple(classnames), 9.0 * np.eye(len(classnames))[labels])


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    """Three photos of different bytes."""
    (tmp_path / "photos").mkdir()
    made = [tmp_path / "photos" / f"{i}.jpg" for i in range(3)]
    for i, photo in enumerate(made):
        photo.write_bytes(bytes([i]) * 100)
    return made


@pytest.fixture
def done(photos, tmp_path) -> Path:
    """The manifest of copies of them."""
    out = tmp_path / "out"
    return sorting.place(sorting.plan(predicted(photos), out), out, "copy")


def bytes_below(folder: Path) -> set[bytes]:
    return {p.read_bytes() for p in folder.rglob("*.jpg") if p.is_file()}


def copies(done: Path) -> list[Path]:
    return sorted(p for p in done.parent.rglob("*.jpg"))


# unsort


def originals_to_links(photos, done):
    """To save room, the originals became links to the sorted ones."""
    for photo in photos:
        (copy,) = done.parent.glob(f"*/{photo.name}")
        photo.unlink()
        photo.symlink_to(copy)


def originals_to_hard_links(photos, done):
    for photo in photos:
        (copy,) = done.parent.glob(f"*/{photo.name}")
        photo.unlink()
        photo.hardlink_to(copy)


def originals_gone(photos, done):
    for photo in photos:
        photo.unlink()


def originals_to_links_of_another_copy(photos, done):
    """Equal photos whose originals point crosswise at each other's copies."""
    there = copies(done)
    for copy in there:
        copy.write_bytes(b"the same")
    for photo in photos:
        photo.unlink()
        photo.symlink_to(next(copy for copy in there if copy.name != photo.name))


def folders_to_links(photos, done):
    """The class folders became links to the originals."""
    for folder in ("cat", "dog"):
        for copy in (done.parent / folder).iterdir():
            copy.unlink()
        (done.parent / folder).rmdir()
        (done.parent / folder).symlink_to(photos[0].parent)


def root_to_link(photos, done):
    """The sorted folder became a link, and the originals were moved to where its photos were."""
    moved = done.parent.with_name("moved")
    done.parent.rename(moved)
    done.parent.symlink_to(moved)
    originals_to_links(photos, moved / done.name)


@pytest.mark.parametrize(
    "change", [originals_to_links, originals_to_hard_links, originals_gone, originals_to_links_of_another_copy,
               folders_to_links, root_to_link],
)  # fmt: skip
def test_the_only_copy_is_never_deleted(change, photos, done, tmp_path):
    change(photos, done)
    before, files = bytes_below(tmp_path), sorted(p for p in tmp_path.rglob("*.jpg") if not p.is_symlink())
    removed, left = sorting.undo(done)
    assert removed == 0 and len(left) == 3 and done.is_file()
    assert bytes_below(tmp_path) == before and sorted(p for p in files if p.is_file()) == files


def test_a_photo_that_is_its_own_target_stays(tmp_path):
    photo = tmp_path / "cat" / "x.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"photo")
    one = {"photo": str(photo), "target": "cat/x.jpg", "label": "cat", "probability": 1.0}
    for name in (str(photo), str(tmp_path / "link" / "x.jpg")):
        manifest = tmp_path / sorting.MANIFEST
        manifest.write_text(json.dumps({"how": "copy", "photos": [{**one, "photo": name}]}))
        (tmp_path / "link").exists() or (tmp_path / "link").symlink_to(tmp_path / "cat")
        assert sorting.undo(manifest)[0] == 0 and photo.read_bytes() == b"photo"


def test_a_beginning_of_a_copy_is_removed_only_after_a_break(photos, done):
    copy = copies(done)[0]
    copy.write_bytes(copy.read_bytes()[:50])
    assert sorting.undo(done) == (2, {str(copy.relative_to(done.parent)): "it was changed since"})
    values = json.loads(done.read_text(encoding="utf-8"))
    done.write_text(json.dumps({**values, "complete": False}))
    assert sorting.undo(done) == (1, {}) and list(done.parent.iterdir()) == []


ONE = {"photo": "/p/x.jpg", "target": "cat/x.jpg", "label": "cat", "probability": 1.0}
MANIFESTS = {
    "how": {"how": "move", "photos": []},
    "photos": {"how": "copy", "photos": {}},
    "entry": {"how": "copy", "photos": [7]},
    "up": {"how": "copy", "photos": [{**ONE, "target": "../x.jpg"}]},
    "up twice": {"how": "copy", "photos": [{**ONE, "target": "../../x.jpg"}]},
    "dots": {"how": "copy", "photos": [{**ONE, "target": "cat/.."}]},
    "absolute": {"how": "copy", "photos": [{**ONE, "target": "/etc/passwd"}]},
    "deep": {"how": "copy", "photos": [{**ONE, "target": "a/b/c"}]},
    "flat": {"how": "copy", "photos": [{**ONE, "target": "x.jpg"}]},
    "number": {"how": "copy", "photos": [{**ONE, "target": 7}]},
    "zero": {"how": "copy", "photos": [{**ONE, "target": "cat/x\0.jpg"}]},
    "surrogate": {"how": "copy", "photos": [{**ONE, "target": "cat/\ud800"}]},
    "relative photo": {"how": "copy", "photos": [{**ONE, "photo": "x.jpg"}]},
    "photo": {"how": "copy", "photos": [{**ONE, "photo": None}]},
    "probability": {"how": "copy", "photos": [{**ONE, "probability": "1"}]},
    "infinite": {"how": "copy", "photos": [{**ONE, "probability": float("inf")}]},
    "score beside probability": {"how": "copy", "photos": [{**ONE, "score": 1.0}]},
    "neither": {"how": "link", "photos": [{**ONE, "probability": None}]},
    "score": {"how": "link", "photos": [{**ONE, "probability": None, "score": True}]},
    "folders": {"how": "copy", "photos": [], "folders": ["../x"]},
    "folders of another type": {"how": "copy", "photos": [], "folders": 7},
    "complete": {"how": "copy", "photos": [], "complete": "yes"},
    "list": [],
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_strangers_manifest_is_refused_whole(name, tmp_path):
    folder = tmp_path / "in"
    (folder / "cat").mkdir(parents=True)
    for place in (tmp_path / "x.jpg", folder / "x.jpg", folder / "cat" / "x.jpg"):
        place.write_bytes(b"x")
    (folder / sorting.MANIFEST).write_text(json.dumps(MANIFESTS[name]))
    with pytest.raises(DataError, match="must be a manifest of sorted photos"):
        sorting.undo(folder / sorting.MANIFEST)
    assert len(bytes_below(tmp_path)) == 1 and (tmp_path / "x.jpg").is_file() and (folder / "cat" / "x.jpg").is_file()


def test_manifests_that_nest_without_end_or_are_no_files(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    os.mkfifo(tmp_path / "fifo.json")
    for name in ("deep.json", "fifo.json", "absent.json", "."):
        with pytest.raises(DataError, match="must be a manifest"):
            sorting.undo(tmp_path / name)


# Sorting


def test_no_two_classes_share_a_folder_and_none_is_the_manifest():
    names = ["sorted.json", "_unsure", "_none", "A", "a", "a/b", "a:b", "..", ".", "", "CON", "nul.txt", "x" * 300, "x" * 301,
             "é" * 200, "e\u0301", "\u00e9", "crane", "crane"]  # fmt: skip
    folders = sorting.class_folders(names)
    assert len({folded(f) for f in folders} | {*KEPT}) == len(names) + 3
    assert all(len(os.fsencode(f)) <= 255 and f not in ("", ".", "..") and "/" not in f for f in folders)
    assert (
        folders[names.index("crane")] == "crane" and folders[-1] == "crane-2" and folders[names.index("CON")] == "CON_"
    )


def test_long_names_are_cut_to_fit_their_numbers(tmp_path):
    photos = [tmp_path / part / ("n" * 251 + ".jpg") for part in "ab"]
    for photo in photos:
        photo.parent.mkdir()
        photo.write_bytes(b"x")
    placed = sorting.plan(predicted(photos, labels=[0, 0]), tmp_path / "out")
    sorting.place(placed, tmp_path / "out", "copy")
    assert sorted(len(p.name) for p in (tmp_path / "out" / "cat").iterdir()) == [255, 255]


def test_nothing_is_made_through_a_link(photos, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cat").symlink_to(elsewhere)
    with pytest.raises(DataError, match="must be a folder of its own, got a file or a link"):
        sorting.plan(predicted(photos), tmp_path / "out")
    (tmp_path / "out" / "cat").unlink()
    placed = sorting.plan(predicted(photos), tmp_path / "out")
    (tmp_path / "out" / "cat").symlink_to(elsewhere)  # meanwhile
    with pytest.raises(OSError, match="Not a directory|Too many levels"):
        sorting.place(placed, tmp_path / "out", "copy")
    assert not any(elsewhere.iterdir()) and [p.name for p in (tmp_path / "out").iterdir()] == ["cat"]


def test_two_at_once_never_overwrite_each_other(photos, tmp_path):
    placed = sorting.plan(predicted(photos), tmp_path / "out")
    sorting.place(placed, tmp_path / "out", "copy")
    with pytest.raises(FileExistsError):
        sorting.place(placed, tmp_path / "out", "copy")
    assert len(copies(tmp_path / "out" / sorting.MANIFEST)) == 3
    with pytest.raises(DataError, match="stands there already: name another folder, or undo it"):
        sorting.check_folder(tmp_path / "out")


def test_names_that_are_no_text(tmp_path):
    photo = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe7\xcc.jpg"))
    photo.write_bytes(b"x")
    manifest = sorting.place(sorting.plan(predicted([photo]), tmp_path / "out"), tmp_path / "out", "copy")
    assert sorting.undo(manifest) == (1, {}) and photo.read_bytes() == b"x"
