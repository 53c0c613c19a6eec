"""Files written whole: a temporary file beside the target, moved into place when it is complete."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from jclip.errors import ConfigError


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path beside `path`, which is moved into place when the block
    succeeds.

    A crash, a full disk or a kill leaves the old file untouched; temporary files of killed processes are removed by
    the next write of `path`. Raises `OSError` that names `path`, or another file that the block was using.
    """
    target = Path(path)
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary, lock = _part_beside(target)
        moved = False
        try:
            with naming(target, instead_of=temporary):
                yield temporary
                _sync(temporary)
                temporary.replace(target)
                moved = True
        finally:
            if not moved:
                temporary.unlink(missing_ok=True)
            os.close(lock)


@contextmanager
def creating(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file as `replacing` does, but never overwrite. Raises `FileExistsError` where something exists at `path`."""
    target = Path(path)
    with naming(target):
        temporary, lock = _part_beside(target)
        try:
            with naming(target, instead_of=temporary):
                yield temporary
                _sync(temporary)
                _put_where_nothing_is(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(lock)


def write_together(folder: Path, contents: Mapping[str, bytes], stale: Iterable[str] = ()) -> None:
    """Write files that belong together: all of them, or none after a full disk. Files named in `stale` are removed.

    The first of `contents` marks the others as complete: it is removed first and moved into place last.
    """
    with ExitStack() as stack:
        for name, data in contents.items():
            temporary = stack.enter_context(replacing(folder / name))
            with naming(folder / name):
                temporary.write_bytes(data)
        for name in (next(iter(contents)), *stale):
            (folder / name).unlink(missing_ok=True)


@contextmanager
def naming(path: str | os.PathLike, instead_of: str | os.PathLike | None = None) -> Iterator[None]:
    """In the block, an `OSError` without a file name, as that of a full disk, gets the name `path`."""
    try:
        yield
    except OSError as e:
        unnamed = e.filename is None or (instead_of is not None and os.fspath(e.filename) == os.fspath(instead_of))
        if e.errno is None or not unnamed:
            raise
        raise OSError(e.errno, e.strerror, os.fspath(path)) from e


def refuse_overwriting(outputs: Iterable[str | os.PathLike | None], inputs: Iterable[str | os.PathLike]) -> None:
    """Raise `ConfigError` where an output is one of the inputs, under any name, or is a folder.

    Call it before the work. Outputs that are None or do not exist yet are ignored.
    """
    there = {}
    for output in filter(None, outputs):
        with suppress(OSError):
            found = Path(output).stat()
            if stat.S_ISDIR(found.st_mode):
                raise ConfigError(f"{output} must be a file to write to, got a folder: choose another name")
            there[found.st_dev, found.st_ino] = output
    for path in inputs if there else ():
        with suppress(OSError):
            found = Path(path).stat()
            if output := there.get((found.st_dev, found.st_ino)):
                same = "" if os.fspath(output) == os.fspath(path) else f" as {path}"
                raise ConfigError(f"{output} is read{same}, and would be overwritten: choose another file to write to")


def remove_parts(folder: Path, names: Collection[str]) -> None:
    """Remove temporary files that killed processes left while writing the files `names` of a folder."""
    pattern = re.compile(r"\.(.+?)(\.[a-z0-9_]+)?\.part")
    known = {_part_stem(name) for name in names}
    for place in folder.iterdir():
        found = pattern.fullmatch(place.name)
        if found and (found[1] in known or f"{found[1]}{found[2] or ''}" in known):
            _remove_dead(place)


def _part_beside(target: Path) -> tuple[Path, int]:
    """Create an empty temporary file beside `target`; return it and a descriptor that holds its lock for the
    process's life."""
    for number in itertools.count(1):
        part = target.with_name(f".{_part_stem(target.name)}{f'.{number}' if number > 1 else ''}.part")
        if (lock := _make_locked(part)) is not None:
            return part, lock
    raise AssertionError("counting ends nowhere")


def _part_stem(name: str) -> str:
    """Return the name, or its hash where the name is too long to be extended."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= 240 else hashlib.sha256(encoded).hexdigest()[:32]


def _make_locked(part: Path) -> int | None:
    """Return a descriptor of the file created at `part`, or None where another process is writing there."""
    while True:
        try:
            made = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            if _remove_dead(part):
                continue
            return None
        if _take_lock(made, without=True) and _is_at(part, made):
            return made
        os.close(made)
        return None


def _remove_dead(part: Path) -> bool:
    """Return whether the place is free. Regular files that no living process writes are removed."""
    try:
        found = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode) or not _take_lock(found, without=False):
            return False
        if _is_at(part, found):
            part.unlink()
        return True
    except OSError:
        return False
    finally:
        os.close(found)


def _take_lock(descriptor: int, without: bool) -> bool:
    """Return whether the lock was free; `without` is the result on file systems without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return without
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    with open(path, "rb+") as f:
        os.fsync(f.fileno())


def _put_where_nothing_is(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except FileExistsError as e:
        raise FileExistsError(e.errno, e.strerror, os.fspath(target)) from e
    except OSError:  # a file system without hard links: not in one move, but still never over anything
        with open(target, "xb") as f, open(temporary, "rb") as written:
            shutil.copyfileobj(written, f)
