"""The parts of grounding's data: rows of files, checked, joined and with their photos, or scenes of the embedded world."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jclip.config import WORLD, BoxDataConfig
from jclip.data.box_files import read_box_file
from jclip.data.box_photos import readable
from jclip.data.box_rows import BoxRow
from jclip.data.box_samples import BoxSamples, world_samples
from jclip.errors import DataError, did_you_mean, notice
from jclip.paths import is_file


def part_samples(data: BoxDataConfig, part: str, side: int) -> BoxSamples | None:
    """Phrases, boxes and photos of a part of the data; None where there is no such part. side: of rendered scenes.

    Several files are joined in their order. With `data.on_error=skip` rows that can't be used are left out, and photos that
    do not decode with them; else the first of them stops. Raises `DataError` naming file and row.
    """
    names = [name for name in data.named(part) if part != "unseen" or name == WORLD]
    if not names:
        return None
    if names == [WORLD]:
        return world_samples(data, part, side)
    read = [
        world_samples(replace(data, **{part: WORLD}), part, side) if name == WORLD else file_samples(data, name, part)
        for name in names
    ]
    return joined(list(filter(None, read)))


def warn_shared(train: BoxSamples, other: BoxSamples, part: str) -> None:
    """Says in one line how many photos of another part are learned from, too."""
    learned = {photo for photo in train.photos if isinstance(photo, Path)}
    if shared := sum(photo in learned for photo in other.photos if isinstance(photo, Path)):
        notice(
            f"{shared} of {len(other.photos)} photos of data.{part} are in data.train, too: its figures are too good"
        )


def file_samples(data: BoxDataConfig, name: str, part: str) -> BoxSamples:
    """The samples of one file, `name` as of `BoxDataConfig`. Raises `DataError`."""
    file, split = file_and_split(name)
    root = data.images or photos_beside(file)
    skip = data.on_error == "skip"
    try:
        read = read_box_file(
            file, data.form, dataset=data.dataset, box_format=data.box_format, photos=root, max_bad=float(skip)
        )
    except DataError as e:
        raise DataError(f"{e}{_way_out(str(e), part, file)}") from e
    rows = rows_of_split(read.rows, file, split, part)
    present = [row for row in rows if row.box is not None]
    if not present:
        raise DataError(f"{file} has no row with a box, of {len(rows)} rows of data.{part}: name another file")
    if len(present) < len(rows):
        notice(f"{file}: {len(rows) - len(present)} of {len(rows)} rows left out, whose thing is absent (no box)")
    named = split or next((row.split for row in present if row.split), "") or Path(file).stem
    samples = samples_of_rows(present, root, data.truncate, "" if part == "train" else named)
    return readable(samples) if skip else samples


def photos_beside(file: str) -> str:
    """The folder of photos that belongs to a file of rows: `photos` or `images` beside it, or the one that it is in."""
    folder = os.path.dirname(file) or "."  # noqa: PTH120
    beside = (os.path.join(folder, name) for name in ("photos", "images"))  # noqa: PTH118
    return next((name for name in beside if os.path.isdir(name)), folder)  # noqa: PTH112


def _way_out(said: str, part: str, file: str) -> str:
    """What helps against an error of reading, in brackets."""
    if said.startswith("there is no file"):
        folder = Path(file).parent
        return did_you_mean(Path(file).name, (one.name for one in folder.iterdir()) if folder.is_dir() else ())
    if "there is no photo" in said or "folder of photos" in said:
        return f" (data.images=FOLDER names where the photos of data.{part} are; data.on_error=skip leaves out what is absent)"
    if "--dataset" in said or "--box-format" in said:
        return " (in a config: data.dataset=NAME, data.box_format=FORMAT)"
    return " (correct it, or data.on_error=skip leaves such rows out)" if ", row " in said or "line" in said else ""


def file_and_split(name: str) -> tuple[str, str]:
    """FILE or FILE:SPLIT → file and split, "" where none is named."""
    before, colon, split = name.rpartition(":")
    return (before, split) if colon and not is_file(name) and is_file(before) else (name, "")


def rows_of_split(rows: Sequence[BoxRow], file: str, split: str, part: str) -> Sequence[BoxRow]:
    """The rows of that split, or where none is named all; of a file that has several those of the split called as the part.

    Raises `DataError` where there are none, or it is not clear which are meant.
    """
    known = list(dict.fromkeys(row.split for row in rows if row.split))
    wanted = split or (part if len(known) > 1 else "")
    kept = [row for row in rows if not wanted or row.split == wanted]
    if not kept:
        lacking = f"{file} must have rows of the split {wanted} for data.{part}, got"
        if not known:
            raise DataError(f"{lacking} rows of no split: data.{part}={file} takes all")
        raise DataError(f"{lacking} the splits {', '.join(known)}: name one, data.{part}={file}:SPLIT")
    return kept


def samples_of_rows(
    rows: Sequence[BoxRow], root: str | os.PathLike, truncate: bool = False, label: str = ""
) -> BoxSamples:
    """Rows that have a box and their photo's size, as samples; `root` is the folder of the photos.

    truncate: boxes as `BoxRow.truncated` has them. label: what the samples are called in tables, by default each row's
    source.
    """
    numbers = {image: number for number, image in enumerate(dict.fromkeys(row.image for row in rows))}
    sizes = {row.image: row.size for row in rows}
    return BoxSamples(
        tuple(Path(root, image) for image in numbers),
        np.array([sizes[image] for image in numbers]),
        np.array([numbers[row.image] for row in rows]),
        tuple(row.phrase for row in rows),
        np.array([row.truncated() if truncate else row.box for row in rows], float),
        tuple(label or row.source for row in rows),
    )


def joined(parts: Sequence[BoxSamples]) -> BoxSamples:
    """Samples of several sources one after the other; a photo that several of them have is there once."""
    numbers: dict[object, int] = {}
    sizes, of = [], []
    for part in parts:
        own = []
        for photo, size in zip(part.photos, part.sizes.tolist(), strict=True):
            key = photo if isinstance(photo, Path) else (len(numbers), id(photo))
            if key not in numbers:
                numbers[key] = len(numbers)
                sizes.append((photo, size))
            own.append(numbers[key])
        of.append(np.array(own)[part.of])
    return BoxSamples(
        tuple(photo for photo, _ in sizes),
        np.array([size for _, size in sizes]),
        np.concatenate(of),
        tuple(phrase for part in parts for phrase in part.phrases),
        np.concatenate([part.boxes for part in parts]),
        tuple(label for part in parts for label in part.labels or ("",) * len(part)),
    )
