"""Photos that somebody hands over to be labelled at once: what was found of them, the most unsure first, and why others were
left out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from jclip.data.photo_file import open_photo
from jclip.errors import DataError, JclipError, printable
from jclip.report import predictions, tags

Found = predictions.Predictions | tags.Tags
GLANCE = (32, 32)  # pixels: large JPEGs are decoded at a fraction
JOINED = {  # fields with a row or entry for each photo
    predictions.Predictions: ("photos", "scores", "prompts", "cosines"),
    tags.Tags: ("photos", "scores", "background", "passing", "written"),
}


@dataclass(frozen=True)
class Asked:
    """What was found of the photos that decode; failed: a line for each of the others, with its path."""

    found: Found
    failed: tuple[str, ...] = ()

    @cached_property
    def order(self) -> list[int]:
        """Rows of the photos, the most unsure first."""
        return np.argsort(self.found.margins, kind="stable").tolist()

    def entries(self, names: Mapping[str, str]) -> list[dict[str, Any]]:
        """What a JSON file of `jclip zero-shot`, `tag` or `predict` holds of them; names: path → what a photo is called."""
        of = predictions if isinstance(self.found, predictions.Predictions) else tags
        return [entry | {"photo": names.get(entry["photo"], entry["photo"])} for entry in of.entries(self.found)]


def ask(
    photos: Sequence[str],
    label: Callable[[Sequence[str]], Found],
    at_once: int = 64,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> Asked:
    """What `label` says of the photos that decode, `at_once` of them at a time.

    label: raises `DataError` with the path of a photo that it can't read, which is then left out. step: called before each
    part with how many photos are done, of how many; what it raises ends the work. Raises `DataError` where no photo is
    left: what is wrong with the first.
    """
    failed = {photo: line for photo in photos if (line := why_not(photo))}
    good, parts = [photo for photo in photos if photo not in failed], []
    for start in range(0, len(good), at_once):
        step(start, len(good))
        some = good[start : start + at_once]
        while some:
            try:
                parts.append(label(some))
                break
            except DataError as e:
                named = max((photo for photo in some if printable(photo) in str(e)), key=len, default="")
                if not named:
                    raise
                failed[named], some = str(e), [photo for photo in some if photo != named]
    if not parts:
        raise DataError(next(iter(failed.values()), "photos must be given: drop some, or choose files"))
    return Asked(joined(parts), tuple(failed.values()))


def why_not(photo: str) -> str:
    """Why a photo does not decode, in a line; empty where it does."""
    try:
        open_photo(photo, GLANCE)
    except DataError as e:
        return str(e)
    return ""


def joined(parts: Sequence[Found]) -> Found:
    """What was found of several parts of the photos, as if of all at once."""
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0], **{name: _joined(getattr(part, name) for part in parts) for name in JOINED[type(parts[0])]}
    )


def _joined(values: Iterable[Any]) -> Any:
    values = [*values]
    if values[0] is None:
        return None
    return np.concatenate(values) if isinstance(values[0], np.ndarray) else tuple(x for part in values for x in part)


@contextlib.contextmanager
def called(names: Mapping[str, str]) -> Iterator[None]:
    """In the block errors say of photos what they are called; names: path → that."""
    try:
        yield
    except JclipError as e:
        e.args = (renamed(str(e), names),)
        raise


def renamed(text: str, names: Mapping[str, str]) -> str:
    """The text with what photos are called in place of their paths."""
    for photo in sorted(names, key=len, reverse=True):
        text = text.replace(printable(photo), printable(names[photo]))
    return text
