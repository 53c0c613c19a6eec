"""Command lines: a parser whose errors are those of jclip, and types of arguments with bounds. Imports no Jittor."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from typing import IO, NoReturn

from jclip.errors import ConfigError, quoted


class Parser(argparse.ArgumentParser):
    """As argparse's, but what is wrong raises `ConfigError`, which ends as other errors do: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help tells more)")

    def print_help(self, file: IO[str] | None = None) -> None:
        (file or sys.stdout).write(self.format_help())  # argparse's own ignores a full disk


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from `low` to `high`."""

    def read(text: str) -> int:
        digits = text[1:] if text[:1] in ("-", "+") else text
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 19 and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"must be a whole number in [{low}, {high}], got {quoted(text, 60)}")
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
