"""Seconds to score photos by prompts and to mix models, once features exist: random features of the Ajou entry's sizes.

    python bench/zero_shot.py [--photos 10000] [--classes 6] [--prompts 52] [--rounds 5]

Two models, 1,280- and 1,536-dimensional, score every prompt; their probabilities are mixed, and class means taken. The
search tries weights on the same photos: of two models in steps of 0.001, 1,001 of them, of three in steps of 0.05, 231.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jclip.choices import MODES
from jclip.features.several_models import Mixture, PromptHead
from jclip.functional.directions import unit

WIDTHS = (1280, 1536, 768)


def main() -> int:
    """Prints a line for each task."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--photos", type=int, default=10_000)
    p.add_argument("--classes", type=int, default=6)
    p.add_argument("--prompts", type=int, default=52, help="per class")
    p.add_argument("--rounds", type=int, default=5)
    args = p.parse_args()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, args.classes, args.photos)
    features = np.concatenate([rows(rng, args.photos, width) for width in WIDTHS], axis=1)
    two = np.ascontiguousarray(features[:, : sum(WIDTHS[:2])])
    for mode in MODES:
        mixture = mixed(args, 2, mode)
        report_median(f"score and mix two models, {mode}", args.rounds, lambda m=mixture: m(two))
    dropping = mixed(args, 2, "prob-prompts", drop_below=0.002)
    report_median("the same, prob-prompts with a threshold after mixing", args.rounds, lambda: dropping(two))
    pair, three = mixed(args, 2, "prob-prompts"), mixed(args, 3, "prob-prompts")
    report_median(
        "search 1,001 weights of two models", args.rounds, lambda: pair.searched(two, labels, 0.001), pair, two
    )
    report_median(
        "search 231 weights of three models",
        args.rounds,
        lambda: three.searched(features, labels, 0.05),
        three,
        features,
    )
    return 0


def rows(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Random directions."""
    return unit(rng.standard_normal((count, width), dtype=np.float32))


def mixed(args: argparse.Namespace, models: int, mode: str, drop_below: float = 0.0) -> Mixture:
    """Heads of random prompts, weighed alike."""
    rng, counts = np.random.default_rng(1), np.full(args.classes, args.prompts)
    heads = [PromptHead(rows(rng, counts.sum(), width), counts, 100.0, mode) for width in WIDTHS[:models]]
    return Mixture(tuple(heads), np.full(models, 1 / models), "prob", drop_below)


def report_median(
    task: str, rounds: int, run: Callable[[], object], less: Mixture | None = None, features: np.ndarray | None = None
) -> None:
    """The median of some rounds. less: whose scoring of `features` is taken off."""
    seconds = statistics.median(timed(run) for _ in range(rounds))
    scoring = statistics.median(timed(lambda: less(features)) for _ in range(rounds)) if less else 0.0
    print(f"{task:<56} {seconds - scoring:.3f} s", flush=True)


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
