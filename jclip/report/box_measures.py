"""How right predicted boxes are, of any file: all figures with their groups, and a sheet of the worst. Imports no Jittor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jclip.data.box_rows import BoxRow, boxes_of
from jclip.data.box_views import centred
from jclip.errors import ConfigError, counted, printable
from jclip.functional import box_metrics, boxes
from jclip.report import contact_sheet, predictions
from jclip.report.run_table import shortly
from jclip.report.tiles import LONGEST, Section, Tile

SIDE = 224  # of the padded square; IoUs are the same at any

TRUE, FOUND = (90, 230, 90), (255, 90, 60)  # colours of boxes in the sheet
FIGURES = {"acc@0.25": "@0.25", "acc@0.5": "Acc@0.5", "acc@0.75": "@0.75", "acc@0.9": "@0.9", "mean_iou": "mean IoU",
           "cumulative_iou": "cumulative IoU", "count": "phrases"}  # fmt: skip
Criterion = Literal["iou", "giou"]
Frame = Literal["image", "square"]


@dataclass(frozen=True)
class MeasuredBoxes:
    """Rows whose thing is there, with corners (N, 4) that were predicted for them, in pixels of the photo. metrics: what
    all of them come to; groups: count, acc and its interval of those that share a trait; overlaps: (N,) IoUs."""

    rows: Sequence[BoxRow]
    predicted: np.ndarray
    overlaps: np.ndarray
    metrics: Mapping[str, Any]
    groups: Mapping[str, Mapping[str, float]]

    def as_json(self) -> dict[str, Any]:
        """What is written to a file."""
        return {**self.metrics, "groups": self.groups}

    def tables(self) -> str:
        """The figures as a line, and a line for each group."""
        shown = {k: title for k, title in FIGURES.items() if k in self.metrics}
        more = {k: k for k in self.metrics if k.startswith(("acc@", "present_")) and k not in FIGURES}
        shown = {**{k: t for k, t in shown.items() if k != "count"}, **more, "count": FIGURES["count"]}
        first = predictions.table([*shown.values()], [[shortly(self.metrics[k]) for k in shown]])
        all_rows = {"count": len(self.rows), **{k: self.metrics[k] for k in ("acc_low", "acc_high")}}
        groups = {"all": {**all_rows, "acc": self.metrics["acc@0.5"]}, **self.groups}
        rows = [
            [name, str(int(g["count"])), shortly(float(g["acc"])), f"{g['acc_low']:.4f} – {g['acc_high']:.4f}"]
            for name, g in groups.items()
        ]
        return f"{first}\n\n{predictions.table(['phrases', 'count', 'Acc@0.5', '95 % interval'], rows)}"


def measured_boxes(
    rows: Sequence[BoxRow],
    ranked: Sequence[np.ndarray],
    criterion: Criterion = "iou",
    frame: Frame = "image",
    thresholds: Sequence[float] = box_metrics.THRESHOLDS,
    present: Sequence[float | None] = (),
) -> MeasuredBoxes:
    """Measure boxes; ranked: of each row corners (k, 4) in pixels of the photo, the best first, which counts.

    criterion: what must be at least t for acc@t. frame: `image`: boxes as they are; `square`: as CLIP-VG measures, true
    boxes cut to integers, predicted ones at the edges of the padded square. Where rows have several boxes, acc@0.5_top5 and
    _top10 say how often one of the first is right. present: of each row the probability that the thing is there; with rows
    whose thing is absent, present_auroc says how well it tells them apart. Raises `ConfigError` for no row with a box, or
    one whose photo's size the frame needs and is unknown.
    """
    there = [n for n, row in enumerate(rows) if row.box is not None]
    if not there:
        raise ConfigError("there must be rows with a box to measure on, got none")
    own = [rows[n] for n in there]
    first = np.array([ranked[n][0] for n in there], float)
    found, wanted = _framed(own, first, frame)
    metrics: dict[str, Any] = box_metrics.box_report(found, wanted, criterion, tuple(dict.fromkeys((*thresholds, 0.5))))
    hits = round(metrics["acc@0.5"] * len(own))
    metrics["acc_low"], metrics["acc_high"] = box_metrics.wilson_interval(hits, len(own))
    metrics |= _of_several(own, [ranked[n] for n in there], criterion, frame)
    known = [p for p in present if p is not None]
    if len(known) == len(rows) and len(there) < len(rows):
        chances = np.array(known, float)
        absent = np.array([row.box is None for row in rows])
        metrics["present_auroc"] = box_metrics.auroc(chances[~absent], chances[absent])
    metrics |= {"count": len(own), "absent": len(rows) - len(own), "criterion": criterion, "frame": frame}
    groups = box_metrics.group_report(found, wanted, _groups(own), criterion)
    return MeasuredBoxes(own, first, boxes.iou(found, wanted), metrics, groups)


def _framed(rows: Sequence[BoxRow], found: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true corners as they are compared."""
    if frame == "image":
        return found, boxes_of(rows)
    if unknown := next((row for row in rows if row.size is None), None):
        raise ConfigError(
            f"the frame square must know each photo's size, got none of {printable(unknown.image, 200)}: give --root FOLDER"
        )
    places = [centred(row.size, SIDE) for row in rows]
    corners = [
        [boxes.centres_to_corners(place.into(np.array(box))) for place, box in zip(places, given, strict=True)]
        for given in (found, [row.truncated() for row in rows])
    ]
    return boxes.clipped(np.array(corners[0]), 1, 1), np.array(corners[1])


def _of_several(
    rows: Sequence[BoxRow], ranked: Sequence[np.ndarray], criterion: Criterion, frame: Frame
) -> dict[str, float]:
    """acc@0.5_top5 and _top10, where a row has so many."""
    most, compare = max(map(len, ranked)), boxes.giou if criterion == "giou" else boxes.iou
    found = {}
    for k in (5, 10):
        if most > 1 and (most > 5 or k == 5):
            pairs = [(row, box) for row, own in zip(rows, ranked, strict=True) for box in own[:k]]
            of = np.repeat(np.arange(len(rows)), [min(len(own), k) for own in ranked])
            right = (
                compare(*_framed([row for row, _ in pairs], np.array([box for _, box in pairs], float), frame)) >= 0.5
            )
            found[f"acc@0.5_top{k}"] = float((np.bincount(of, right) > 0).mean())
    return found


def _groups(rows: Sequence[BoxRow]) -> dict[str, np.ndarray]:
    """Masks by length of the phrase and direction words, and where all sizes are known by the box's share of the photo."""
    known = all(row.size is not None for row in rows)
    sizes = np.array([row.size or (1, 1) for row in rows], float)
    groups = box_metrics.phrase_groups([row.phrase for row in rows], boxes_of(rows), sizes)
    return {name: m for name, m in groups.items() if known or not name.endswith(" box")}


def write_worst(path: str | os.PathLike, measured: MeasuredBoxes, photos: str | os.PathLike, count: int = 24) -> int:
    """Write the `count` phrases whose boxes overlap least as a sheet, true boxes green and found ones red; return how many.

    photos: the folder of the photos; one that is not there has a grey tile. Raises `ConfigError` for another ending.
    """
    order = np.argsort(measured.overlaps, kind="stable")[:count].tolist()
    right = int((measured.overlaps[order] >= 0.5).sum())
    tiles = tuple(
        _tile(measured.rows[n], measured.predicted[n], float(measured.overlaps[n]), Path(photos)) for n in order
    )
    low, high = measured.overlaps[order[0]], measured.overlaps[order[-1]]
    said = f"green: true, red: found · IoU from {low:.2f} to {high:.2f}, {right} of at least 0.5"
    title = f"the worst {len(order)} of {counted(len(measured.rows), 'phrase')}"
    contact_sheet.write_sections(path, [Section(title, tiles, said)], title, "numbers: IoU")
    return len(order)


def _tile(row: BoxRow, found: np.ndarray, overlap: float, photos: Path) -> Tile:
    phrase = printable(" ".join(row.phrase[:LONGEST].split()))
    return Tile(
        photo=str(photos / row.image),
        best=((phrase, min(max(overlap, 0.0), 1.0)),),
        verdict="right" if overlap >= 0.5 else "wrong",
        upright=False,  # boxes are of the photo as it is stored
        numbers=(f"{overlap:.2f}",),
        may_be_absent=True,
        boxes=((row.box, TRUE), (tuple(found.tolist()), FOUND)),
    )
