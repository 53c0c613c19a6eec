"""Names of classes and photos as names of folders and files, on every file system, no two the same."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence

MANIFEST = "sorted.json"
UNSURE, NONE = "_unsure", "_none"  # folders of photos that are surely of no class, and of none of the classes
KEPT = (MANIFEST, UNSURE, NONE)
LONGEST = 255  # bytes of a name, on the file systems in use
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # names that Windows keeps


def class_folders(classnames: Sequence[str], before: Mapping[str, str] | None = None) -> list[str]:
    """A folder for each class, no two the same on a file system that ignores case; none is one of `KEPT`. before: classes
    that have one already."""
    before = before or {}
    taken = {*map(folded, (*KEPT, *before.values()))}
    return [before.get(name) or free_name(folder_name(name), taken) for name in classnames]


def folder_name(classname: str) -> str:
    """A class's name as a folder: what file systems don't take becomes `_`, what is too long is cut."""
    name = re.sub(r'[/\\:*?"<>|\x00-\x1f\x7f]', "_", classname).strip(" .")
    name = _cut(name, LONGEST).strip(" .") or "_"
    return f"{name}_" if RESERVED.fullmatch(name) else name


def free_name(name: str, taken: set[str], below: str = "") -> str:
    """The name, or with the first number that makes it another than those `taken`, to which it is added."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - of a name, not of a path
    number, free = 1, name
    while below + folded(free) in taken:
        number += 1
        ending = f"-{number}{suffix}"
        free = _cut(stem, LONGEST - len(os.fsencode(ending))) + ending
    taken.add(below + folded(free))
    return free


def folded(name: str) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFC", name).casefold()


def _cut(name: str, most: int) -> str:
    """The first letters that fit into `most` bytes."""
    while name and len(os.fsencode(name)) > most:
        name = name[: -max(1, (len(os.fsencode(name)) - most) // 4)]
    return name
