"""`jclip challenge`: the few-shot challenge of Jittor in one command, from photos to the file that is handed in."""

from __future__ import annotations

from pathlib import Path

from jclip.commands import challenge_submission
from jclip.commands.arguments import Parser, add_shared
from jclip.commands.challenge_steps import UNTIL, Config, Pipeline
from jclip.config import build, load_values
from jclip.train.configs import find_config


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
    p.add_argument("--until", choices=UNTIL, default="results", help="the last step (default: results, all steps)")
    args = p.parse_intermixed_args(argv)
    path = find_config(next((a for a in args.arguments if "=" not in a), "challenge.yaml"))
    cfg = build(Config, load_values(path, [a for a in args.arguments if "=" in a]), str(path))
    work = Pipeline(cfg, Path(args.runs).absolute() / "challenge", str(path))
    work.check()
    best = work.tune()
    if args.until != "tune":
        members = work.train(best)
        if args.until == "results":
            challenge_submission.submit(work, members)
    return 0
