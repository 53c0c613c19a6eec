"""Where jclip keeps what it can make again: Jittor's compiled code, downloaded weights, cached features."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from jclip.errors import SetupError

ASSETS = Path(__file__).parent / "assets"


def cache_dir(*parts: str) -> Path:
    """A folder below `$JCLIP_CACHE`, `$XDG_CACHE_HOME/jclip` or `~/.cache/jclip`, made if it is absent.

    Raises `SetupError` where it can't be written.
    """
    named = os.environ.get("JCLIP_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    root = Path(named) if named else Path(shared, "jclip") if shared else Path.home() / ".cache" / "jclip"
    folder = root.expanduser().absolute().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise SetupError(
            f"can't write the cache folder {folder} ({e.strerror}): set JCLIP_CACHE to a writable one"
        ) from e
    return folder


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file for reading in binary, links followed. Never blocks.

    Raises `OSError`, whose `strerror` says what stands there, for a FIFO, a device, a socket or a folder.
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
    """SHA-256 of a file's bytes as hex digits.

    Remembered in the cache for the resolved path, device, inode, size, mtime_ns and ctime_ns together: a file that was
    replaced, edited in place or restored with its old time is hashed again.
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
    """The digest that a note holds; None where there is none, or where the note is damaged."""
    try:
        digest, checksum = note.read_text(encoding="ascii").split(" ")
    except (OSError, ValueError):
        return None
    return digest if checksum == _note_checksum(key, digest) else None


def _note_checksum(key: str, digest: str) -> str:
    return hashlib.sha256(f"{key} {digest}".encode()).hexdigest()[:16]


def compute_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes as hex digits, read now."""
    with open_regular(path) as f:
        return _digest_of(f)


def _digest_of(file: BinaryIO) -> str:
    sha = hashlib.sha256()
    while block := file.read(1 << 20):
        sha.update(block)
    return sha.hexdigest()


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to, and moves it into place when the block ends well.

    A crash, a full disk or a kill leaves what stood at `path` untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except OSError as e:  # a full disk names no file by itself
        raise OSError(e.errno, e.strerror, str(target)) from e
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary folder beside `path` to fill, and puts it in place in one move when the block ends well.

    Of a folder that stands there, what has no namesake in the new one is kept. A crash or a kill at any moment leaves
    the old folder whole or the new one whole (where the file system can't exchange two folders: or neither, which the
    next call for this path repairs). What a killed call left beside `path` is removed by the next. Raises `OSError`.
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
    """A new folder beside `target` and a descriptor that locks it: folders that nobody locks were left by a kill."""
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
    """Puts back a folder that a killed call had moved aside, and removes what killed calls left."""
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
    """All regular files of a folder, and its own entries, are on the disk."""
    for place in [*(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()), folder]:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _keep_others(old: Path, new: Path) -> None:
    """What `new` has no namesake of, linked into it; copied where links are not allowed."""
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
    """Two folders change places in one step; where the system can't, the second is moved aside for a moment."""
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
    """`folder`, or a link to it whose path every shell takes as one word: Jittor puts paths into commands unquoted.

    Raises `SetupError` when the place for such links belongs to somebody else.
    """
    if not re.search(r"[^\w./+@:-]", str(folder)):
        return folder
    private = Path("/tmp") / f"jclip-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.is_symlink() or private.stat().st_uid != os.getuid():
        raise SetupError(f"{private} belongs to somebody else: the path {folder} must be without blanks and signs")
    link = private / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    if not link.is_symlink() or link.readlink() != folder:
        temporary = link.with_name(f".{link.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder)
        temporary.replace(link)
    return link
