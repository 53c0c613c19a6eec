"""Photos prepared in processes of their own: Jittor holds the interpreter's lock while it computes, so threads wait then.

The processes are started by name, not forked, so any program may use them; pixels come back through memory that both
sides map, and that no crash leaves behind. Messages are lines of JSON. Those that have done their work wait for more: an
epoch of small photos takes less than to start them.
"""

from __future__ import annotations

import json
import math
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
from jclip.data.photo_file import FAILED, ORIENTATIONS
from jclip.errors import DataError, SetupError

_MOST_SLOTS = 128  # photos that may wait prepared; their messages fit a pipe
_MOST_BYTES = 2**28
_MOST_DEAD = 4  # photos one after the other with which processes died
ENDED = "it ended the process that decodes it, twice"
_idle: dict[int, list[subprocess.Popen]] = {}  # by who started them: a fork's copies are not its own


def decoded(paths: Sequence[str], rows: Sequence[Any], views: OfPhotos, ahead: int, count: int) -> Iterator:
    """(place, what `views` makes of the photo, or the `DataError` it met), in the order of `paths`, so many of them `ahead`.

    A photo with which a process dies is tried again in another, and counts as one that does not decode if that dies too.
    Raises `SetupError` when the processes die with several photos one after the other.
    """
    size = 4 * views.largest
    slots = max(1, min(ahead, _MOST_SLOTS, _MOST_BYTES // size))
    shared = os.memfd_create("jclip-photos")
    workers: list[subprocess.Popen] = []
    try:
        os.ftruncate(shared, slots * size)
        pixels = _mapped(shared, slots, views.largest)
        head = {"memory": f"/proc/{os.getpid()}/fd/{shared}", "slots": slots, "views": views.to_dict()}
        workers += _hired(min(count, slots))
        for worker in workers:
            _send(worker, head)
        sent = dead = 0
        for place in range(len(paths)):
            while sent < min(len(paths), place + slots):
                _send(workers[sent % len(workers)], _task(paths, rows, sent, slots))
                sent += 1
            number = place % len(workers)
            answer = _answer(workers[number])
            if answer is None:
                waiting = range(place + len(workers), sent, len(workers))
                answer = _again(workers, number, head, [_task(paths, rows, p, slots) for p in (place, *waiting)])
                dead = dead + 1 if answer[0] else 0
                if dead == _MOST_DEAD:
                    raise SetupError(f"{answer[0]}, as with {dead - 1} photos before: JCLIP_WORKERS=0 decodes without "
                                     "processes of their own")  # fmt: skip
            error, turned, shape = answer
            if error is None:
                ORIENTATIONS.saw(paths[place], turned)
            yield place, _taken(pixels[place % slots], shape) if error is None else DataError(error)
        for worker in workers:  # each has given all its answers
            _send(worker, {})
        while (
            workers and workers[-1].stdout.readline()
        ):  # one that was started last opens the memory before it is closed
            _idle.setdefault(os.getpid(), []).append(workers.pop())
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
        os.close(shared)


def _task(paths: Sequence[str], rows: Sequence[Any], place: int, slots: int) -> list:
    return [place % slots, plain(rows[place]), paths[place]]


def _replace(workers: list[subprocess.Popen], number: int, head: dict) -> int:
    """Starts a process in the place of one that died; returns the code that it ended with."""
    code = workers[number].wait()
    workers[number].communicate()
    workers[number] = _start()
    _send(workers[number], head)
    return code


def _again(
    workers: list[subprocess.Popen], number: int, head: dict, tasks: list[list]
) -> tuple[str | None, bool, list[int]]:
    """Puts another process in the place of one that died, tries the first of its tasks there, and gives the others to it, or to
    a third if it dies as well; what the first task gave."""
    _replace(workers, number, head)
    _send(workers[number], tasks[0])
    answer = _answer(workers[number])
    if answer is None:
        code = _replace(workers, number, head)
        how = f"signal {-code}" if code < 0 else f"code {code}"
        answer = f"{tasks[0][2]}{FAILED}{ENDED} ({how})", False, []
    for task in tasks[1:]:
        _send(workers[number], task)
    return answer


def plain(row: Any) -> Any:
    """What `views` knows a photo by, as JSON has it: a number, or a list."""
    return row if isinstance(row, list) else int(row)


def _mapped(shared: int, slots: int, numbers: int) -> np.ndarray:
    """A row of so many numbers for each slot."""
    memory = mmap.mmap(shared, 0)  # unmapped with the last array that shows it
    return np.frombuffer(memory, np.float32).reshape(slots, numbers)


def _taken(slot: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A copy of the array of that shape at the slot's start."""
    return slot[: math.prod(shape)].reshape(shape).copy()


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


def _answer(worker: subprocess.Popen) -> tuple[str | None, bool, list[int]] | None:
    """What went wrong with a photo, if anything, whether it was turned upright, and its array's shape; None from a process
    that has died."""
    line = worker.stdout.readline()
    return tuple(json.loads(line)) if line.endswith("\n") else None


def _work() -> None:
    """The process's part: until its input ends, prepare what is named and say null, or what went wrong, and whether the
    photo was turned; an empty message is answered by an empty line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it, and ends this one
    for line in sys.stdin:
        message = json.loads(line)
        if not message:  # these photos are done: free their memory
            pixels = None
            sys.stdout.write("\n")
            sys.stdout.flush()
            continue
        if isinstance(message, dict):  # others: where their pixels go, and how they are seen
            views = (BoxViews if message["views"]["kind"] == "BoxViews" else Views).from_dict(message["views"])
            with open(message["memory"], "r+b") as shared:
                pixels = _mapped(shared.fileno(), message["slots"], views.largest)
            continue
        slot, row, path = message
        ORIENTATIONS.clear()
        error, shape = None, ()
        try:
            array = seen(path, views, row)
            shape = array.shape
            pixels[slot, : array.size] = array.reshape(-1)
        except DataError as e:
            error = str(e)
        sys.stdout.write(json.dumps([error, bool(ORIENTATIONS.turned_among([path])), shape]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _work()
