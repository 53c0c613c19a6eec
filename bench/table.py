"""Prints what the files beside it measured, in Markdown: `python bench/table.py [bench/results/NAME.json]`.

First a row per processor, the newest first; then the tables of the named file, else of the newest with all tasks.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import targets

COLUMNS = {  # of the row per processor
    "image": "image ViT-B/32 batch 32", "RN50": "image RN50 batch 32", "bf16": "image ViT-B/32 batch 32 bf16",
    "int8": "image ViT-B/32 batch 32 int8", "text": "text 374 prompts, torch cut too",
    "training": "train ViT-B/32 batch 16", "photos": "photos ViT-B/32 2000 JPEGs",
}  # fmt: skip
RECIPES = {  # of the tasks of bench/recipes.py
    "Tip-Adapter, 4,000 settings": "tip_adapter",
    "Tip-Adapter-F, 20 epochs": "tip_adapter",
    "cross-modal linear, 2,000 steps": "cross_modal",
    "LP++, 300 epochs": "lp_plus",
    "GDA": "gda",
}


def main() -> int:
    """The row of each processor, then all of the named file, else of the newest."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "results", nargs="?", type=Path, metavar="RESULTS", help="of bench/speed.py --out (default: the newest)"
    )
    named = p.parse_args().results
    if named:
        of_all = [json.loads(named.read_text(encoding="utf-8"))] if named.is_file() else []
    else:
        of_all = [r for r in targets.newest_first() if len(r.get("tasks", {})) > 1]
    if not of_all:
        sys.stderr.write("no results: run python bench/speed.py --out bench/results/NAME.json first\n")
        return 2
    print_processors()
    results = of_all[0]
    machine = results["machine"]
    print(f"{machine['cpu']}, {machine['threads']} threads, torch {machine['packages']['torch']}\n")
    print("| per second (median) | jclip | torch | ratio | of the product rate | peak memory, MiB |")
    print("|---|---|---|---|---|---|")
    for task, r in results["tasks"].items():
        share = next((f"{r[name]:.0%}" for name in ("of_sgemm", "of_half_rate") if name in r), "")
        wide = results["tasks"].get(task.removesuffix(" bf16")) if task.endswith(" bf16") else None
        to_wide = f" ({r['jclip']['per_second'] / wide['torch']['per_second']:.2f} to fp32)" if wide else ""
        to_wide = f" ({r['to_half']:.2f} to jclip's bf16)" if "to_half" in r else to_wide
        rates = f"{r['jclip']['per_second']:.2f} | {r['torch']['per_second']:.2f} | {r['ratio']:.2f}{to_wide}"
        print(f"| {task} | {rates} | {share} | {r['jclip']['peak_mib']} / {r['torch']['peak_mib']} |")
    if "memory" in results:
        print("\n| MiB, loaded → peak | jclip | torch |\n|---|---|---|")
        for task, sides in results["memory"].items():
            cells = (f"{sides[side]['loaded_mib']} → {sides[side]['peak_mib']}" for side in ("jclip", "torch"))
            print(f"| {task} | {' | '.join(cells)} |")
    if "recipes" in results:
        print(
            "\n| features to metrics, seconds | jclip | torch | ratio | operators compiled, first run |\n|---|---|---|---|---|"
        )
        for task, r in results["recipes"].items():
            seconds = " | ".join(f"{r[side]['seconds']:.2f}" for side in ("jclip", "torch"))
            compiled = results["operators"][RECIPES[task]]["first"]["operators"]
            print(f"| {task} | {seconds} | {r['ratio']:.2f} | {compiled} |")
    print_towers(results)
    return 0


def print_processors() -> None:
    """A row per processor and number of threads, the newest first: ratios to torch, seconds to start."""
    print(f"| processor, threads | measured | {' | '.join(COLUMNS)} | first, second start, CPU s | targets missed |")
    print(f"|{'---|' * (len(COLUMNS) + 4)}")
    shown = set()
    for results in targets.newest_first():
        of = (results["machine"]["cpu"], results["machine"]["threads"])
        together = targets.recorded(*of)
        tasks, starts = together.get("tasks", {}), together.get("starts", {})
        cells = [f"{tasks[row]['ratio']:.2f}" if row in tasks else "" for row in COLUMNS.values()]
        seconds = [starts[row]["cpu_seconds"] for row in ("first start", "second start") if row in starts]
        values = [(t, t.value(together)) for t in targets.TARGETS]
        missed = sum(value is not None and t.missed(value) for t, value in values)
        measured = sum(value is not None for _, value in values)
        if of in shown or not (tasks or starts):
            continue
        shown.add(of)
        cells += [", ".join(f"{s:.1f}" for s in seconds), f"{missed} of {measured}"]
        print(f"| {of[0]}, {of[1]} | {results['machine']['time'][:10]} | {' | '.join(cells)} |")
    print()


def print_towers(results: dict) -> None:
    """What bench/tower_recipes.py measured."""
    if "towers" in results:
        sides = {"jclip": "jclip", "with images": "with images", "authors": "torch, authors", "same cut": "same cut"}
        head = " | ".join([*(f"{name}: s, MiB" for name in sides.values()), "ratios"])
        print(f"\n| seconds, peak memory | {head} |\n|{'---|' * (len(sides) + 2)}")
        for task, r in results["towers"].items():
            cells = [f"{r[side]['seconds']:.2f}, {r[side]['peak_mib']}" if side in r else "" for side in sides]
            print(f"| {task} | {' | '.join(cells)} | {r['ratio']['authors']:.2f}, {r['ratio']['same cut']:.2f} |")
    if "large" in results:
        print("\n| one step | peak memory, GiB |\n|---|---|")
        for task, r in results["large"].items():
            print(f"| {task} | {r['peak_mib'] / 1024:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
