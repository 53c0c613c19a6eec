"""A clock for work of which only a part is done: what is left out counts as much as what was measured. No Jittor.

While a `WorkMeter` runs, loops that ask for it (`some`, `stretched`) do their first items, skip the others, and add the time
that these would have taken. A duration between two looks at `now` is then that of the whole, loops inside of loops included.
Where none runs, which is always but in a dry run, both do all items.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jclip.machine.process_times import children, cpu_of, ended_seconds, resident

T = TypeVar("T")
LEAST, FIRST = 2, 3  # items that are measured at least; the first ones, of which decoded photos may have waited
MOST_HELD = 2**30  # bytes of arrays that a measured run would have kept in the cache
QUICK = 0.5  # seconds: what takes no longer is done and not skipped
SEVERAL = 0.1  # of the limit: items that take less are not judged by one alone
ENOUGH = 0.1  # of the limit: what was measured for so long is not measured again
COMPILING = 0.3  # CPU seconds: no compiler takes less
WHOLE, MEASURING = "the rest", "measuring"


class OutOfTime(Exception):
    """Measuring has taken so long that it is given up."""


@dataclass
class Account:
    """What one kind of work takes: (wall, CPU, decoding) seconds, done and skipped; items that were measured, and in all.

    CPU seconds are of all threads and processes; of them those of other processes, which decode, are named again.
    """

    name: str
    done: np.ndarray = field(default_factory=lambda: np.zeros(3))
    skipped: np.ndarray = field(default_factory=lambda: np.zeros(3))
    items: str = ""
    measured: float = 0.0
    total: float = 0.0

    @property
    def seconds(self) -> float:
        """Of the whole work."""
        return float(self.done[0] + self.skipped[0])

    @property
    def cpu(self) -> float:
        """CPU seconds of the whole work."""
        return float(self.done[1] + self.skipped[1])

    @property
    def decoding(self) -> float:
        """The share of it that decoding processes have."""
        return float(self.done[2] + self.skipped[2]) / max(self.cpu, 1e-9)


@dataclass(frozen=True)
class Stepping:
    """Bytes of memory that a process had held at most before a training's steps and with them; of the latter those that went
    with the rows of a batch, which several ranks divide."""

    before: float = 0.0
    most: float = 0.0
    of_rows: float = 0.0

    def by_ranks(self, held: float, count: int) -> float:
        """What one of so many ranks holds at most, where one process holds `held` bytes, saving and measuring included."""
        return held - self.most + max(self.before, self.most - self.of_rows * (1 - 1 / count))


class WorkMeter:
    """Measures for about `seconds` altogether. accounts: kinds of work by name, in the order of their first use."""

    def __init__(self, seconds: float = 30.0):
        self.limit, self.accounts = seconds, dict[str, Account]()
        self.compiled = 0.0  # seconds of compilers, which are counted nowhere else
        self.warming = self.warming_cpu = 0.0  # seconds of first items beyond others
        self.exchanged = 0.0  # bytes that ranks would exchange, in all steps
        self.repeated = np.zeros(3)  # (wall, CPU, decoding) seconds of the training that each rank would do whole
        self.state_bytes = self.grown_bytes = self.cache_bytes = (
            0  # on disk while training; more in the end; in the cache
        )
        self.children_memory = 0.0  # bytes of decoding processes
        self.memory = Stepping()  # of this one, in the training that took most for its rows
        self.uncertain: list[str] = []  # what was guessed
        self._held: dict[Path, dict[str, np.ndarray]] = {}
        self._pooled: dict[Any, tuple[np.ndarray, float]] = {}
        self._kept: dict[Any, Any] = {}
        self._phases = [WHOLE]
        self._skipped = np.zeros(3)
        self._running, self._ended = dict[int, float](), ended_seconds()
        self._begun = time.perf_counter()
        self._since = self._clock()

    @contextlib.contextmanager
    def running(self) -> Iterator[WorkMeter]:
        """In the block loops are cut short."""
        global _now
        before, _now = _now, self
        try:
            yield self
        finally:
            self._settle()
            _now = before

    def left(self) -> float:
        """Seconds of measuring that are left."""
        return max(0.0, self.limit - (time.perf_counter() - self._begun))

    def now(self) -> np.ndarray:
        """(wall, CPU, decoding) seconds, with those of what was skipped."""
        return self._clock() + self._skipped

    @property
    def skipped(self) -> float:
        """Wall seconds of what was skipped so far."""
        return float(self._skipped[0])

    def account(self, name: str | None = None) -> Account:
        """That of a name, or of what is done now."""
        name = name or self._phases[-1]
        return self.accounts.setdefault(name, Account(name))

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """In the block time goes to the account of that name; to that of `measuring` where the block is a part of it."""
        self._settle()
        self._phases.append(MEASURING if self._phases[-1] == MEASURING else name)
        try:
            yield
        finally:
            self._settle()
            self._phases.pop()

    def skip(self, seconds: np.ndarray) -> None:
        """Adds (wall, CPU, decoding) seconds of what is not done to the account of now."""
        seconds = np.maximum(seconds, 0.0)
        self._skipped = self._skipped + seconds
        account = self.account()
        account.skipped = account.skipped + seconds

    def leave_out(self, seconds: np.ndarray) -> None:
        """Takes (wall, CPU, decoding) seconds of what a run does not do out of the account of now."""
        self._skipped = self._skipped - seconds
        account = self.account()
        account.done = account.done - seconds

    def count(self, items: str, measured: float, total: float) -> None:
        """Notes how many items of the account of now were done, and how many there are."""
        account = self.account()
        if account.items in ("", items):
            account.items, account.measured, account.total = items, account.measured + measured, account.total + total

    def warmed(self, beyond: np.ndarray) -> None:
        """Takes the seconds that a first item needed beyond the others out of the account of now."""
        self.warming += float(beyond[0])
        self.warming_cpu += float(beyond[1])
        account = self.account()
        account.done = account.done - beyond

    def hold(self, file: Path, arrays: Mapping[str, np.ndarray]) -> None:
        """Notes arrays that would be written into the cache, and has them at hand as long as they are few."""
        size = sum(array.nbytes for array in arrays.values())
        self.cache_bytes += size
        if size + sum(a.nbytes for kept in self._held.values() for a in kept.values()) <= MOST_HELD:
            self._held[file] = dict(arrays)

    def held(self, file: Path) -> dict[str, np.ndarray] | None:
        """The arrays of `hold`."""
        return self._held.get(file)

    def window(self, share: float, least: int = LEAST) -> Window:
        """What measures items one after the other, for that share of the time that is left, and `least` items."""
        return Window(self, max(share * self.left(), 0.02 * self.limit), least)

    def rate(self, key: Any, weight: float) -> np.ndarray | None:
        """(wall, CPU, decoding) seconds of a unit, where it has been measured for long enough; None where it is to be measured,
        and where so much of it is soon done."""
        took, units = self._pooled.get(key, (np.zeros(3), 0.0))
        long = took[0] >= ENOUGH * self.limit and took[0] / max(units, 1e-9) * weight > QUICK
        return took / units if units and long else None

    def pooled(self, key: Any, window: Window) -> np.ndarray:
        """Seconds of a unit in all windows of that key, of which this is one more."""
        before, units = self._pooled.get(key, (np.zeros(3), 0.0))
        took, more = window.steady()
        self._pooled[key] = before + took, units + more
        return (before + took) / max(units + more, 1e-9)

    def sample(self, key: Any, rows: np.ndarray | None = None) -> np.ndarray | None:
        """What was made of measured items; kept where it is given."""
        return self._kept.setdefault(key, rows) if rows is not None else self._kept.get(key)

    def look(self) -> None:
        """Sees how much memory decoding processes have."""
        self.children_memory = max(self.children_memory, sum(map(resident, children())))

    def _settle(self) -> None:
        now = self._clock()
        account = self.account()
        account.done = account.done + (now - self._since)
        self._since = now

    def _clock(self) -> np.ndarray:
        """Of all processes but compilers, whose work a run finds done: those that ended and were never seen to run between two
        looks, for who waits for a compiler does not look."""
        running, ended = {process: cpu_of(process) for process in children()}, ended_seconds()
        known = sum(seconds for process, seconds in self._running.items() if process not in running)
        if (unknown := ended - self._ended - known) >= COMPILING:
            self.compiled += unknown
        self._running, self._ended = running, ended
        others = ended + sum(running.values()) - self.compiled
        return np.array([time.perf_counter() - self.compiled, time.process_time() + others, others])


class Window:
    """(wall, CPU, decoding) seconds of items that are done one after the other."""

    def __init__(self, meter: WorkMeter, seconds: float, least: int = LEAST):
        self.meter, self._seconds, self._least = meter, seconds, least
        self._took, self._units = list[np.ndarray](), list[float]()
        self._last = meter.now()

    def restart(self) -> None:
        """The next item begins now: what was between is none of it."""
        self._last = self.meter.now()

    def done(self, units: float = 1.0) -> bool:
        """Another item is done; whether that is enough."""
        now = self.meter.now()
        self._took.append(now - self._last)
        self._units.append(units)
        self._last = now
        spent, limit = float(sum(took[0] for took in self._took)), self.meter.limit
        several = len(self._took) >= FIRST + LEAST or self._least < LEAST or spent >= SEVERAL * limit
        return (len(self._took) >= self._least and spent >= self._seconds and several) or spent >= 2 * limit

    @property
    def count(self) -> float:
        """Units that are done."""
        return sum(self._units)

    def steady(self) -> tuple[np.ndarray, float]:
        """(wall, CPU, decoding) seconds and units, the first items left out where there are enough."""
        start = FIRST if len(self._took) >= FIRST + LEAST else min(1, len(self._took) - 1)
        return sum(self._took[start:], np.zeros(3)), sum(self._units[start:])

    def rate(self) -> np.ndarray:
        """(wall, CPU, decoding) seconds of a unit."""
        took, units = self.steady()
        return took / max(units, 1e-9)

    def warm(self) -> None:
        """Takes what the first item took beyond the others out of the account of now."""
        if len(self._took) > 1:
            beyond = self._took[0] - self._units[0] * self.rate()
            if beyond[0] > 0:
                self.meter.warmed(np.maximum(beyond, 0))


_now: WorkMeter | None = None


def running() -> WorkMeter | None:
    """The meter that runs now; None where work is done whole."""
    return _now


def phase(name: str) -> contextlib.AbstractContextManager:
    """`WorkMeter.phase` of the one that runs, if one does."""
    return _now.phase(name) if _now else contextlib.nullcontext()


def some(
    items: Iterable[T],
    key: Any,
    weigh: Callable[[T], float] = lambda _: 1.0,
    phase: str = "searching",
    of: str = "",
    count: int | None = None,
) -> Iterator[T]:
    """All `items`; where a meter runs the first of them, for a while, and the time of the others counts.

    key: what takes as long each time. weigh: how much longer one takes than another. of: what the items are, for what is
    printed. count: how many there are, of equal weight, where only going through them says it.
    """
    if (meter := running()) is None:
        yield from items
        return
    items = list(items) if count is None else items
    weights = [float(weigh(item)) for item in items] if count is None else [1.0] * count
    known = meter.rate(key, sum(weights))
    window = meter.window(0.15) if known is None else meter.window(0.0, least=1)
    reading, weight_of = iter(items), weigh if count is None else lambda _: 1.0
    yield from _measured(itertools.islice(reading, len(weights)), window, phase, weight_of, used=True)
    _close(reading)
    if not window.count:
        return
    with meter.phase(phase):
        window.warm()
        rate = meter.pooled(key, window) if known is None else known
        meter.skip(rate * (sum(weights) - window.count))
        if of:
            meter.count(of, window.count, sum(weights))


def _measured(items: Iterator[T], window: Window, phase: str, weigh: Callable[[T], float], used: bool) -> Iterator[T]:
    """The first of `items`, until `window` has seen enough. used: whether what is done with each takes its time as well."""
    enough = False
    while not enough:
        with window.meter.phase(phase):
            item = next(items, items)
            if item is items:
                return
            if used:
                yield item
            enough = window.done(weigh(item))
        if not used:
            yield item
            window.restart()


def _close(reading: Iterator) -> None:
    """Ends what prepares further items."""
    getattr(reading, "close", lambda: None)()


def stretched_rows(
    key: Any, made: Iterable[tuple[np.ndarray, np.ndarray]], rows: np.ndarray, **options: Any
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`stretched` of batches that name their items as `rows` does, in that order."""
    if running() is None:
        yield from made
        return
    place = {int(row): number for number, row in enumerate(rows)}
    placed = ((np.array([place[int(row)] for row in at]), features) for at, features in made)
    for at, features in stretched(key, placed, len(rows), **options):
        yield rows[at], features


def stretched(
    key: Any,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    total: int,
    phase: str = "encoding photos",
    each: int = 64,
    of: str = "photos",
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`batches` (places (n,), features (n, …)) of `total` items; where a meter runs the first of them, for a while, then others
    that resemble them, whose time counts."""
    if (meter := running()) is None:
        yield from batches
        return
    known, done = meter.rate(key, total), 0
    seen = [] if known is None else [meter.sample(key)]
    if known is None:
        window, reading = meter.window(0.25), iter(batches)
        for one in _measured(reading, window, phase, lambda batch: len(batch[0]), used=False):
            seen.append(one[1])
            done = int(one[0][-1]) + 1
            meter.look()
            yield one
            if done >= total:
                break
        _close(reading)
        if not seen:
            return
        with meter.phase(phase):
            window.warm()
        known, seen = meter.pooled(key, window), [np.concatenate(seen)]
        meter.sample(key, seen[0][:1024])
    with meter.phase(phase):
        meter.skip(known * (total - done))
        meter.count(of, done, total)
    for start in range(done, total, max(1, each)):
        places = np.arange(start, min(total, start + max(1, each)))
        yield places, resembling(seen[0], places)


def resembling(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows (n, …) that are near to some of `rows`, no two alike."""
    noise = np.random.default_rng(0).standard_normal((min(len(rows), 64), *rows.shape[1:]), np.float32)
    noise *= 0.3 * float(np.std(rows.astype(np.float32), dtype=np.float64)) + 1e-12
    picked = rows[(places * 7919 + places // len(rows)) % len(rows)]
    return (picked + noise[places % len(noise)] * (1 + places % 97 / 97).reshape(-1, *[1] * (rows.ndim - 1))).astype(
        rows.dtype
    )
