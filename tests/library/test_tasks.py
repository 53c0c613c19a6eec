"""A task as the library takes it: one entry and one module, tried with one that the library does not have. No Jittor."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import finetune
from jclip.cli import main
from jclip.config import DataConfig
from jclip.errors import ConfigError
from jclip.readers.spreadsheet import read_csv
from jclip.report.finished_run import FinishedRun
from jclip.report.predictor import Predictor
from jclip.report.scoring_run import ScoringRun
from jclip.report.tasks import TASKS, Task
from jclip.train.scored_photos import ScoredPhotos

SCORES = np.array([[3, 1, -2], [-1, 2, 5]], np.float32)
TARGETS = np.array([[True, True, False], [False, False, True]])


@dataclass(frozen=True)
class Tagger(ScoringRun):
    """Photos of several classes each: those with scores above 0."""

    task: ClassVar[str] = "tag"

    def measure(self, out: Path) -> dict[str, float]:
        """Of the scorer's scores of what the smallest model would see."""
        scores = self.scorer()(np.eye(2, dtype=np.float32))
        return self.write_scored(out, ScoredPhotos(scores, TARGETS, self.classnames), self.marks())

    @staticmethod
    def files() -> tuple[str, ...]:
        """One file."""
        return ("eval.json",)

    @staticmethod
    def write_scored(folder: Path, scored: ScoredPhotos, marks: Mapping[str, float]) -> dict[str, float]:
        """The share of right answers."""
        metrics = {"right": float(((scored.scores > 0) == scored.targets).mean()), **marks}
        (folder / "eval.json").write_text(json.dumps(metrics))
        return metrics

    @staticmethod
    def run_table(metrics: Mapping[str, float]) -> str:
        """One line."""
        return f"share of right answers {metrics['test_right']:.3f}"

    @staticmethod
    def eval_table(metrics: Mapping[str, float]) -> str:
        """One line."""
        return f"measured {metrics['right']:.3f}"


@dataclass(frozen=True)
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    model: str = ""
    family: str | None = None
    seed: int = 1


def run(cfg: Config, run) -> dict[str, float]:
    """Learns the scores by heart."""
    run.save_learned({"scores": SCORES}, classnames=["a", "b", "c"], width=2)
    run.hand_over(ScoredPhotos(SCORES, TARGETS, ("a", "b", "c"), ("x.jpg", "y.jpg")))
    return {"test_right": 5 / 6}


def scorer(learned, cfg):
    """(N, 2) → (N, 3)."""
    return lambda features: features @ learned["scores"]


@pytest.fixture
def finished(monkeypatch, tmp_path, capsys) -> Path:
    """A finished run of a recipe `labels` of the task `tag`, neither of which there is."""
    recipe = types.ModuleType("finetune.labels")
    vars(recipe).update(TASK="tag", Config=Config, run=run, scorer=scorer)
    names, load = [*finetune.names(), "labels"], finetune.load
    monkeypatch.setattr(finetune, "names", lambda: names)
    monkeypatch.setattr(finetune, "load", lambda name: recipe if name == "labels" else load(name))
    entry = Task(
        "tag", {"scorer": ("learned", "cfg")}, ("test_right",), "right", "learned.safetensors", __name__, "Tagger"
    )
    monkeypatch.setitem(TASKS, "tag", entry)
    (tmp_path / "labels.yaml").write_text("recipe: labels\n")
    assert main(["train", str(tmp_path / "labels.yaml"), "--run", str(tmp_path / "run")]) == 0
    (tmp_path / "printed").write_text(capsys.readouterr().out)
    return tmp_path / "run"


def test_train_and_eval_do_what_the_task_says(finished, capsys):
    printed = (finished.parent / "printed").read_text()
    assert "share of right answers 0.833" in printed and "(eval.json)" in printed
    assert json.loads((finished / "result.json").read_text())["files"][:2] == ["config.yaml", "eval.json"]
    handed_over = (finished / "eval.json").read_text()
    assert json.loads(handed_over) == {"right": pytest.approx(5 / 6)}
    assert main(["eval", str(finished)]) == 0
    assert f"measured 0.833\nwritten: {finished}/eval.json" in capsys.readouterr().out
    assert (finished / "eval.json").read_text() == handed_over


def test_a_sweep_compares_the_tasks_main_figure(finished, tmp_path, capsys):
    config, folders = str(tmp_path / "labels.yaml"), ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main(["sweep", config, "data.shots=1,2", "seed=1,2", *folders]) == 0
    printed = capsys.readouterr().out
    assert "test right, %, 2 seeds" in printed and "83.33 ± 0.00" in printed
    rows = read_csv(tmp_path / "out" / "sweep.csv")
    assert [*rows[0]] == ["config", "recipe", "shots", "seed", "test_right", "seconds", "selection", "run"] and len(
        rows
    ) == 4
    assert {row["test_right"] for row in rows} == {"0.833333"}
    assert main(["sweep", config, "tip_adapter/smoke", *folders]) == 2
    assert (
        "configs must be of one task, got tag (labels) and classify (smoke): sweep them apart"
        in capsys.readouterr().err
    )


def test_a_run_of_the_task_is_its_own_predictor(finished):
    done = finetune.Predictor.load(finished)
    assert type(done) is Tagger and done.classnames == ("a", "b", "c") and done.metrics == {"test_right": 0.833333}
    assert np.array_equal(done.scorer()(np.eye(2, dtype=np.float32)), SCORES)
    with pytest.raises(ConfigError, match="must hold a run of the task classify, got tag \\(recipe labels\\)"):
        finetune.Classifier.load(finished)


def test_what_a_task_does_not_do_is_refused_in_one_line(finished, tmp_path, capsys):
    assert main(["predict", str(finished), "photos"]) == 2
    assert "learned from precomputed features: name the model that made them with --model" in capsys.readouterr().err
    plain = FinishedRun(finished, sys.modules[__name__], Config())
    for method, arguments in (("measure", [tmp_path]), ("label", [None]), ("own_split", []), ("check_photos", []),
                              ("check_predict", [False, False])):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{finished} is of the recipe test_tasks, task : it can't be "):
            getattr(plain, method)(*arguments)


def test_predictor_is_public_beside_classifier():
    from jclip import report
    from jclip.report import predictor

    assert finetune.Predictor is Predictor is report.Predictor
    assert finetune.Classifier is predictor.Classifier is report.Classifier and issubclass(
        report.Classifier, ScoringRun
    )


def test_the_columns_of_retrieval_are_clip_benchmarks_names_and_the_short_ones():
    short = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
    long = [f"{way}_retrieval_recall@{k}" for way in ("text", "image") for k in (1, 5, 10)]
    assert TASKS["retrieve"].metrics == (*short, *long)
