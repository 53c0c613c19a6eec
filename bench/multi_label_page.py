"""The tables of docs/multi_label_results.md, made of docs/multi_label_results.csv."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from multi_label_rows import AIMS, PHOTOS_KNOWN, SEEDS, SETS

COLUMNS = ("row", "seed", "photos", "test_map", "val_map", "chosen")
BEGIN, END = "<!-- written by bench/multi_label_table.py -->", "<!-- end -->"
TITLE = "# Several things in one photo, learned from sentences alone\n\n"
Lines = Sequence[dict[str, str]]


def read(path: Path) -> list[dict[str, str]]:
    """The lines of the CSV."""
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def written(page: str, lines: Lines) -> str:
    """The page with its tables made anew, everything outside of the marks as it was."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2] or "\n"
    return f"{before or TITLE}{BEGIN}\n\n{tables(lines)}\n\n{END}{after}"


def tables(lines: Lines) -> str:
    """All tables, and what became of each aim."""
    names = list(dict.fromkeys(line["row"] for line in lines))
    untrained = [n for n in names if any(line["row"] == n and not line["seed"] for line in lines)]
    photos = [n for n in names if n in PHOTOS_KNOWN]
    learned = [n for n in names if n not in untrained and n not in photos]
    single = [n for n in learned if "windows" not in n and "ensemble" not in n]
    on_winner = [n for n in single if n.startswith("winner")]
    alone = [n for n in single if n not in on_winner or n == "winner"]
    rest = [n for n in learned if n not in single or n == "winner"]
    blocks = [
        ("Without training", table(lines, untrained, "whole photo")),
        ("`text_as_image`: each part alone, against `plain`", table(lines, alone, "plain")),
        ("`text_as_image`: each part on top of `winner`, against `winner`", table(lines, on_winner, "winner")),
        ("Windows and ensembles, against `winner`", table(lines, rest, "winner")),
        ("`dual_prompt` on 800 labelled scenes, against its own loss", table(lines, photos, next(iter(PHOTOS_KNOWN)))),
    ]
    return "\n\n".join([*(f"**{title}**\n\n{of}" for title, of in blocks if of), aims(lines)])


def table(lines: Lines, names: Sequence[str], base: str) -> str:
    """Test mAP in percent of each row, mean and deviation over seeds, and what it gains on `base`."""
    if not names:
        return ""
    head = ["row", *(x for name in SETS for x in (f"`{name}`", "±", "gain"))]
    shown = [head, ["---"] * len(head)]
    for name in names:
        cells = [name]
        for photos in SETS:
            own, other = values(lines, name, photos), values(lines, base, photos)
            gain = statistics.mean(own.values()) - statistics.mean(other.values()) if own and other else None
            spread = f"{100 * statistics.pstdev(own.values()):.1f}" if len(own) > 1 else ""
            mean = f"{100 * statistics.mean(own.values()):.1f}" if own else ""
            cells += [mean, spread, "" if gain is None or name == base else f"{100 * gain:+.1f}"]
        shown.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in shown)


def values(lines: Lines, name: str, photos: str) -> dict[str, float]:
    """Seed → test mAP of a row."""
    return {x["seed"]: float(x["test_map"]) for x in lines if (x["row"], x["photos"]) == (name, photos)}


def aims(lines: Lines) -> str:
    """A line for each aim: what was reached, by the mean of the seeds and by each."""
    told = []
    for name, photos, least in AIMS:
        own = values(lines, name, photos)
        if own:
            reached = 100 * statistics.mean(own.values())
            each = ", ".join(f"{100 * v:.1f}" for v in own.values())
            verdict = "reached" if reached >= least else "missed"
            told.append(f"- {name}, `{photos}`: aim {least:g}, {verdict}: {reached:.1f} ({each})")
    seeds = len({line["seed"] for line in lines if line["seed"]})
    return f"Seeds: {seeds} of {len(SEEDS)}.\n\n" + "\n".join(told)
