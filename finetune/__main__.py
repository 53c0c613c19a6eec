"""`python -m finetune train|sweep|eval|predict|compare|challenge|hold-out|recipes`: the recipes from the command line."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import finetune
from finetune._configs import (
    CHECKOUT_CONFIGS,
    INSTALLED_CONFIGS,
    build_config,
    default_folder,
    files_named_in,
    read_config,
    resolved,
    shipped,
)
from finetune._finished import Classifier, measure, measure_if_cheap, unlabelled
from finetune._sweep import sweep
from finetune._transfer import BASE_TO_NEW_FILES, HALVES, SETS_FILES, base_to_new, means, on_sets
from jclip.arguments import Parser, nonempty, number, whole
from jclip.config import load_values
from jclip.errors import ConfigError, UnknownName, guarded, say
from jclip.paths import exists

if TYPE_CHECKING:  # help answers before NumPy is imported
    from jclip.results import Predictions

__all__ = ["build_config", "main", "read_config", "resolved"]


def train(argv: list[str]) -> int:
    """Runs a config to its end, continues it after a break, or shows a finished result again."""
    p = Parser("jclip train", description=train.__doc__)
    p.add_argument("config", type=nonempty, help="a YAML, or the name of a shipped one (`jclip recipes` lists them)")
    p.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that win over the file, such as data.shots=4"
    )
    p.add_argument(
        "--run", type=nonempty, metavar="FOLDER", help="the run's folder (default: runs/<recipe>/<config>-<hash>)"
    )
    p.add_argument(
        "--runs",
        type=nonempty,
        metavar="FOLDER",
        default="runs",
        help="where folders of that default are (default: runs)",
    )
    p.add_argument("--fresh", action="store_true", help="forget what the folder holds and start over")
    p.add_argument(
        "--link", type=nonempty, metavar="NAME", help="a link to the run's folder, moved there when it has finished"
    )
    args = p.parse_intermixed_args(argv)
    module, cfg, path = read_config(args.config, args.overrides)
    folder = Path(args.run) if args.run else default_folder(module, cfg, path, args.runs)

    if args.link:
        check_link(Path(args.link))

    from jclip.run import Run

    written: list[str] = []
    with Run(folder, resolved(module, cfg), fresh=args.fresh) as run:
        result = run.result
        if result is None:
            result = run.finish(module.run(cfg, run), lambda result: written.extend(measure_if_cheap(run, result)))
        else:
            say("this run has finished before; --fresh starts over")
            if not (folder / "eval.json").is_file():  # of a sweep, or killed here by an earlier version
                written += measure_if_cheap(run, result)
    if args.link:
        point(Path(args.link), folder)
    say("\n".join([report(result["metrics"]), *told_memory(result["provenance"].get("peak_mib", {}))]))
    say(f"run: {folder}{' (' + ', '.join(written) + ')' if written else ''}")
    return 0


def point(link: Path, folder: Path) -> None:
    """Makes `link` a relative symbolic link to `folder`, in one move. Raises `ConfigError` where something else stands."""
    from jclip.paths import naming

    check_link(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary, to = link.with_name(f".{link.name}.part"), os.path.relpath(folder, link.parent)
    if temporary.is_symlink():  # of a process that was killed here
        temporary.unlink(missing_ok=True)
    with naming(link, instead_of=to):
        temporary.symlink_to(to)
        temporary.replace(link)


def check_link(link: Path) -> None:
    """Raises `ConfigError` where something that is no link stands there: to be asked before the work."""
    if os.path.lexists(link) and not link.is_symlink():
        raise ConfigError(f"{link} must be a link or absent, got a file or folder: choose another name with --link")


def compare(argv: list[str]) -> int:
    """One table of finished runs on the same data: zero-shot of the first, then each run."""
    p = Parser("jclip compare", description=compare.__doc__)
    p.add_argument("runs", nargs="+", type=nonempty, metavar="RUN", help="folders of finished runs")
    args = p.parse_args(argv)

    from jclip.results import marked, table
    from jclip.run import read_result

    results = {folder: read_result(folder)["metrics"] for folder in args.runs}
    needed = ("top1", "correct", "count")
    parts = [p for p in ("val", "test") if all(f"{p}_{k}" in m for m in results.values() for k in needed)]
    if not parts:
        raise ConfigError(f"{', '.join(results)} have no accuracy in common")
    first = next(iter(results.values()))
    named = [("zero-shot", "zero_shot_", first)] if f"zero_shot_{parts[0]}_top1" in first else []
    named += [(marked(Path(folder).name, metrics), "", metrics) for folder, metrics in results.items()]
    rows = [[name, *(_accuracy(metrics, f"{prefix}{part}_") for part in parts)] for name, prefix, metrics in named]
    say(table(["top-1", *parts], rows))
    return 0


def report(metrics: dict[str, float]) -> str:
    """A table of accuracies, zero-shot beside adapted, then the other figures."""
    from jclip.results import table

    parts = [part for part in ("val", "test") if f"{part}_top1" in metrics]
    rows = (
        [
            [name, *(_accuracy(metrics, f"{prefix}{part}_") for part in parts)]
            for name, prefix in (("zero-shot", "zero_shot_"), ("this run", ""))
            if f"{prefix}{parts[0]}_top1" in metrics
        ]
        if parts
        else []
    )
    shown = {f"{prefix}{part}_{kind}" for prefix in ("zero_shot_", "") for part in ("val", "test")
             for kind in ("top1", "top5", "mean_per_class", "macro_f1", "ece", "nll", "correct", "count")}  # fmt: skip
    rest = [f"{k} {shortly(v)}" for k, v in metrics.items() if k not in shown]
    text = table(["top-1", *parts], rows) if rows else ""
    return "\n".join(filter(None, [text, ", ".join(rest), *warnings_of(metrics)]))


def told_memory(peak: dict[str, int]) -> list[str]:
    """`peak memory 812 MiB, of the GPU 2048 MiB`, as far as it is known."""
    places = {"host": "", "gpu": "of the GPU "}
    told = ", ".join(f"{places[place]}{mib} MiB" for place, mib in peak.items())
    return [f"peak memory {told}"] if told else []


def shortly(value: float) -> str:
    """Four decimals, of a small number (a learning rate) three digits; whole numbers as they are."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.3g}"


def warnings_of(metrics: dict[str, float]) -> list[str]:
    """What a reader of the accuracies must know."""
    told = []
    if metrics.get("val_top1", 1.0) < metrics.get("zero_shot_val_top1", 0.0):
        told.append("below zero-shot on validation: nothing was gained by adapting")
    return told + selected_on_test(metrics)


def selected_on_test(metrics: dict[str, float]) -> list[str]:
    """The line that every output of such a run has."""
    from jclip.results import SELECTED_ON_TEST

    line = "selected on test: for comparing with papers that did so, not a result"
    return [line] if metrics.get(SELECTED_ON_TEST) else []


def _accuracy(metrics: dict[str, float], prefix: str) -> str:
    top1, correct, count = (metrics[f"{prefix}{what}"] for what in ("top1", "correct", "count"))
    return f"{top1:.4f} ({correct} of {count})"


def evaluate(argv: list[str]) -> int:
    """Measures a finished run on test photos: its own, or others named by data.… settings. Writes eval.json,
    per_class and confusion as .csv and .png, predictions.csv and result.txt into the run's folder."""
    p = Parser("jclip eval", description=evaluate.__doc__)
    p.add_argument("run", type=nonempty, help="the folder of a finished run, or the config that was trained")
    p.add_argument(
        "overrides", nargs="*", metavar="key=value", help="other data, such as data.test=list.txt; model=FILE"
    )
    how = p.add_mutually_exclusive_group()
    how.add_argument(
        "--base-to-new",
        action="store_true",
        help="on the base classes that it learned (data.subset=base) and on the new ones, with their harmonic mean",
    )
    how.add_argument(
        "--on",
        action="append",
        nargs="+",
        metavar="NAME",
        help="on other test sets: NAME data.root=… [templates=…], as often as there are, or a YAML of names with those",
    )
    p.add_argument("--out", type=nonempty, metavar="FOLDER", help="where to write (default: the run's folder)")
    args = p.parse_intermixed_args(argv)
    done = Classifier.load(args.run, args.overrides)
    out = Path(args.out) if args.out else done.folder

    from jclip.evaluation import FILES
    from jclip.run_folder import adding_to

    names = BASE_TO_NEW_FILES if args.base_to_new else SETS_FILES if args.on else FILES
    check_out(done, out, names)
    with adding_to(out, names):
        if args.base_to_new:
            return tell_base_to_new(done, out)
        if args.on:
            return tell_sets(done, args.on, out)
        metrics = measure(done, out)
    return tell_measured(metrics, out)


def check_out(done: Classifier, out: Path, names: Sequence[str]) -> None:
    """Raises `ConfigError` where `eval` would write into another run's folder, or over a file that it reads."""
    from jclip.paths import refuse_overwriting
    from jclip.run_folder import is_run

    if is_run(out) and not out.samefile(done.folder):
        raise ConfigError(f"{out} must not be the folder of another run: choose another with --out")
    refuse_overwriting([out / name for name in names], files_named_in(resolved(done.module, done.config)))


def tell_measured(metrics: dict[str, float], out: Path) -> int:
    """The accuracy, five other figures, and what was written."""
    from jclip.evaluation import FILES
    from jclip.results import SELECTED_ON_TEST

    say(report({k if k == SELECTED_ON_TEST else f"test_{k}": v for k, v in metrics.items()}))
    say(", ".join(f"{k} {metrics[k]:.4f}" for k in ("top5", "mean_per_class", "macro_f1", "ece", "nll")))
    say(f"written: {out}/{', '.join(name for name in FILES if (out / name).is_file())}")
    return 0


def tell_base_to_new(done: Classifier, out: Path) -> int:
    """Base, new and H, zero-shot beside."""
    from jclip.results import table

    metrics = base_to_new(done, out)
    rows = [
        [name, *(_accuracy(metrics, f"{who}{half}_") for half in HALVES), f"{metrics[f'{who}harmonic_mean']:.4f}"]
        for name, who in (("zero-shot", "zero_shot_"), ("this run", ""))
        if f"{who}harmonic_mean" in metrics
    ]
    say("\n".join([table(["top-1", *HALVES, "H"], rows), *selected_on_test(metrics)]))
    say(f"written: {out}/base_to_new.json, base_to_new.csv")
    return 0


def tell_sets(done: Classifier, given: list[list[str]], out: Path) -> int:
    """A line per set, and the means."""
    from jclip.results import table

    told = on_sets(done, given, out)
    rows = [
        [name, str(m["classes"]), *(_accuracy(m, who) if f"{who}top1" in m else "" for who in ("zero_shot_", ""))]
        for name, m in told.items()
    ]
    mean = means(told)
    rows.append(["mean", "", *(f"{mean[k]:.4f}" if k in mean else "" for k in ("zero_shot_top1", "top1"))])
    say("\n".join([table(["top-1", "classes", "zero-shot", "this run"], rows), *selected_on_test(done.marks())]))
    say(f"written: {out}/sets.json, sets.csv")
    return 0


def predict(argv: list[str]) -> int:
    """Labels photos with a finished run and writes the results file; tells the accuracy where labels are known."""
    args = predict_parser().parse_intermixed_args(argv)
    settings = [a for a in args.photos if re.match(r"[a-z_.0-9]+=", a) and not exists(a)]

    from jclip.data.splits import find_photos
    from jclip.functional.metrics import top_k
    from jclip.paths import refuse_overwriting
    from jclip.results import check_format, show, write_predictions
    from jclip.sheet import check_sheet, write_sheet
    from jclip.sorting import check_folder

    check_format(args.out)
    check_sheet(args.sheet)
    if args.sort_into:
        check_folder(Path(args.sort_into))
    done = Classifier.load(args.run, settings, args.model or "")
    places = [a for a in args.photos if a not in settings]
    if not done.model:
        raise ConfigError("this run learned from recorded features: name the model that they are of with --model")
    if places:
        split = unlabelled(find_photos(places))
    else:
        own = done.own_photos()
        split, done = own.test, done.telling_apart(own.classnames, done.source())
    refuse_overwriting([args.out, args.sheet], [*split.paths, *files_of_run(done)])
    predictions, rows = done.label(split, args.on_error or ("skip" if places else "stop"), args.top)
    write_predictions(predictions, args.out)
    say("\n".join([show(predictions), *selected_on_test(done.metrics)]))
    if not places and (split.labels >= 0).all():
        say(f"top-1 {top_k(predictions.scores, split.labels[rows]):.4f} of these photos")
    if args.sheet:
        upright = getattr(done.config.data, "upright", True)
        write_sheet(args.sheet, predictions, split.labels[rows], upright=upright)
    if args.sort_into:
        sort_photos(predictions, args)
    say(f"written: {args.out} ({len(predictions.photos)} photos){f', {args.sheet}' if args.sheet else ''}")
    return 0


def files_of_run(done: Classifier) -> list[str | Path]:
    """The run's own files, and those that its settings name."""
    settings = resolved(done.module, done.config)
    return [*files_named_in(settings), *files_named_in(done.model), *done.folder.iterdir()]


def predict_parser() -> argparse.ArgumentParser:
    """The options of `predict`."""
    p = Parser("jclip predict", description=predict.__doc__)
    p.add_argument("run", type=nonempty, help="the folder of a finished run, or the config that was trained")
    p.add_argument(
        "photos",
        nargs="*",
        metavar="PHOTO|key=value",
        help="photos, folders of photos, and settings of the config; without photos the run's own test photos",
    )
    p.add_argument(
        "--model",
        type=nonempty,
        help="the base model, if the run was made from recorded features or the file has moved",
    )
    p.add_argument("--top", type=whole(1, 1_000_000), default=5, help="classes told per photo (default 5)")
    p.add_argument(
        "--out",
        type=nonempty,
        default="results/result.txt",
        metavar="FILE",
        help=".txt (the Jittor challenge's lines), .csv or .json",
    )
    p.add_argument(
        "--sheet", type=nonempty, metavar="FILE.png", help="also a picture of some of the photos with their classes"
    )
    p.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        help="what to do with photos that do not decode (default: skip and count them; stop at the run's own test photos)",
    )
    p.add_argument(
        "--sort-into", type=nonempty, metavar="FOLDER", help="also put the photos into a folder for each class there"
    )
    how = p.add_mutually_exclusive_group()
    how.add_argument("--copy", dest="how", action="store_const", const="copy", help="--sort-into copies (the default)")
    how.add_argument("--link", dest="how", action="store_const", const="link", help="--sort-into makes links")
    p.add_argument("--unsure", type=number(0, 1), default=0.0, metavar="P", help="below this probability into _unsure")
    p.add_argument("--dry-run", action="store_true", help="--sort-into only tells what it would do")
    return p


def sort_photos(predictions: Predictions, args: argparse.Namespace) -> None:
    """Puts photos into class folders, or tells where they would go."""
    from jclip.results import table
    from jclip.sorting import counts, place, plan

    folder = Path(args.sort_into)
    placed = plan(predictions, folder, args.unsure)
    say(table([f"folder in {folder}", "photos"], counts(placed)))
    if args.dry_run:
        say("nothing was moved: leave --dry-run out to do it")
    else:
        say(f"sorted: {folder}; `jclip unsort {place(placed, folder, args.how or 'copy')}` undoes it")


def recipes(argv: list[str]) -> int:
    """Lists the recipes with the configs that ship."""
    Parser("jclip recipes", description=recipes.__doc__).parse_args(argv)
    folder = CHECKOUT_CONFIGS if CHECKOUT_CONFIGS.is_dir() else INSTALLED_CONFIGS
    for name in finetune.names():
        say(f"{name}: {(finetune.load(name).__doc__ or '').splitlines()[0]}")
        for path in shipped(folder):
            if load_values(path).get("recipe") == name:
                say(f"  {path.relative_to(folder.parent)}")
    return 0


def challenge(argv: list[str]) -> int:
    """As `jclip challenge`."""
    from finetune._challenge import challenge as whole

    return whole(argv)


def hold_out(argv: list[str]) -> int:
    """As `jclip hold-out`."""
    from jclip.hold_out import main as draw

    return draw(argv)


COMMANDS = {
    "train": train,
    "sweep": sweep,
    "eval": evaluate,
    "predict": predict,
    "compare": compare,
    "challenge": challenge,
    "hold-out": hold_out,
    "recipes": recipes,
}


def main(argv: list[str]) -> int:
    """Dispatches to the commands."""
    if not argv or argv[0] in ("-h", "--help"):
        say(f"usage: python -m finetune {'|'.join(COMMANDS)} …  (each with --help)")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        return guarded(lambda: _unknown(argv[0]), "finetune")
    return guarded(lambda: COMMANDS[argv[0]](argv[1:]), f"finetune {argv[0]}")


def _unknown(name: str) -> int:
    raise UnknownName("command", name, COMMANDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
