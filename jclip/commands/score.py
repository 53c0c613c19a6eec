"""`jclip score`: photos scored by runs of several labels, whole and in windows, into score files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jclip.choices import FUSION_FORMS, WINDOW_FITS, WINDOW_MODES
from jclip.commands import shared_parts
from jclip.commands.arguments import Parser, add_shared, nonempty, number, scales, whole
from jclip.data import splits
from jclip.errors import ConfigError, DataError, say
from jclip.features import window_scores
from jclip.functional import window_fusion
from jclip.paths import is_file, refuse_overwriting
from jclip.report import ensemble_files, score_files, window_files

LISTS = (".txt", ".lst")
SCALES = (2, 3, 4)
ENSEMBLE = "ensemble.npz"


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip score", description=description)
    p.add_argument("photos", nargs="+", metavar="PHOTO|LIST", help="photos, folders, and .txt lists of one a line")
    add_shared(
        p, "--run", " of a recipe of several labels, or NAME=FOLDER; repeat it for more, which share the encoder's passes",
        dest="runs", action="append",
    )  # fmt: skip
    p.add_argument(
        "--root", type=nonempty, metavar="FOLDER", help="what lists are relative to (default: the list's folder)"
    )
    add_windows(p.add_argument_group("windows"))
    add_scores(p.add_argument_group("scores, ensembles"))
    shared_parts.add_options(p)
    out = "results/scores"
    add_shared(p, "--out", f": a folder of score files, which `jclip measure` reads (default: {out})", default=out)
    return p


def add_windows(p: argparse._ArgumentGroup) -> None:
    """Which windows of a photo are scored, and how they become one score."""
    p.add_argument(
        "--windows", choices=WINDOW_MODES, default="even",
        help="none, even, the published seed, or dense: of one large map, faster and approximate (default: even)",
    )  # fmt: skip
    p.add_argument(
        "--scales", type=scales, metavar="2,3,4", help="windows of 1/2, 1/3, 1/4 of the sides (default: 2,3,4)"
    )
    p.add_argument("--shapes", choices=("all", "unit"), default="all", help="shapes of windows (default: all)")
    p.add_argument(
        "--window-resize", choices=WINDOW_FITS, default="squash", help="to the model's size (default: squash)"
    )
    p.add_argument(
        "--window-batch",
        type=whole(1, 65_536),
        metavar="N",
        help="windows per encoder pass (default: 64, or JCLIP_BATCH)",
    )
    p.add_argument(
        "--fuse", choices=FUSION_FORMS, default="sim_var", help="how windows become one score (default: sim_var)"
    )
    p.add_argument(
        "--theta",
        type=number(-1e6, 1e6),
        default=0.2,
        metavar="X",
        help="a class takes its highest window where that exceeds X, else its lowest (default: 0.2)",
    )
    p.add_argument(
        "--kappa", type=number(0, 1e6), default=1.5, metavar="X", help="whole photo + X windows (default: 1.5)"
    )


def add_scores(p: argparse._ArgumentGroup) -> None:
    """What becomes of global and local scores, and of several runs' together."""
    p.add_argument(
        "--local-weight", type=number(0, 1e6), metavar="X",
        help="global + X local scores (default: as the run merges them)",
    )  # fmt: skip
    p.add_argument(
        "--caption-statistics", type=nonempty, metavar="FILE", action="append", default=[],
        help="modulate by which classes these captions name together (as `jclip captions label` writes them), not those that a "
        "run learned; repeat it for more",
    )  # fmt: skip
    p.add_argument(
        "--label-statistics", type=nonempty, metavar="SOURCE",
        help="modulate by which classes these labels of photos have together; every file says so",
    )  # fmt: skip
    p.add_argument(
        "--modulation", type=number(0, 1e3), metavar="X",
        help="of --caption-statistics and --label-statistics: X · the scores of classes that come with one (default: 0.5)",
    )  # fmt: skip
    p.add_argument(
        "--ensemble", type=nonempty, metavar="FILE",
        help="also all runs together, ensemble.npz: a .yaml of the kind (columns, mean, weighted, rank), by runs' and classes' "
        "names",
    )  # fmt: skip
    p.add_argument(
        "--list", type=nonempty, metavar="FILE",
        help="also write the contest's list of the ensemble, or the one run: a .json of a list of numbers for each photo",
    )  # fmt: skip


def score(argv: list[str]) -> int:
    """Scores photos by finished runs, each whole and in windows, and writes a score file for each run. An interrupted
    call resumes, to the same bytes."""
    args = parser(score.__doc__).parse_args(argv)
    files = job_of(args)
    if not shared_parts.helped("score", __name__, argv, args, files).ends:
        return 0
    rule = ensemble_files.read_ensemble(args.ensemble) if args.ensemble else None
    written = files.score()
    parts = together(files, rule) if rule else files.of_runs()[files.runs[0].name]
    if args.list:
        score_files.write_list_in_parts(args.list, parts)
    flagged = files.uses_label_statistics or (rule is not None and rule.uses_label_statistics)
    named = [*written.values(), *([Path(args.out) / ENSEMBLE] if rule else []), *filter(None, [args.list])]
    say(
        f"written: {', '.join(map(str, named))} ({len(files.photos)} photos, {len(files.classnames)} classes"
        f"{'; uses_label_statistics' if flagged else ''})"
    )
    return 0


def job_of(args: argparse.Namespace) -> window_files.WindowFiles:
    """The photos in parts, which several processes may share. Raises `ConfigError` for what does not go together."""
    if not args.runs:
        raise ConfigError("--run must name at least one finished run, got none: --run FOLDER")
    plan = window_scores.WindowPlan(
        args.windows, args.scales or SCALES, args.shapes, args.window_resize, args.window_batch or 0
    )
    weighing = window_files.Weighing(window_fusion.FusionRule(args.fuse, args.theta, args.kappa), args.local_weight)
    statistics = statistics_of(args)
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise ConfigError(f"--out must be a folder, got a file: {args.out}")
    rule = ensemble_files.read_ensemble(args.ensemble) if args.ensemble else None
    check_list(args.list, rule, len(args.runs))
    photos = photos_of(args.photos, args.root)
    refuse_overwriting([args.list], [*photos, *filter(None, [args.ensemble, *filter(is_file, args.photos)])])
    runs = [window_files.read_run(given, weighing) for given in args.runs]
    check_ensemble(rule, runs)
    return window_files.WindowFiles(Path(args.out), runs, photos, plan, statistics)


def statistics_of(args: argparse.Namespace) -> window_files.Statistics:
    """What scores are modulated by. Raises `ConfigError`."""
    source = bool(args.caption_statistics or args.label_statistics)
    if args.modulation is not None and not source:
        raise ConfigError(
            "--modulation is of --caption-statistics or --label-statistics, got neither; a run that was trained with "
            "modulation has its own"
        )
    given = {} if args.modulation is None else {"modulation": args.modulation}
    return window_files.Statistics(tuple(args.caption_statistics), args.label_statistics or "", **given)


def check_list(path: str | None, rule: ensemble_files.EnsembleRule | None, runs: int) -> None:
    """Raises `ConfigError` for a list of several runs that nothing puts together, or with another ending."""
    if path and not path.lower().endswith(".json"):
        raise ConfigError(f"--list is a .json file, got {path}")
    if path and runs > 1 and rule is None:
        raise ConfigError(
            f"--list is of one matrix, got {runs} runs: put them together with --ensemble, or name one run"
        )


def check_ensemble(rule: ensemble_files.EnsembleRule | None, runs: Sequence[window_files.ScoredRun]) -> None:
    """Raises `ConfigError` or `UnknownName`, before the work, for an ensemble of other runs than there are."""
    if rule is None:
        return
    names = [one.name for one in runs]
    if len(names) < 2:
        raise ConfigError("--ensemble needs at least two runs, got one: name more with --run")
    if Path(ENSEMBLE).stem in names:
        raise ConfigError("a run named ensemble would be overwritten by the ensemble: give it another with NAME=FOLDER")
    ensemble_files.check_rule(rule, names, runs[0].run.classnames)


def together(files: window_files.WindowFiles, rule: ensemble_files.EnsembleRule) -> ensemble_files.Parts:
    """The runs' scores as one, part after part, which are written beside them."""
    made, comparable = ensemble_files.together_in_parts(
        files.of_runs(), len(files.photos), files.classnames, rule, files.folder
    )
    flagged = files.uses_label_statistics or rule.uses_label_statistics
    path = files.folder / ENSEMBLE
    score_files.write_scores_in_parts(path, {"scores": made}, files.classnames, files.photos, flagged, comparable)
    return made


def photos_of(places: list[str], root: str | None) -> list[str]:
    """Photos named, below folders, and in lists. Raises `DataError` for what is missing or repeated."""
    found: list[str] = []
    for place in places:
        if Path(place).suffix.lower() in LISTS and is_file(place):
            folder = Path(root) if root else Path(place).parent
            named = [str(folder / name) for name in score_files.read_image_names(Path(place))]
            if missing := [path for path in named if not is_file(path)]:
                raise DataError(
                    f"{place}: {len(missing)} photos are missing (first: {missing[0]}): name their folder with --root"
                )
            found += named
        else:
            found += splits.find_photos([place])
    if len({*found}) < len(found):
        twice = next(path for n, path in enumerate(found) if path in found[:n])
        raise DataError(f"photos must be different, got {twice} twice")
    return found
