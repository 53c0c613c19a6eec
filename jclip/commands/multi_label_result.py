"""What the challenge of several labels makes of scores: choices on validation photos, one matrix, and what each part brought.

Nothing is chosen on the photos that the result is of, whether they are labelled or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jclip.commands import multi_label_settings
from jclip.commands.multi_label_steps import UNTRAINED_FILE, WHOLE, Contest
from jclip.data.label_files import ClassFinder
from jclip.functional import multi_label_metrics, score_ensemble, window_fusion
from jclip.report import score_files
from jclip.report.tagging_run import TaggingRun

if TYPE_CHECKING:  # help answers before NumPy is imported
    import numpy as np

HEAD = ("part", "against", "val mAP", "gain", "test mAP", "gain", "")
BY_PART = ("val", "test")
KEPT = "kept"
ALIKE: tuple[multi_label_settings.Kind, ...] = ("best", "mean", "weighted", "rank")


@dataclass(frozen=True)
class Row:
    """A line of the table: mAP by part of the photos, and of the row `against` on the same classes."""

    part: str
    against: str = ""
    means: Mapping[str, float] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def cells(self) -> list[str]:
        """Percent, and gains with their sign."""
        found = []
        for part in BY_PART:
            mean, old = self.means.get(part), self.before.get(part)
            found += ["" if mean is None else f"{100 * mean:.2f}"]
            found += ["" if mean is None or old is None else f"{100 * (mean - old):+.2f}"]
        return [self.part, self.against, *found, self.note]


@dataclass(frozen=True)
class Choice:
    """How a model's scores are made: of windows or of the whole photo, and how its branches are joined."""

    windows: bool
    share: float
    local_weight: float | None = None

    def __call__(self, scores: score_files.Scores) -> np.ndarray:
        """(N, C) of global and local ones."""
        whole, places = scores.parts["global"], scores.parts["local"]
        if self.local_weight is not None:
            return window_fusion.model_scores(whole, places, self.local_weight)
        return window_fusion.merged_scores(whole, places, self.share)

    def label(self) -> str:
        """For the table."""
        if self.local_weight is not None:
            return f"global + {self.local_weight:g} local"
        return f"{self.share:.2f} global + {1 - self.share:.2f} local"


@dataclass(frozen=True)
class Result:
    """Scores (N, C) of the photos, how they were made, and the table."""

    scores: np.ndarray
    comparable: bool
    uses_label_statistics: bool
    ensemble: str
    weights: Mapping[str, float]
    choices: Mapping[str, Choice]
    rows: Sequence[Row]


class Making:
    """The result of a contest whose photos are scored; folders: by part of the photos."""

    def __init__(self, work: Contest, runs: Mapping[str, TaggingRun], folders: Mapping[str, Path]):
        self._work, self._cfg, self._runs, self._folders = work, work.cfg, runs, folders
        self._labelled = [part for part in BY_PART if part in folders and work.photos[part].targets is not None]
        self._cache: dict[tuple[str, str], score_files.Scores] = {}
        self._windows = work.plan_of_windows.mode != "none"

    def result(self) -> Result:
        """Chooses, joins and measures."""
        choices = {name: self._chosen(name) for name in self._cfg.scored}
        matrices = {part: self._matrices(choices, part) for part in self._folders}
        rows = self._rows_of_models(choices)
        candidates = self._candidates(matrices)
        kept = self._kept(candidates, matrices)
        rows += self._rows_of_ensembles(candidates, matrices, kept)
        made = candidates[kept]["test"]
        flagged = kept == "columns" or any(self._scores("test", n).uses_label_statistics for n in choices)
        return Result(made.scores, made.comparable, flagged, kept, self._used(kept, matrices), choices, rows)

    # Models

    def _scores(self, part: str, name: str) -> score_files.Scores:
        if (part, name) not in self._cache:
            self._cache[part, name] = self._work.read_scores(self._folders[part], name)
        return self._cache[part, name]

    def _own(self, name: str) -> list[int] | None:
        """The classes that a model learned, where these are not all."""
        finder = ClassFinder(self._work.classnames)
        return sorted({finder.find(one, name) for one in self._runs[name].config.only}) or None

    def _base(self, name: str) -> str:
        """The model whose scores stand for the classes that `name` has not learned: where it starts from, or the first."""
        full = [one for one in self._cfg.scored if self._own(one) is None]
        parent = self._cfg.parent(name)
        return parent if parent in full else full[0] if full else ""

    def _chosen(self, name: str) -> Choice:
        """What is chosen on validation photos, where there are some; else what the settings say."""
        run = self._runs[name]
        given = Choice(self._windows, float(run.learned["merge"][0]), self._work.weighing(name).local_weight)
        if "val" not in self._folders:
            return given
        found = []
        for windows in (True, False) if self._windows and "windows" in self._cfg.choose else (self._windows,):
            choice = Choice(windows, given.share, given.local_weight)
            if "merge" in self._cfg.choose:
                choice = Choice(windows, self._searched(name, windows))
            found.append((self._mean(choice(self._of(name, windows, "val")), "val", self._own(name)), choice))
        return max(found, key=lambda one: one[0])[1]  # windows, among equals

    def _searched(self, name: str, windows: bool) -> float:
        own, scores = self._own(name), self._of(name, windows, "val")
        columns = slice(None) if own is None else own
        both = (scores.parts[kind][:, columns] for kind in ("global", "local"))
        return score_ensemble.searched_merge(*both, self._work.photos["val"].targets[:, columns])

    def _of(self, name: str, windows: bool, part: str) -> score_files.Scores:
        return self._scores(part, name if windows or not self._windows else f"{name}{WHOLE}")

    def _mean(self, scores: np.ndarray, part: str, own: list[int] | None = None) -> float:
        """mAP, of some classes alone where `own` names them."""
        columns = slice(None) if own is None else own
        targets = self._work.photos[part].targets[:, columns]
        found = multi_label_metrics.average_precision_per_class(scores[:, columns], targets)
        return multi_label_metrics.mean_over_classes(found)

    def _matrices(self, choices: Mapping[str, Choice], part: str) -> dict[str, np.ndarray]:
        """Scores (N, C) of each model; for classes that it has not learned those of its base."""
        found = {name: choice(self._of(name, choice.windows, part)) for name, choice in choices.items()}
        for name in found:
            own, base = self._own(name), self._base(name)
            if own is not None and base and base != name:
                joined = found[base].copy()
                joined[:, own] = found[name][:, own]
                found[name] = joined
        return found

    # Ensembles

    def _candidates(self, matrices: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
        """Ensembles by kind and part: those that may be chosen, else the one of the settings."""
        cfg = self._cfg.ensemble
        kinds = [cfg.kind]
        if "val" in self._folders and "ensemble" in self._cfg.choose:
            kinds = [*ALIKE, *(["columns"] if cfg.columns else [])]
        return {kind: {part: self._joined(kind, own, matrices) for part, own in matrices.items()} for kind in kinds}

    def _joined(
        self, kind: str, own: Mapping[str, np.ndarray], all_parts: Mapping[str, Any]
    ) -> score_ensemble.Ensemble:
        if kind == "columns":
            cfg, finder = self._cfg.ensemble, ClassFinder(self._work.classnames)
            columns = {
                name: [self._work.classnames[finder.find(one, name)] for one in classes]
                for name, classes in cfg.columns.items()
            }
            return score_ensemble.by_columns(own, self._work.classnames, columns, cfg.column_norm)
        if kind == "mean":
            return score_ensemble.mean(own)
        if kind == "rank":
            return score_ensemble.rank_mean(own)
        weights = self._used(kind, all_parts)
        if kind == "best":
            return score_ensemble.Ensemble(own[next(iter(weights))])
        return score_ensemble.weighted(own, [weights.get(name, 0.0) for name in own])

    def _used(self, kind: str, matrices: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
        """Weights of the models in an ensemble; of `best` the one model."""
        names = [*matrices["test"]]
        if kind == "best":
            return {self._best(matrices): 1.0}
        if kind != "weighted":
            return dict.fromkeys(names, 1 / len(names))
        if self._cfg.ensemble.weights:
            return {name: float(self._cfg.ensemble.weights.get(name, 0)) for name in names}
        if "val" in matrices and "ensemble" in self._cfg.choose:
            return score_ensemble.searched_weights(matrices["val"], self._work.photos["val"].targets)
        return dict.fromkeys(names, 1 / len(names))

    def _best(self, matrices: Mapping[str, Mapping[str, np.ndarray]]) -> str:
        """The model that is best on validation photos, the first among equals and where there are none."""
        if "val" not in matrices:
            return next(iter(matrices["test"]))
        return max(matrices["val"], key=lambda name: self._mean(matrices["val"][name], "val"))

    def _kept(self, candidates: Mapping[str, Mapping[str, Any]], matrices: Mapping[str, Any]) -> str:
        """The kind that is kept: of the best mAP on validation photos, the first among equals."""
        if len(candidates) == 1 or "val" not in matrices:
            return next(iter(candidates))
        return max(candidates, key=lambda kind: self._mean(candidates[kind]["val"].scores, "val"))

    # The table

    def _rows_of_models(self, choices: Mapping[str, Choice]) -> list[Row]:
        if not self._labelled:
            return []
        rows, untrained = [], multi_label_settings.UNTRAINED
        kinds = {"whole photo": ("global", False), "places": ("local", False)}
        kinds |= {"places, windows": ("local", True)} if self._windows else {}
        before: Mapping[str, float] = {}
        for label, (branch, windows) in kinds.items():
            means = {
                part: self._mean(self._of(UNTRAINED_FILE, windows, part).parts[branch], part) for part in self._labelled
            }
            rows.append(Row(f"{untrained}, {label}", rows[-1].part if rows else "", means, before))
            before = means
        plain = rows[1]
        for name, choice in choices.items():
            rows += self._rows_of(name, choice, choices, plain)
        return rows

    def _rows_of(self, name: str, choice: Choice, choices: Mapping[str, Choice], plain: Row) -> list[Row]:
        """The model's whole photos against those of its parent or of plain names, then its windows."""
        own, parent = self._own(name), self._base(name) if self._own(name) is not None else self._cfg.parent(name)
        parent = parent if parent in choices and parent != name else ""
        before = self._whole(parent, choices[parent], own) if parent else plain.means if own is None else {}
        against = f"{parent}, whole photos" if parent else plain.part if own is None else ""
        of = f" ({len(own)} classes)" if own is not None else ""
        whole = self._whole(name, choice, own)
        rows = [
            Row(
                f"{name}, whole photos{of}",
                against,
                whole,
                before,
                "" if choice.windows else f"{KEPT}: {choice.label()}",
            )
        ]
        if self._windows:
            means = {part: self._mean(choice(self._of(name, True, part)), part, own) for part in self._labelled}
            note = f"{KEPT}: {choice.label()}" if choice.windows else ""
            rows.append(Row(f"{name}, with windows{of}", rows[0].part, means, whole, note))
        return rows

    def _whole(self, name: str, choice: Choice, own: list[int] | None) -> dict[str, float]:
        return {part: self._mean(choice(self._of(name, False, part)), part, own) for part in self._labelled}

    def _rows_of_ensembles(self, candidates: Mapping[str, Any], matrices: Mapping[str, Any], kept: str) -> list[Row]:
        if not self._labelled:
            return []
        best = self._best(matrices)
        before = {part: self._mean(matrices[part][best], part) for part in self._labelled}
        rows = []
        for kind, made in candidates.items():
            means = {part: self._mean(made[part].scores, part) for part in self._labelled}
            label = f"{kind} of {len(matrices['test'])}" if kind != "best" else f"best: {best}"
            rows.append(Row(f"ensemble, {label}", f"best: {best}", means, before, KEPT if kind == kept else ""))
        return rows
