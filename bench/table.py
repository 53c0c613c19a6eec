"""Prints the results of bench/speed.py and bench/recipes.py in Markdown: `python bench/table.py [bench/results/NAME.json]`."""

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
        rates = f"{r['jclip']['per_second']:.2f} | {r['torch']['per_second']:.2f} | {r['ratio']:.2f}{to_wide}"
        print(f"| {task} | {rates} | {share} | {r['jclip']['peak_mib']} / {r['torch']['peak_mib']} |")
    if "memory" in results:
        print("\n| MiB, loaded → peak | jclip | torch |\n|---|---|---|")
        for task, sides in results["memory"].items():
            told = (f"{sides[side]['loaded_mib']} → {sides[side]['peak_mib']}" for side in ("jclip", "torch"))
            print(f"| {task} | {' | '.join(told)} |")
    if "recipes" in results:
        print(
            "\n| features to metrics, seconds | jclip | torch | ratio | operators compiled, first run |\n|---|---|---|---|---|"
        )
        for task, r in results["recipes"].items():
            seconds = " | ".join(f"{r[side]['seconds']:.2f}" for side in ("jclip", "torch"))
            compiled = results["operators"][RECIPES[task]]["first"]["operators"]
            print(f"| {task} | {seconds} | {r['ratio']:.2f} | {compiled} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
