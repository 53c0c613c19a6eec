"""`jclip COMMAND …`: a table of commands, each imported when it is asked for."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

from jclip.errors import JclipError, UnknownName

COMMANDS = {  # name → module:function, one line of help
    "zero-shot": ("jclip.zero_shot:main", "sort photos into classes that you name"),
    "train": ("finetune.__main__:train", "run a recipe from a YAML"),
    "eval": ("finetune.__main__:evaluate", "measure a finished run"),
    "predict": ("finetune.__main__:predict", "label photos with a finished run"),
    "recipes": ("finetune.__main__:recipes", "list the recipes and their configs"),
    "models": ("jclip.models_command:main", "list the models, or write one with seeded random weights"),
    "doctor": ("jclip.doctor:main", "tell what this machine offers, what is missing, and how to mend it"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if sys.platform == "win32":
        return _fail("jclip", "native Windows is not supported: run it inside WSL2 (README, 'Windows')", 2)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"jclip {version('jclip')}")
        return 0
    return guarded(lambda: _command(argv[0])(argv[1:]), f"jclip {argv[0]}")


def usage() -> str:
    """The text of `jclip --help`."""
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: jclip COMMAND …", "", *lines, "", "`jclip COMMAND --help` tells more."])


def _command(name: str) -> Callable[[list[str]], int | None]:
    if name not in COMMANDS:
        raise UnknownName("command", name, COMMANDS)
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(module), function)


def guarded(command: Callable[[], int | None], name: str) -> int:
    """Runs `command`; what a user can mend ends in one line on stderr and exit code 2, not in a traceback."""
    try:
        return command() or 0
    except JclipError as e:
        return _fail(name, str(e), e.exit_code)
    except KeyboardInterrupt:
        return _fail(name, "stopped", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the reader left; Python flushes once more at exit
        return 141
    except OSError as e:
        if e.errno is None:
            raise
        place = f"{e.filename}: " if e.filename else ""
        return _fail(name, f"{place}{e.strerror}", 2)


def _fail(name: str, message: str, code: int) -> int:
    sys.stderr.write(f"{name}: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
