"""What detectors, relation finders and captioners found in photos, read from JSON. Imports no Jittor.

A file is a JSON list or JSON lines of one object a photo: `image`, `width`, `height`, and any of `detections` and
`attribute_detections` (lists of `{class, box: [x1, y1, x2, y2], score, attribute, attribute_score}`), `triplets` (lists of
`{subject, predicate, object, subject_box, scores: [s, p, o]}`), `captions` (texts) with `heads` (for each caption a list
of words). Several files may speak of the same photo.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jclip.data.box_tables import objects_by_line
from jclip.errors import DataError, quoted
from jclip.readers.text import read_json

Box = tuple[float, float, float, float]
KEYS = ("detections", "triplets", "captions")  # of which an object must have one
MOST_LEAVING = 0.05  # share of its side by which a box may leave the picture; it is cut there
MOST_MISFITS = 0.01  # share of boxes that fit only as x, y, width, height


@dataclass(frozen=True)
class Detection:
    """One box of a detector, corners in pixels, with its class; the attribute is "" where there is none."""

    classname: str
    box: Box
    score: float
    attribute: str = ""
    attribute_score: float = 0.0


@dataclass(frozen=True)
class Triplet:
    """Subject, predicate and object, the subject's box, and the three scores."""

    subject: str
    predicate: str
    object: str
    box: Box
    scores: tuple[float, float, float]

    @property
    def score(self) -> float:
        """The product of the three."""
        s, p, o = self.scores
        return s * p * o


@dataclass(frozen=True)
class PhotoFacts:
    """All that was found in one photo. attribute_detections: of a second detector, None where there was none; heads: for
    each caption its nouns, None where nobody parsed it."""

    image: str
    width: int
    height: int
    detections: tuple[Detection, ...] = ()
    attribute_detections: tuple[Detection, ...] | None = None
    triplets: tuple[Triplet, ...] = ()
    captions: tuple[str, ...] = ()
    heads: tuple[tuple[str, ...] | None, ...] = ()


def read_photo_facts(paths: Iterable[str | os.PathLike]) -> list[PhotoFacts]:
    """Return one entry a photo, in the order of first mention; files add to each other.

    Raises `DataError` naming file and place: what is no such object, boxes that are no numbers or outside the picture,
    the same list twice for one photo, sizes that differ, boxes that look like x, y, width, height.
    """
    found: dict[str, PhotoFacts] = {}
    for path in paths:
        misfits: list[tuple[str, Any]] = []
        boxes = 0
        for place, value in _objects(path):
            reader = _Reader(f"{path}, {place}", value)
            facts = reader.facts()
            boxes += reader.boxes
            misfits += [(place, box) for box in reader.misfits]
            there = found.get(facts.image)
            found[facts.image] = facts if there is None else _joined(there, facts, f"{path}, {place}")
        if len(misfits) > MOST_MISFITS * boxes:
            place, box = misfits[0]
            raise DataError(
                f"{path}: {len(misfits)} of {boxes} boxes are flipped or leave the picture as x1, y1, x2, y2, but fit as "
                f"x, y, width, height (first in {place}: {[*box]}): write corners"
            )
    return [*found.values()]


def _objects(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    if Path(path).suffix.lower() in (".jsonl", ".ndjson"):
        empty = True
        for line, value in objects_by_line(path):
            empty = False
            yield f"line {line}", value
        if empty:
            raise DataError(f"{path} must have a line for each photo, got none")
        return
    values = read_json(path)
    values = [values] if isinstance(values, dict) else values
    if not isinstance(values, list) or not values:
        raise DataError(f"{path} must be a list of objects with image, width and height, got {quoted(values, 60)}")
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise DataError(
                f"{path}, entry {number}: must be an object with image, width and height, got {quoted(value, 60)}"
            )
        yield f"entry {number}", value


class _Reader:
    """Reads one object; counts boxes, and those that fit only as x, y, width, height."""

    def __init__(self, place: str, value: Mapping[str, Any]):
        self.place, self.value = place, value
        self.boxes = 0
        self.misfits: list[Sequence[float]] = []
        self.image = self._text(value, "image")
        if "\0" in self.image:
            raise self._error("image must be a file's name", self.image)
        self.width, self.height = self._side("width"), self._side("height")

    def facts(self) -> PhotoFacts:
        """All that the object says."""
        if not any(key in self.value for key in KEYS):
            raise self._error(f"must have one of {', '.join(KEYS)}", sorted(self.value))
        second = self.value.get("attribute_detections")
        captions = tuple(self._words(self.value.get("captions", []), "captions"))
        return PhotoFacts(
            self.image,
            self.width,
            self.height,
            self._detections("detections"),
            None if second is None else self._detections("attribute_detections"),
            tuple(t for given in self._entries("triplets") if (t := self._triplet(given))),
            captions,
            self._heads(len(captions)),
        )

    def _detections(self, key: str) -> tuple[Detection, ...]:
        return tuple(d for given in self._entries(key) if (d := self._detection(given)))

    def _detection(self, given: Mapping[str, Any]) -> Detection | None:
        """None for a flipped box."""
        name, box = self._text(given, "class"), self._box(given, "box")
        score = self._number(given, "score")
        attribute = given.get("attribute")
        if attribute is not None and not isinstance(attribute, str):
            raise self._error("attribute must be text or null", attribute)
        sure = 1.0 if given.get("attribute_score") is None else self._number(given, "attribute_score")
        return None if box is None else Detection(_plain(name), box, score, _plain(attribute or ""), sure)

    def _triplet(self, given: Mapping[str, Any]) -> Triplet | None:
        names = [_plain(self._text(given, key)) for key in ("subject", "predicate", "object")]
        scores = given.get("scores")
        if not isinstance(scores, list) or len(scores) != 3 or not all(map(_is_number, scores)):
            raise self._error("scores must be three numbers, of subject, predicate and object", scores)
        box = self._box(given, "subject_box")
        return None if box is None else Triplet(*names, box, tuple(map(float, scores)))

    def _heads(self, count: int) -> tuple[tuple[str, ...] | None, ...]:
        heads = self.value.get("heads")
        if heads is None:
            return (None,) * count
        if not isinstance(heads, list) or len(heads) != count:
            raise self._error(f"heads must be a list of words for each of {count} captions", heads)
        return tuple(tuple(map(_plain, self._words(words, "heads"))) for words in heads)

    def _entries(self, key: str) -> list[Mapping[str, Any]]:
        entries = self.value.get(key)
        entries = [] if entries is None else entries
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self._error(f"{key} must be a list of objects", entries)
        return entries

    def _words(self, given: Any, key: str) -> list[str]:
        given = [] if given is None else given
        if not isinstance(given, list) or not all(
            isinstance(word, str) and word.strip() and _encodes(word) for word in given
        ):
            raise self._error(f"{key} must be lists of texts", given)
        return given

    def _text(self, given: Mapping[str, Any], key: str) -> str:
        text = given.get(key)
        if not isinstance(text, str) or not text.strip() or not _encodes(text):
            raise self._error(f"must have {key} as text", text)
        return text

    def _number(self, given: Mapping[str, Any], key: str) -> float:
        if not _is_number(given.get(key)):
            raise self._error(f"{key} must be a number", given.get(key))
        return float(given[key])

    def _side(self, key: str) -> int:
        side = self.value.get(key)
        if not _is_number(side) or side != int(side) or not 1 <= side < 1e9:
            raise self._error(f"{key} must be a whole number of pixels", side)
        return int(side)

    def _box(self, given: Mapping[str, Any], key: str) -> Box | None:
        """Corners cut at the picture's edges; None for a flipped box. Raises `DataError`."""
        box = given.get(key)
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise self._error(f"{key} must be four finite numbers x1, y1, x2, y2", box)
        self.boxes += 1
        x1, y1, x2, y2 = map(float, box)
        flipped, inside = x1 > x2 or y1 > y2, self._within(x1, y1, x2, y2)
        if (flipped or not inside) and x2 > 0 and y2 > 0 and self._within(x1, y1, x1 + x2, y1 + y2):
            self.misfits.append(box)
        elif not flipped and not inside:
            raise self._error(f"{key} must lie within the picture of {self.width} x {self.height} pixels", box)
        if flipped:
            return None
        return min(max(x1, 0.0), self.width), min(max(y1, 0.0), self.height), min(x2, self.width), min(y2, self.height)

    def _within(self, x1: float, y1: float, x2: float, y2: float) -> bool:
        wide, high = MOST_LEAVING * self.width, MOST_LEAVING * self.height
        return x1 >= -wide and y1 >= -high and x2 <= self.width + wide and y2 <= self.height + high

    def _error(self, must: str, got: Any) -> DataError:
        return DataError(f"{self.place}: {must}, got {quoted(got, 80)}")


def _joined(old: PhotoFacts, new: PhotoFacts, place: str) -> PhotoFacts:
    if (old.width, old.height) != (new.width, new.height):
        raise DataError(
            f"{place}: {new.image} is {new.width} x {new.height} pixels here, {old.width} x {old.height} before"
        )
    for key in ("detections", "attribute_detections", "triplets", "captions"):
        if getattr(old, key) and getattr(new, key):
            raise DataError(f"{place}: {new.image} has its {key} already: give each list once")
    second = old.attribute_detections if new.attribute_detections is None else new.attribute_detections
    return replace(
        old,
        detections=old.detections or new.detections,
        attribute_detections=second,
        triplets=old.triplets or new.triplets,
        captions=old.captions or new.captions,
        heads=old.heads or new.heads,
    )


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _encodes(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e12  # abs(NaN) < 1e12 is false
