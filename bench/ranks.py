"""How much faster two processes take a contrastive step than one: efficiency T1 / (N TN), one thread each.

    python bench/ranks.py [--model ViT-B/32] [--batch 32] [--steps 4] [--rounds 3] [--ranks 1,2]

Random weights and pixels; a step is forward, loss, backward, sums between ranks and AdamW. Processes alternate; of the
seconds of each step the median counts. Runs on an idle machine: ranks wait for each other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jclip.machine import open_mpi, ranks  # noqa: E402


def seconds_of_steps(model_name: str, batch: int, steps: int) -> list[float]:
    """Seconds of each step of `batch` pairs, of which this process has its share; the first, which compiles, left out."""
    import numpy as np

    from jclip.config import OptimConfig
    from jclip.model.clip import CLIP, training_mode
    from jclip.model.trainable import no_weight_decay, trainable
    from jclip.runtime import jt
    from jclip.train.on_captions import Objective, Part, caption_gradients
    from jclip.train.optim import optimiser
    from jclip.weights.variants import config_of

    jt.set_global_seed(1, different_seed_for_mpi=False)
    config, here = config_of(model_name), ranks.here()
    model = CLIP(config)
    jt.sync(list(model.state_dict().values()))
    training_mode(model)
    optim = optimiser(OptimConfig(lr=1e-5), trainable(model, ["*"]), no_weight_decay)
    rng, own = np.random.default_rng(0), here.share(batch)
    pixels = rng.standard_normal((batch, 3, *config.vision.image_size), dtype=np.float32)[own]
    tokens = np.zeros((batch, config.text.context_length), np.int32)
    tokens[:, :16] = rng.integers(1, 40000, (batch, 16))
    tokens[:, 16] = config.text.vocab_size - 1
    places = np.arange(own.start, own.stop) if here.several else None
    part = Part(pixels, tokens[own], np.arange(batch), own=places)
    found = []
    for _ in range(steps + 1):
        begun = time.monotonic()
        _, gradients = caption_gradients(model, [part], list(optim.params), Objective())
        optim.apply(gradients)
        found.append(time.monotonic() - begun)
    return found[1:]


def measured(count: int, args: argparse.Namespace) -> list[float]:
    """Seconds of the steps by `count` processes."""
    import subprocess

    command = [sys.executable, __file__, "--worker", "--model", args.model, "--batch", str(args.batch)]
    command += ["--steps", str(args.steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if count == 1:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    else:
        done = open_mpi.start_ranks(open_mpi.require_mpi(), count, command, environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[")))


def main() -> int:
    """Prints the table."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", default="ViT-B/32")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--ranks", default="1,2")
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.worker:
        found = seconds_of_steps(args.model, args.batch, args.steps)
        if ranks.here().first:
            print(json.dumps(found))
        return 0
    counts = [int(count) for count in args.ranks.split(",")]
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(args.rounds):
        for count in counts:
            seconds[count] += measured(count, args)
    print(f"| ranks | seconds a step of {args.batch} pairs, {args.model} | efficiency |\n|---|---|---|")
    first = statistics.median(seconds[counts[0]]) * counts[0]
    for count, found in seconds.items():
        median = statistics.median(found)
        print(f"| {count} | {median:.2f} | {first / (count * median):.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
