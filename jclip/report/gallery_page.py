"""A gallery as a page: its numbers, a map of what it shows, near-duplicates, and what queries find."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from jclip.data.gallery_store import Store
from jclip.features.gallery import Found, Gallery, Search
from jclip.functional import clusters
from jclip.functional.nearest import take
from jclip.report import duplicate_groups, web_page
from jclip.report.page_photos import PagePhotos
from jclip.report.page_words import Words
from jclip.report.web_page import Card, Cell, clean

MOST_CLUSTERS, OF_CLUSTER = 12, 8  # groups of the map, photos of each
SAMPLED = 20_000  # rows that groups are learned from
POINTS = 1500  # of the map
COMPARED = 30_000  # photos up to which near-duplicates are looked for
NEAR = 0.98
GROUPS, OF_GROUP, HITS, FOLDERS, VALUES = 12, 4, 12, 200, 8
MAP_SIDE = 420


@dataclass
class Numbers:
    """What the rows of a gallery come to. oldest, newest: times of files in nanoseconds. folders: name → photos and
    bytes; columns: name → values with their counts."""

    photos: int = 0
    size: int = 0
    captions: int = 0
    oldest: float = 0.0
    newest: float = 0.0
    folders: dict[str, list[int]] = field(default_factory=dict)
    columns: dict[str, Counter[str]] = field(default_factory=dict)


def numbers_of(store: Store) -> Numbers:
    """Reads every row once. Raises `DataError` for a damaged one."""
    found = Numbers(photos=len(store))
    times: list[float] = []
    for row in store.rows:
        size, when = row["size"], row["mtime"]
        size = size if isinstance(size, int) else 0
        found.size += size
        found.captions += bool(row["caption"])
        if isinstance(when, int | float):
            times.append(when)
        own = found.folders.setdefault(str(PurePosixPath(row["path"]).parent), [0, 0])
        own[0] += 1
        own[1] += size
        for name, value in row["columns"].items():
            counts = found.columns.setdefault(name, Counter())
            if value is not None and (len(counts) < 10_000 or str(value) in counts):
                counts[str(value)] += 1
    if times:
        found.oldest, found.newest = min(times), max(times)
    return found


def gallery_parts(words: Words, gallery: Gallery, photos: PagePhotos, queries: Sequence[str] = ()) -> list[str]:
    """The parts of the page, as HTML. queries: texts that the gallery is searched with, by its own model.

    Raises `DataError` for a damaged gallery, `CheckpointError` or `ConfigError` where there are queries and its model is
    not there.
    """
    numbers = numbers_of(gallery.store)
    found = list(gallery.search_many(queries, Search(HITS))) if queries else []
    parts = [cards(words, gallery, numbers)]
    parts += [hits(words, gallery, photos, answer) for answer in found]
    if len(gallery):
        parts += [the_map(words, gallery, photos), near_duplicates(words, gallery, photos)]
    parts += [folders(words, numbers), *columns(words, numbers), what_it_is(words, gallery, numbers)]
    if note := photos.note():
        parts.append(web_page.paragraph(note))
    return parts


def cards(words: Words, gallery: Gallery, numbers: Numbers) -> str:
    """The first numbers of a gallery."""
    mean = numbers.size / max(numbers.photos, 1)
    shown = [
        Card(
            words("gallery.all_photos"),
            f"{numbers.photos:,}",
            words("gallery.left_out", count=sum(1 for _ in gallery.store.skipped())),
        ),
        Card(words("gallery.folders"), f"{len(numbers.folders):,}"),
        Card(words("gallery.all_size"), bytes_of(numbers.size), words("gallery.mean", size=bytes_of(mean))),
    ]
    if numbers.newest:
        first, last = day_of(numbers.oldest), day_of(numbers.newest)
        shown.append(Card(words("gallery.newest"), last, words("gallery.oldest", date=first)))
    if numbers.captions:
        shown.append(Card(words("gallery.captions"), f"{numbers.captions:,}"))
    warning = "" if numbers.photos else web_page.paragraph(words("gallery.empty"), "warning")
    return web_page.cards(shown) + warning


def day_of(when: float) -> str:
    """The day of a time in nanoseconds; `?` of one that no calendar has."""
    try:
        return time.strftime("%Y-%m-%d", time.localtime(when / 1e9))
    except (OverflowError, ValueError, OSError):
        return "?"


def bytes_of(size: float) -> str:
    """`12.3 MB`, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def hits(words: Words, gallery: Gallery, photos: PagePhotos, answer: Found) -> str:
    """What a query finds: the photos with their scores, and how many stand out."""
    compared = answer.background.deviation > 0
    shown = []
    for hit in answer.hits:
        place = words("gallery.stands_out" if hit.above else "gallery.below") if compared else ""
        shown.append(photos.tile(gallery.photo_at(hit.row), f"{hit.score:.3f}", place, hit.caption or ""))
    above = sum(hit.above for hit in answer.hits)
    note = words("gallery.above", above=above, count=len(answer.hits)) if compared else ""
    body = f'<div class="tiles">\n{"".join(shown)}\n</div>' if shown else web_page.paragraph(words("gallery.nothing"))
    return web_page.section(words("gallery.query", query=answer.query), body, note)


@dataclass(frozen=True)
class PhotoMap:
    """Groups of a gallery's photos. centres: (K, E); of: (N,) each row's group; shown: of each group rows near its centre
    that differ; points: rows of the drawing with their places (n, 2)."""

    centres: np.ndarray
    of: np.ndarray
    shown: list[list[int]]
    points: np.ndarray
    places: np.ndarray


def photo_map(store: Store) -> PhotoMap:
    """Groups learned from a sample, evenly spaced, and all rows in them."""
    sample = _spread(len(store), SAMPLED)
    learned = take(store.parts, sample)
    learned = learned[np.isfinite(learned).all(axis=1)]
    wanted = int(np.clip(round((len(store) / 2) ** 0.5), 1, MOST_CLUSTERS))
    centres, _ = clusters.spherical_means(learned, wanted)
    nearness = [np.nan_to_num(take([part], np.arange(len(part))) @ centres.T, nan=-1) for part in store.parts]
    cosines = np.concatenate(nearness)
    of = cosines.argmax(axis=1)
    order = np.argsort(-np.bincount(of, minlength=len(centres)), kind="stable")
    renamed = np.empty(len(centres), int)
    renamed[order] = np.arange(len(order))
    centres, of, cosines = centres[order], renamed[of], cosines[:, order]
    points = _spread(len(store), POINTS)
    places = clusters.plane_of(np.nan_to_num(take(store.parts, points)))
    shown = [_apart(store, cosines[:, k], np.flatnonzero(of == k)) for k in range(len(centres))]
    return PhotoMap(centres, of, shown, points, places)


def _spread(total: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(np.int64))


def _apart(store: Store, cosines: np.ndarray, rows: np.ndarray) -> list[int]:
    """Rows near the centre, no near-duplicate of one before among them where others are left."""
    nearest = rows[np.argsort(-cosines[rows], kind="stable")][:200]
    features = np.nan_to_num(take(store.parts, nearest))
    kept: list[int] = []
    for place in range(len(nearest)):
        if len(kept) < OF_CLUSTER and all(features[place] @ features[other] < NEAR for other in kept):
            kept.append(place)
    more = [place for place in range(len(nearest)) if place not in kept]
    return nearest[sorted(kept + more[: OF_CLUSTER - len(kept)])].tolist()


def the_map(words: Words, gallery: Gallery, photos: PagePhotos) -> str:
    """Groups of alike photos, with those nearest to each group's middle, and where they lie on a plane."""
    found = photo_map(gallery.store)
    counts = np.bincount(found.of, minlength=len(found.centres))
    groups = []
    for k, rows in enumerate(found.shown):
        title = words(
            "gallery.group", number=k + 1, count=int(counts[k]), share=f"{100 * counts[k] / len(gallery):.0f} %"
        )
        mark = f'<i style="background:var(--c{k % 8 + 1})"></i>'
        tiles = "".join(photos.small(gallery.photo_at(row)) for row in rows)
        groups.append(f'<div class="group"><h3>{mark}{clean(title)}</h3><div class="tiles small">{tiles}</div></div>')
    drawn = _drawn(words, found)
    body = f'{drawn}<div class="groups">{"".join(groups)}</div>'
    return web_page.section(words("gallery.map"), body, words("gallery.map_note", count=len(found.centres)))


def _drawn(words: Words, found: PhotoMap) -> str:
    if len(found.points) < 3:
        return ""
    low, high = found.places.min(axis=0), found.places.max(axis=0)
    width, height = 2 * MAP_SIDE, MAP_SIDE
    spread = np.maximum(high - low, 1e-9)
    at = (found.places - low) / spread * (width - 24, height - 24) + 12
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{height - y:.1f}" r="3.2" fill="var(--c{int(k) % 8 + 1})"/>'
        for (x, y), k in zip(at, found.of[found.points], strict=True)
    )
    labels = ""
    for k in range(len(found.centres)):
        own = at[found.of[found.points] == k]
        if len(own):
            x, y = np.median(own, axis=0)
            labels += f'<text class="on" x="{x:.1f}" y="{height - y + 5:.1f}" text-anchor="middle">{k + 1}</text>'
    label = clean(words("gallery.map_label", count=len(found.points)))
    return f'<div class="plane"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{dots}{labels}</svg></div>'


def near_duplicates(words: Words, gallery: Gallery, photos: PagePhotos) -> str:
    """Groups of photos that show nearly the same."""
    every = len(gallery) <= COMPARED
    groups = duplicate_groups.find_groups(gallery.store, NEAR if every else None)
    within = sum(len(group.rows) for group in groups)
    said = [
        words(
            "gallery.duplicates_note" if every else "gallery.copies_note", groups=len(groups), photos=within, least=NEAR
        )
    ]
    if len(groups) > GROUPS:
        said.append(words("gallery.groups_left_out", count=len(groups) - GROUPS, place=str(gallery.store.folder)))
    shown = []
    for group in sorted(groups, key=lambda own: -len(own.rows))[:GROUPS]:
        tiles = "".join(photos.small(gallery.photo_at(row)) for row in group.rows[:OF_GROUP])
        copies = sum(group.same_bytes) - 1
        title = words("gallery.duplicate_group", count=len(group.rows), copies=copies)
        first = gallery.path_of(group.rows[0])
        shown.append(
            f'<div class="group"><h3>{clean(title)}</h3><div class="tiles small">{tiles}</div>{web_page.paragraph(first)}</div>'
        )
    return web_page.section(words("gallery.duplicates"), f'<div class="groups">{"".join(shown)}</div>', " ".join(said))


def folders(words: Words, numbers: Numbers) -> str:
    """Folders with their photos."""
    ordered = sorted(numbers.folders.items(), key=lambda item: (-item[1][0], item[0]))
    rows = [[name, Cell(f"{n:,}", n), Cell(bytes_of(size), size)] for name, (n, size) in ordered[:FOLDERS]]
    note = words("table.more", count=len(ordered) - FOLDERS) if len(ordered) > FOLDERS else ""
    head = [words(f"gallery.{k}") for k in ("folder", "photos", "size")]
    return web_page.section(words("gallery.folders"), web_page.table(words, head, rows), note) if rows else ""


def columns(words: Words, numbers: Numbers) -> list[str]:
    """Columns with their most frequent values; nothing where there are none."""
    if not numbers.columns:
        return []
    rows = [
        [
            name,
            Cell(f"{len(counts):,}", len(counts)),
            ", ".join(f"{value} ({n:,})" for value, n in counts.most_common(VALUES)),
        ]
        for name, counts in numbers.columns.items()
    ]
    head = [words(f"gallery.{k}") for k in ("column", "values", "frequent")]
    return [web_page.section(words("gallery.columns"), web_page.table(words, head, rows))]


def what_it_is(words: Words, gallery: Gallery, numbers: Numbers) -> str:
    """Model, weights, preprocessing, where it lies."""
    manifest: Any = gallery.store.manifest
    seen = ", ".join(f"{k} {v}" for k, v in manifest.preprocess.items())
    pairs = [
        (words("gallery.place"), str(gallery.store.folder.resolve())), (words("gallery.root"), gallery.root),
        (words("was.model"), manifest.model), (words.of_figure("weights_sha256"), str(manifest.identity[0])),
        (words("gallery.features"), f"{manifest.width} × {manifest.dtype}"), (words("gallery.preprocess"), seen),
    ]  # fmt: skip
    return web_page.section(words("gallery.what"), web_page.facts(pairs))


def page_of_gallery(
    words: Words, gallery: Gallery, photos: PagePhotos, command: str, queries: Sequence[str] = ()
) -> str:
    """The whole file."""
    name = gallery.store.folder.resolve().name
    about = " · ".join([words("gallery.title"), gallery.store.manifest.model])
    return web_page.page(words, name, about, gallery_parts(words, gallery, photos, queries), command)
