"""What every reader of captions gives: rows of an image with a caption; and what becomes of rows that can't be used."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jclip.data.checks import preview
from jclip.data.loader import OnError
from jclip.data.photo_lists import on_disk
from jclip.data.stored_photos import StoredPhoto, is_stored
from jclip.errors import DataError, notice, printable
from jclip.paths import is_file


@dataclass(frozen=True)
class Row:
    """One image with one caption, as a file has them: both may be no text, which is refused later.

    place: where in the file it stands, such as "line 3". image: a path relative to the root, or a stored photo; after
    `with_images` the whole path or the address. text: an id that the rows of one text share; None: the row's text is its own.
    """

    place: str
    image: object
    caption: object
    text: Hashable = None


@dataclass
class Broken:
    """What to do with rows of a captions file that can't be used: the first stops, or all are left out and counted."""

    path: str
    on_error: OnError
    refusals: list[DataError] = field(default_factory=list)

    def __call__(self, refusal: DataError) -> None:
        if self.on_error == "stop":
            raise refusal
        self.refusals.append(refusal)

    @property
    def first(self) -> str:
        """Why the first was left out, in brackets."""
        return f" (first left out: {self.refusals[0]})" if self.refusals else ""

    def report(self, kept: int) -> None:
        """Reports in one line on stderr how many rows were left out."""
        if self.refusals:
            summary = f"{self.path}: {len(self.refusals)} of {len(self.refusals) + kept} rows left out{self.first}"
            notice(summary)


def with_images(rows: Sequence[Row], root: Path, path: Path, broken: Broken) -> list[Row]:
    """The rows that have a caption and an image which is there, with its whole path."""
    usable = []
    for row in rows:
        fields = (("an image", row.image), ("a caption", row.caption))
        lacking = next(((what, got) for what, got in fields if not _is_said(got)), None)
        if lacking:
            got = printable(repr(lacking[1]), 60)
            broken(DataError(f"{path}, {row.place}: must have {lacking[0]} as text, got {got}"))
        else:
            usable.append(row)
    found = [_place(root, row.image) for row in usable]
    plain = iter(on_disk(image for image in found if not is_stored(image)))
    found = [image if is_stored(image) else next(plain) for image in found]
    there = [is_stored(image) or is_file(image) for image in found]
    absent = [row for row, is_there in zip(usable, there, strict=True) if not is_there]
    if absent and broken.on_error == "stop":
        raise DataError(
            f"{path}: {len(absent)} of {len(usable)} images are missing: "
            f"{preview([row.image.strip() for row in absent], 3)} "
            f"(first in {absent[0].place}; left out with data.on_error=skip)"
        )
    for row in absent:
        broken(DataError(f"{path}, {row.place}: there is no image {row.image.strip()}"))
    kept = zip(usable, found, there, strict=True)
    return [Row(row.place, image, row.caption.strip(), row.text) for row, image, is_there in kept if is_there]


def first_captions(rows: Sequence[Row], most: int) -> list[Row]:
    """At most this many rows of each image, the first ones; 0: all."""
    seen: dict[object, int] = {}
    kept = []
    for row in rows:
        seen[row.image] = seen.get(row.image, 0) + 1
        if not most or seen[row.image] <= most:
            kept.append(row)
    return kept


def _is_said(value: object) -> bool:
    """Whether a field holds something; tables write what is absent in these ways. A file's text is no address."""
    if not isinstance(value, str):
        return isinstance(value, StoredPhoto)
    return value.strip().casefold() not in ("", "nan", "null", "none", "n/a", "<na>", "\\n") and "\0" not in value


def _place(root: Path, image: str | StoredPhoto) -> str:
    if isinstance(image, StoredPhoto):
        return image.address
    path = str(root / image.strip())
    return path if "\\" not in image or is_file(path) else str(root / image.strip().replace("\\", "/"))
