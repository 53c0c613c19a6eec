"""`jclip eval`: a finished run measured on its own test photos or on others."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jclip.commands.arguments import Parser, add_shared
from jclip.errors import ConfigError, say
from jclip.paths import refuse_overwriting
from jclip.report import predictions
from jclip.report.finished_run import FinishedRun
from jclip.report.predictor import Predictor, measure
from jclip.report.run_table import accuracy_of, selected_on_test
from jclip.report.transfer import BASE_TO_NEW_FILES, HALVES, SETS_FILES, base_to_new, means, on_sets
from jclip.train.configs import files_named_in, resolved
from jclip.train.run_folder import adding_to, is_run, is_shipped


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip eval", description=evaluate.__doc__)
    add_shared(p, "RUN")
    p.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="settings that override the run's: other data, such as data.test=list.txt; model=FILE",
    )
    how = p.add_mutually_exclusive_group()
    how.add_argument(
        "--base-to-new",
        action="store_true",
        help="measure base classes, which it learned (data.subset=base), new classes, and their harmonic mean",
    )
    how.add_argument(
        "--on",
        action="append",
        nargs="+",
        metavar="NAME",
        help="measure another test set: NAME data.root=… [templates=…], once per set, or a YAML with a group per NAME",
    )
    add_shared(p, "--out", ", a folder (default: the run's)")
    return p


def evaluate(argv: list[str]) -> int:
    """Measures a finished run on its own test photos, or on others that data.… settings name. Writes eval.json,
    per_class and confusion as .csv and .png, predictions.csv and result.txt into the run's folder; of a run of image-caption
    pairs eval.json, ranks.csv and predictions.jsonl."""
    args = parser().parse_intermixed_args(argv)
    done = Predictor.load(args.run, args.overrides)
    if not args.out and is_shipped(done.folder):
        raise ConfigError(f"{args.run} ships with jclip: say with --out where to write what is measured")
    out = Path(args.out) if args.out else done.folder

    names = BASE_TO_NEW_FILES if args.base_to_new else SETS_FILES if args.on else done.files()
    check_out(done, out, names)
    with adding_to(out, names):
        if args.base_to_new:
            return report_base_to_new(done, out)
        if args.on:
            return report_sets(done, args.on, out)
        metrics = measure(done, out)
    say(done.eval_table(metrics))
    say(f"written: {out}/{', '.join(name for name in names if (out / name).is_file())}")
    return 0


def check_out(done: FinishedRun, out: Path, names: Sequence[str]) -> None:
    """Raises `ConfigError` where `eval` would write into another run's folder, or over a file that it reads."""
    if is_run(out) and not out.samefile(done.folder):
        raise ConfigError(f"{out} must not be the folder of another run: choose another with --out")
    refuse_overwriting([out / name for name in names], files_named_in(resolved(done.module, done.config)))


def report_base_to_new(done: FinishedRun, out: Path) -> int:
    """Base, new and H, zero-shot beside."""
    metrics = base_to_new(done, out)
    rows = [
        [name, *(accuracy_of(metrics, f"{who}{half}_") for half in HALVES), f"{metrics[f'{who}harmonic_mean']:.4f}"]
        for name, who in (("zero-shot", "zero_shot_"), ("this run", ""))
        if f"{who}harmonic_mean" in metrics
    ]
    say("\n".join([predictions.table(["top-1", *HALVES, "H"], rows), *selected_on_test(metrics)]))
    say(f"written: {out}/base_to_new.json, base_to_new.csv")
    return 0


def report_sets(done: FinishedRun, given: list[list[str]], out: Path) -> int:
    """A line per set, and the means."""
    metrics = on_sets(done, given, out)
    rows = [
        [name, str(m["classes"]), *(accuracy_of(m, who) if f"{who}top1" in m else "" for who in ("zero_shot_", ""))]
        for name, m in metrics.items()
    ]
    mean = means(metrics)
    rows.append(["mean", "", *(f"{mean[k]:.4f}" if k in mean else "" for k in ("zero_shot_top1", "top1"))])
    say(
        "\n".join(
            [predictions.table(["top-1", "classes", "zero-shot", "this run"], rows), *selected_on_test(done.marks())]
        )
    )
    say(f"written: {out}/sets.json, sets.csv")
    return 0
