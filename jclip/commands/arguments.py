"""Command lines: a parser whose errors are those of jclip, argument types with bounds, and the options that several
commands share. Imports no Jittor."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from typing import IO, Any, NoReturn, get_args

from jclip.commands.examples import examples_of
from jclip.config.groups import Dtype
from jclip.errors import ConfigError, quoted
from jclip.weights.families import FAMILIES


class Parser(argparse.ArgumentParser):
    """As argparse's, but what is wrong raises `ConfigError`, which ends as other errors do: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}{_as_settings(message)} (see --help)")

    def format_help(self) -> str:
        return super().format_help() + examples_of(self.prog)

    def print_help(self, file: IO[str] | None = None) -> None:
        (file or sys.stdout).write(self.format_help())  # argparse's own ignores a full disk


def _as_settings(message: str) -> str:
    """How to write what was typed as an option with a dot, such as `--data.shots 4`, as a setting; else nothing."""
    typed = re.match(r"unrecognized arguments: --(\w+(?:\.\w+)+)(?:[ =](\S+))?", message)
    return f": settings have no dashes, write {typed[1]}={typed[2] or 'VALUE'}" if typed else ""


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of an argument that is an integer from `low` to `high`."""

    def read(text: str) -> int:
        digits = text[1:] if text[:1] in ("-", "+") else text
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 19 and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"must be an integer in [{low}, {high}], got {quoted(text, 60)}")
        return int(text)

    return read


def number(low: float, high: float, below: bool = False) -> Callable[[str], float]:
    """The type of an argument that is a number from `low` to `high`, or with `below` less than `high`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or (below and value == high):
            end = ")" if below else "]"
            raise argparse.ArgumentTypeError(f"must be a number in [{low:g}, {high:g}{end}, got {quoted(text, 60)}")
        return value

    return read


def nonempty(text: str) -> str:
    """The type of an argument that names a file or folder: an empty one names none."""
    if not text:
        raise argparse.ArgumentTypeError("must name a file or folder, got ''")
    return text


def scales(text: str) -> tuple[int, ...]:
    """The type of an argument that names scales of windows, such as 2,3."""
    try:
        return tuple(map(whole(2, 32), text.split(",")))
    except argparse.ArgumentTypeError as e:
        raise argparse.ArgumentTypeError(f"{e}: give scales such as 2 or 2,3") from None


MOST_CLASSES = 1_000_000  # of --top
BY_NAME = "; a name is downloaded once (default: JCLIP_MODEL, else ViT-B/32)"  # what most commands add to --model
SHARED: dict[str, tuple[str, dict[str, Any]]] = {  # option → what it means in every command, what argparse is given
    "--model": (
        "a model's name such as ViT-B/32, hf-hub:owner/name, ms:owner/name, or a weight file",
        {"type": nonempty, "metavar": "NAME|FILE"},
    ),
    "--family": (
        f"family of weights that do not state their activation: {', '.join(FAMILIES)}",
        {"choices": FAMILIES, "metavar": "NAME"},
    ),
    "--truncate": ("cut texts that exceed the context length", {"action": "store_true"}),
    "--run": ("the run's folder", {"type": nonempty, "metavar": "FOLDER"}),
    "--runs": (
        "the folder that run folders are made in (default: runs)",
        {"type": nonempty, "metavar": "FOLDER", "default": "runs"},
    ),
    "--out": ("where to write", {"type": nonempty, "metavar": "PATH"}),
    "--sheet": (
        "also write a contact sheet, such as sheet.png or sheet.html",
        {"type": nonempty, "metavar": "FILE"},
    ),
    "--top": (
        "how many to give, the best first",
        {"type": whole(1, MOST_CLASSES), "metavar": "N"},
    ),
    "--on-error": ("what to do with photos that do not decode", {"choices": ("stop", "skip")}),
    "--dry-run": ("show what would be done, change nothing", {"action": "store_true"}),
    "--seed": ("random seed", {"type": whole(0, 2**32 - 1), "metavar": "N"}),
    "RUN": ("the folder of a finished run, or the config that was trained", {"type": nonempty}),
}


def add_shared(p: argparse._ActionsContainer, option: str, note: str = "", **more: Any) -> None:
    """Adds an option that several commands have. `note` continues its help: what holds for this command alone."""
    meaning, given = SHARED[option]
    name, metavar = (option, {}) if option.startswith("-") else (option.lower(), {"metavar": option})
    p.add_argument(name, help=f"{meaning}{note}", **metavar, **given, **more)


def add_dtype(p: argparse._ActionsContainer, default: str | None = None) -> None:
    """Adds `--dtype` of commands that encode; `jclip convert` has another, of what it writes."""
    p.add_argument(
        "--dtype", choices=get_args(Dtype), default=default,
        help="data type in which the encoders compute (default: fp32); bf16 needs AVX-512 or a GPU, fp16 a GPU, int8 a CPU",
    )  # fmt: skip
