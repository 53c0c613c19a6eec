"""What a training is going to take: the recipe is run for half a minute, in a folder of its own that is removed again, and what
it left out is counted (`jclip.machine.work_meter`). One way for all recipes. Loads Jittor while it measures.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jclip import paths
from jclip.config import protocols
from jclip.machine import available, process_times, work_meter
from jclip.postponed import jt
from jclip.train.configs import resolved
from jclip.train.run import Run
from jclip.train.run_facts import forget_peak, peak_memory, threads

SECONDS = 30.0  # of measuring
MOST = 120.0  # seconds after which it is given up
DIVIDED = ("training", work_meter.MEASURING, "encoding photos")  # what several ranks share
STARTING = "starting"
COMPILED = 0.03  # of all seconds: what more compilers take disturbs what is measured beside it
MOST_ONCE = 10.0  # seconds that operators may take to be loaded
FIRST_ALONE = ("writing",)  # what rank 0 does for all
OPEN_MPI = 40 * 2**20  # bytes that it takes of a rank
BUSY = 0.8  # of its threads' time: a process that has less shares the machine
_NAMES = {"steps": "step", "photos": "photo", "iterations": "iteration"}


@dataclass(frozen=True)
class CostEstimate:
    """Of one process: what each kind of work takes; seconds of the first steps beyond others; of compilers, not counted; the
    most memory (bytes) of the host and of the GPU; bytes in the run's folder in the end, more of them while it trains, and
    in the cache. ranks: whether several can train it. repeated: (wall, CPU) seconds that each rank does whole; exchange: of
    all gradients once through this machine's memory. left_out: what was not measured.
    """

    accounts: tuple[work_meter.Account, ...]
    took: float
    warming: float
    compiled: float
    host: int
    gpu: int
    run_bytes: int
    state_bytes: int
    cache_bytes: int
    cores: int
    ranks: bool
    repeated: tuple[float, float] = (0.0, 0.0)
    exchange: float = 0.0
    uncertain: tuple[str, ...] = ()
    left_out: str = ""
    busy: float = 1.0
    warming_cpu: float = 0.0
    stepping: work_meter.Stepping = field(default_factory=work_meter.Stepping)

    @property
    def seconds(self) -> float:
        """Of the whole by one process."""
        return sum(one.seconds for one in self.accounts) + self.warming

    @property
    def cpu(self) -> float:
        """CPU seconds of the whole by one process."""
        return sum(one.cpu for one in self.accounts) + self.warming_cpu

    @property
    def extrapolated(self) -> bool:
        """Whether anything was left out of what was measured."""
        return any(one.skipped[0] > 0 for one in self.accounts)

    @property
    def slowest(self) -> work_meter.Account:
        """What takes longest."""
        return max(self.accounts, key=lambda one: one.seconds)

    def by_ranks(self, count: int, machines: bool = False) -> float:
        """Seconds of so many ranks on this machine, which share its cores, or each on a machine like this one.

        What they divide takes a share of the time, but for the optimiser's steps, and the sum of the gradients comes on top:
        2 (n - 1) / n of them pass each rank.
        """
        whole = sum(one.seconds for one in self.accounts if one.name not in DIVIDED) + self.warming
        wall = sum(one.seconds for one in self.accounts if one.name in DIVIDED)
        again = min(self.repeated[0], wall)
        side_by_side = count if machines or self.gpu else min(count, self.cores)
        together = whole + (wall - again) / side_by_side + again + self._exchanging(count)
        if machines or self.gpu or count == 1:
            return together
        return max(together, self.cpu_of_ranks(count) / self.cores)

    def cpu_of_ranks(self, count: int) -> float:
        """CPU seconds of all of so many ranks, waiting for each other left out: each starts and loads the model by itself."""
        alone = sum(one.cpu for one in self.accounts if one.name in DIVIDED or one.name in FIRST_ALONE)
        each = self.cpu - alone + min(self.repeated[1], alone) + self._exchanging(count)
        return self.cpu + (count - 1) * each + (self._exchanging(count) if count > 1 else 0.0)

    def memory_of_rank(self, count: int) -> float:
        """Bytes of the host that each of so many ranks takes: model, optimiser and what it saves whole, of a batch its part."""
        return self.stepping.by_ranks(self.host, count) + (OPEN_MPI if count > 1 else 0)

    def _exchanging(self, count: int) -> float:
        """Seconds of a rank for the sums of gradients."""
        return self.exchange * 2 * (count - 1) / count

    def lines(self, counts: Sequence[int] = (1, 2, 4)) -> list[str]:
        """What is printed."""
        guessed = ", extrapolated" if self.extrapolated else ""
        return [
            f"measured here for {self.took:.0f} s{self._parts()}",
            *self._table(),
            f"time{guessed}: {spoken(self.seconds)} by one process{self._first()}",
            *self._notes(),
            *self._ranks(counts),
            f"memory: {size(self.host)}{f', {size(self.gpu)} of the GPU' if self.gpu else ''}, the most while it was measured",
            f"disk{guessed}: {size(self.run_bytes)} in the run's folder, {size(self.state_bytes)} more while it trains, "
            f"{size(self.cache_bytes)} in the cache",
            f"bottleneck: {self._bottleneck()}",
        ]

    def _parts(self) -> str:
        """How much of what was measured."""
        parts = [
            f"{one.measured:,.0f} of {one.total:,.0f} {one.items} ({one.name})"
            for one in self.accounts
            if one.items and one.total > one.measured > 0
        ]
        return f": {', '.join(parts)}" if parts else ": all of it"

    def _table(self) -> Iterator[str]:
        whole = max(self.seconds, 1e-9)
        first = work_meter.Account("first steps", np.array([self.warming, 0.0, 0.0]))
        for one in sorted([*self.accounts, first], key=lambda one: -one.seconds):
            if one.seconds < 0.005 * whole:
                continue
            per = f"   {spoken(one.seconds / one.total)} a {_NAMES[one.items]}" if one.items and one.total else ""
            note = "   extrapolated" if one.skipped[0] > 0 else ""
            yield f"  {one.name:<20} {spoken(one.seconds):>9}  {100 * one.seconds / whole:>3.0f} %{per}{note}"

    def _first(self) -> str:
        if self.compiled < 1:
            return ""
        return f"; compiling operators took {spoken(self.compiled)} more here, which the run then finds done"

    def _notes(self) -> Iterator[str]:
        if "iterations" in self.uncertain:
            yield "a solver's iterations are guessed from the way of the first ones"
        if self.left_out:
            yield f"not measured: {self.left_out}: all takes at least this"
        if self.busy < BUSY:
            yield f"the machine is busy: this process had {100 * self.busy:.0f} % of its threads' time, alone it takes less"

    def _ranks(self, counts: Sequence[int]) -> Iterator[str]:
        if not self.ranks:
            yield "several processes: none, this recipe learns in one (mpirun is refused)"
            return
        yield f"{'processes':>9}  {'here':>9}  {'memory':>9}  a machine each"
        for count in counts:
            note = "" if count == 1 else "   extrapolated from one process, the network's time not counted"
            here, apart = spoken(self.by_ranks(count)), spoken(self.by_ranks(count, machines=True))
            yield f"{count:>9}  {here:>9}  {size(count * self.memory_of_rank(count)):>9}  {apart:>9}{note}"

    def _bottleneck(self) -> str:
        one = self.slowest
        share = f"{100 * one.seconds / max(self.seconds, 1e-9):.0f} % of the time"
        if one.name in DIVIDED:
            what = "decoding photos" if one.decoding > 0.5 else "the model"
            beside = f", decoding has {100 * one.decoding:.0f} % of its CPU time" if one.decoding > 0.02 else ""
            return f"{one.name}, {share}: {what}{beside}"
        return f"{one.name}, {share}"


Complete = Callable[
    [Run, Any, dict[str, Any]], object
]  # writes what else belongs to a finished run, as `Run.finish` calls it


def estimated(
    module: Any, cfg: protocols.Dataclass, seconds: float = 0.0, complete: Complete | None = None
) -> CostEstimate:
    """What `module.run(cfg, ...)` takes, and `complete(run, module, result)` after it; nothing is kept of it. seconds: of
    measuring, by default `SECONDS`; where operators were compiled it is measured once more, as a run finds them. Raises what
    the recipe raises for bad input."""
    found = _measured(module, cfg, seconds or SECONDS, complete)
    if found.compiled <= max(1.0, COMPILED * found.seconds):
        return found
    return _joined(found, _measured(module, cfg, seconds or SECONDS, complete))


def _joined(first: CostEstimate, again: CostEstimate) -> CostEstimate:
    """`again` with what only the first one had to do: to start, and to load operators. By its CPU seconds, for those of the
    clock hold compilers."""
    starting = [one for one in first.accounts if one.name == STARTING]
    others = [[one for one in estimate.accounts if one.name != STARTING] for estimate in (first, again)]
    before, after = (sum(float(one.done[1]) for one in accounts) for accounts in others)
    once = min(max(0.0, before + first.warming_cpu - after - again.warming_cpu), MOST_ONCE)
    return replace(
        again, accounts=(*starting, *others[1]), took=first.took + again.took, compiled=first.compiled,
        warming=again.warming + once, warming_cpu=again.warming_cpu + once,
    )  # fmt: skip


def _measured(module: Any, cfg: protocols.Dataclass, seconds: float, complete: Complete | None) -> CostEstimate:
    meter, left_out = work_meter.WorkMeter(seconds), ""
    with _ended_in_order(), tempfile.TemporaryDirectory(prefix="jclip-dry-run-") as place, meter.running():
        begun = _spent()
        with meter.phase(STARTING):
            _ = jt.flags  # Jittor is loaded, which takes seconds at first
        forget_peak()
        with Run(Path(place) / "run", resolved(module, cfg), quiet=True) as run:
            try:
                with _limited(max(MOST, 4 * seconds)):
                    metrics = module.run(cfg, run)
                with meter.phase("writing"):
                    run.finish(metrics, lambda result: complete and complete(run, module, result))
            except work_meter.OutOfTime:
                left_out = f"what comes after {meter.account().name} was begun"
        run_bytes = process_times.size_of([Path(place)]) + meter.grown_bytes
    held = peak_memory()
    wall, cpu = _spent() - begun
    host = held.get("host", 0) * 2**20 + int(meter.children_memory)
    found = [one for one in meter.accounts.values() if one.seconds > 0]
    busy = 1.0 if held.get("gpu") else float(cpu / max(wall, 1e-9)) / int(threads())
    return CostEstimate(
        tuple(found), float(wall), meter.warming, meter.compiled, host, held.get("gpu", 0) * 2**20, run_bytes,
        meter.state_bytes, meter.cache_bytes, len(os.sched_getaffinity(0)), hasattr(module, "rows_of_ranks"),
        (float(meter.repeated[0]), float(meter.repeated[1])), meter.exchanged * _seconds_of_a_byte(),
        tuple(meter.uncertain), left_out, busy, meter.warming_cpu, meter.memory,
    )  # fmt: skip


def described(
    module: Any, cfg: protocols.Dataclass, folder: Path, ranks: int = 4, complete: Complete | None = None
) -> tuple[float, str]:
    """Seconds of the whole, and what a dry run prints. A recipe may put lines of its own first, by `plan(cfg, folder)`; these
    are all where its `PLANS_WHOLE` is set, as it trains others."""
    first = [module.plan(cfg, folder)] if hasattr(module, "plan") else []
    if getattr(module, "PLANS_WHOLE", False):
        return 0.0, "\n".join(first)
    found = estimated(module, cfg, complete=complete)
    counts = counts_to(ranks if found.ranks else 1)
    disk = {folder: found.run_bytes + found.state_bytes, paths.cache_dir(): found.cache_bytes}
    missing = available.shortages({count: count * found.memory_of_rank(count) for count in counts}, disk)
    return found.seconds, "\n".join([*first, *found.lines(counts_to(ranks)), *missing])


def counts_to(most: int) -> list[int]:
    """1, 2, 4, … and `most`."""
    return sorted({*(2**n for n in range(most.bit_length()) if 2**n <= most), most})


def spoken(seconds: float) -> str:
    """`3.1 ms`, `42 s`, `12 min`, `3.4 h`, `5.1 d`."""
    for limit, unit, length in ((1.0, "ms", 1e-3), (120.0, "s", 1.0), (7200.0, "min", 60.0), (172800.0, "h", 3600.0)):
        if seconds < limit:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:,.3g} d"


def size(count: float) -> str:
    """`512 bytes`, `3.1 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
        count /= 1024
    return f"{count:,.3g} TiB"


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """In the block a signal that ends this process leaves `with` first, which removes the folder."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` in the block after so long, where the main thread is in it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise work_meter.OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _spent() -> np.ndarray:
    """(wall, CPU) seconds so far, of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def _seconds_of_a_byte() -> float:
    """What it takes to copy and to add numbers in this machine's memory, by one thread."""
    rows = np.ones(2**22, np.float32)
    begun = time.perf_counter()
    for _ in range(3):
        rows = rows.copy() + rows
    return (time.perf_counter() - begun) / 3 / rows.nbytes
