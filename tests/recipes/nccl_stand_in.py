"""Ranks that take their CPU for a GPU each, and a library of tests/cuda for NCCL. Run: FILE modes, or FILE steps ARGUMENTS."""

from __future__ import annotations

import os
import runpy
import sys

from jclip.kernels import collectives, device_sums, ranks_trial
from jclip.machine import nccl, ranks

MODES = ("", "refuses", "errs", "one card", "off")


def pretend() -> None:
    """From here on this process has a card of its own."""
    device_sums.computes_on_gpu = lambda: True
    nccl.wait_for_card = lambda: None
    nccl.card = lambda: "one" if os.environ.get("NCCL_STAND_IN") == "one card" else str(ranks.here().rank)


def try_modes() -> None:
    """Print which way gradients take in each mode, and whether they were right."""
    print(ranks_trial.is_right(), ranks_trial.way())
    pretend()
    for mode in MODES:
        os.environ["NCCL_STAND_IN"], os.environ["JCLIP_NCCL"] = mode, "0" if mode == "off" else "1"
        device_sums._agreed = None
        print(ranks_trial.is_right(), ranks_trial.way())
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1] == "modes":
        try_modes()
    else:
        pretend()
        sys.argv = sys.argv[1:]
        runpy.run_module("tests.recipes.steps_of_ranks", run_name="__main__", alter_sys=True)
        sums, why = device_sums.agreement(collectives.given)
        print(sums.communicator.nccl.library.stand_in_launches() if sums else why)
