"""`jclip compare`: one table of several finished runs."""

from __future__ import annotations

from pathlib import Path

from jclip.commands.arguments import Parser, nonempty
from jclip.errors import ConfigError, say
from jclip.report import predictions
from jclip.report.run_table import accuracy_of
from jclip.train import run as runs


def compare(argv: list[str]) -> int:
    """Shows finished runs on the same data in one table: zero-shot of the first, then each run."""
    p = Parser("jclip compare", description=compare.__doc__)
    p.add_argument("runs", nargs="+", type=nonempty, metavar="RUN", help="folders of finished runs")
    args = p.parse_args(argv)

    results = {folder: runs.read_result(folder)["metrics"] for folder in args.runs}
    needed = ("top1", "correct", "count")
    parts = [p for p in ("val", "test") if all(f"{p}_{k}" in m for m in results.values() for k in needed)]
    if not parts:
        raise ConfigError(f"runs must share an accuracy on val or test, got none in common: {', '.join(results)}")
    first = next(iter(results.values()))
    named = [("zero-shot", "zero_shot_", first)] if f"zero_shot_{parts[0]}_top1" in first else []
    named += [(predictions.marked(Path(folder).name, metrics), "", metrics) for folder, metrics in results.items()]
    rows = [[name, *(accuracy_of(metrics, f"{prefix}{part}_") for part in parts)] for name, prefix, metrics in named]
    say(predictions.table(["top-1", *parts], rows))
    return 0
