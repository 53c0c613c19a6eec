"""Random changes of photos against Pillow and NumPy written out; which are drawn, and how often."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageOps

from jclip.data import photo_policies as policies
from jclip.data.augment import AUGMENTS, Policied, Views
from jclip.data.preprocess import Preprocess


def photo(seed: int = 0, size: tuple[int, int] = (37, 29)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def signs(count: int = 400) -> list[np.random.Generator]:
    return [np.random.default_rng(k) for k in range(count)]


def test_strengths_are_the_papers_ranges(close):
    tables = {  # linspace of ten
        "ShearX": np.linspace(0, 0.3, 10), "TranslateY": np.linspace(0, 150 / 331, 10), "Rotate": np.linspace(0, 30, 10),
        "Color": np.linspace(0, 0.9, 10), "Posterize": np.round(np.linspace(8, 4, 10)),
        "Solarize": np.linspace(256, 0, 10), "Cutout": np.round(np.linspace(0, 20, 10)),
    }  # fmt: skip
    for name, wanted in tables.items():
        close([policies.strength(name, level) for level in range(10)], wanted, "closed_form", name)


def test_operations_by_hand():
    image = photo()
    x = np.asarray(image).astype(int)
    one = {name: np.asarray(policies.changed(image, name, 6, signs(1)[0])).astype(int) for name in policies.OPERATIONS}
    assert np.array_equal(one["Invert"], 255 - x)
    assert np.array_equal(one["Solarize"], np.where(x < 256 - 256 * 6 / 9, x, 255 - x))
    assert np.array_equal(one["Posterize"], x & ~(2 ** (8 - 5) - 1))  # round(8 - 4 * 6 / 9) = 5 bits stay
    grey = np.asarray(image.convert("L")).astype(int)[:, :, None]
    mean = int(grey.mean() + 0.5)
    level, either = 0.9 * 6 / 9, (1, -1)
    blends = {"Brightness": 0 * x, "Contrast": 0 * x + mean, "Color": 0 * x + grey}
    for name, base in blends.items():
        wanted = [np.clip(base + (1 + sign * level) * (x - base), 0, 255) for sign in either]
        assert min(np.abs(one[name] - w).max() for w in wanted) <= 1
    shift = int(150 / 331 * 6 / 9 * image.width)
    moved = one["TranslateX"]
    left, right = np.full_like(x, 128), np.full_like(x, 128)
    left[:, : -shift or None], right[:, shift:] = x[:, shift:], x[:, : image.width - shift]
    rows = [(moved == w).all(axis=(0, 2)).mean() for w in (left, right)]
    assert max(rows) > 0.9  # but for columns on the edge, which sampling at half pixels may take
    assert np.array_equal(one["Rotate"], np.asarray(image.rotate(20.0, fillcolor=(128, 128, 128))))
    assert np.array_equal(one["Equalize"], np.asarray(ImageOps.equalize(image)))
    hole = (one["Cutout"] == policies.HOLE).all(axis=2)
    rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
    assert 0 < len(rows) <= 13 and hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Color", "Contrast", "Brightness"])
def test_what_may_go_either_way_does_so_half_of_the_time(name):
    found = Counter(policies.changed(photo(), name, 9, rng).tobytes() for rng in signs(200))
    assert len(found) == 2 and min(found.values()) > 70
    assert len({policies.changed(photo(), name, 0, rng).tobytes() for rng in signs(5)}) == 1


def test_cut_outs_follow_the_authors_rule():
    """Sides half of the photo's, the centre anywhere, the rectangle drawn with its last row and column."""
    image = photo(1, (40, 24))
    before, areas = np.asarray(image), []
    for seed in range(60):
        after = np.asarray(policies.cut_out(image, 0.5, np.random.default_rng(seed)))
        rng = np.random.default_rng(seed)
        x, y = int(rng.integers(40)), int(rng.integers(24))
        wanted = before.copy()
        wanted[max(0, y - 6) : min(24, y + 6) + 1, max(0, x - 10) : min(40, x + 10) + 1] = rng.integers(0, 256, 3)
        assert np.array_equal(after, wanted)
        areas.append((after != before).any(axis=2).sum())
    assert max(areas) <= 21 * 13 < 40 * 24 / 3 and min(areas) < max(areas)
    assert np.array_equal(np.asarray(image), before)


def test_rand_augment_draws_two_operations_and_applies_each_half_of_the_time(monkeypatch):
    drawn = []
    monkeypatch.setattr(policies, "changed", lambda image, name, level, rng: drawn.append((name, level)) or image)
    for rng in signs(3000):
        policies.rand_augment(photo(), rng)
    assert abs(len(drawn) / 3000 - 1) < 0.06
    assert {*Counter(name for name, _ in drawn)} == {*policies.OPERATIONS} and len(policies.OPERATIONS) == 15
    assert {level for _, level in drawn} == set(range(1, 10))
    counts = Counter(name for name, _ in drawn)
    assert max(counts.values()) < 1.5 * min(counts.values())


def test_policies_are_fifty_of_two_steps_each(monkeypatch):
    chosen = policies.POLICIES["imagenet+cifar10"]
    assert len(chosen) == 50 and all(len(steps) == 2 for steps in chosen)
    assert all(name in policies.OPERATIONS and 0 <= p <= 1 and 0 <= k <= 9 for steps in chosen for p, name, k in steps)
    drawn = []
    monkeypatch.setattr(policies, "changed", lambda image, name, level, rng: drawn.append(name) or image)
    sure = (((1.0, "Invert", 3), (0.0, "Equalize", 3)),)
    for rng in signs(9):
        policies.by_policy(photo(), sure, rng)
    assert drawn == ["Invert"] * 9


def test_views_are_seeded_and_crops_come_in_half_of_them(monkeypatch):
    preprocess = Preprocess(size=(32, 32), resize="squash")
    for name in ("dualcoop", "tai_dual", "tai_dual_nus"):
        views = Views(preprocess, AUGMENTS[name], 3, (0, 1))
        first, again = views(photo(), 5), Views.from_dict(views.to_dict())(photo(), 5)
        assert np.array_equal(first, again) and first.shape == (2, 3, 32, 32) and not np.array_equal(*first)
    monkeypatch.setattr(policies, "by_policy", lambda image, *_: image)
    cut, crops, plain = [], Policied(0.4, (0.5, 1.0), "imagenet+cifar10"), preprocess(photo())
    for rng in signs(200):
        seen = crops(photo(), preprocess, rng)
        cut.append((seen == plain).all(axis=0).mean() > 0.5)  # a cut-out leaves the rest of the squashed photo
    assert 0.35 < np.mean(cut) < 0.65
