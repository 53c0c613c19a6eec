"""What a curriculum brings on the embedded world: template labels of which 30 % are corrupted, and two further sources.

    python bench/curriculum_table.py [--runs FOLDER] [--out FOLDER] [--seeds 1 2 3] [--msa-seeds 1] [--table]

SSA is searched on the template source at each seed, MSA on all three at those of --msa-seeds; a seed draws scenes, noise and
initial values. Written are docs/curriculum_results.csv, a line for each training, and, between their marks, the tables of
docs/curriculum_results.md and docs/zh/curriculum_results.md. Runs lie below --runs: what is there is not made again, so that
a broken command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from csv_page import read, write
from curriculum_page import COLUMNS, written

from jclip.cli import main as jclip

MODES = ("ssa", "msa")


def main() -> int:
    """Makes what is missing, then the CSV and the pages."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=Path, default=ROOT / "runs" / "curriculum_table")
    p.add_argument("--out", type=Path, default=ROOT / "docs", help="for curriculum_results.csv and .md")
    p.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    p.add_argument("--msa-seeds", nargs="*", type=int, default=[1])
    p.add_argument("--settings", nargs="*", default=[], metavar="key=value", help="of all runs: to try the command")
    p.add_argument("--table", action="store_true", help="no runs: only the pages, from the CSV")
    args = p.parse_args()
    file = args.out / "curriculum_results.csv"
    if args.table and not file.is_file():
        p.error(f"{file} is not there: leave --table out to make it")
    if not args.table:
        lines = []
        for mode in MODES:
            for seed in args.msa_seeds if mode == "msa" else args.seeds:
                lines += lines_of(finished(args.runs, mode, seed, args.settings), mode, seed)
        write(file, COLUMNS, lines)
    for language, page in (("en", args.out / file.name), ("zh", args.out / "zh" / file.name)):
        page = page.with_suffix(".md")
        page.parent.mkdir(parents=True, exist_ok=True)
        before = page.read_text(encoding="utf-8") if page.is_file() else ""
        page.write_text(written(before, read(file), language), encoding="utf-8")
    print(f"written: {file}, curriculum_results.md beside it and in zh/")
    return 0


def finished(runs: Path, mode: str, seed: int, settings: Sequence[str]) -> Path:
    """The folder of that curriculum, which is begun or resumed unless it has finished."""
    folder = runs / f"{mode}-{seed}"
    if not (folder / "result.json").is_file():
        own = [f"seed={seed}", f"data.seed={seed}", *settings]
        if jclip(["train", f"curriculum/shapes_{mode}", *own, "--run", str(folder)]):
            raise SystemExit(f"the curriculum in {folder} failed")
    return folder


def lines_of(folder: Path, mode: str, seed: int) -> list[dict[str, object]]:
    """A line of the CSV for each of road.csv, with what the training's rows are and what it reached on test."""
    with open(folder / "road.csv", encoding="utf-8", newline="") as f:
        road = [line for line in csv.DictReader(f) if line["run"]]
    whole = {line["source"]: counted(folder, line["run"]) for line in road if not line["measurer"]}
    lines = []
    for line in road:
        have, figures = counted(folder, line["run"]), result_of(folder / line["run"])["metrics"]
        source = line["source"]
        kept = {k: have[source, k] / max(whole[source][source, k], 1) for k in ("clean", "corrupted")}
        lines.append({
            "mode": mode, "seed": seed, "source": source, "measurer": line["measurer"], "threshold": line["threshold"],
            "rows": line["rows"], **{k: f"{share:.4f}" for k, share in kept.items()},
            "val": f"{figures['val_acc@0.5']:.4f}", "test": f"{figures['test_acc@0.5']:.4f}", "chosen": line["chosen"],
        })  # fmt: skip
    return lines


def result_of(run: Path) -> dict:
    """A run's result."""
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def counted(folder: Path, run: str) -> Counter[tuple[str, str]]:
    """(source, clean or corrupted) → how many of the rows that a training learned from."""
    text = (folder / run / "rows.jsonl").read_text(encoding="utf-8")
    rows = map(json.loads, text.splitlines())
    return Counter((row["source"], "corrupted" if "corrupted" in (row["extra"] or {}) else "clean") for row in rows)


if __name__ == "__main__":
    sys.exit(main())
