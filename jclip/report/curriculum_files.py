"""What a curriculum leaves beside its trainings: chosen rows, histograms of reliabilities, the table of its road, its plan."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.box_forms import FORMATS
from jclip.errors import UnknownName
from jclip.functional.box_metrics import reliability_histogram
from jclip.paths import replacing
from jclip.readers.spreadsheet import write_csv_rows
from jclip.report import plots, predictions
from jclip.report.box_row_set import BoxRowSet
from jclip.report.row_sets import RowSet
from jclip.train import curriculum_plan
from jclip.train.curriculum_search import Curriculum, Search, Selection
from jclip.train.curriculum_state import BudgetSpent
from jclip.train.run import read_result

HISTOGRAMS, PICTURE, ROAD = "histograms.json", "histograms.png", "road.csv"
SELECTED = "selected"
COLUMNS = ("source", "measurer", "threshold", "added", "rows", "accuracy", "chosen", "run")
Scores = dict[str, dict[str, np.ndarray]]  # measurer → source → reliabilities


def write_road(run: Any, rows: RowSet, search: Search[int], found: Curriculum[int], dataset: str = "") -> list[str]:
    """Write what the search found into the folder of `run`, and return the files' names.

    road.csv: a line for each accuracy that was measured. histograms.json and .png: reliabilities of each source's rows by
    each measurer. selected: the chosen rows with their reliabilities; of phrases with boxes and a data set also each
    source's file as CLIP-VG names it, and all together.
    """
    scores = scores_of(search, found)
    names = [ROAD, *([HISTOGRAMS, PICTURE] if scores else []), f"{SELECTED}{table_ending(rows)}"]
    named = split_files(rows, found, search, dataset)
    run.expect([*names, *named])
    _drop_others(run.folder, {*names, *named})
    with replacing(run.folder / ROAD) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        write_csv_rows(file, COLUMNS, road(search, found))
    if scores:
        write_histograms(run.folder, scores)
    by_number = {
        measurer: {n: float(r) for name, of in own.items() for n, r in zip(search.sources[name], of, strict=True)}
        for measurer, own in scores.items()
    }
    rows.write(run.folder / names[-1], found.rows, by_number)
    for name, numbers in named.items():
        rows.write(run.folder / name, numbers)
    return [*names, *named]


def _drop_others(folder: Path, names: Collection[str]) -> None:
    """Removes what an earlier choice wrote and this one does not: other thresholds' files, histograms."""
    for place in [*folder.glob("*_train_pseudo*.pth"), folder / HISTOGRAMS, folder / PICTURE]:
        if place.name not in names:
            place.unlink(missing_ok=True)


def scores_of(search: Search[int], found: Curriculum[int]) -> Scores:
    """Reliabilities that the search has, or that its trainings give: of each source by each measurer."""
    single = [stage.source for stage in found.stages] if len(found.stages) == 1 else [*search.sources]
    if found.stages and not found.stages[0].measurer:  # one training on everything
        return {}
    scores: Scores = {}
    for measurer in single:
        for source in single:
            try:
                scores.setdefault(measurer, {})[source] = search.reliability(measurer, source)
            except BudgetSpent:
                continue
    return {measurer: own for measurer, own in scores.items() if own}


def road(search: Search[int], found: Curriculum[int]) -> list[list[Any]]:
    """Lines of road.csv: learning from all rows of each source, then of each stage each measurer and each threshold."""
    lines = [
        _line(search, (name, "", ""), search.whole(name), len(search.sources[name]), accuracy, "")
        for name, accuracy in found.baseline.items()
    ]
    held = Selection({})
    for stage in found.stages:
        if not stage.measurer:  # one training on everything
            lines.append(
                [stage.source, "", "", stage.added, stage.added, _figure(stage.accuracy), 1, found.trained.run]
            )
            continue
        tried = [(stage.measurer, float(h), accuracy) for h, accuracy in stage.tried.items()]
        start = search.settings.start
        tried = [(m, start, a) for m, a in stage.measurers.items() if m != stage.measurer] + tried
        for measurer, threshold, accuracy in tried:
            kept = np.flatnonzero(search.reliability(measurer, stage.source) > threshold)
            chosen = (measurer, threshold) == (stage.measurer, stage.threshold) and stage.used
            named = (stage.source, measurer, f"{threshold:g}")
            lines.append(_line(search, named, held.with_rows(stage.source, kept), len(kept), accuracy, int(chosen)))
        if stage.used:
            kept = np.flatnonzero(search.reliability(stage.measurer, stage.source) > stage.threshold)
            held = held.with_rows(stage.source, kept)
    return lines


def _line(search: Search[int], named: tuple, selection: Selection, added: int, accuracy: Any, chosen: Any) -> list[Any]:
    known = search.state.trainings.get(search.key(selection, not search.settings.proxy))
    run = known.run if known else ""
    return [*named, added, len(search.rows(selection)), _figure(accuracy), chosen, run]


def _figure(accuracy: float | None) -> str:
    return "" if accuracy is None or not np.isfinite(accuracy) else f"{accuracy:.4f}"


def table_ending(rows: RowSet) -> str:
    """The ending of a file of rows with their reliabilities."""
    return ".jsonl" if isinstance(rows, BoxRowSet) else ".csv" if rows.ending in (".npz", ".txt") else rows.ending


def split_files(rows: RowSet, found: Curriculum[int], search: Search[int], dataset: str) -> dict[str, list[int]]:
    """Names of files in the authors' layout → numbers of their rows: `1_unc_train_pseudo_template_0_5.pth` and all of them.

    Empty for rows that are no phrases with boxes, and without a data set.
    """
    if not isinstance(rows, BoxRowSet):
        return {}
    of_rows = {rows.rows[n].dataset for n in found.rows} & {*FORMATS}
    dataset = dataset or (of_rows.pop() if len(of_rows) == 1 else "")
    if not dataset:
        return {}
    if dataset not in FORMATS:
        raise UnknownName("dataset", dataset, FORMATS)
    files = {}
    for place, stage in enumerate((s for s in found.stages if s.used and s.source in search.sources), start=1):
        numbers = [search.sources[stage.source][i] for i in found.kept.get(stage.source, ())]
        files[f"{place}_{dataset}_train_pseudo_{stage.source}_{spelt(stage.threshold)}.pth"] = numbers
    return {**files, f"{dataset}_train_pseudo.pth": [*found.rows]}


def spelt(threshold: float) -> str:
    """0.5 as files' names have it: 0_5."""
    return f"{threshold:.9g}".replace(".", "_") if threshold % 1 else f"{threshold:.0f}_0"


def write_histograms(folder: Path, scores: Scores, bins: int = 1000) -> None:
    """Counts of each measurer's reliabilities of each source in equal bins on (0, 1], zeros apart, as JSON and drawn."""
    found = {
        measurer: {source: _counted(values, bins) for source, values in own.items()} for measurer, own in scores.items()
    }
    with replacing(folder / HISTOGRAMS) as temporary:
        temporary.write_text(json.dumps({"bins": bins, "measurers": found}) + "\n", encoding="utf-8")
    plots.plot_histograms(folder / PICTURE, found)


def _counted(values: np.ndarray, bins: int) -> dict[str, Any]:
    counts, zeros = reliability_histogram(values, bins)
    return {"rows": len(values), "zeros": zeros, "mean": round(float(values.mean()), 6), "counts": counts.tolist()}


def fault_shares(rows: RowSet, kept: Sequence[int], sources: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Of rows with known faults: the shares of clean and of faulty ones that were kept, of the sources they came from."""
    used = {*kept}
    learned = [n for own in sources.values() if used & {*own} for n in own]
    faulty = [n for n in learned if n in rows.faults]
    clean = [n for n in learned if n not in rows.faults]
    if not faulty or not clean:
        return {}
    return {
        "kept_clean": sum(n in used for n in clean) / len(clean), "kept_faulty": sum(n in used for n in faulty) / len(faulty)
    }  # fmt: skip


def plan_text(
    stages: Sequence[curriculum_plan.PlannedStage],
    sizes: Mapping[str, int],
    held: int,
    folder: Path,
    max_trainings: int | None,
    measured: float = 0.0,
) -> str:
    """A table of what would be trained, and what is known of its time. measured: seconds of a row, until a training has
    finished."""
    seconds, done = seconds_per_row(folder)
    seconds = seconds if done else measured
    table = curriculum_plan.plan_rows(stages, seconds, max_trainings)
    rows = ", ".join(f"{name} {count}" for name, count in sizes.items())
    lines = [f"rows: {rows}" + (f"; {held} held out" if held else "")]
    lines.append(predictions.table(["stage", "trainings at least", "at most", "hours at most"], table))
    lines.append(
        f"{done} trainings have finished in {folder}: hours are extrapolated from them"
        if done
        else "hours are extrapolated from the first steps of one training"
    )
    return "\n".join(lines)


def seconds_per_row(folder: Path) -> tuple[float, int]:
    """Seconds of a training for each of its rows, of those that have finished in a run's folder, and how many have."""
    spent, count = [], 0
    for result in sorted(folder.glob("training-*/result.json")):
        found, rows = read_result(result.parent), next(result.parent.glob("rows.*"), None)
        if rows is not None:
            count += 1
            lines = _lines_of(rows)
            spent += [float(found["provenance"].get("seconds", 0.0)) / lines] if lines else []
    return (float(np.median(spent)) if spent else 0.0), count


def _lines_of(path: Path) -> int:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return len(arrays["train_labels_0"])
    return len(path.read_bytes().splitlines())
