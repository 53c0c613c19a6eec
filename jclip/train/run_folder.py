"""A run's folder as one process's own: its lock, the index of the files that it wrote, what killed processes left. No Jittor.

.lock            held by the process that writes here
.jclip-run.json  the index: names of files, slots and folders of runs inside, each listed before it is written
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from jclip.config import to_yaml
from jclip.errors import ConfigError, JclipError
from jclip.paths import ASSETS, exists, naming, open_regular, remove_parts, replacing

INDEX, LOCK = ".jclip-run.json", ".lock"
CONFIG, METRICS, LEARNED, RESULT = "config.yaml", "metrics.jsonl", "learned.safetensors", "result.json"
OWN = (CONFIG, METRICS, LEARNED, RESULT)  # what every run has
SLOT_KINDS = ("", ".previous", ".next")
OLDER = (  # what runs wrote before they had an index
    *OWN, "model.safetensors", "words.csv", "benchmark.json", "eval.json", "per_class.csv", "per_class.png",
    "confusion.csv", "confusion.png", "predictions.csv", "result.txt", "base_to_new.json", "base_to_new.csv", "sets.json",
    "sets.csv",
)  # fmt: skip
SHIPPED_RUNS = ("shapes-tiny-ground",)  # finished runs that come with the package, by name
OLDER_SLOTS = re.compile(r"(train|head|train-[0-9]+|ratio-[0-9.]+)\.safetensors")
_LARGEST = 2**20  # bytes of an index, or of a config


class RunBusy(JclipError):
    """Another process works in the run's folder."""


@dataclass(frozen=True)
class Index:
    """Names of what a run wrote: files, slots (`train` for train.safetensors), and folders of runs inside."""

    files: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()

    @property
    def slot_files(self) -> list[str]:
        """All files in which slots may stand."""
        return [f"{slot}{kind}.safetensors" for slot in self.slots for kind in SLOT_KINDS]


class HeldFolder:
    """The folder of a run, made if it is absent, in which no other process writes until `close`.

    Raises `ConfigError`, before anything is written, for a folder that holds files and no run, and `RunBusy` where another
    process works.
    """

    def __init__(self, path: Path):
        self.path = path
        refuse_foreign(path)
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(path)
        try:
            self.index = read_index(path) or _older_index(path) or Index()
            remove_parts(path, [INDEX, *OWN, *self.index.files, *self.index.slot_files])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets other processes write."""
        os.close(self._lock)

    def place(self, name: str) -> Path:
        """Where to write a file of the run's own."""
        return self.path / name

    def announce(self, *files: str, slot: str = "", folder: str = "") -> None:
        """Adds names to the index, where they are not there yet: to be called before they are written."""
        index = replace(
            self.index,
            files=tuple(dict.fromkeys([*self.index.files, *files])),
            slots=tuple(dict.fromkeys([*self.index.slots, *filter(None, [slot])])),
            folders=tuple(dict.fromkeys([*self.index.folders, *filter(None, [folder])])),
        )
        if index != self.index or not (self.path / INDEX).is_file():
            with replacing(self.path / INDEX) as temporary:
                temporary.write_text(_index_text(index), encoding="utf-8")
            self.index = index

    def clear(self) -> None:
        """Removes what the index lists, the result first and the config last: an interruption leaves a run that resumes."""
        for name in self.index.folders:
            if (self.path / name).is_dir() and not (self.path / name).is_symlink():
                inner = HeldFolder(self.path / name)
                inner.clear()
                inner.close()
        listed = {*self.index.files, *self.index.slot_files}
        ends = RESULT, METRICS, CONFIG
        for name in (RESULT, *sorted(listed - {*ends}), METRICS, CONFIG):
            if name in listed:
                self._remove(name)

    @property
    def holds_work(self) -> bool:
        """Whether there is anything that the index lists beside the config."""
        listed = {*self.index.files, *self.index.slot_files, *self.index.folders} - {CONFIG}
        return any((self.path / name).exists() for name in listed)

    def drop_slots(self) -> None:
        """Removes the states of training: it has finished."""
        for name in self.index.slot_files:
            self._remove(name)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError, IsADirectoryError):
            (self.path / name).unlink()


class ReadFolder:
    """The folder of a run that another process writes: what `HeldFolder` offers, without a trace in it.

    Raises `ConfigError` for a folder that holds files and no run.
    """

    def __init__(self, path: Path):
        self.path = path
        refuse_foreign(path)
        self.index = read_index(path) or Index()
        self._own: TemporaryDirectory | None = None

    def close(self) -> None:
        """Removes what was written in place of the run's files."""
        if self._own:
            self._own.cleanup()
            self._own = None

    def place(self, name: str) -> Path:
        """Where to write what the writer writes into the run's folder: into a folder of this process's own."""
        if not self._own:
            self._own = TemporaryDirectory(prefix="jclip-run-")
        return Path(self._own.name, name)

    def announce(self, *files: str, slot: str = "", folder: str = "") -> None:
        """Nothing: the writer lists what it writes."""

    def clear(self) -> None:
        """Nothing: the writer starts over."""

    def drop_slots(self) -> None:
        """Nothing: the writer removes them."""


@contextmanager
def adding_to(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """In the block the files `names` are written into `folder`: where that is a run's, they are listed, and no other
    process writes. Raises `RunBusy`."""
    if not is_run(folder):
        yield
        return
    held = HeldFolder(folder)
    try:
        held.announce(*names)
        yield
    finally:
        held.close()


def existing_run(place: str | os.PathLike) -> Path:
    """The folder of a run that is read: `place`, or the run of that name that ships with the package."""
    shipped = str(place) in SHIPPED_RUNS and not exists(place)
    return ASSETS / str(place) if shipped else Path(place)


def is_shipped(folder: Path) -> bool:
    """Whether a run's folder is the package's own, where nothing is written."""
    return folder.parent == ASSETS


def is_run(folder: Path) -> bool:
    """Whether a run was begun in `folder`."""
    return read_index(folder) is not None or _older_index(folder) is not None


def refuse_foreign(folder: Path) -> None:
    """Raises `ConfigError` for a folder that holds files and no run; hidden ones don't count."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} must be a folder, got a file: choose another with --run")
    names = sorted(place.name for place in folder.iterdir() if not place.name.startswith("."))
    if names and not is_run(folder):
        raise ConfigError(
            f"{folder} must be empty or hold a run, got {names[0]} and no run: choose another folder with --run"
        )


def read_index(folder: Path) -> Index | None:
    """The index of the run in `folder`; None where there is none, or none that can be trusted."""
    try:
        with open_regular(folder / INDEX) as f:
            values = json.loads(f.read(_LARGEST))
        found = Index(*(tuple(values[kind]) for kind in ("files", "slots", "folders")))
        names = [name for kind in (found.files, found.slots, found.folders) for name in kind]
        sealed = values["checksum"] == _checksum(found)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if sealed and all(map(_is_plain, names)) else None


def _index_text(index: Index) -> str:
    values = {"files": list(index.files), "slots": list(index.slots), "folders": list(index.folders)}
    return json.dumps({"format": "jclip-run", **values, "checksum": _checksum(index)}, indent=1) + "\n"


def _checksum(index: Index) -> str:
    return checksum_of([list(index.files), list(index.slots), list(index.folders)])


def checksum_of(values: Any) -> str:
    """A number over plain values that changes when any of them does."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _is_plain(name: Any) -> bool:
    """The name of a file in the folder itself."""
    return isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/\\\0]", name)


def _older_index(folder: Path) -> Index | None:
    """The index that a run would have that was begun before runs had one, recognised by its lock and its resolved config."""
    if not (folder / LOCK).is_file() or read_config_text(folder) is None:
        return None
    slots = [place.stem for place in folder.iterdir() if OLDER_SLOTS.fullmatch(place.name)]
    return Index(OLDER, tuple(sorted(slots)))


def read_config_text(folder: Path) -> Mapping[str, Any] | None:
    """The run's resolved config; None where config.yaml is absent, or is not one that a run wrote."""
    try:
        with open_regular(folder / CONFIG) as f:
            text = f.read(_LARGEST).decode("utf-8")
        values = yaml.safe_load(text)
        return values if isinstance(values, dict) and "recipe" in values and to_yaml(values) == text else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def _take_lock(folder: Path) -> int:
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        with naming(folder / LOCK):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise RunBusy(f"{folder} is in use by another process: wait for it, or choose another with --run") from None
    return lock
