"""One run as a page: head figures, curves, classes, confusion, the worst photos, what it was."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from jclip.choices import SELECTED_ON_TEST
from jclip.config import to_yaml
from jclip.report import confusion_map, curve_drawings, head_figures, judged_rows, web_page
from jclip.report.page_photos import PagePhotos
from jclip.report.page_words import Words
from jclip.report.run_record import RunRecord, is_figure
from jclip.report.run_table import shortly
from jclip.report.web_page import Cell
from jclip.train.run_folder import is_shipped

WORST = 24  # photos
ABOUT = ("time", "seconds", "machine", "threads", "commit")


def run_parts(words: Words, record: RunRecord, photos: PagePhotos) -> list[str]:
    """The parts of the page of one run, as HTML. Raises `CheckpointError` or `DataError` for a damaged file."""
    judged = judged_rows.judged_rows(record)
    classes = judged_rows.class_table(record)
    return [
        summary(words, record),
        curves(words, record),
        per_class(words, record, classes),
        *([confusion(words, judged, classes)] if record.judged_as == "classify" and classes is not None else []),
        worst(words, record, judged, photos),
        what_it_was(words, record),
    ]


def about(words: Words, record: RunRecord) -> str:
    """The line below the title."""
    state = "state.finished" if record.finished else "state.unfinished"
    said = [words(f"task.{record.task}"), record.recipe, words(state)]
    if when := record.provenance.get("time"):
        said.append(str(when)[:16].replace("T", " "))
    return " · ".join(filter(None, said))


def summary(words: Words, record: RunRecord) -> str:
    """Cards of the head figures, and what must be known of them."""
    said = []
    if not record.finished:
        done = max((int(line.get("epoch", 0)) + 1 for line in record.lines), default=0)
        said.append(words("state.how_far", done=done, planned=record.epochs_planned or "?"))
    if record.figures.get(SELECTED_ON_TEST):
        said.append(words("figure.selected_on_test"))
    if record.finished and not head_figures.figures_of(record):
        said.append(words("figure.none"))
    warnings = "".join(web_page.paragraph(text, "warning") for text in said)
    return web_page.cards(head_figures.head_cards(words, record)) + warnings


def curves(words: Words, record: RunRecord) -> str:
    """What was logged, drawn, and its last and best values in a table."""
    drawings = curve_drawings.drawings_of(record.lines)
    if not drawings:
        logs = bool(record.epochs_planned)
        said = "curves.none_yet" if not record.finished else "curves.not_there" if logs else "curves.none"
        return web_page.section(words("curves.title"), web_page.paragraph(words(said)))
    best = record.metrics.get("best_epoch", 0)
    best = best if isinstance(best, int) else 0
    drawn = "".join(curve_drawings.chart(words, drawing, best) for drawing in drawings)
    note = [words("curves.best_line", epoch=best)] if best else []
    if record.damaged:
        note.append(words("curves.damaged", count=record.damaged))
    table = last_and_best(words, drawings)
    return web_page.section(words("curves.title"), f'<div class="charts">{drawn}</div>{table}', " ".join(note))


def last_and_best(words: Words, drawings: Sequence[curve_drawings.Drawing]) -> str:
    """A table: each curve's last and best value with their epochs."""
    rows = []
    for drawing in drawings:
        for curve in drawing.curves if drawing.kind in ("loss", "share", "rank") else ():
            last, best = curve.last, curve.best(drawing.lower_is_better)
            cells = [Cell(f"{shortly(value)} ({epoch})", value) for epoch, value in (last, best)]
            rows.append([words.of_figure(curve.name), *cells])
    head = [words(f"curves.{k}") for k in ("figure", "last", "best")]
    return web_page.table(words, head, rows) if rows else ""


def per_class(words: Words, record: RunRecord, classes: judged_rows.ClassTable | None) -> str:
    """The table of classes, the worst first."""
    kind = "groups" if record.judged_as == "ground" else "classes"
    if record.judged_as == "retrieve":
        return web_page.section(words("classes.title"), web_page.paragraph(words("classes.of_pairs")))
    if classes is None:
        return web_page.section(words(f"{kind}.title"), web_page.paragraph(missing(words, record, f"{kind}.none")))
    order = np.lexsort((-classes.counts, np.nan_to_num(classes.figures, nan=2.0)))
    if kind == "groups":
        order = np.arange(len(classes.names))
    rows = [class_row(classes, int(n)) for n in order]
    head = [words(f"{kind}.name"), words("classes.count")]
    head += [words("classes.right")] if classes.right is not None else []
    table = web_page.table(words, [*head, words(f"measure.{classes.measure}")], rows)
    known = classes.figures[~np.isnan(classes.figures)]
    note = words(f"{kind}.note", count=len(classes.names), mean=f"{100 * known.mean():.1f} %" if len(known) else "–")
    if empty := int((classes.counts == 0).sum()):
        note += " " + words("classes.empty", count=empty)
    return web_page.section(words(f"{kind}.title"), table, note)


def class_row(classes: judged_rows.ClassTable, n: int) -> list[str | Cell]:
    """A class: name, count, how many were right, its figure with a bar."""
    count, figure = int(classes.counts[n]), float(classes.figures[n])
    right = [Cell(f"{int(classes.right[n]):,}", int(classes.right[n]))] if classes.right is not None else []
    shown = Cell("–") if np.isnan(figure) else Cell(f"{100 * figure:.1f} %", figure, min(max(figure, 0), 1))
    return [classes.names[n], Cell(f"{count:,}", count), *right, shown]


def missing(words: Words, record: RunRecord, what: str) -> str:
    """A sentence: what a run's folder does not hold, and the command that makes it."""
    if not record.finished:
        return words(what) + " " + words("missing.unfinished")
    if is_shipped(record.folder):
        return words(what) + " " + words("missing.shipped", run=record.folder.name)
    return words(what) + " " + words("missing.eval", run=str(record.folder))


def confusion(words: Words, judged: judged_rows.Judged, classes: judged_rows.ClassTable) -> str:
    """Which classes are taken for which."""
    answers = judged_rows.answers_of(judged, classes.names)
    if not answers:
        return web_page.section(words("confusion.title"), web_page.paragraph(words("confusion.no_rows")))
    body = confusion_map.confusion_map(words, answers, classes.names)
    return web_page.section(words("confusion.title"), body, words("confusion.note"))


def worst(words: Words, record: RunRecord, judged: judged_rows.Judged, photos: PagePhotos) -> str:
    """The photos that were most certainly wrong."""
    title = words(f"worst.title.{judged.measure}")
    if judged.why_not == "labels_gone":
        return web_page.section(title, web_page.paragraph(words("worst.labels_gone", reason=judged.reason)))
    if judged.why_not:
        return web_page.section(title, web_page.paragraph(missing(words, record, "worst.none_measured")))
    rows = judged.worst(WORST)
    if not rows:
        return web_page.section(title, web_page.paragraph(words("worst.all_right", count=len(judged.rows))))
    return web_page.section(title, tiles(words, rows, photos), worst_note(words, judged, len(rows)))


def worst_note(words: Words, judged: judged_rows.Judged, shown: int) -> str:
    """How many there are, and in which order."""
    return words(f"worst.note.{judged.measure}", shown=shown, wrong=judged.wrong, count=len(judged.rows))


def tiles(words: Words, rows: Sequence[judged_rows.JudgedRow], photos: PagePhotos) -> str:
    """Judged rows as tiles; those without pictures as a table; below them what is missing."""
    if not any(row.photo or row.draw for row in rows):
        return web_page.paragraph(words("photos.no_files")) + _listed(words, rows)
    before = photos.shown
    shown = "\n".join(map(photos.tile_of, rows))
    note = photos.note()
    said = web_page.paragraph(note) if note else ""
    if photos.shown == before:
        return said + _listed(words, rows)
    return f'<div class="tiles">\n{shown}\n</div>{said}'


def _listed(words: Words, rows: Sequence[judged_rows.JudgedRow]) -> str:
    """The same as a table."""
    cells = [[row.key.split("\0")[0], row.said, row.number, row.true, row.note] for row in rows]
    head = [*(words(f"tile.{k}") for k in ("row", "said", "number", "is")), ""]
    return web_page.table(words, head, cells)


def what_it_was(words: Words, record: RunRecord) -> str:
    """Recipe, seed, weights, data, times; the whole config and all figures, folded."""
    known = record.provenance
    weights = sorted(k for k in known if k.endswith("sha256"))
    pairs = [(words("was.folder"), os.path.abspath(record.folder)), (words("was.recipe"), record.recipe)]  # noqa: PTH100
    pairs += [(words(f"was.{k}"), str(record.config[k])) for k in ("model", "seed") if k in record.config]
    pairs += [(words.of_figure(k), str(known[k])) for k in weights]
    pairs += [(words(f"was.{k}"), str(known[k])) for k in ABOUT if known.get(k) not in (None, "")]
    if isinstance(peak := known.get("peak_mib"), dict) and peak:
        pairs.append((words("was.peak"), ", ".join(f"{k} {v} MiB" for k, v in peak.items())))
    if isinstance(versions := known.get("versions"), dict):
        pairs.append((words("was.versions"), ", ".join(f"{k} {v}" for k, v in versions.items())))
    body = web_page.facts(pairs)
    config = web_page.escaped(to_yaml(dict(record.config)))
    body += web_page.folded(words("was.config"), f"<pre>{config}</pre>")
    if record.figures:
        rows = [
            [words.of_figure(k), k, Cell(shortly(v), float(v) if is_figure(v) else None)]
            for k, v in record.figures.items()
        ]
        head = [words("was.figure"), words("was.key"), words("was.value")]
        body += web_page.folded(words("was.figures", count=len(rows)), web_page.table(words, head, rows))
    if not record.finished:
        body = web_page.paragraph(words("was.unfinished")) + body
    return web_page.section(words("was.title"), body)


def page_of_run(words: Words, record: RunRecord, photos: PagePhotos, command: str) -> str:
    """The whole file."""
    return web_page.page(words, record.name, about(words, record), run_parts(words, record, photos), command)
