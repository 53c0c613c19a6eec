"""Texts that look for photos: queries, the gallery they look in, and which photos are right for them. No Jittor."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from jclip.data.caption_rows import Broken
from jclip.data.captions import Pairs
from jclip.data.checks import preview
from jclip.data.chinese_clip import read_image_table
from jclip.data.photo_lists import on_disk
from jclip.data.splits import find_photos
from jclip.errors import DataError, printable, quoted
from jclip.paths import is_file
from jclip.readers.text import parse_json, read_lines

_OPENING = re.compile(r"(?:this is )?an? ", re.IGNORECASE)


@dataclass(frozen=True)
class PhotoSearch:
    """Q queries over G photos.

    names: of the photos, as results name them, each once. wanted: of each query the names of the right photos, where they
    are known. ids: of the queries, where their file has some.
    """

    texts: tuple[str, ...]
    photos: tuple[str, ...]
    names: tuple[str, ...]
    wanted: tuple[frozenset[str], ...] | None = None
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Queries:
    """Texts as their file has them, in its order; ids and right photos where it has these."""

    texts: tuple[str, ...]
    ids: tuple[str, ...] = ()
    wanted: tuple[tuple[str, ...], ...] = ()


def read_queries(path: Path) -> Queries:
    """A text a line of a .txt; of a .jsonl Chinese-CLIP's `{"text_id", "text"}`, with `image_ids` where they are known.

    Raises `DataError` with the line.
    """
    lines = [(number, line) for number, line in enumerate(read_lines(path), start=1) if line]
    if path.suffix.lower() != ".jsonl":
        return Queries(tuple(line for _, line in lines))
    rows = []
    for number, line in lines:
        row = parse_json(line, f"{path}, line {number}")
        if not isinstance(row, dict) or not {"text_id", "text"} <= row.keys() or not isinstance(row["text"], str):
            raise DataError(f"{path}, line {number}: must have text_id and text, got {printable(line, 60)}")
        rows.append((row["text"].strip(), str(row["text_id"]), tuple(map(str, row.get("image_ids") or ()))))
    texts, ids, wanted = zip(*rows, strict=True)
    if again := [name for name, count in Counter(ids).items() if count > 1]:
        raise DataError(f"{path}: each text_id must stand once, got {quoted(again[0])} {Counter(ids)[again[0]]} times")
    return Queries(texts, ids, wanted if all(wanted) else ())


def read_gallery(place: Path, root: Path | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths and names of the photos below a folder, or of a list with a name a line, relative to `root` or the list's own
    folder.

    A name is what follows the folder, with slashes. Of Chinese-CLIP's `*_imgs.tsv` the photos inside, by their ids. Raises
    `DataError` for photos that are absent, or listed twice.
    """
    if place.is_dir():
        paths = tuple(find_photos([place]))
        return paths, tuple(PurePath(path).relative_to(place).as_posix() for path in paths)
    if place.suffix.lower() == ".tsv":
        stored = read_image_table(place, Broken(str(place), "stop"))
        return tuple(photo.address for photo in stored.values()), tuple(stored)
    lines = [(number, line) for number, line in enumerate(read_lines(place), start=1) if line]
    base, seen = root or place.parent, {}
    for number, name in lines:
        if name in seen:
            raise DataError(
                f"{place}, line {number}: a photo must be listed once, got {quoted(name)} in line {seen[name]}"
            )
        seen[name] = number
    paths = tuple(on_disk(str(base / name) for name in seen))
    absent = [name for name, path in zip(seen, paths, strict=True) if not is_file(path)]
    if absent:
        raise DataError(
            f"{place}: {len(absent)} of {len(paths)} photos are missing below {base}, the first in line "
            f"{seen[absent[0]]}: {printable(preview(absent, 3), 200)}"
        )
    return paths, tuple(seen)


def truth_lines(path: Path) -> list[tuple[int, str, tuple[str, ...]]]:
    """Number, query and right photos of each line `text$photo$photo…`. Raises `DataError` for a line without a photo, or
    with one twice."""
    found = []
    for number, line in enumerate(read_lines(path), start=1):
        text, *names = (part.strip() for part in line.split("$"))
        names = tuple(filter(None, names))
        if line and (not names or len({*names}) < len(names)):
            got = "one twice" if names else "none"
            raise DataError(f"{path}, line {number}: must be `text$photo$photo…`, each photo once, got {got}")
        if line:
            found.append((number, text, names))
    return found


def read_truth(path: Path, texts: Sequence[str], names: Sequence[str]) -> tuple[frozenset[str], ...]:
    """The right photos of each query, of a file as `truth_lines` reads it, in the order of the queries `texts`.

    A challenge scores line by line, so another order is refused with the first line that differs; so are photos that are
    not in the gallery. Raises `DataError`.
    """
    lines, gallery = truth_lines(path), {*names}
    said = [text for _, text, _ in lines]
    if said != [*texts]:
        raise DataError(_of_order(path, [number for number, *_ in lines], said, texts))
    for number, _, right in lines:
        if lost := [name for name in right if name not in gallery]:
            raise DataError(f"{path}, line {number}: must name photos of the gallery, got {quoted(lost[0])}")
    return tuple(frozenset(right) for *_, right in lines)


def _of_order(path: Path, numbers: Sequence[int], said: Sequence[str], texts: Sequence[str]) -> str:
    first = next((i for i, (a, b) in enumerate(zip(said, texts, strict=False)) if a != b), min(len(said), len(texts)))
    if Counter(said) == Counter(texts):
        return (
            f"{path}, line {numbers[first]}: queries must stand in the order of their file, where "
            f"{quoted(texts[first], 80)} comes here, got {quoted(said[first], 80)}: sort one by the other"
        )
    lacking = next(iter((Counter(texts) - Counter(said)) or (Counter(said) - Counter(texts))))
    return (
        f"{path} must have the {len(texts)} queries of their file, got {len(said)}; {quoted(lacking, 80)} stands in one of "
        "them alone"
    )


def search_among(pairs: Pairs, more: Sequence[str] = ()) -> PhotoSearch:
    """The captions of pairs as queries, their photos as the gallery, `more` photos behind those.

    Captions that say the same, but for `A`, `This is a` in front and a full stop, are one query, which all their photos
    answer. Names are the paths.
    """
    captions, _ = pairs.texts(range(len(pairs)))
    found: dict[str, set[str]] = {}
    texts: dict[str, str] = {}
    for caption, photo in zip(captions, pairs.paths, strict=True):
        said = _meaning(caption)
        texts.setdefault(said, caption)
        found.setdefault(said, set()).add(photo)
    photos = tuple(dict.fromkeys((*pairs.paths, *more)))
    return PhotoSearch(tuple(texts.values()), photos, photos, tuple(frozenset(found[said]) for said in texts))


def _meaning(caption: str) -> str:
    said = caption.strip().rstrip(".").strip()
    return (said[opening.end() :] if (opening := _OPENING.match(said)) else said).casefold()
