"""`jclip COMMAND …`: a table of commands, each imported on first use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Iterable

from jclip.commands import as_ranks
from jclip.errors import UnknownName, fail, guarded, say
from jclip.machine import memory_limit, ranks

RECIPES = "finetune"
GROUPS = {  # heading of `jclip --help` → name → module:function, one line of help
    "look": {
        "search": ("jclip.commands.search:main", "find photos by texts and by other photos, untrained"),
        "teach": (
            "jclip.commands.teach:main",
            "find photos by your yes and no, and keep what was learned as a concept",
        ),
        "zero-shot": ("jclip.commands.zero_shot_photos:main", "classify photos into classes that you name, untrained"),
        "predict": ("jclip.commands.predict:predict", "classify photos with a finished run"),
        "tag": ("jclip.commands.tag:main", "tag photos with names that you give, several to a photo, untrained"),
        "ground": ("jclip.commands.ground:main", "find the box of a phrase in photos, by a run or a model alone"),
        "app": ("jclip.commands.app:main", "open a page in the browser: search, classify, locate, runs"),
    },
    "learn": {
        "train": ("jclip.commands.train:train", "run the recipe of a YAML"),
        "sweep": ("jclip.commands.sweep:sweep", "run configs over a grid of settings: shots, seeds, learning rates"),
        "challenge": (
            "jclip.commands.challenge:challenge",
            "run a whole challenge, from its files to the results file",
        ),
        "recipes": ("jclip.commands.recipes:recipes", "list the recipes and their configs"),
    },
    "measure": {
        "eval": ("jclip.commands.eval:evaluate", "measure a finished run on its test photos or on others"),
        "score": (
            "jclip.commands.score:score",
            "score photos by runs of several labels, whole and in windows, into files",
        ),
        "reliability": (
            "jclip.commands.reliability:main",
            "score each row of a file by finished runs: which labels they reproduce",
        ),
        "measure": ("jclip.commands.measure:measure", "measure score files of photos with several labels each"),
        "measure-boxes": ("jclip.commands.measure_boxes:main", "measure predicted boxes of phrases, of any file"),
        "compare": ("jclip.commands.compare:compare", "show several finished runs in one table"),
        "report": ("jclip.commands.report:main", "write runs or a gallery as one page to send to someone"),
    },
    "data": {
        "check-data": ("jclip.commands.check_data:main", "show what a run would read of a folder of photos"),
        "captions": ("jclip.commands.caption_files:main", "label captions by class names, or make captions of names"),
        "boxes": ("jclip.commands.convert_boxes:main", "check, convert and join files of phrases with boxes"),
        "pseudo-labels": (
            "jclip.commands.label_photos:main",
            "make phrases with boxes of detections, triplets and captions",
        ),
        "world": (
            "jclip.commands.draw_world:main",
            "draw scenes with captions, boxes, phrases and detections to try things on",
        ),
        "hold-out": ("jclip.commands.hold_out:main", "draw the challenge's training and validation photos"),
        "embed": ("jclip.commands.embed:main", "embed photos into a gallery, once, for search"),
        "index": ("jclip.commands.index:main", "build an index over a large gallery"),
        "duplicates": ("jclip.commands.duplicates:main", "group photos that show nearly the same"),
        "fill": ("jclip.commands.fill:main", "fill missing attributes of photos by zero-shot"),
        "unsort": ("jclip.commands.unsort:main", "undo `--sort-into` of predict and tag"),
    },
    "weights": {
        "models": ("jclip.commands.models:main", "list the models, or write one with seeded random weights"),
        "convert": ("convert.cli:main", "convert weights between jclip, OpenAI, open_clip, Hugging Face and EVA"),
        "inspect": ("convert.cli:inspect", "show what a weight file holds"),
    },
    "machine": {
        "doctor": ("jclip.commands.doctor:main", "show what this machine has, what is missing, and how to fix it"),
        "warmup": ("jclip.commands.warmup:main", "compile a model's operators ahead of the first use"),
    },
}
COMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    if argv is None:  # as a program
        return memory_limit.run_inside(lambda: main(sys.argv[1:]), " ".join(["jclip", *sys.argv[1:2]]))
    argv = sys.argv[1:] if argv is None else argv
    if not ranks.here().first and (not argv or argv[0] not in COMMANDS):
        return 0  # rank 0 says what is wrong
    if sys.platform == "win32":
        return fail("jclip", "native Windows is not supported: run it inside WSL2 (docs/setup.md)", 2)
    if argv == ["help"] or not argv or argv[0].startswith("-"):
        return guarded(lambda: _without_command(argv), "jclip")
    return run(argv, "jclip", COMMANDS)


def run(argv: list[str], program: str, known: Collection[str]) -> int:
    """Runs command `argv[0]`, one of `known`, and returns its exit code; errors name `program`."""
    if argv[0] not in known:
        return guarded(lambda: _unknown(argv[0], known), program)

    def command() -> int:
        return guarded(lambda: _command(argv[0])(argv[1:]), f"{program} {argv[0]}")

    return as_ranks.run_as_rank(argv[0], command) if ranks.here().several else command()


def _without_command(argv: list[str]) -> int:
    """Help or the version. Raises `UnknownName` for another option."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        say(usage())
        return 0 if argv else 2
    if argv[0] not in ("-V", "--version"):
        raise UnknownName("option", argv[0], ("--help", "--version"))
    from importlib.metadata import version

    say(f"jclip {version('jclip')}")
    return 0


def usage() -> str:
    """The text of `jclip --help`."""
    lines, width = ["usage: jclip COMMAND …"], max(map(len, COMMANDS))
    for heading, group in GROUPS.items():
        lines += ["", heading, *(f"  {name:<{width}}  {text}" for name, (_, text) in group.items())]
    return "\n".join([*lines, "", "`jclip COMMAND --help` shows a command's arguments, options and examples."])


def _unknown(name: str, known: Iterable[str]) -> int:
    raise UnknownName("command", name, known)


def _command(name: str) -> Callable[[list[str]], int | None]:
    memory_limit.require_libraries()
    importlib.import_module(RECIPES)  # offers its recipes to the commands
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(module), function)


if __name__ == "__main__":
    sys.exit(main())
