"""Several runs as a page: their figures in one table, curves on one axis, and what changed between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jclip.errors import ConfigError
from jclip.report import curve_drawings, head_figures, judged_rows, run_difference, run_page, web_page
from jclip.report.page_photos import PagePhotos
from jclip.report.page_words import Words
from jclip.report.run_record import RunRecord, is_figure
from jclip.report.web_page import Cell

SHOWN = 12  # repaired photos, and broken ones
FACTS = ("weights_sha256", "train_sha256", "val_sha256", "test_sha256", "commit", "versions", "machine", "threads")


def check_tasks(records: Sequence[RunRecord]) -> None:
    """Raises `ConfigError` unless all runs are of one task."""
    first = records[0]
    if other := next((record for record in records if record.task != first.task), None):
        raise ConfigError(
            f"runs must be of one task, got {first.task} and {other.task} ({other.folder}): report them apart"
        )


def names_of(records: Sequence[RunRecord]) -> list[str]:
    """Short names that differ: as much of the ends of the folders' paths as is needed, else numbered."""
    return short_names([record.folder.resolve() for record in records])


def short_names(folders: Sequence[Path]) -> list[str]:
    """The same of whole paths."""
    parts = [folder.parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len({*names}) == len(names):
            return names
    return [f"{own[-1]} ({number})" for number, own in enumerate(parts, start=1)]


def comparison_parts(words: Words, records: Sequence[RunRecord], photos: PagePhotos) -> list[str]:
    """The parts of the page of several runs, as HTML. Raises `ConfigError` for runs of different tasks."""
    check_tasks(records)
    names = names_of(records)
    judged = [judged_rows.judged_rows(record) for record in records]
    parts = [
        figures(words, records, names),
        significance(words, names, judged),
        settings(words, records, names),
        curves(words, records, names),
    ]
    if len(records) == 2:
        parts.append(classes(words, records, names))
        parts += changed_photos(words, names, judged, photos)
    return list(filter(None, parts))


def figures(words: Words, records: Sequence[RunRecord], names: Sequence[str]) -> str:
    """A line per run, zero-shot of the first before them; of two runs the change below."""
    shared = head_figures.shared_figures(records)
    open_runs = [name for name, record in zip(names, records, strict=True) if not record.finished]
    note = words("several.unfinished", names=", ".join(open_runs)) if open_runs else ""
    if not shared:
        return web_page.section(words("several.figures"), web_page.paragraph(words("figure.none")), note)
    rows = []
    if any(f"zero_shot_{f.key}" in records[0].figures for f in shared):
        rows.append(
            [words("several.zero_shot"), *(_value(f, records[0].figures.get(f"zero_shot_{f.key}")) for f in shared)]
        )
    rows += [[name, *(_value(f, r.figures.get(f.key)) for f in shared)] for name, r in zip(names, records, strict=True)]
    if len(records) == 2:
        rows.append([words("several.change"), *(_change(words, f, records) for f in shared)])
    head = [words("several.run"), *(words.of_figure(f.key) for f in shared)]
    return web_page.section(
        words("several.figures"), web_page.table(words, head, rows, sortable=len(records) > 2), note
    )


def _value(figure: head_figures.Figure, value: Any) -> Cell:
    return Cell("–", kind="number") if not is_figure(value) else Cell(figure.shown(value), float(value))


def _change(words: Words, figure: head_figures.Figure, records: Sequence[RunRecord]) -> Cell:
    before, after = (record.figures.get(figure.key) for record in records)
    if not (is_figure(before) and is_figure(after)):
        return Cell("–", kind="number")
    change = round(after - before, 6)
    return Cell(
        figure.change(words, before, after) if change else "0", change, kind=_kind(-change if figure.lower else change)
    )


def _kind(better: float) -> str:
    """The style of a change."""
    return "gain" if better > 0 else "loss" if better < 0 else ""


def significance(words: Words, names: Sequence[str], judged: Sequence[judged_rows.Judged]) -> str:
    """McNemar's test of each run with the first, over the photos that both answered."""
    if not judged[0].rows:
        return web_page.section(words("changed.title"), web_page.paragraph(words("changed.no_rows", name=names[0])))
    rows = []
    for name, own in list(zip(names, judged, strict=True))[1:]:
        found = run_difference.rows_changed(judged[0], own)
        if not found.total:
            rows.append(
                [
                    name,
                    Cell("0", 0),
                    Cell("–", kind="number"),
                    Cell("–", kind="number"),
                    Cell("–", kind="number"),
                    Cell("–", kind="number"),
                ]
            )
            continue
        p = found.p_value
        counts = (found.total, len(found.repaired), len(found.broken), found.both + found.neither)
        rows.append([name, *(Cell(f"{n:,}", n) for n in counts), Cell(shown_p(p), p)])
    head = [words("changed.run", first=names[0])]
    head += [words(f"changed.{k}") for k in ("shared", "repaired", "broken", "same", "p")]
    table = web_page.table(words, head, rows, sortable=len(rows) > 1)
    said = [words(f"changed.right.{judged[0].measure}"), words("changed.note")]
    if len(judged) == 2:
        said = [verdict(words, names, run_difference.rows_changed(*judged)), *said]
    return web_page.section(words("changed.title"), table, " ".join(said))


def verdict(words: Words, names: Sequence[str], found: run_difference.RowsChanged) -> str:
    """What the counts come to, in a sentence."""
    if not found.total:
        return words("changed.none_shared")
    repaired, broken, p = len(found.repaired), len(found.broken), found.p_value
    said = "changed.equal" if not repaired + broken else "changed.chance" if p >= 0.05 else "changed.beyond_chance"
    more = " " + words("changed.unmatched", count=found.unmatched) if found.unmatched else ""
    return words(said, name=names[1], repaired=repaired, broken=broken, total=found.total, p=shown_p(p)) + more


def shown_p(p: float) -> str:
    """A p-value with three digits."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.2g}" if p > 0 else "< 1e-300"


def settings(words: Words, records: Sequence[RunRecord], names: Sequence[str]) -> str:
    """Settings and facts that differ, a line each."""
    changed = run_difference.settings_changed(records)
    rows = [[key, *map(_setting, values)] for key, values in changed.items()]
    facts = run_difference.facts_changed(records, FACTS)
    rows += [
        [words.of_figure(key) if key.endswith("256") else words(f"was.{key}"), *(v[:80] for v in own)]
        for key, own in facts.items()
    ]
    if not rows:
        return web_page.section(words("settings.title"), web_page.paragraph(words("settings.equal")))
    note = words("settings.other_photos") if "test_sha256" in facts else ""
    return web_page.section(words("settings.title"), web_page.table(words, [words("settings.key"), *names], rows), note)


def _setting(value: Any) -> str:
    return "–" if value is run_difference.ABSENT else str(value) if value != "" else "''"


def curves(words: Words, records: Sequence[RunRecord], names: Sequence[str]) -> str:
    """Curves of all runs on one axis for each figure."""
    by_figure: dict[str, curve_drawings.Drawing] = {}
    for number, (name, record) in enumerate(zip(names, records, strict=True)):
        for drawing in curve_drawings.drawings_of(record.lines):
            for curve in drawing.curves:
                own = (replace(curve, name=name, colour=number),)
                there = by_figure.get(curve.name, replace(drawing, curves=()))
                by_figure[curve.name] = replace(there, curves=there.curves + own)
    if not by_figure:
        return web_page.section(words("curves.title"), web_page.paragraph(words("several.no_curves")))
    drawn = "".join(
        curve_drawings.chart(words, drawing, title=words.of_figure(figure)) for figure, drawing in by_figure.items()
    )
    without = [name for name, record in zip(names, records, strict=True) if not record.lines]
    note = words("several.without_curves", names=", ".join(without)) if without else ""
    return web_page.section(words("curves.title"), f'<div class="charts">{drawn}</div>', note)


def classes(words: Words, records: Sequence[RunRecord], names: Sequence[str]) -> str:
    """Classes with their figures in both runs, the most changed first."""
    tables = [judged_rows.class_table(record) for record in records]
    kind = "groups" if records[0].judged_as == "ground" else "classes"
    if records[0].judged_as == "retrieve":
        return ""
    title = words(f"{kind}.title")
    for name, record, table in zip(names, records, tables, strict=True):
        if table is None:
            said = f"{name}: {run_page.missing(words, record, f'{kind}.none')}"
            return web_page.section(title, web_page.paragraph(said))
    found = run_difference.classes_changed(*tables)
    rows = [
        [
            own.name, Cell(f"{own.count:,}", own.count), Cell(f"{100 * own.before:.1f} %", own.before),
            Cell(f"{100 * own.after:.1f} %", own.after),
            Cell(f"{100 * own.change:+.1f}" if own.change else "0", own.change, kind=_kind(own.change)),
        ]
        for own in found
    ]  # fmt: skip
    moved = sum(round(own.change, 9) != 0 for own in found)
    better = sum(round(own.change, 9) > 0 for own in found)
    note = words("classes.changed", count=len(found), better=better, worse=moved - better)
    head = [words(f"{kind}.name"), words("classes.count"), *names, words("several.change")]
    return web_page.section(title, web_page.table(words, head, rows), note)


def changed_photos(
    words: Words, names: Sequence[str], judged: Sequence[judged_rows.Judged], photos: PagePhotos
) -> list[str]:
    """Photos that the second run repaired, and those that it broke."""
    if not all(own.rows for own in judged):
        return []
    found, parts = run_difference.rows_changed(*judged), []
    for kind, pairs in (("repaired", found.repaired), ("broken", found.broken)):
        title = words(f"changed.title.{kind}", count=len(pairs))
        if not pairs:
            parts.append(web_page.section(title, web_page.paragraph(words(f"changed.none.{kind}"))))
            continue
        shown = [row_of(words, *pair) for pair in pairs[:SHOWN]]
        note = words(f"changed.note.{kind}", first=names[0], second=names[1], shown=len(shown), count=len(pairs))
        parts.append(web_page.section(title, run_page.tiles(words, shown, photos), note))
    return parts


def row_of(words: Words, before: judged_rows.JudgedRow, after: judged_rows.JudgedRow) -> judged_rows.JudgedRow:
    """The second run's row, with what the first answered."""
    said = f"{before.said}, {before.number}" if before.said != after.said else before.number
    return replace(after, note=words("tile.before", said=said))


def title(words: Words, records: Sequence[RunRecord]) -> str:
    """The names of few runs, or how many there are."""
    return " · ".join(names_of(records)) if len(records) < 4 else words("page.several", count=len(records))


def about(words: Words, records: Sequence[RunRecord]) -> str:
    """The line below the title: the task and the recipes."""
    return " · ".join([words(f"task.{records[0].task}"), *dict.fromkeys(record.recipe for record in records)])


def page_of_runs(words: Words, records: Sequence[RunRecord], photos: PagePhotos, command: str) -> str:
    """The whole file."""
    parts = comparison_parts(words, records, photos)
    return web_page.page(words, title(words, records), about(words, records), parts, command)
