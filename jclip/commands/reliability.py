"""`jclip reliability`: how well finished runs reproduce the labels of a file, row by row. Imports no Jittor itself."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from jclip.commands import shared_parts
from jclip.commands.arguments import Parser, add_shared, nonempty
from jclip.errors import ConfigError, notice, say
from jclip.paths import is_file, refuse_overwriting
from jclip.report import predictions, row_scores, row_sets
from jclip.report.finished_run import FinishedRun
from jclip.report.predictor import Predictor


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip reliability", description=main.__doc__)
    p.add_argument("runs", nargs="+", type=nonempty, metavar="RUN", help="folders of finished runs, the measurers")
    p.add_argument(
        "file",
        type=nonempty,
        metavar="FILE",
        help="phrases with boxes in any form that `jclip boxes` reads; of classes a list of photos or precomputed features",
    )
    p.add_argument("--root", type=nonempty, metavar="FOLDER", help="the folder of the photos (default: beside FILE)")
    p.add_argument(
        "--above",
        type=thresholds,
        metavar="H[,H]",
        help="also write the rows with a reliability above, by the first RUN: 0.5 or 0.3,0.5",
    )
    add_shared(p, "--out", ", a folder (default: results/reliability/<name of FILE>)")
    shared_parts.add_options(p)
    return p


def thresholds(text: str) -> tuple[float, ...]:
    """The type of `--above`: numbers in [0, 1)."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (-1.0,)
    if not all(0 <= h < 1 for h in found):
        raise argparse.ArgumentTypeError(f"must be numbers in [0, 1), such as 0.3,0.5, got {text[:40]!r}")
    return found


def main(argv: list[str]) -> int:
    """Scores each row of FILE by each RUN: the IoU of the box that it finds, or the probability of the photo's class.
    Writes the rows with their reliabilities and the histograms; started again, it goes on where it was killed."""
    args = parser().parse_args(argv)
    rows, measurers, out, stem = _asked(args)
    parts = row_scores.Reliabilities(rows, measurers, out)
    if not shared_parts.helped("reliability", __name__, argv, args, parts).ends:
        return 0
    above = args.above or ()
    found = row_scores.write_reliabilities(parts, rows, measurers, above, stem)
    report(found, len(rows))
    names = [path.name for path in row_scores.names_of(out, rows, above, stem) if path.is_file()]
    say(f"written: {out}/{', '.join(names)}")
    return 0


def job_of(args: argparse.Namespace) -> row_scores.Reliabilities:
    """The rows in parts, which several processes may share."""
    return row_scores.Reliabilities(*_asked(args)[:3])


def _asked(args: argparse.Namespace) -> tuple[row_sets.RowSet, dict[str, FinishedRun], Path, str]:
    """Rows, measurers, the folder to write and the stem of its files. Raises `ConfigError`."""
    if not is_file(args.file):
        raise ConfigError(f"FILE must be a file of rows, got {args.file}")
    stem = Path(args.file).stem
    out = Path(args.out or Path("results", "reliability", stem))
    measurers = named({place: Predictor.load(place) for place in args.runs})
    rows = rows_for(measurers, args.file, args.root or "")
    refuse_overwriting(row_scores.names_of(out, rows, args.above or (), stem), [args.file])
    return rows, measurers, out, stem


def rows_for(measurers: Mapping[str, FinishedRun], file: str, root: str) -> row_sets.RowSet:
    """The file's rows as the measurers' task has them. Raises `ConfigError` for runs of several tasks, or of another."""
    modules = [done.module for done in measurers.values()]
    kinds = {row_sets.kind_of(module) for module in modules}
    if len(kinds) > 1:
        listed = ", ".join(f"{name} {done.task}" for name, done in measurers.items())
        raise ConfigError(f"runs must be of one task to score the same rows, got {listed}")
    first = next(iter(measurers.values()))
    row_sets.check_kind(file, first)
    return row_sets.row_set(first.module, {Path(file).stem: file}, None if root else first.config, root)


def named(runs: Mapping[str, FinishedRun]) -> dict[str, FinishedRun]:
    """Runs by their folders' names, with the folder above where two are called alike; a curriculum stands for its run."""
    runs = {place: getattr(done, "winner", done) for place, done in runs.items()}
    names = {place: Path(place).resolve() for place in runs}
    twice = Counter(path.name for path in names.values())
    spelt = {
        place: path.name if twice[path.name] == 1 else f"{path.parent.name}/{path.name}"
        for place, path in names.items()
    }
    if len({*spelt.values()}) < len(spelt):
        spelt = {place: str(path) for place, path in names.items()}
    return {spelt[place]: done for place, done in runs.items()}


def report(found: Mapping, count: int) -> None:
    """A line for each measurer; on stderr what a reader must know of it."""
    lines: list[Sequence[str]] = []
    for name, own in found["measurers"].items():
        learned = "not known" if own["learned"] is None else f"{own['learned']} rows"
        shares = [f"{100 * own[k] / count:.1f} %" for k in ("above_0.5", "zeros")]
        lines.append([name, f"{own['mean']:.4f}", *shares, learned])
        if own["learned"] == 0:
            notice(f"{name} learned from none of these rows: its reliabilities are those of another source's measurer")
        elif own["learned"] is None:
            notice(f"{name} does not say what rows it learned from: of labels it never saw, reliability is accuracy")
    say(predictions.table(["measurer", "mean", "above 0.5", "at 0", "learned from"], lines))
    say(f"rows: {count}")
