"""The errors that are a user's to mend, and how commands tell them: one line, and `exit_code`."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol


class JclipError(Exception):
    """Something that the message tells how to mend: what was wrong, where, and what to do."""

    exit_code = 2


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
        super().__init__(f"unknown {kind} {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`", did you mean 'x'?"` for the nearest of `known`, or an empty string when nothing is near."""
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
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
    """Runs `command`; what a user can mend ends in one line on stderr and exit code 2, not in a traceback."""
    while _AT_END:
        _AT_END.pop().clear()
    try:
        return _guarded(command, name)
    finally:
        while _AT_END:
            _AT_END.pop().tell()


def _guarded(command: Callable[[], int | None], name: str) -> int:
    try:
        code = command() or 0
        sys.stdout.flush()  # here, where a reader that left is no error, and not at exit
        return code
    except JclipError as e:
        return fail(name, str(e), e.exit_code)
    except KeyboardInterrupt:
        return fail(name, "stopped", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the reader left; Python flushes once more at exit
        return 141
    except OSError as e:
        if e.errno is None:
            raise
        place = f"{e.filename}: " if e.filename else ""
        return fail(name, f"{place}{e.strerror}", 2)


def printable(text: str, most: int = 2000) -> str:
    """`text` as one line that no terminal obeys: control characters, escape codes, line breaks, direction marks and lone
    surrogates as `\\x1b`-like escapes, and what goes on for more than `most` characters cut with a note of how many."""
    shown = "".join(
        c if c.isprintable() or c == " " else c.encode("unicode_escape", "surrogatepass").decode() for c in text[:most]
    )
    return shown if len(text) <= most else f"{shown}… ({len(text) - most:,} more characters)"


def fail(name: str, message: str, code: int) -> int:
    """One line on stderr, and the exit code back."""
    sys.stderr.write(f"{name}: {printable(message)}\n")
    return code
