"""Several labels learned from sentences: jclip beside torch written the authors' way, in turns, with equal threads.

    python bench/multi_label_speed.py training    a step of TaI-DPT: RN50's text tower, 80 classes, 512 captions
    python bench/multi_label_speed.py scoring     six models, a photo and its windows: seconds a photo, encoder passes
    python bench/multi_label_speed.py dense       the same from one large map a scale
    python bench/multi_label_speed.py dense-map   mAP of both kinds of windows on drawn scenes
    python bench/multi_label_speed.py captions    CPU seconds of one core for labelling 100,000 captions
    python bench/multi_label_speed.py memory      of `jclip score`, for some photos and for four times as many
    python bench/multi_label_speed.py --profile training|scoring|dense    where jclip's time goes, per operator

Each side runs in processes of its own; a first repetition, which compiles, is not counted, and medians are taken of the
others. The authors' side, which compiles nothing and takes long, runs once in each process, and that is counted. Weights are
random, of RN50's real sizes, and the same on both sides; losses and scores are compared and have to be equal.

"authors" is float32 torch as published: each step encodes its captions and both sets of prompts, of 77 tokens each; six
models have six image towers, and the photos are decoded, cut and resized in each of three runs. "cut": captions encoded
beforehand, prompts of both sets in one pass that ends with the longest. "cut and shared": and what the prompts begin with
goes through the tower once, as in jclip. No side draws photos to a caption bank.

By default 16 of the 304 windows are scored: a window costs the same wherever it is, so that the whole photo and 16 windows
are 17 of 305 equal passes for each model; `--windows 304` measures all (the authors' side takes minutes a photo). `dense`
is measured whole, and compared with the authors' seconds for a pass times 6 x 305.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

SIDES = {
    "training": ("jclip", "authors", "cut", "cut and shared"),
    "scoring": ("jclip", "authors"),
    "dense": ("jclip", "authors"),
}
WANTED = {  # ratios at least
    "training": {"authors": 8.0, "cut": 1.1, "cut and shared": 1.1}, "scoring": {"authors": 4.5}, "dense": {"authors": 40.0},
}  # fmt: skip
WINDOWS, MODELS = 304, 6
CLOSE = 2e-3  # of losses and scores, relative: captions' features are kept in fp16
CAPTIONS, LABELLING_SECONDS = 100_000, 10.0
GROWTH = 1.05  # of the peak memory, at most, for four times as many photos


def main() -> int:
    """Measures what is asked for and prints it."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    p.add_argument("--rounds", type=int, default=2, help="child processes per side")
    p.add_argument("--repetitions", type=int, default=2, help="measured repetitions per child process")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--windows", type=int, choices=(16, WINDOWS), default=16, help="of a photo, measured by `scoring`")
    p.add_argument("--photos", type=int, default=4, help="that jclip scores at a time, of 16")
    p.add_argument("--scenes", type=int, default=200, help="drawn for `dense-map`")
    p.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data" / "coco", help="with captions_val2017.json"
    )
    p.add_argument("--profile", choices=SIDES, metavar="PART", help="print where jclip's time goes in it")
    p.add_argument("--child", nargs=2, metavar=("SIDE", "PART"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        print(json.dumps(in_child(*args.child, args)))
        return 0
    if args.profile:
        from speed import print_operators

        run, _ = prepare("jclip", args.profile, args)
        run()
        print_operators(run)
        return 0
    return max([PARTS[part](part, args) for part in args.parts or PARTS])


def alternating(part: str, args: argparse.Namespace) -> int:
    """Seconds of each side in turns, ratios, and whether both sides found the same."""
    child("jclip", "material", args)
    runs: dict[str, list[dict]] = {side: [] for side in SIDES[part]}
    for number in range(args.rounds):
        for side in SIDES[part] if number % 2 else reversed(SIDES[part]):
            runs[side].append(child(side, part, args))
    measured = {side: medians(done) for side, done in runs.items()}
    print(f"{part}, {args.threads} threads, load {os.getloadavg()[0]:.1f}; {what(part, args)}\n")
    print("| side | seconds | CPU seconds | peak memory, MiB | encoder passes |\n|---|---|---|---|---|")
    for side, r in measured.items():
        passes = r.get("passes", "")
        print(f"| {side} | {r['seconds']:.3f} | {r['cpu_seconds']:.3f} | {r['peak_mib']} | {passes} |")
    print()
    missed = 0
    for side, least in WANTED[part].items():
        ratio, cpu = (measured[side][k] * scale(part, args) / measured["jclip"][k] for k in ("seconds", "cpu_seconds"))
        missed += ratio < least
        print(f"{ratio:.2f} x {side} ({cpu:.2f} of CPU time), wanted ≥ {least}: {'missed' if ratio < least else 'met'}")
    if part != "dense":
        print(f"largest relative difference to jclip's result: {difference(measured):.1e}")
        missed += difference(measured) > CLOSE
    print()
    return int(missed > 0)


def scale(part: str, args: argparse.Namespace) -> float:
    """How many times what the authors' side measures is one of jclip's: `dense` stands for all windows."""
    return (1 + WINDOWS) / (1 + args.windows) if part == "dense" else 1.0


def what(part: str, args: argparse.Namespace) -> str:
    """Of which the seconds are."""
    if part == "training":
        return "seconds a step"
    return f"seconds a photo with {args.windows} windows" + (", of jclip with all" if part == "dense" else "")


def medians(done: list[dict]) -> dict[str, Any]:
    """Over the repetitions of all child processes."""
    measured = {
        k: statistics.median(one[k] for run in done for one in run["spent"]) for k in ("seconds", "cpu_seconds")
    }
    peak = round(statistics.median(run["peak_mib"] for run in done))
    return {**measured, "peak_mib": peak, **done[0]["result"]}


def difference(measured: dict[str, dict]) -> float:
    """The largest of any side's losses, or scores, to jclip's, relative to the largest of jclip's."""
    import numpy as np

    key = "loss" if "loss" in measured["jclip"] else "scores"
    own = np.array(measured["jclip"][key])
    return max(float(np.abs(np.array(r[key]) - own).max() / np.abs(own).max()) for r in measured.values())


def child(side: str, part: str, args: argparse.Namespace, **other: Any) -> dict:
    """One measurement in a process of its own."""
    options = {
        k: other.get(k, getattr(args, k)) for k in ("repetitions", "windows", "photos", "scenes", "data", "threads")
    }
    command = [sys.executable, __file__, "--child", side, part]
    command += [word for k, v in options.items() for word in (f"--{k}", str(v))]
    counted = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
    done = subprocess.run(command, env={**os.environ, **counted}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side}, {part}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def in_child(side: str, part: str, args: argparse.Namespace) -> dict:
    """What a child process prints."""
    from jclip.train.run_facts import peak_memory

    if part in ALONE:
        return {"result": ALONE[part](args), "peak_mib": peak_memory()["host"]}
    run, facts = prepare(side, part, args)
    each, (result, first) = facts.get("photos", 1), timed(run)
    spent = [first] if side == "authors" else [timed(run)[1] for _ in range(args.repetitions)]
    spent = [{k: seconds / each for k, seconds in one.items()} for one in spent]
    return {"result": result, "spent": spent, "peak_mib": peak_memory()["host"]}


def timed(run: Callable[[], dict]) -> tuple[dict, dict[str, float]]:
    """What it returns, and its seconds on the clock and of CPU time."""
    begun = time.perf_counter(), time.process_time()
    result = run()
    return result, {"seconds": time.perf_counter() - begun[0], "cpu_seconds": time.process_time() - begun[1]}


def prepare(side: str, part: str, args: argparse.Namespace) -> tuple[Callable[[], dict], dict]:
    """What is timed on that side."""
    import multi_label_sides as ours

    kind = "dense" if part == "dense" and side == "jclip" else f"{args.windows} windows"
    if side == "jclip":
        return ours.training(args.data) if part == "training" else ours.scoring(kind, args.photos)
    import torch_multi_label as theirs

    return theirs.training(args.data, side) if part == "training" else theirs.scoring(kind)


def material(args: argparse.Namespace) -> dict:
    """Makes weights and photos, so that no measured process does."""
    import multi_label_sides as ours

    return {"weights": str(ours.checkpoint()), "photos": len(ours.photos())}


def captions(part: str, args: argparse.Namespace) -> int:
    """Labelling on one core."""
    import multi_label_sides as ours

    spent = ours.labelling(args.data, CAPTIONS)
    print(f"| {CAPTIONS:,} captions labelled | CPU seconds |\n|---|---|")
    for name, seconds in spent.items():
        print(f"| {name} | {seconds:.2f} |")
    missed = max(spent.values()) > LABELLING_SECONDS
    print(f"\nwanted ≤ {LABELLING_SECONDS:.0f} s: {'missed' if missed else 'met'}\n")
    return int(missed)


def dense_map(part: str, args: argparse.Namespace) -> int:
    """mAP of a trained run by kind of windows."""
    measured = child("jclip", part, args)["result"]
    print(f"mAP of configs/text_as_image/shapes.yaml on {args.scenes} scenes of 128 pixels\n")
    print("| windows | global | local | together | against even |\n|---|---|---|---|---|")
    for name, row in measured.items():
        cells = " | ".join(f"{row[k]:.2f}" for k in ("global", "local", "scores"))
        print(f"| {name} | {cells} | {row['scores'] - measured['even']['scores']:+.2f} |")
    print()
    return 0


def map_of_windows(args: argparse.Namespace) -> dict:
    """Kind of windows → mAP of each part of the scores."""
    import multi_label_sides as ours
    import numpy as np

    from jclip.functional.metrics import average_precisions
    from jclip.report.score_files import read_scores

    run, measured = ours.trained_on_the_world(), {}
    with ours.drawn_scenes(args.scenes, 128) as (paths, there), tempfile.TemporaryDirectory() as folder:
        for kind in ("none", "even", "dense"):
            out = Path(folder, kind)
            ours.score_with_command(paths, run, out, "--windows", kind)
            parts = read_scores(str(out / "world.npz")).parts
            measured[kind] = {k: 100 * float(np.nanmean(average_precisions(v, there))) for k, v in parts.items()}
    return measured


def memory(part: str, args: argparse.Namespace) -> int:
    """Peak memory of the command for some photos and four times as many, in whole parts of its output."""
    from jclip.report.window_files import PHOTOS_OF_PART

    counts = (2 * PHOTOS_OF_PART, 8 * PHOTOS_OF_PART)
    child("jclip", "memory's material", args, scenes=counts[1])
    peaks = [child("jclip", part, args, scenes=count)["peak_mib"] for count in counts]
    print("| photos scored | peak memory, MiB |\n|---|---|")
    for count, peak in zip(counts, peaks, strict=True):
        print(f"| {count} | {peak:.0f} |")
    missed = peaks[1] > GROWTH * peaks[0]
    print(f"\n{peaks[1] / peaks[0]:.3f} times, wanted ≤ {GROWTH}: {'missed' if missed else 'met'}\n")
    return int(missed)


def score_many(args: argparse.Namespace) -> dict:
    """The command on that many scenes, which are there, square windows of scale 2 alone: no more is in this process."""
    import multi_label_sides as ours

    run, paths = ours.trained_on_the_world(), ours.kept_scenes(args.scenes)
    with tempfile.TemporaryDirectory() as folder:
        ours.score_with_command(paths, run, Path(folder, "out"), "--scales", "2", "--shapes", "unit")
    return {"photos": len(paths)}


def material_for_memory(args: argparse.Namespace) -> dict:
    """Trains the run and draws the scenes where they are not there."""
    import multi_label_sides as ours

    return {"run": str(ours.trained_on_the_world()), "photos": len(ours.kept_scenes(args.scenes))}


PARTS = {
    "training": alternating, "scoring": alternating, "dense": alternating, "dense-map": dense_map, "captions": captions,
    "memory": memory,
}  # fmt: skip
ALONE = {
    "material": material,
    "dense-map": map_of_windows,
    "memory": score_many,
    "memory's material": material_for_memory,
}

if __name__ == "__main__":
    sys.exit(main())
