"""Files fetched whole: continued after a break, checked, then moved into place; one process at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from jclip.weights.http_transfer import Download, TransferError, kept, transfer


class WrongBytes(TransferError):
    """What arrived is not the file that was asked for."""


def fetch_whole(wanted: Download, target: Path, part: Path, agrees: Callable[[Path], bool]) -> None:
    """Fetch a file to `target`. What arrived before a break stays in `part`, and the next call continues it.

    agrees: whether a complete `part` is the file. Raises `WrongBytes`, with nothing kept, where it is not, and
    `TransferError`, which says how much is kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(part.with_suffix(".lock")):
        if target.is_file() and agrees(target):  # another process was faster
            return
        try:
            transfer(wanted, part)
        except TransferError as e:
            again = f"{size} bytes are kept, run again to go on" if (size := kept(part)) else ""
            raise TransferError(str(e), again) from e
        if not agrees(part):
            part.unlink()
            raise WrongBytes("other bytes arrived than")
        part.replace(target)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock, one process at a time; the lock file is removed at the end."""
    import fcntl

    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists() and os.fstat(lock).st_ino == path.stat().st_ino:
            break
        os.close(lock)  # it was removed while we waited
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)
