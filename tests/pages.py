"""The README and the pages of docs/ as tests see them: their code blocks, commands, headings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
SHELL = set("$|;&<>()`\\")
PREFIXES = ("jclip ", "python -m finetune ")


def blocks(path: Path) -> list[tuple[str, str, str]]:
    """Language, marks after it, text of each code block.

    Marks: `no-test`; `shortened` (long trainings); `weights` (the test gives random ones); `few` (a part of the photos);
    `about` (figures of a training).
    """
    return BLOCK.findall(path.read_text(encoding="utf-8"))


def headings(path: Path) -> list[tuple[int, str]]:
    """Level and text of each heading."""
    return [(len(level), title) for level, title in HEADING.findall(outside_blocks(path))]


def outside_blocks(path: Path) -> str:
    """The page without its code blocks."""
    return FENCED.sub("", path.read_text(encoding="utf-8"))


def table_rows(path: Path) -> list[str]:
    """The lines of all tables outside of code blocks."""
    return [line for line in outside_blocks(path).splitlines() if line.startswith("|")]


def anchors(path: Path) -> set[str]:
    """What `#…` can name on a page, as GitHub makes it of headings."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(path)}


def commands(text: str) -> list[list[str]] | None:
    """The arguments of `jclip` on each line of a block, or None where a shell or another program has to read it."""
    lines = [line for line in text.splitlines() if line.strip()]
    if any(SHELL & {*line.partition(" #")[0]} or not line.startswith(PREFIXES) for line in lines):
        return None
    return [
        shlex.split(line.removeprefix("python -m finetune ").removeprefix("jclip "), comments=True) for line in lines
    ]


def bare(text: str) -> list[str]:
    """Lines without their comments, which a translation translates."""
    return [line for line in (re.sub(r"\s*#.*", "", line) for line in text.splitlines()) if line]
