"""Work of which a part is done: what is left out counts as much as what was measured, loops inside of loops included."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.functional import lbfgs
from jclip.machine import solver_steps, work_meter
from jclip.machine.work_meter import WorkMeter
from jclip.train import cost_estimate
from jclip.train.cost_estimate import CostEstimate, counts_to, size, spoken


class Clock:
    """Time that passes where `spend` says so."""

    def __init__(self):
        self.seconds = np.zeros(3)

    def spend(self, wall: float, cpu: float = 0.0, decoding: float = 0.0) -> None:
        self.seconds = self.seconds + np.array([wall, cpu, decoding])


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(WorkMeter, "_clock", staticmethod(lambda: made.seconds))
    monkeypatch.setattr(work_meter.time, "perf_counter", lambda: float(made.seconds[0]))
    return made


def test_without_a_meter_everything_is_done():
    assert work_meter.running() is None
    assert [*work_meter.some(range(5), "x")] == [0, 1, 2, 3, 4]
    given = [(np.array([0, 1]), np.zeros((2, 3)))]
    assert [*work_meter.stretched("x", given, 2)] == given


def test_items_that_are_left_out_count_by_their_weight(clock):
    """100 items of weight n cost n seconds; a first item costs 7 more, and says nothing of the others."""
    weights = [1 + n % 3 for n in range(100)]
    with WorkMeter(100.0).running() as meter:
        before, done = meter.now(), 0
        for weight in work_meter.some(weights, "x", float, phase="solving", of="steps"):
            clock.spend(weight + (0 if done else 7), 2 * weight)
            done += 1
        took = meter.now() - before
    assert done < 20 and meter.warming == pytest.approx(7)
    found = meter.accounts["solving"]
    assert took[0] == pytest.approx(sum(weights) + 7) and found.cpu == pytest.approx(2 * sum(weights))
    assert found.seconds == pytest.approx(sum(weights)) and found.total == sum(weights)


def test_what_was_measured_for_long_is_not_measured_again(clock):
    with WorkMeter(10.0).running() as meter:
        done = [0, 0]
        for turn in (0, 1):
            for _ in work_meter.some(range(50), "x"):
                clock.spend(1.0)
                done[turn] += 1
    assert done == [2, 1]
    assert meter.accounts["searching"].seconds == pytest.approx(100)


def test_photos_that_are_left_out_resemble_those_that_were_encoded(clock):
    rng = np.random.default_rng(0)
    true = rng.standard_normal((1000, 4)).astype(np.float32) + np.eye(1, 4) * 5

    def encoded():
        for at in range(0, 1000, 10):
            clock.spend(2.0, 1.0, 0.5)
            yield np.arange(at, at + 10), true[at : at + 10].astype(np.float32)

    with WorkMeter(20.0).running() as meter:
        found = [*work_meter.stretched("x", encoded(), 1000, each=64)]
    places, features = (np.concatenate(column) for column in zip(*found, strict=True))
    assert (places == np.arange(1000)).all() and features.dtype == np.float32
    account = meter.accounts["encoding photos"]
    assert account.measured < 200 and account.total == 1000
    assert account.seconds == pytest.approx(200) and account.decoding == pytest.approx(0.5)
    rest = features[int(account.measured) :]
    assert len(np.unique(rest, axis=0)) == len(rest) and abs(rest[:, 0].mean() - 5) < 1


def test_loops_inside_of_loops(clock):
    """Four measurements of 30 seconds each, of which one is done in part: a hundred and twenty."""
    with WorkMeter(10.0).running() as meter, meter.phase(work_meter.MEASURING):
        before = meter.now()
        for _ in work_meter.some(range(30), "x", phase="inner"):
            clock.spend(1.0)
        meter.skip((meter.now() - before) * 3)
    assert [*meter.accounts] == [work_meter.WHOLE, work_meter.MEASURING]  # what is a part of measuring counts there
    assert meter.accounts[work_meter.MEASURING].seconds == pytest.approx(120)


def test_compilers_are_counted_apart_from_decoding(monkeypatch):
    """A process that ends unseen compiled; one that was seen at work, and is ended, decoded."""
    running, ended = {7: 3.0}, [100.0]
    monkeypatch.setattr(work_meter, "children", lambda: [*running])
    monkeypatch.setattr(work_meter, "cpu_of", running.get)
    monkeypatch.setattr(work_meter, "ended_seconds", lambda: ended[0])
    with WorkMeter(100.0).running() as meter, meter.phase("training"):
        before = meter.now()
        running[7] += 1
        meter.now()
        ended[0] += 4.2 + 5.0  # the decoding process, and a compiler
        running.clear()
        took = meter.now() - before
    assert meter.compiled == pytest.approx(5.2) and took[2] == pytest.approx(1.0)


def test_a_solver_is_cut_and_its_iterations_are_guessed(clock):
    """A quadratic whose gradient shrinks at a steady pace: the guess is near to what the solver takes."""
    scale = np.linspace(1, 300, 60)

    def objective(x):
        clock.spend(1.0)
        return float((scale * x * x).sum() / 2), scale * x

    start = np.ones(60)
    whole = lbfgs.minimise(objective, start, tolerance=1e-8)
    calls = clock.seconds[0]
    with WorkMeter(100.0).running() as meter:
        cut = lbfgs.minimise(objective, start, tolerance=1e-8)
    assert cut.converged and cut.iterations < whole.iterations
    assert meter.accounts[work_meter.WHOLE].seconds == pytest.approx(calls, rel=0.5)
    assert meter.uncertain == ["iterations"]


def test_a_solver_that_comes_slowly_takes_no_more_steps_than_it_may(clock):
    with (meter := WorkMeter(1.0)).running():
        steps, ended, done = solver_steps.SolverSteps(100, 1e-6), False, 0
        while not ended:
            clock.spend(1.0)
            done += 1
            ended = steps.ends(1.0 - 1e-4 * done)
    account = meter.account()
    assert account.measured == done and account.total == 100 and account.skipped[0] == pytest.approx(100 - done)


def test_what_was_measured_beside_compilers_is_measured_again(monkeypatch):
    """What the second time finds done, Jittor's start and operators' loading, counts as the first time had it."""
    given = []

    def measured(*_):
        first = not given
        starting = work_meter.Account(cost_estimate.STARTING, np.array([2.0 if first else 0.0, 1.0, 0.0]))
        rest = work_meter.Account(work_meter.WHOLE, np.array([30.0, 9.0, 0.0]) if first else np.array([4.0, 4.0, 0.0]))
        given.append(
            CostEstimate((starting, rest), 33, 1.0, 20.0 if first else 0.0, 1, 0, 1, 1, 0, 2, False, warming_cpu=1.0)
        )
        return given[-1]

    monkeypatch.setattr(cost_estimate, "_measured", measured)
    found = cost_estimate.estimated(None, None)
    assert (found.seconds, found.cpu, found.compiled, found.took) == (2 + 4 + 1 + 5, 1 + 4 + 1 + 5, 20, 66)
    cost_estimate.estimated(None, None)
    assert len(given) == 3  # none was compiled


def test_ranks_share_what_they_can_and_add_what_they_must():
    """By hand: 100 s of training of which 10 are each rank's, 20 s of the rest, 4 s to pass all gradients once."""
    training = work_meter.Account("training", np.array([40.0, 60.0, 0.0]), np.array([60.0, 90.0, 0.0]), "steps", 4, 10)
    rest = work_meter.Account(work_meter.WHOLE, np.array([20.0, 20.0, 0.0]))
    found = CostEstimate(
        (training, rest), 30, 2.0, 1.0, 2**30, 0, 2**20, 2**21, 0, 4, True, (10.0, 15.0), 4.0,
        stepping=work_meter.Stepping(before=100 * 2**20, most=900 * 2**20, of_rows=600 * 2**20),
    )  # fmt: skip
    assert found.seconds == 122 and found.by_ranks(1) == 122
    assert found.by_ranks(2, machines=True) == 22 + 90 / 2 + 10 + 4
    assert found.by_ranks(4, machines=True) == 22 + 90 / 4 + 10 + 6
    assert found.by_ranks(2) == 22 + max(59, (150 + 15) / 4) and found.by_ranks(8) == (8 * 20 + 255 + 8 * 7) / 4
    lines = "\n".join(found.lines((1, 2)))
    assert "4 of 10 steps (training)" in lines and "time, extrapolated: 122 s" in lines.replace("2.03 min", "122 s")
    assert "bottleneck: training, 82 % of the time: the model" in lines
    assert lines.count("extrapolated from one process") == 1 and "1.49 GiB" in lines  # two of 764 MiB


def test_each_rank_holds_the_rows_that_are_its_own():
    """By hand: of 1,024 MiB 900 were held in steps, 600 of them for rows; saving takes 124 more; Open MPI takes 40."""
    stepping = work_meter.Stepping(before=100.0, most=900.0, of_rows=600.0)
    assert [stepping.by_ranks(1024.0, count) for count in (1, 2, 3)] == [1024, 724, 624]
    assert work_meter.Stepping(700.0, 900.0, 600.0).by_ranks(1024.0, 3) == 124 + 700  # loading took more than its steps
    assert work_meter.Stepping().by_ranks(1024.0, 4) == 1024  # nothing was trained in steps


def test_what_is_printed():
    assert counts_to(1) == [1] and counts_to(4) == [1, 2, 4] and counts_to(6) == [1, 2, 4, 6]
    assert [spoken(s) for s in (0.0031, 42, 600, 12240, 400000)] == ["3.1 ms", "42 s", "10 min", "3.4 h", "4.63 d"]
    assert [size(n) for n in (10, 2048, 3 * 2**20, 5 * 2**40)] == ["10 bytes", "2 KiB", "3 MiB", "5 TiB"]
