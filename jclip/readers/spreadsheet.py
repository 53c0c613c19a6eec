"""CSV that spreadsheets open without running formulas, and that reads back equal.

A spreadsheet treats a cell that begins with = + - @, a tab or a line break as a formula, and formulas can run
programs or send data away. Names of classes and photos come from strangers. Such text gets an apostrophe in front, a
path `./`; `read_csv` removes both. Numbers are written unchanged.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

PATHS = ("photo", "run")  # columns of paths
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")
_APOSTROPHES = re.compile("'+[=+\\-@\t\r\n＝＋－＠]")


def write_csv_rows(file: TextIO, head: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a table with its header. `file` is opened with newline="" and errors="surrogateescape"."""
    table = csv.writer(file)
    table.writerow([_text(name) for name in head])
    for row in rows:
        table.writerow([_cell(name, value) for name, value in zip(head, row, strict=True)])


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a table written by jclip, by the names in its header; all values are text."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as f:
        head, *rows = csv.reader(f)
    names = [_restored(name) for name in head]
    return [
        {
            name: _restored_path(cell) if name in PATHS else _restored(cell)
            for name, cell in zip(names, row, strict=True)
        }
        for row in rows
    ]


def _cell(column: str, value: object) -> object:
    if not isinstance(value, str):
        return value
    return _path(value) if column in PATHS else _text(value)


def _text(text: str) -> str:
    text = _encodable(text)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _restored(cell: str) -> str:
    return cell[1:] if _APOSTROPHES.match(cell) else cell


def _path(text: str) -> str:
    text = _encodable(text)
    return f"./{text}" if _FORMULA.match(text) else text


def _restored_path(cell: str) -> str:
    return cell[2:] if cell.startswith("./") and _FORMULA.match(cell[2:]) else cell


def _encodable(text: str) -> str:
    """Replace lone surrogates that stand for no byte of a file's name."""
    return re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", text)
