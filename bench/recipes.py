"""The recipes on frozen features: their speed beside the same recipe in torch, and the operators that they compile.

    python bench/recipes.py [--tasks NAME …] [--recipes NAME …] [--rounds 5] [--threads 2] [--out bench/results/NAME.json]
    python bench/recipes.py --profile NAME      where jclip's time goes, per function

Speed is from a file of features to the metrics: 100 classes x 16 shots, 400 validation and 2,500 test rows, 512-dimensional,
made from a seed. Both sides read that file and measure with the same NumPy code, take the same batches and run in turns in
one process; jclip writes the run's folder besides. Starting, importing and the first run, which compiles, don't count and
are distinguishable. Cross-modal adaptation runs 2,000 of the paper's 12,800 steps. Operators are counted on each recipe's
smoke config, in a new process with an empty cache and in another one after it. Results go into the file of bench/speed.py.
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

CLASSES, SHOTS, WIDTH = 100, 16, 512
VAL_ROWS, TEST_ROWS = 400, 2500
SPANNED = 32  # dimensions in which classes and photos differ: of as many as `WIDTH`, every class would stand alone
TASKS: dict[str, dict[str, Any]] = {
    "Tip-Adapter, 4,000 settings": {"recipe": "tip_adapter", "search": True},
    "Tip-Adapter-F, 20 epochs": {"recipe": "tip_adapter", "train": True},
    "cross-modal linear, 2,000 steps": {
        "recipe": "cross_modal",
        "optim": {"lr": 1e-3, "weight_decay": 1e-2, "warmup": 50, "epochs": 20, "batch": 8},
    },
    "LP++, 300 epochs": {"recipe": "lp_plus"},
    "GDA": {"recipe": "gda"},
}
SECONDS = {"Tip-Adapter, 4,000 settings": 2.0}  # at most this; the others: at most torch's time
RATIO = 1.0
RECIPES = (
    "tip_adapter", "ape", "linear_probe", "task_res", "clip_adapter", "cross_modal", "lp_plus", "clap", "wise_ft", "gda",
)  # fmt: skip
OPERATORS = 40  # at most, in a first run
SIDES = ("jclip", "torch")


def main() -> int:
    """Measures, prints both tables, writes the results."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tasks", nargs="*", default=[*TASKS], choices=TASKS, metavar="NAME", help="; ".join(TASKS))
    p.add_argument("--recipes", nargs="*", default=RECIPES, choices=RECIPES, metavar="NAME", help="; ".join(RECIPES))
    p.add_argument("--rounds", type=int, default=5, help="counted runs per side and task")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--out", type=Path, help="results as JSON (default: none)")
    p.add_argument("--profile", choices=TASKS, metavar="NAME", help="print where jclip's time goes in this task")
    p.add_argument("--child", nargs=2, metavar=("WHAT", "NAME"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        what, name = args.child
        print(json.dumps(race(name, args.rounds) if what == "race" else first_run(name, Path(what))))
        return 0
    if args.profile:
        profile(args.profile)
        return 0
    speeds, operators = measure(args)
    print("\n\n".join(([speed_table(speeds)] if speeds else []) + ([operator_table(operators)] if operators else [])))
    if args.out:
        from speed import add

        add(args.out, args.threads, {"recipes": speeds, "operators": operators})
    return 0


def measure(args: argparse.Namespace) -> tuple[dict[str, dict], dict[str, dict]]:
    """What was asked for, one child process after the other."""
    from tqdm import tqdm

    with tqdm(total=len(args.tasks) + len(args.recipes), unit="child", disable=None, leave=False) as bar:

        def each(names, work: Callable[[str], dict]) -> dict[str, dict]:
            done = {}
            for name in names:
                bar.set_description(name)
                done[name] = work(name)
                bar.update()
            return done

        return (
            each(args.tasks, lambda task: judged(task, child("race", task, args))),
            each(args.recipes, lambda recipe: compiled_by(recipe, args)),
        )


def child(what: str, name: str, args: argparse.Namespace) -> dict:
    """One measurement in a process of its own, with the same number of threads for every library in it."""
    counted = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(args.threads))
    command = [sys.executable, __file__, "--child", what, name, "--rounds", str(args.rounds)]
    done = subprocess.run(command, env={**os.environ, **counted}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def race(task: str, rounds: int) -> dict:
    """Seconds of both sides in turns, of importing them and of a first run of each, and the test accuracy of each."""
    import_seconds = {}
    for side, module in (("jclip", "jclip.runtime"), ("torch", "torch")):
        begun = time.perf_counter()
        __import__(module)
        import_seconds[side] = time.perf_counter() - begun
    with tempfile.TemporaryDirectory() as folder:
        features = make_features(Path(folder) / "features.npz")
        runs = {"jclip": prepare_jclip(task, features), "torch": prepare_torch(task, features)}
        spent: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
        metrics = {}
        for number in range(rounds + 1):
            for side in SIDES if number % 2 else reversed(SIDES):
                begun = time.perf_counter(), time.process_time()
                metrics[side] = runs[side]()
                spent[side].append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
        reports = report_seconds(features)
    return {
        side: {
            "runs": [round(wall, 4) for wall, _ in spent[side][1:]],
            "cpu": [round(cpu, 4) for _, cpu in spent[side][1:]],
            "first_seconds": round(spent[side][0][0], 3),
            "import_seconds": round(import_seconds[side], 3),
            "test_top1": metrics[side]["test_top1"],
        }
        for side in SIDES
    } | {"report_seconds": round(reports, 4), "load": os.getloadavg()[0]}


def make_features(path: Path) -> str:
    """Writes features of unit length: classes, their photos and texts differ in the same few dimensions. The path."""
    import numpy as np

    rng = np.random.default_rng(0)
    basis = rng.standard_normal((SPANNED, WIDTH))
    centres = rng.standard_normal((CLASSES, SPANNED))

    def seen(labels, noise: float):
        near = centres[labels] + noise * rng.standard_normal((len(labels), SPANNED))
        x = near @ basis + rng.standard_normal((len(labels), WIDTH))
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    counts = {f"train_{{}}_{SHOTS}": CLASSES * SHOTS, "val_{}": VAL_ROWS, "test_{}": TEST_ROWS}
    labels = {name: np.repeat(np.arange(CLASSES), rows // CLASSES) for name, rows in counts.items()}
    features = {name.format("features"): seen(y, 1.2) for name, y in labels.items()}
    text = seen(np.arange(CLASSES), 1.0)
    np.savez(path, text_features=text, **features, **{name.format("labels"): y for name, y in labels.items()})
    return str(path)


def config_of(task: str, features: str):
    """The recipe's module and its config for a task."""
    from jclip.train.configs import build_config

    return build_config({**TASKS[task], "data": {"features": features, "shots": SHOTS}}, task)


def prepare_jclip(task: str, features: str) -> Callable[[], dict]:
    """The whole run in a new folder, as `jclip train` does it."""
    from jclip.train.configs import resolved
    from jclip.train.run import Run

    module, cfg = config_of(task, features)

    def run() -> dict:
        with tempfile.TemporaryDirectory() as folder, Run(folder, resolved(module, cfg)) as opened:
            return opened.finish(module.run(cfg, opened))["metrics"]

    return run


def prepare_torch(task: str, features: str) -> Callable[[], dict]:
    """The same recipe, written as a torch user would."""
    import torch
    import torch_recipes

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    _, cfg = config_of(task, features)
    recipe = getattr(torch_recipes, TASKS[task]["recipe"])
    return lambda: recipe(cfg, torch_recipes.load(features, SHOTS))


def report_seconds(features: str) -> float:
    """What measuring zero-shot and the result on val and test takes, of which both sides' times are a part."""
    from jclip.features.heads import ZeroShotHead
    from jclip.features.precomputed import read_precomputed

    data = read_precomputed(features, SHOTS)
    head = ZeroShotHead(data.text, data.scale)
    scores = {len(part): head(part) for part in (data.val, data.test)}
    begun = time.perf_counter()
    for _ in ("zero-shot", "result"):
        data.report(lambda part: scores[len(part)])
    return time.perf_counter() - begun


def judged(task: str, result: dict) -> dict:
    """With medians, the ratio and whether the target is met. Raises `SystemExit` where the sides learnt different things."""
    for side in SIDES:
        result[side] |= {
            k: statistics.median(result[side][of]) for k, of in (("seconds", "runs"), ("cpu_seconds", "cpu"))
        }
    accuracies = [result[side]["test_top1"] for side in SIDES]
    if abs(accuracies[0] - accuracies[1]) * TEST_ROWS > 5:  # photos: rounding may move a few
        raise SystemExit(f"{task}: not the same recipe, test top-1 {accuracies[0]:.4f} and {accuracies[1]:.4f}")
    ratio, cpu_ratio = (result["torch"][k] / result["jclip"][k] for k in ("seconds", "cpu_seconds"))
    met = result["jclip"]["seconds"] <= SECONDS[task] if task in SECONDS else ratio >= RATIO
    return {**result, "ratio": ratio, "cpu_ratio": cpu_ratio, "met": met}


def compiled_by(recipe: str, args: argparse.Namespace) -> dict:
    """Operators and seconds of a first run, and of one in another process after it."""
    with tempfile.TemporaryDirectory() as cache:
        first, second = (child(cache, recipe, args) for _ in range(2))
    return {"first": first, "second": second}


def first_run(recipe: str, cache: Path) -> dict:
    """Runs the smoke config on the operators in `cache`: how many more there are afterwards, and the seconds."""
    from jclip.commands.warmup import compiled
    from jclip.runtime import jt
    from jclip.train.configs import read_config, resolved
    from jclip.train.run import Run

    (cache / "jit").mkdir(exist_ok=True)
    jt.flags.cache_path = str(cache)  # of operators; Jittor's own libraries are loaded by now
    before = compiled(jt)
    module, cfg, _ = read_config(str(ROOT / "configs" / recipe / "smoke.yaml"))
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Run(folder, resolved(module, cfg)) as run:
        module.run(cfg, run)
    return {"operators": compiled(jt) - before, "seconds": round(time.perf_counter() - begun, 2)}


def speed_table(speeds: dict[str, dict]) -> str:
    """One row per task: medians, ratio, target, and what does not count."""
    from jclip.report.predictions import table

    rows = []
    for task, r in speeds.items():
        wanted = f"≤ {SECONDS[task]:.1f} s" if task in SECONDS else f"ratio ≥ {RATIO:.1f}"
        seconds = [f"{x:.3f}" for x in (r["jclip"]["seconds"], r["torch"]["seconds"])]
        ratios = [f"{r['ratio']:.2f}", f"{r['cpu_ratio']:.2f}", f"{wanted}: {'met' if r['met'] else 'MISSED'}"]
        both = (("test_top1", 4), ("import_seconds", 1), ("first_seconds", 1))
        pairs = [" / ".join(f"{r[side][key]:.{digits}f}" for side in SIDES) for key, digits in both]
        rows.append([task, *seconds, *ratios, f"{r['report_seconds']:.3f}", *pairs])
    head = ["features to metrics, seconds", "jclip", "torch", "torch / jclip", "of CPU time", "target"]
    head += ["metrics in both", "test top-1", "import", "first run"]
    return table(head, rows)


def operator_table(operators: dict[str, dict]) -> str:
    """One row per recipe."""
    from jclip.report.predictions import table

    rows = []
    for name, r in operators.items():
        met = r["first"]["operators"] <= OPERATORS and not r["second"]["operators"]
        numbers = [str(r[which][what]) for which in ("first", "second") for what in ("operators", "seconds")]
        rows.append([name, *numbers, f"≤ {OPERATORS}, then 0: {'met' if met else 'MISSED'}"])
    return table(["recipe", "operators compiled", "seconds", "by a second process", "seconds", "target"], rows)


def profile(task: str) -> None:
    """Prints the functions of jclip's side by their own time; waiting for operators stands under `sync` and `numpy`."""
    import cProfile
    import pstats

    with tempfile.TemporaryDirectory() as folder:
        run = prepare_jclip(task, make_features(Path(folder) / "features.npz"))
        run()
        profiler = cProfile.Profile()
        profiler.runcall(run)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(20)


if __name__ == "__main__":
    sys.exit(main())
