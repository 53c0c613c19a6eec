"""Errors that a user can fix, and how commands report them: one line on stderr, and `exit_code`."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol


class JclipError(Exception):
    """Base of all errors that a user can fix. The message says what must hold, what was got, where, and the fix."""

    exit_code = 2

    def __str__(self) -> str:
        """Return the message on one line, whatever names from files it quotes."""
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
    """A weight file that does not state its activation, where nothing else does either."""


class MisfitError(CheckpointError):
    """Weights that were read but do not fit the model: missing, unexpected or misshaped keys."""


class DifferenceError(CheckpointError):
    """A comparison that was asked for and found a difference. No mistake of the user's: the exit code is another."""

    exit_code = 1


class DataError(JclipError):
    """Photos, lists or features that are absent, broken or contradictory."""


class UnknownName(JclipError):
    """A name outside a closed set; the message lists the set, or says by `listed` what lists it, and the nearest match."""

    def __init__(self, kind: str, name: str, known: Iterable[str], listed: str = ""):
        known = list(known)
        rest = listed or f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} {quoted(name)}{did_you_mean(name, known)} ({rest})")


LONGEST_NAME = 1000  # characters for which a nearest match is searched
LONGEST_LINE = 20_000
JOINERS = "\u200c\u200d"  # inside words of Persian and Indic scripts, and between emoji


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `", did you mean 'x'?"` for the nearest of `known`, or an empty string when nothing is near."""
    by_lower = {k.lower(): k for k in known}
    likely = str(name).lower()
    near = difflib.get_close_matches(likely, by_lower, n=1, cutoff=0.6) if len(likely) < LONGEST_NAME else []
    return f", did you mean {by_lower[near[0]]!r}?" if near else ""


JITTOR_OUT_OF_MEMORY = "Unable to alloc cuda device memory"  # Jittor's message


@contextlib.contextmanager
def advice_when_full(advice: str) -> Iterator[None]:
    """Turn Jittor's report of CUDA out of memory into one line that ends in `advice`."""
    try:
        yield
    except RuntimeError as e:
        if JITTOR_OUT_OF_MEMORY not in str(e):
            raise
        raise SetupError(f"CUDA out of memory: {advice}") from e


class Report(Protocol):
    """What a command prints once, when its work is done."""

    def emit(self) -> None:
        """Print it on stderr, and reset."""

    def clear(self) -> None:
        """Reset."""


_AT_END: list[Report] = []


def at_end(report: Report) -> None:
    """Print `report` when the running command ends; what happened outside of commands is not reported."""
    _AT_END.append(report)


def guarded(command: Callable[[], int | None], name: str) -> int:
    """Run `command` and return its exit code; an error that a user can fix is one line on stderr and exit code 2, not
    a traceback."""
    while _AT_END:
        _AT_END.pop().clear()
    settle_streams()
    try:
        return _guarded(command, name)
    finally:
        while _AT_END:
            _AT_END.pop().emit()


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
        return fail(name, _too_little(e), 2)
    except (RuntimeError, ImportError) as e:  # of libraries: where an allocation failed
        if not _of_memory(str(e)):
            raise
        return fail(name, _too_little(e), 2)
    except OSError as e:
        if e.errno is None:
            raise
        if e.errno == errno.ENOMEM:
            return fail(name, _too_little(e), 2)
        _drop_unprinted()
        place = f"{e.filename}: " if e.filename else ""
        return fail(name, f"{place}{e.strerror}", 2)


_ALLOCATIONS = (  # how libraries say that memory is lacking
    "bad_alloc", "can't start new thread", "failed to map segment", "annot allocate memory", "nable to alloc",
)  # fmt: skip
_OF_A_LIMIT = "annot open library"  # Jittor's, which has other causes as well


def _of_memory(text: str) -> bool:
    return any(said in text for said in _ALLOCATIONS) or (_OF_A_LIMIT in text and _is_limited())


def _too_little(e: BaseException) -> str:
    """What is said where memory is lacking: the last line of the library's own text, if there is one."""
    lines = [line for line in str(e).splitlines() if _of_memory(line)] or str(e).splitlines()
    limit = ", or raise this process's limit (ulimit -v)" if _is_limited() else ""
    why = f" ({lines[-1].strip()[:200]})" if lines else ""
    return f"there is not enough memory{why}: take a smaller model, batch or OMP_NUM_THREADS{limit}"


def _is_limited() -> bool:
    with contextlib.suppress(ImportError):  # Windows has none
        import resource

        return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return False


def _flushed(command: Callable[[], int | None]) -> int:
    """Run the command and return its exit code. Output is flushed here, where `guarded` catches errors, not at exit."""
    try:
        code = command() or 0
    except SystemExit:  # argparse has printed its help, or what is wrong
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


def settle_streams() -> None:
    """Make printing safe on any terminal. Characters that its encoding lacks are escaped. Closed standard descriptors
    are opened on the null device, since the next file opened would get their number and with it what Jittor
    prints."""
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
        if hasattr(stream, "reconfigure"):  # notebooks have their own streams
            stream.reconfigure(errors="backslashreplace")


def _drop_unprinted(name: str = "stdout") -> None:
    """Discard what a stream can't take: Python flushes once more at exit."""
    try:
        getattr(sys, name).flush()
    except OSError:
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def say(text: str) -> None:
    """Print lines on stdout, without control characters."""
    sys.stdout.write("\n".join(printable(line, LONGEST_LINE) for line in text.split("\n")) + "\n")
    sys.stdout.flush()


_HEARING: list[Callable[[str], None]] = []


@contextlib.contextmanager
def notices_heard_by(hear: Callable[[str], None]) -> Iterator[None]:
    """In the block `hear(line)` gets what `notice` prints as well."""
    _HEARING.append(hear)
    try:
        yield
    finally:
        _HEARING.remove(hear)


def notice(text: str) -> None:
    """Print one line on stderr. Errors of stderr itself are ignored."""
    for hear in _HEARING:
        hear(printable(text))
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(f"{printable(text)}\n")
        sys.stderr.flush()
    except OSError:
        _drop_unprinted("stderr")


def printable(text: str, most: int = 2000) -> str:
    """Return `text` as one line without control characters: line breaks, escape codes, direction marks and lone
    surrogates become `\\x1b`-like escapes. Text longer than `most` characters keeps its beginning and its end,
    which says what to do, with a note of how many are left out."""
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


def counted(count: int, thing: str) -> str:
    """`1 photo`, `2,000 photos`: things whose plural ends in s."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def quoted(value: object, most: int = 200) -> str:
    """Return `repr` of a value for a message: on one line, cut to `most` characters."""
    return printable(repr(value), most)


_REPORTERS: list[Callable[[str, str], None]] = []


@contextlib.contextmanager
def failures_reported_by(report: Callable[[str, str], None]) -> Iterator[None]:
    """In the block `report(name, message)` prints what `fail` would."""
    _REPORTERS.append(report)
    try:
        yield
    finally:
        _REPORTERS.pop()


def fail(name: str, message: str, code: int) -> int:
    """Print one line on stderr; return the exit code."""
    if _REPORTERS:
        _REPORTERS[-1](name, printable(message))
    else:
        notice(f"{name}: {message}")
    return code
