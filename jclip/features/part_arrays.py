"""Photos in numbered parts, and what is computed of each part kept in the cache until all are there: so several processes share
a command's photos, and one that was stopped goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data import deadly_photos
from jclip.data.shares import Share
from jclip.data.splits import Split
from jclip.features.cached import key_of, read_cached
from jclip.paths import cache_dir
from jclip.readers import safetensors

PART = 1024  # photos
Arrays = dict[str, np.ndarray]


class PhotoParts:
    """Arrays of photos, see the module. made_of: what they depend on but the photos' bytes, as plain values. compute: paths →
    arrays by name, the same for the same paths. names: of arrays that each part has."""

    def __init__(
        self, made_of: Any, photos: Sequence[str], compute: Callable[[Sequence[str]], Arrays], names: Sequence[str]
    ):
        self._photos, self._compute, self._names = tuple(photos), compute, tuple(names)
        digest = Split(self._photos, np.zeros(len(photos), np.int32)).digest()
        self.folder = cache_dir("parts") / key_of([made_of, digest, list(self._photos)])[:32]

    @property
    def key(self) -> str:
        """What the parts are made of."""
        return self.folder.name

    @property
    def sizes(self) -> Sequence[int]:
        """Photos of each part."""
        return [len(self._of(number)) for number in range(-(-len(self._photos) // PART))]

    def done(self) -> int:
        """Photos of the parts that are there."""
        return sum(size for number, size in enumerate(self.sizes) if self._file(number).is_file())

    def missing(self) -> Sequence[int]:
        """Numbers of the parts that are not there."""
        return [number for number in range(len(self.sizes)) if not self._file(number).is_file()]

    def finish(self, own: Share) -> int:
        """Computes the parts of a share that are not there, and returns how many photos these have."""
        done = 0
        for number in own.of_numbers(len(self.sizes)):
            if not self._file(number).is_file():
                photos = self._of(number)
                with deadly_photos.decoding(self._file(number).with_suffix(".begun"), lambda photos=photos: photos):
                    arrays = self._compute(photos)
                safetensors.write(self._file(number), arrays)
                done += len(photos)
        return done

    def arrays(self) -> Iterator[Arrays]:
        """Each part's arrays, in order; what is missing or damaged is computed."""
        for number in range(len(self.sizes)):
            found = read_cached(self._file(number), self._names)
            if found is None:
                self._file(number).unlink(missing_ok=True)
                self.finish(Share(number + 1, len(self.sizes)))
                found = read_cached(self._file(number), self._names)
            yield found

    def forget(self) -> None:
        """Removes what was kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _of(self, number: int) -> tuple[str, ...]:
        return self._photos[number * PART : (number + 1) * PART]

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"


def lines_array(lines: Sequence[str]) -> np.ndarray:
    """Lines of text as an array."""
    return np.frombuffer(json.dumps([*lines]).encode("ascii"), np.uint8)


def array_lines(array: np.ndarray) -> list[str]:
    """The lines of `lines_array`."""
    return json.loads(array.tobytes().decode("ascii"))
