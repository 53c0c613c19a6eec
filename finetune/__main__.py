"""`python -m finetune COMMAND …`: as `jclip COMMAND …`, for the commands about recipes."""

from __future__ import annotations

import sys

from jclip import cli
from jclip.errors import say
from jclip.machine import memory_limit

COMMANDS = ("train", "sweep", "eval", "predict", "compare", "challenge", "hold-out", "recipes")


def main(argv: list[str]) -> int:
    """Dispatches to the commands."""
    if not argv or argv[0] in ("-h", "--help"):
        say(f"usage: python -m finetune {'|'.join(COMMANDS)} …  (each with --help)")
        return 0 if argv else 2
    return cli.run(argv, "finetune", COMMANDS)


if __name__ == "__main__":
    sys.exit(memory_limit.run_inside(lambda: main(sys.argv[1:]), " ".join(["finetune", *sys.argv[1:2]])))
