"""Prints the results of bench/speed.py as a Markdown table: `python bench/table.py [bench/results/NAME.json]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """The named file, else the newest by name."""
    files = [Path(a) for a in sys.argv[1:]] or sorted(RESULTS.glob("*.json"))[-1:]
    if not files or not files[0].is_file():
        sys.stderr.write("no results: run python bench/speed.py --out bench/results/NAME.json first\n")
        return 2
    results = json.loads(files[0].read_text(encoding="utf-8"))
    machine = results["machine"]
    print(
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['packages']['torch']}, commit {machine['commit']}\n"
    )
    print("| per second (median) | jclip | torch | ratio | peak memory, MiB |")
    print("|---|---|---|---|---|")
    for task, r in results["tasks"].items():
        memory = f"{r['jclip']['peak_mib']} / {r['torch']['peak_mib']}"
        print(
            f"| {task} | {r['jclip']['per_second']:.2f} | {r['torch']['per_second']:.2f} | {r['ratio']:.2f} | {memory} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
