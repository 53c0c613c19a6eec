"""SHA-256 of files, remembered in the cache as long as the file stays the same."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from jclip.paths.places import cache_dir, open_regular
from jclip.paths.replaced_files import replacing


def file_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes as hex digits.

    Cached under the resolved path, device, inode, size, mtime_ns and ctime_ns together: a file that was replaced,
    edited in place or restored with its old time is hashed again.
    """
    path = Path(path).resolve()
    with open_regular(path) as f:
        found = os.fstat(f.fileno())
        facts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        key = hashlib.sha256(os.fsencode(path) + repr(facts).encode()).hexdigest()
        note = cache_dir("hashes") / key
        if (known := _noted(note, key)) is not None:
            return known
        digest = _digest_of(f)
    with replacing(note) as temporary:
        temporary.write_text(f"{digest} {_note_checksum(key, digest)}", encoding="ascii")
    return digest


def _noted(note: Path, key: str) -> str | None:
    """Return the digest stored in a note, or None where the note is absent or damaged."""
    try:
        digest, checksum = note.read_text(encoding="ascii").split(" ")
    except (OSError, ValueError):
        return None
    return digest if checksum == _note_checksum(key, digest) else None


def _note_checksum(key: str, digest: str) -> str:
    return hashlib.sha256(f"{key} {digest}".encode()).hexdigest()[:16]


def compute_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes as hex digits, without the cache."""
    with open_regular(path) as f:
        return _digest_of(f)


def _digest_of(file: BinaryIO) -> str:
    sha = hashlib.sha256()
    while block := file.read(1 << 20):
        sha.update(block)
    return sha.hexdigest()
