"""The rounds of `jclip teach`: photos are shown, answers are read from a terminal or a pipe, and the next ones chosen."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from jclip.errors import ConfigError, DataError, counted, notice, printable, say
from jclip.features.lesson import Lesson
from jclip.functional.audited_shares import Share
from jclip.report import contact_sheet
from jclip.report.predictions import shorten, table
from jclip.report.tiles import LONGEST, Section, Tile

LETTERS = {"y": "yes", "n": "no", "?": "unsure"}
END, AUDIT, UNDO, OTHERS = "q", "a", "u", ""
HELP = "y, n or ? for each photo (such as yynn?y); Enter: other photos; u: take back; a: audit; q: write the concept and end"
_PATH = 70  # letters


@dataclass(frozen=True)
class Asking:
    """How many photos a round and an audit have, and the contact sheet that shows them."""

    round: int = 12
    audit: int = 40
    sheet: str | None = None


def ask(lesson: Lesson, how: Asking, read: Callable[[], Iterator[str]] | None = None) -> None:
    """Asks until the end of the input, `q`, or no photo is left. Raises `ConfigError` for a line of a pipe that is no
    answer; at a terminal it is reported, and asked again."""
    lines, rounds, said_help = (read or _lines)(), count(1), False
    say(summary(lesson))
    while True:
        rows = lesson.round(how.round)
        if not rows:
            _check_shown(lesson)
            say("every photo that can be looked at is answered")
            return
        _show(lesson, rows, f"round {next(rounds)}", how.sheet)
        if not said_help:
            notice(HELP)
            said_help = True
        ended = _asked(lesson, rows, lines, audit=False)
        if ended == AUDIT:
            ended = _audit(lesson, how, lines)
        if ended == END:
            return


def _audit(lesson: Lesson, how: Asking, lines: Iterator[str]) -> str:
    """Random photos until all that the audit wants are answered; how it ended."""
    ended, total = OTHERS, how.audit
    while rows := lesson.audit_round(total):
        done = len(lesson.teacher.audited)
        _show(
            lesson, rows[: how.round], f"audit, photos {done + 1} to {done + len(rows[: how.round])}", how.sheet, True
        )
        ended = _asked(lesson, rows[: how.round], lines, audit=True)
        if ended in (END, AUDIT):
            break
    if ended == END:  # the command sums up at its end
        return END
    say(summary(lesson))
    return OTHERS


def _asked(lesson: Lesson, rows: Sequence[int], lines: Iterator[str], audit: bool) -> str:
    """Answers about `rows`, in order; END, AUDIT, or OTHERS where they are all answered or others are asked for."""
    place = 0
    while place < len(rows):
        _prompt(place + 1, rows)
        line = next(lines, END)
        letters, last = (line[:-1], line[-1]) if line[-1:] in (END, AUDIT) else (line, OTHERS)
        if fault := _fault(letters, len(rows) - place):
            if not sys.stdin.isatty():
                raise ConfigError(fault)
            notice(fault)
            continue
        for letter in letters:
            if letter != UNDO:
                lesson.answer(rows[place], LETTERS[letter], audit)
                place += 1
            elif lesson.teacher.audited or not audit:
                place = max(0, place - (lesson.undo() is not None))
        if letters and not audit:
            say(state(lesson))
        if last or not line:
            return last
    return OTHERS


def _fault(letters: str, left: int) -> str:
    """What is wrong with a line's answers; nothing where they can be obeyed."""
    if strange := next((letter for letter in letters if letter not in (*LETTERS, UNDO)), ""):
        return f"answers must be y, n or ?, u to take one back, a or q at the end, got {strange!r} in {letters!r:.60}"
    given = 0
    for letter in letters:
        given = max(0, given - 1) if letter == UNDO else given + 1
        if given > left:
            return f"there must be at most {counted(left, 'answer')}, of the photos that are shown, got {letters!r:.60}"
    return ""


def _prompt(number: int, rows: Sequence[int]) -> None:
    if sys.stdin.isatty():
        sys.stderr.write(f"photo {number} of {len(rows)}: ")
        sys.stderr.flush()


def _lines() -> Iterator[str]:
    """Lines of the terminal or of a pipe, in small letters and without blanks."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    with contextlib.suppress(EOFError):
        while line := sys.stdin.readline():
            yield "".join(line.lower().split())
    if sys.stdin.isatty():
        say("")


def _show(lesson: Lesson, rows: Sequence[int], title: str, sheet: str | None, blind: bool = False) -> None:
    """A table of the photos, and the contact sheet. blind: without what the head says of them."""
    teacher = lesson.teacher
    chances = [
        1 / (1 + math.exp(-max(-500.0, min(500.0, x)))) for x in teacher.head.logits(teacher.cosines()[list(rows)])
    ]
    cells = [
        [str(number), shorten(_near(lesson.gallery.path_of(row)), _PATH), *([] if blind else [f"{100 * chance:.0f} %"])]
        for number, (row, chance) in enumerate(zip(rows, chances, strict=True), start=1)
    ]
    say(f"\n{title}\n{table(['', 'photo', *([] if blind else ['likely'])], cells)}")
    if sheet:
        _write_sheet(lesson, rows, [0.0 if blind else chance for chance in chances], title, sheet, blind)


def _write_sheet(
    lesson: Lesson, rows: Sequence[int], chances: Sequence[float], title: str, sheet: str, blind: bool
) -> None:
    upright = bool(lesson.gallery.store.manifest.preprocess.get("upright", True))
    tiles = tuple(
        Tile(
            lesson.gallery.photo_at(row), ((f"photo {number}", chance),), "open", upright=upright,
            numbers=("" if blind else f"{100 * chance:.0f} %",), may_be_absent=True,
        )
        for number, (row, chance) in enumerate(zip(rows, chances, strict=True), start=1)
    )  # fmt: skip
    query = printable(" ".join(lesson.query.name[:LONGEST].split()))
    contact_sheet.write_sections(
        sheet, [Section(title, tiles, state(lesson))], query, "bars: how likely it is, by the answers so far"
    )
    notice(f"written: {sheet}")


def _near(path: str) -> str:
    """The path as seen from the caller's folder, where it lies below."""
    here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118
    return path.removeprefix(here)


def _check_shown(lesson: Lesson) -> None:
    """Raises `DataError` where photos are left, but none of them is there."""
    teacher = lesson.teacher
    if len({*teacher.teaching, *teacher.audited}) == 0:
        raise DataError(
            f"none of {counted(teacher.rows, 'photo')} is in {lesson.gallery.root}: name where they are by --root"
        )


def state(lesson: Lesson) -> str:
    """The answers so far, and how many photos are above the line."""
    teacher = lesson.teacher
    unsure = f", {teacher.count('unsure')} unsure" if teacher.count("unsure") else ""
    line = f"{teacher.above():,} of {teacher.rows:,} photos above the line"
    return f"{teacher.count('yes')} yes, {teacher.count('no')} no{unsure} · {line}"


def summary(lesson: Lesson) -> str:
    """`state`, with what the last audit says."""
    lines = [f"{' '.join(lesson.query.name.split())}: {state(lesson)}"]
    if lesson.teacher.audited:
        found = lesson.teacher.audit()
        shares = f"precision {_share(found.precision)}, recall {_share(found.recall)}"
        of = f"audit of {counted(found.asked, 'random photo')}: {shares}"
        lines.append(of if found.asked else "audit: every answer is ?, so it says nothing yet")
    return "\n".join(lines)


def _share(share: Share) -> str:
    interval = f"{share.low:.2f} to {share.high:.2f}"
    return f"unknown ({interval})" if share.value is None else f"{share.value:.2f} ({interval})"
