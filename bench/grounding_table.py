"""How often a phrase's box is found on the embedded world, untrained and trained, three seeds.

    python bench/grounding_table.py [--rows NAME ...] [--seeds 1 2 3] [--runs FOLDER] [--out FOLDER] [--threads N] [--table]
        [--quick]

Rows without training choose among true boxes, or have none; then come the trainings of configs/grounding. Written are
docs/grounding_results.csv, a line for each row, seed and part of the scenes, and, between their marks, the tables of
docs/grounding_results.md and docs/zh/grounding_results.md. Every finished row is written at once, runs lie below --runs under
names that say what they are made of: what is there is not made again, and a broken command goes on where it stopped. Lines
of rows and seeds that are not asked for stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from csv_page import read, write
from grounding_page import COLUMNS, FEATURES, SEEDS, UNTRAINED, written

import finetune  # noqa: F401 - offers its recipes
from jclip.config import apply_overrides, load_values
from jclip.paths import replacing
from jclip.train.configs import build_config, find_config
from jclip.train.keyed_runs import KeyedRuns, state_of

MODEL = "shapes-tiny-rn"
EARLY = ("data.scenes=4000", "optim.epochs=3")  # cheap, to show what a setting brings
RUNS = {  # config, settings on top of it
    "shapes": ("grounding/shapes", ()),
    "early": ("grounding/shapes", EARLY),
    "early, positions drawn": ("grounding/shapes", (*EARLY, "positions=random")),
    "early, twins as in the test": ("grounding/shapes", (*EARLY, "data.train_twins=0.25")),
}
QUICK = ("optim.epochs=1", "data.scenes=40", "data.val_scenes=10", "data.test_scenes=30", "data.unseen_scenes=10")
METRICS = {"acc": "acc@0.5", "sides": "acc_sides", "no_sides": "acc_no_sides", "mean_iou": "mean_iou",
           "present_auroc": "present_auroc", "present_acc": "present_acc"}  # fmt: skip
Line = dict[str, object]


def main() -> int:
    """Makes what is missing, then the CSV and the page."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", nargs="+", metavar="NAME", help="only these (default: all; `untrained` for those without)")
    p.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    p.add_argument("--runs", type=Path, default=ROOT / "runs" / "grounding_table", help="for runs")
    p.add_argument("--out", type=Path, default=ROOT / "docs", help="for grounding_results.csv and .md")
    p.add_argument("--threads", type=int, help="of this process (default: all cores)")
    p.add_argument("--table", action="store_true", help="no runs: only the pages, from the CSV")
    p.add_argument("--quick", action="store_true", help="one epoch of few scenes: to try the command")
    args = p.parse_args()
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # Jittor is not imported yet
    file = args.out / "grounding_results.csv"
    if args.quick and args.out == ROOT / "docs":
        p.error("--quick measures next to nothing: name another --out than docs")
    if args.table and not file.is_file():
        p.error(f"{file} is not there: leave --table out to make it")
    known = ["untrained", *RUNS]
    if unknown := [name for name in args.rows or () if name not in known]:
        p.error(f"--rows must be of {', '.join(map(repr, known))}, got {unknown[0]!r}")
    for lines in () if args.table else made(args.rows or known, args.seeds, args.runs, args.quick):
        write(file, COLUMNS, merged(read(file) if file.is_file() else [], lines))
        write_pages(args.out)
    write_pages(args.out)
    print(f"written: {file}, grounding_results.md beside it and in zh/")
    return 0


def made(rows: Sequence[str], seeds: Sequence[int], runs: Path, quick: bool) -> Iterator[list[Line]]:
    """The lines of each row and seed, as they come."""
    runs.mkdir(parents=True, exist_ok=True)
    if "untrained" in rows:
        for name in UNTRAINED:
            yield kept(runs / f"{name.replace(' ', '_')}-{quick:d}.json", lambda name=name: untrained(name, quick))
    for name in [name for name in RUNS if name in rows]:
        yield kept(runs / f"features-{name.replace(' ', '_')}-{quick:d}.json", lambda name=name: features(name, quick))
        for seed in seeds:
            yield trained(name, seed, runs, quick)


def kept(file: Path, make) -> list[Line]:
    """Lines from `file`, made where it is not there."""
    if not file.is_file():
        lines = make()
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(lines, indent=1), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def untrained(name: str, quick: bool) -> list[Line]:
    """Boxes chosen by the model's weights alone."""
    import ground_zero_shot as ways

    from jclip.features.source import ModelSource
    from jclip.functional.boxes import iou

    source, lines = ModelSource(MODEL), []
    find = {
        "mean box of the best quarter": ways.by_quarter,
        "rough box": ways.roughly,
        "true boxes, ReCLIP": lambda source: ways.of_proposals(source, ways.ProposalRules()),
    }[name](source)
    for part, scenes in (("test", 600), ("unseen", 200)):
        samples = ways.samples_of(part, 8 if quick else scenes)
        overlaps = iou(ways.found_among(samples, find), samples.boxes)
        sides = np.array([phrase.endswith(("left", "right", "top", "bottom")) for phrase in samples.phrases])
        shares = {"acc": slice(None), "sides": sides, "no_sides": ~sides}
        found = {
            metric: float((overlaps[rows] >= 0.5).mean()) for metric, rows in shares.items() if overlaps[rows].size
        }
        lines.append(line(name, "", part, len(samples), {**found, "mean_iou": float(overlaps.mean())}))
    return lines


def config_of(name: str, seed: int, quick: bool) -> tuple[Any, Any]:
    """The recipe's module and the config of a row."""
    config, given = RUNS[name]
    values = load_values(find_config(config))
    return build_config(apply_overrides(values, [*given, f"seed={seed}", *(QUICK if quick else ())]), name)


def features(name: str, quick: bool) -> list[Line]:
    """What the towers take for all parts of a row's scenes, drawing these included; then they are in the cache."""
    from jclip.data import box_samples
    from jclip.features import box_features
    from jclip.features.source import source_of

    recipe, cfg = config_of(name, 1, quick)
    source, begun = source_of(cfg), time.process_time()
    for part in box_samples.PARTS:
        samples = box_samples.world_samples(cfg.data, part, box_features.square_side(source))
        box_features.box_features(source, samples, cfg.reading, keep=False)
    seconds = time.process_time() - begun
    for part in box_samples.PARTS:
        recipe.part_features(cfg, source, part)
    return [line(name, "", FEATURES, cfg.data.scenes, {}, seconds)]


def trained(name: str, seed: int, folder: Path, quick: bool) -> list[Line]:
    """A training's lines, by the metrics of its run. A run that was resumed has no seconds."""
    recipe, cfg = config_of(name, seed, quick)
    runs, plain = KeyedRuns(folder, name), "".join(c if c.isalnum() else "_" for c in name)
    place = runs.folder_of(f"{plain}-{seed}", recipe, cfg)
    resumed = place.with_suffix(".resumed")
    if state_of(place) == "begun":
        resumed.touch()
    runs.finished(f"{plain}-{seed}", recipe, cfg, label=f"{name}, seed {seed}")
    result = json.loads((place / "result.json").read_text(encoding="utf-8"))
    seconds = None if resumed.exists() else result["provenance"]["cpu_seconds"]
    lines = []
    for part in ("val", "test", "unseen"):
        own = {k: result["metrics"][f"{part}_{m}"] for k, m in METRICS.items() if f"{part}_{m}" in result["metrics"]}
        count = result["metrics"][f"{part}_count"]
        lines.append(line(name, seed, part, count, own, seconds if part == "test" else None))
    return lines


def line(
    row: str, seed: object, part: str, phrases: int, found: dict[str, float], seconds: float | None = None
) -> Line:
    """A line of the CSV; accuracies are shares."""
    shown = {k: f"{found[k]:.4f}" if k in found else "" for k in METRICS}
    return {
        "row": row, "seed": str(seed), "part": part, "count": str(int(phrases)), **shown,
        "cpu_seconds": "" if seconds is None else f"{seconds:.0f}",
    }  # fmt: skip


def merged(before: Sequence[Line], lines: Sequence[Line]) -> list[Line]:
    """Earlier lines and those in their place, in the order of the table."""

    def key(line: Line) -> tuple:
        names = [*UNTRAINED, *RUNS]
        return names.index(line["row"]) if line["row"] in names else len(names), line["row"], line["seed"], line["part"]

    return sorted({key(line): line for line in (*before, *lines)}.values(), key=key)


def write_pages(out: Path) -> None:
    """The tables between the pages' marks, from the CSV."""
    lines = read(out / "grounding_results.csv")
    for language, page in (("en", out / "grounding_results.md"), ("zh", out / "zh" / "grounding_results.md")):
        page.parent.mkdir(parents=True, exist_ok=True)
        before = page.read_text(encoding="utf-8") if page.is_file() else ""
        page.write_text(written(before, lines, language), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
