"""Photos in tars as img2dataset and webdataset write them: key.jpg, key.txt (the caption), key.json (facts)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jclip.data.folders import is_photo
from jclip.data.photo_file import MOST_PLAIN_BYTES
from jclip.errors import DataError, printable
from jclip.paths import open_regular
from jclip.readers.text import parse_json

MOST_TEXT = 1 << 20  # bytes of a caption or of facts


@dataclass
class Member:
    """A photo in a tar, and what stands beside it under the same key."""

    name: str
    at: int  # where its bytes begin
    size: int
    mtime: int  # nanoseconds
    sha256: str
    caption: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def is_tar(path: str) -> bool:
    """Whether the ending says that a file is an uncompressed tar."""
    return path.lower().endswith(".tar")


def members_of(path: str | os.PathLike) -> Iterator[Member]:
    """The photos of a tar, in its order; nothing is unpacked.

    Captions and facts that are no text or no JSON are left out. Raises `DataError` for a file that is no tar, or ends
    too early: what stands in front of that has been handed out.
    """
    waiting: list[Member] = []
    key, caption, facts = None, "", {}
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if not info.isreg() or info.issparse():
                    continue
                own = _key(info.name)
                if own != key:
                    yield from _described(waiting, caption, facts)
                    waiting, key, caption, facts = [], own, "", {}
                if is_photo(info.name) and info.size <= MOST_PLAIN_BYTES:
                    digest = _digest(tar, info)
                    waiting.append(Member(info.name, info.offset_data, info.size, int(info.mtime) * 10**9, digest))
                elif info.name.endswith(".txt") and info.size <= MOST_TEXT:
                    caption = tar.extractfile(info).read().decode("utf-8", "replace").strip()
                elif info.name.endswith(".json") and info.size <= MOST_TEXT:
                    facts = _facts(tar.extractfile(info).read(), f"{path}: {info.name}")
            yield from _described(waiting, caption, facts)
    except (tarfile.TarError, EOFError, OSError) as e:
        yield from _described(waiting, caption, facts)
        said = getattr(e, "strerror", None) or printable(str(e), 120)
        raise DataError(f"{path} must be an uncompressed tar, or is cut: {said}") from e


def names_in(path: str | os.PathLike) -> list[str]:
    """Names of a tar's photos, in its order; no photo is read. Of a file that is no tar, or is cut, those in front of that."""
    names: list[str] = []
    with contextlib.suppress(tarfile.TarError, EOFError, OSError), open_regular(path) as file:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            names.extend(i.name for i in tar if i.isreg() and not i.issparse() and is_photo(i.name))
    return names


def _key(name: str) -> str:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _described(members: list[Member], caption: str, facts: dict[str, Any]) -> Iterator[Member]:
    own = {k: v for k, v in facts.items() if k != "caption"}
    for member in members:
        member.caption, member.facts = caption or str(facts.get("caption") or ""), own
        yield member


def _digest(tar: tarfile.TarFile, info: tarfile.TarInfo) -> str:
    sha, file, read = hashlib.sha256(), tar.extractfile(info), 0
    while block := file.read(1 << 20):
        sha.update(block)
        read += len(block)
    if read != info.size:
        raise tarfile.ReadError(f"{info.name} ends after {read} of {info.size} bytes")
    return sha.hexdigest()


def _facts(data: bytes, place: str) -> dict[str, Any]:
    """Flat facts: text, numbers and yes or no."""
    try:
        found = parse_json(data.decode("utf-8"), place)
    except (DataError, UnicodeDecodeError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str | int | float) and v != ""}
