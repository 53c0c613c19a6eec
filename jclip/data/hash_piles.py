"""How many distinct hashes there are, and how many two piles have in common, of any number in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from jclip.paths import naming

HELD = 1 << 17  # hashes in memory; more go to the disk
BUCKETS = 256  # by their first byte: of 10^9 hashes one takes 31 MiB


class HashPile:
    """64-bit hashes in sorted runs, which lie in a file without a name once there are many.

    folder: on whose disk. The file is freed when `held` is closed, or the process ends.
    """

    def __init__(self, folder: Path, held: ExitStack):
        self._folder, self._held, self._file = folder, held, None
        self._waiting: list[np.ndarray] = []
        self._runs: list[tuple[int, np.ndarray]] = []  # where a run begins in the file, and each of its buckets in it
        self._written = 0

    def add(self, hashes: np.ndarray) -> None:
        """Hashes (n,) of uint64, in any order."""
        self._waiting.append(np.asarray(hashes, np.uint64))
        if sum(map(len, self._waiting)) >= HELD:
            self._write()

    def distinct(self) -> Iterator[np.ndarray]:
        """Distinct hashes, sorted, bucket by bucket: the buckets of two piles can be compared one by one."""
        last = np.sort(np.concatenate([*self._waiting, np.zeros(0, np.uint64)]))
        ends = _ends(last)
        for bucket in range(BUCKETS):
            runs = [self._of_run(*run, bucket) for run in self._runs]
            yield np.unique(np.concatenate([*runs, last[ends[bucket] : ends[bucket + 1]]]))

    def _write(self) -> None:
        run = np.sort(np.concatenate(self._waiting))
        with naming(self._folder / ".rows.jsonl"):
            self._file = self._file or self._held.enter_context(_unnamed(self._folder))
            self._file.seek(self._written)
            self._file.write(run.data)
            self._file.flush()
        self._runs.append((self._written, _ends(run).astype(np.uint32)))
        self._written += run.nbytes
        self._waiting = []

    def _of_run(self, begin: int, ends: np.ndarray, bucket: int) -> np.ndarray:
        first, last = int(ends[bucket]), int(ends[bucket + 1])
        self._file.seek(begin + 8 * first)
        return np.frombuffer(self._file.read(8 * (last - first)), np.uint64)


def _unnamed(folder: Path) -> IO[bytes]:
    """A file without a name; where a system gives it one for a moment, it is one that a gallery removes."""
    return tempfile.TemporaryFile(dir=folder, prefix="..rows.jsonl.", suffix=".part")  # closed by who asks


def _ends(run: np.ndarray) -> np.ndarray:
    """(BUCKETS + 1,): where each bucket of a sorted run begins, and the last one ends."""
    begins = np.arange(BUCKETS, dtype=np.uint64) << np.uint64(56)
    return np.append(np.searchsorted(run, begins), len(run))
