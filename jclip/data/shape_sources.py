"""The embedded world as sources of phrases with boxes: human rows, and pseudo-labels with known faults. No Jittor.

A detector finds every thing of a scene: class is the shape, attribute the colour. A relation finder says where each thing is
seen from each other. The caption is the scene's own. `corrupted` gives a share of the rows another thing's box or another
scene's phrase, so that a curriculum has something to find.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jclip.data import shapes
from jclip.data.box_predictions import write_coco_results
from jclip.data.box_rows import BoxRow, Corners, boxes_of
from jclip.data.box_tables import write_box_lines
from jclip.data.detected_things import Detection, PhotoFacts, Triplet
from jclip.data.pseudo_labels import MADE, PseudoLabelConfig, make_pseudo_labels
from jclip.data.scene_captions import Draws
from jclip.functional import boxes
from jclip.paths import cache_dir, file_sha256, replacing_folder
from jclip.readers.spreadsheet import write_csv_rows

SIZE = 64
LOOKED_AT, TABLE = 160, "photos.csv"  # pixels of photos that people look at, and the table of these
THINGS = (2, 4)
NOISE = 0.3
HELD_OUT = 10  # one scene in so many is for validation, one for test
PHOTOS, HUMAN, PROPOSALS, ABOUT = "photos", "boxes.jsonl", "proposals.json", "world.json"
FOUND = ("detections", "triplets", "captions")
_SEED, _LOOKED_AT_SEED = 60_000, 70_000


@dataclass(frozen=True)
class NamedScene:
    """A scene with its photo's name and part: train, val or test."""

    image: str
    split: str
    scene: shapes.Scene

    def box(self, thing: int, size: int) -> Corners:
        """Corners of that thing in pixels, with three decimals."""
        return tuple(round(v * size, 3) for v in self.scene.things[thing].box())


def named_scenes(count: int, seed: int, pairs: int = 0, styles: Sequence[str] = shapes.SEEN_STYLES) -> list[NamedScene]:
    """Return `count` scenes of two to four things; the last two tenths are for validation and test.

    pairs: of colour and shape, drawn anew for each scene, that its things are of (0: any). Few make equal things, whose
    phrases need words of direction.
    """
    held = max(1, count // HELD_OUT) if count > 2 else 0
    drawn = []
    for i in range(count):
        draws = Draws(f"{seed} pairs {i}")
        own = draws.sample(shapes.PAIRS, pairs) if pairs else shapes.PAIRS
        scene = shapes.draw_scene((_SEED, seed, i), pairs=own, styles=styles, count=THINGS)
        split = "test" if i >= count - held else "val" if i >= count - 2 * held else "train"
        drawn.append(NamedScene(f"scene_{i:06}.png", split, scene))
    return drawn


def human_rows(scenes: Iterable[NamedScene], size: int = SIZE) -> list[BoxRow]:
    """Return a row for each thing: the phrase that fits it alone, and its box."""
    rows: list[BoxRow] = []
    for one in scenes:
        for i, phrase in enumerate(one.scene.phrases()):
            box = one.box(i, size)
            rows.append(
                BoxRow(one.image, box, phrase, (size, size), "human", id=len(rows), split=one.split, box_raw=box)
            )
    return rows


def photo_facts(one: NamedScene, seed: int, size: int = SIZE) -> PhotoFacts:
    """Return what a detector, a relation finder and a captioner would find in a scene; scores are drawn by the seed."""
    draws = Draws(f"{seed} found {one.image}")
    things = one.scene.things
    found = tuple(
        Detection(thing.shape, one.box(i, size), _score(draws), thing.colour, _score(draws))
        for i, thing in enumerate(things)
    )
    triplets = tuple(
        Triplet(a.name, shapes.relation(a, b), b.name, one.box(i, size), (_score(draws), _score(draws), _score(draws)))
        for i, a in enumerate(things)
        for b in things
        if a is not b
    )
    heads = ((things[0].shape,),)
    return PhotoFacts(one.image, size, size, found, None, triplets, (one.scene.caption,), heads)


def pseudo_rows(
    scenes: Sequence[NamedScene], seed: int, size: int = SIZE, noise: float = NOISE
) -> dict[str, list[BoxRow]]:
    """Return the rows of the three sources, `corrupted` with that noise.

    A caption has the box of the thing that it names first, which the published rule finds by class alone: its row is made
    from the scene.
    """
    facts = [photo_facts(one, seed, size) for one in scenes]
    made = make_pseudo_labels(facts, PseudoLabelConfig(("world",), sources=("template", "relation"), seed=seed))
    rows = {source: [row for row in made.rows if row.source == source] for source in ("template", "relation")}
    rows["caption"] = [
        BoxRow(one.image, box, one.scene.caption, (size, size), "caption", split="train_pseudo", box_raw=box)
        for one in scenes
        for box in [one.box(0, size)]
    ]
    things = {one.image: [one.box(i, size) for i in range(len(one.scene.things))] for one in scenes}
    return {source: corrupted(rows[source], things, seed, noise) for source in MADE}


def corrupted(
    rows: Sequence[BoxRow], things: Mapping[str, Sequence[Corners]], seed: int, share: float = NOISE
) -> list[BoxRow]:
    """Return rows of which `share` have another thing's box, and half as many another scene's phrase.

    things: the boxes of all things of each photo. `extra["corrupted"]` says "box" or "phrase"; clean rows have none. A row
    stays clean where its photo has no other thing, or no other photo another phrase.
    """
    own: dict[str, set[str]] = {}
    for row in rows:
        own.setdefault(row.image, set()).add(row.phrase)
    images, seen, found = [*own], dict.fromkeys(own, 0), []
    phrases = {image: sorted(given) for image, given in own.items()}
    for number, row in enumerate(rows):
        draws = Draws(f"{seed} corrupted {row.source} {row.image} {seen[row.image]}")
        seen[row.image] += 1
        u = draws.below(1_000_000) / 1_000_000
        row = replace(row, id=number)
        if u < share:
            row = _with_other_box(row, things[row.image], draws)
        elif u < 1.5 * share:
            row = _with_other_phrase(row, images, phrases, draws)
        found.append(row)
    return found


def write_world(
    folder: Path, count: int, seed: int, size: int = SIZE, pairs: int = 0, noise: float = NOISE
) -> dict[str, int]:
    """Write scenes to a folder that exists, and return the number of rows of each file.

    photos/; boxes.jsonl, human rows of all parts; proposals.json, all things' boxes as COCO's results; detections.jsonl,
    triplets.jsonl and captions.jsonl of the training scenes; template.jsonl, relation.jsonl and caption.jsonl,
    pseudo-labels of these with noise; world.json, the settings.
    """
    scenes = named_scenes(count, seed, pairs)
    (folder / PHOTOS).mkdir()
    for one in scenes:
        one.scene.render(size).save(folder / PHOTOS / one.image)
    human = human_rows(scenes, size)
    write_box_lines(folder / HUMAN, human)
    write_coco_results(folder / PROPOSALS, human, boxes_of(human))
    learned = [one for one in scenes if one.split == "train"]
    _write_facts(folder, [photo_facts(one, seed, size) for one in learned])
    counts = {HUMAN: len(human), **{f"{name}.jsonl": len(learned) for name in FOUND}}
    for source, rows in pseudo_rows(learned, seed, size, noise).items():
        write_box_lines(folder / f"{source}.jsonl", rows)
        counts[f"{source}.jsonl"] = len(rows)
    about = {"scenes": count, "seed": seed, "size": size, "pairs": pairs, "noise": noise, "rows": counts}
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return counts


def kept_world(count: int, seed: int, pairs: int = 0, noise: float = NOISE, size: int = SIZE) -> Path:
    """Return the folder of `write_world` with these settings in the cache, written at its first use."""
    made_of = [count, seed, size, pairs, noise, file_sha256(Path(shapes.__file__)), file_sha256(Path(__file__))]
    folder = cache_dir("worlds") / hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    if not (folder / ABOUT).is_file():
        with replacing_folder(folder) as temporary:
            write_world(temporary, count, seed, size, pairs, noise)
    return folder


def kept_photos(count: int = 300, seed: int = 0, seen: Callable[[int, int], None] | None = None) -> Path:
    """Return a table of photos to look at, with captions and columns, in a folder of the cache, drawn at its first use.

    seen: called with the photos that are drawn and all of them.
    """
    made_of = ["photos", count, seed, LOOKED_AT, file_sha256(Path(shapes.__file__)), file_sha256(Path(__file__))]
    folder = cache_dir("worlds") / hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    if not (folder / TABLE).is_file():
        with replacing_folder(folder) as temporary:
            (temporary / PHOTOS).mkdir()
            rows = []
            for number in range(count):
                scene = shapes.draw_scene((_LOOKED_AT_SEED, seed, number), styles=shapes.SEEN_STYLES, count=(1, 2))
                name = f"{PHOTOS}/{number + 1:0{len(str(count))}}.png"
                scene.render(LOOKED_AT).save(temporary / name)
                rows.append([name, scene.caption, len(scene.things), scene.style])
                if seen:
                    seen(number + 1, count)
            with (temporary / TABLE).open("w", encoding="utf-8", newline="") as file:
                write_csv_rows(file, ["path", "caption", "things", "style"], rows)
    return folder / TABLE


def _write_facts(folder: Path, facts: Sequence[PhotoFacts]) -> None:
    """One file for each kind, as `jclip pseudo-labels` reads them."""
    for kind in FOUND:
        lines = []
        for one in facts:
            head = {"image": one.image, "width": one.width, "height": one.height}
            lines.append(json.dumps({**head, **_VALUES[kind](one)}) + "\n")
        (folder / f"{kind}.jsonl").write_text("".join(lines), encoding="utf-8")


def _detections(one: PhotoFacts) -> dict:
    return {
        "detections": [
            {
                "class": d.classname,
                "box": [*d.box],
                "score": d.score,
                "attribute": d.attribute,
                "attribute_score": d.attribute_score,
            }
            for d in one.detections
        ]
    }


def _triplets(one: PhotoFacts) -> dict:
    return {
        "triplets": [
            {
                "subject": t.subject,
                "predicate": t.predicate,
                "object": t.object,
                "subject_box": [*t.box],
                "scores": [*t.scores],
            }
            for t in one.triplets
        ]
    }


def _captions(one: PhotoFacts) -> dict:
    return {"captions": [*one.captions], "heads": [[*words] for words in one.heads if words is not None]}


_VALUES = {"detections": _detections, "triplets": _triplets, "captions": _captions}


def _score(draws: Draws) -> float:
    return round(0.5 + draws.below(5000) / 10_000, 4)


def _with_other_box(row: BoxRow, things: Sequence[Corners], draws: Draws) -> BoxRow:
    others = [b for b in things if boxes.iou(np.array(b), np.array(row.box)) < 0.5]
    if not others:
        return row
    box = draws.one(others)
    return replace(row, box=box, box_raw=box, extra={**row.extra, "corrupted": "box"})


def _with_other_phrase(
    row: BoxRow, images: Sequence[str], phrases: Mapping[str, Sequence[str]], draws: Draws
) -> BoxRow:
    """A phrase that no row of this photo has."""
    for _ in range(20):
        other = draws.one(images)
        phrase = draws.one(phrases[other])
        if other != row.image and phrase not in phrases[row.image]:
            return replace(row, phrase=phrase, extra={**row.extra, "corrupted": "phrase"})
    return row
