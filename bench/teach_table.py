"""`jclip teach` with a simulated user: how much 10 and 30 answers bring, and whether they ever harm.

    python bench/teach_table.py [--features ../shared/data/clip_vitb32_features] [--time ROWS] [--json FILE]

The user answers as the labels say, in rounds of 12 photos as the command chooses them, refit after each answer. Average
precision of a query is measured on all photos that are right, and on those that nobody has answered yet, where the text
alone is measured on the same ones, so that photos that were answered do not flatter.

Reported are: the 35 texts of `bench/rerank.py` against 8,519 photos (OpenAI's ViT-B/32); and the embedded world, three of
them, each of 2,000 scenes with one to four things in six styles, by `shapes-tiny-rn`: texts of classes, colours, shapes and
styles. Three seeds: nothing is random in what is asked, so of the real photos each seed leaves another tenth of the gallery
out; of the world each draws other scenes, and asks for another third of the classes.

Settings (strength 8, shrinkage 0.5, half of a round the best) were chosen on neither: on 102 other queries over the same
real photos (the 65 further Caltech-101 classes, each by the nearest of 1,203 LVIS texts, and the 37 breeds by "a dog" or "a
cat"), `--tuning`, and on another world's scenes by another model, `shapes-tiny-vit`.

Beside it: active learning without the text as prior (photos that a plain logistic regression is least sure of, C 100, after a
first round by the text), and the same regression fed with its best photos.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.rerank import real_search
from jclip.data import shapes
from jclip.features import gallery_of_photos, query_features
from jclip.features.teaching import ROUND, Teacher
from jclip.functional.directions import unit
from jclip.functional.nearest import take
from jclip.functional.taught_head import map_change

MARKS, SEEDS = (0, 10, 30), (0, 1, 2)
SCENES = 2000
HIDDEN = 10  # one photo of so many
C = 100.0  # of the regression without the text
CATS = "abyssinian bengal birman bombay british_shorthair egyptian_mau maine_coon persian ragdoll russian_blue siamese sphynx"


@dataclass(frozen=True)
class Task:
    """Queries (Q, E), photos (N, E), and (Q, N) true where a photo is right for a query."""

    name: str
    texts: Sequence[str]
    queries: np.ndarray
    photos: np.ndarray
    wanted: np.ndarray


def main() -> int:
    """Prints the tables."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--features", type=Path, default=ROOT.parent / "shared" / "data" / "clip_vitb32_features")
    p.add_argument(
        "--tuning", action="store_true", help="the queries that settings were chosen on, in place of the others"
    )
    p.add_argument(
        "--time", type=int, metavar="ROWS", help="seconds of an answer over so many random rows of 512, and end"
    )
    p.add_argument("--json", type=Path, help="also write the figures, unrounded")
    args = p.parse_args()
    if args.time:
        print_times(args.time)
        return 0
    found = {}
    for name, tasks in tasks_of(args.features, args.tuning):
        found[name] = report(name, tasks)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def tasks_of(features: Path, tuning: bool) -> Iterator[tuple[str, list[Task]]]:
    """Sets of queries, each once for each seed."""
    if not features.is_dir():
        print(f"real features not found at {features}: name their folder by --features", file=sys.stderr)
    elif tuning:
        yield "tuning, real photos", [tuning_task(features)]
    else:
        yield "35 texts, real photos", [real_task(features, seed) for seed in SEEDS]
    if tuning:
        yield "tuning, a world", [world_task(1, "shapes-tiny-vit", 2500)]
    else:
        yield "embedded world", [world_task(100 + seed, "shapes-tiny-rn") for seed in SEEDS]


def real_task(folder: Path, seed: int) -> Task:
    """The retrieval page's queries; a tenth of the gallery, another one for each seed, is left out."""
    texts, photos, wanted = real_search(folder)
    names = np.load(folder / "caltech_lvis.npz")["classnames"].tolist()
    kept = np.random.default_rng(seed).permutation(len(photos.features))[len(photos.features) // HIDDEN :]
    kept.sort()
    features = unit(np.asarray(photos.features, np.float64)).astype(np.float32)
    return Task("real", names, unit(np.asarray(texts, np.float32)), features[kept], wanted[:, kept])


def tuning_task(folder: Path) -> Task:
    """Caltech-101's further classes by the LVIS text nearest to their training photos, and breeds by "a dog", "a cat"."""
    caltech, pets, reported = (np.load(folder / f"{n}.npz") for n in ("caltech101", "oxford_pets", "caltech_lvis"))
    lvis = unit(np.load(folder.parent / "clip_vitb32_text" / "lvis_v1_clip_a+cname.npy").astype(np.float32))
    categories = json.loads((folder.parent / "clip_vitb32_text" / "lvis_v1_train_cat_info.json").read_text("utf-8"))
    words = [one["name"] for one in sorted(categories, key=lambda one: one["id"])]
    _, photos, _ = real_search(folder)
    classes = np.concatenate([caltech["val_l"], caltech["test_l"]])
    breeds = np.concatenate([pets["val_l"], pets["test_l"]])
    keys = caltech["keys_16"].astype(np.float32)
    keys = keys.T if len(keys) == lvis.shape[1] else keys
    texts, queries, wanted = [], [], []
    for label, name in enumerate(caltech["classnames"].tolist()):
        if name.replace("_", " ") not in reported["classnames"].tolist():
            nearest = int(np.argmax(lvis @ keys[caltech["keys_16_l"].reshape(-1) == label].mean(axis=0)))
            texts.append(f"{name} by {words[nearest]}")
            queries.append(lvis[nearest])
            wanted.append(np.concatenate([classes == label, np.zeros(len(breeds), bool)]))
    for label, name in enumerate(pets["classnames"].tolist()):
        word = "cat" if name in CATS.split() else "dog"
        texts.append(f"{name} by {word}")
        queries.append(lvis[words.index(word)])
        wanted.append(np.concatenate([np.zeros(len(classes), bool), breeds == label]))
    features = unit(np.asarray(photos.features, np.float64)).astype(np.float32)
    return Task("tuning", texts, np.stack(queries), features, np.stack(wanted))


def world_task(seed: int, model: str, count: int = SCENES) -> Task:
    """Scenes of that seed, and queries of four kinds."""
    scenes = [shapes.draw_scene((seed, i), styles=shapes.STYLES, count=(1, 4)) for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        for i, scene in enumerate(scenes):
            scene.render(64).save(Path(folder, f"{i:05}.png"))
        gallery = gallery_of_photos(folder, model)
        photos = take(gallery.store.parts, np.arange(len(gallery)))
    asked: list[tuple[str, Callable]] = [
        *(
            (f"a {c} {s}", lambda scene, c=c, s=s: f"{c} {s}" in scene.labels)
            for c, s in shapes.PAIRS[seed % 3 : 99 : 3]
        ),
        *((f"something {c}", lambda scene, c=c: any(t.colour == c for t in scene.things)) for c in shapes.COLOURS),
        *((f"a {s}", lambda scene, s=s: any(t.shape == s for t in scene.things)) for s in shapes.SHAPES),
        *((f"a {style} drawing", lambda scene, style=style: scene.style == style) for style in shapes.STYLES),
    ]
    queries = query_features.text_features(gallery.source, [text for text, _ in asked])
    wanted = np.array([[right(scene) for scene in scenes] for _, right in asked])
    return Task("world", [text for text, _ in asked], queries, photos, wanted)


# What answers, and what is asked


def by_teaching(task: Task, query: np.ndarray, right: np.ndarray) -> Iterator[tuple[list[int], np.ndarray]]:
    """`jclip teach`: rows answered so far and the scores of all, before each answer."""
    teacher, asked = Teacher([task.photos], query), []
    while True:
        for row in teacher.round(ROUND):
            yield asked, teacher.cosines()
            teacher.answer(row, "yes" if right[row] else "no")
            asked.append(row)


def without_text(best: bool) -> Callable[..., Iterator[tuple[list[int], np.ndarray]]]:
    """A plain logistic regression, which asks about what it is least sure of, or about the best."""

    def run(task: Task, query: np.ndarray, right: np.ndarray) -> Iterator[tuple[list[int], np.ndarray]]:
        asked: list[int] = []
        scores = order = task.photos @ query
        while True:
            far = np.array(-order, np.float64)
            far[asked] = np.inf
            for row in np.argsort(far, kind="stable")[:ROUND].tolist():
                yield asked, scores
                asked.append(row)
                labels = right[asked].astype(float)
                if 0 < labels.sum() < len(labels):
                    features = task.photos[asked].astype(np.float64)
                    wide = np.column_stack([features, np.full(len(asked), 10.0)])
                    weights, offset = map_change(np.zeros(len(asked)), wide, labels, C * np.eye(wide.shape[1]))
                    scores = task.photos @ weights[:-1].astype(np.float32) + np.float32(10 * weights[-1] + offset)
                    order = scores if best else -np.abs(scores)

    return run


WAYS = {
    "teach": by_teaching,
    "no text, unsure": without_text(best=False),
    "no text, best": without_text(best=True),
}


def average_precision(scores: np.ndarray, right: np.ndarray) -> float:
    """1/R Σ i / r_i over the ranks of the right ones; NaN where there is none."""
    ranks = np.flatnonzero(right[np.argsort(-scores, kind="stable")])
    return float((np.arange(1, len(ranks) + 1) / (ranks + 1)).mean()) if len(ranks) else float("nan")


def measured(task: Task, way: Callable) -> np.ndarray:
    """(marks, Q, 3): average precision of all photos, of those that are left, and of these by the text alone."""
    found = np.full((len(MARKS), len(task.queries), 3), np.nan)
    for number, (query, right) in enumerate(zip(task.queries, task.wanted, strict=True)):
        text = task.photos @ query
        for asked, scores in way(task, query, right):
            if len(asked) in MARKS:
                left = np.ones(len(right), bool)
                left[asked] = False
                figures = [(scores, np.ones_like(left)), (scores, left), (text, left)]
                found[MARKS.index(len(asked)), number] = [average_precision(s[of], right[of]) for s, of in figures]
            if len(asked) == MARKS[-1]:
                break
    return found


def report(name: str, tasks: Sequence[Task]) -> dict:
    """Prints a table of a set of queries, and those that lose; returns the figures."""
    sizes = f"{len(tasks[0].queries)} queries, {len(tasks[0].photos):,} photos, {len(tasks)} seeds"
    print(f"\n{name}: {sizes}")
    head = ("answers", "mAP", "least seed", "lose", "worst", "mAP, left", "text, left", "lose")
    print(
        f"{'':<18}" + "".join(f"{name:>{width}}" for name, width in zip(head, (8, 8, 12, 6, 8, 12, 12, 6), strict=True))
    )
    out: dict = {}
    for way, run in WAYS.items():
        all_seeds = np.stack([measured(task, run) for task in tasks])  # (seeds, marks, Q, 3)
        out[way] = all_seeds.tolist()
        start = all_seeds[:, 0, :, 0]
        for place, mark in enumerate(MARKS):
            now, left, text = np.moveaxis(all_seeds[:, place], -1, 0)
            lost, lost_left = (now < start - 1e-9), (left < text - 1e-9)
            gains = (now - start).mean(axis=1)
            print(
                f"{way:<18}{mark:>8}{100 * now.mean():>8.2f}{100 * gains.min():>+12.2f}{lost.sum():>6}"
                f"{100 * (now - start).min():>+8.2f}{100 * np.nanmean(left):>12.2f}{100 * np.nanmean(text):>12.2f}"
                f"{lost_left.sum():>6}"
            )
            if way == "teach" and mark:
                _print_losers(tasks, now - start, f"of all photos, after {mark}")
                _print_losers(tasks, np.where(np.isnan(left), 0, left - text), f"of those left, after {mark}")
    return out


def _print_losers(tasks: Sequence[Task], change: np.ndarray, what: str) -> None:
    places = [(s, q) for s, q in np.argwhere(change < -1e-9).tolist()]
    places.sort(key=lambda place: change[place])
    shown = ", ".join(f"{tasks[s].texts[q]} (seed {s}) {100 * change[s, q]:+.2f}" for s, q in places)
    print(f"  lose {what}: {shown or 'none'}")


def print_times(rows: int) -> None:
    """Median milliseconds of an answer over random rows, in float32 and float16, by the clock and of the processor: the
    refit, the scores of all rows, and the choice of the next photos."""
    photos = unit(np.random.default_rng(0).standard_normal((rows, 512), dtype=np.float32))
    for dtype in (np.float32, np.float16):
        begun = time.perf_counter()
        teacher = Teacher([photos.astype(dtype)], unit(photos[:3].mean(axis=0)))
        shown, spent = teacher.round(), []
        first = time.perf_counter() - begun
        for number in range(60):
            clock = [(time.perf_counter(), time.process_time())]
            teacher.answer(shown[number % ROUND], "yes" if number % 3 else "no")
            for step in ("head", "cosines", "round"):
                found = getattr(teacher, step)
                following = found if step == "head" else found()
                clock.append((time.perf_counter(), time.process_time()))
            spent.append(np.diff(np.array(clock), axis=0))
            shown = following if (number + 1) % ROUND == 0 else shown
        times = 1000 * np.array(spent)  # (answers, 3, 2)
        refit, scores, choice = np.median(times, axis=0)[:, 1]
        clock, processor = np.median(times.sum(axis=1), axis=0)
        print(
            f"{rows:,} rows of 512, {np.dtype(dtype).name}: first round {first:.2f} s; an answer {clock:.0f} ms, of the "
            f"processor {processor:.0f} ms (refit {refit:.0f}, scores {scores:.0f}, choice {choice:.0f})"
        )


if __name__ == "__main__":
    sys.exit(main())
