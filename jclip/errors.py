"""The errors that are a user's to mend, and how commands tell them: one line, and `exit_code`."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol


class JclipError(Exception):
    """Something that the message tells how to mend: what was wrong, where, and what to do."""

    exit_code = 2

    def __str__(self) -> str:
        """The message on one line, whatever names from files it quotes."""
        return printable(super().__str__())


class SetupError(JclipError):
    """The machine lacks something that jclip needs: a compiler, headers, a usable Jittor."""


class ConfigError(JclipError):
    """A setting that is unknown, missing, of the wrong type or out of range."""


class CheckpointError(JclipError):
    """A weight file that can't be read, isn't known, or doesn't fit the model."""


class LayoutError(CheckpointError):
    """A weight file that is sound, but not in the layout that was asked for."""


class UnsaidError(CheckpointError):
    """A weight file that does not say its activation, and nobody else did."""


class MisfitError(CheckpointError):
    """Weights that were read well but do not fit: missing, unexpected or misshaped keys."""

    exit_code = 1


class DataError(JclipError):
    """Photos, lists or features that are absent, broken or contradictory."""


class UnknownName(JclipError):
    """A name that isn't in a closed set; the message lists the set and the nearest match."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = list(known)
        super().__init__(f"unknown {kind} {quoted(name)}{did_you_mean(name, known)} (known: {', '.join(known)})")


LONGEST_NAME = 1000  # that anything is likely to be near to
LONGEST_LINE = 20_000
JOINERS = "\u200c\u200d"  # inside words of Persian and Indic scripts, and between emoji


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`", did you mean 'x'?"` for the nearest of `known`, or an empty string when nothing is near."""
    by_lower = {k.lower(): k for k in known}
    likely = str(name).lower()
    near = difflib.get_close_matches(likely, by_lower, n=1, cutoff=0.6) if len(likely) < LONGEST_NAME else []
    return f", did you mean {by_lower[near[0]]!r}?" if near else ""


CARD_IS_FULL = "Unable to alloc cuda device memory"  # what Jittor says then


@contextlib.contextmanager
def told_when_full(mend: str) -> Iterator[None]:
    """Turns Jittor's long report of a full card into one line that ends in `mend`."""
    try:
        yield
    except RuntimeError as e:
        if CARD_IS_FULL not in str(e):
            raise
        raise SetupError(f"the GPU's memory is full: {mend}") from e


class Report(Protocol):
    """What a command says once, when its work is done."""

    def tell(self) -> None:
        """Says it on stderr, and begins anew."""

    def clear(self) -> None:
        """Begins anew."""


_AT_END: list[Report] = []


def at_end(report: Report) -> None:
    """Lets `report` speak when the command that is running ends; what no command did is not reported."""
    _AT_END.append(report)


def guarded(command: Callable[[], int | None], name: str) -> int:
    """Runs `command`; what a user can fix ends in one line on stderr and exit code 2, not in a traceback."""
    while _AT_END:
        _AT_END.pop().clear()
    settle_streams()
    try:
        return _guarded(command, name)
    finally:
        while _AT_END:
            _AT_END.pop().tell()


def _guarded(command: Callable[[], int | None], name: str) -> int:
    try:
        return _flushed(command)
    except JclipError as e:
        return fail(name, str(e), e.exit_code)
    except KeyboardInterrupt:
        return fail(name, "stopped", 130)
    except BrokenPipeError:
        _drop_unprinted()
        return 141
    except MemoryError as e:
        return fail(name, f"there is not enough memory{f': {e}' if str(e) else ''}", 2)
    except OSError as e:
        if e.errno is None:
            raise
        _drop_unprinted()
        place = f"{e.filename}: " if e.filename else ""
        return fail(name, f"{place}{e.strerror}", 2)


def _flushed(command: Callable[[], int | None]) -> int:
    """The command's exit code. All that it printed is flushed here, where `guarded` sees what goes wrong, not at exit."""
    try:
        code = command() or 0
    except SystemExit:  # argparse has printed its help, or what is wrong
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


def settle_streams() -> None:
    """Makes printing safe, whatever the terminal: letters that its encoding lacks are escaped, and descriptors that are
    closed lead to the null device, since the next file opened would get their number and with it what Jittor prints."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - it stays as long as the process
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # notebooks have streams of their own
            stream.reconfigure(errors="backslashreplace")


def _drop_unprinted(name: str = "stdout") -> None:
    """Forgets what a stream can't take, if there is anything: Python flushes once more at exit."""
    try:
        getattr(sys, name).flush()
    except OSError:
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def say(text: str) -> None:
    """Prints lines on stdout, each free of what a terminal would obey."""
    sys.stdout.write("\n".join(printable(line, LONGEST_LINE) for line in text.split("\n")) + "\n")
    sys.stdout.flush()


def notice(text: str) -> None:
    """Prints one line on stderr. A stderr that takes nothing is no reason to stop."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(f"{printable(text)}\n")
        sys.stderr.flush()
    except OSError:
        _drop_unprinted("stderr")


def printable(text: str, most: int = 2000) -> str:
    """`text` as one line that no terminal obeys: control characters, escape codes, line breaks, direction marks and lone
    surrogates as `\\x1b`-like escapes; of what is longer than `most` characters the beginning and the end, which says
    what to do, with a note of how many are left out."""
    if len(text) > most:
        end = most // 4
        left_out = f"… ({len(text) - most:,} more characters) …"
        return _escaped(text[: most - end]) + left_out + _escaped(text[-end:])
    return _escaped(text)


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if _is_shown(c) else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _is_shown(c: str) -> bool:
    return c.isprintable() or c in JOINERS or unicodedata.category(c) == "Zs"  # other spaces than " "


def quoted(value: object, most: int = 200) -> str:
    """`repr` of what was given, for a message: on one line and not too long."""
    return printable(repr(value), most)


def fail(name: str, message: str, code: int) -> int:
    """One line on stderr, and the exit code back."""
    notice(f"{name}: {message}")
    return code
