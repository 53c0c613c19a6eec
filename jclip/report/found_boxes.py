"""What `jclip ground` says of the boxes that it found: a table, JSON, labels of a drawing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from jclip.features.box_proposals import ScoredBoxes
from jclip.report import predictions
from jclip.report.box_drawing import DrawnBox
from jclip.report.grounder import FoundThing

HEAD = ("photo", "phrase", "x1, y1, x2, y2", "support", "present", "probability")
PRESENT = 0.5  # below it a thing counts as absent


def best_of(phrase: str, boxes: np.ndarray, scored: ScoredBoxes) -> FoundThing:
    """The likeliest of corners (N, 4)."""
    best = scored.best
    support, probability = float(scored.cosines[best]), float(scored.probabilities[best])
    return FoundThing(phrase, tuple(boxes[best].tolist()), support=support, probability=probability)


def table_rows(photo: str, things: Sequence[FoundThing]) -> list[list[str]]:
    """A row for each phrase."""
    return [
        [photo, t.phrase, ", ".join(f"{v:.1f}" for v in t.box), *map(_score, (t.support, t.present, t.probability))]
        for t in things
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows below their names, without the scores that none of them has."""
    kept = [i for i in range(len(HEAD)) if i < 3 or any(row[i] for row in rows)]
    return predictions.table([HEAD[i] for i in kept], [[row[i] for i in kept] for row in rows])


def json_line(photo: str, size: tuple[int, int], method: str, things: Sequence[FoundThing]) -> str:
    """What `fields` gives, as JSON on a line."""
    return json.dumps(fields(photo, size, method, things), ensure_ascii=False)


def fields(photo: str, size: tuple[int, int], method: str, things: Sequence[FoundThing]) -> dict[str, Any]:
    """photo, width, height, method (network, proposals, rough), found: of each phrase phrase, box (corners) and xywh in
    pixels to two decimals; support, present, probability to four, null where not known."""
    found = [
        {
            "phrase": t.phrase,
            "box": [round(v, 2) for v in t.box],
            "xywh": [round(v, 2) for v in t.xywh],
            "support": _rounded(t.support),
            "present": _rounded(t.present),
            "probability": _rounded(t.probability),
        }
        for t in things
    ]
    return {"photo": photo, "width": size[0], "height": size[1], "method": method, "found": found}


def drawn(things: Sequence[FoundThing], method: str) -> list[DrawnBox]:
    """Boxes with their labels: rough ones say so, and things that are likely absent have a dashed box."""
    found = []
    for t in things:
        absent = t.present is not None and t.present < PRESENT
        said = f"{t.phrase} (absent?)" if absent else f"{t.phrase} (rough)" if method == "rough" else t.phrase
        found.append(DrawnBox(t.box, said, not absent))
    return found


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
