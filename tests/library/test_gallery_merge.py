"""Finished parts joined into a gallery: equal counts and bytes, and memory that does not grow with the rows."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from jclip.data import gallery_inputs, gallery_store, hash_piles
from jclip.data.preprocess import Preprocess
from jclip.data.shares import WHOLE
from jclip.errors import ConfigError, DataError
from jclip.features import gallery_lock, gallery_merge
from jclip.features.gallery_merge import write_gallery
from jclip.features.gallery_parts import Parts, Whole

WIDTH, STEP = 5, 100


def source():
    config, seen = SimpleNamespace(embed_dim=WIDTH), Preprocess()
    return SimpleNamespace(config=config, identity=["a", "b", "fp32"], preprocess=seen, family="openai")


def row(number, of=None):
    digest = hashlib.sha256(str(number if of is None else of).encode()).hexdigest()
    known = {"path": f"{number}.jpg", "member": None, "size": number, "mtime": 7, "sha256": digest}
    return {**known, "caption": None, "columns": {"n": str(number)} if number % 3 == 0 else {}}


def parts_in(folder, rows, seed=0):
    folder.mkdir(exist_ok=True)
    features = np.random.default_rng(seed).standard_normal((len(rows), WIDTH)).astype("<f2")
    parts = Parts(folder, "0" * 64, SimpleNamespace(digest="1" * 64, parts=-(-len(rows) // STEP)))
    for number, at in enumerate(range(0, len(rows), STEP)):
        unread = [["gone.jpg", "No such file"]] if number == 1 else []
        failed = [{"path": "bad.jpg", "reason": "is cut", "sha256": "f" * 64}] if number == 0 else []
        parts.keep_whole(number, Whole(rows[at : at + STEP], features[at : at + STEP], unread, failed, 1))
    return parts, features


def merged(folder, rows, old=None, seed=0):
    parts, features = parts_in(folder, rows, seed)
    return write_gallery(folder, "/photos", parts, source(), "fp16", "none", old), features


@pytest.mark.parametrize("seed", [0, 1])
def test_piles_count_what_sets_count(seed, tmp_path, monkeypatch):
    monkeypatch.setattr(hash_piles, "HELD", 50)
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 2**64, 700, dtype=np.uint64)
    numbers[:3] = 0, 2**64 - 1, 2**56
    drawn = [rng.choice(numbers, 900), rng.choice(numbers[300:], 260)]
    with contextlib.ExitStack() as held:
        piles = [hash_piles.HashPile(tmp_path, held) for _ in drawn]
        for pile, some in zip(piles, drawn, strict=True):
            for at in range(0, len(some), 37):
                pile.add(some[at : at + 37])
        found = [np.concatenate([*pile.distinct()]) for pile in piles]
        assert not list(tmp_path.iterdir())  # the file has no name
    for own, some in zip(found, drawn, strict=True):
        assert own.tolist() == sorted(set(some.tolist()))


def test_a_full_disk_under_a_pile_names_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(hash_piles, "HELD", 1)
    with contextlib.ExitStack() as held, pytest.raises(OSError, match="No space left") as found:
        full = held.enter_context(open("/dev/full", "r+b", buffering=0))
        monkeypatch.setattr(hash_piles, "_unnamed", lambda folder: full)
        hash_piles.HashPile(tmp_path, held).add(np.arange(3, dtype=np.uint64))
    assert found.value.filename == str(tmp_path / ".rows.jsonl")


def test_beginnings_of_lines_are_the_bytes_of_a_saved_array(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery_store, "LINES_AT_ONCE", 7)
    entries = gallery_store.write_rows(tmp_path, map(row, range(11)))
    lines = (tmp_path / entries["rows"]).read_bytes().splitlines(keepends=True)
    np.save(tmp_path / "wanted.npy", np.cumsum([0, *map(len, lines)]).astype("<i8"))
    assert (tmp_path / entries["offsets"]).read_bytes() == (tmp_path / "wanted.npy").read_bytes()
    assert gallery_store.write_rows(tmp_path, [])["rows"].startswith("rows-e3b0c442")  # of no bytes


@pytest.mark.parametrize(("held", "rows_of_file"), [(64, 130), (10**6, 10**6)])
def test_a_merge_counts_and_keeps_all(held, rows_of_file, tmp_path, monkeypatch):
    monkeypatch.setattr(hash_piles, "HELD", held)
    monkeypatch.setattr(gallery_merge, "PART_ROWS", rows_of_file)  # files begin within parts
    rows = [row(n, n - n % 100 if n % 100 == 7 else None) for n in range(734)]
    change, features = merged(tmp_path / "g", rows)
    assert (change.rows, change.added, change.dropped, change.duplicates) == (734, 734, 0, 8)
    assert change.skipped == [("gone.jpg", "No such file"), ("bad.jpg", "is cut")]
    store = gallery_store.open_store(tmp_path / "g")
    gallery_store.verify(store)
    assert [*store.rows] == rows and (np.concatenate(store.parts) == features).all()
    assert [len(part) for part in store.parts] == ([130] * 5 + [84] if held == 64 else [734])
    assert store.manifest.columns == ["n"] and not list((tmp_path / "g").glob("unfinished*"))
    again, _ = merged(tmp_path / "g", rows[100:600] + [row(n) for n in range(2000, 2050)], store, 1)
    assert (again.rows, again.added, again.dropped) == (550, 50, 234)


def test_nothing_stays_where_no_photo_decodes(tmp_path):
    parts, _ = parts_in(tmp_path, [row(0)])
    parts.keep_whole(
        0, Whole([], np.zeros((0, WIDTH), "<f2"), [], [{"path": "b", "reason": "is cut", "sha256": "f"}], 0)
    )
    with pytest.raises(DataError, match=r"no photo decodes of 1 \(first: b: is cut\)"):
        write_gallery(tmp_path, "/photos", parts, source(), "fp16", "none", None)
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(hash_piles, "HELD", 1024)
    monkeypatch.setattr(gallery_store, "LINES_AT_ONCE", 1 << 12)
    peaks, long = [], {"caption": "x" * 3000}  # files are longer than what is read of them at once
    for count in (5 * STEP, 5 * STEP, 40 * STEP):  # the first loads what is loaded once
        parts, _ = parts_in(tmp_path / f"{len(peaks)}", [{**row(n), **long} for n in range(count)])
        tracemalloc.start()
        write_gallery(tmp_path / f"{len(peaks)}", "/photos", parts, source(), "fp16", "none", None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 20 * 35 * STEP, peaks  # bytes a row; a list of numbers alone takes 40


@pytest.mark.parametrize(
    ("photos", "size"), [(1, 512), (2000, 512), (32768, 512), (32769, 1024), (262144, 4096), (300_000, 4096)]
)
def test_few_photos_have_smaller_parts(photos, size, tmp_path):
    inputs = gallery_inputs.Inputs(str(tmp_path), {str(number): {} for number in range(photos)})
    assert inputs.step == size and inputs.parts == -(-photos // size)
    assert sum(map(inputs.size, range(inputs.parts))) == photos


def test_a_lock_that_is_given_back_soon_is_waited_for(tmp_path, monkeypatch):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    release = threading.Timer(0.2, os.close, [descriptor])
    release.start()
    with gallery_lock.alone(tmp_path, WHOLE):
        release.join()
        monkeypatch.setattr(gallery_lock, "PATIENCE", 0.1)
        with pytest.raises(ConfigError, match="another process is writing"), gallery_lock.alone(tmp_path, WHOLE):
            pass


def test_what_a_check_of_workers_leaves_behind_is_a_gallerys_own(tmp_path):
    for name in ("..features.npy.0a1b2c3d.part", "..rows.jsonl.x_1y2z3a.part"):
        (tmp_path / name).touch()
    gallery_store.check_target(tmp_path)
