"""The photos that `jclip hold-out` draws: train_4class.txt to learn from, TestSetZ to choose by."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jclip.data.challenge_folder import ALL, HELD_OUT, LABELS, SHOTS
from jclip.data.checks import copied, repeated
from jclip.data.folders import spoken_name
from jclip.data.splits import Split
from jclip.errors import ConfigError, DataError
from jclip.paths import replacing, replacing_folder
from jclip.readers.text import read_text


def write_shots(folder: Path, photos: Split, shots: int, seed: int) -> str:
    """Writes train_4class.txt: the first of all classes in their order, then the second …, so that `shots` batches of as
    many photos as there are classes have each class once. Returns what to report."""
    rng, present = random.Random(seed), np.unique(photos.labels)
    members = [np.flatnonzero(photos.labels == label).tolist() for label in present]
    drawn = [rng.sample(rows, min(shots, len(rows))) for rows in members]
    rows = [of_class[turn] for turn in range(shots) for of_class in drawn if turn < len(of_class)]
    lines = [f"{in_list(os.path.relpath(photos.paths[row], folder))} {photos.labels[row]}\n" for row in rows]
    write_text(folder / SHOTS, "".join(lines))
    few = sum(len(of_class) < shots for of_class in drawn)
    more = f", {few} of them have fewer than {shots}" if few else ""
    return f"drawn: {folder / SHOTS}: {len(rows)} photos of {len(present)} classes{more}"


def in_list(path: str) -> str:
    """A path as text of a list: names in GB18030, as a .zip of Windows leaves them, are found by their text too."""
    return "/".join(map(spoken_name, Path(path).parts))


def draw(photos: Split, learned: Split, count: int, seed: int) -> Split:
    """`count` of `photos` that are not among those `learned` from. Raises `DataError` where there are fewer."""
    taken = {*repeated(learned.paths, photos.paths), *copied(learned.paths, photos.paths)}
    free = [row for row, path in enumerate(photos.paths) if path not in taken]
    if count > len(free):
        raise DataError(
            f"--count must be at most {len(free)}, the photos of {ALL} that are neither in {SHOTS} nor copies, got {count}"
        )
    return photos.take(random.Random(seed).sample(free, count))


def write_held_out(folder: Path, held: Split, link: bool) -> str:
    """Fills TestSetZ with `0.jpg`, `1.jpg` …, in the order drawn, labels first. Returns what to report.

    The same draw is completed after a break. Raises `ConfigError` where another one stands there.
    """
    target, names = folder / HELD_OUT, [f"{i}{Path(path).suffix}" for i, path in enumerate(held.paths)]
    text = "".join(f"{name}\t{label}\n" for name, label in zip(names, held.labels, strict=True))
    labels = folder / LABELS
    if target.is_dir() and not labels.is_file():
        raise ConfigError(f"{target} must stand beside {LABELS}, got it alone: move it away")
    if labels.is_file() and read_text(labels) != text:
        raise ConfigError(
            f"{labels} must be of this draw, got another: repeat its --count and --seed, or move it and {HELD_OUT} away"
        )
    if target.is_dir():
        return f"there already: {target}"
    write_text(labels, text)
    with replacing_folder(target) as filling:
        for name, path in zip(names, held.paths, strict=True):
            if link:
                (filling / name).symlink_to(os.path.relpath(path, target))
            else:
                shutil.copyfile(path, filling / name)
    return f"drawn: {target}"


def write_text(path: Path, text: str) -> None:
    """In one move."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def lacking(held: Split, names: Sequence[str]) -> list[str]:
    """A line about the classes that no photo was held out of."""
    none = np.flatnonzero(np.bincount(held.labels, minlength=len(names)) == 0)
    return [f'{len(none)} of {len(names)} classes have no photo there (first: "{names[none[0]]}")'] if len(none) else []
