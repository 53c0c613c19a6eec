"""What a curriculum would train: the number of trainings of each stage, at least and at most, and their time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jclip.train.curriculum_search import SearchSettings


@dataclass(frozen=True)
class PlannedStage:
    """Trainings of one stage, at least and at most; rows: of the largest of them."""

    name: str
    least: int
    most: int
    rows: int


def planned(mode: str, sizes: Mapping[str, int], settings: SearchSettings) -> list[PlannedStage]:
    """Return the stages of a mode of the recipe `curriculum`: ssa, msa, measure, or all."""
    if mode == "all":
        return [PlannedStage("all rows", 1, 1, sum(sizes.values()))]
    if mode == "measure":
        count = len(sizes) * (1 + settings.folds * (settings.folds > 1))
        return [PlannedStage("measurers", count, count, max(sizes.values()))]
    return plan_curriculum(sizes, settings, mode == "ssa")


def plan_curriculum(sizes: Mapping[str, int], settings: SearchSettings, single: bool = False) -> list[PlannedStage]:
    """Return the stages of SSA (`single`) or MSA over sources of these sizes.

    At least: measurers, the start and its neighbours for each source, where each threshold keeps other rows. At most: every
    threshold. Selections of equal rows are trained on once, so fewer are possible.
    """
    names, whole = [*sizes], sum(sizes.values())
    first = 1 if single else len(names)
    extra = settings.folds * first if settings.folds > 1 else 0
    stages = [PlannedStage("measurers", first + extra, first + extra, max(sizes.values()))]
    near = sum(settings.allows(k) for k in (-1, 0, 1))
    seen = 0
    for name in names[:1] if single else names:
        seen += sizes[name]
        others = 0 if single else len(names) - 1
        stages.append(PlannedStage(name, others + near, others + settings.grid, seen))
    if settings.proxy:
        stages.append(PlannedStage("winner at full length", 1, 1, sizes[names[0]] if single else whole))
    return stages


def plan_rows(
    stages: Sequence[PlannedStage], seconds_per_row: float = 0.0, max_trainings: int | None = None
) -> list[tuple[str, str, str, str]]:
    """Return table rows: stage, trainings at least, at most, hours at most ("" where a row's seconds are unknown)."""
    rows = []
    for stage in stages:
        hours = f"{stage.most * stage.rows * seconds_per_row / 3600:.2f}" if seconds_per_row else ""
        rows.append((stage.name, str(stage.least), str(stage.most), hours))
    least, most = sum(s.least for s in stages), sum(s.most for s in stages)
    if max_trainings is not None:
        least, most = min(least, max_trainings), min(most, max_trainings)
    hours = sum(s.most * s.rows for s in stages) * seconds_per_row / 3600
    return [*rows, ("in all", str(least), str(most), f"{hours:.2f}" if seconds_per_row else "")]
