"""Caches (compiled code, weights, features), files and folders written atomically, hashes of files."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from jclip.errors import ConfigError, SetupError

ASSETS = Path(__file__).parent / "assets"


def cache_dir(*parts: str) -> Path:
    """Return a folder below `$JCLIP_CACHE`, `$XDG_CACHE_HOME/jclip` or `~/.cache/jclip`, created if absent.

    Raises `SetupError` where it can't be written.
    """
    named = os.environ.get("JCLIP_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    root = expanded(named or (Path(shared, "jclip") if shared else "~/.cache/jclip"))
    if root.parts[0].startswith("~"):
        raise SetupError(f"{root}: there is no such home folder: set JCLIP_CACHE to a writable folder")
    folder = root.absolute().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise SetupError(
            f"can't write the cache folder {folder} ({e.strerror}): set JCLIP_CACHE to a writable one"
        ) from e
    return folder


def is_file(name: str | os.PathLike) -> bool:
    """Return whether a regular file has that name. Unlike `Path.is_file`, false for a text too long to be a file's
    name."""
    return os.path.isfile(name)  # noqa: PTH113


def exists(name: str | os.PathLike) -> bool:
    """Return whether anything has that name; false for a text too long to be one."""
    return os.path.exists(name)  # noqa: PTH110


def expanded(path: str | os.PathLike) -> Path:
    """Return the path with `~` and `~user` expanded, unchanged where there is no such user, for which
    `Path.expanduser` raises."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading in binary, following links. Never blocks.

    Raises `OSError`, whose `strerror` names the kind of file, for a FIFO, a device, a socket or a folder.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        kind = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(kind):
            what = "a folder" if stat.S_ISDIR(kind) else "a FIFO, socket or device"
            raise OSError(errno.EINVAL, f"must be a regular file, got {what}", os.fspath(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def file_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes as hex digits.

    Cached under the resolved path, device, inode, size, mtime_ns and ctime_ns together: a file that was replaced,
    edited in place or restored with its old time is hashed again.
    """
    path = Path(path).resolve()
    with open_regular(path) as f:
        found = os.fstat(f.fileno())
        facts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        key = hashlib.sha256(os.fsencode(path) + repr(facts).encode()).hexdigest()
        note = cache_dir("hashes") / key
        if (known := _noted(note, key)) is not None:
            return known
        digest = _digest_of(f)
    with replacing(note) as temporary:
        temporary.write_text(f"{digest} {_note_checksum(key, digest)}", encoding="ascii")
    return digest


def _noted(note: Path, key: str) -> str | None:
    """Return the digest stored in a note, or None where the note is absent or damaged."""
    try:
        digest, checksum = note.read_text(encoding="ascii").split(" ")
    except (OSError, ValueError):
        return None
    return digest if checksum == _note_checksum(key, digest) else None


def _note_checksum(key: str, digest: str) -> str:
    return hashlib.sha256(f"{key} {digest}".encode()).hexdigest()[:16]


def compute_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes as hex digits, without the cache."""
    with open_regular(path) as f:
        return _digest_of(f)


def _digest_of(file: BinaryIO) -> str:
    sha = hashlib.sha256()
    while block := file.read(1 << 20):
        sha.update(block)
    return sha.hexdigest()


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
    """As `replacing`, but never overwrites. Raises `FileExistsError` where something exists at `path`."""
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
    import fcntl

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
    import fcntl

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


def plain_path(folder: Path) -> Path:
    """Return `folder`, or a link to it whose path needs no shell quoting: Jittor puts paths into commands unquoted.

    Raises `SetupError` when the place for such links belongs to another user.
    """
    if not re.search(r"[^\w./+@:-]", str(folder)):
        return folder
    private = Path("/tmp") / f"jclip-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.is_symlink() or private.stat().st_uid != os.getuid():
        raise SetupError(
            f"{private} belongs to another user: the path {folder} must not contain blanks or special characters"
        )
    link = private / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    if not link.is_symlink() or link.readlink() != folder:
        temporary = link.with_name(f".{link.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder)
        temporary.replace(link)
    return link
