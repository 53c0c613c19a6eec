"""What recipes are for: each task's metrics and files, what a recipe of it offers, and who answers for its finished runs.

A recipe says its task in a module attribute, `TASK = "retrieve"`; without one it is `classify`. To add a task:

1. `jclip/report/<noun>.py` with a subclass of `jclip.report.finished_run.FinishedRun`, whose methods are all that `train`,
   `eval`, `predict` and `compare` ask of a finished run. Where recipes of the task have a `scorer`, it is a subclass of
   `jclip.report.scoring_run.ScoringRun`, which has what was learned, the features and the class names, and lacks
   `measure`, `label` and the static methods below `label`: what they write and print.
2. One entry of `TASKS` here. `functions`: what its recipes define beside `Config` and `run`, with their parameters; for
   photos with several labels `scorer(learned, cfg)` gives what turns features (N, E) into scores (N, C), as of `classify`.
3. In a recipe: `TASK = "<name>"`, and in `run` either `jclip.train.scored_photos.measured` or
   `run.hand_over(ScoredPhotos(scores, targets, classnames, photos))` with the test photos' scores (N, C), from which
   `write_scored` writes its files at the end of `train`; a run that hands nothing over is left to `eval`.

No Jittor, and no NumPy before `predictor` is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from jclip.errors import UnknownName
from jclip.report.finished_run import FinishedRun
from jclip.train import recipe_finder

DEFAULT = "classify"


@dataclass(frozen=True)
class Task:
    """One kind of recipe.

    functions: names of what a recipe of it defines, each with its parameters. metrics: the main figures of result.json, in
    the order in which tables and sweep.csv have them. main: the figure that sweeps compare, after `val_` or `test_`.
    product: the file that every finished run has. module, predictor: where its subclass of `FinishedRun` is, and the name of
    that.
    """

    name: str
    functions: Mapping[str, tuple[str, ...]]
    metrics: tuple[str, ...]
    main: str
    product: str
    module: str
    predictor: str

    def load_predictor(self) -> type[FinishedRun]:
        """The class of its finished runs."""
        return getattr(importlib.import_module(self.module), self.predictor)


TASKS = {
    task.name: task
    for task in (
        Task(
            name="classify",
            functions={"scorer": ("learned", "cfg")},
            metrics=(
                "val_top1", "test_top1", "test_top1_last_epoch", "test_top1_best_epoch", "zero_shot_val_top1",
                "zero_shot_test_top1",
            ),
            main="top1",
            product="learned.safetensors",
            module="jclip.report.classifier",
            predictor="Classifier",
        ),
        Task(
            name="retrieve",
            functions={},
            metrics=(
                *(f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)),
                *(f"{way}_retrieval_recall@{k}" for way in ("text", "image") for k in (1, 5, 10)),
            ),
            main="i2t_r1",
            product="model.safetensors",
            module="jclip.report.retriever",
            predictor="Retriever",
        ),
        Task(
            name="multi_label",
            functions={
                "scorer": ("learned", "cfg"),
                "part_scorer": ("learned", "cfg"),  # as scorer, but scores by part: "merged", perhaps "global", "local"
                "tagger": ("folder", "config"),
            },
            metrics=tuple(f"{part}_map_{name}" for part in ("val", "test") for name in ("global", "local", "merged")),
            main="map_merged",
            product="learned.safetensors",
            module="jclip.report.tagging_run",
            predictor="TaggingRun",
        ),
        Task(
            name="ground",
            functions={"part_features": ("cfg", "source", "part"), "network_of": ("learned", "shape", "source")},
            metrics=tuple(
                f"{part}_{name}" for part in ("val", "test", "unseen") for name in ("acc@0.5", "mean_iou", "cumulative_iou")
            ),
            main="acc@0.5",
            product="learned.safetensors",
            module="jclip.report.grounder",
            predictor="Grounder",
        ),
        Task(
            name="curriculum",
            functions={"plan": ("cfg", "folder"), "winner": ("folder", "overrides", "model")},
            metrics=("val_accuracy", "test_accuracy", "rows", "trainings"),
            main="accuracy",
            product="curriculum.json",
            module="jclip.report.curriculum_run",
            predictor="CurriculumRun",
        ),
    )
}  # fmt: skip


def task_of(recipe: ModuleType) -> Task:
    """The task that a recipe's module declares. Raises `UnknownName`."""
    name = getattr(recipe, "TASK", DEFAULT)
    if name not in TASKS:
        raise UnknownName("task", name, sorted(TASKS))
    return TASKS[name]


def task_of_config(config: Mapping[str, Any]) -> Task:
    """The task of the recipe that a run's settings name; `classify` where that is none of those there are."""
    recipe = config.get("recipe")
    return task_of(recipe_finder.load(recipe)) if recipe in recipe_finder.names() else TASKS[DEFAULT]
