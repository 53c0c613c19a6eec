"""Photos inside a page: small ones as data, found where they lie now, as many as the page may hold."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from jclip.data.photo_file import open_photo
from jclip.data.stored_photos import is_stored, spoken_path
from jclip.errors import DataError, printable
from jclip.report.box_measures import FOUND, TRUE
from jclip.report.judged_rows import JudgedRow
from jclip.report.page_words import Words
from jclip.report.predictions import shorten
from jclip.report.tiles import with_boxes
from jclip.report.web_page import clean

SIDE = 224  # pixels of a thumbnail's longer side
BOX = 7  # pixels of a box's line, before the photo is made small
MOST_BYTES = 8 << 20  # of all thumbnails of a page, as files


class PagePhotos:
    """The thumbnails of one page.

    root: a folder where photos are looked for that are not at their paths. absent: paths of photos that were asked for and
    are not there or do not decode. left_out: how many were not taken because the page would have become too large. upright:
    whether EXIF orientations are applied.
    """

    def __init__(self, words: Words, root: str = "", upright: bool = True, most_bytes: int = MOST_BYTES):
        self._words, self._root, self._upright, self._room = words, root, upright, most_bytes
        self.absent: list[str] = []
        self.left_out = 0
        self.shown = 0

    def place_of(self, photo: str) -> str:
        """Where a photo lies: its path, or the longest end of its path that is there below the root."""
        if not self._root or is_stored(photo) or os.path.isfile(photo):  # noqa: PTH113 - any text is asked
            return photo
        parts = Path(photo).parts
        for start in range(len(parts)):
            candidate = Path(self._root, *[p for p in parts[start:] if p not in ("/", "..")])
            if candidate.is_file():
                return str(candidate)
        return photo

    def tile_of(self, row: JudgedRow) -> str:
        """A judged row: photo, answer with its number, the right answer, its note."""
        lines = [f"<div><b>{clean(row.said)}</b><span>{clean(row.number)}</span></div>"]
        lines += [f"<div>{clean(self._words('tile.true', name=row.true))}</div>"] if row.true else []
        lines += [f'<div class="note">{clean(row.note)}</div>'] if row.note else []
        name = Path(spoken_path(row.photo)).name if row.photo else ""
        return self._tile(self._picture(row), lines, row.photo, name)

    def tile(self, photo: str, said: str = "", number: str = "", note: str = "") -> str:
        """A photo with a line below."""
        lines = [f"<div><b>{clean(said)}</b><span>{clean(number)}</span></div>"] if said or number else []
        lines += [f"<div>{clean(note)}</div>"] if note else []
        return self._tile(self._decoded(photo), lines, photo, Path(spoken_path(photo)).name)

    def small(self, photo: str) -> str:
        """A photo alone."""
        return self._tile(self._decoded(photo), [], photo, "")

    def note(self) -> str:
        """A sentence for each kind of photo that is not shown since the last asking; empty where all are."""
        said = []
        if self.absent:
            first = printable(spoken_path(self.absent[0]), 300)
            said.append(self._words("photos.absent", count=len(self.absent), first=first))
        if self.left_out:
            said.append(self._words("photos.left_out", count=self.left_out))
        self.absent, self.left_out = [], 0
        return " ".join(said)

    def _tile(self, picture: Image.Image | None, lines: Sequence[str], photo: str, name: str) -> str:
        place = clean(spoken_path(photo)) if photo else ""
        shown = (
            self._as_data(picture, name)
            if picture
            else f'<span class="absent">{clean(self._words("photos.none"))}</span>'
        )
        file = f'<div class="file" title="{place}">{clean(shorten(name, 30))}</div>' if name else ""
        return f'<figure class="tile">{shown}<figcaption>{"".join(lines)}{file}</figcaption></figure>'

    def _as_data(self, picture: Image.Image, name: str) -> str:
        picture.thumbnail((SIDE, SIDE))
        picture.save(written := io.BytesIO(), "JPEG", quality=80, subsampling=0)
        data = written.getvalue()
        if len(data) > self._room:
            self.left_out += 1
            return f'<span class="absent">{clean(self._words("photos.too_many"))}</span>'
        self._room -= len(data)
        self.shown += 1
        return f'<img alt="{clean(name)}" src="data:image/jpeg;base64,{base64.b64encode(data).decode("ascii")}">'

    def _decoded(self, photo: str) -> Image.Image | None:
        try:
            return open_photo(self.place_of(photo), (2 * SIDE, 2 * SIDE), self._upright).convert("RGB")
        except DataError:
            self.absent.append(photo)
            return None

    def _picture(self, row: JudgedRow) -> Image.Image | None:
        if row.draw is None and not row.photo:
            return None
        if row.draw is None and not row.boxes:
            return self._decoded(row.photo)
        try:
            picture = row.draw() if row.draw else open_photo(self.place_of(row.photo), upright=False)
        except DataError:
            self.absent.append(row.photo)
            return None
        picture = picture.convert("RGB")
        return (
            with_boxes(picture, list(zip(row.boxes, (TRUE, FOUND), strict=True)), 2 * SIDE, BOX)
            if row.boxes
            else picture
        )
