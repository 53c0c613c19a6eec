"""Recipes with gradients through the towers: seconds per step and peak memory beside the same in torch.

    python bench/tower_recipes.py [--tasks NAME …] [--rounds 3] [--steps 3] [--threads 2] [--out bench/results/NAME.json]
    python bench/tower_recipes.py --large             jclip's peak memory at the sizes of large data sets, one step each
    python bench/tower_recipes.py --profile NAME      where jclip's time goes, per operator

ViT-B/32 with random weights, 100 classes whose names have one to four tokens, float32; torch runs transformers' CLIP with
its sdpa attention. "authors": prompts of all 77 tokens, and in CoOp's step 32 photos through the frozen image tower, as the
papers' code does it. "same cut": prompts end with the longest, and CoOp's features of photos are there, as jclip has them.
"with images": jclip's CoOp where each step encodes its photos (`views: 0`). Each side runs in processes of its own, in turns;
a first step, which compiles, doesn't count. A CoOp epoch is 50 steps of 32 of 1,600 photos: 50 times the median step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

MODEL, CLASSES, BATCH, VECTORS, RANK, DROPOUT = "ViT-B/32", 100, 32, 16, 2, 0.25
EPOCH = CLASSES * 16 // BATCH  # steps
COOP, LORA, FULL = "CoOp epoch", "LoRA step, batch 32", "full fine-tuning step, batch 32"
CLASSIFIED = "full fine-tuning step, cross-entropy"  # batch 32, the prompts of all classes
SIDES = {
    COOP: ("jclip", "with images", "authors", "same cut"),
    LORA: ("jclip", "authors", "same cut"),
    FULL: ("jclip", "authors", "same cut"),
    CLASSIFIED: ("jclip", "authors", "same cut"),
}
LARGE = {  # at most so many GiB
    "CoOp, 374 classes": 8.0,
    "CoOp, 1,000 classes": 8.0,
    "full fine-tuning, 374 photos in 4 parts": 12.0,
}
RATIOS = {"authors": 3.0, "same cut": 1.1}  # at least, of torch's seconds to jclip's


def main() -> int:
    """Measures, prints the table, writes the results."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tasks", nargs="+", default=[*SIDES], choices=SIDES, metavar="NAME", help="; ".join(SIDES))
    p.add_argument("--rounds", type=int, default=3, help="child processes per side and task")
    p.add_argument("--steps", type=int, default=3, help="measured steps per child process")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--out", type=Path, help="results as JSON (default: none)")
    p.add_argument("--large", action="store_true", help="only jclip's memory at large sizes")
    p.add_argument("--profile", choices=SIDES, metavar="NAME", help="print where jclip's time goes in this task")
    p.add_argument("--child", nargs=2, metavar=("SIDE", "TASK"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        print(json.dumps(measure(*args.child, args.steps)))
        return 0
    if args.profile:
        from speed import print_operators

        step = prepare("jclip", args.profile)
        step()
        print_operators(step)
        return 0
    results = {}
    for task in LARGE if args.large else args.tasks:
        results[task] = child("jclip", task, args) if args.large else compare(task, args)
        print(large_line(task, results[task]) if args.large else line(task, results[task]), flush=True)
    if args.out:
        from speed import add

        add(args.out, args.threads, {"large" if args.large else "towers": results})
    return 0


def compare(task: str, args: argparse.Namespace) -> dict:
    """Median seconds and peak memory of every side, and torch's seconds to jclip's, also those of CPU time."""
    runs: dict[str, list[dict]] = {side: [] for side in SIDES[task]}
    for number in range(args.rounds):
        for side in SIDES[task] if number % 2 else reversed(SIDES[task]):
            runs[side].append(child(side, task, args))
    result = {
        side: {
            **{
                name: scale(task) * statistics.median(step[i] for run in done for step in run["steps"])
                for i, name in enumerate(("seconds", "cpu_seconds"))
            },
            "steps": [round(step[0], 4) for run in done for step in run["steps"]],
            "peak_mib": round(statistics.median(run["peak_mib"] for run in done)),
        }
        for side, done in runs.items()
    }
    ratios = {
        f"{kind}ratio": {side: result[side][f"{kind}seconds"] / result["jclip"][f"{kind}seconds"] for side in RATIOS}
        for kind in ("", "cpu_")
    }
    return {**result, **ratios, "load": os.getloadavg()[0]}


def scale(task: str) -> int:
    """Steps of the figures."""
    return EPOCH if task == COOP else 1


def child(side: str, task: str, args: argparse.Namespace) -> dict:
    """One measurement in a process of its own."""
    counted = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
    command = [sys.executable, __file__, "--child", side, task, "--steps", str(0 if args.large else args.steps)]
    done = subprocess.run(command, env={**os.environ, **counted}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side}, {task}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(side: str, task: str, steps: int) -> dict:
    """Seconds of each step, on the clock and of CPU time, and the most memory that this process held, in MiB."""
    from jclip.train.run_facts import peak_memory

    step = prepare(side, task)
    begun, spent = time.perf_counter(), []
    step()
    first = time.perf_counter() - begun
    for _ in range(steps):
        begun = time.perf_counter(), time.process_time()
        step()
        spent.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    return {"steps": spent, "first_seconds": round(first, 2), "peak_mib": peak_memory()["host"]}


def prepare(side: str, task: str) -> Callable[[], None]:
    """One optimiser step of that side, which has ended when the function returns."""
    if side in ("jclip", "with images"):
        ours = {
            COOP: lambda: jclip_coop(CLASSES, side == "with images"), LORA: jclip_lora, FULL: jclip_full,
            CLASSIFIED: lambda: jclip_full(loss="cross_entropy"),
            "CoOp, 374 classes": lambda: jclip_coop(374), "CoOp, 1,000 classes": lambda: jclip_coop(1000),
            "full fine-tuning, 374 photos in 4 parts": lambda: jclip_full(374, 4),
        }  # fmt: skip
        return ours[task]()
    import torch_towers

    make = {COOP: torch_towers.coop, LORA: torch_towers.lora, FULL: torch_towers.full,
            CLASSIFIED: torch_towers.classified}[task]  # fmt: skip
    return make(side == "same cut")


def class_names(count: int = CLASSES) -> list[str]:
    """Of one to four words, each a token."""
    from itertools import cycle

    from sides import words

    drawn = cycle(words(10 * CLASSES))
    return [" ".join(next(drawn) for _ in range(1 + k % 4)) for k in range(count)]


def batch_labels(count: int = BATCH):
    """(B,) of a step's photos."""
    import numpy as np

    return np.random.default_rng(1).integers(0, CLASSES, count)


def jclip_model():
    """The model with its random weights computed."""
    from jclip.model.clip import CLIP
    from jclip.runtime import jt
    from jclip.weights.variants import VARIANTS

    model = CLIP(VARIANTS[MODEL])
    model.eval()
    jt.sync_all()
    return model


def jclip_coop(classes: int, with_images: bool = False) -> Callable[[], None]:
    """The recipe's step, features of photos from a file or recomputed."""
    from sides import images

    from jclip.functional.losses import cross_entropy
    from jclip.functional.similarity import normalise, zero_shot_scores
    from jclip.model.learned_prompts import Prompts
    from jclip.runtime import jt
    from jclip.train.optim import SGD

    model = jclip_model()
    prompts, labels = Prompts(model, class_names(classes), VECTORS), jt.array(batch_labels().astype("int32"))
    optim, pixels = SGD({"context": prompts.vectors}, 2e-3, weight_decay=5e-4), jt.array(images(model.config, BATCH))

    def encoded():
        with jt.no_grad():
            return normalise(model.encode_image(pixels))

    known = encoded()
    known.sync()

    def step() -> None:
        features = encoded() if with_images else known
        loss = cross_entropy(zero_shot_scores(features, prompts.features(), 100.0), labels)
        optim.step(loss)
        loss.sync(True)

    return step


def jclip_lora() -> Callable[[], None]:
    """The recipe's step on pixels that are there."""
    from sides import images

    from finetune import lora
    from jclip.config import DataConfig
    from jclip.model.low_rank import Adapters
    from jclip.model.parameter_groups import LowRank
    from jclip.train.optim import AdamW

    model = jclip_model()
    cfg = lora.Config(DataConfig(root="x"), MODEL, lora=LowRank(RANK, dropout=DROPOUT))
    adapters = Adapters(model, cfg.lora, 1)
    adapters.attach()
    adapters.train(True)
    optim = AdamW(adapters.params, 2e-4)
    loss_of = lora.batch_loss(cfg, model, [[f"a photo of a {name}."] for name in class_names()], adapters)
    pixels, labels = images(model.config, BATCH), batch_labels()

    def step() -> None:
        loss = loss_of(pixels, labels, 0)
        optim.step(loss)
        loss.sync(True)

    return step


def jclip_full(batch: int = BATCH, accumulate: int = 1, loss: str = "contrastive") -> Callable[[], None]:
    """The recipe's step on pixels that are there."""
    from sides import images

    from finetune import full
    from jclip.config import DataConfig
    from jclip.model.clip import training_mode
    from jclip.model.trainable import no_weight_decay, trainable
    from jclip.train.optim import optimiser

    model, cfg = jclip_model(), full.Config(DataConfig(root="x"), MODEL, accumulate=accumulate, loss=loss)
    training_mode(model, ())
    optim = optimiser(cfg.optim, trainable(model), no_weight_decay)
    one = full.training_step(cfg, model, optim, [[f"a photo of a {name}."] for name in class_names()], 100)
    pixels, labels = images(model.config, batch), batch_labels(batch)
    return lambda: one((pixels, labels), 0).sync(True)


def line(task: str, result: dict) -> str:
    """Seconds, memory and ratios of a task."""
    sides = "  ".join(f"{side} {result[side]['seconds']:.2f} s {result[side]['peak_mib']} MiB" for side in SIDES[task])
    ratios = ", ".join(
        f"{result['ratio'][side]:.2f} to {side} ({result['cpu_ratio'][side]:.2f} of CPU time, "
        f"≥ {wanted}: {'met' if result['ratio'][side] >= wanted else 'MISSED'})"
        for side, wanted in RATIOS.items()
    )
    return f"{task}: {sides}; {ratios}"


def large_line(task: str, result: dict) -> str:
    """Memory of a task, and its limit."""
    held = result["peak_mib"] / 1024
    ending = f"{'met' if held <= LARGE[task] else 'MISSED'}), {result['first_seconds']} s for the first step"
    return f"{task}: {held:.2f} GiB (≤ {LARGE[task]}: {ending}"


if __name__ == "__main__":
    sys.exit(main())
