"""How long jclip takes to answer what needs no model: medians over fresh processes, beside an empty Python.

    python bench/startup.py [--rounds 9] [--out bench/results/NAME.json]

The first round of each does not count: it warms the disk's cache. What these commands may import is checked by
tests/library/test_cli.py; here is what that costs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import speed

JCLIP = ("-m", "jclip.cli")
COMMANDS = {  # arguments of Python, and the exit status
    "python -c pass": (("-c", "pass"), 0),
    "import jclip": (("-c", "import jclip"), 0),
    "jclip --help": ((*JCLIP, "--help"), 0),
    "jclip zero-shot --help": ((*JCLIP, "zero-shot", "--help"), 0),
    "jclip train, unknown key": ((*JCLIP, "train", "configs/zero_shot/smoke.yaml", "sead=1"), 2),
}


def main() -> int:
    """Measures, prints the table, writes the results."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=9, help="measured processes per command (default: 9)")
    p.add_argument("--out", type=Path, help="results as JSON (default: none)")
    args = p.parse_args()
    spent: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(args.rounds + 1):
        for name in COMMANDS:
            spent[name].append(seconds(name))
    medians = {name: statistics.median(runs[1:]) for name, runs in spent.items()}
    for name, median in medians.items():
        print(f"{name:26} {median:6.3f} s")
    if args.out:
        speed.save(args.out, {"machine": speed.machine(1), "seconds": medians})
    return 0


def seconds(name: str) -> float:
    """One start of a command in a process of its own."""
    arguments, status = COMMANDS[name]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    spent = time.perf_counter() - start
    if done.returncode != status:
        raise SystemExit(f"{name}: exit {done.returncode} instead of {status}\n{done.stdout}{done.stderr}")
    return spent


if __name__ == "__main__":
    raise SystemExit(main())
