"""What of a gallery must not grow with the number of its parts: looks into its folder, open files, rows in memory."""

from __future__ import annotations

import contextlib
import itertools
import resource
from types import SimpleNamespace

import numpy as np
import pytest

from jclip.data import gallery_store
from jclip.features import gallery_parts
from jclip.features.gallery_parts import Known, Parts, Whole


@pytest.fixture
def parts(tmp_path):
    return Parts(tmp_path, "a" * 64, SimpleNamespace(digest="b" * 64, parts=50))


def piece(number: int) -> Known:
    return Known([f"{number:064x}"], np.full((1, 3), number, np.float16), {})


def test_the_folder_is_not_gone_through_at_each_part(parts, monkeypatch):
    """A look takes a second here, as any call of the clock: the next one comes when twenty have gone by."""
    clock, looks = itertools.count(), []
    monkeypatch.setattr(gallery_parts.time, "monotonic", lambda: float(next(clock)))
    files = Parts._files
    monkeypatch.setattr(Parts, "_files", lambda self: looks.append(1) or files(self))
    parts._elsewhere = []
    for number in range(40):
        parts.keep_piece(number, 1, piece(number))
        assert [known.hashes for known in parts.pieces(number)] == [[f"{number:064x}"]]
        parts.keep_whole(number, Whole([], np.zeros((0, 3), np.float16), [], [], 0))
        assert not [*parts.pieces(number)]
    assert 2 <= len(looks) <= 1 + 3 * 40 / gallery_parts.LOOKING
    assert parts.missing() == [*range(40, 50)]


def test_pieces_of_others_are_found_and_all_are_removed(parts, tmp_path):
    other = Parts(tmp_path, "a" * 64, SimpleNamespace(digest="b" * 64, parts=50))
    other.keep_piece(7, 5, piece(1))
    other.keep_piece(7, 9, piece(2))
    assert [known.hashes[0][-1] for known in parts.pieces(7)] == ["1", "2"]
    parts.keep_whole(7, Whole([], np.zeros((0, 3), np.float16), [], [], 0))
    assert [path.name[-14:] for path in tmp_path.iterdir()] == ["le.safetensors"]  # the whole part alone


@contextlib.contextmanager
def files_allowed(more: int):
    """In the block this process may open so many more files, or raise that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/dev/null", "rb") as next_one:
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_one.fileno() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_gallery_of_more_parts_than_files_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery_store, "PART_ROWS", 2)
    count, width = 400, 3
    rows = np.arange(count * width, dtype=np.float16).reshape(count, width)
    found = [
        gallery_store.write_features(tmp_path, [rows[at : at + 2]], np.dtype("<f2"), width, 2)
        for at in range(0, count, 2)
    ]
    table = gallery_store.write_rows(tmp_path, ({"path": f"{i}.jpg"} for i in range(count)))
    table |= gallery_store.write_skipped(tmp_path, [])
    manifest = gallery_store.Manifest("none", [], {}, "fp16", width, "/", count, found, table)
    gallery_store.write_manifest(tmp_path, manifest)
    with files_allowed(100):
        store = gallery_store.open_store(tmp_path)
        assert (np.concatenate(store.parts) == rows).all() and store.rows[399]["path"] == "399.jpg"
