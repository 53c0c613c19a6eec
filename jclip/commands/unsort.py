"""`jclip unsort`: takes back what `predict --sort-into` and `tag --sort-into` made."""

from __future__ import annotations

from pathlib import Path

from jclip.commands.arguments import Parser, nonempty
from jclip.errors import say
from jclip.report import folder_names, sorted_folders


def main(argv: list[str]) -> int:
    """Removes the copies or links that --sort-into of `jclip predict` and `jclip tag` made; the photos stay."""
    p = Parser("jclip unsort", description=main.__doc__)
    p.add_argument(
        "manifest",
        type=nonempty,
        metavar="MANIFEST",
        help="sorted.json of the folder of sorted photos, or that folder",
    )
    manifest = Path(p.parse_args(argv).manifest)

    removed, left = sorted_folders.undo(manifest / folder_names.MANIFEST if manifest.is_dir() else manifest)
    say(f"removed: {removed} of what was made")
    for name, reason in left.items():
        say(f"left, as {reason}: {name}")
    return 0
