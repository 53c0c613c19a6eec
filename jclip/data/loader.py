"""Photos decoded and prepared ahead of the model, in threads, in order, with a bounded queue."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import numpy as np
from PIL import Image

from jclip.errors import DataError

OnError = Literal["stop", "skip"]
_AHEAD = 2  # batches that may wait decoded


def open_photo(path: str) -> Image.Image:
    """The decoded photo. Raises `DataError` with its path when it does not decode."""
    try:
        image = Image.open(path)
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise DataError(f"{path} does not decode: {' '.join(str(e).split()) or type(e).__name__}") from e
    return image


def tell_once(failed: Iterable[str], told: set[str]) -> None:
    """Names on stderr the photos that were left out, each but once; `told` remembers them."""
    for message in failed:
        if message not in told:
            told.add(message)
            sys.stderr.write(f"skipped: {message}\n")


def batches(
    paths: Sequence[str],
    prepare: Callable[[Image.Image, int], np.ndarray],
    size: int,
    on_error: OnError = "stop",
    failed: list[str] | None = None,
    workers: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows (n,) and arrays (n, …) of `prepare(photo, row)`, `size` at a time, the last batch as short as it is.

    A photo that does not decode stops the run, or with `skip` is left out and its message appended to `failed`.
    """
    workers = workers or min(len(paths), os.cpu_count() or 1) or 1
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[int, Future]] = deque()
        rows = iter(range(len(paths)))
        kept: list[tuple[int, np.ndarray]] = []
        try:
            while True:
                while len(waiting) < _AHEAD * size and (row := next(rows, None)) is not None:
                    waiting.append((row, pool.submit(lambda p, r: prepare(open_photo(p), r), paths[row], row)))
                if not waiting:
                    break
                row, result = waiting.popleft()
                try:
                    kept.append((row, result.result()))
                except DataError as e:
                    if on_error == "stop":
                        raise DataError(f"{e} (mend or remove it, or let such photos be skipped: on_error=skip)") from e
                    if failed is not None:
                        failed.append(str(e))
                if len(kept) == size:
                    yield _stack(kept)
                    kept = []
        finally:
            for _, result in waiting:
                result.cancel()
        if kept:
            yield _stack(kept)


def _stack(kept: list[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row for row, _ in kept]), np.stack([array for _, array in kept])
