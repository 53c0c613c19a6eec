"""Photos of phrases prepared ahead of the model, in processes where they are files; which of them decode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data import loader
from jclip.data.box_photo_views import BoxViews
from jclip.data.box_samples import BoxSamples
from jclip.data.box_views import Normalisation
from jclip.errors import DataError, notice

_TO_TRY = BoxViews(8, Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))  # the smallest view that decodes a photo


def views_of_photos(
    samples: BoxSamples,
    photos: Iterable[int],
    views: BoxViews,
    ahead: int,
    rows: Sequence[int] | None = None,
    on_error: loader.OnError = "stop",
    failed: list[str] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """(place, array of `views`) for the photos of those numbers, in order, `ahead` of them in preparation.

    rows: for each of them the sample that the view is for, of views that are drawn. A photo that does not decode stops, or
    with `skip` is left out and its message appended to `failed`.
    """
    photos = list(photos)
    keys: list[Any] = [0] * len(photos) if rows is None else [_row(samples, row) for row in rows]
    if all(isinstance(samples.photos[i], Path) for i in photos):
        paths = [str(samples.photos[i]) for i in photos]
        yield from loader.prepared(paths, views, ahead, on_error, failed, keys)
        return
    for place, (photo, key) in enumerate(zip(photos, keys, strict=True)):
        yield place, views(samples.photo(photo), key)


def _row(samples: BoxSamples, row: int) -> list[Any]:
    return [int(row), samples.phrases[row], *samples.boxes[row].tolist()]


def readable(samples: BoxSamples) -> BoxSamples:
    """The samples whose photos decode, all of which are tried; how many do not is said in one line.

    Raises `DataError` where none does.
    """
    failed: list[str] = []
    photos = range(len(samples.photos))
    there = [place for place, _ in views_of_photos(samples, photos, _TO_TRY, 64, on_error="skip", failed=failed)]
    if not failed:
        return samples
    if not there:
        raise DataError(f"no photo of {len(photos)} decodes (first: {failed[0]})")
    notice(f"{len(failed)} of {len(photos)} photos and their phrases are left out (first: {failed[0]})")
    return samples.of_photos(there)
