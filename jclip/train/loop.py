"""Training and prediction loops: two functions. Test data is not an argument, so it can't leak into a choice."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from jclip.errors import ConfigError, DataError, JclipError, advice_when_full
from jclip.kernels import collectives
from jclip.machine import ranks, work_meter
from jclip.readers.tensors import LazyTensor
from jclip.runtime import give_back, jt
from jclip.train.optim import TrainState
from jclip.train.run import Run, Slot
from jclip.train.run_facts import compared
from jclip.train.short_fit import Fit, measured_fit

SAVE_SECONDS = 1.0  # epochs of cached features take less than writing and syncing a file


class Diverged(JclipError):
    """The loss is no longer finite."""


@dataclass
class Outcome:
    """What training ended with: metrics of the last and of the best epoch, and the parameters of the latter."""

    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_epoch: int = -1
    best_arrays: dict[str, np.ndarray] = field(default_factory=dict)


def fit(
    step: Callable[[Any, int], Any],
    batches: Callable[[int], Iterable[Any]],
    *,
    state: TrainState,
    run: Run,
    epochs: int,
    evaluate: Callable[[], dict[str, float]] | None = None,
    every: int = 1,
    select: str = "top1",
    among_equals: Literal["first", "last"] = "first",
    read_every: int = 20,
    slot: str = "train",
    steps: int | None = None,
    keep: Literal["average", "student"] = "average",
    after_epoch: Callable[[int], None] | None = None,
) -> Outcome:
    """Trains for `epochs`, saving after those that a second or more has passed before, and after the last; a run that was
    killed resumes where it was saved, to the same bits. Where `state` keeps an average of the parameters, that is what
    is measured, and what the parameters are in the end, unless `keep` is "student".

    step(batch, number) does one optimiser step, the `number`-th of all from 0, and returns its loss as a Var.
    batches(epoch) gives that epoch's batches, the same at every call: their randomness derives from seed and epoch.
    evaluate() measures validation data, every `every` epochs and after the last; `select` names the metric whose best
    epoch is remembered. after_epoch(epoch), from 0, is called with the weights that would be measured. The loss is read
    every `read_every` steps: each reading waits for the device. `steps`, of all epochs together, is for the progress bar.
    Raises `Diverged` naming the steps between which the loss, or the epoch in which the weights, stopped being finite,
    and `DataError` when there are no batches.
    """
    place = run.slot(slot)
    outcome, first, number = _resume(place, state)
    run.drop_lines(slot, first)
    _require_equal(state, run, {"place to go on from": [first, number]})
    measured = _Measured(evaluate, every, epochs, select, among_equals, after_epoch, keep == "average")
    if meter := work_meter.running():  # which does the first steps alone
        return _short_fit(meter, step, batches, state, run, steps, measured, place)
    saved = time.monotonic()
    with _progress(run, slot, steps, number) as bar:
        for epoch in range(first, epochs):
            number, losses = _train(step, batches(epoch), state, _LossReader(read_every, epoch, number), bar)
            _require_equal(state, run, {})
            outcome.last = {"loss": losses.mean()}
            measured.add_to(outcome, state, epoch)
            run.log(slot=slot, epoch=epoch, step=number, lr=state.optimiser.lr, **outcome.last)
            if measured.is_due(epoch) and not run.quiet and _is_shown(epoch, epochs, every):
                bar.write(_epoch_line(epoch, epochs, outcome.last), file=sys.stderr)
            if epoch + 1 == epochs or time.monotonic() - saved >= SAVE_SECONDS:
                place.save(*_saved(outcome, state, epoch + 1, number))
                saved = time.monotonic()
    if keep == "average":
        state.keep_average()
    give_back()  # the room of a step's activations
    return outcome


def _progress(run: Run, slot: str, steps: int | None, number: int) -> tqdm:
    hidden = None if run.writer else True  # of several processes one shows where training stands
    return tqdm(total=steps, initial=number, desc=slot, unit="step", disable=hidden, leave=False)


def _train(
    step: Callable, batches: Iterable[Any], state: TrainState, losses: _LossReader, bar: tqdm
) -> tuple[int, _LossReader]:
    """Does the steps of one epoch. Returns (number, losses): the number of the next step, and the reader of their losses."""
    number = losses.number
    for batch in batches:
        with advice_when_full("lower optim.batch (and raise accumulate, where the recipe has it)"):
            losses.add(step(batch, number))
            state.settle()
        number += 1
        bar.update()
    return number, losses


@dataclass(frozen=True)
class _Measured:
    """Which epochs are measured, with which weights, and which of them is the best: as `fit` is given it.

    averaged: whether the averaged weights are those that count.
    """

    evaluate: Callable[[], dict[str, float]] | None
    every: int
    epochs: int
    select: str
    among_equals: str
    after_epoch: Callable[[int], None] | None
    averaged: bool

    def is_due(self, epoch: int) -> bool:
        """Whether validation data are measured after this epoch."""
        return bool(self.evaluate) and ((epoch + 1) % self.every == 0 or epoch + 1 == self.epochs)

    def add_to(self, outcome: Outcome, state: TrainState, epoch: int) -> None:
        """Measures the epoch where that is due, makes it the best if it is, and calls `after_epoch`."""
        due = self.is_due(epoch)
        with state.averaged() if self.averaged and (due or self.after_epoch) else contextlib.nullcontext():
            if due:
                outcome.last |= self.evaluate()
                self._keep_if_best(outcome, state, epoch)
            if self.after_epoch:
                self.after_epoch(epoch)

    def _keep_if_best(self, outcome: Outcome, state: TrainState, epoch: int) -> None:
        if self.select not in outcome.last:
            raise ConfigError(f"select must be one of the measured {', '.join(outcome.last)}, got {self.select}")
        value, best = outcome.last[self.select], outcome.best.get(self.select, -math.inf)
        if value > best or (self.among_equals == "last" and value == best):
            outcome.best_arrays = {}  # which may be large
            outcome.best, outcome.best_epoch, outcome.best_arrays = outcome.last, epoch, state.arrays()
            _check_finite(outcome.best_arrays.items(), epoch)


def _short_fit(
    meter: work_meter.WorkMeter, step: Callable, batches: Callable, state: TrainState, run: Run, steps: int | None,
    measured: _Measured, place: Slot,
) -> Outcome:  # fmt: skip
    """The first steps alone, for a meter that wants to know what all of them take."""
    evaluate, epochs = measured.evaluate, measured.epochs

    def save() -> None:
        place.save(*_saved(Outcome(best_arrays=state.arrays() if evaluate else {}), state, epochs, 0))

    given = Fit(
        step, batches, state, run, epochs, steps, evaluate, measured.every, measured.after_epoch, measured.averaged,
        save, SAVE_SECONDS,
    )  # fmt: skip
    last = measured_fit(meter, given)
    return Outcome(last, last, epochs - 1, state.arrays()) if evaluate else Outcome(last)


def _require_equal(state: TrainState, run: Run, facts: dict[str, Any]) -> None:
    """Raises `RanksDiffer` where one of several ranks would train something else."""
    if ranks.here().several:
        known = {**compared(run.facts), **facts, "weights": collectives.digest(_each(state.parameters()))}
        collectives.require_equal(known)


def _is_shown(epoch: int, epochs: int, every: int) -> bool:
    """About twenty lines for a whole training, the last epoch among them."""
    return epoch + 1 == epochs or (epoch + 1) // every % max(1, epochs // every // 20) == 0


def _epoch_line(epoch: int, epochs: int, measured: dict[str, float]) -> str:
    return f"epoch {epoch + 1} of {epochs}: " + ", ".join(f"{k} {v:.4f}" for k, v in measured.items())


def _saved(
    outcome: Outcome, state: TrainState, epoch: int, number: int
) -> tuple[dict[str, np.ndarray | LazyTensor], dict[str, Any]]:
    best = {f"best.{k}": v for k, v in outcome.best_arrays.items()}
    tensors = state.tensors()
    _check_finite(_each(tensors), epoch - 1)
    position = {
        "epoch": epoch,
        "step": number,
        "last": outcome.last,
        "best": outcome.best,
        "best_epoch": outcome.best_epoch,
    }
    return {**{f"state.{k}": v for k, v in tensors.items()}, **best}, position


def _each(tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays with their names, one at a time."""
    return ((name, tensor.read()) for name, tensor in tensors.items())


def _check_finite(arrays: Iterable[tuple[str, np.ndarray]], epoch: int) -> None:
    """The loss is that before each step: what the last one broke would not show in it."""
    for name, array in arrays:
        if not np.isfinite(array).all():
            raise Diverged(
                f"{name} holds NaN or infinite values after epoch {epoch + 1}, the state saved before is kept: lower optim.lr, "
                "or look for broken data"
            )


def _resume(place: Slot, state: TrainState) -> tuple[Outcome, int, int]:
    saved = place.load()
    if saved is None:
        return Outcome(), 0, 0
    arrays, position = saved
    state.restore({k.removeprefix("state."): v for k, v in arrays.items() if k.startswith("state.")})
    best = {k.removeprefix("best."): v.read() for k, v in arrays.items() if k.startswith("best.")}
    return (
        Outcome(position["last"], position["best"], position["best_epoch"], best),
        position["epoch"],
        position["step"],
    )


class _LossReader:
    """Collects an epoch's losses without waiting for each. number: that of the epoch's first step."""

    def __init__(self, every: int, epoch: int, number: int):
        self._every, self._epoch, self.number = every, epoch, number
        self._waiting: list[Any] = []
        self._read: list[float] = []

    def add(self, loss: Any) -> None:
        self._waiting.append(loss)
        if len(self._waiting) >= self._every:
            self._flush()

    def mean(self) -> float:
        self._flush()
        if not self._read:
            raise DataError("there is nothing to train on: no batches (fewer photos than one batch?)")
        return float(np.mean(self._read))

    def _flush(self) -> None:
        start = self.number + len(self._read)
        self._read += [float(v.numpy().ravel()[0]) for v in self._waiting]
        self._waiting = []
        if not np.isfinite(self._read).all():
            raise Diverged(
                f"the loss became NaN or infinite between steps {start} and {self.number + len(self._read) - 1} of epoch "
                f"{self._epoch}; the state saved before is kept: lower optim.lr, or look for broken data"
            )


def predict(fn: Callable[[Any], Any], batches: Iterable[Any]) -> np.ndarray:
    """`fn` of every batch, without gradients, joined in order; the last batch is kept however short it is."""
    with jt.no_grad():
        parts = [fn(batch).numpy() for batch in batches]
    if not parts:
        raise DataError("there is nothing to predict: no batches")
    return np.concatenate(parts)
