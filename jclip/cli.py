"""`jclip COMMAND …`: a table of commands, each imported when it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Iterable

from jclip.errors import UnknownName, fail, guarded, say

RECIPES = "finetune"
COMMANDS = {  # name → module:function, one line of help
    "check-data": (
        "jclip.commands.check_data:main",
        "show what a run would read of a folder of photos, before it is run",
    ),
    "zero-shot": ("jclip.commands.zero_shot_photos:main", "sort photos into classes that you name"),
    "train": ("jclip.commands.train:train", "run a recipe from a YAML"),
    "sweep": ("jclip.commands.sweep:sweep", "run configs at several settings: shots, seeds, rates"),
    "eval": ("jclip.commands.eval:evaluate", "measure a finished run"),
    "predict": ("jclip.commands.predict:predict", "label photos with a finished run"),
    "unsort": ("jclip.commands.unsort:main", "take back what predict --sort-into made"),
    "compare": ("jclip.commands.compare:compare", "one table of several finished runs"),
    "challenge": (
        "jclip.commands.challenge:challenge",
        "the few-shot challenge of Jittor, from photos to its results file",
    ),
    "hold-out": ("jclip.commands.hold_out:main", "draw the challenge's photos to learn from and to choose by"),
    "recipes": ("jclip.commands.recipes:recipes", "list the recipes and their configs"),
    "convert": ("convert.cli:main", "take weights in, from any layout that is known"),
    "inspect": ("convert.cli:inspect", "tell what a weight file is"),
    "models": ("jclip.commands.models:main", "list the models, or write one with seeded random weights"),
    "warmup": ("jclip.commands.warmup:main", "compile a model's operators ahead"),
    "doctor": ("jclip.commands.doctor:main", "tell what this machine offers, what is missing, and how to mend it"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if sys.platform == "win32":
        return fail("jclip", "native Windows is not supported: run it inside WSL2 (docs/setup.md)", 2)
    if not argv or argv[0].startswith("-"):
        return guarded(lambda: _without_command(argv), "jclip")
    return run(argv, "jclip", COMMANDS)


def run(argv: list[str], program: str, known: Collection[str]) -> int:
    """Runs command `argv[0]`, one of `known`, and returns its exit code; errors name `program`."""
    if argv[0] not in known:
        return guarded(lambda: _unknown(argv[0], known), program)
    return guarded(lambda: _command(argv[0])(argv[1:]), f"{program} {argv[0]}")


def _without_command(argv: list[str]) -> int:
    """Help or the version. Raises `UnknownName` for another option."""
    if not argv or argv[0] in ("-h", "--help"):
        say(usage())
        return 0 if argv else 2
    if argv[0] not in ("-V", "--version"):
        raise UnknownName("option", argv[0], ("--help", "--version"))
    from importlib.metadata import version

    say(f"jclip {version('jclip')}")
    return 0


def usage() -> str:
    """The text of `jclip --help`."""
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: jclip COMMAND …", "", *lines, "", "`jclip COMMAND --help` tells more."])


def _unknown(name: str, known: Iterable[str]) -> int:
    raise UnknownName("command", name, known)


def _command(name: str) -> Callable[[list[str]], int | None]:
    importlib.import_module(RECIPES)  # offers its recipes to the commands
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(module), function)


if __name__ == "__main__":
    sys.exit(main())
