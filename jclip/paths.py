"""Where jclip keeps what it can make again: Jittor's compiled code, downloaded weights, cached features."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
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
    """Whether a regular file has that name; unlike `Path.is_file`, also answers for a text too long to be a file's name."""
    return os.path.isfile(name)  # noqa: PTH113


def exists(name: str | os.PathLike) -> bool:
    """Whether anything has that name; as `is_file`, also of a text too long to be one."""
    return os.path.exists(name)  # noqa: PTH110


def expanded(path: str | os.PathLike) -> Path:
    """The path with `~` and `~user` as home folders; as it is where there is no such user. `Path`'s own raises then."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


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
    """Gives a temporary folder beside `path` to fill, and moves it, or its files, into place when the block ends well."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if not target.exists():
            temporary.rename(target)
            return
        for file in sorted(temporary.iterdir()):
            file.replace(target / file.name)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(target)) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
