"""Image-caption pairs in .tar shards, as img2dataset writes them for webdataset: key.jpg beside key.txt or key.json."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import BinaryIO

from jclip.data.caption_rows import Broken, Row
from jclip.data.stored_photos import StoredPhoto
from jclip.errors import DataError, printable
from jclip.paths import open_regular
from jclip.readers.text import parse_json

PHOTOS = ("jpg", "jpeg", "png", "webp")
MOST_OF_TEXT = 2**20  # bytes of a caption, or of its JSON


def shards_of(path: Path) -> list[Path]:
    """The .tar itself, or those of a folder in order of their names. Raises `DataError`."""
    if not path.is_dir():
        return [path]
    if not (found := sorted(p for p in path.iterdir() if p.suffix.lower() == ".tar")):
        raise DataError(f"{path} must hold .tar shards with images and captions, got none")
    return found


def read_shards(path: Path, broken: Broken) -> list[Row]:
    """The rows of all shards at `path`; photos are read from where they lie in them. Raises `DataError`."""
    return [row for shard in shards_of(path) for row in read_shard(shard, broken)]


def read_shard(path: Path, broken: Broken) -> list[Row]:
    """The rows of one archive, in order of their first members. A photo or caption without the other is refused by key."""
    photos: dict[str, StoredPhoto] = {}
    captions: dict[str, object] = {}
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size = file.seek(0, 2)
            file.seek(0)
            for member in archive:
                if member.isreg():
                    _take(path, file, member, size, photos, captions, broken)
    except OSError as e:
        raise DataError(f"can't read {path}: {e.strerror}") from None
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as e:
        raise DataError(f"{path} must be a plain .tar archive: {printable(str(e), 100)}") from None
    for key in photos.keys() ^ captions.keys():
        lacking = (
            "a caption (key.txt, or key.json with `caption`)" if key in photos else "a photo (key.jpg, .png, .webp)"
        )
        broken(DataError(f"{path}, key {printable(key, 80)}: must have {lacking}, got none"))
    return [Row(f"key {key}", photo, captions[key]) for key, photo in photos.items() if key in captions]


def _take(path: Path, file: BinaryIO, member: tarfile.TarInfo, size: int, photos: dict, captions: dict, broken) -> None:
    folder, slash, name = member.name.rpartition("/")
    key, _, ending = name.partition(".")
    key, ending = folder + slash + key, ending.lower()
    if ending not in (*PHOTOS, "txt", "json"):
        return
    if not 0 <= member.offset_data <= member.offset_data + member.size <= size:
        raise DataError(f"{path}, member {printable(member.name, 80)}: the archive ends in the middle of it")
    if ending in PHOTOS:
        if key in photos:
            broken(DataError(f"{path}, key {printable(key, 80)}: must have one photo, got a second"))
        photos.setdefault(key, StoredPhoto(str(path), member.offset_data, member.size, member.name))
        return
    if member.size > MOST_OF_TEXT:
        broken(DataError(f"{path}, member {printable(member.name, 80)}: must have at most {MOST_OF_TEXT:,} bytes"))
        return
    here = file.tell()
    file.seek(member.offset_data)
    text = file.read(member.size).decode("utf-8", "replace")
    file.seek(here)
    if ending == "txt":
        captions[key] = text
        return
    said = parse_json(text, f"{path}, member {printable(member.name, 80)}") if text.strip() else None
    if isinstance(said, dict) and said.get("caption") is not None:
        captions.setdefault(key, said["caption"])
