"""Rates that change by epochs, trainings that stop before their schedule ends, and which weights they end with."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.config import OptimConfig
from jclip.errors import ConfigError
from jclip.runtime import jt
from jclip.train.loop import fit
from jclip.train.optim import TrainState, learning_rate, optimiser
from jclip.train.run import Run


def rates(steps: int, **settings) -> list[float]:
    """The rate of the first step of every epoch; those of the epoch's other steps must be the same."""
    config = OptimConfig(schedule="epoch_cosine", **settings)
    total = config.epochs * steps
    schedule = [learning_rate(config, n, total) for n in range(total)]
    assert all(schedule[n] == schedule[n - n % steps] for n in range(total))
    return schedule[::steps]


@pytest.mark.parametrize("warmup", [1, 0.05])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_published_rates_by_hand(warmup, steps, close):
    schedule = rates(steps, lr=1e-4, epochs=20, warmup=warmup, warmup_lr=1e-5)
    close([schedule[e] / 1e-4 for e in (0, 1, 2, 19)], [0.1, 1, 0.99384417, 0.02447174], "rounding")


def test_a_long_warmup_and_none(close):
    schedule = rates(3, lr=0.01, epochs=100, warmup=10, warmup_lr=1e-3)
    assert schedule[:10] == [1e-3] * 10 and schedule[10] == 0.01
    close(schedule[81], 0.005 * (1 + np.cos(np.pi * 0.71)), "schedule")
    close(rates(4, lr=0.6, epochs=9, warmup=3)[:4], [0.2, 0.4, 0.6, 0.6], "schedule")
    close(rates(2, lr=1e-5, epochs=5), [0.5e-5 * (1 + np.cos(np.pi * e / 5)) for e in range(5)], "schedule")


def test_a_warmup_rate_is_of_the_other_schedules_too():
    config = OptimConfig(lr=0.5, warmup=3, warmup_lr=0.01, schedule="cosine")
    assert [learning_rate(config, n, 10) for n in range(4)] == [0.01, 0.01, 0.01, 0.5]
    assert learning_rate(OptimConfig(lr=0.6, warmup=3), 0, 10) == pytest.approx(0.2)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"optim.stop must be in \[0, 20\], optim.epochs, got 21"):
        OptimConfig(epochs=20, stop=21)
    with pytest.raises(ConfigError, match="optim.warmup_lr must be at least 0, got -1"):
        OptimConfig(warmup_lr=-1)
    assert OptimConfig(epochs=20).trained_epochs == 20 and OptimConfig(epochs=20, stop=3).trained_epochs == 3


@pytest.mark.parametrize("keep", ["average", "student"])
def test_what_is_kept_is_what_is_measured(keep, tmp_path, close):
    """One weight that falls by the rate in each step, and its average; the teacher of step t is the average before it."""
    config = OptimConfig(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, average=0.75)
    w = jt.array(np.array([8.0], np.float32))
    optim = optimiser(config, {"w": w})
    state, measured, teachers = TrainState(optim), [], []

    def step(batch, number):
        teachers.append(state.average["w"].item())
        optim.step(loss := w.sum())
        return loss

    def evaluate():
        measured.append(w.item())
        return {"top1": 0.0}

    with Run(tmp_path, {"recipe": "x"}) as run:
        fit(step, lambda epoch: [None], state=state, run=run, epochs=3, evaluate=evaluate, keep=keep)
    students, teacher, by_hand = [7.0, 6.0, 5.0], 8.0, []
    for student in [8.0, *students]:  # the average moves before it is asked, to the weights before the step
        by_hand.append(teacher := 0.75 * teacher + 0.25 * student)
    close(teachers, by_hand[:3], "rounding")
    kept = students if keep == "student" else by_hand[1:]
    close(measured, kept, "rounding")
    close([w.item()], kept[-1:], "rounding")
