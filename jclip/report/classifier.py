"""A finished run as a classifier: photos in, classes out; what the task `classify` does with its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jclip.choices import SELECTED_ON_TEST
from jclip.data import loader, splits
from jclip.errors import ConfigError
from jclip.features import heads, precomputed, run_data
from jclip.features import source as sources
from jclip.functional import metrics
from jclip.paths import refuse_overwriting
from jclip.report import evaluation
from jclip.report import predictions as predicted
from jclip.report.run_table import accuracies_of_runs, report
from jclip.report.scoring_run import ScoringRun
from jclip.train import scored_photos

if TYPE_CHECKING:  # help answers before NumPy is imported
    import numpy as np


@dataclass(frozen=True)
class Classifier(ScoringRun):
    """A finished run of the task `classify`: each photo is of one class."""

    task: ClassVar[str] = "classify"

    def label(
        self, split: splits.Split, on_error: loader.OnError = "stop", top: int = 5
    ) -> tuple[predicted.Predictions, np.ndarray]:
        """Scores of the photos of `split` that decode, and their rows."""
        rows, scores = self.scores_of(split, on_error)
        photos, unknown = tuple(split.paths[i] for i in rows), getattr(self.config, "unknown", 0.0)
        return predicted.Predictions(photos, self.classnames, scores, top, unknown), rows

    def measure(self, out: Path) -> dict[str, float]:
        """Scores the test data of the run's config, photos or precomputed features, and writes what `write_evaluation` does.

        Raises `ConfigError` where it can't classify into these classes or there is no test data, `CheckpointError` for features
        of another width.
        """
        if getattr(self.config, "multi_label", False):
            return self.module.measured_again(self.config, out)
        photos = test_photos(self)
        refuse_overwriting([out / name for name in evaluation.FILES], photos.test.paths if photos else ())
        data, scores, names = scored(self, self.source(), photos)
        return evaluation.write_evaluation(out, scores, data.test_labels, names, data.test_photos, self.marks())

    @staticmethod
    def files() -> tuple[str, ...]:
        """Metrics, tables and pictures of the classes, predictions, the challenge's file."""
        return evaluation.FILES

    @staticmethod
    def write_predictions(predictions: predicted.Predictions, path: str) -> None:
        """Writes them in the format of the ending."""
        predicted.write_predictions(predictions, path)

    @staticmethod
    def show(predictions: predicted.Predictions) -> str:
        """A table of photos and their best classes."""
        return predicted.show(predictions)

    @staticmethod
    def rightness(predictions: predicted.Predictions, split: splits.Split, rows: np.ndarray) -> str:
        """The accuracy, where all classes are known."""
        if not (split.labels >= 0).all():
            return ""
        return f"top-1 {metrics.top_k(predictions.scores, split.labels[rows]):.4f} of these photos"

    @staticmethod
    def write_scored(folder: Path, scored: scored_photos.ScoredPhotos, marks: Mapping[str, float]) -> dict[str, float]:
        """What `write_evaluation` writes. Raises `ConfigError` where a file would take the place of a photo."""
        refuse_overwriting([folder / name for name in evaluation.FILES], scored.photos)
        return evaluation.write_evaluation(
            folder, scored.scores, scored.targets, scored.classnames, scored.photos, marks
        )

    @staticmethod
    def run_table(metrics: Mapping[str, float]) -> str:
        """Accuracies, zero-shot beside adapted, then the other figures."""
        return report(metrics)

    @staticmethod
    def eval_table(metrics: Mapping[str, float]) -> str:
        """The accuracy, and five other figures."""
        if "map" in metrics:  # of photos of several classes each
            return f"mAP {100 * metrics['map']:.2f} of {metrics['count']} photos"
        others = ", ".join(f"{k} {metrics[k]:.4f}" for k in ("top5", "mean_per_class", "macro_f1", "ece", "nll"))
        return f"{report({k if k == SELECTED_ON_TEST else f'test_{k}': v for k, v in metrics.items()})}\n{others}"

    @staticmethod
    def comparison(results: Mapping[str, Mapping[str, float]]) -> str:
        """Zero-shot of the first, then each run, on validation and test photos. Raises `ConfigError`."""
        return accuracies_of_runs(results)


def test_photos(done: Classifier, whole: bool = False) -> splits.PhotoData | None:
    """The test photos of the run's config, or with `whole` all photos of a set that has no test part; None of recorded
    features.

    Raises `ConfigError` where there is nothing to measure on.
    """
    if whole:  # nothing is learned: a set's photos stay whole
        data = replace(done.config.data, shots=0, val_shots=0, pool=0)
        photos = run_data.run_photos(replace(done.config, data=data))
    else:
        photos = done.photos()
    if photos is None:
        return None
    test = photos.train if whole and not len(photos.test) else photos.test
    if not len(test):
        raise ConfigError(
            "there are no test photos to measure on: set data.root to a folder that has test/<class>, or data.test to a list"
        )
    return replace(photos, train=splits.Split(), val=splits.Split(), test=test)


def test_features(
    done: Classifier, source: sources.ModelSource | None, photos: splits.PhotoData | None, normalise: bool
) -> precomputed.FeatureSet:
    """Test features of the config's data with the text of its classes. Raises `ConfigError` where there are none."""
    data = run_data.run_features(done.config, source, photos, training=None, normalise=normalise)
    if not len(data.test):
        raise ConfigError("there is no test data to measure on: set data.test")
    return data


def scored(
    done: Classifier, source: sources.ModelSource | None, photos: splits.PhotoData | None
) -> tuple[precomputed.FeatureSet, np.ndarray, tuple[str, ...]]:
    """Test features of the config's data, their scores (N, C), and the names of the C classes.

    Raises `ConfigError` for classes that the run has not, `CheckpointError` for features of another width.
    """
    data = test_features(done, source, photos, done.normalised)
    done.check_width(data.test.shape[1], done.config.data.features or done.model)
    recorded = None if data.text is None else heads.ZeroShotHead(data.text, data.scale)
    there = done.telling_apart(data.classnames, source or recorded)
    scores = there.scorer()(data.test)
    if data.classes > scores.shape[1]:
        raise ConfigError(f"the data must have the run's {scores.shape[1]} classes, got {data.classes}")
    return data, scores, there.classnames or tuple(str(i) for i in range(scores.shape[1]))
