"""What photos are before a run reads them: format, mode, size, orientation, and whether they decode. Imports no Jittor.

They are opened by the function that runs open them by, at the smallest size that their format decodes to by itself; many
of them in processes of their own.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import NamedTuple

from jclip.data.loader import workers
from jclip.data.photo_file import header, open_photo
from jclip.errors import DataError, SetupError

CHUNK = 64  # photos of one message to a process
_AHEAD = 4  # chunks that may wait for each process
_WORTH_PROCESSES = 256  # photos: processes take half a second to start


class Seen(NamedTuple):
    """What is known of one photo: of a broken one, `error` and what could be read before it."""

    error: str = ""
    format: str = ""
    mode: str = ""
    width: int = 0  # as stored
    height: int = 0
    orientation: int = 1  # of EXIF


def examine(path: str) -> Seen:
    """Decodes one photo as runs do, a JPEG at an eighth of its size."""
    found = Seen()
    try:
        found = Seen("", *header(path))
        open_photo(path, draft=(-(-found.width // 8), -(-found.height // 8)), upright=False)
    except DataError as e:
        return found._replace(error=str(e))
    return found


def examined(paths: Sequence[str]) -> Iterator[Seen]:
    """`examine` of each photo, in order. Raises `SetupError` where a process dies."""
    count = workers()
    if len(paths) < _WORTH_PROCESSES or not count:
        yield from map(examine, paths)
        return
    chunks = [paths[at : at + CHUNK] for at in range(0, len(paths), CHUNK)]
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_started) as pool:
        waiting: deque[Future] = deque()
        try:
            for number, chunk in enumerate(chunks):
                while len(waiting) < _AHEAD * count and number + len(waiting) < len(chunks):
                    waiting.append(pool.submit(_examine_all, chunks[number + len(waiting)]))
                yield from _result(waiting.popleft(), chunk)
        finally:
            for future in waiting:
                future.cancel()


def _started() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it, and ends this one


def _examine_all(paths: Sequence[str]) -> list[Seen]:
    return list(map(examine, paths))


def _result(future: Future, chunk: Sequence[str]) -> list[Seen]:
    try:
        return future.result()
    except BrokenProcessPool as e:
        raise SetupError(
            f"a process that decodes photos ended at one of {len(chunk)} photos from {chunk[0]} on (out of memory?): "
            "JCLIP_WORKERS=0 decodes without such processes"
        ) from e
