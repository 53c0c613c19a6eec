"""jclip against torch, side by side: alternating child processes, equal threads, medians, peak memory.

    python bench/speed.py [--tasks NAME …] [--rounds 3] [--seconds 4] [--threads 2] [--out bench/results/NAME.json]
    python bench/speed.py --profile NAME        where jclip's time goes, per operator
    python bench/speed.py --check               which rows fall below their targets (bench/targets.py) on this machine

`--check` compares what bench/results holds of this processor, and measures the tasks with a target that it lacks.

torch runs transformers' CLIPModel with its sdpa attention (bf16, int8: autocast), and for ResNets the twin of the parity tests,
batch norm in evaluation, in training by the batch's statistics, with maps channels-last; encoders of 2025 run in the libraries
that bench/encoder_sides.py names. int8 has a third side, jclip's bf16. All have random weights and the same input. Nothing here
is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import targets

IMAGE = [f"image {model} batch {batch}" for model in ("ViT-B/32", "ViT-B/16", "RN50") for batch in (1, 32)]
HALF = [f"image {model} batch 32 bf16" for model in ("ViT-B/32", "ViT-B/16")]
INT8 = [f"image {model} batch 32 int8" for model in ("ViT-B/32", "ViT-B/16")]
TEXT = ["text 374 prompts", "text 374 prompts, torch cut too"]
TRAIN = [f"train {model} batch 16{dtype}" for model in ("ViT-B/32", "RN50") for dtype in ("", " bf16")]
DTYPES = ("", " bf16", " int8")
ENCODERS = [f"image {m} batch 32{d}" for m in ("ViT-B-16-SigLIP2", "PE-Core-B-16", "MobileCLIP-B") for d in DTYPES]
CHINESE = [f"text Chinese-CLIP-ViT-B-16 batch 128{more}" for more in (*DTYPES, " of 52 tokens")]
TASKS = [*IMAGE, *HALF, *INT8, *ENCODERS, *CHINESE, *TEXT, *TRAIN, "photos ViT-B/32 2000 JPEGs"]
SIDES = ("jclip", "torch")
WARM_ONLY = 0.0  # seconds


def main() -> int:
    """Measures, prints the table, writes the results."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, metavar="NAME", help="; ".join(TASKS))
    p.add_argument("--rounds", type=int, default=3, help="child processes per side and task")
    p.add_argument("--seconds", type=float, default=4.0, help="measured time per child process")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--cpu", action="store_true", help="CPU time, on a machine that others use as well (one thread)")
    p.add_argument("--out", type=Path, help="results as JSON (default: none)")
    p.add_argument("--profile", choices=TASKS, metavar="NAME", help="print where jclip's time goes in this task")
    p.add_argument("--check", action="store_true", help="list rows below their targets; exit status 1 if there is one")
    p.add_argument("--child", nargs=2, metavar=("SIDE", "TASK"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        print(json.dumps(measure(*args.child, args.seconds, time.process_time if args.cpu else time.perf_counter)))
        return 0
    if args.profile:
        profile(args.profile)
        return 0
    if args.check:
        return check(args)
    for task in args.tasks:
        result = compare(task, args)
        print(line(task, result), flush=True)
        for target in targets.missed_by(task, result):
            print(f"below {target.limit} {target.name}; the operators by their time:", flush=True)
            subprocess.run([sys.executable, __file__, "--profile", task], check=True)
        if args.out:
            write(args.out, args.threads, task, result)
    return 0


def check(args: argparse.Namespace) -> int:
    """Print the targets beside what is recorded of this processor, or measured now. Returns 1 if one is missed."""
    results = targets.recorded(targets.processor(), args.threads)
    tasks = results.setdefault("tasks", {})
    wanted = {t.row for t in targets.TARGETS if t.section == "tasks"}
    for task in args.tasks:
        if task in wanted and task not in tasks:
            tasks[task] = compare(task, args)
            print(line(task, tasks[task]), flush=True)
            if args.out:
                write(args.out, args.threads, task, tasks[task])
    print(f"{targets.processor()}, {args.threads} threads")
    missed = targets.report(results)
    measured = sum(target.value(results) is not None for target in targets.TARGETS)
    print(f"{len(missed)} of {measured} targets missed, {len(targets.TARGETS) - measured} not measured")
    return 1 if missed else 0


def write(path: Path, threads: int, task: str, result: dict) -> None:
    """Puts one task's result into the file, in the order of `TASKS`; others in it stay if they are of the same machine."""
    results = read(path, threads)
    results["tasks"][task] = {**result, "commit": results["machine"]["commit"]}
    results["tasks"] = {name: results["tasks"][name] for name in TASKS if name in results["tasks"]}
    save(path, results)


def read(path: Path, threads: int) -> dict:
    """What the file holds, if it is of this machine, under today's description of it."""
    results = {"machine": machine(threads), "tasks": {}}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["machine"]["cpu"] == results["machine"]["cpu"] and before["machine"]["threads"] == threads:
            results = {**before, "machine": results["machine"]}
    return results


def add(path: Path, threads: int, measured: dict[str, dict]) -> None:
    """Puts what was measured, part → name → figures, into the file; all else in it stays."""
    results = read(path, threads)
    commit = results["machine"]["commit"]
    for part, done in measured.items():
        results[part] = {**results.get(part, {}), **{name: {**r, "commit": commit} for name, r in done.items()}}
    save(path, results)


def save(path: Path, results: dict) -> None:
    """Writes the results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def compare(task: str, args: argparse.Namespace) -> dict:
    """Rates and memory of both sides; a first run of each, which compiles and warms the disk's cache, doesn't count."""
    sides = (*SIDES, "bf16") if task in INT8 else SIDES
    runs: dict[str, list[dict]] = {side: [] for side in sides}
    for number in range(args.rounds + 1):
        for side in sides if number % 2 else reversed(sides):
            done = child(side, task, args.seconds if number else WARM_ONLY, args.threads, args.cpu)
            if number:
                runs[side].append(done)
    result = {
        side: {
            "per_second": statistics.median(run["per_second"] for run in done),
            "runs": [round(run["per_second"], 3) for run in done],
            "peak_mib": round(statistics.median(run["peak_mib"] for run in done)),
        }
        for side, done in runs.items()
    }
    own, names = runs["jclip"], ("of_sgemm", "of_half_rate")
    limit = {name: statistics.median(run[name] for run in own) for name in names if name in own[0]}
    ours = result["jclip"]["per_second"]
    to_half = {"to_half": ours / result["bf16"]["per_second"]} if "bf16" in result else {}
    clock = {"clock": "CPU time"} if args.cpu else {}
    return {**result, **clock, "ratio": ours / result["torch"]["per_second"], **to_half, **limit}


def child(side: str, task: str, seconds: float, threads: int, cpu: bool = False) -> dict:
    """One measurement in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--child", side, task, "--seconds", str(seconds)]
    command += ["--cpu"] if cpu else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side}, {task}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(side: str, task: str, seconds: float, clock: Callable[[], float] = time.perf_counter) -> dict:
    """Items per second (median over repetitions) and memory of this process, in MiB: when loaded, and at its peak."""
    import sides

    prepare = sides.prepare_torch if side == "torch" else sides.prepare_jclip
    warm, run, items = prepare(task.replace(" int8", " bf16") if side == "bf16" else task)
    loaded = resident()
    warm()
    spent: list[float] = []
    begun = time.perf_counter()
    while seconds > WARM_ONLY and (not spent or time.perf_counter() - begun < seconds):
        start = clock()
        run()
        spent.append(clock() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = {"repetitions": len(spent), "loaded_mib": loaded, "peak_mib": peak}
    if not spent:
        return figures
    figures["per_second"] = items / statistics.median(spent)
    work = sides.gflop(task)
    if side == "jclip" and work:
        dtype = sides.parse(task)[-1]
        figures[sides.RATES[dtype]] = figures["per_second"] * work / sides.product_rate(dtype, clock)
    return figures


def resident() -> float:
    """Memory that this process holds now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def profile(task: str) -> None:
    """Prints jclip's operators by the time that they take."""
    import sides

    warm, run, _ = sides.prepare_jclip(task)
    warm()
    print_operators(run)


def print_operators(run: Callable[[], None]) -> None:
    """Prints the operators of one call by the time that they take."""
    from jclip.runtime import jt

    with jt.profile_scope() as report:
        run()
    total = sum(int(row[2]) * float(row[4]) for row in report[1:])
    for row in sorted(report[1:], key=lambda row: -int(row[2]) * float(row[4]))[:12]:
        spent = int(row[2]) * float(row[4])
        called = re.search(r"jclip::(\w+)", Path(row[1]).read_text()) if Path(row[1]).is_file() else None
        name = called.group(1) if called else row[0][:60]
        print(f"{spent / 1e6:9.1f} ms  {spent / total:6.1%}  {row[2]:>4} times  {name}")


def machine(threads: int) -> dict:
    """What the figures depend on."""
    from importlib.metadata import version

    from jclip.train.run_facts import provenance

    packages = {name: version(name) for name in ("torch", "transformers", "jittor")}
    facts = {"cpu": targets.processor(), "system": platform.platform(), "threads": threads, "packages": packages}
    return {**provenance(), **facts}


def line(task: str, result: dict) -> str:
    """One row of the table."""
    rates = "  ".join(f"{side} {result[side]['per_second']:8.2f}/s {result[side]['peak_mib']:5d} MiB" for side in SIDES)
    to_half = f", {result['to_half']:.2f} to jclip's bf16" if "to_half" in result else ""
    return f"{task:34} {rates}  ratio {result['ratio']:.2f}{to_half}"


if __name__ == "__main__":
    sys.exit(main())
