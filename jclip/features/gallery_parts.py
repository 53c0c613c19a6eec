"""Parts of a gallery that is being made: their files in its folder, by which a stopped run, or another process, goes on."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.gallery_inputs import Inputs
from jclip.errors import CheckpointError, notice
from jclip.readers import safetensors

LOOKING = 20  # times as long as the last look took, until the folder is looked at again
_NAME = re.compile(r"unfinished-([0-9a-f]{16})-([0-9a-f]{16})-(\d+)-(\d+|whole)\.safetensors")


@dataclass(frozen=True)
class Known:
    """Features (n, E) by their photos' SHA-256, and of photos that do not decode the reason."""

    hashes: Sequence[str]
    features: np.ndarray
    failed: Mapping[str, str]


@dataclass(frozen=True)
class Whole:
    """A finished part: rows in order, the feature of each (n, E), what can't be read (path, reason), what does not decode
    (path, reason, sha256), and how many of the features were not in the gallery before."""

    rows: list[dict[str, Any]]
    features: np.ndarray
    unread: list[list[str]]
    failed: list[dict[str, str]]
    encoded: int


class Parts:
    """The files of one gallery's parts. key: of what makes the features; the names tell lists of photos apart as well."""

    def __init__(self, folder: Path, key: str, inputs: Inputs):
        self._folder, self._key, self._listing, self.count = folder, key[:16], inputs.digest[:16], inputs.parts
        self._elsewhere: list[Known] | None = None
        self._by_part: dict[int, set[Path]] = {}  # pieces of this list of photos, as they were seen last
        self._look_again = 0.0

    @property
    def name(self) -> str:
        """Tells these parts from others."""
        return f"{self._key}-{self._listing}"

    def whole(self, number: int) -> Whole | None:
        """A finished part; None where it is not finished. A damaged file is removed, with a notice."""
        saved = self._read(self._file(number, "whole"))
        if saved is None:
            return None
        lists = {name: json.loads(bytes(saved[name]).decode()) for name in ("rows", "unread", "failed")}
        return Whole(**lists, features=saved["features"], encoded=int(saved["encoded"][0]))

    def keep_whole(self, number: int, part: Whole) -> None:
        """Writes a finished part, and removes its pieces."""
        lists = {name: json.dumps(getattr(part, name)).encode("ascii") for name in ("rows", "unread", "failed")}
        arrays = {name: np.frombuffer(text, np.uint8) for name, text in lists.items()}
        arrays |= {"features": part.features, "encoded": np.array([part.encoded], np.int64)}
        safetensors.write(self._file(number, "whole"), arrays)
        for _, file in self._pieces(number):
            file.unlink(missing_ok=True)
        self._by_part.pop(number, None)

    def keep_piece(self, number: int, end: int, known: Known) -> None:
        """Writes what was encoded of a part since the piece before; end: how many of its photos are done now."""
        arrays = {
            "hashes": np.array([list(bytes.fromhex(h)) for h in known.hashes], np.uint8).reshape(-1, 32),
            "features": known.features,
            "failed": np.frombuffer(json.dumps(dict(known.failed)).encode(), np.uint8),
        }
        file = self._file(number, f"{end:06d}")
        safetensors.write(file, arrays)
        self._by_part.setdefault(number, set()).add(file)

    def pieces(self, number: int) -> Iterator[Known]:
        """What a stopped run encoded of a part, and of other lists of photos: features of the same bytes."""
        for _, file in self._pieces(number):
            if (known := self._known(file)) is not None:
                yield known
        if self._elsewhere is None:
            files = (file for file, listing, _, _ in self._files() if listing != self._listing)
            self._elsewhere = [known for file in files if (known := self._known(file)) is not None]
        yield from self._elsewhere

    def missing(self) -> list[int]:
        """Numbers of the parts that are not finished."""
        there = {number for _, listing, number, end in self._files() if end == "whole" and listing == self._listing}
        return [number for number in range(self.count) if number not in there]

    def forget(self) -> None:
        """Removes all files of these parts."""
        for path, listing, _, _ in self._files():
            if listing == self._listing:
                path.unlink(missing_ok=True)

    def others(self) -> list[Path]:
        """Files of parts of another list of photos, or made with another model or dtype."""
        own = self._key, self._listing
        return [
            path
            for path in sorted(self._folder.glob("unfinished-*.safetensors"))
            if (found := _NAME.fullmatch(path.name)) and found.group(1, 2) != own
        ]

    def photos_done(self, sizes: Sequence[int]) -> int:
        """How many photos are done of parts of these sizes, by the names of the files."""
        done: dict[int, int] = {}
        for _, listing, number, end in self._files():
            if listing == self._listing and number < len(sizes):
                done[number] = max(done.get(number, 0), sizes[number] if end == "whole" else int(end))
        return sum(done.values())

    def mark(self, number: int) -> Path:
        """The file that stands while the process that does a part decodes its photos."""
        return self._folder / f"unfinished-{self._key}-{self._listing}-{number:06d}.begun"

    def _file(self, number: int, end: str) -> Path:
        return self._folder / f"unfinished-{self._key}-{self._listing}-{number:06d}-{end}.safetensors"

    def _files(self) -> list[tuple[Path, str, int, str]]:
        """File, list of photos, part and end of what is there of this key."""
        found = []
        for path in sorted(self._folder.glob(f"unfinished-{self._key}-*.safetensors")):
            if name := _NAME.fullmatch(path.name):
                found.append((path, name[2], int(name[3]), name[4]))
        return found

    def _pieces(self, number: int) -> list[tuple[int, Path]]:
        self._look()
        return sorted((int(_NAME.fullmatch(path.name)[4]), path) for path in self._by_part.get(number, ()))

    def _look(self) -> None:
        """Sees which pieces there are, unless that was not long ago: of millions of photos the folder holds thousands of files,
        and to go through them at each part would take longer than the parts. A piece that another process wrote since then
        is missed, and its photos encoded once more."""
        begun = time.monotonic()
        if begun < self._look_again:
            return
        self._by_part = {}
        for path, listing, number, end in self._files():
            if listing == self._listing and end != "whole":
                self._by_part.setdefault(number, set()).add(path)
        now = time.monotonic()
        self._look_again = now + LOOKING * (now - begun)

    def _read(self, file: Path) -> dict[str, np.ndarray] | None:
        """Arrays of a file; None where there is none, or it is damaged and now removed."""
        if not file.is_file():
            return None
        try:
            return {name: tensor.read() for name, tensor in safetensors.read_sealed(file).items()}
        except CheckpointError as e:
            notice(f"{e}; its photos are encoded again")
            file.unlink(missing_ok=True)
            return None

    def _known(self, file: Path) -> Known | None:
        saved = self._read(file)
        if saved is None:
            return None
        if "rows" in saved:
            rows = json.loads(bytes(saved["rows"]).decode())
            failed = {found["sha256"]: found["reason"] for found in json.loads(bytes(saved["failed"]).decode())}
            return Known([row["sha256"] for row in rows], saved["features"], failed)
        digests = [digest.tobytes().hex() for digest in saved["hashes"]]
        return Known(digests, saved["features"], json.loads(bytes(saved["failed"]).decode()))
