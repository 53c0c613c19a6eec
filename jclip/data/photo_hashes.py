"""SHA-256 of many photos. What was hashed before is remembered in one small database, so that only new files are read."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from jclip import paths as places
from jclip.data.photo_file import MOST_PLAIN_BYTES
from jclip.data.stored_photos import StoredPhoto, is_stored
from jclip.errors import DataError
from jclip.machine import work_meter
from jclip.paths import open_regular

try:
    import sqlite3
except ImportError:  # a Python that was built without it hashes every time
    sqlite3 = None

SETTLED = 2 * 10**9  # ns: a file that changed later than so long ago may change again under the same time
SHOWN_AFTER = 2.0  # seconds
_AT_ONCE = 500  # keys of one question to the database, and files after which notes are kept


class Hashed(NamedTuple):
    """What is known of one file: its SHA-256 as hex digits, and the key of its note, empty where none may be kept."""

    digest: str
    key: bytes = b""


def photo_hashes(paths: Sequence[str]) -> list[str]:
    """SHA-256 of each file's bytes as hex digits; of one that can't be read, or is too large for a photo, the reason.

    Remembered for the resolved path, device, inode, size, mtime_ns and ctime_ns together, as `file_sha256` does.
    """
    real_folder = lru_cache(maxsize=None)(os.path.realpath)
    keys = [_key(path, real_folder) for path in paths]
    with _Notes(places.cache_dir("hashes") / "photos.sqlite3") as notes:
        known = notes.find([key for key in keys if key])
        made: dict[int, Hashed] = {}
        blocks = _shown([place for place, key in enumerate(keys) if key not in known])
        for some in work_meter.some(blocks, "hashes", len, "reading files"):
            new = {place: _hashed(paths[place], real_folder) for place in some}
            notes.keep([one for one in new.values() if one.key])
            made.update(new)
    if work_meter.running():  # those that were left out
        made |= {p: Hashed(_stand_in(paths[p])) for p, k in enumerate(keys) if k not in known and p not in made}
    return [known[key] if key in known else made[place].digest for place, key in enumerate(keys)]


def _stand_in(path: str) -> str:
    """As many digits as a digest has, of a file that was not read."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()


def _shown(wanted: Sequence[int]) -> Iterator[Sequence[int]]:
    """Blocks of them; what takes longer than some seconds shows where it is."""
    if not wanted:
        return
    from tqdm import tqdm

    with tqdm(total=len(wanted), desc="reading", unit="photo", disable=None, leave=False, delay=SHOWN_AFTER) as bar:
        for at in range(0, len(wanted), _AT_ONCE):
            some = wanted[at : at + _AT_ONCE]
            yield some
            bar.update(len(some))


def is_hash(digest: str) -> bool:
    """Whether one of `photo_hashes` is that of a file, and not the reason why there is none."""
    return len(digest) == 64


def _key(path: str, real_folder) -> bytes:
    """What a note is found by; empty for what is no file."""
    try:
        return _key_of(path, os.stat(path), real_folder)  # noqa: PTH116 - half of the time, and there are many
    except (OSError, ValueError):
        return b""


def _key_of(path: str, found: os.stat_result, real_folder) -> bytes:
    folder, name = os.path.split(path)
    facts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    where = os.fsencode(os.path.join(real_folder(folder), name))  # noqa: PTH118
    return hashlib.blake2b(where + repr(facts).encode(), digest_size=16).digest()


def _hashed(path: str, real_folder) -> Hashed:
    if is_stored(path):
        return _hashed_inside(path)
    try:
        with open_regular(path) as file:
            before = os.fstat(file.fileno())
            if before.st_size > MOST_PLAIN_BYTES:
                return Hashed(f"{before.st_size} bytes")
            sha = hashlib.sha256()
            while block := file.read(1 << 20):
                sha.update(block)
            after = os.fstat(file.fileno())
    except (OSError, ValueError) as e:
        return Hashed(f"unreadable: {getattr(e, 'errno', None)}")
    key = _key_of(path, before, real_folder)
    settled = key == _key_of(path, after, real_folder) and time.time_ns() - after.st_ctime_ns >= SETTLED
    return Hashed(sha.hexdigest(), key if settled else b"")


def _hashed_inside(address: str) -> Hashed:
    """Of a photo inside of a larger file; not remembered, as it is its bytes that count and not the file's times."""
    try:
        return Hashed(hashlib.sha256(StoredPhoto.at(address).open().read()).hexdigest())
    except (DataError, OSError) as e:
        return Hashed(f"unreadable: {getattr(e, 'errno', None)}")


class _Notes:
    """The database of notes. What can't be read or written is as if it were empty; a damaged file is removed."""

    def __init__(self, file: Path):
        self._file, self._base = file, None
        if sqlite3 is not None:
            self._trying(self._open)

    def __enter__(self) -> _Notes:
        return self

    def __exit__(self, *_) -> None:
        if self._base is not None:
            self._base.close()

    def _open(self) -> None:
        self._base = sqlite3.connect(self._file, timeout=5)
        self._base.execute("PRAGMA synchronous=OFF")  # each note has a checksum, and may be lost
        self._base.execute(
            "CREATE TABLE IF NOT EXISTS hashes (key BLOB PRIMARY KEY, digest BLOB, checksum BLOB) WITHOUT ROWID"
        )

    def _trying(self, step: Callable[[], None]) -> None:
        """Takes a step; without the database from now on where that fails."""
        try:
            step()
        except (sqlite3.Error, TypeError, AttributeError, UnicodeDecodeError) as e:
            if self._base is not None:
                self._base.close()
            self._base = None
            if not isinstance(e, sqlite3.OperationalError) or "no such" in str(e):  # locked or a full disk is no damage
                self._file.unlink(missing_ok=True)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, str]:
        """key → digest, of undamaged notes."""
        known: dict[bytes, str] = {}

        def look() -> None:
            for start in range(0, len(keys), _AT_ONCE):
                asked = keys[start : start + _AT_ONCE]
                marks = ", ".join("?" * len(asked))
                rows = self._base.execute(f"SELECT key, digest, checksum FROM hashes WHERE key IN ({marks})", asked)
                known.update((key, digest.hex()) for key, digest, sum_ in rows if sum_ == _checksum(key, digest))

        if self._base is not None:
            self._trying(look)
        return known

    def keep(self, hashed: Sequence[Hashed]) -> None:
        """Adds notes, or replaces damaged ones."""
        rows = [(one.key, digest := bytes.fromhex(one.digest), _checksum(one.key, digest)) for one in hashed]

        def write() -> None:
            with self._base:
                self._base.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?)", rows)

        if self._base is not None and rows:
            self._trying(write)


def _checksum(key: bytes, digest: bytes) -> bytes:
    return hashlib.blake2b(key + digest, digest_size=8).digest()
