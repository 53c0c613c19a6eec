"""Several models' scores as one score file: which models, and who decides which class, as a YAML says by names.

    kind: columns                     # columns, mean, weighted or rank
    base: best                        # of columns: who decides all other classes (default: the first file)
    columns: {ema: [car, train], zema: [person]}
    column_norm: none                 # zscore or rank make columns of different models comparable
    weights: {tai: 0.2, dual: 0.8}    # of weighted (default: equal ones)
    chosen_on_labels: true            # whether labels of photos decided this (default: true for columns)

Imports no Jittor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.label_files import ClassFinder
from jclip.errors import ConfigError, UnknownName, quoted
from jclip.functional import score_ensemble
from jclip.readers.strict_yaml import read_yaml
from jclip.report.score_files import Scores, aligned

KEYS = ("kind", "base", "columns", "column_norm", "weights", "chosen_on_labels")
Parts = Callable[[], Iterable[np.ndarray]]  # matrices (n, C), one after the other
Limits = Mapping[str, tuple[float, float]]  # of each model's whole matrix
ENDINGS = (".npz", ".json", ".txt")  # of score files, which a model's name may leave out


@dataclass(frozen=True)
class EnsembleRule:
    """How score files become one. columns, weights, base: by models' names, which are those of score files without ending.

    chosen_on_labels: whether labels of photos decided it, so that nothing made with it is learned from text alone; None:
    where classes are given to models (columns). Raises `ConfigError` for parts of different kinds.
    """

    kind: score_ensemble.Kind = "mean"
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    base: str = ""
    column_norm: score_ensemble.ColumnNorm = "none"
    chosen_on_labels: bool | None = None

    def __post_init__(self):
        if self.kind not in score_ensemble.KINDS:
            raise UnknownName("kind of ensemble", str(self.kind), score_ensemble.KINDS)
        if self.column_norm not in score_ensemble.COLUMN_NORMS:
            raise UnknownName("column_norm", str(self.column_norm), score_ensemble.COLUMN_NORMS)
        if (self.kind == "columns") != bool(self.columns):
            raise ConfigError(f"an ensemble of the kind columns names the classes of models below columns, and no other "
                              f"does: got kind {self.kind} and {len(self.columns)} models there")  # fmt: skip
        if self.kind != "columns" and (self.base or self.column_norm != "none"):
            raise ConfigError(f"base and column_norm belong to the kind columns, got {self.kind}: leave them out")
        if self.weights and self.kind != "weighted":
            raise ConfigError(f"weights belong to the kind weighted, got {self.kind}: leave them out")

    @property
    def uses_label_statistics(self) -> bool:
        """Whether every output has to say that labels of photos went into it."""
        return self.kind == "columns" if self.chosen_on_labels is None else self.chosen_on_labels


def read_ensemble(path: str | Path) -> EnsembleRule:
    """The rule that a YAML holds, see the module. Raises `ConfigError` with the path and key."""
    return ensemble_rule(read_yaml(Path(path)), str(path))


def ensemble_rule(values: Mapping[str, Any], place: str) -> EnsembleRule:
    """The rule of plain values, as of a group of a config; `place` is named in errors. Raises `ConfigError`."""
    for key in values:
        if key not in KEYS:
            raise UnknownName(f"key in {place}", str(key), KEYS)
    if "kind" not in values:
        raise ConfigError(f"{place}: must have `kind:`, one of {', '.join(score_ensemble.KINDS)}")
    for key in ("kind", "base", "column_norm"):
        if not isinstance(values.get(key, ""), str):
            raise ConfigError(f"{place}, {key}: must be text, got {quoted(values[key], 80)}")
    if not isinstance(values.get("chosen_on_labels"), bool | None):
        raise ConfigError(
            f"{place}, chosen_on_labels: must be true or false, got {quoted(values['chosen_on_labels'], 80)}"
        )
    columns = _group(values, "columns", place)
    for name, classes in columns.items():
        if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
            raise ConfigError(f"{place}, columns.{name}: must be a list of class names, got {quoted(classes, 80)}")
    weights = _group(values, "weights", place)
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise ConfigError(f"{place}, weights.{name}: must be a number, at least 0, got {quoted(weight, 80)}")
    try:
        return EnsembleRule(**{**values, "columns": columns, "weights": weights})
    except ConfigError as e:
        raise ConfigError(f"{place}: {e}") from None


def _group(values: Mapping[str, Any], key: str, place: str) -> Mapping[str, Any]:
    found = values.get(key) or {}
    if not isinstance(found, Mapping):
        raise ConfigError(f"{place}, {key}: must be a group of models' names, got {quoted(found, 80)}")
    return found


def check_rule(rule: EnsembleRule, names: Sequence[str], classnames: Sequence[str]) -> None:
    """Raises what `put_together` would, of models of these names and classes: to be asked before the work."""
    one = np.zeros((1, len(classnames)))
    _together(dict.fromkeys(names, one), classnames, rule)


def put_together(files: Sequence[Scores], rule: EnsembleRule, name: str = "ensemble") -> Scores:
    """Score files of different models as one of that name: photos and classes in the order of the first.

    A model is a file's `name`, with or without its ending. Of each file its `main` scores are taken. The result says
    `uses_label_statistics` where the rule or a file does, and is not `comparable` where columns of different models stand
    side by side as they are. Raises `DataError` for other photos or classes, `UnknownName` for a model or class that is
    none, and `ConfigError` for decisions, models of one name, and a class that two models decide.
    """
    if decided := [scores.name for scores in files if scores.decided]:
        raise ConfigError(f"an ensemble needs scores, got a list of predicted labels: {decided[0]}")
    files = aligned(files)
    names = [scores.name for scores in files]
    if len({*names}) < len(names):
        raise ConfigError(f"score files of an ensemble need different names, got {', '.join(names)}")
    made = _together(dict(zip(names, (scores.main for scores in files), strict=True)), files[0].classnames, rule)
    flagged = rule.uses_label_statistics or any(scores.uses_label_statistics for scores in files)
    comparable = made.comparable and (
        rule.kind == "rank" or rule.column_norm != "none" or all(s.comparable for s in files)
    )
    return Scores(
        name, {"scores": made.scores}, files[0].classnames, next((s.photos for s in files if s.photos), ()),
        uses_label_statistics=flagged, comparable=comparable,
    )  # fmt: skip


def together_in_parts(
    parts: Mapping[str, Parts], photos: int, classnames: Sequence[str], rule: EnsembleRule, folder: Path | None = None
) -> tuple[Parts, bool]:
    """Scores of models that come part after part as those of the ensemble, likewise; and whether they are comparable.

    parts: by model, each time a function that gives float64 matrices (n, C) with the same photos, of `photos` in all. In
    memory is a part of each model; ranks and column norms take whole columns, which lie in a temporary file of `folder`.
    """
    shape = photos, len(classnames)
    if rule.kind == "rank":
        ranked = {name: _by_columns(own, shape, score_ensemble.column_ranks, folder) for name, own in parts.items()}
        return together_in_parts(ranked, photos, classnames, EnsembleRule("mean"))[0], True
    limits = {name: _limits(own) for name, own in parts.items()} if rule.kind == "weighted" else None
    plain = replace(rule, column_norm="none")

    def rows() -> Iterator[np.ndarray]:
        for some in zip(*(own() for own in parts.values()), strict=True):
            yield _together(dict(zip(parts, some, strict=True)), classnames, plain, limits).scores

    if rule.column_norm == "none":
        return rows, rule.kind != "columns"
    norm = score_ensemble.standardised if rule.column_norm == "zscore" else score_ensemble.column_ranks
    return _by_columns(rows, shape, norm, folder), True


def _limits(parts: Parts) -> tuple[float, float]:
    found = [(float(part.min()), float(part.max())) for part in parts()]
    return min(low for low, _ in found), max(high for _, high in found)


def _by_columns(
    parts: Parts, shape: tuple[int, int], norm: Callable[[np.ndarray], np.ndarray], folder: Path | None
) -> Parts:
    """What `norm` makes of each whole column, in parts of as many rows as came."""
    with tempfile.TemporaryFile(dir=folder) as file:  # which stays as long as the map of it
        matrix = np.memmap(file, np.float64, "w+", shape=shape, order="F")
    sizes = []
    for part in parts():
        start = sum(sizes)
        matrix[start : start + len(part)] = part
        sizes.append(len(part))
    for c in range(shape[1]):
        matrix[:, [c]] = norm(np.array(matrix[:, [c]]))

    def rows() -> Iterator[np.ndarray]:
        start = 0
        for size in sizes:
            yield np.array(matrix[start : start + size])
            start += size

    return rows


def _together(
    matrices: Mapping[str, np.ndarray], classnames: Sequence[str], rule: EnsembleRule, limits: Limits | None = None
) -> score_ensemble.Ensemble:
    names = [*matrices]
    if rule.kind == "columns":
        finder, base = ClassFinder(classnames), model_among(rule.base, names) if rule.base else names[0]
        columns: dict[str, list[str]] = {}
        for given, classes in rule.columns.items():
            own = columns.setdefault(model_among(given, names), [])
            own += [classnames[finder.find(one, f"columns.{given}")] for one in classes]
        ordered = {base: matrices[base], **matrices}
        return score_ensemble.by_columns(ordered, classnames, columns, rule.column_norm)
    if rule.kind == "weighted":
        given = {model_among(model, names): weight for model, weight in rule.weights.items()}
        if missing := [model for model in names if given and model not in given]:
            raise ConfigError(f"weights must name every model, got none of {missing[0]} (0 leaves it out)")
        return score_ensemble.weighted(matrices, [given.get(model, 1 / len(names)) for model in names], limits)
    return score_ensemble.mean(matrices) if rule.kind == "mean" else score_ensemble.rank_mean(matrices)


def model_among(given: str, names: Sequence[str]) -> str:
    """The one of `names` that is meant, spelled as it is or without its ending. Raises `UnknownName`."""
    if given in names:
        return given
    short = [name for name in names if _short(name) == given]
    if len(short) != 1:
        raise UnknownName("model of an ensemble", given, [_short(name) for name in names])
    return short[0]


def _short(name: str) -> str:
    return next((name.removesuffix(end) for end in ENDINGS if name.lower().endswith(end)), name)
