"""Visual grounding: jclip beside torch, written as CLIP-VG's authors do and with the same savings, in turns.

    python bench/grounding_speed.py training     a step of 16 phrases of 16 photos, both towers frozen
    python bench/grounding_speed.py inference    20 phrases in one photo
    python bench/grounding_speed.py attention    the operator with a key mask alone, forward and backward
    python bench/grounding_speed.py --profile jclip training    where a side's time goes, per operator

ViT-B/16 with random weights, a fusion network of 6 layers with dropout 0.1, float32, photos of COCO's shapes in squares of
224 pixels, the same weights on both sides; losses and boxes without dropout are compared and have to be equal. All sides
take turns within one process, a first repetition, which compiles, is not counted, and medians are taken of the others, of
seconds and of CPU seconds, which a busy machine changes less. The authors' way takes many seconds: it is repeated half as
often, and its first repetition counts. Peak memory is that of a process for each side, in its second step (the authors': its
first, which holds no moments of the optimiser yet).

"authors": both towers in each step, 77 text tokens, the photo encoded for each phrase, all tokens in all layers; "authors,
positions": the image tower's positions are trained as well, so that gradients pass through all of it, as published. "same
savings": what jclip leaves out is left out, see bench/torch_grounding.py. "cached": the towers' tokens come from memory, as
the recipe `grounding` has them. Photos and phrases pass through both towers in each step of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

AUTHORS = ("authors", "authors, positions")
SIDES = {
    "training": ("jclip", "jclip, cached", *AUTHORS, "same savings", "same savings, cached"),
    "inference": ("jclip", "authors", "same savings"),
    "attention": ("jclip", "sdpa"),
    "attention with dropout": ("jclip", "sdpa"),
}
WANTED = {  # torch's side, jclip's → ratio of CPU seconds, at least
    "training": {
        ("authors", "jclip"): 2.0, ("authors, positions", "jclip"): 2.0, ("same savings", "jclip"): 1.15,
        ("authors", "jclip, cached"): 5.0, ("authors, positions", "jclip, cached"): 5.0,
        ("same savings, cached", "jclip, cached"): 1.15,
    },
    "inference": {("authors", "jclip"): 6.0, ("same savings", "jclip"): 1.15},
    "attention": {("sdpa", "jclip"): 1.15},
    "attention with dropout": {("sdpa", "jclip"): 1.15},
}  # fmt: skip
CLOSE = 1e-3  # of losses, boxes and gradients, relative; tokens in float16 among them
SHORT = 8  # times as many repetitions of the operator alone


def main() -> int:
    """Measures what is asked for and prints it."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("parts", nargs="*", choices=[*SIDES, []], metavar="PART", help=", ".join(SIDES))
    p.add_argument("--repetitions", type=int, default=5, help="measured, of each side")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--out", type=Path, help="results as JSON (default: none)")
    p.add_argument(
        "--no-memory", action="store_true", help="measure no peak memory, which takes a process for each side"
    )
    p.add_argument("--profile", nargs=2, metavar=("SIDE", "PART"), help="print where jclip's time goes in it")
    p.add_argument("--child", nargs=2, metavar=("SIDE", "PART"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        print(json.dumps(in_child(*args.child)))
        return 0
    if os.environ.get("OMP_NUM_THREADS") != str(args.threads):  # read when the libraries start
        counted = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
        return subprocess.run([sys.executable, *sys.argv], env={**os.environ, **counted}).returncode
    if args.profile:
        return profile(*args.profile)
    child("jclip", "material")
    missed = 0
    for part in args.parts or SIDES:
        result = compare(part, args)
        missed += shown(part, result, args.threads)
        if args.out:
            write(args.out, args.threads, part, result)
    return int(missed > 0)


def compare(part: str, args: argparse.Namespace) -> dict[str, Any]:
    """Medians of each side, ratios to jclip, and the largest difference of what they found."""
    steps = {side: prepare(side, part) for side in SIDES[part]}
    found = {
        side: step.compared() for side, step in steps.items() if side != AUTHORS[1]
    }  # whose formulas are the first's
    spent: dict[str, list[tuple[float, float]]] = {side: [] for side in steps}
    count = args.repetitions * (SHORT if "attention" in part else 1)
    for number in range(count + 1):
        for side, step in steps.items() if number % 2 else reversed(steps.items()):
            if side not in AUTHORS:
                one = timed(step.run)
                spent[side] += [one] * (number > 0)
            elif number < (count + 1) // 2:
                spent[side].append(timed(step.run))
    sides: dict[str, dict] = {}
    for side, done in spent.items():
        clock, cpu = (statistics.median(column) for column in zip(*done, strict=True))
        peak = {} if args.no_memory else {"peak_mib": child(side, part)["peak_mib"]}
        sides[side] = {"seconds": clock, "cpu_seconds": cpu, "runs": [round(c, 4) for _, c in done], **peak}
    ratios = {
        f"{theirs} / {own}": {kind: sides[theirs][kind] / sides[own][kind] for kind in ("seconds", "cpu_seconds")}
        for theirs, own in WANTED[part]
    }
    scale = abs(found["jclip"]).max()
    difference = max(float(abs(value - found["jclip"]).max() / scale) for value in found.values())
    return {"sides": sides, "ratios": ratios, "difference": difference, "load": os.getloadavg()[0]}


def shown(part: str, result: dict, threads: int) -> int:
    """Prints a part's table: how many of its targets were missed."""
    print(f"{part}, {threads} thread{'s' * (threads > 1)}, load {result['load']:.1f}\n")
    print("| side | seconds | CPU seconds | peak memory, MiB |\n|---|---|---|---|")
    for side, r in result["sides"].items():
        print(f"| {side} | {r['seconds']:.3f} | {r['cpu_seconds']:.3f} | {r.get('peak_mib', '')} |")
    print()
    missed = 0
    for (theirs, own), least in WANTED[part].items():
        ratio = result["ratios"][f"{theirs} / {own}"]
        clock, cpu = ratio["seconds"], ratio["cpu_seconds"]
        missed += cpu < least
        verdict = "missed" if cpu < least else "met"
        print(f"{cpu:.2f} x: {theirs} / {own}, CPU time ({clock:.2f} on the clock), wanted ≥ {least}: {verdict}")
        held = [result["sides"][side].get("peak_mib", 0) for side in (own, theirs)]
        if held[0] > held[1]:
            missed += 1
            print(f"peak memory of {own}, {held[0]} MiB, is above that of {theirs}: missed")
    print(f"largest relative difference to jclip's result: {result['difference']:.1e}\n", flush=True)
    return missed + (result["difference"] > CLOSE)


def timed(run) -> tuple[float, float]:
    """Seconds on the clock and of CPU time."""
    begun = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - begun[0], time.process_time() - begun[1]


def prepare(side: str, part: str):
    """What is timed on that side."""
    cached = side.endswith(", cached")
    if side.startswith("jclip"):
        import grounding_sides as own

        made = {"training": lambda: own.training(cached), "inference": own.inference}
    else:
        import torch_grounding as own

        way = side.removesuffix(", cached")
        made = {"training": lambda: own.training(way, cached), "inference": lambda: own.inference(way)}
    made |= {"attention": lambda: own.attention(0.0), "attention with dropout": lambda: own.attention(0.1)}
    return made[part]()


def child(side: str, part: str) -> dict:
    """One side in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--child", side, part], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side}, {part}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def in_child(side: str, part: str) -> dict:
    """What a child process prints."""
    if part == "material":
        import grounding_sides

        return grounding_sides.material()
    step = prepare(side, part)
    for _ in range(1 if side in AUTHORS else 2):
        step.run()
    from jclip.train.run_facts import peak_memory

    return {"peak_mib": round(peak_memory()["host"])}


def profile(side: str, part: str) -> int:
    """Prints jclip's operators by the time that they take."""
    from speed import print_operators

    step = prepare(side, part)
    step.run()
    print_operators(step.run)
    return 0


def write(path: Path, threads: int, part: str, result: dict) -> None:
    """Puts a part's result into the file; all else in it stays."""
    from speed import read, save

    results = read(path, threads)
    results["grounding"] = {**results.get("grounding", {}), part: {**result, "commit": results["machine"]["commit"]}}
    save(path, results)


if __name__ == "__main__":
    sys.exit(main())
