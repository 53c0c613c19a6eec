"""Which runs a folder is or holds."""

from __future__ import annotations

import os
from pathlib import Path

from jclip.errors import ConfigError
from jclip.report import run_record
from jclip.train.run_folder import RESULT, existing_run, is_run

MOST_RUNS, DEPTH = 50, 3  # runs that are offered; folders below the one that is named


def is_utf8(path: str | os.PathLike) -> bool:
    """Whether a browser can be told the path: what is no UTF-8 breaks the whole stream of answers to it."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def runs_at(typed: str) -> list[Path]:
    """The run in a folder, or the runs below it, newest first. Raises `ConfigError` where there is none."""
    typed = typed.strip()
    if not typed:
        raise ConfigError("name the folder of a run, or one that holds runs")
    place = existing_run(os.path.expanduser(typed))  # noqa: PTH111 - a path that is typed
    if is_run(place) or (place / RESULT).is_file():
        return [place]
    if not place.is_dir():
        run_record.read_record(place)  # which says what is wrong with it
    found, level = [], [place]
    for _ in range(DEPTH):
        level = [inner for folder in level for inner in sorted(folder.iterdir()) if inner.is_dir()][: 100 * MOST_RUNS]
        found += [folder for folder in level if is_utf8(folder) and is_run(folder)]
        level = [folder for folder in level if folder not in found]
    if not found:
        raise ConfigError(f"{place} holds no run: name a folder that `jclip train` wrote")
    return sorted(found, key=lambda run: -run.stat().st_mtime)[:MOST_RUNS]
