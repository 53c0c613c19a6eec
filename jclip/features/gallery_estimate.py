"""What making a gallery is going to take: time, memory and disk, from half a minute's measurement on some of its photos."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jclip.data.augment import Views
from jclip.data.gallery_inputs import Inputs, photo_address
from jclip.data.loader import batches
from jclip.data.stored_photos import open_any_photo
from jclip.errors import DataError, counted
from jclip.features import extraction, half_models
from jclip.features.source import ModelSource
from jclip.machine import available, process_times
from jclip.postponed import jt

SECONDS = 30.0  # of measuring, loading the model not counted
MOST = 2048  # photos that are looked at
MOST_TO_START = 2.0  # CPU seconds of this process before: of Python and what it imports, where nothing else was done
ROW_BYTES = 220  # of a row of the table, its path not counted
_PLACES = ("reading the files", "decoding the photos", "the model")


@dataclass(frozen=True)
class Estimate:
    """Measured on `sample` photos: seconds a photo alone (reading, decoding, model) and all together, CPU seconds a photo,
    seconds to start and to load the model, MiB of the processes, bytes that a row takes on disk. sizes: photos of each part,
    which processes take one after the other. load_cpu: CPU seconds of starting and loading."""

    sizes: tuple[int, ...]
    sample: int
    alone: tuple[float, float, float]
    together: float
    cpu: float
    load: float
    memory: float
    row: float
    cores: int
    load_cpu: float = 0.0

    @property
    def photos(self) -> int:
        """Of the whole job."""
        return sum(self.sizes)

    @property
    def bottleneck(self) -> str:
        """What takes longest where all run side by side."""
        return _PLACES[int(np.argmax(self.alone))]

    def hours(self, processes: int = 1) -> float:
        """Of the whole job by so many processes of this machine, which share its cores: they take as much CPU time.
        The one with the most parts ends last; those without a part have nothing to do."""
        most = self._most(processes) * (self.alone[0] + self.together)
        if processes == 1:
            return (self.load + most) / 3600
        return (self.load + max(most, self.photos * (self.alone[0] + self.cpu) / self.cores)) / 3600

    def cpu_seconds(self, processes: int = 1) -> float:
        """Of all processes together, each of which loads the model."""
        return min(processes, len(self.sizes)) * self.load_cpu + self.photos * (self.alone[0] + self.cpu)

    def _most(self, processes: int) -> int:
        """Photos of the process that has the most, where as many run side by side as there are cores."""
        busy = min(processes, self.cores)
        return max(sum(self.sizes[number::busy]) for number in range(busy))

    def rows(self, counts: Sequence[int]) -> list[str]:
        """Lines of a table: hours and memory by number of processes."""
        lines = [f"{'processes':>9}  {'photos/s':>9}  {'time':>9}  {'memory':>9}"]
        for count in counts:
            hours = self.hours(count)
            rate = self.photos / max(1e-9, hours * 3600 - self.load)
            note = "" if count == 1 else "   extrapolated from one process"
            lines.append(f"{count:>9}  {rate:>9,.1f}  {spoken(hours):>9}  {count * self.memory:>5,.0f} MiB{note}")
        return lines

    @property
    def disk(self) -> int:
        """Bytes of the gallery, and of its parts while it is made."""
        return int(2 * self.photos * self.row)


def spoken(hours: float) -> str:
    """`42 s`, `12 min`, `3.4 h`, `5.1 d`."""
    for limit, unit, size in ((120 / 3600, "s", 1 / 3600), (2.0, "min", 1 / 60), (48.0, "h", 1.0)):
        if hours < limit:
            return f"{hours / size:.3g} {unit}"
    return f"{hours / 24:.3g} d"


def lines_of(inputs: Inputs, source: ModelSource, itemsize: int, processes: int, folder: Path) -> list[str]:
    """What is printed: see `measured`. folder: the gallery's."""
    found = measured(inputs, source, itemsize)
    counts = [1] if processes == 1 else [1, processes]
    slowest, *others = sorted(zip(found.alone, _PLACES, strict=True), reverse=True)
    beside = ", ".join(f"{name} {1 / max(seconds, 1e-9):,.0f}" for seconds, name in others)
    beyond = " (extrapolated)" if found.photos > found.sample else ""
    return [
        f"measured on {counted(found.sample, 'photo')} of {found.photos:,}; to start takes {found.load:.1f} s",
        *found.rows(counts),
        f"time{beyond}: for photos like these; each other machine that does a share (--shard) divides it once more",
        f"bottleneck: {found.bottleneck}, {1 / max(slowest[0], 1e-9):,.0f} photos a second alone ({beside})",
        f"disk{beyond}: {_size(found.disk // 2)} for the gallery, as much again until it is written",
        *available.shortages({count: count * found.memory * 2**20 for count in counts}, {folder: found.disk}),
    ]


def measured(inputs: Inputs, source: ModelSource, itemsize: int) -> Estimate:
    """Reads, decodes and encodes some photos, spread over all of them, for at most `SECONDS`; nothing is kept.

    itemsize: bytes of a stored number. Raises `DataError` where none of them decodes.
    """
    started = min(time.process_time(), MOST_TO_START)
    paths, sizes = sample_of(inputs)
    reading = _rate(_read(paths), 0.1 * SECONDS)
    begun, cpu, compilers = time.monotonic(), _cpu(), process_times.ended_seconds()
    model = half_models.load_half(source, "vision")
    views, size = Views(source.preprocess), extraction.batch_size()
    next(iter(extraction.encoded_batches(model, paths[:size], views, "skip", [])), None)  # operators are compiled
    compiled = process_times.ended_seconds() - compilers  # which the job finds done
    load, load_cpu = time.monotonic() - begun - compiled, _cpu() - cpu - compiled
    decoding = _rate((len(at) for at, _ in batches(paths, views, size, "skip", [])), 0.2 * SECONDS)
    pixels = next(iter(batches(paths, views, size, "skip", [])), None)
    if pixels is None:
        raise DataError(f"no photo decodes of {counted(len(paths), 'photo')} that were looked at (first: {paths[0]})")
    computing = _rate(_encode(model, pixels[1][:, 0]), 0.2 * SECONDS)
    count = []
    encoded = (
        count.append(len(at)) or len(at) for at, _ in extraction.encoded_batches(model, paths, views, "skip", [])
    )
    first = next(encoded, 0)  # until then decoding processes start
    cpu = _cpu()
    together = _rate(encoded, 0.5 * SECONDS) if len(paths) > first else max(decoding, computing)
    spent = (_cpu() - cpu) / (sum(count) - first) if sum(count) > first else decoding + computing
    early = min(size, len(paths))  # photos of the first batch, which count among the others
    load, load_cpu = started + max(0.0, load - early * together), started + max(0.0, load_cpu - early * spent)
    row = source.config.embed_dim * itemsize + ROW_BYTES + float(np.mean([len(path) for path in paths[:200]]))
    alone = (reading, decoding, computing)
    return Estimate(
        tuple(sizes), sum(count), alone, max(together, 0.0), spent, load, _memory(), row, _cores(), load_cpu
    )


def sample_of(inputs: Inputs) -> tuple[list[str], list[int]]:
    """Paths of photos spread over the files, else those of the first tar; and how many photos each part has: of tars as
    many as the first holds a byte."""
    files = [path for number in range(inputs.of_files) for path in inputs.paths(number)]
    places = np.unique(np.linspace(0, len(files) - 1, min(MOST, len(files))).astype(int)) if files else []
    found, sizes = [files[i] for i in places], [inputs.size(number) for number in range(inputs.of_files)]
    if not inputs.tars:
        return found, sizes
    first = inputs.part(inputs.of_files)
    if not (first.rows or found):
        raise DataError(f"no photo is read: {first.skipped[0][0]}: {first.skipped[0][1]}")
    held = [Path(tar).stat().st_size for tar in inputs.tars]
    found = found or [photo_address(inputs.root, row) for row in first.rows[:MOST]]
    return found, [*sizes, *(round(len(first.rows) * size / held[0]) for size in held)]


def _rate(steps: Iterator[int], seconds: float) -> float:
    """Seconds a photo of steps that each say how many they did, for so long at most."""
    begun, done = time.monotonic(), 0
    with contextlib.closing(steps):
        for count in steps:
            done += count
            if time.monotonic() - begun >= seconds:
                break
    return (time.monotonic() - begun) / max(1, done)


def _read(paths: Sequence[str]) -> Iterator[int]:
    for path in paths:
        with open_any_photo(path) as file:
            hashlib.sha256(file.read())
        yield 1


def _encode(model, pixels: np.ndarray) -> Iterator[int]:

    while True:
        with jt.no_grad():
            model.encode_image(pixels).float32().numpy()
        yield len(pixels)


def _cpu() -> float:
    """CPU seconds of this process and of those that decode for it, or did."""
    return process_times.ended_seconds() + sum(map(process_times.cpu_of, [os.getpid(), *process_times.children()]))


def _memory() -> float:
    """MiB: the most that this process had, and what those that decode for it have now."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return own + sum(map(process_times.resident, process_times.children())) / 2**20


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.3g} {unit}"
        count /= 1024
    return f"{count:,.3g} TiB"
