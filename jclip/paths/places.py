"""Where jclip keeps what it can make again, and questions about files that answer for any name."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from jclip.errors import SetupError

ASSETS = Path(__file__).parents[1] / "assets"


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
