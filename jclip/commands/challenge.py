"""`jclip challenge`: the few-shot challenge of Jittor in one command, from photos to the file that is handed in."""

from __future__ import annotations

from pathlib import Path

from jclip.commands import challenge_submission, retrieval_challenge
from jclip.commands.arguments import Parser, add_shared
from jclip.commands.challenge_steps import UNTIL, Config, Pipeline
from jclip.config import build, load_values
from jclip.train.configs import find_config

TASKS = {"retrieve": retrieval_challenge}  # `task` of the YAML → the module that has STEPS and `run`


def challenge(argv: list[str]) -> int:
    """Runs the few-shot challenge of a YAML: tunes, fuses and labels. A run that was interrupted continues where it
    stopped. docs/challenge.md walks through it."""
    p = Parser("jclip challenge", description=challenge.__doc__)
    p.add_argument(
        "arguments",
        nargs="*",
        metavar="CONFIG|key=value",
        help="a YAML (default: configs/challenge.yaml), and settings that override it",
    )
    add_shared(p, "--runs")
    p.add_argument(
        "--until", choices=(*UNTIL, "fill"), default="results", help="the last step (default: results, all steps)"
    )
    add_shared(p, "--dry-run")
    args = p.parse_intermixed_args(argv)
    path = find_config(next((a for a in args.arguments if "=" not in a), "challenge.yaml"))
    values = load_values(path, [a for a in args.arguments if "=" in a])
    if (task := values.pop("task", "classify")) in TASKS:
        folder = Path(args.runs).absolute() / "challenge"
        TASKS[task].run(values, str(path), folder, args.until, args.dry_run)
        return 0
    cfg = build(Config, values, str(path))
    work = Pipeline(cfg, Path(args.runs).absolute() / "challenge", str(path))
    work.check()
    best = work.tune()
    if args.until != "tune":
        members = work.train(best)
        if args.until == "results":
            challenge_submission.submit(work, members)
    return 0
