"""What `jclip measure` finds of scores and labels: rows of metrics, as tables, as JSON and by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jclip.functional.calibration import RULES, Calibration, fitted_thresholds
from jclip.functional.multi_label_metrics import (
    AveragePrecision,
    DecisionReport,
    NoPositive,
    RankingReport,
    Ties,
    above,
    best_k,
    decision_report,
    ranking_report,
)
from jclip.functional.score_ensemble import Ensemble
from jclip.report.predictions import table

DECISIONS = ("CP", "CR", "CF1", "CF1_classwise", "OP", "OR", "OF1")
SAME_PHOTOS = "chosen on the photos that are measured: for comparing, no result"


@dataclass(frozen=True)
class Settings:
    """How average precision and decisions are counted; `groups` are classes whose mAP is measured apart."""

    ap: AveragePrecision = "rank"
    ties: Ties = "stable"
    no_positive: NoPositive = "skip"
    skip_empty: bool = False
    at: tuple[int, ...] = ()
    threshold: float | str | Calibration | None = None  # a number, a rule to fit it by, or one that was fitted before
    quantiles: int | None = None
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """A row: scores of one file's part or of an ensemble. ranking: None of decisions; thresholds (C,) where there are."""

    name: str
    part: str
    ranking: RankingReport | None
    decisions: Mapping[str, DecisionReport]
    thresholds: np.ndarray | None = None
    group_means: Mapping[str, float] = field(default_factory=dict)


def measured(
    name: str, part: str, scores: np.ndarray, targets: np.ndarray, settings: Settings, **kind: bool
) -> Measured:
    """Measures scores (N, C) against labels (N, C) in {1, 0, -1}.

    decided=True: scores are decisions, 0 or 1, and are not ranked. comparable=False: scores of different classes are not
    compared (an ensemble by columns): best-k and a threshold for all classes raise `ConfigError`.
    """
    count: Callable[[np.ndarray], DecisionReport] = lambda predicted: decision_report(  # noqa: E731
        predicted, targets, settings.no_positive, settings.skip_empty
    )
    if kind.get("decided"):
        return Measured(name, part, None, {"as listed": count(scores > 0)})
    ensemble = Ensemble(scores, kind.get("comparable", True))
    ranking = ranking_report(scores, targets, settings.ap, settings.ties, settings.no_positive)
    thresholds = _thresholds(ensemble, targets, settings)
    decisions: dict[str, DecisionReport] = {}
    for k in settings.at:
        decisions[f"best {k}"] = count(best_k(ensemble.compare_classes(), k))
        if thresholds is not None:
            decisions[f"best {k} above threshold"] = count(best_k(scores, k, thresholds))
    if thresholds is not None:
        decisions[_rule_name(settings.threshold, thresholds)] = count(above(scores, thresholds))
    return Measured(name, part, ranking, decisions, thresholds, ranking.means(settings.groups))


def _thresholds(ensemble: Ensemble, targets: np.ndarray, settings: Settings) -> np.ndarray | None:
    given, scores = settings.threshold, ensemble.scores
    if given is None:
        return None
    if isinstance(given, Calibration):
        return given.thresholds
    if given not in ("class_f1", "prevalence"):
        scores = ensemble.compare_classes()
    if isinstance(given, str):
        return fitted_thresholds(scores, targets, given, quantiles=settings.quantiles)
    return fitted_thresholds(scores, targets, "fixed", given)


def _rule_name(given: float | str | Calibration | None, thresholds: np.ndarray) -> str:
    rule = given.rule if isinstance(given, Calibration) else given if given in RULES else "fixed"
    one = f" {thresholds[0]:.4f}" if (thresholds == thresholds[0]).all() else ""
    return f"threshold{one}" if rule == "fixed" else f"{rule}{one}"


def tables(rows: Sequence[Measured]) -> str:
    """mAP of each row, then precision, recall and F1 of its decisions, in percent."""
    groups = [*dict.fromkeys(name for row in rows for name in row.group_means)]
    ranked = [
        [row.name, row.part, percent(row.ranking.mean), *(percent(row.group_means[g]) for g in groups)]
        for row in rows
        if row.ranking
    ]
    decided = [
        [row.name, row.part, rule, *(percent(found.values()[key]) for key in DECISIONS)]
        for row in rows
        for rule, found in row.decisions.items()
    ]
    parts = [table(["scores", "part", "mAP", *(f"mAP {g}" for g in groups)], ranked)] if ranked else []
    parts += [table(["scores", "part", "predicted", *DECISIONS], decided)] if decided else []
    return "\n\n".join(parts)


def percent(value: float) -> str:
    """`86.0784` of .860784; `-` of NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.4f}"


def as_json(rows: Sequence[Measured], classnames: Sequence[str]) -> dict[str, Any]:
    """The rows as values of JSON: fractions; `files` has map_global, map_local, map_merged or map of each, which of a
    single file also stand at the top."""
    files: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.ranking:
            key = f"map_{row.part}" if row.part in ("global", "local", "merged") else "map"
            files.setdefault(row.name, {})[key] = row.ranking.mean
    top = next(iter(files.values())) if len(files) == 1 else {}
    return {**top, "files": files, "rows": [_row_json(row, classnames) for row in rows]}


def _row_json(row: Measured, classnames: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {"scores": row.name, "part": row.part}
    if row.ranking:
        values |= {
            "map": row.ranking.mean,
            "tie_share": float(row.ranking.tie_share.max()),
            "no_positive": [classnames[c] for c in row.ranking.no_positive],
            "no_negative": [classnames[c] for c in row.ranking.no_negative],
            **{f"map_{name}": None if math.isnan(value) else value for name, value in row.group_means.items()},
        }
    if row.thresholds is not None:
        values["thresholds"] = row.thresholds.tolist()
    return {**values, "decisions": {rule: found.values() for rule, found in row.decisions.items()}}


def per_class(row: Measured, targets: np.ndarray, classnames: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Head and rows of a table by class: counts of labels, AP, and of the last decisions precision, recall and F1."""
    head = ["class", "positives", "negatives", "unknown"]
    columns: list[Sequence[Any]] = [classnames, *((targets == state).sum(axis=0).tolist() for state in (1, 0, -1))]
    if row.ranking:
        head += ["ap", "tie_share"]
        columns += [_cells(row.ranking.precisions), _cells(row.ranking.tie_share)]
    if row.thresholds is not None:
        head, columns = [*head, "threshold"], [*columns, row.thresholds.tolist()]
    if row.decisions:
        last = [*row.decisions.values()][-1]
        head += ["precision", "recall", "f1"]
        columns += [_cells(last.precisions), _cells(last.recalls), _cells(last.f1)]
    return head, [list(cells) for cells in zip(*columns, strict=True)]


def _cells(values: np.ndarray) -> list[str]:
    return ["" if math.isnan(value) else f"{value:.6f}" for value in values.tolist()]
