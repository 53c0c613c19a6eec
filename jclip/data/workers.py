"""Photos prepared in processes of their own: Jittor holds the interpreter's lock while it computes, so threads wait then.

The processes are started by name, not forked, so any program may use them; pixels come back through memory that both
sides map, and that no crash leaves behind. Messages are lines of JSON. Those that have done their work wait for more: an
epoch of small photos takes less than to start them.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.augment import OfPhotos, Views, seen
from jclip.data.box_photo_views import BoxViews
from jclip.data.photo_file import ORIENTATIONS
from jclip.errors import DataError, SetupError

_MOST_SLOTS = 128  # photos that may wait prepared; their messages fit a pipe
_MOST_BYTES = 2**28
_idle: dict[int, list[subprocess.Popen]] = {}  # by who started them: a fork's copies are not its own


def decoded(paths: Sequence[str], rows: Sequence[Any], views: OfPhotos, ahead: int, count: int) -> Iterator:
    """(place, what `views` makes of the photo, or the `DataError` it met), in the order of `paths`, so many of them `ahead`.

    Raises `SetupError` when a process dies.
    """
    size = 4 * int(np.prod(views.shape))
    slots = max(1, min(ahead, _MOST_SLOTS, _MOST_BYTES // size))
    shared = os.memfd_create("jclip-photos")
    workers: list[subprocess.Popen] = []
    try:
        os.ftruncate(shared, slots * size)
        pixels = _mapped(shared, slots, views.shape)
        workers += _hired(min(count, slots))
        for worker in workers:
            _send(worker, {"memory": f"/proc/{os.getpid()}/fd/{shared}", "slots": slots, "views": views.to_dict()})
        sent = 0
        for place in range(len(paths)):
            while sent < min(len(paths), place + slots):
                _send(workers[sent % len(workers)], [sent % slots, plain(rows[sent]), paths[sent]])
                sent += 1
            error, turned = _answer(workers[place % len(workers)], paths[place])
            if error is None:
                ORIENTATIONS.saw(paths[place], turned)
            yield place, pixels[place % slots].copy() if error is None else DataError(error)
        while workers:  # each has given all its answers
            _send(workers[-1], {})
            _idle.setdefault(os.getpid(), []).append(workers.pop())
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
        os.close(shared)


def plain(row: Any) -> Any:
    """What `views` knows a photo by, as JSON has it: a number, or a list."""
    return row if isinstance(row, list) else int(row)


def _mapped(shared: int, slots: int, shape: tuple[int, ...]) -> np.ndarray:
    memory = mmap.mmap(shared, 0)  # unmapped with the last array that shows it
    return np.frombuffer(memory, np.float32).reshape(slots, *shape)


def _hired(count: int) -> list[subprocess.Popen]:
    """So many processes, those that wait first."""
    waiting = _idle.setdefault(os.getpid(), [])
    found: list[subprocess.Popen] = []
    while waiting and len(found) < count:
        worker = waiting.pop()
        if worker.poll() is None:
            found.append(worker)
    return found + [_start() for _ in range(count - len(found))]


def _start() -> subprocess.Popen:
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    return subprocess.Popen(
        [sys.executable, "-m", "jclip.data.workers"],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def _send(worker: subprocess.Popen, message) -> None:
    try:
        worker.stdin.write(json.dumps(message) + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        pass  # its answer, which is awaited in turn, will be missing


def _answer(worker: subprocess.Popen, path: str) -> tuple[str | None, bool]:
    """What went wrong with a photo, if anything, and whether it was turned upright."""
    line = worker.stdout.readline()
    if not line:
        raise SetupError(
            f"a process that decodes photos ended with {worker.wait()} at {path} or one of the next "
            "(out of memory?): JCLIP_WORKERS=0 decodes without such processes"
        )
    error, turned = json.loads(line)
    return error, turned


def _work() -> None:
    """The process's part: until its input ends, prepare what is named and say null, or what went wrong, and whether the
    photo was turned."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it, and ends this one
    for line in sys.stdin:
        message = json.loads(line)
        if not message:  # these photos are done: free their memory
            pixels = None
            continue
        if isinstance(message, dict):  # others: where their pixels go, and how they are seen
            views = (BoxViews if message["views"]["kind"] == "BoxViews" else Views).from_dict(message["views"])
            with open(message["memory"], "r+b") as shared:
                pixels = _mapped(shared.fileno(), message["slots"], views.shape)
            continue
        slot, row, path = message
        ORIENTATIONS.clear()
        error = None
        try:
            pixels[slot] = seen(path, views, row)
        except DataError as e:
            error = str(e)
        sys.stdout.write(json.dumps([error, bool(ORIENTATIONS.turned_among([path]))]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _work()
