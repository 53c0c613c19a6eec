"""The embedded world: what a scene says of itself is what its pixels show."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from PIL import Image

from jclip.data import shapes, world
from jclip.data.shapes import COLOURS, PAIRS, SEEN_PAIRS, SHAPES, STYLES, UNSEEN_PAIRS, Scene, Thing, draw_scene
from jclip.errors import UnknownName

SCENES = [draw_scene((5, i)) for i in range(300)]


def ink(scene: Scene, size: int) -> np.ndarray:
    """(size, size) where the scene differs from its own background."""
    full = np.asarray(scene.render(size), np.int16)
    empty = np.asarray(Scene((), scene.style, scene.seed, "", "").render(size), np.int16)
    return np.abs(full - empty).max(axis=2) > 24


def test_the_world_is_large_enough():
    assert len(SHAPES) >= 10 and len(COLOURS) >= 10 and len(STYLES) >= 6 and len(PAIRS) == len(set(PAIRS)) == 100
    assert len(set(UNSEEN_PAIRS)) == 15 and set(SEEN_PAIRS) | set(UNSEEN_PAIRS) == set(PAIRS)
    for value in (*SHAPES, *COLOURS):
        assert sum(value in pair for pair in SEEN_PAIRS) >= 8
    assert {len(s.things) for s in SCENES} == {1, 2, 3, 4} and {s.style for s in SCENES} == set(STYLES)
    assert len({s.caption for s in SCENES}) > 250 and len({t.name for s in SCENES for t in s.things}) == 100


def parted(scene: Scene) -> bool:
    """Whether two cuts through the middle leave at most one thing to each quarter, none of them cut."""
    lows, highs = scene.boxes(1)[:, :2].T, scene.boxes(1)[:, 2:].T
    cuts = np.linspace(0.35, 0.65, 31)[:, None]
    across, down = ((low >= cuts).astype(int) - (high <= cuts) for low, high in zip(lows, highs, strict=True))
    fields = 2 * across[:, None] + down[None]  # (31, 31, n); a thing that is cut has 0 in one of the two
    whole = (across != 0).all(axis=1)[:, None] & (down != 0).all(axis=1)[None]
    return any(len({*row}) == len(scene.things) for row in fields[whole].tolist())


def test_things_lie_in_quarters_or_anywhere_and_never_meet():
    scenes = {
        quarters: [draw_scene((6, i), count=(2, 4), quarters=quarters) for i in range(150)]
        for quarters in (True, False)
    }
    for kept, free in zip(*scenes.values(), strict=True):
        assert [t.name for t in kept.things] == [t.name for t in free.things]
        assert free.boxes(1).min() >= 0 and free.boxes(1).max() <= 1
        for k, a in enumerate(free.things):
            assert all(np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius for b in free.things[:k])
    assert all(map(parted, scenes[True])) and 10 < sum(map(parted, scenes[False])) < 75


def test_a_seed_is_a_scene():
    for size in (64, 96):
        a, b, c = (np.asarray(draw_scene((1, i)).render(size)) for i in (2, 2, 3))
        assert a.shape == (size, size, 3) and np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_hold_the_shape_and_nothing_but_it(shape):
    for i, angle in enumerate((-0.3, 0.0, 0.25)):
        thing = Thing(shape, "red", 0.45 + 0.03 * i, 0.52, 0.31, angle)
        scene = Scene((thing,), "filled", (9, i), "", "")
        rows, columns = np.nonzero(ink(scene, 200))
        drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(drawn - scene.boxes(200)[0]).max() <= 2  # pixels: corners are rounded off


@pytest.mark.parametrize("style", STYLES)
def test_every_style_draws_in_the_things_colour_near_its_box(style):
    for i in range(20):
        scene = draw_scene((11, i), styles=(style,), count=(1, 1))
        where, (x0, y0, x1, y1) = ink(scene, 96), scene.boxes(96)[0]
        assert where.sum() > 40
        rows, columns = np.nonzero(where)
        slack = 0.6 * scene.things[0].radius * 96  # an inverted one's tile, a sketch's wobble
        assert columns.min() >= x0 - slack and columns.max() <= x1 + slack
        assert rows.min() >= y0 - slack and rows.max() <= y1 + slack
        pixels = np.asarray(scene.render(96), np.float32)[where]
        wanted = np.array(COLOURS[scene.things[0].colour], np.float32)
        assert np.quantile(np.abs(pixels - wanted).max(axis=1), 0.15) < 20


def test_nothing_overlaps_or_leaves_the_canvas():
    for scene in SCENES:
        boxes = scene.boxes(1)
        assert boxes.min() >= 0 and boxes.max() <= 1
        for i, a in enumerate(boxes):
            for b in boxes[i + 1 :]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_captions_name_all_things_and_true_relations():
    seen = set()
    for scene in SCENES:
        for thing in scene.things:
            assert re.search(rf"\b{thing.name}\b", scene.caption), (scene.caption, thing)
        assert scene.meaning in scene.caption.replace("an orange", "a orange") or scene.meaning in scene.caption
        assert sum(scene.caption.count(shape) for shape in SHAPES) == len(scene.things)
        said = re.search(r"left of|right of|above|below", scene.caption)
        if said:
            first, second = sorted(scene.things, key=lambda t: scene.caption.index(t.name))
            if first.name != second.name:
                seen.add(said[0])
                assert {
                    "left of": first.x < second.x, "right of": first.x > second.x,
                    "above": first.y < second.y, "below": first.y > second.y,
                }[said[0]], scene.caption  # fmt: skip
        assert not re.search(r"\ba [aeiou]", scene.caption), scene.caption
    assert len(seen) == 4


def test_sizes_are_said_only_where_they_are_so():
    for scene in SCENES:
        for thing in scene.things:
            if f"small {thing.name}" in scene.caption:
                assert min(t.radius for t in scene.things if t.name == thing.name) < shapes.SMALL
            if f"large {thing.name}" in scene.caption:
                assert max(t.radius for t in scene.things if t.name == thing.name) > shapes.LARGE


def fits(phrase: str, scene: Scene) -> list[Thing]:
    """An independent reading of a referring phrase: the things that it can mean."""
    words = phrase.removeprefix("the ").split()
    found = [t for t in scene.things if t.colour in words or not set(words) & set(COLOURS)]
    found = [t for t in found if t.shape in words or not set(words) & set(SHAPES)]
    side = {"left": lambda t: -t.x, "right": lambda t: t.x, "top": lambda t: -t.y, "bottom": lambda t: t.y}
    for word, key in side.items():
        if word in words:
            found = [max(found, key=key)]
    return found


def test_phrases_mean_one_thing():
    twins = [draw_scene((6, i), pairs=PAIRS[:2], count=(4, 4)) for i in range(50)]
    for scene in [*SCENES, *twins]:
        assert [fits(p, scene) for p in scene.phrases()] == [[t] for t in scene.things], scene


def test_label_and_labels():
    scene = Scene((Thing("star", "red", 0.2, 0.2, 0.1), Thing("moon", "blue", 0.7, 0.7, 0.2)), "filled", (1,), "", "")
    assert scene.label == "blue moon" and scene.labels == ("blue moon", "red star")
    assert np.allclose(
        Scene((Thing("square", "red", 0.5, 0.5, 0.25),), "filled", (1,), "", "").boxes(64), [[19.2, 19.2, 44.8, 44.8]]
    )


def test_a_thousand_scenes_a_second_and_core():
    rates = []
    for attempt in range(5):
        begun = time.process_time()  # the core's time, whatever else runs
        for i in range(200):
            draw_scene((attempt, i)).render(64)
        rates.append(200 / (time.process_time() - begun))
    assert max(rates) > 1000, rates


@pytest.fixture
def small_world(monkeypatch, tmp_path):
    monkeypatch.setattr(world, "COUNTS", {"train": 2, "val": 1, "test": 1})
    monkeypatch.setattr(world, "PER_PAIR", {"seen_pairs": 1, "unseen_pairs": 2})
    monkeypatch.setattr(world, "cache_dir", lambda *parts: tmp_path)
    return tmp_path


def test_rendered_folders_are_read_as_photos(small_world):
    from jclip.config import DataConfig
    from jclip.data.splits import read_photos

    data = read_photos(DataConfig(root="shapes:sketch", shots=0, val_shots=0))
    assert (len(data.classnames), len(data.train), len(data.val), len(data.test)) == (100, 200, 100, 100)
    assert Image.open(data.test.paths[0]).size == (64, 64)
    unseen = read_photos(DataConfig(root="shapes:unseen_pairs", shots=0))
    assert len(unseen.classnames) == 100 and len(unseen.train) == 0 and len(unseen.test) == 30
    assert {unseen.classnames[i] for i in unseen.test.labels} == {"_".join(p) for p in UNSEEN_PAIRS}
    assert len({p.rsplit("/", 1)[1] for p in data.test.paths}) == 100  # names of a results file
    before = sorted(small_world.rglob("*.png"))
    stamps = [p.stat().st_mtime_ns for p in before]
    read_photos(DataConfig(root="shapes:sketch", shots=0))
    assert [p.stat().st_mtime_ns for p in sorted(small_world.rglob("*.png"))] == stamps
    assert not list(small_world.glob(".*"))
    with pytest.raises(UnknownName, match="set of rendered photos 'sketsch', did you mean 'sketch'"):
        read_photos(DataConfig(root="shapes:sketsch"))
