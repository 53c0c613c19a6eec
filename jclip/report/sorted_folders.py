"""Photos into a folder for each class, and back: all or nothing, by a manifest that undoes it, never over what stands there.

sorted.json is written first, so that `unsort` cleans up after a kill as well. It may come from a stranger: only what is
proven to be a copy whose original is there, or a link as it says, is removed, and nothing outside its folder.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from jclip.errors import DataError, printable
from jclip.paths import creating, naming, open_regular, remove_parts, replacing
from jclip.report.folder_names import MANIFEST, UNSURE, class_folders, free_name
from jclip.report.predictions import Predictions

How = Literal["copy", "link"]
_LARGEST_MANIFEST = 2**28  # bytes; a million photos take as many
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Placement:
    """One photo's new place, and why; of a photo with several tags one of its places."""

    photo: str
    target: str  # "folder/name", relative to the folder of the manifest
    label: str  # empty where no class is meant
    probability: float | None = None
    score: float | None = None  # in place of a probability, of tags that nobody has calibrated

    @property
    def folder(self) -> str:
        """The class's folder."""
        return self.target.partition("/")[0]

    @property
    def said(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Manifest:
    """What was placed how, and the class folders that were made for it; `complete` once every photo is in its place."""

    how: How
    photos: tuple[Placement, ...]
    folders: tuple[str, ...] | None = None  # None: of a version that did not say
    complete: bool = True


def check_folder(folder: Path, beside: Manifest | None = None) -> None:
    """Raises `DataError` for a folder that can't be sorted into, `beside` what was placed there: to be asked before work."""
    if beside is None and os.path.lexists(folder / MANIFEST):
        raise DataError(
            f"{folder / MANIFEST} stands there already: name another folder, or undo it with `jclip unsort`"
        )
    if os.path.lexists(folder) and not folder.is_dir():
        raise DataError(f"{folder} must be a folder, got a file: name another")


def plan(predictions: Predictions, folder: Path, unsure: float = 0.0) -> list[Placement]:
    """Where each photo goes: into its best class's folder, below the probability `unsure` into `_unsure`.

    Classes whose names become one folder, and photos of one name in one class, get numbers. Raises `DataError` when
    something stands there already, or a class's folder is a file or a link.
    """
    check_folder(folder)
    best, probabilities = predictions.best[:, 0], predictions.probabilities
    folders, taken = class_folders(predictions.classnames), set()
    placed = []
    for photo, label, row in zip(predictions.photos, best, probabilities, strict=True):
        name, probability = predictions.classnames[label], float(row[label])
        below = UNSURE if probability < unsure else folders[label]
        place = f"{below}/{free_name(Path(photo).name, taken, f'{below}/')}"
        placed.append(Placement(str(Path(photo).absolute()), place, name, round(probability, 6)))
    check_places(placed, folder)
    return placed


def check_places(placed: Sequence[Placement], folder: Path) -> None:
    """Raises `DataError` when something stands at a place already, or a class's folder is a file or a link."""
    for below in sorted({one.folder for one in placed}):
        if os.path.lexists(folder / below) and ((folder / below).is_symlink() or not (folder / below).is_dir()):
            raise DataError(f"{folder / below} must be a folder of its own, got a file or a link: name another folder")
    there = [one.target for one in placed if os.path.lexists(folder / one.target)]
    if there:
        raise DataError(f"{folder / there[0]} stands there already: name another folder")


def placed_before(folder: Path, how: How) -> Manifest | None:
    """What `place` placed in the folder before, beside which more may be placed in the same way; None where it placed nothing.

    Raises `DataError` for a manifest of another way, of an interrupted placement, or of no placement.
    """
    if not os.path.lexists(folder / MANIFEST):
        return None
    before = read_manifest(folder / MANIFEST)
    if not before.complete:
        raise DataError(
            f"{folder} was sorted in part: undo it with `jclip unsort {folder / MANIFEST}`, or name another"
        )
    if before.how != how:
        raise DataError(f"{folder} was sorted by {before.how}: choose that again, or name another folder")
    return before


def place(placed: Sequence[Placement], folder: Path, how: How, beside: Manifest | None = None) -> Path:
    """Copies or links every photo, and returns the manifest. Nothing is overwritten; on an error nothing is left.

    beside: what `placed_before` found there; the manifest then says both.
    """
    made = _Made(folder, beside)
    try:
        made.folder()
        names = sorted({one.folder for one in placed})
        new = tuple(name for name in names if not os.path.lexists(folder / name))
        manifest = _together(beside, Manifest(how, tuple(placed), new, complete=False))
        with (replacing if beside else creating)(folder / MANIFEST) as temporary:
            temporary.write_bytes(_manifest_text(manifest))
        made.manifest = True
        for name in new:
            made.class_folder(name)
        for one in placed:
            made.photo(one, how)
        with replacing(folder / MANIFEST) as temporary:
            temporary.write_bytes(_manifest_text(replace(manifest, complete=True)))
    except BaseException:
        made.take_back()
        raise
    return folder / MANIFEST


def _together(before: Manifest | None, more: Manifest) -> Manifest:
    if before is None:
        return more
    folders = sorted({one.folder for one in before.photos}) if before.folders is None else before.folders
    return replace(more, photos=(*before.photos, *more.photos), folders=(*folders, *(more.folders or ())))


class _Made:
    """What `place` has made so far; before: what was placed there earlier."""

    def __init__(self, folder: Path, before: Manifest | None = None):
        self._root, self._new_root, self._before = folder, False, before
        self._folders: list[str] = []
        self._photos: list[tuple[str, os.stat_result]] = []
        self.manifest = False

    def folder(self) -> None:
        self._root.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self._root.mkdir()
            self._new_root = True

    def class_folder(self, name: str) -> None:
        (self._root / name).mkdir()
        self._folders.append(name)

    def photo(self, one: Placement, how: How) -> None:
        below, _, name = one.target.partition("/")
        with naming(self._root / one.target, instead_of=name), _opened_folder(self._root / below) as at:
            if how == "link":
                os.symlink(one.photo, name, dir_fd=at)
                self._photos.append((one.target, os.stat(name, dir_fd=at, follow_symlinks=False)))
            else:
                self._copy(one, name, at)

    def _copy(self, one: Placement, name: str, at: int) -> None:
        with open_regular(one.photo) as photo:
            found = os.fstat(photo.fileno())
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600, dir_fd=at)
            with open(descriptor, "wb") as copy:
                self._photos.append((one.target, os.fstat(descriptor)))
                while block := photo.read(_BLOCK):
                    copy.write(block)
                copy.flush()
                os.utime(descriptor, ns=(found.st_atime_ns, found.st_mtime_ns))
                os.fchmod(descriptor, stat.S_IMODE(found.st_mode) & 0o777)

    def take_back(self) -> None:
        """Removes all of it, as far as it is still what was made."""
        for target, found in reversed(self._photos):
            below, _, name = target.partition("/")
            with contextlib.suppress(OSError), _opened_folder(self._root / below) as at:
                if os.path.samestat(os.stat(name, dir_fd=at, follow_symlinks=False), found):
                    os.unlink(name, dir_fd=at)
        for name in self._folders:
            with contextlib.suppress(OSError):
                (self._root / name).rmdir()
        if self.manifest:
            with contextlib.suppress(OSError):
                if self._before is None:
                    (self._root / MANIFEST).unlink()
                else:
                    with replacing(self._root / MANIFEST) as temporary:
                        temporary.write_bytes(_manifest_text(self._before))
        if self._new_root:
            with contextlib.suppress(OSError):
                self._root.rmdir()


@contextlib.contextmanager
def _opened_folder(folder: Path, at: int | None = None) -> Iterator[int]:
    """A descriptor of a folder that is no link."""
    descriptor = os.open(folder, _FOLDER, dir_fd=at)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _manifest_text(manifest: Manifest) -> bytes:
    values = {
        "how": manifest.how,
        "complete": manifest.complete,
        "folders": list(manifest.folders or ()),
        "photos": [one.said for one in manifest.photos],
    }
    try:
        return (json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode()
    except UnicodeEncodeError:  # names that are no UTF-8
        return (json.dumps(values, indent=1) + "\n").encode()


def read_manifest(path: Path) -> Manifest:
    """What `place` wrote. Raises `DataError` for a file that is no manifest, or names what lies outside its folder."""
    try:
        with open_regular(path) as f:
            values = json.loads(f.read(_LARGEST_MANIFEST))
        folders = values.get("folders")
        if not isinstance(values["photos"], list) or not isinstance(folders, list | None):
            raise TypeError("its photos and folders are not lists")
        found = Manifest(
            values["how"],
            tuple(Placement(**one) for one in values["photos"]),
            None if folders is None else tuple(folders),
            values.get("complete", True),
        )
        fault = _fault(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise DataError(f"{path} must be a manifest of sorted photos: {e}") from e
    if fault:
        raise DataError(f"{path} must be a manifest of sorted photos, {fault}: nothing was removed")
    return found


def _fault(manifest: Manifest) -> str:
    """What a manifest says that `place` writes into none; empty where there is nothing."""
    if manifest.how not in ("copy", "link") or type(manifest.complete) is not bool:
        return "it says neither copy nor link, or not whether it is complete"
    for name in manifest.folders or ():
        if not _is_name(name):
            return f"got the folder {printable(repr(name), 80)}"
    for one in manifest.photos:
        parts = one.target.split("/") if isinstance(one.target, str) else []
        if len(parts) != 2 or not all(map(_is_name, parts)):
            return f"got a target outside its folder: {printable(repr(one.target), 80)}"
        if not isinstance(one.photo, str) or not one.photo.startswith("/") or "\0" in one.photo:
            return f"got the photo {printable(repr(one.photo), 80)}"
        value = one.probability if one.score is None else one.score
        if (
            not isinstance(one.label, str)
            or type(value) not in (int, float)
            or None not in (one.probability, one.score)
        ):
            return "got a label, probability or score of another type"
        if not math.isfinite(value) or not _encodes(one.photo):
            return "got a value that is none"
    return ""


def _is_name(name: Any) -> bool:
    """The name of something in a folder, and no way out of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and not re.search("[/\0]", name) and _encodes(name)


def _encodes(name: str) -> bool:
    try:
        return bool(os.fsencode(name))
    except UnicodeEncodeError:
        return False


def undo(manifest: Path) -> tuple[int, dict[str, str]]:
    """Removes what `place` made, where that is proven, and returns the number removed and why others were left.

    A copy is removed only while its original, another file, has the same bytes; of an interrupted placement also
    the beginning of one. A link is removed only while it points where it did. Raises `DataError` for no manifest.
    """
    made, folder = read_manifest(manifest), manifest.parent
    removed, left = 0, {}
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(_opened_root(folder))
        copies = _identities(root, made)
        for one in made.photos:
            reason = _remove(root, one, made, copies)
            removed += reason is None
            if reason:
                left[one.target] = reason
        names = made.folders if made.folders is not None else sorted({one.folder for one in made.photos})
        for name in names:
            with contextlib.suppress(OSError):  # not empty, a link, or gone
                os.rmdir(name, dir_fd=root)
    if not left:
        manifest.unlink()
    remove_parts(folder, [MANIFEST])
    return removed, left


def _opened_root(folder: Path) -> contextlib.AbstractContextManager[int]:
    """The folder itself may be named by a link, those below it may not."""
    return _opened_folder(folder.resolve())


def _identities(root: int, made: Manifest) -> set[tuple[int, int]]:
    """Devices and inodes of what stands at the targets: none of these is an original."""
    found = set()
    for one in made.photos:
        below, _, name = one.target.partition("/")
        with contextlib.suppress(OSError), _opened_folder(below, root) as at:
            about = os.stat(name, dir_fd=at, follow_symlinks=False)
            found.add((about.st_dev, about.st_ino))
    return found


def _remove(root: int, one: Placement, made: Manifest, copies: set[tuple[int, int]]) -> str | None:
    """Removes one photo's copy or link. Returns None, an empty text where nothing stood there, or why it was left."""
    below, _, name = one.target.partition("/")
    try:
        with _opened_folder(below, root) as at:
            about = os.stat(name, dir_fd=at, follow_symlinks=False)
            reason = _kept_link(at, name, one) if made.how == "link" else _kept_copy(at, name, one, made, copies)
            if reason:
                return reason
            if not os.path.samestat(about, os.stat(name, dir_fd=at, follow_symlinks=False)):
                return "it was changed since"
            os.unlink(name, dir_fd=at)
            return None
    except FileNotFoundError:
        return ""
    except OSError as e:
        return "its folder is a link now" if _is_link(below, root) else str(e.strerror)


def _is_link(name: str, at: int) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
    return False


def _kept_link(at: int, name: str, one: Placement) -> str:
    try:
        return "" if os.readlink(name, dir_fd=at) == one.photo else "it points elsewhere now"
    except OSError:
        return "it is no longer a link"


def _kept_copy(at: int, name: str, one: Placement, made: Manifest, copies: set[tuple[int, int]]) -> str:
    """Why a copy stays: where it is not proven that its original is another file with the same bytes."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if not stat.S_ISREG(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
        return "it was changed since"
    with open(os.open(name, flags, dir_fd=at), "rb") as copy:
        try:
            original = open_regular(one.photo)
        except OSError:
            return "its original is not there"
        with original:
            ours, theirs = os.fstat(copy.fileno()), os.fstat(original.fileno())
            if os.path.samestat(ours, theirs) or (theirs.st_dev, theirs.st_ino) in copies:
                return "its original is a link to it, or the same file"
            if not _same_bytes(copy, original, prefix=not made.complete):
                return "it was changed since"
    return ""


def _same_bytes(copy: BinaryIO, original: BinaryIO, prefix: bool) -> bool:
    """Whether both hold the same bytes, or with `prefix` the copy the first ones of the original."""
    while block := copy.read(_BLOCK):
        if original.read(len(block)) != block:
            return False
    return prefix or not original.read(1)


def counts(placed: Sequence[Placement]) -> list[list[str]]:
    """Rows of a table: folder and how many photos."""
    folders = [one.folder for one in placed]
    return [[name, str(folders.count(name))] for name in sorted(set(folders))]
