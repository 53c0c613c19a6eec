"""The finished runs behind `bench/multi_label_table.py`, made where they are not there yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multi_label_rows import EPOCHS, PHOTOS_KNOWN, RUNS

import finetune  # noqa: F401  (recipes by name)
from jclip.config import apply_overrides, load_values
from jclip.report.tagging_run import TaggingRun
from jclip.train.configs import build_config, find_config
from jclip.train.keyed_runs import KeyedRuns

RECIPES = {"text_as_image": RUNS, "dual_prompt": PHOTOS_KNOWN}


def built(recipe: str, name: str, seed: int, quick: bool = False) -> tuple[Any, Any]:
    """The recipe's module and the config of one of its rows. quick: one epoch of few captions, to try the command."""
    values = load_values(find_config(f"{recipe}/shapes"))
    given = [*([EPOCHS] if recipe == "text_as_image" else []), *RECIPES[recipe][name], f"seed={seed}"]
    if quick:
        given += ["optim.epochs=1", "context=4", *(["scenes=256"] if recipe == "text_as_image" else [])]
    return build_config(apply_overrides(values, given), f"{recipe}: {name}")


def finished_run(folder: Path, recipe: str, name: str, seed: int, quick: bool = False) -> TaggingRun:
    """The finished run of one row with one seed, below `folder`."""
    module, cfg = built(recipe, name, seed, quick)
    plain = "".join(c if c.isalnum() else "_" for c in name)
    label = f"{recipe}, {name}, seed {seed}"
    return TaggingRun.load(KeyedRuns(folder, recipe).finished(f"{recipe}-{plain}-{seed}", module, cfg, label=label))
