"""Where jclip keeps what it can make again: Jittor's compiled code, downloaded weights, cached features."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from jclip.errors import ConfigError, SetupError

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

    A crash, a full disk or a kill leaves what stood at `path` untouched; what a killed process left beside it is removed
    when `path` is written again. Raises `OSError` that names `path`, or another file that the block was busy with.
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
    """As `replacing`, but never in place of anything. Raises `FileExistsError` where something stands at `path`."""
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
    """Writes files of the same measurement: all of them, or after a full disk none; what is `stale` is removed.

    The first of `contents` is the mark that the others are complete: it is removed first and moved into place last.
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
    """In the block, an error of the system that names no file, as that of a full disk, names `path`."""
    try:
        yield
    except OSError as e:
        unnamed = e.filename is None or (instead_of is not None and os.fspath(e.filename) == os.fspath(instead_of))
        if e.errno is None or not unnamed:
            raise
        raise OSError(e.errno, e.strerror, os.fspath(path)) from e


def refuse_overwriting(outputs: Iterable[str | os.PathLike | None], inputs: Iterable[str | os.PathLike]) -> None:
    """Raises `ConfigError` where a file to be written is one that is read, by whatever name, or is a folder.

    To be asked before the work. Outputs that are None or not there yet can overwrite nothing.
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
    """Removes what killed processes left of writing the files `names` of a folder."""
    pattern = re.compile(r"\.(.+?)(\.[a-z0-9_]+)?\.part")
    known = {_part_stem(name) for name in names}
    for place in folder.iterdir():
        found = pattern.fullmatch(place.name)
        if found and (found[1] in known or f"{found[1]}{found[2] or ''}" in known):
            _remove_dead(place)


def _part_beside(target: Path) -> tuple[Path, int]:
    """A new empty file beside `target`, and a descriptor that holds its lock as long as this process lives."""
    for number in itertools.count(1):
        part = target.with_name(f".{_part_stem(target.name)}{f'.{number}' if number > 1 else ''}.part")
        if (lock := _make_locked(part)) is not None:
            return part, lock
    raise AssertionError("counting ends nowhere")


def _part_stem(name: str) -> str:
    """The name, or of one to which nothing can be added its hash."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= 240 else hashlib.sha256(encoded).hexdigest()[:32]


def _make_locked(part: Path) -> int | None:
    """A descriptor of the file made at `part`; None where another process is writing there."""
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
    """Whether the place is free now: what no living process writes is removed, all but a regular file is left."""
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
    """Whether the lock was free; `without`: the answer of file systems that have no locks."""
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
