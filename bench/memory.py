"""Peak memory of jclip and torch, each in a process of its own, over batch sizes.

    python bench/memory.py [--tasks NAME …] [--threads 2] [--out bench/results/NAME.json]

`loaded` is what the process holds with model and input in memory, `peak` the most it held while it worked. Results go
into the file of bench/speed.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from speed import SIDES, child, read, save

TASKS = [f"image {model} batch {batch}" for model in ("ViT-B/32", "ViT-B/16", "RN50") for batch in (1, 32, 128)]
TASKS += ["image ViT-B/32 batch 128 bf16", "text 374 prompts", *(f"train ViT-B/32 batch {n}" for n in (16, 32))]


def main() -> int:
    """Measures, prints the table, writes the results."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tasks", nargs="+", default=TASKS, metavar="NAME", help="; ".join(TASKS))
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--out", type=Path, help="results as JSON (default: none)")
    args = p.parse_args()
    results = {}
    for task in args.tasks:
        done = {side: child(side, task, 0.01, args.threads) for side in SIDES}
        results[task] = {side: {k: round(run[k]) for k in ("loaded_mib", "peak_mib")} for side, run in done.items()}
        cells = "  ".join(f"{side} {r['loaded_mib']:5d} → {r['peak_mib']:5d} MiB" for side, r in results[task].items())
        print(f"{task:34} {cells}", flush=True)
    if args.out:
        save(args.out, {**read(args.out, args.threads), "memory": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
