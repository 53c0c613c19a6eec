"""A gallery on disk: features of photos in memory-mapped parts, one table of rows that is read row by row, a manifest.

    gallery.json            what made the features, where the photos lie, and the files below with their checksums
    features-<hash>.npy     (n, E) float16 or float32, rows of length one
    rows-<hash>.jsonl       a line of JSON per row: path, size, mtime, sha256, caption, columns
    rows-<hash>.npy         (N + 1,) int64, where each line begins
    skipped-<hash>.jsonl    photos that have no row, with the reason

Files are named by what they hold and are never changed: a new state is new files, then a new manifest in one move.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jclip.data.unfinished_gallery import SHARING, what_is_missing
from jclip.errors import ConfigError, DataError, quoted
from jclip.paths import compute_sha256, naming, open_regular, replacing
from jclip.readers.text import read_json

MANIFEST = "gallery.json"
FORMAT, VERSION = "jclip-gallery", 1
PART_ROWS = 1 << 18  # of a file of features: 256 MiB of fp16 at 512 dimensions
DTYPES = {"fp16": np.dtype("<f2"), "fp32": np.dtype("<f4")}
FIXED = ("path", "member", "size", "mtime", "sha256", "caption")  # columns that every gallery has
MOST_LINE = 1 << 24  # bytes of one row
LINES_AT_ONCE = 1 << 20  # bytes
SPARE_FILES = 256  # open beside a gallery's parts
_NAMED = r"(features|rows|skipped)-[0-9a-f]{16}\.(npy|jsonl)|unfinished-[0-9a-f-]+(-whole)?\.safetensors"
_UNNAMED = r"\.(features|rows|skipped)\.(npy|jsonl)"  # written, its name not known yet
_OWN = re.compile(
    rf"{_NAMED}|unfinished-[0-9a-f-]+\.begun|{re.escape(SHARING)}|\.shard-\d+-of-\d+\.lock|{_UNNAMED}|\.({_NAMED}|{_UNNAMED}|gallery\.json)(\.[a-z0-9_]+)?\.part"
)


@dataclass(frozen=True)
class Manifest:
    """What a gallery says of itself."""

    model: str  # name or path, to load it again
    identity: list  # weights' SHA-256, architecture, dtype: what the features depend on
    preprocess: dict[str, Any]
    dtype: str  # of the stored features
    width: int  # E
    root: str  # absolute folder that paths are relative to
    rows: int  # N
    parts: list[dict[str, Any]] = field(default_factory=list)  # file, rows, sha256
    table: dict[str, str] = field(default_factory=dict)  # rows, offsets, skipped → file
    columns: list[str] = field(default_factory=list)  # beyond the fixed ones
    family: str = ""
    builds: list[str] = field(default_factory=list)  # that made features, in order; "" one that is not known

    @property
    def made_by(self) -> str:
        """SHA-256 over weights, architecture and preprocessing: equal where features can be compared."""
        return made_by(self.identity, self.preprocess)

    @property
    def state(self) -> str:
        """SHA-256 over features and rows: an index belongs to one state."""
        facts = [self.made_by, self.dtype, self.parts, self.table]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def files(self) -> set[str]:
        """Names of all files of this state."""
        return {MANIFEST, *(part["file"] for part in self.parts), *self.table.values()}


def made_by(identity: list, preprocess: Mapping[str, Any]) -> str:
    """SHA-256 over weights, architecture and preprocessing."""
    plain = json.dumps([identity, preprocess], sort_keys=True)  # tuples and lists alike
    return hashlib.sha256(plain.encode()).hexdigest()


def is_gallery(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a finished gallery."""
    return os.path.isfile(os.path.join(folder, MANIFEST))  # noqa: PTH113, PTH118 - texts that are no path are asked, too


def check_target(folder: Path) -> None:
    """Raises `ConfigError` unless a gallery may be written into `folder`: absent, empty, or with one, finished or not."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"a gallery must be a folder, got a file: {folder}")
    if is_gallery(folder) or not folder.is_dir():
        return
    if other := next((path.name for path in folder.iterdir() if not _OWN.fullmatch(path.name)), None):
        raise ConfigError(f"a gallery must have a folder of its own, got {folder}, which holds {quoted(other, 60)}")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a gallery. Raises `DataError` for another folder or a damaged file."""
    path = folder / MANIFEST
    if not path.is_file():
        must = f"{folder} must be a gallery (a folder with {MANIFEST}): make one with `jclip embed`"
        raise DataError(what_is_missing(folder) or must)
    found = read_json(path)
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise DataError(f"{path} must be the manifest of a gallery, got another file")
    if (version := found.pop("version", None)) != VERSION:
        raise DataError(f"{path} must be of version {VERSION}, got {version!r}: use a newer jclip")
    try:
        manifest = Manifest(**found)
        whole = manifest.rows == sum(part["rows"] for part in manifest.parts) and manifest.dtype in DTYPES
        names = [*manifest.files(), *manifest.columns, *manifest.builds]
        if not whole or not all(isinstance(n, str) for n in names) or any("/" in n for n in manifest.files()):
            raise ValueError
        if not {"rows", "offsets", "skipped"} <= {*manifest.table} or min(manifest.rows, manifest.width) < 0:
            raise ValueError
    except (TypeError, KeyError, ValueError):
        raise DataError(f"{path} is damaged: embed the photos again") from None
    return manifest


class RowTable(Sequence):
    """Rows of a gallery as dictionaries, each parsed when it is asked for. Raises `DataError` for a damaged line."""

    def __init__(self, lines: Path, offsets: np.ndarray):
        self._path, self._offsets = lines, offsets
        with open_regular(lines) as file:
            size = os.fstat(file.fileno()).st_size
            if len(offsets) and int(offsets[-1]) != size:
                raise DataError(f"{lines} must have {int(offsets[-1]):,} bytes, got {size:,}: it was cut or replaced")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> dict[str, Any]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        if not 0 <= end - start <= MOST_LINE:
            raise DataError(f"{self._path}, row {row}: is damaged: embed the photos again")
        return parse_row(self._bytes[start:end], f"{self._path}, row {row}")

    def column(self, name: str) -> Iterator[Any]:
        """A column's values, row by row; None where a row has none."""
        for row in self:
            yield row[name] if name in FIXED else row["columns"].get(name)


def parse_row(line: bytes, place: str) -> dict[str, Any]:
    """A row from its line, every fixed column there. Raises `DataError`."""
    try:
        found = json.loads(line)
        whole = isinstance(found["path"], str) and isinstance(found.get("columns", {}), dict)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise DataError(f"{place}: is damaged: embed the photos again")
    return {**dict.fromkeys(FIXED), "columns": {}, **found}


@dataclass(frozen=True)
class Store:
    """An opened gallery: manifest, memory-mapped parts (n_i, E), rows."""

    folder: Path
    manifest: Manifest
    parts: tuple[np.ndarray, ...]
    rows: RowTable

    def __len__(self) -> int:
        return self.manifest.rows

    def skipped(self) -> Iterator[dict[str, str]]:
        """Photos without a row: path, reason, and sha256 of those that do not decode."""
        with open_regular(self.folder / self.manifest.table["skipped"]) as file:
            for line in file:
                yield json.loads(line)


def open_store(folder: str | os.PathLike) -> Store:
    """A gallery, nothing of its features or rows read yet; sizes, shapes and dtypes are compared with the manifest.

    Raises `DataError` for what is absent, half written or of another size.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    dtype = DTYPES[manifest.dtype]
    _allow_files(len(manifest.parts))
    parts = tuple(
        _mapped(folder / part["file"], (part["rows"], manifest.width), dtype) for part in manifest.parts if part["rows"]
    )
    offsets = _mapped(folder / manifest.table["offsets"], (manifest.rows + 1,), np.dtype("<i8"))
    try:
        return Store(folder, manifest, parts, RowTable(folder / manifest.table["rows"], offsets))
    except OSError as e:
        raise DataError(f"can't read {e.filename}: {e.strerror}") from e


def _allow_files(count: int) -> None:
    """Lets this process open so many more files, as far as the system does: each part that is mapped stays open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else min(needed, hard), hard)
            )


def _mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = map_array(path)
    if array.shape != shape or array.dtype != dtype:
        raise DataError(f"{path} must hold {shape} of {dtype}, got {array.shape} of {array.dtype}: embed again")
    return array


def map_array(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped. Raises `DataError` for one that is absent, damaged, or shorter than its head says."""
    try:
        with open_regular(path) as file:
            array = np.lib.format.open_memmap(path, mode="r")
            size = os.fstat(file.fileno()).st_size
    except OSError as e:
        raise DataError(f"can't read {path}: {e.strerror or e}") from e
    except ValueError as e:
        raise DataError(f"{path} is cut or damaged: it must be a .npy file ({' '.join(str(e).split())[:120]})") from e
    if array.size and size != array.offset + array.nbytes:
        raise DataError(f"{path} must have {array.offset + array.nbytes:,} bytes, got {size:,}: it was cut or replaced")
    return array


def verify(store: Store) -> None:
    """Compares every file with its checksum, which reads them all. Raises `DataError`."""
    for part in store.manifest.parts:
        if compute_sha256(store.folder / part["file"]) != part["sha256"]:
            raise DataError(f"{store.folder / part['file']} has changed since it was written: embed the photos again")
    for name in store.manifest.table.values():
        if compute_sha256(store.folder / name)[:16] not in name:
            raise DataError(f"{store.folder / name} has changed since it was written: embed the photos again")


# Writing


def write_features(
    folder: Path, blocks: Iterable[np.ndarray], dtype: np.dtype, width: int, rows: int
) -> dict[str, Any]:
    """Writes one part of `rows` rows, handed over block by block, and returns its entry in the manifest."""

    def write(file: BinaryIO) -> None:
        head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(file, head)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)

    file, digest = _named_by_contents(folder, "features", ".npy", write)
    return {"file": file, "rows": rows, "sha256": digest}


def write_rows(folder: Path, rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Writes the table of rows and returns its entries in the manifest."""
    count = 0

    def write(file: BinaryIO) -> None:
        nonlocal count
        for row in rows:
            file.write(_line(row))
            count += 1

    def write_beginnings(file: BinaryIO) -> None:
        head = {"descr": "<i8", "fortran_order": False, "shape": (count + 1,)}
        np.lib.format.write_array_header_1_0(file, head)
        for block in _beginnings(folder / lines):
            file.write(block.data)

    lines, _ = _named_by_contents(folder, "rows", ".jsonl", write)
    index, _ = _named_by_contents(folder, "rows", ".npy", write_beginnings)
    return {"rows": lines, "offsets": index}


def _beginnings(lines: Path) -> Iterator[np.ndarray]:
    """Where each line begins and the last one ends, a block at a time: a list of all would grow with the gallery."""
    at = 0
    yield np.zeros(1, "<i8")
    with open_regular(lines) as file:
        while block := file.read(LINES_AT_ONCE):
            yield (np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + at + 1).astype("<i8")
            at += len(block)


def write_skipped(folder: Path, skipped: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Writes the list of photos without a row (path, reason, and sha256 where it is known), and returns its entry in the
    manifest."""

    def write(file: BinaryIO) -> None:
        for found in skipped:
            file.write(_line(found))

    return {"skipped": _named_by_contents(folder, "skipped", ".jsonl", write)[0]}


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps({k: v for k, v in row.items() if v not in (None, {})}).encode("ascii") + b"\n"


def _named_by_contents(folder: Path, stem: str, ending: str, write) -> tuple[str, str]:
    """Writes a file under the name that its SHA-256 gives it, and returns both; one that is there already is left."""
    target = folder / f".{stem}{ending}"
    with replacing(target) as temporary:
        with open(temporary, "wb") as file, naming(target):
            write(file)
        digest = compute_sha256(temporary)
        name = f"{stem}-{digest[:16]}{ending}"
    target.replace(folder / name)
    return name, digest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Puts a new state in the place of the old one, whose own files are removed."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **vars(manifest)}, indent=1)
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(f"{text}\n", encoding="ascii")


def remove_others(folder: Path, manifest: Manifest) -> None:
    """Removes files of former states and what killed runs left; what is not a gallery's own stays."""
    kept = manifest.files()
    for path in folder.iterdir():
        if _OWN.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)
