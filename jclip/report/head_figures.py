"""The figures that a reader of a run looks at first: by task, as cards, and as a table of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jclip.report.page_words import Words
from jclip.report.run_record import RunRecord, is_figure
from jclip.report.run_table import shortly
from jclip.report.web_page import Card

PARTS = ("test", "val")
MOST_CARDS = 6


@dataclass(frozen=True)
class Figure:
    """A figure's name in result.json. share: it is shown in percent. lower: small values are good. count: the name before
    `correct` and `count` of an accuracy."""

    key: str
    share: bool = True
    lower: bool = False

    def shown(self, value: float) -> str:
        """The value as a page has it."""
        if not isinstance(value, int | float):
            return str(value)
        return f"{100 * value:.2f} %" if self.share else f"{value:,}" if isinstance(value, int) else shortly(value)

    def change(self, words: Words, before: float, after: float) -> str:
        """From one value to the other: `+1.25` points, or the difference."""
        if self.share:
            return words("figure.points", change=f"{100 * (after - before):+.2f}")
        return f"{after - before:+.4g}"


def _of_parts(*names: str) -> list[Figure]:
    return [Figure(f"{part}_{name}") for part in PARTS for name in names]


FIGURES: dict[str, list[Figure]] = {  # by task, the most important first
    "classify": [
        *_of_parts("top1", "map"), Figure("test_top5"), Figure("test_mean_per_class"), Figure("test_macro_f1"),
        Figure("test_ece", lower=True),
    ],
    "multi_label": _of_parts("map_merged", "map_global", "map_local"),
    "ground": [
        *_of_parts("acc@0.5", "mean_iou"), Figure("unseen_acc@0.5"), Figure("test_cumulative_iou"),
        Figure("test_present_auroc"),
    ],
    "retrieve": [
        *(Figure(f"{way}_r{k}") for k in (1, 5, 10) for way in ("t2i", "i2t")),
        Figure("t2i_median_rank", False, True), Figure("i2t_median_rank", False, True),
    ],
    "curriculum": [Figure("test_accuracy"), Figure("val_accuracy"), Figure("rows", False), Figure("trainings", False)],
}  # fmt: skip


def figures_of(record: RunRecord) -> list[tuple[Figure, Any]]:
    """The figures that a run has of those that its task shows, with their values."""
    values = record.figures
    return [(f, values[f.key]) for f in FIGURES[record.task] if is_figure(values.get(f.key))]


def head_cards(words: Words, record: RunRecord) -> list[Card]:
    """The first figures of a run; of one of which last and best epoch were measured both."""
    values, shown = record.figures, []
    for figure, value in figures_of(record)[:MOST_CARDS]:
        before = values.get(f"zero_shot_{figure.key}")
        if is_figure(before):
            note = words("figure.zero_shot", value=figure.shown(before), change=figure.change(words, before, value))
            change = round(value - before, 6) * (-1 if figure.lower else 1)
        else:
            note, change = _counted(words, values, figure.key), 0.0
        shown.append(Card(words.of_figure(figure.key), figure.shown(value), note, change))
    last, best = (values.get(f"test_top1_{kind}_epoch") for kind in ("last", "best"))
    if is_figure(last) and is_figure(best):
        note = words("figure.best_of_epochs", best=f"{100 * best:.2f} %", epoch=values.get("best_epoch", "?"))
        shown.insert(1, Card(words("figure.last_epoch"), f"{100 * last:.2f} %", note))
    return shown


def _counted(words: Words, values: Mapping[str, Any], key: str) -> str:
    """`980 of 1,000`, of an accuracy."""
    part = key.partition("_")[0]
    right, total = (values.get(f"{part}_{kind}") for kind in ("correct", "count"))
    if key.endswith("_top1") and isinstance(right, int) and isinstance(total, int):
        return words("figure.of", right=right, total=total)
    return ""


def shared_figures(records: Sequence[RunRecord]) -> list[Figure]:
    """Figures that any of the runs, all of one task, has."""
    return [f for f in FIGURES[records[0].task] if any(is_figure(r.figures.get(f.key)) for r in records)]
