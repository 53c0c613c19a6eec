"""The lines of a run's metrics.jsonl: each is JSON with a check sum of its values. No Jittor."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jclip.paths import open_regular

LARGEST = 1 << 26  # bytes that are read: half a million epochs


def crc_of(values: Mapping[str, Any]) -> str:
    """The check sum that a line ends in."""
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


def line_of(line: str) -> dict[str, Any] | None:
    """The values of a line; None of a damaged one, or one that a kill cut off."""
    try:
        record = json.loads(line)
        crc = record.pop("crc", None)
        whole = crc is None or crc == crc_of(record)
        return record if whole and type(record.get("epoch", -1)) is int else None
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a metrics.jsonl, and how many are damaged; nothing where there is no such file."""
    if not path.is_file():
        return [], 0
    with open_regular(path) as file:
        text = file.read(LARGEST).decode("utf-8", "replace")
    read = [line_of(line) for line in text.splitlines() if line.strip()]
    return [record for record in read if record is not None], sum(record is None for record in read)
