"""Training loops: resumed to the same bits, chosen by validation, loud when there is nothing or nonsense to learn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from jclip.errors import CheckpointError, ConfigError, DataError
from jclip.model.trainable import trainable
from jclip.runtime import jt
from jclip.train import loop
from jclip.train.loop import Diverged, fit, predict
from jclip.train.optim import SGD, AdamW, TrainState
from jclip.train.run import Run, RunBusy, read_result
from tests.killed import killed_at

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((32, 5)).astype(np.float32), RNG.standard_normal((32, 3)).astype(np.float32)


class Problem:
    """Least squares with AdamW and an average; dies in the middle on request."""

    def __init__(self, folder, epochs=4, die_at=None, lr=1e-2):
        self.w = jt.array(np.ones((5, 3), np.float32))
        self.optim = AdamW({"w": self.w}, lr)
        self.optim.average = 0.9
        self.state = TrainState(self.optim)
        self.folder, self.epochs, self.die_at, self.seen = folder, epochs, die_at, []

    def step(self, batch, number):
        if number == self.die_at:
            raise KeyboardInterrupt
        self.seen.append(number)
        x, y = batch
        difference = jt.matmul(jt.array(x), self.w) - jt.array(y)
        loss = (difference * difference).mean()
        self.optim.step(loss)
        return loss

    def batches(self, epoch):
        order = np.random.default_rng((7, epoch)).permutation(32)
        return [(X[rows], Y[rows]) for rows in order.reshape(4, 8)]

    def evaluate(self):
        return {"top1": -float(((X @ self.w.numpy() - Y) ** 2).mean())}

    def fit(self, **options):
        with Run(self.folder, {"recipe": "toy"}) as run:
            return fit(
                self.step,
                self.batches,
                state=self.state,
                run=run,
                epochs=self.epochs,
                evaluate=self.evaluate,
                **options,
            )


def metrics(folder):
    return (folder / "metrics.jsonl").read_text()


@pytest.mark.parametrize("seconds", [0.0, 60.0], ids=["saved after each epoch", "saved after the last"])
@pytest.mark.parametrize("die_at", [1, 6, 15])
def test_a_broken_run_goes_on_to_the_same_bits(tmp_path, die_at, seconds, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", seconds)
    whole = Problem(tmp_path / "whole")
    wanted = whole.fit()
    with pytest.raises(KeyboardInterrupt):
        Problem(tmp_path / "broken", die_at=die_at).fit()
    again = Problem(tmp_path / "broken")
    outcome = again.fit()
    assert np.array_equal(again.w.numpy(), whole.w.numpy())
    assert np.array_equal(again.state.average["w"].numpy(), whole.state.average["w"].numpy())
    assert outcome.last == wanted.last and outcome.best == wanted.best and outcome.best_epoch == wanted.best_epoch
    assert np.array_equal(outcome.best_arrays["w"], wanted.best_arrays["w"])
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    assert again.seen[0] == (0 if seconds else 4 * (die_at // 4))


def test_lines_printed_but_not_saved_are_printed_once(tmp_path):
    Problem(tmp_path, epochs=2).fit()
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"slot": "train", "epoch": 2, "loss": 9}\n{"slot": "other", "epoch": 5}\n{"slot": "tra')
    Problem(tmp_path, epochs=4).fit()
    written = [json.loads(line) for line in metrics(tmp_path).splitlines()]
    assert [(t["slot"], t["epoch"]) for t in written] == [
        ("train", 0),
        ("train", 1),
        ("other", 5),
        ("train", 2),
        ("train", 3),
    ]


def test_the_best_epoch_is_the_first_of_the_best_by_validation(tmp_path):
    problem = Problem(tmp_path, epochs=5)
    values = iter([0.1, 0.7, 0.3, 0.7, 0.2])
    kept = []

    def evaluate():
        kept.append(problem.w.numpy())
        return {"top1": next(values)}

    problem.evaluate = evaluate
    outcome = problem.fit()
    assert outcome.best_epoch == 1 and outcome.best["top1"] == 0.7 and outcome.last["top1"] == 0.2
    assert np.array_equal(outcome.best_arrays["w"], kept[1])


@pytest.mark.parametrize("among_equals, epoch", [("first", 1), ("last", 3)])
def test_of_equally_good_epochs_the_first_or_the_last_is_kept(tmp_path, among_equals, epoch):
    problem, accuracies = Problem(tmp_path), iter([0.25, 0.75, 0.5, 0.75])
    problem.evaluate = lambda: {"top1": next(accuracies)}
    assert problem.fit(among_equals=among_equals).best_epoch == epoch


def test_a_quiet_run_reports_no_epochs(tmp_path, capsys):
    for quiet in (False, True):
        problem = Problem(tmp_path / str(quiet))
        with Run(problem.folder, {"recipe": "toy"}, quiet=quiet) as run:
            fit(problem.step, problem.batches, state=problem.state, run=run, epochs=4, evaluate=problem.evaluate)
        assert ("epoch 4 of 4" in capsys.readouterr().err) is not quiet


def test_the_average_is_an_exponential_moving_one(tmp_path, close):
    problem = Problem(tmp_path, epochs=1)
    mean = np.ones((5, 3))
    inner = problem.step

    def step(batch, number):
        nonlocal mean
        loss = inner(batch, number)
        mean = 0.9 * mean + 0.1 * problem.w.numpy()
        return loss

    problem.step = step
    problem.fit()
    close(problem.state.average["w"].numpy(), mean, "optimiser")
    assert np.array_equal(problem.w.numpy(), problem.state.average["w"].numpy()), "what training ends with"


def test_the_average_is_what_is_measured_and_training_goes_on_from_the_weights(tmp_path):
    problem, seen = Problem(tmp_path), []
    inner = problem.step

    def step(batch, number):
        seen.append(("step", problem.w.numpy()))
        loss = inner(batch, number)
        seen.append(("done", problem.w.numpy()))
        return loss

    def evaluate():
        seen.append(("measured", problem.w.numpy()))
        return {"top1": float(len(seen))}  # each epoch is better than the one before

    problem.step, problem.evaluate = step, evaluate
    outcome = problem.fit()
    at = [i for i, (what, _) in enumerate(seen) if what == "measured"]
    assert len(at) == 4 and np.array_equal(outcome.best_arrays["w"], seen[at[-1]][1])
    for i in at:
        assert not np.array_equal(seen[i][1], seen[i - 1][1]), "measured is the average"
    for i in at[:-1]:
        assert np.array_equal(seen[i + 1][1], seen[i - 1][1]), "the next step starts where the last one ended"


def test_weights_that_the_last_step_broke_are_neither_kept_nor_saved(tmp_path, monkeypatch):
    """The loss before that step was a number."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    for evaluated in (True, False):
        problem = Problem(tmp_path / str(evaluated))
        problem.optim.average = 0.0
        problem.state = TrainState(problem.optim)
        inner = problem.step

        def step(batch, number, problem=problem, inner=inner):
            loss = inner(batch, number)
            if number == 11:
                problem.w.update(problem.w * float("inf"))
                problem.w.start_grad()
            return loss

        problem.step = step
        problem.evaluate = (lambda: {"top1": 0.0}) if evaluated else None
        with pytest.raises(
            loop.Diverged, match=r"w holds NaN or infinite values after epoch 3, the state saved before"
        ):
            problem.fit()
        with Run(problem.folder, {"recipe": "toy"}) as run:
            assert run.slot().load()[1]["epoch"] == 2


def test_a_loss_that_is_no_number_stops_with_its_steps_and_keeps_the_state(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    problem = Problem(tmp_path, epochs=3)
    inner = problem.step

    def step(batch, number):
        if number == 6:
            problem.w.update(problem.w * float("inf"))
        return inner(batch, number)

    problem.step = step
    with pytest.raises(Diverged, match=r"between steps 4 and 7 of epoch 1; .*lower optim.lr"):
        problem.fit(read_every=4)
    assert len(metrics(tmp_path).splitlines()) == 1
    again = Problem(tmp_path, epochs=3)
    assert np.isfinite(again.fit().last["loss"]) and again.seen[0] == 4


def test_no_batches_are_refused(tmp_path):
    problem = Problem(tmp_path)
    problem.batches = lambda epoch: []
    with pytest.raises(DataError, match="nothing to train on"):
        problem.fit()
    with pytest.raises(DataError, match="nothing to predict"):
        predict(lambda b: jt.array(b), [])


def test_prediction_keeps_order_and_the_last_batch():
    parts = [X[:10], X[10:20], X[20:31], X[31:]]
    assert np.array_equal(predict(lambda b: jt.array(b) * 2, parts), X * 2)


def test_state_of_another_model_is_refused(tmp_path):
    Problem(tmp_path, epochs=1).fit()
    other = Problem(tmp_path, epochs=2)
    other.state = TrainState(SGD({"w": other.w, "b": jt.zeros((3,))}, 1e-2))
    with pytest.raises(CheckpointError, match="saved state does not fit the model"):
        other.fit()
    sgd = SGD({"w": other.w}, 1e-2)
    sgd.average = 0.9
    other.state = TrainState(sgd)
    with pytest.raises(CheckpointError, match="optimiser state does not fit"):
        other.fit()


def test_what_is_frozen_does_not_move_and_what_is_trained_does(tmp_path):
    from jclip.model.clip import CLIP
    from tests.toys import TOY_RESNET, toy_batch

    model = CLIP(TOY_RESNET)
    model.eval()
    chosen = trainable(model, ["visual.attnpool.*", "logit_scale"])
    assert set(chosen) == {k for k in model.state_dict() if k.startswith("visual.attnpool.") or k == "logit_scale"}
    before = {k: v.numpy() for k, v in model.state_dict().items()}
    optim = AdamW(chosen, 1e-2)
    for seed in range(3):
        pixels, tokens = toy_batch(TOY_RESNET, seed)
        optim.step(model(pixels, tokens)[0].sum())
    for name, value in model.state_dict().items():
        assert np.array_equal(before[name], value.numpy()) != (name in chosen), name
    with pytest.raises(ConfigError, match="no parameter's name matches 'visual.attnpol"):
        trainable(model, ["visual.attnpol.*"])


# Runs


def test_a_folder_of_another_config_is_refused(tmp_path):
    with Run(tmp_path / "r", {"recipe": "toy", "data": {"shots": 4}, "alpha": 1.0}) as run:
        run.log(epoch=0)
    with pytest.raises(ConfigError, match=r"another config \(differs in alpha, data.shots\): .*--run.*--fresh"):
        Run(tmp_path / "r", {"recipe": "toy", "data": {"shots": 8}, "alpha": 2.0})

    with Run(tmp_path / "r", {"recipe": "other"}, fresh=True) as run:
        assert run.result is None


def test_a_run_that_ended_before_its_first_step_leaves_room_for_another(tmp_path):
    with pytest.raises(ZeroDivisionError), Run(tmp_path / "r", {"recipe": "toy", "data": "misspelt"}):
        _ = 1 / 0
    with Run(tmp_path / "r", {"recipe": "toy", "data": "right"}) as run:
        run.save_learned({"w": np.zeros(2)})
    with pytest.raises(ConfigError, match=r"another config \(differs in data\)"):
        Run(tmp_path / "r", {"recipe": "toy", "data": "other"})


def test_a_folder_in_use_is_refused(tmp_path):
    with Run(tmp_path, {"recipe": "toy"}):
        with pytest.raises(RunBusy, match="in use by another process"):
            Run(tmp_path, {"recipe": "toy"})
    with Run(tmp_path, {"recipe": "toy"}):
        pass


def test_results_report_where_they_come_from(tmp_path):
    with Run(tmp_path, {"recipe": "toy", "seed": 3}) as run:
        run.note(weights="abc")
        run.finish({"top1": 0.123456789, "count": 5, "lr": 1.2345678e-7})
    result = read_result(tmp_path)
    assert result["metrics"] == {"top1": 0.123457, "count": 5, "lr": 1.23457e-7}
    assert result["config"] == {"recipe": "toy", "seed": 3}
    got = result["provenance"]
    assert got["weights"] == "abc" and got["versions"]["jittor"] == "1.3.11.0" and got["threads"]
    with pytest.raises(ConfigError, match="holds no finished run"):
        read_result(tmp_path / "none")


def test_another_thread_count_is_warned_of(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Problem(tmp_path, epochs=1).fit()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    Problem(tmp_path, epochs=2).fit()
    assert "resuming at 7 threads what ran at 1" in capfd.readouterr().err


def test_a_full_disk_leaves_the_earlier_state(tmp_path, monkeypatch):
    problem = Problem(tmp_path, epochs=1)
    problem.fit()
    before = (tmp_path / "train.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Problem(tmp_path, epochs=2).fit()
    assert (tmp_path / "train.safetensors").read_bytes() == before


def test_killed_with_9_in_the_middle_of_training(tmp_path):
    """In a process of its own, one thread, killed while it trains; then finished by the same command."""
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from tests.library.test_loop import Problem
        problem = Problem(Path(sys.argv[1]), epochs=6)
        problem.fit()
        print(problem.w.numpy().tobytes().hex())
        """
    )
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def finish(folder):
        command = [sys.executable, "-c", code, str(folder)]
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)

    wanted = finish(tmp_path / "whole").stdout
    killed_at("*/train.safetensors", str(tmp_path / "broken"), times=3, program=code)
    assert len(metrics(tmp_path / "broken").splitlines()) == 3
    done = finish(tmp_path / "broken")
    assert done.stdout == wanted and wanted.strip(), done.stderr
    assert [json.loads(line)["epoch"] for line in metrics(tmp_path / "broken").splitlines()] == list(range(6))
