"""A page of docs/ whose tables are made of a CSV: what stands between its marks is written anew, the rest stays."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jclip.paths import replacing


def read(path: Path) -> list[dict[str, str]]:
    """The lines of the CSV."""
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def write(path: Path, columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> None:
    """The CSV of all lines, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def with_tables(page: str, marks: tuple[str, str], tables: str, title: str) -> str:
    """The page with `tables` between its marks, everything outside of them as it was; a new page begins with `title`."""
    begin, end = marks
    before, _, rest = page.partition(begin)
    after = rest.partition(end)[2] or "\n"
    head = before or f"# {title}\n\n"
    return f"{head}{begin}\n\n{tables}\n\n{end}{after}"
