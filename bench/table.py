"""Prints what the files beside it measured, in Markdown: `python bench/table.py [bench/results/NAME.json]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
RECIPES = {  # of the tasks of bench/recipes.py
    "Tip-Adapter, 4,000 settings": "tip_adapter",
    "Tip-Adapter-F, 20 epochs": "tip_adapter",
    "cross-modal linear, 2,000 steps": "cross_modal",
    "LP++, 300 epochs": "lp_plus",
    "GDA": "gda",
}


def main() -> int:
    """The named file, else the newest by name."""
    files = [Path(a) for a in sys.argv[1:]] or sorted(RESULTS.glob("*.json"))[-1:]
    if not files or not files[0].is_file():
        sys.stderr.write("no results: run python bench/speed.py --out bench/results/NAME.json first\n")
        return 2
    results = json.loads(files[0].read_text(encoding="utf-8"))
    machine = results["machine"]
    print(f"{machine['cpu']}, {machine['threads']} threads, torch {machine['packages']['torch']}\n")
    print("| per second (median) | jclip | torch | ratio | of sgemm's rate | peak memory, MiB |")
    print("|---|---|---|---|---|---|")
    for task, r in results["tasks"].items():
        share = f"{r['of_sgemm']:.0%}" if "of_sgemm" in r else ""
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
