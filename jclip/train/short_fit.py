"""A training of which the first steps alone are done, so that a `WorkMeter` knows what all of it takes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jclip.machine import process_times, work_meter
from jclip.runtime import give_back, jt
from jclip.train.optim import TrainState
from jclip.train.run import Run

SHORT = 2.0  # seconds: what takes longer is not measured twice
MOST_STARTS = 200  # of epochs, whose beginnings are looked at


@dataclass(frozen=True)
class Fit:
    """What `jclip.train.loop.fit` is given: see there. steps: of all epochs together. save: what writes the state after an
    epoch. save_seconds: how far states are apart at least."""

    step: Callable[[Any, int], Any]
    batches: Callable[[int], Iterable[Any]]
    state: TrainState
    run: Run
    epochs: int
    steps: int | None
    evaluate: Callable[[], dict[str, float]] | None
    every: int
    after_epoch: Callable[[int], None] | None
    averaged: bool
    save: Callable[[], None]
    save_seconds: float


def measured_fit(meter: work_meter.WorkMeter, given: Fit) -> dict[str, float]:
    """Does some steps, one measurement and one saved state; the meter counts all of them. Metrics of the last epoch."""
    found = {"loss": 0.0}
    if given.epochs < 1:
        return found
    before = process_times.most_resident()
    with meter.phase("training"):
        epoch = _steps(meter, given)
    most = process_times.most_resident()
    measured = given.averaged and (given.evaluate or given.after_epoch)
    with given.state.averaged() if measured else contextlib.nullcontext():
        if given.evaluate:
            with meter.phase(work_meter.MEASURING):
                found |= _repeated(meter, given.evaluate, -(-given.epochs // given.every))
        if given.after_epoch:
            with meter.phase("writing"):
                _all_epochs(meter, given)
    with meter.phase("writing"):
        _saved(meter, given, epoch)
    _see_memory(meter, before, most)
    return found


def _steps(meter: work_meter.WorkMeter, given: Fit) -> float:
    """Trains for a while; seconds of an epoch."""
    window = meter.window(0.5 if "training" not in {name for name, a in meter.accounts.items() if a.items} else 0.2)
    number, starts, enough = 0, [], False
    for epoch in range(given.epochs):
        begun, skipped = meter.now(), meter.skipped
        reading = iter(given.batches(epoch))
        batch = next(reading, None)
        starts.append(meter.now() - begun)
        anew = meter.skipped > skipped  # each epoch computes something before it begins
        window.restart()
        while batch is not None:
            given.step(batch, number)
            given.state.settle()
            jt.sync_all(True)
            number += 1
            meter.look()
            if enough := window.done():
                break
            batch = next(reading, None)
        getattr(reading, "close", lambda: None)()
        if enough:
            break
    if not number:
        return 0.0
    total = max(number, given.steps or number * given.epochs // len(starts))
    window.warm()
    rate = window.rate()
    meter.skip(rate * (total - number))
    meter.count("steps", number, total)
    meter.exchanged += total * 4.0 * sum(p.numel() for p in given.state.optimiser.params.values())
    begun = meter.now()
    meter.repeated = meter.repeated + total * _update(meter, given.state)
    meter.leave_out(meter.now() - begun)
    return float(rate[0]) * total / given.epochs + float(_starts(meter, given, starts, anew)[0])


def _update(meter: work_meter.WorkMeter, state: TrainState) -> np.ndarray:
    """What a step of the optimiser takes, which each of several ranks does whole; the parameters are spent afterwards."""
    gradients = [jt.zeros(p.shape) for p in state.optimiser.params.values()]
    before = took = meter.now()
    for _ in range(2):  # the first may compile
        before = meter.now()
        state.optimiser.apply(gradients)
        state.settle()
        jt.sync_all(True)
        took = meter.now() - before
    return took


def _starts(meter: work_meter.WorkMeter, given: Fit, starts: list[np.ndarray], anew: bool) -> np.ndarray:
    """Counts the beginnings of the other epochs; what one takes. anew: they may differ, so that they are tried."""
    while anew and len(starts) < min(given.epochs, MOST_STARTS) and meter.left():
        begun = meter.now()
        reading = iter(given.batches(len(starts)))
        next(reading, None)
        getattr(reading, "close", lambda: None)()
        starts.append(meter.now() - begun)
    one = starts[-1] if anew else sum(starts[1:] or starts) / len(starts[1:] or starts)
    meter.skip(one * (given.epochs - len(starts)))
    return one


def _see_memory(meter: work_meter.WorkMeter, before: float, most: float) -> None:
    """Notes how much memory went with the rows of a batch: all that the steps had at most, without what stays when both
    allocators, Jittor's and malloc, have given back what they keep for the next step."""
    begun = meter.now()
    give_back()
    of_rows = max(0.0, most - max(before, process_times.resident(os.getpid())))
    if of_rows >= meter.memory.of_rows:
        meter.memory = work_meter.Stepping(before, most, of_rows)
    meter.leave_out(meter.now() - begun)


def _repeated(meter: work_meter.WorkMeter, work: Callable[[], dict[str, float]], times: int) -> dict[str, float]:
    """Does it once, or twice where that is short; the later one counts for all others."""
    begun, real = meter.now(), meter.left()
    found, done = work(), 1
    took = meter.now() - begun
    if times > 1 and real - meter.left() < SHORT:
        begun = meter.now()
        found, done = work(), 2
        took = meter.now() - begun
    meter.skip(took * (times - done))
    return found


def _all_epochs(meter: work_meter.WorkMeter, given: Fit) -> None:
    """What is done after epochs, in its turn: until something has been written, which counts for as many."""
    before = process_times.size_of([given.run.folder])
    for epoch in range(given.epochs):
        begun = meter.now()
        given.after_epoch(epoch)
        if (size := process_times.size_of([given.run.folder]) - before) > 0:
            others = given.epochs // (epoch + 1) - 1
            meter.skip((meter.now() - begun) * others)
            meter.grown_bytes += size * others
            return


def _saved(meter: work_meter.WorkMeter, given: Fit, epoch: float) -> None:
    """One saved state, for all that are."""
    saves = given.epochs if epoch >= given.save_seconds else max(1, int(epoch * given.epochs / given.save_seconds))
    before, begun = process_times.size_of([given.run.folder]), meter.now()
    given.save()
    meter.skip((meter.now() - begun) * (saves - 1))
    size = process_times.size_of([given.run.folder]) - before
    meter.state_bytes = max(meter.state_bytes, min(saves, 2) * size)
