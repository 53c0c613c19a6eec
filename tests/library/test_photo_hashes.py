"""A photo is known by its bytes; what was hashed is remembered, damaged notes are not believed."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jclip.data import photo_hashes as module
from jclip.data.photo_file import MOST_PLAIN_BYTES
from jclip.data.photo_hashes import photo_hashes
from jclip.data.splits import Split


@pytest.fixture
def files(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.setattr(module, "SETTLED", -(10**18))  # files of this moment are remembered
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(bytes([i]) * (i + 1))
    return [str(tmp_path / f"{i}.jpg") for i in range(5)]


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The files that are read."""
    names, real = [], module.open_regular
    monkeypatch.setattr(module, "open_regular", lambda path: names.append(Path(path).name) or real(path))
    return names


def digests(files) -> list[str]:
    return [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]


def test_only_new_and_changed_files_are_read(files, opened):
    assert photo_hashes(files) == digests(files) and len(opened) == 5
    assert photo_hashes(files[::-1]) == digests(files)[::-1] and len(opened) == 5
    was = Path(files[2]).stat()
    Path(files[2]).write_bytes(b"new")  # as long, and as old
    os.utime(files[2], ns=(was.st_atime_ns, was.st_mtime_ns))
    now = Path(files[2]).stat()
    assert (now.st_size, now.st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    assert photo_hashes(files) == digests(files) and opened[5:] == ["2.jpg"]
    Path(files[1]).replace(files[3])
    Path(files[1]).write_bytes(b"other")
    assert photo_hashes(files) == digests(files) and opened[6:] == ["1.jpg", "3.jpg"]


def test_what_was_read_before_a_stop_is_kept(files, opened, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 2)
    monkeypatch.setattr(module, "open_regular", lambda path: _stopped(path, files[3], opened))
    with pytest.raises(KeyboardInterrupt):
        photo_hashes(files)
    assert opened == files[:3]
    monkeypatch.setattr(module, "open_regular", lambda path: _stopped(path, "", opened))
    assert photo_hashes(files) == digests(files) and opened[3:] == files[2:]


def _stopped(path, last, opened):
    if path == last:
        raise KeyboardInterrupt
    opened.append(path)
    return Path(path).open("rb")


def test_a_file_that_may_still_change_is_read_again(files, opened, monkeypatch):
    monkeypatch.setattr(module, "SETTLED", 10**18)
    assert photo_hashes(files) == photo_hashes(files) == digests(files) and len(opened) == 10


def test_a_split_is_its_photos_bytes_and_labels_in_order(files, tmp_path):
    split = Split(tuple(files), np.arange(5))
    shutil.copytree(tmp_path, copy := tmp_path.with_name("copied folder"))
    copied = Split(tuple(str(copy / Path(f).name) for f in files), np.arange(5))
    assert copied.digest() == split.digest()
    others = [split.take([1, 0, 2, 3, 4]), split.take(range(4)), Split(split.paths, np.arange(5)[::-1])]
    assert len({other.digest() for other in (split, *others)}) == 4


def test_what_can_not_be_read_has_a_digest_of_its_own(files, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "long", "wb") as f:
        f.truncate(MOST_PLAIN_BYTES + 1)
    odd = [str(tmp_path / name) for name in ("absent", "fifo", "long", "a\0b")]
    found = photo_hashes([files[0], *odd])
    assert found[0] == digests(files)[0] and all(len(one) < 64 for one in found[1:])


DAMAGES = {
    "other bytes": lambda base: base.write_bytes(b"no database"),
    "a header of zeros": lambda base: base.write_bytes(bytes(100) + base.read_bytes()[100:]),
    "a torn page": lambda base: base.write_bytes(base.read_bytes()[:-2000] + bytes(2000)),
    "cut": lambda base: base.write_bytes(base.read_bytes()[:5000]),
    "empty": lambda base: base.write_bytes(b""),
    "another digest": lambda base: change(base, "UPDATE hashes SET digest = randomblob(32)"),
    "text for bytes": lambda base: change(base, "UPDATE hashes SET digest = 'x'"),
    "another table": lambda base: change(base, "DROP TABLE hashes", "CREATE TABLE hashes (a, b)"),
}


def change(base: Path, *statements: str) -> None:
    with sqlite3.connect(base) as notes:
        for statement in statements:
            notes.execute(statement)
    notes.close()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_notes_are_made_anew(files, opened, own_cache, damage):
    photo_hashes(files)
    DAMAGES[damage](own_cache / "hashes" / "photos.sqlite3")
    for _ in range(3):  # dropped, written, found
        assert photo_hashes(files) == digests(files)
    read = len(opened)
    assert photo_hashes(files) == digests(files) and len(opened) == read


def test_notes_that_can_not_be_written_or_are_locked_are_done_without(files, own_cache, monkeypatch):
    real = sqlite3.connect
    monkeypatch.setattr(module.sqlite3, "connect", lambda *a, **k: real(*a, **{**k, "timeout": 0}))
    photo_hashes(files[:2])
    holder = real(own_cache / "hashes" / "photos.sqlite3")
    holder.execute("BEGIN EXCLUSIVE")
    assert photo_hashes(files) == digests(files)
    holder.rollback()
    assert holder.execute("SELECT count(*) FROM hashes").fetchone() == (2,)
    holder.close()
    monkeypatch.setattr(module, "sqlite3", None)
    assert photo_hashes(files) == digests(files)


def test_several_at_once_agree(files):
    with ThreadPoolExecutor(4) as pool:
        assert all(found == digests(files) for found in pool.map(photo_hashes, [files] * 12))
