"""What changed from one run to another: settings, classes, and photos that were repaired or broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jclip.functional.paired_tests import mcnemar_exact
from jclip.report.judged_rows import ClassTable, Judged, JudgedRow
from jclip.report.run_record import RunRecord, flattened

ABSENT = object()  # a setting that a run does not have


@dataclass(frozen=True)
class RowsChanged:
    """Questions that both runs answered. both, neither: how many both answered rightly, and neither. repaired, broken:
    (before, after) of those that the second alone and the first alone answered rightly, the most certain first. unmatched:
    how many only one of the runs was asked."""

    both: int
    neither: int
    repaired: Sequence[tuple[JudgedRow, JudgedRow]]
    broken: Sequence[tuple[JudgedRow, JudgedRow]]
    unmatched: int

    @property
    def total(self) -> int:
        """How many questions both answered."""
        return self.both + self.neither + len(self.repaired) + len(self.broken)

    @property
    def p_value(self) -> float:
        """McNemar's exact two-sided p-value of both being equally good."""
        return mcnemar_exact(len(self.repaired), len(self.broken))


def rows_changed(before: Judged, after: Judged) -> RowsChanged:
    """The rows of two runs, matched by what was asked; a question that stands there several times is matched in order."""
    firsts, seconds = _by_question(before), _by_question(after)
    shared = [key for key in firsts if key in seconds]
    pairs = [(firsts[key], seconds[key]) for key in shared]
    kinds = Counter((first.right, second.right) for first, second in pairs)
    repaired = [pair for pair in pairs if not pair[0].right and pair[1].right]
    broken = [pair for pair in pairs if pair[0].right and not pair[1].right]
    return RowsChanged(
        kinds[True, True],
        kinds[False, False],
        sorted(repaired, key=lambda pair: -pair[0].badness),
        sorted(broken, key=lambda pair: -pair[1].badness),
        len(firsts) + len(seconds) - 2 * len(shared),
    )


def _by_question(judged: Judged) -> dict[tuple[str, int], JudgedRow]:
    seen: Counter[str] = Counter()
    found = {}
    for row in judged.rows:
        found[row.key, seen[row.key]] = row
        seen[row.key] += 1
    return found


def settings_changed(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Dotted keys of the configs that differ between any of the runs, each with all values; `ABSENT` where a run has none."""
    flat = [flattened(record.config) for record in records]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    values = {key: [settings.get(key, ABSENT) for settings in flat] for key in keys}
    differing = {key: own for key, own in values.items() if any(value != own[0] for value in own)}
    return dict(sorted(differing.items(), key=lambda item: ABSENT in item[1]))  # what all runs have comes first


def facts_changed(records: Sequence[RunRecord], names: Sequence[str]) -> dict[str, list[Any]]:
    """Facts of the provenance that differ, of those runs that state them."""
    found = {}
    for name in names:
        own = [_fact(record.provenance, name) for record in records]
        if len({value for value in own if value}) > 1:
            found[name] = own
    return found


def _fact(provenance: Mapping[str, Any], name: str) -> str:
    value = provenance.get(name, "")
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)


@dataclass(frozen=True)
class ClassChange:
    """A class's figure in both runs, and its count in the first."""

    name: str
    count: int
    before: float
    after: float

    @property
    def change(self) -> float:
        """After minus before."""
        return self.after - self.before


def classes_changed(before: ClassTable, after: ClassTable) -> list[ClassChange]:
    """Classes that both runs have figures of, the most changed first."""
    place = {name: number for number, name in enumerate(after.names)}
    found = [
        ClassChange(name, int(count), float(figure), float(after.figures[place[name]]))
        for name, count, figure in zip(before.names, before.counts, before.figures, strict=True)
        if name in place and not np.isnan(figure) and not np.isnan(after.figures[place[name]])
    ]
    return sorted(found, key=lambda own: (-abs(round(own.change, 9)), own.change))
