"""What a retrieval challenge takes: `{"results": [{"text", "image_names"}]}`; written, read again, and scored. No Jittor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jclip.data.photo_queries import truth_lines
from jclip.errors import DataError, printable, quoted
from jclip.functional.ranking_metrics import front_report
from jclip.readers.text import read_json

FLAG = "uses_other_queries"  # stands in a file whose answers depend on what else was asked


def results_bytes(texts: Sequence[str], found: Sequence[Sequence[str]], uses_other_queries: bool = False) -> bytes:
    """The file as the challenge's winners wrote it, with four blanks of indentation; with `FLAG` where that holds."""
    entries = [{"text": text, "image_names": [*names]} for text, names in zip(texts, found, strict=True)]
    values: dict[str, Any] = {"results": entries, **({FLAG: True} if uses_other_queries else {})}
    return (json.dumps(values, indent=4, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def read_results(path: Path) -> tuple[list[str], list[list[str]]]:
    """Texts and names. Raises `DataError` with the entry that is none, or names a photo twice."""
    values = read_json(path)
    entries = values.get("results") if isinstance(values, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f'{path} must be {{"results": [{{"text", "image_names"}}]}}, got {printable(repr(values), 60)}')
    for number, entry in enumerate(entries):
        names = entry.get("image_names") if isinstance(entry, dict) else None
        if not isinstance(names, list) or not isinstance(entry.get("text"), str) or not _are_texts(names):
            raise DataError(
                f"{path}, results[{number}]: must have text and image_names, got {printable(repr(entry), 60)}"
            )
        if again := [name for i, name in enumerate(names) if name in names[:i]]:
            raise DataError(f"{path}, results[{number}]: a photo must be named once, got {quoted(again[0])} twice")
    return [entry["text"] for entry in entries], [entry["image_names"] for entry in entries]


def _are_texts(names: Sequence[Any]) -> bool:
    return all(isinstance(name, str) for name in names)


def scored(path: Path, truth: Path, depth: int = 10) -> dict[str, float]:
    """Both mean average precisions of a file of results. Raises `DataError` where the queries are not those of the truth in
    its order, as the official scorer does."""
    texts, found = read_results(path)
    known = truth_lines(truth)
    if len(texts) != len(known):
        raise DataError(f"{path} must answer the {len(known)} queries of {truth}, got {len(texts)}")
    for number, (got, (line, text, _)) in enumerate(zip(texts, known, strict=True)):
        if got.strip() != text:
            raise DataError(
                f"{path}, results[{number}]: queries must stand in the order of {truth}, whose line {line} has "
                f"{quoted(text, 80)}, got {quoted(got, 80)}"
            )
    return front_report(found, [{*names} for *_, names in known], depth)
