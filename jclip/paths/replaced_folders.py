"""Folders replaced in one move, and what a killed process left of that repaired."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Replace a folder atomically: yields a temporary folder beside `path`, moved into place when the block succeeds.

    Files of the old folder that the new one lacks are kept. A crash or a kill at any moment leaves the old folder or
    the new one, whole (where the file system can't exchange two folders, possibly neither, which the next call for
    this path repairs). What a killed call left beside `path` is removed by the next. Raises `OSError`.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir() and Path.cwd().is_relative_to(target):
        raise OSError(
            errno.EBUSY, "must not be the folder that this command runs in: name a folder below it", str(path)
        )
    temporary, lock = _temporary_folder(target)
    try:
        yield temporary
        temporary.chmod(target.stat().st_mode & 0o7777 if target.is_dir() else 0o777 & ~_umask())
        _sync_below(temporary)
        if target.is_dir():
            _keep_others(target, temporary)
            _exchange(temporary, target)
        else:
            temporary.rename(target)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(target)) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def _temporary_folder(target: Path) -> tuple[Path, int]:
    """Create a folder beside `target`; return it and a descriptor that locks it. Unlocked ones were left by a kill."""
    parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: nothing is removed there
            fcntl.flock(parent, fcntl.LOCK_EX)
            _repair(target)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        lock = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return temporary, lock
    finally:
        os.close(parent)


def _repair(target: Path) -> None:
    """Restore a folder that a killed call had moved aside, and remove what killed calls left."""
    name = re.compile(re.escape(f".{target.name}.") + r"[a-z0-9_]{8}\.(part|old)")
    for left in sorted(target.parent.iterdir()):
        if not name.fullmatch(left.name) or left.is_symlink() or not left.is_dir():
            continue
        if left.suffix == ".old" and not target.exists():
            left.rename(target)
        elif not _is_locked(left):
            shutil.rmtree(left, ignore_errors=True)


def _is_locked(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _sync_below(folder: Path) -> None:
    """Flush all regular files of a folder, and its own entries, to the disk."""
    for place in [*(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()), folder]:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _keep_others(old: Path, new: Path) -> None:
    """Link into `new` the entries of `old` that it lacks; copy them where links are not allowed."""
    for entry in sorted(old.iterdir()):
        if os.path.lexists(new / entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link)
        else:
            _link(entry, new / entry.name)


def _link(source: str | os.PathLike, target: str | os.PathLike) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(first: Path, second: Path) -> None:
    """Exchange two folders in one step; where the system can't, move the second aside for a moment."""
    sys.audit("os.rename", str(first), str(second), -1, -1)
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 and renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return
    aside = first.with_suffix(".old")
    second.rename(aside)
    try:
        first.rename(second)
    except OSError:
        aside.rename(second)
        raise
    shutil.rmtree(aside, ignore_errors=True)


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
