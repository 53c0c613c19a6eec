"""Phrases made of a photo's detections by templates, after Pseudo-Q (Jiang et al., CVPR 2022, arXiv 2203.08481).

No network: classes, attributes, clothes and where things lie among their like give phrases such as "tall man on the left".
The published lengths are pixels of photos of about 640; here they scale with the photo's longer side, and an attribute
is looked for in a class name as a whole word. `compat` does both as published. Imports no Jittor.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.detected_things import Box, Detection, PhotoFacts
from jclip.errors import ConfigError, quoted
from jclip.functional import boxes
from jclip.paths import ASSETS
from jclip.readers.strict_yaml import read_yaml

CLOTHES = ("hat", "shirt", "pants", "shoes")
GROUPS = ("people", *CLOTHES)
USUAL_SIDE = 640  # pixels of the longer side of the photos whose constants were published
LEAST_AREA = 1 / 64  # of the photo, for people and things
MOST_OVERLAP, SAME_OVERLAP = 0.4, 0.5  # IoU of two boxes of one group, of an object and its attribute's box
LEAST_ATTRIBUTE = 0.3
LEAST_INSIDE = 0.75  # share of a piece of clothing that lies in its wearer
HAT_HEIGHT, PANTS_HEIGHT = 0.75, 0.5
SPREAD = 50  # pixels
FAR, NEAR = 0.4, 0.8  # ratios of areas
ON, IN = ("left", "right"), ("front", "behind", "middle", "center")


@dataclass(frozen=True)
class WordGroups:
    """Which class names are people, and which clothes of which kind; all others are things."""

    people: frozenset[str]
    clothes: Mapping[str, str]  # word → the first kind that has it

    @classmethod
    def of(cls, values: Mapping[str, Any], place: str) -> WordGroups:
        """Groups of plain values. Raises `ConfigError`."""
        words = {}
        for name in GROUPS:
            given = values.get(name) or []
            if not isinstance(given, list) or not all(isinstance(word, str) and word.strip() for word in given):
                raise ConfigError(f"{place}: {name} must be a list of words, got {quoted(given, 80)}")
            words[name] = [" ".join(word.lower().split()) for word in given]
        return cls(frozenset(words["people"]), {w: kind for kind in reversed(CLOTHES) for w in words[kind]})


@cache
def shipped() -> dict[str, Any]:
    """The file that ships: word groups, and N and M of each data set."""
    return read_yaml(ASSETS / "pseudo_labels.yaml")


def word_groups(path: str | os.PathLike = "") -> WordGroups:
    """Return the groups of a YAML file with people, hat, shirt, pants, shoes; by default those that ship."""
    if not path:
        return WordGroups.of(shipped(), "pseudo_labels.yaml")
    values = read_yaml(Path(path))
    if unknown := [key for key in values if key not in (*GROUPS, "data_sets")]:
        raise ConfigError(f"{path}: unknown key {quoted(unknown[0], 60)} (known: {', '.join(GROUPS)})")
    return WordGroups.of(values, str(path))


@dataclass
class Target:
    """An object that phrases may name, with what they may say of it."""

    found: Detection
    person: bool
    clothes: list[str] = field(default_factory=list)  # as phrases have them: "red shirt"
    places: list[str] = field(default_factory=list)  # "left", "front", …

    @property
    def noun(self) -> str:
        """Attribute and class."""
        return said(self.found)


@dataclass(frozen=True)
class Sorted:
    """Detections of a photo that passed the filters, in three groups."""

    people: list[Detection]
    clothes: list[Detection]
    things: list[Detection]


def said(d: Detection) -> str:
    """Attribute and class, or the class alone."""
    return f"{d.attribute} {d.classname}" if d.attribute else d.classname


def filtered(facts: PhotoFacts, words: WordGroups, compat: bool = False) -> Sorted:
    """Return the detections that are left of steps 1 to 4: floors, sizes, overlaps, attributes."""
    first = [_floored(d, facts, compat) for d in facts.detections]
    if facts.attribute_detections is None:
        return _grouped([_own_attribute(d, compat) for d in first], facts, words, least=LEAST_AREA)
    second = [_own_attribute(_floored(d, facts, compat), compat) for d in facts.attribute_detections]
    seconds = _grouped(second, facts, words, least=0.0)
    firsts = _grouped([replace(d, attribute="") for d in first], facts, words, least=LEAST_AREA)
    return Sorted(
        *(
            [_with_attribute(d, others) for d in own]
            for own, others in (
                (firsts.people, seconds.people),
                (firsts.clothes, seconds.clothes),
                (firsts.things, seconds.things),
            )
        )
    )


def targets_of(facts: PhotoFacts, words: WordGroups, compat: bool = False) -> list[Target]:
    """Return people, then things, with their clothes and places (steps 1 to 6); objects of one class stand together."""
    left = filtered(facts, words, compat)
    targets = [Target(d, person=True) for d in _by_class(left.people)]
    targets += [Target(d, person=False) for d in _by_class(left.things)]
    for target in targets:
        if target.person:
            target.clothes = _worn(target.found.box, left.clothes, words)
    for name in dict.fromkeys(t.found.classname for t in targets):
        place_words([t for t in targets if t.found.classname == name], facts.width, facts.height, compat)
    return targets


def best_targets(targets: Sequence[Target], count: int) -> list[Target]:
    """Return up to `count` targets: people by score, then the best things; in their order."""
    order = sorted(range(len(targets)), key=lambda i: (not targets[i].person, -targets[i].found.score, i))
    return [targets[i] for i in sorted(order[:count])]


def phrases_of(target: Target) -> list[str]:
    """Return all phrases that the templates give for a target (step 8), repeats among them."""
    n = target.noun
    phrases = [n]
    for r in target.places:
        phrases += [f"{n} {r}", *(f"{n} {the}" for the in _the(r)), f"{r} {n}"]
    for c in target.clothes:
        phrases += [f"{n} {c}", f"{c} {n}"]
    for r in target.places:
        for c in target.clothes:
            phrases += [f"{n} {c} {r}", f"{n} {r} {c}", f"{c} {n} {r}", f"{c} {r} {n}", f"{r} {n} {c}", f"{r} {c} {n}"]
            phrases += [p for the in _the(r) for p in (f"{n} {c} {the}", f"{n} {the} {c}", f"{c} {n} {the}")]
    return phrases


def _the(place: str) -> list[str]:
    return [f"on the {place}"] if place in ON else [f"in the {place}"] if place in IN else []


def place_words(same: Sequence[Target], width: int, height: int, compat: bool = False) -> None:
    """Give objects of one class their words of place (step 6): by centres, then by areas."""
    if len(same) < 2:
        return
    x, y = np.array([((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in (t.found.box for t in same)]).T
    spread = SPREAD if compat else SPREAD * max(width, height) / USUAL_SIDE
    if x.max() - x.min() > spread:
        left, right = int(x.argmin()), int(x.argmax())
        same[left].places.append("left")
        same[right].places.append("right")
        for i in range(len(same)) if len(same) > 2 else ():
            if i not in (left, right):
                same[i].places += _across(float(x[i]), width, len(same))
    if y.max() - y.min() > spread:
        top, bottom = int(y.argmin()), int(y.argmax())
        same[bottom].places.append("bottom")
        same[top].places.append("top")
        upper = (width if compat else height) / 4  # the published code takes the width
        for i in range(len(same)):
            if i not in (top, bottom):
                same[i].places += ["bottom"] if y[i] > height * 3 / 4 else ["top"] if y[i] < upper else []
    _depths(same)


def _across(x: float, width: int, count: int) -> list[str]:
    if count == 3 or width / 4 <= x <= width * 3 / 4:
        return ["middle", "center"]
    return ["right"] if x > width * 3 / 4 else ["left"]


def _depths(same: Sequence[Target]) -> None:
    area = boxes.areas(np.array([t.found.box for t in same]))
    small, large = int(area.argmin()), int(area.argmax())
    if not area[small] < FAR * area[large]:
        return
    same[small].places.append("behind")
    same[large].places.append("front")
    for i in range(len(same)) if len(same) > 3 else ():
        if i not in (small, large):
            ratio = area[i] / area[large]
            same[i].places += ["behind"] if ratio < FAR else ["front"] if ratio > NEAR else []


def _floored(d: Detection, facts: PhotoFacts, compat: bool) -> Detection:
    """Step 1: a corner at 0 lies one pixel further."""
    floor = 1.0 if compat else max(facts.width, facts.height) / USUAL_SIDE
    x1, y1, x2, y2 = d.box
    return replace(d, box=(x1 or floor, y1 or floor, x2, y2))


def _own_attribute(d: Detection, compat: bool) -> Detection:
    """Step 4: an attribute that is sure enough; a class name that has it loses it."""
    if not d.attribute or d.attribute_score <= LEAST_ATTRIBUTE:
        return replace(d, attribute="")
    if compat:
        return replace(d, classname=d.classname.replace(f"{d.attribute} ", "") or d.classname)
    words, own = d.classname.split(), d.attribute.split()
    if words[-len(own) :] == own:  # an orange is no orange orange
        return replace(d, attribute="")
    for start in range(len(words) - len(own)):
        if words[start : start + len(own)] == own:
            return replace(d, classname=" ".join(words[:start] + words[start + len(own) :]))
    return d


def _grouped(found: Iterable[Detection], facts: PhotoFacts, words: WordGroups, least: float) -> Sorted:
    """Steps 2 and 3. least: the share of the photo that people and things must have."""
    groups: dict[str, list[Detection]] = {"people": [], "clothes": [], "things": []}
    for d in found:
        if d.box[0] > d.box[2] or d.box[1] > d.box[3]:
            continue
        kind = "people" if d.classname in words.people else "clothes" if d.classname in words.clothes else "things"
        if kind == "clothes" or _area(d.box) >= least * facts.width * facts.height:
            groups[kind].append(d)
    return Sorted(**{kind: _apart(own) for kind, own in groups.items()})


def _apart(found: Sequence[Detection]) -> list[Detection]:
    """Step 3: of each pair that overlaps too much the lower score is marked, of equal ones the later; all marked go."""
    if len(found) < 2:
        return [*found]
    table = boxes.iou_table(*[np.array([d.box for d in found])] * 2)
    marked = set()
    for i, j in zip(*np.nonzero(np.triu(table > MOST_OVERLAP, 1)), strict=True):
        marked.add(int(i if found[i].score < found[j].score else j))
    return [d for i, d in enumerate(found) if i not in marked]


def _with_attribute(d: Detection, others: Sequence[Detection]) -> Detection:
    """Step 4: the attribute of a box of the same class over it; the last one's."""
    for other in others:
        same = other.attribute and other.classname == d.classname
        if same and boxes.iou(np.array(d.box), np.array(other.box)) > SAME_OVERLAP:
            d = replace(d, attribute=other.attribute)
    return d


def _by_class(found: Sequence[Detection]) -> list[Detection]:
    names = [*dict.fromkeys(d.classname for d in found)]
    return sorted(found, key=lambda d: names.index(d.classname))


def _worn(person: Box, clothes: Sequence[Detection], words: WordGroups) -> list[str]:
    """Step 5: clothes that lie in the person where such clothes are worn, by kind."""
    height = person[3] - person[1]
    worn: dict[str, list[str]] = {kind: [] for kind in CLOTHES}
    for d in clothes:
        area = _area(d.box)
        if not area > 0 or not _shared(d.box, person) > LEAST_INSIDE * area:
            continue
        kind = words.clothes[d.classname]
        above = (person[3] - (d.box[1] + d.box[3]) / 2) / height
        if (kind != "hat" or above > HAT_HEIGHT) and (kind != "pants" or above < PANTS_HEIGHT):
            worn[kind].append(said(d))
    return [cloth for kind in CLOTHES for cloth in worn[kind]]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shared(a: Box, b: Box) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(wide, 0.0) * max(high, 0.0)
