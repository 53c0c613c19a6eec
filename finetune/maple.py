"""MaPLe: vectors learned beside the tokens of both towers, several blocks deep, those of images made of those of texts.

Khattak et al., CVPR 2023, arXiv 2210.03117, eq. 3-9; with other settings also its baselines: vectors of both towers'
own (IVLP), of the text alone, of the image alone (Jia et al., ECCV 2022, arXiv 2203.12119: VPT deep and shallow).
Trains: J x n x D parameters and J linear maps between the towers.   Needs: a few-shot split of photos and a model, whose
towers the gradient passes: a vision transformer where images have vectors.

    loss = CE(s f(x; P̃) T(P)', label),   P̃_j = W_j P_j + b_j

In the prompt "a photo of a NAME." the authors learn the first n words and keep the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from jclip.config import DataConfig, OptimConfig, ReadWith
from jclip.errors import ConfigError
from jclip.features import heads
from jclip.features import source as sources
from jclip.model import deep_prompts
from jclip.model.parameter_groups import Prompting
from jclip.train import deep_prompt_training
from jclip.train import run as runs


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str
    family: str | None = None  # for weights that don't say their activation
    templates: str = "simple"  # of the zero-shot figures beside, and of a text without vectors
    augment: str = "coop"
    coupled: bool = True  # image vectors are maps of the text's; off: of their own
    text: int = 2  # n; 0: none, the texts are those of `templates`
    image: int = 2  # 0: none
    depth: int = 9  # J, the blocks with vectors of their own; 1: the input alone
    words: str = "a photo of a"  # before the name: the first n start from them and are learned; "": n at random
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(name="sgd", lr=3.5e-3, weight_decay=5e-4, epochs=5, batch=4)
    )
    selection: Literal["val", "last"] = "last"  # the epoch that is kept
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {"": ("optim.schedule", "optim.warmup")}

    def __post_init__(self):
        if self.data.features:
            raise ConfigError(
                "this recipe tunes towers on photos, not on precomputed features: set data.root or data.train"
            )
        _ = self.prompts  # raises for impossible settings

    @property
    def prompts(self) -> Prompting:
        """The vectors of both towers."""
        return Prompting(self.text, self.image, self.depth, self.words, self.coupled)


def rows_of_ranks(cfg: Config) -> tuple[int, str]:
    """Photos of a batch, which several ranks divide, and the name of their number."""
    return cfg.optim.batch, "optim.batch"


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Zero-shot, training, and the same measurements again; writes the words nearest to the first vectors."""
    source, photos, data = deep_prompt_training.photos_for(cfg, run)
    return deep_prompt_training.learn(
        cfg, run, source, photos, data, deep_prompts.DeepPrompts(source.model, data, cfg.prompts, cfg.seed)
    )


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """Zero-shot with the learned texts: normalised features (N, E) of `prompted_source` → scores (N, C)."""
    return heads.ZeroShotHead(learned["text"], float(learned["scale"][0]))


def prompted_source(learned: dict[str, np.ndarray], cfg: Config, source: sources.ModelSource) -> sources.ModelSource:
    """What a finished run takes its image features from."""
    return sources.with_vectors(source, learned)


def for_classes(
    learned: dict[str, np.ndarray], cfg: Config, classnames: Sequence[str], source: sources.ModelSource
) -> dict[str, np.ndarray]:
    """What `scorer` needs for other classes: the vectors around their names."""
    return deep_prompt_training.with_names(learned, cfg.prompts, cfg.templates, classnames, source)
