"""What `jclip doctor` runs in two processes: sums over ranks, of gradients too, and rows gathered with their gradients.

Prints "right" and which way gradients took.
"""

from __future__ import annotations

import sys

import numpy as np

from jclip.kernels import collectives, device_sums
from jclip.machine import ranks
from jclip.runtime import jt


def is_right() -> bool:
    """Whether all come out as by hand: rank r adds r + 1, and gives a row of r + 1, whose gradient is its place."""
    here = ranks.here()
    summed = collectives.total(np.full(3, here.rank + 1, np.float32))
    row = jt.array(np.full((1, 2), here.rank + 1, np.float32))
    (rows,) = collectives.gathered([row], np.array([here.rank]), here.size, shared_loss=True)
    weights = jt.array(np.arange(1, here.size + 1, dtype=np.float32).reshape(-1, 1))
    gradient = jt.grad((rows * weights).sum(), row).numpy()
    wanted = np.arange(1, here.size + 1, dtype=np.float32)
    mine = [jt.array(np.full(n, here.rank + 1, np.float32)) for n in (3, collectives.SMALL + 1)]
    loss, gradients = collectives.summed_gradients(jt.array([here.rank + 1.0]), mine, once=[False, True])
    return (
        here.several
        and loss.numpy().tolist() == [wanted.sum()]
        and [set(g.numpy().tolist()) for g in gradients] == [{wanted.sum()}, {1.0}]
        and summed.tolist() == [float(wanted.sum())] * 3
        and rows.numpy()[:, 0].tolist() == wanted.tolist()
        and gradient.tolist() == [[here.rank + 1.0] * 2]
    )


def way() -> str:
    """Which way gradients took."""
    sums, why = device_sums.agreement(collectives.given)
    return f"by NCCL {sums.version}" if sums else f"through the host's memory ({why})"


if __name__ == "__main__":
    sys.stdout.write(f"right, gradients {way()}\n" if is_right() else "wrong\n")
