"""One writer of a gallery, or of several shares each its own: locks of the folder and of a share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from jclip.data import unfinished_gallery
from jclip.data.gallery_store import is_gallery
from jclip.data.shares import Share
from jclip.errors import ConfigError

PATIENCE = (
    10.0  # seconds: on a busy machine, too, what a killed process had just started may hold its lock for a moment
)
_LOOK = 0.05


@contextlib.contextmanager
def alone(folder: Path, share: Share) -> Iterator[Lock]:
    """In the block no other process writes the gallery, whose folder is made, or of several shards this one; of a block that
    fails no lock of a shard and no empty folder stays.

    Raises `ConfigError` where another process does.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        lock, own = Lock(held), unfinished_gallery.lock_of(folder, share)
        lock.take(folder, os.O_RDONLY | os.O_DIRECTORY, fcntl.LOCK_EX if share.is_whole else fcntl.LOCK_SH, str(folder))
        if not share.is_whole:
            lock.take(own, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX, f"shard {share} of {folder}")
        try:
            yield lock
        except BaseException:
            if not share.is_whole:
                own.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()
            raise
        if not share.is_whole and is_gallery(folder):
            own.unlink(missing_ok=True)


@contextlib.contextmanager
def sharing(folder: Path) -> Iterator[None]:
    """In the block no other process has its own processes, or a cluster's, make the gallery. Raises `ConfigError` where one
    does."""
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / unfinished_gallery.SHARING
    with contextlib.ExitStack() as held:
        Lock(held).take(own, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX, str(folder))
        try:
            yield
        finally:
            own.unlink(missing_ok=True)


class Lock:
    """Locks of a gallery's folder and of a shard, given back when the stack is left; none where the file system has none."""

    def __init__(self, held: contextlib.ExitStack):
        self._held, self._folder, self._last = held, None, -1

    def take(self, path: Path, flags: int, kind: int, what: str) -> None:
        """Locks a file. Raises `ConfigError` where another process has."""
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        self._held.callback(os.close, descriptor)
        self._folder, self._last = descriptor if self._folder is None else self._folder, descriptor
        end = time.monotonic() + PATIENCE
        while not _locked(descriptor, kind):
            if time.monotonic() >= end:
                raise ConfigError(f"another process is writing {what}: wait for its end")
            time.sleep(_LOOK)

    def note(self, text: bytes) -> None:
        """Writes into the file that was locked last, a shard's."""
        os.ftruncate(self._last, 0)
        os.pwrite(self._last, text, 0)

    def alone(self) -> None:
        """Waits until no other process is at work in the folder."""
        with contextlib.suppress(OSError):
            fcntl.flock(self._folder, fcntl.LOCK_EX)


def _locked(descriptor: int, kind: int) -> bool:
    """Whether the lock is ours now, or the file system has none."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
