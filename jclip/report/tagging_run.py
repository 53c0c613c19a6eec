"""A finished run as what tags photos, each of several classes or of none; what the task `multi_label` does with runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jclip.data import labelled_photos, multi_label
from jclip.data.loader import OnError
from jclip.data.splits import Split
from jclip.errors import ConfigError
from jclip.features import photo_maps, tagging
from jclip.functional import multi_label_metrics
from jclip.paths import refuse_overwriting, write_together
from jclip.report import evaluation, score_files
from jclip.report import predictions as prediction_tables
from jclip.report import tags as tag_files
from jclip.report.finished_run import FinishedRun, unlabelled
from jclip.report.run_table import selected_on_test, shortly
from jclip.report.scoring_run import ScoringRun
from jclip.train import scored_photos

if TYPE_CHECKING:  # help answers before NumPy is imported
    import numpy as np

FILES = ("eval.json", "per_class.csv", "scores.npz")
PARTS = {"global": "whole photo", "local": "places", "merged": "merged"}  # of scores, as tables call them

ROWS = {
    "zero_shot_val_": "val, zero-shot",
    "val_": "val",
    "zero_shot_test_": "test, zero-shot",
    "test_": "test",
    "": "test",
}


@dataclass(frozen=True)
class TaggingRun(ScoringRun):
    """A finished run of the task `multi_label`: scores of photos for classes, several of which may be right."""

    task: ClassVar[str] = "multi_label"

    def scored(self, photos: Sequence[str], on_error: OnError = "stop", label: str = "photos") -> tagging.PhotoScores:
        """Merged scores of the photos that decode, as `jclip tag` takes them."""
        split = unlabelled(photos)
        rows, scores = self.scores_of(split, on_error)
        return tagging.PhotoScores(tuple(split.paths[row] for row in rows), scores, scores[:, :0])

    def scores_of(self, split: Split, on_error: OnError = "stop") -> tuple[np.ndarray, np.ndarray]:
        """Rows (n,) of the photos of `split` that decode, and their merged scores (n, C)."""
        rows, parts = self.parts_of(split, on_error)
        return rows, parts["merged"]

    def parts_of(self, split: Split, on_error: OnError = "stop") -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rows (n,) of the photos of `split` that decode, and their scores (n, C) by part, "merged" among them."""
        import numpy as np

        score, found = self.module.part_scorer(self.learned, self.config), []
        for some, features in photo_maps.maps_in_parts(self._source(), split, on_error, "photos"):
            found.append((some, score(features)))
        rows = np.concatenate([some for some, _ in found])
        parts = {name: np.concatenate([own[name] for _, own in found]) for name in found[0][1]}
        return rows, parts if self.columns is None else {k: v[:, self.columns] for k, v in parts.items()}

    def label(self, split: Split, on_error: OnError = "stop", top: int = 5) -> tuple[tag_files.Tags, np.ndarray]:
        """Tags of the photos of `split` that decode: what scores more than halfway between a photo's least and greatest."""
        rows, scores = self.scores_of(split, on_error)
        return tag_files.Tags(tuple(split.paths[i] for i in rows), self.classnames, scores, top=top), rows

    def own_split(self) -> tuple[FinishedRun, Split]:
        """The test photos of the run's own data. Raises `ConfigError` without any."""
        if not multi_label.has_photos(self.config.data, "test"):
            raise ConfigError("name the photos to label, or set data.test: the run's data has no test photos")
        found = labelled_photos.read_labelled_photos(self.config.data)
        return self.telling_apart(found.classnames, self.source()), found.split

    def check_photos(self) -> None:
        """Raises `ConfigError`: photos of one class each are another task's."""
        raise self.refusal("measured on photos of one class each")

    def measure(self, out: Path) -> dict[str, float]:
        """Mean average precision on the test photos of the run's config; writes `files` into `out`.

        Raises `ConfigError` where there are no test photos, or for classes that the run does not have.
        """
        if not multi_label.has_photos(self.config.data, "test"):
            raise ConfigError("there are no test photos to measure on: set data.test to a list, and data.classes")
        found = labelled_photos.read_labelled_photos(self.config.data)
        refuse_overwriting([out / name for name in FILES], found.paths)
        there = self.telling_apart(found.classnames, self.source())
        rows, parts = there.parts_of(found.split, self.config.data.on_error)
        photos = tuple(found.paths[row] for row in rows)
        scored = scored_photos.ScoredInParts(parts["merged"], found.targets[rows], there.classnames, photos, parts)
        return self.write_scored(out, scored, self.marks())

    @staticmethod
    def files() -> tuple[str, ...]:
        """Metrics, average precision of each class, and the scores, which `jclip measure` reads."""
        return FILES

    @staticmethod
    def write_predictions(predictions: tag_files.Tags, path: str) -> None:
        """Writes them in the format of the ending."""
        tag_files.write_tags(predictions, path)

    @staticmethod
    def show(predictions: tag_files.Tags) -> str:
        """A table of photos and their tags."""
        return tag_files.show_tags(predictions)

    @staticmethod
    def write_scored(folder: Path, scored: scored_photos.ScoredPhotos, marks: Mapping[str, float]) -> dict[str, float]:
        """Mean average precision of each part of the scores, of each class, and the scores."""

        import numpy as np

        targets = np.asarray(scored.targets).astype(np.int8)
        parts = getattr(scored, "parts", None) or {"merged": scored.scores}
        precisions = {
            name: multi_label_metrics.average_precision_per_class(scores, targets) for name, scores in parts.items()
        }
        metrics = {f"map_{name}": multi_label_metrics.mean_over_classes(own) for name, own in precisions.items()}
        metrics |= {"count": len(targets), **marks}
        own = [["" if np.isnan(x) else f"{x:.6f}" for x in column] for column in precisions.values()]
        rows = zip(scored.classnames, (targets == 1).sum(axis=0).tolist(), *own, strict=True)
        table = evaluation.csv_bytes(["class", "n", *(f"ap_{name}" for name in precisions)], rows)
        photos = tuple(scored.photos) or tuple(map(str, range(len(targets))))
        score_files.write_scores(
            folder / "scores.npz", score_files.Scores("scores", dict(parts), tuple(scored.classnames), photos)
        )
        write_together(folder, {"eval.json": evaluation.json_text(metrics).encode(), "per_class.csv": table})
        return metrics

    @staticmethod
    def run_table(metrics: Mapping[str, float]) -> str:
        """mAP by part of the photos and of the scores, then the other figures."""
        parts = [part for part in ROWS if f"{part}map_merged" in metrics]
        shown = {f"{part}map_{name}" for part in parts for name in PARTS}
        rest = [f"{k} {shortly(v)}" for k, v in metrics.items() if k not in shown]
        table = [_table([(ROWS[part], metrics, part) for part in parts])] if parts else []
        return "\n".join(filter(None, [*table, ", ".join(rest), *selected_on_test(metrics)]))

    @staticmethod
    def eval_table(metrics: Mapping[str, float]) -> str:
        """mAP by part of the scores, then the other figures."""
        return TaggingRun.run_table(metrics)

    @staticmethod
    def comparison(results: Mapping[str, Mapping[str, float]]) -> str:
        """A line per run: mAP by part of the scores, on test photos or else val. Raises `ConfigError` where one has none."""
        part = next((p for p in ("test_", "val_") if all(f"{p}map_merged" in m for m in results.values())), None)
        if part is None:
            raise ConfigError(f"runs must share a mAP on val or test, got none in common: {', '.join(results)}")
        return _table([(prediction_tables.marked(Path(name).name, m), m, part) for name, m in results.items()])


def _table(rows: Sequence[tuple[str, Mapping[str, float], str]]) -> str:
    """name, metrics, what stands before their names → a table in percent."""
    cells = [
        [name, *(f"{100 * m[key]:.2f}" if (key := f"{before}map_{part}") in m else "" for part in PARTS)]
        for name, m, before in rows
    ]
    return prediction_tables.table(["mAP", *PARTS.values()], cells)
