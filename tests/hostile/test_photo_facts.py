"""Damaged detections, triplets and captions: rows that can be trained on, or one error that a user can fix."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from jclip.data.detected_things import read_photo_facts
from jclip.data.pseudo_labels import PseudoLabelConfig, make_pseudo_labels
from jclip.errors import JclipError

MAN = {"class": "man", "box": [310, 40, 420, 400], "score": 0.93, "attribute": "tall", "attribute_score": 0.71}
PHOTO = {
    "image": "a.jpg",
    "width": 640,
    "height": 427,
    "detections": [MAN, {"class": "red hat", "box": [330, 40, 400, 100], "score": 0.9, "attribute": "red"}],
    "attribute_detections": [MAN],
    "triplets": [
        {"subject": "man", "predicate": "in", "object": "hat", "subject_box": [310, 40, 420, 400], "scores": [1, 1, 1]}
    ],
    "captions": ["A man in a red hat."],
    "heads": [["man"]],
}
VALUES = (
    None, 0, -1, 1, 1e300, 1e11, -0.0, 0.5, 10**30, "", " ", "é", "\0", "\ud800", "a" * 300, "  Red  MAN ", True, [], {}, [[]],
    [None], [1, 2, 3, 4], [0, 0, 0, 0], [5, 5, 5, 5], [0, 0, 640, 427],
)  # fmt: skip


def places(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """All places in nested values but the outermost."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*place, key)
        yield from places(value[key], (*place, key))


def damaged(rng: random.Random) -> dict:
    photo = copy.deepcopy(PHOTO)
    for _ in range(rng.choice((1, 1, 2))):
        *way, last = rng.choice([*places(photo)])
        inner = photo
        for key in way:
            inner = inner[key]
        if rng.random() < 0.2:
            del inner[last]
        else:
            inner[last] = copy.deepcopy(rng.choice(VALUES))
    return photo


def test_damaged_objects_give_usable_rows_or_one_line(tmp_path):
    rng, path, made, refused = random.Random(5), tmp_path / "found.jsonl", 0, 0
    for _ in range(600):
        path.write_text(json.dumps(damaged(rng)) + "\n")
        try:
            facts = read_photo_facts([path])
            for compat in (False, True):
                for row in make_pseudo_labels(facts, PseudoLabelConfig(("found",), compat=compat)).rows:
                    x1, y1, x2, y2 = row.box
                    assert row.phrase.strip() and 0 <= x1 < x2 <= row.size[0] and 0 <= y1 < y2 <= row.size[1]
            made += 1
        except JclipError as e:
            assert "\n" not in str(e)
            refused += 1
    assert made > 30 and refused > 300
