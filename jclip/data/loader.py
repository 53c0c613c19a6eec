"""Photos decoded and prepared ahead of the model, in order, with a bounded queue."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from PIL import Image

from jclip.data import workers as decoding
from jclip.data.augment import Views, seen
from jclip.data.box_photo_views import BoxViews
from jclip.data.photo_file import open_photo
from jclip.errors import ConfigError, DataError, notice
from jclip.machine import ranks

OnError = Literal["stop", "skip"]
Prepare = Views | BoxViews | Callable[[Image.Image, Any], np.ndarray]
_AHEAD = 2  # batches that may wait decoded
_WORTH_PROCESSES = 256  # photos: processes take a third of a second to start


def warn_once(failed: Iterable[str], reported: set[str]) -> None:
    """Reports each skipped photo once on stderr; `reported` remembers them."""
    for message in failed:
        if message not in reported:
            reported.add(message)
            notice(f"skipped: {message}")


def batches(
    paths: Sequence[str],
    prepare: Prepare,
    size: int,
    on_error: OnError = "stop",
    failed: list[str] | None = None,
    rows: Sequence[Any] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places (n,) in `paths` and arrays (n, …) of `prepare(photo, row)`, `size` at a time, the last batch as it is.

    Of photos that vary in size, those of equal size among `size` come together, so that places are not in order. The
    rest as of `prepared`.
    """
    for several in batches_of_shapes(paths, prepare, size, on_error, failed, rows):
        yield from several


def batches_of_shapes(
    paths: Sequence[str],
    prepare: Prepare,
    size: int,
    on_error: OnError = "stop",
    failed: list[str] | None = None,
    rows: Sequence[Any] | None = None,
) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """The batches of `batches`, listed by `size` photos that follow each other: one, or of photos that vary one per shape."""
    varies = isinstance(prepare, Views) and prepare.preprocess.varies
    most = size * math.prod(prepare.shape) if varies else None
    with contextlib.closing(prepared(paths, prepare, _AHEAD * size, on_error, failed, rows)) as results:
        while kept := [*itertools.islice(results, size)]:
            yield _by_shape(kept, most) if varies else [_stack(kept)]


def prepared(
    paths: Sequence[str],
    prepare: Prepare,
    ahead: int,
    on_error: OnError = "stop",
    failed: list[str] | None = None,
    rows: Sequence[Any] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """(place, `prepare(photo, row)`) of the photos at `paths`, in order, `ahead` of them in preparation.

    rows: by which numbers `prepare` knows the photos, their places by default. Many photos that views prepare are
    decoded in `workers()` processes, else in threads. A photo that does not decode stops the run, or with `skip` is left
    out and its message appended to `failed`.
    """
    rows = range(len(paths)) if rows is None else rows
    count = workers()
    if isinstance(prepare, Views | BoxViews) and by_processes(len(paths)):
        results = decoding.decoded(paths, rows, prepare, ahead, count)
    else:
        results = _in_threads(paths, rows, prepare, ahead, min(len(paths), count))
    with contextlib.closing(results):
        for place, result in results:
            if not isinstance(result, DataError):
                yield place, result
            elif on_error == "stop":
                raise DataError(f"{result} (repair or remove it, or skip such photos: on_error=skip)")
            elif failed is not None:
                failed.append(str(result))


def by_processes(photos: int) -> bool:
    """Whether so many photos that views prepare are decoded by processes of their own."""
    return photos >= _WORTH_PROCESSES and workers() > 0


def workers() -> int:
    """How many processes or threads decode: JCLIP_WORKERS, else one per core, at most 16. 0: no processes.

    Several ranks of a host divide them.
    """
    named = os.environ.get("JCLIP_WORKERS", "")
    if named and not named.isdecimal():
        raise ConfigError(f"JCLIP_WORKERS must be a number of processes, got {named}")
    count = int(named) if named else min(ranks.cores(), 16)
    return max(1, count // ranks.here().local_size) if named and count else count


def _in_threads(paths, rows, prepare, ahead: int, count: int) -> Iterator[tuple[int, np.ndarray | DataError]]:
    def make(place: int) -> np.ndarray:
        if isinstance(prepare, Views | BoxViews):
            return seen(paths[place], prepare, decoding.plain(rows[place]))
        return prepare(open_photo(paths[place]), decoding.plain(rows[place]))

    with ThreadPoolExecutor(max(1, count), thread_name_prefix="decode") as pool:
        waiting: deque[Future] = deque()
        try:
            for place in range(len(paths)):
                while len(waiting) < ahead and place + len(waiting) < len(paths):
                    waiting.append(pool.submit(make, place + len(waiting)))
                try:
                    result = waiting.popleft().result()
                except DataError as e:
                    result = e
                yield place, result
        finally:
            for future in waiting:
                future.cancel()


def _by_shape(kept: list[tuple[int, np.ndarray]], most: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """A batch for each shape, or several where one would hold more than `most` numbers."""
    found: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for one in kept:
        found.setdefault(one[1].shape, []).append(one)
    made = []
    for shape, alike in found.items():
        step = max(1, most // math.prod(shape))
        made += [_stack(alike[at : at + step]) for at in range(0, len(alike), step)]
    return made


def _stack(kept: list[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row for row, _ in kept]), np.stack([array for _, array in kept])
