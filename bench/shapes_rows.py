"""What `bench/shapes_results.py` runs: a row of its tables each, with the grid its settings are chosen from. Data, no code."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import finetune

MODELS = ("shapes-tiny-vit", "shapes-tiny-rn")
RESNET = MODELS[1]
STYLES = ("inverted", "sketch")  # that neither model saw in training
SHOTS, SEEDS = (1, 4, 16), (1, 2, 3)
EPOCHS_AT = {16: 1, 4: 2, 1: 4}  # times a row's epochs, but 2 at least: the first may be CoOp's warm-up
LEFT_OUT = ("contrastive", "ensemble")  # learn from captions, and from other runs


@dataclass(frozen=True)
class Row:
    """A shipped config, the settings on top of it, and a grid: setting → values, the first in use where none was chosen.

    epochs: at 16 shots, more at fewer; 0: the config's, at any number (cross-modal adaptation's epochs are steps). new:
    whether it is measured from base to new, too. resnet: settings besides for the model whose image tower is no vision
    transformer.
    """

    config: str
    settings: tuple[str, ...] = ()
    grid: dict[str, tuple] = field(default_factory=dict)
    epochs: int = 0
    new: bool = False
    resnet: tuple[str, ...] = ()

    @property
    def recipe(self) -> str:
        """The recipe's name: configs lie in its folder."""
        return self.config.partition("/")[0]

    @property
    def candidates(self) -> list[tuple[str, ...]]:
        """All settings of the grid."""
        values = ([f"{key}={value}" for value in of] for key, of in self.grid.items())
        return list(itertools.product(*values))

    def at(self, shots: int, chosen: Sequence[str], model: str) -> tuple[str, ...]:
        """Everything that is set at that many shots."""
        epochs = [f"optim.epochs={max(2, self.epochs * EPOCHS_AT[shots])}"] if self.epochs else []
        return (*self.settings, *(self.resnet if model == RESNET else ()), *epochs, *chosen)


def found() -> list[str]:
    """The recipes that are there."""
    return [name for name in finetune.names() if name not in LEFT_OUT and _classifies(name)]


def _classifies(name: str) -> bool:
    """Whether a recipe gives each photo one class, as the table's photos have."""
    return getattr(finetune.load(name), "TASK", "classify") == "classify"


TOWERS = ("optim.batch=50", "selection=val")  # half a second a step on one thread
PROMPTS = ("optim.batch=100", "selection=val", "views=0")
ROWS = {
    "zero-shot": Row("zero_shot/smoke"),
    "Tip-Adapter": Row("tip_adapter/features_caltech_lvis_search"),
    "Tip-Adapter-F": Row("tip_adapter/features_caltech_lvis_F", grid={"optim.lr": (1e-3, 1e-2)}),
    "APE": Row("ape/features_caltech_lvis"),
    "APE-T": Row("ape/features_caltech_lvis_T", grid={"optim.lr": (1e-3, 1e-2)}),
    "GDA": Row("gda/features_caltech_lvis"),
    "linear probe": Row("linear_probe/features_caltech_lvis"),
    "LP++": Row("lp_plus/features_caltech_lvis"),
    "ZS-LP": Row("clap/features_caltech_lvis_zs_lp", grid={"optim.lr": (0.1, 0.01, 1.0)}),
    "CLAP": Row("clap/features_caltech_lvis", grid={"optim.lr": (0.1, 0.01, 1.0)}),
    "TaskRes": Row(
        "task_res/features_caltech_lvis", ("selection=val",), {"optim.lr": (2e-3, 2e-2), "alpha": (0.5, 1.0)}, epochs=50
    ),
    "CLIP-Adapter": Row(
        "clip_adapter/features_caltech_lvis", ("selection=val",), {"optim.lr": (1e-2, 1e-3), "ratio": (0.2, 0.6)},
        epochs=20, new=True,
    ),
    "cross-modal linear": Row("cross_modal/features_caltech_lvis", grid={"optim.lr": (1e-3, 1e-2, 1e-4)}),
    "cross-modal adapter": Row("cross_modal/features_caltech_lvis_adapter", grid={"optim.lr": (1e-4, 1e-3)}),
    "cross-modal partial": Row(
        "cross_modal/features_caltech_lvis", ("head=partial", "optim.epochs=16"), {"optim.lr": (1e-3, 1e-4, 1e-2)}
    ),
    "WiSE-FT, head": Row("wise_ft/features_caltech_lvis", ("search=true",), {"optim.lr": (0.1, 0.01)}),
    "CoOp": Row(
        "coop/smoke", (*PROMPTS, "words=a photo of a", "optim.weight_decay=5e-4"), {"optim.lr": (0.1, 0.01)},
        epochs=12, new=True,
    ),
    "KgCoOp": Row("kgcoop/smoke", PROMPTS, {"optim.lr": (0.1, 0.01), "weight": (8.0, 1.0)}, epochs=12, new=True),
    "CoCoOp": Row(
        "cocoop/smoke", ("optim.batch=10", "selection=val"), {"optim.lr": (0.02, 0.002)}, epochs=1, new=True
    ),
    "MaPLe": Row(
        "maple/smoke", TOWERS, {"optim.lr": (0.1, 0.01)}, epochs=2, new=True, resnet=("image=0", "coupled=false")
    ),
    "PromptSRC": Row(
        "promptsrc/smoke", ("optim.batch=50",), {"optim.lr": (0.1, 0.01)}, epochs=2, new=True
    ),
    "LoRA": Row(
        "lora/smoke", (*TOWERS, "steps=40", "lora.dropout=0.0"), {"optim.lr": (1e-2, 3e-3, 1e-3)}, new=True,
        resnet=("lora.towers=text",),
    ),
    "full, cross-entropy": Row(
        "full/smoke", (*TOWERS, "loss=cross_entropy", "optim.weight_decay=0.1", "optim.warmup=0.1"),
        {"optim.lr": (3e-4, 1e-3, 3e-5)}, epochs=2, new=True,
    ),
    "full, contrastive": Row(
        "full/smoke", (*TOWERS, "positives=same", "optim.weight_decay=0.1", "optim.warmup=0.1"),
        {"optim.lr": (3e-4, 1e-3, 3e-5)}, epochs=2, new=True,
    ),
    "FD-Align": Row(
        "fd_align/smoke", (*TOWERS, "lr_batch=0", "templates=openai7"), {"optim.lr": (1e-4, 3e-5, 3e-4)}, epochs=2,
        new=True,
    ),
}  # fmt: skip
