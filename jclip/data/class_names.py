"""Names of classes, as users give them: a benchmark's set, a file, a list; and data whose classes get other names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jclip.data.class_lists import Entry, read_entries, read_numbered
from jclip.errors import DataError, notice
from jclip.paths import exists, is_file
from jclip.prompts.background_names import BACKGROUNDS
from jclip.prompts.class_sets import class_set, class_sets
from jclip.prompts.spelling import alike, difference, name_key, nearest


@dataclass(frozen=True)
class ClassNames:
    """Class names in the order of their labels; others that a class goes by → its label."""

    names: tuple[str, ...]
    synonyms: Mapping[str, int] = field(default_factory=dict)

    def places(self, own: Sequence[str], count: int | None = None) -> np.ndarray:
        """For the classes `own` of some data, their labels (C,) among these names; `count` classes, where it has no names.

        By name where any is found, see `jclip.prompts.spelling.name_key`; where none is, of equally many in order, as
        ImageNet's folders n01440764, … are in the order of its names, which is reported. Raises `DataError`.
        """
        found = {name_key(name): label for name, label in reversed(self.synonyms.items())}
        found |= {name_key(name): label for label, name in reversed([*enumerate(self.names)])}
        missing = [name for name in own if name_key(name) not in found]
        if own and not missing:
            labels = [found[name_key(name)] for name in own]
            _report_matches(own, labels, self)
            return np.array(labels)
        count = len(own) or count or 0
        if len(missing) == len(own) and count == len(self.names):
            _report_order(own, self.names)
            return np.arange(count)
        first = [f"{name!r}{self._suggestion(name)}" for name in missing[:3]]
        lacking = f"{len(missing)} of which are none" if own else "without names, which can't be found"
        raise DataError(
            f"the data has {count} classes, {lacking} of the {len(self.names)} that are named"
            + (f" (first: {', '.join(first)})" if first else "")
            + f": name these too, or {count} in the data's order"
        )

    def _suggestion(self, name: str) -> str:
        near = nearest(name, [*self.names, *self.synonyms])
        return f", did you mean {near[0]!r}?" if near else ""


def _report_matches(own: Sequence[str], labels: Sequence[int], names: ClassNames) -> None:
    """Reports classes of the data that become one, and names that differ by more than underscores for blanks."""
    again = {label: name for name, label in zip(own, labels, strict=True)}
    merged = [(name, again[label]) for name, label in zip(own, labels, strict=True) if again[label] != name]
    spelled = [(name, names.names[label]) for name, label in zip(own, labels, strict=True)]
    odd = [pair for pair in spelled if difference(pair[0].replace("_", " "), pair[1].replace("_", " "))]
    notes = []
    if merged:
        notes.append(f"{len(merged)} classes of the data are other names of one (first: {_pair(merged[0], ' and ')})")
    if odd:
        kind = difference(odd[0][0].replace("_", " "), odd[0][1].replace("_", " "))
        notes.append(f"{len(odd)} class names differ in {kind} from the data's (first: {_pair(odd[0], ' is ')})")
    if notes:
        notice("; ".join(notes))


def _pair(pair: tuple[str, str], word: str) -> str:
    return word.join(map(repr, pair))


def _report_order(own: Sequence[str], names: Sequence[str]) -> None:
    pairs = [f"{mine} = {name}" for mine, name in zip(own or map(str, range(len(names))), names, strict=True)]
    shown = ", ".join(pairs if len(pairs) <= 12 else [*pairs[:3], "…", pairs[-1]])
    notice(f"no class of the data is among the names given: taken in order ({shown})")


def read_class_names(named: str, least: int = 2) -> ClassNames:
    """Class names from `a,b,c`, from a benchmark's set, or from a file, see `jclip.data.class_lists.read_entries`.

    Raises `DataError` for names that are absent, one name twice (whatever its case, blanks or Unicode form), or fewer
    than `least` of them: a single class can be looked for, but photos can't be classified into it.
    """
    path = Path(named)
    if is_file(named):
        return distinct_names(read_entries(path), named, least)
    if named in class_sets():
        return ClassNames(class_set(named))  # as published: imagenet1k has two names twice
    if "," not in named and (path.suffix or "/" in named):
        reason = "can't be read, it is not a regular file" if exists(named) else "no such file of class names"
        raise DataError(f"{reason}: {path}")
    return distinct_names(
        [Entry(" ".join(n.split()), place=f"name {k}") for k, n in enumerate(named.split(","), 1) if n.strip()],
        least=least,
    )


def read_background(named: str) -> tuple[str, ...]:
    """Names of what is none of the classes: a set of `jclip.prompts.background_names`, else as `read_class_names`."""
    return BACKGROUNDS[named] if named in BACKGROUNDS else read_class_names(named, least=1).names


def distinct_names(entries: Sequence[Entry], place: str = "", least: int = 2) -> ClassNames:
    """Raises `DataError` unless there are at least `least` entries, with names that differ."""
    names, before = tuple(entry.name for entry in entries), f"{place}: " if place else ""
    if not names:
        raise DataError("no class names given")
    if twice := alike(names):
        first, second = (entries[k] for k in twice)
        why = difference(first.name, second.name)
        raise DataError(
            f"class names stand more than once: {first.name} ({first.place.removeprefix(f'{place}, ')} and "
            f"{second.place.removeprefix(f'{place}, ')}{f', {second.name!r} but for {why}' if why else ''}): "
            f"name each class once{f', in {place}' if place else ''}"
        )
    if len(names) < least:
        near = nearest(names[0], class_sets())
        meant = f"did you mean the set {near[0]!r}? " if near else ""
        if not place and re.search(r"[\s;|，、；]", names[0]):
            meant += "separate names by commas, or "
        raise DataError(
            f"{before}classes must be at least two, got one ({names[0]:.60}), which every photo would be of: {meant}"
            f'add a second name, such as "{names[0]:.60},something else", or find its photos with `jclip tag`'
        )
    return ClassNames(names, {other: k for k, entry in reversed([*enumerate(entries)]) for other in entry.others})


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names in the order of labels that the file says: `name label` lines, the last blank separating, or another
    form of `jclip.data.class_lists`. Raises `DataError`."""
    entries = read_numbered(path)
    names = tuple(entry.name for entry in entries)
    if twice := alike(names):
        first, second = (entries[k] for k in twice)
        if first.name == second.name:
            raise DataError(f"{second.place}: class names must be unique, got {second.name!r} again")
        why = difference(first.name, second.name)
        notice(f"{path}: {first.name!r} and {second.name!r} differ only in {why}")
    return names


def read_names(path: Path) -> tuple[str, ...]:
    """Class names in order, of any file that `jclip.data.class_lists` reads. Raises `DataError`."""
    return tuple(entry.name for entry in read_entries(path))
