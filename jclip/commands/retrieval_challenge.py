"""`jclip challenge` with `task: retrieve`: its steps in order, its plan, and the file that is handed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jclip.commands import retrieval_steps
from jclip.config import build, to_json, to_values
from jclip.data import chinese_clip
from jclip.errors import counted, say
from jclip.features import photo_search
from jclip.features import source as sources
from jclip.functional import ranking_metrics
from jclip.paths import write_together
from jclip.report import predictions, ranked_results
from jclip.train import run_facts

STEPS = ("fill", "tune", "results")
FLAGGED = "depends on the other queries"


def run(
    values: dict[str, Any], place: str, folder: Path, until: str, dry_run: bool, overrides: Sequence[str] = ()
) -> None:
    """The retrieval challenge of a YAML's `values` up to the step `until`, its runs below `folder`. overrides:
    `key=value` settings that `values` has already."""
    work = retrieval_steps.Pipeline(build(retrieval_steps.Config, values, place), folder, place, overrides)
    work.check()
    if dry_run:
        say(plan(work))
        return
    filled = work.fill()
    say(f"training captions: {filled}")
    if until == "fill":
        return
    source = work.tune()
    if until == "results":
        answer(work, source)


def plan(work: retrieval_steps.Pipeline) -> str:
    """The steps as a table: what each is of, where it stands, and whether it is done."""
    filled, tuned = work.filled_folder(), work.tuned_folder() if work.cfg.tune else None
    tried = len(work.rules) + len(work.methods) * len(work.cfg.flips)
    rows = [
        ["fill", counted(len(work.train_photos), "photo"), str(filled), _done(filled / retrieval_steps.TRAINING)],
        ["tune", work.cfg.model, str(tuned or "-"), _done(tuned / "result.json") if tuned else ""],
        ["choose", f"{tried} ways, {len(work.val.texts)} queries, {len(work.val.photos)} photos", "", ""],
        ["results", f"{len(work.test.texts)} queries, {len(work.test.photos)} photos",
         str(Path(work.cfg.out, retrieval_steps.RESULTS)), ""],
    ]  # fmt: skip
    return predictions.table(["step", "of", "where", ""], rows)


def _done(file: Path) -> str:
    return "done" if file.is_file() else "to do"


def answer(work: retrieval_steps.Pipeline, source: sources.ModelSource) -> None:
    """Chooses on validation, answers the test queries, writes the files and shows all figures."""
    tried, taken = work.choose(source)
    features = photo_search.SearchFeatures(source, work.test, work.bank, work.cfg.data.on_error)
    found = features.found(taken.how)
    figures = {"val": dict(taken.figures)}
    if work.test.wanted is not None:
        figures["test"] = ranking_metrics.front_report(found, work.test.wanted)
    files = write(work, taken, tried, found, figures)
    say(shown(tried, taken))
    for part, of_part in figures.items():
        said = ", ".join(f"{title} {of_part[key]:.4f}" for key, title in retrieval_steps.FIGURES.items())
        say(f"{part}: {said}{' (' + FLAGGED + ')' if taken.how.uses_other_queries else ''}")
    say(f"written: {', '.join(map(str, files))} ({len(found)} queries, {counted(len(work.test.photos), 'photo')})")


def shown(tried: Sequence[retrieval_steps.Trial], taken: retrieval_steps.Trial) -> str:
    """A table of what was tried on validation."""
    rows = []
    for trial in tried:
        marks = [FLAGGED] * trial.how.uses_other_queries + ["taken"] * (trial is taken)
        figures = [f"{trial.figures[key]:.4f}" for key in retrieval_steps.FIGURES]
        rows.append([trial.step, trial.name, *figures, ", ".join(marks)])
    return predictions.table(["on validation", "", *retrieval_steps.FIGURES.values(), ""], rows)


def write(
    work: retrieval_steps.Pipeline,
    taken: retrieval_steps.Trial,
    tried: Sequence[retrieval_steps.Trial],
    found: Sequence[Sequence[str]],
    figures: Mapping[str, Any],
) -> list[Path]:
    """What is handed in, what it was made of, and, where queries have ids, Chinese-CLIP's predictions."""
    flag, texts, out = taken.how.uses_other_queries, work.test.texts, Path(work.cfg.out)
    order = list(range(len(texts)))
    if work.cfg.order == "kinds":
        rules = next(iter(work.rules.values()))
        kinds = [rule.kind for rule in rules.rules]
        order.sort(key=lambda i: kinds.index(rules.kind_of(texts[i])))
    results = ranked_results.results_bytes([texts[i] for i in order], [found[i] for i in order], flag)
    trials = [
        {"step": t.step, "name": t.name, **t.figures, ranked_results.FLAG: t.how.uses_other_queries} for t in tried
    ]
    runs = {"filled": str(work.filled_folder()), "tuned": str(work.tuned_folder()) if work.cfg.tune else None}
    chosen = {"rules": taken_rules(work, taken), "rerank": _settings(taken), "flips": taken.how.flips}
    facts = {"figures": figures, ranked_results.FLAG: flag, "chosen": chosen, "tried": trials, "runs": runs,
             "config": to_values(work.cfg), "provenance": run_facts.provenance()}  # fmt: skip
    files = {
        retrieval_steps.RESULTS: results,
        retrieval_steps.NOTES: (to_json(facts, indent=1) + "\n").encode("utf-8"),
    }
    if work.test.ids:
        files[retrieval_steps.PREDICTIONS] = chinese_clip.prediction_bytes(dict(zip(work.test.ids, found, strict=True)))
    write_together(out, files, stale=[] if work.test.ids else [retrieval_steps.PREDICTIONS])
    return [out / name for name in files]


def taken_rules(work: retrieval_steps.Pipeline, taken: retrieval_steps.Trial) -> str:
    """The name of the rules that were taken."""
    return next(name for name, rules in work.rules.items() if rules == taken.how.rules)


def _settings(taken: retrieval_steps.Trial) -> dict[str, Any]:
    kind = next(kind for kind, of in retrieval_steps.reranking.METHODS.items() if isinstance(taken.how.method, of))
    return {"kind": kind, **asdict(taken.how.method)}
