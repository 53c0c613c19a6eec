"""How much faster two processes take a contrastive step than one: efficiency T1 / (N TN), one thread each.

    python bench/ranks.py [--model ViT-B/32] [--batch 32] [--steps 3] [--rounds 3] [--ranks 1,2] [--no-apart]

Random weights and pixels; a step is forward, loss, backward, sums between ranks and AdamW. Ways alternate; of the seconds of
each step the median counts, of each process's CPU seconds as well. "2 apart": two processes at the same time that know nothing
of each other, each with half the batch, the slower one's steps: what the machine's memory allows two at most. Runs on an idle
machine: ranks wait for each other; CPU seconds tell on a busy one what is spent, waiting left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jclip.machine import open_mpi, ranks

Seconds = list[tuple[float, float]]  # of each step by the clock, and of the process's CPU


def seconds_of_steps(model_name: str, batch: int, steps: int) -> Seconds:
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
        begun = time.monotonic(), time.process_time()
        _, gradients = caption_gradients(model, [part], list(optim.params), Objective())
        optim.apply(gradients)
        jt.sync_all()
        found.append((time.monotonic() - begun[0], time.process_time() - begun[1]))
    return found[1:]


def measured(count: int, args: argparse.Namespace) -> Seconds:
    """Seconds of the steps by `count` ranks."""
    if count == 1:
        (found,) = _apart(1, args)
        return found
    done = open_mpi.start_ranks(open_mpi.require_mpi(), count, _order(args.batch, args), _environment())
    if done.returncode:
        raise SystemExit(done.stderr)
    return _read(done.stdout)


def measured_apart(count: int, args: argparse.Namespace) -> Seconds:
    """Seconds of the steps of `count` processes at the same time, each of its share of the batch: the slowest one's."""
    return [max(steps) for steps in zip(*_apart(count, args), strict=True)]


def _apart(count: int, args: argparse.Namespace) -> list[Seconds]:
    started = [
        subprocess.Popen(_order(args.batch // count, args), env=_environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("a process failed: see above")
    return [_read(text) for text in said]


def _order(batch: int, args: argparse.Namespace) -> list[str]:
    size = ["--batch", str(batch), "--steps", str(args.steps)]
    return [sys.executable, __file__, "--worker", "--model", args.model, *size]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _read(said: str) -> Seconds:
    return [(wall, cpu) for wall, cpu in json.loads(next(x for x in said.splitlines() if x.startswith("[")))]


def main() -> int:
    """Prints the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="ViT-B/32")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--ranks", default="1,2")
    p.add_argument("--no-apart", action="store_true", help="leave out the processes that know nothing of each other")
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.worker:
        found = seconds_of_steps(args.model, args.batch, args.steps)
        if ranks.here().first:
            print(json.dumps(found))
        return 0
    counts = [int(count) for count in args.ranks.split(",")]
    ways = {str(count): partial(measured, count, args) for count in counts}
    if counts[-1] > 1 and not args.no_apart:
        ways[f"{counts[-1]} apart"] = partial(measured_apart, counts[-1], args)
    found: dict[str, Seconds] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            found[name] += way()
    print(
        f"| ranks | seconds a step of {args.batch} pairs, {args.model} | efficiency | CPU seconds of a rank | by these |"
    )
    print("|---|---|---|---|---|")
    wall, cpu = (counts[0] * statistics.median(column) for column in zip(*found[str(counts[0])], strict=True))
    for name, steps in found.items():
        count, (own, spent) = int(name.split()[0]), map(statistics.median, zip(*steps, strict=True))
        print(f"| {name} | {own:.2f} | {wall / (count * own):.2f} | {spent:.2f} | {cpu / (count * spent):.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
