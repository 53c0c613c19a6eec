"""`jclip challenge`: a whole challenge in one command, from photos to the file that is handed in."""

from __future__ import annotations

from pathlib import Path

from jclip.commands import challenge_submission, multi_label_challenge, retrieval_challenge
from jclip.commands.arguments import Parser, add_shared
from jclip.config import load_values
from jclip.errors import UnknownName, quoted
from jclip.train.configs import find_config

TASKS = {  # `task` of the YAML → the module that has STEPS and `run`
    "classify": challenge_submission,
    "multi_label": multi_label_challenge,
    "retrieve": retrieval_challenge,
}


def challenge(argv: list[str]) -> int:
    """Runs the challenge of a YAML: the few-shot one of Jittor (docs/challenge.md), photos of several things each from class
    names alone (task: multi_label, docs/multi_label.md), or photos found by sentences (task: retrieve, docs/retrieval.md).
    What was interrupted continues where it stopped."""
    p = Parser("jclip challenge", description=challenge.__doc__)
    p.add_argument(
        "arguments",
        nargs="*",
        metavar="CONFIG|key=value",
        help="a YAML (default: configs/challenge.yaml), and settings that override it",
    )
    add_shared(p, "--runs")
    p.add_argument("--until", metavar="STEP", help="the last step (default: all steps, which --dry-run lists)")
    add_shared(p, "--dry-run")
    args = p.parse_intermixed_args(argv)
    path = find_config(next((a for a in args.arguments if "=" not in a), "challenge.yaml"))
    overrides = [a for a in args.arguments if "=" in a]
    values = load_values(path, overrides)
    task = values.pop("task", "classify")
    if not isinstance(task, str) or task not in TASKS:
        raise UnknownName("task of a challenge", task if isinstance(task, str) else quoted(task), TASKS)
    steps = TASKS[task].STEPS
    if args.until is not None and args.until not in steps:
        raise UnknownName("step for --until", args.until, steps)
    folder = Path(args.runs).absolute() / "challenge"
    TASKS[task].run(values, str(path), folder, args.until or steps[-1], args.dry_run, overrides)
    return 0
