"""A gallery as a page: its numbers, groups, near-duplicates, queries. Without Jittor."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jclip.cli import main
from jclip.data.gallery_store import open_store
from jclip.features.gallery import Gallery
from jclip.report import duplicate_groups, gallery_page
from jclip.report.page_photos import PagePhotos
from jclip.report.page_words import Words
from tests.made_galleries import made_gallery, unit_rows

NANOSECONDS = 10**9
NAMES = ["<i>.png", "b {{x}} ${y}.png"]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """Sixty photos of three directions in two folders, two near-duplicates and a copy to the byte; few files are there."""
    root = tmp_path_factory.mktemp("photos")
    features = np.repeat(unit_rows(3, seed=1), [30, 20, 10], axis=0) + 0.06 * unit_rows(60, seed=2)
    features[7] = features[3] + 1e-4
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    (root / "of <b>").mkdir()
    rows = []
    for n in range(60):
        path = f"{'of <b>' if n < 40 else 'rest'}/{n} {NAMES[n % 2]}"
        rows.append(
            {
                "path": path,
                "size": 1000 + n,
                "mtime": (1_500_000_000 + 86_400 * n) * NANOSECONDS,
                "sha256": f"{max(n, 1):064x}",
                "caption": f"caption {n} <u>" if n < 5 else None,
                "columns": {"city": ("Paris", "<s>")[n % 2]},
            }
        )
        if n < 30:
            Image.new("RGB", (20, 10), (8 * n, 20, 100)).save(root / path)
    return made_gallery(root / "some.gallery", features.astype(np.float32), rows)


def parts(gallery, **given) -> str:
    words = Words("en")
    opened = Gallery.open(gallery, str(gallery.parent))
    return "".join(gallery_page.gallery_parts(words, opened, PagePhotos(words), **given))


def test_numbers(gallery):
    numbers = gallery_page.numbers_of(open_store(gallery))
    assert (numbers.photos, numbers.size, numbers.captions) == (60, 60 * 1000 + 59 * 30, 5)
    assert numbers.folders == {"of <b>": [40, 40 * 1000 + 39 * 20], "rest": [20, 20_000 + sum(range(40, 60))]}
    assert numbers.columns["city"] == {"Paris": 30, "<s>": 30}
    text = parts(gallery)
    assert "61.8 kB" in text and gallery_page.day_of(1_500_000_000 * NANOSECONDS) in text and "Paris (30)" in text
    assert gallery_page.day_of(1e40) == "?"


def test_groups_are_those_of_the_directions(gallery):
    found = gallery_page.photo_map(open_store(gallery))
    of_direction = np.repeat([0, 1, 2], [30, 20, 10])
    for k in range(len(found.centres)):
        assert len({*of_direction[found.of == k].tolist()}) == 1
    assert np.bincount(found.of).tolist() == sorted(np.bincount(found.of), reverse=True)
    features = np.concatenate([part[:] for part in open_store(gallery).parts])
    for k, rows in enumerate(found.shown):
        assert {*rows} <= {*np.flatnonzero(found.of == k).tolist()} and 0 < len(rows) <= gallery_page.OF_CLUSTER
        nearest = np.flatnonzero(found.of == k)[np.argmax(features[found.of == k] @ found.centres[k])]
        assert rows[0] == nearest


def test_copies_alone_where_photos_are_not_compared(gallery, monkeypatch):
    store = open_store(gallery)
    assert [group.rows for group in duplicate_groups.find_groups(store, None)] == [(0, 1)]
    assert any({3, 7} <= {*group.rows} for group in duplicate_groups.find_groups(store, 0.98))
    monkeypatch.setattr(gallery_page, "COMPARED", 10)
    assert "Groups of equal bytes: 1; photos in them: 2." in parts(gallery)


def test_names_are_escaped_and_absent_photos_counted(gallery):
    text = parts(gallery)
    for raw in ("<i>", "<u>", "<s>", "of <b>", "{{x}}", "${y}"):
        assert raw not in text
    assert "of &lt;b&gt;" in text and "Photos that are no longer where they were" in text


def test_the_command(gallery, tmp_path, capsys):
    assert main(["report", str(gallery), "--out", str(tmp_path / "x.html"), "--language", "zh"]) == 0
    assert "内容概览" in (tmp_path / "x.html").read_text(encoding="utf-8")
    for words, said in (
        ([gallery, gallery], "reported alone"),
        ([gallery, "--query", " "], "--query must be a text"),
        ([gallery, "--query", "a dog"], "none.safetensors"),
    ):
        assert main(["report", *map(str, words), "--out", str(tmp_path / "y.html")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "y.html").exists()


def test_of_no_photos_and_of_one(tmp_path):
    for count in (0, 1, 2):
        folder = made_gallery(tmp_path / f"{count}", unit_rows(max(count, 1))[:count], [] if not count else None)
        text = parts(folder)
        assert ("The gallery has no photos." in text) == (count == 0)
