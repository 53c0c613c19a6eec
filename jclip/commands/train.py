"""`jclip train`: a recipe from a YAML, run to its end."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from jclip.commands.arguments import Parser, add_shared, nonempty, whole
from jclip.errors import ConfigError, say
from jclip.machine import ranks
from jclip.paths import naming
from jclip.report.predictor import write_handed_over
from jclip.report.run_table import memory_lines
from jclip.report.tasks import task_of
from jclip.train import cost_estimate, several_ranks
from jclip.train.configs import (
    default_folder,
    log_of,
    read_config,
    resolved,
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip train", description=train.__doc__)
    p.add_argument(
        "config",
        type=nonempty,
        metavar="CONFIG",
        help="a YAML, or the name of a shipped one (`jclip recipes` lists them)",
    )
    p.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="settings that override the file, such as data.shots=4",
    )
    add_shared(p, "--run", " (default: <recipe>/<config>-<hash> in --runs)")
    add_shared(p, "--runs")
    p.add_argument("--fresh", action="store_true", help="discard what the run's folder holds and start over")
    p.add_argument(
        "--link-run",
        "--link",
        dest="link",
        type=nonempty,
        metavar="NAME",
        help="make NAME a symbolic link to the run's folder once it has finished",
    )
    add_shared(p, "--dry-run", ": measure for half a minute, and print what the whole takes, also by several processes")
    p.add_argument(
        "--ranks",
        type=whole(1, 4096),
        metavar="N",
        help="of --dry-run: processes up to which it is printed (default: 4)",
    )
    return p


def train(argv: list[str]) -> int:
    """Runs a config to its end, continues an interrupted run, or shows a finished result again."""
    args = parser().parse_intermixed_args(argv)
    module, cfg, path = read_config(args.config, args.overrides)
    folder = Path(args.run) if args.run else default_folder(module, cfg, path, args.runs)
    here = ranks.here()

    if args.dry_run:
        ranks.stay_alone()
        if here.first:
            say(plan_of(module, cfg, folder, args.ranks or max(here.size, 4)))
        return 0
    if args.ranks:
        raise ConfigError("--ranks is of --dry-run: start several processes with `mpirun -np N jclip train`")
    if args.link:
        check_link(Path(args.link))
    if here.several:
        several_ranks.check_recipe(module, cfg)

    result, written = finished(module, cfg, folder, args)
    if not here.first:
        return 0
    if args.link:
        point(Path(args.link), folder)
    table = task_of(module).load_predictor().run_table(result["metrics"])
    say("\n".join([table, *memory_lines(result["provenance"].get("peak_mib", {}))]))
    say(f"run: {folder}{' (' + ', '.join(written) + ')' if written else ''}")
    return 0


def finished(module: Any, cfg: Any, folder: Path, args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The run in `folder`, trained to its end unless it was before. Returns its result and the files written now."""
    written: list[str] = []
    options = {"log": log_of(args.config, args.overrides), "adjustable": getattr(module, "ADJUSTABLE", ())}
    with several_ranks.open_run(folder, resolved(module, cfg), fresh=args.fresh, **options) as run:
        result = run.result
        if result is None:
            metrics = module.run(cfg, run)
            with ranks.alone():
                result = run.finish(metrics, lambda result: written.extend(write_handed_over(run, module, result)))
        else:
            say("this run has finished before; --fresh starts over")
            if not (folder / "eval.json").is_file():  # of a sweep
                say(f"`jclip eval {folder}` measures it and writes its tables")
    return result, written


def plan_of(module: Any, cfg: Any, folder: Path, processes: int) -> str:
    """What the recipe would take, measured on its first steps."""
    _, text = cost_estimate.described(module, cfg, folder, processes, write_handed_over)
    return f"{text}\nnothing was trained: repeat without --dry-run to do it"


def point(link: Path, folder: Path) -> None:
    """Makes `link` a relative symbolic link to `folder`, in one move. Raises `ConfigError` where something else stands."""
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
        raise ConfigError(f"{link} must be a link or absent, got a file or folder: choose another name with --link-run")
