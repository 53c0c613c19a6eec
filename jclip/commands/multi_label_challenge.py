"""`jclip challenge` with `task: multi_label`: class names in, a list of scores for each photo out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jclip.commands import multi_label_result, multi_label_settings, multi_label_steps
from jclip.config import build, to_json, to_values
from jclip.errors import ConfigError, say
from jclip.paths import file_sha256, refuse_overwriting, replacing
from jclip.report import evaluation, predictions, score_files
from jclip.report import tags as tag_files
from jclip.train.configs import files_named_in
from jclip.train.run_facts import provenance

STEPS = ("captions", "models", "scores", "result")
FILES = ("result.json", "scores.npz", "tags.csv", "parts.csv", "report.json")


def run(
    values: dict[str, Any], place: str, folder: Path, until: str, dry_run: bool, overrides: Sequence[str] = ()
) -> None:
    """The challenge of a YAML's `values` up to the step `until`, its captions, runs and scores below `folder`.

    overrides: `key=value` settings that `values` has already.
    """
    cfg = build(multi_label_settings.Config, multi_label_settings.with_places(values, place), place)
    work = multi_label_steps.Contest(cfg, folder, place, overrides)
    work.check()
    files = files_of(cfg)
    refuse_overwriting(files, [*files_named_in(to_values(cfg)), *work.photos["test"].paths])
    if dry_run:
        say(predictions.table(["step", "of", "folder", ""], work.plan()))
        return
    if until != "captions":
        work.check_models()
    captions = work.captions()
    if until == "captions":
        say(f"captions: {captions}")
        return
    runs = work.train()
    if until == "models":
        say(predictions.table(["model", "folder"], [[name, str(one.folder)] for name, one in runs.items()]))
        return
    folders = {part: work.scored(runs, part) for part in work.photos}
    if until == "scores":
        say("\n".join(f"{part} scores: {own}" for part, own in folders.items()))
        return
    result = multi_label_result.Making(work, runs, folders).result()
    facts = {"captions": str(captions), "runs": {name: str(one.folder) for name, one in runs.items()}}
    write(work, result, facts | {"scores": {part: str(own) for part, own in folders.items()}})


def files_of(cfg: multi_label_settings.Config) -> list[Path]:
    """What is written at the end. Raises `ConfigError` where `out` is a file."""
    folder = Path(cfg.out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out must be a folder, got a file: {folder}")
    return [folder / name for name in FILES]


def write(work: multi_label_steps.Contest, result: multi_label_result.Result, facts: dict[str, Any]) -> None:
    """The list that is handed in, the same with names, the table, and how it all was made; shows the table."""
    photos, names = work.photos["test"], work.classnames
    listed, scores, tags, parts, report = files = files_of(work.cfg)
    flagged = result.uses_label_statistics
    made = score_files.Scores(
        "result", {"scores": result.scores}, names, photos.paths, uses_label_statistics=flagged, comparable=result.comparable
    )  # fmt: skip
    score_files.write_scores(listed, made, "seed")
    score_files.write_scores(scores, made)
    check_list(listed, len(photos.paths), len(names))
    if result.comparable and len(names) > 1:
        tag_files.write_tags(tag_files.Tags(photos.paths, names, result.scores), str(tags))
    else:
        tags.unlink(missing_ok=True)  # of another ensemble
    table = [row.cells() for row in result.rows]
    evaluation.write_csv(parts, [*multi_label_result.HEAD[:-1], "note"], table)
    validation = work.photos.get("val")
    chosen_on = (
        None
        if validation is None or not work.cfg.choose
        else {"photos": len(validation.paths), "labels": validation.source}
    )
    with replacing(report) as temporary:
        text = to_json({
            "photos": len(photos.paths), "classes": len(names), "ensemble": result.ensemble, "weights": dict(result.weights),
            "models": {name: asdict(choice) for name, choice in result.choices.items()}, "chosen_on": chosen_on,
            "uses_label_statistics": flagged, "classes_comparable": result.comparable,
            "result_sha256": file_sha256(listed), **facts, "config": to_values(work.cfg), "provenance": provenance(),
        }, indent=1)  # fmt: skip
        temporary.write_text(text + "\n", encoding="utf-8")
    if table:
        say(predictions.table(multi_label_result.HEAD, table))
    else:
        say("there are no labelled photos: nothing is measured, nothing was chosen")
    say("\n".join(notes(work, result)))
    written = ", ".join(str(path) for path in files if path.is_file())
    say(f"written: {written} ({len(photos.paths)} photos, {len(names)} classes)")


def notes(work: multi_label_steps.Contest, result: multi_label_result.Result) -> list[str]:
    """What a reader of the result has to know."""
    lines = [f"result: {result.ensemble} of {', '.join(f'{n} {w:.2f}' for n, w in result.weights.items() if w)}"]
    if result.ensemble == "columns":
        lines[0] = f"result: {next(iter(result.choices))}, whole columns of {', '.join(work.cfg.ensemble.columns)}"
    if result.uses_label_statistics:
        lines.append("uses_label_statistics: lists of which model decides which class are chosen on labels as a rule")
    if not result.comparable:
        lines.append("scores of different classes are not comparable: fit for mAP, not for top-k or one threshold")
    return lines


def check_list(path: Path, photos: int, classes: int) -> None:
    """Reads the list again. Raises `ConfigError` unless it has a row of numbers for each photo."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    if len(rows) != photos or any(len(row) != classes for row in rows):
        raise ConfigError(f"{path} must have {photos} rows of {classes} numbers: it was changed while it was written")
