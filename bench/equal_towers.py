"""Image towers of one size, taking turns in one process, so that what else the machine does meets all of them alike.

    OMP_NUM_THREADS=2 python bench/equal_towers.py [--dtypes fp32 bf16 int8] [--rounds 5] [--batch 32] [--cpu]

SigLIP 2's and PE-Core's pools read every token, so their last block is computed for all of them; a ViT's is computed for its
class token alone. `ViT-B/16 whole` computes all of it. The last column is speed by operations beside ViT-B/16. Random weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

WHOLE = "ViT-B/16 whole"
ROWS = ("ViT-B/16", WHOLE, "ViT-B-16-SigLIP2", "PE-Core-B-16")


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dtypes", nargs="+", default=["fp32", "bf16", "int8"], choices=["fp32", "bf16", "int8"])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--cpu", action="store_true", help="CPU time, on a machine that others use as well (one thread)")
    args = p.parse_args()
    clock = time.process_time if args.cpu else time.perf_counter
    for dtype in args.dtypes:
        runs = {row: prepare(row, args.batch, dtype) for row in ROWS}
        spent = take_turns(list(runs.values()), args.rounds, clock)
        for row, (middle, best) in zip(ROWS, spent, strict=True):
            by_work = [own / seconds for own, seconds in ((gflop(row), middle), (gflop(row), best))]
            to_vit = [rate / (gflop(ROWS[0]) / first) for rate, first in zip(by_work, spent[0], strict=True)]
            print(
                f"{dtype:5} {row:18} {args.batch / middle:7.2f}/s  best {args.batch / best:7.2f}/s  {gflop(row):6.2f} GFLOP "
                f" by operations {to_vit[0]:.3f} of ViT-B/16's speed, of the best {to_vit[1]:.3f}",
                flush=True,
            )
    return 0


def prepare(row: str, batch: int, dtype: str) -> Callable[[], None]:
    """A call that encodes a batch of photos."""
    import sides

    return whole(batch, dtype) if row == WHOLE else sides.prepare_jclip(f"image {row} batch {batch} {dtype}")[1]


def whole(batch: int, dtype: str) -> Callable[[], None]:
    """The ViT as it computes where its last tokens are asked for."""
    import sides

    from jclip.model.clip import CLIP
    from jclip.runtime import jt
    from jclip.weights.variants import VARIANTS

    model = CLIP(VARIANTS["ViT-B/16"])
    model.eval()
    jt.sync_all()
    model.to(dtype)
    pixels = jt.array(sides.images(model.config, batch))

    def run() -> None:
        with jt.no_grad():
            model.encode_image(pixels, taps=Untold()).sync(True)

    return run


class Untold(dict):
    """Intermediates that are asked for and not kept."""

    def __setitem__(self, name: str, value) -> None:
        pass


def take_turns(runs: list[Callable[[], None]], rounds: int, clock: Callable[[], float]) -> list[tuple[float, float]]:
    """Median and least seconds of each; a first round, which compiles, doesn't count."""
    spent: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for run, own in zip(runs, spent, strict=True):
            start = clock()
            run()
            if number:
                own.append(clock() - start)
    return [(statistics.median(own), min(own)) for own in spent]


def gflop(row: str) -> float:
    """10^9 multiplications and additions of one image's products as jclip computes them."""
    from jclip.weights.variants import ARCHITECTURES, VARIANTS

    name = row.removesuffix(" whole")
    vision = (VARIANTS[name] if name in VARIANTS else ARCHITECTURES[name]).vision
    cells, D = vision.grid[0] * vision.grid[1], vision.width
    N = cells + vision.class_tokens
    behind = 2 * D * D + 2 * D * vision.mlp_width + 2 * N * D  # a token's, but for its key and value
    last = N * 2 * D * D + behind if row == ROWS[0] else N * (2 * D * D + behind)
    return 2e-9 * (cells * 3 * vision.patch_size**2 * D + (vision.layers - 1) * N * (2 * D * D + behind) + last)


if __name__ == "__main__":
    sys.exit(main())
