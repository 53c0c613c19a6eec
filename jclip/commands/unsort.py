"""`jclip unsort`: takes back what `predict --sort-into` and `tag --sort-into` made."""

from __future__ import annotations

from pathlib import Path

from jclip.commands.arguments import Parser, nonempty
from jclip.errors import say
from jclip.report import sorted_folders


def main(argv: list[str]) -> int:
    """Removes the copies or links that --sort-into of `jclip predict` and `jclip tag` made; the photos stay."""
    p = Parser("jclip unsort", description=main.__doc__)
    p.add_argument("manifest", type=nonempty, metavar="MANIFEST", help="the sorted.json in the folder of sorted photos")
    args = p.parse_args(argv)

    removed, left = sorted_folders.undo(Path(args.manifest))
    say(f"removed: {removed} of what was made")
    for name, reason in left.items():
        say(f"left, as {reason}: {name}")
    return 0
