"""`jclip compare`: one table of several finished runs."""

from __future__ import annotations

from jclip.commands.arguments import Parser, nonempty
from jclip.errors import ConfigError, say
from jclip.report.tasks import task_of_config
from jclip.train import run as runs


def compare(argv: list[str]) -> int:
    """Shows finished runs on the same data in one table: zero-shot of the first, then each run; of runs of image-caption
    pairs recall at 1, 5 and 10 both ways."""
    p = Parser("jclip compare", description=compare.__doc__)
    p.add_argument("runs", nargs="+", type=nonempty, metavar="RUN", help="folders of finished runs")
    args = p.parse_args(argv)

    results = {folder: runs.read_result(folder) for folder in args.runs}
    tasks = {folder: task_of_config(result["config"]) for folder, result in results.items()}
    first, *_ = tasks.values()
    if other := [folder for folder, task in tasks.items() if task != first]:
        raise ConfigError(
            f"runs must be of one task, got {first.name} and {tasks[other[0]].name} ({other[0]}): compare them apart"
        )
    say(first.load_predictor().comparison({folder: result["metrics"] for folder, result in results.items()}))
    return 0
