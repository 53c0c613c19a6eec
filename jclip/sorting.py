"""Photos into a folder for each class, and back: what was done stands in a manifest that undoes it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from jclip.arguments import Parser, nonempty
from jclip.errors import DataError
from jclip.paths import compute_sha256, replacing
from jclip.results import Predictions

How = Literal["copy", "link"]
MANIFEST = "sorted.json"
UNSURE = "_unsure"


@dataclass(frozen=True)
class Placement:
    """One photo's new place, and why."""

    photo: str
    target: str  # relative to the folder
    label: str
    probability: float


def plan(predictions: Predictions, folder: Path, unsure: float = 0.0) -> list[Placement]:
    """Where each photo goes: into its best class's folder, below the probability `unsure` into `_unsure`.

    Photos of one name in one class get numbers. Raises `DataError` when something stands there already.
    """
    best, probabilities, taken = predictions.best[:, 0], predictions.probabilities, set()
    placed = []
    for photo, label, row in zip(predictions.photos, best, probabilities, strict=True):
        name, probability = predictions.classnames[label], float(row[label])
        place = _free(Path(UNSURE if probability < unsure else folder_name(name), Path(photo).name), taken)
        taken.add(str(place).lower())
        placed.append(Placement(str(Path(photo).absolute()), str(place), name, round(probability, 6)))
    there = [p.target for p in placed if os.path.lexists(folder / p.target)]
    if there or (folder / MANIFEST).exists():
        raise DataError(f"{folder / (there[0] if there else MANIFEST)} stands there already: name another folder")
    return placed


def folder_name(classname: str) -> str:
    """A class's name as a folder: what file systems don't take becomes `_`."""
    return re.sub(r'[/\\:*?"<>|\x00-\x1f]', "_", classname).strip(" .") or "_"


def _free(place: Path, taken: set[str]) -> Path:
    number, free = 1, place
    while str(free).lower() in taken:
        number += 1
        free = place.with_name(f"{place.stem}-{number}{place.suffix}")
    return free


def place(placed: Sequence[Placement], folder: Path, how: How) -> Path:
    """Copies or links every photo. The manifest is written first, so that a break can be undone too. Returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST
    with replacing(manifest) as temporary:
        values = {"how": how, "photos": [asdict(p) for p in placed]}
        temporary.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for one in placed:
        target = folder / one.target
        target.parent.mkdir(exist_ok=True)
        if how == "link":
            target.symlink_to(one.photo)
        else:
            with replacing(target) as temporary:
                shutil.copyfile(one.photo, temporary)
            shutil.copystat(one.photo, target)
    return manifest


def undo(manifest: Path) -> tuple[int, list[str]]:
    """Removes what `place` made, where it still is what was made. The number removed, and what was left as it was changed.

    Raises `DataError` for a file that is no manifest.
    """
    try:
        values = json.loads(manifest.read_text(encoding="utf-8"))
        how, placed = values["how"], [Placement(**p) for p in values["photos"]]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{manifest} is no manifest of sorted photos: {e}") from e
    outside = [one.target for one in placed if Path(one.target).is_absolute() or ".." in Path(one.target).parts]
    if outside:
        raise DataError(f"{manifest} names {outside[0]}, which lies outside its folder: nothing was removed")
    folder, removed, left = manifest.parent, 0, []
    for one in placed:
        target = folder / one.target
        if not os.path.lexists(target):
            continue
        if _as_made(target, one, how):
            target.unlink()
            removed += 1
        else:
            left.append(one.target)
    for name in {Path(one.target).parent for one in placed}:
        if (folder / name).is_dir() and not any((folder / name).iterdir()):
            (folder / name).rmdir()
    if not left:
        manifest.unlink()
    return removed, left


def _as_made(target: Path, one: Placement, how: str) -> bool:
    if how == "link":
        return target.is_symlink() and str(target.readlink()) == one.photo
    photo = Path(one.photo)
    same_size = not target.is_symlink() and photo.is_file() and photo.stat().st_size == target.stat().st_size
    return same_size and compute_sha256(photo) == compute_sha256(target)


def counts(placed: Sequence[Placement]) -> list[list[str]]:
    """Rows of a table: folder and how many photos."""
    folders = sorted({str(Path(one.target).parent) for one in placed})
    return [[name, str(sum(Path(one.target).parent == Path(name) for one in placed))] for name in folders]


def main(argv: list[str]) -> int:
    """`jclip unsort MANIFEST`: removes the copies or links that `predict --sort-into` made; the photos stay."""
    p = Parser("jclip unsort", description=main.__doc__)
    p.add_argument("manifest", type=nonempty, help=f"the {MANIFEST} in the folder of sorted photos")
    removed, left = undo(Path(p.parse_args(argv).manifest))
    print(f"removed: {removed} of what was made")
    for name in left:
        print(f"left, as it was changed since: {name}")
    return 0
