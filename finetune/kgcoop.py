"""KgCoOp: CoOp whose text features are kept near those of hand-written prompts, so that new classes are not forgotten.

Yao et al., CVPR 2023, arXiv 2303.13283, eq. 5-6.   Trains: M x D parameters.   Needs: a few-shot split and a model, whose
text tower the gradient passes.

    loss = CE(s f T', y) + λ (1 - mean_k t_k · t⁰_k),   t⁰: the templates' text features
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from jclip.config import DataConfig, Dtype, OptimConfig, ReadWith
from jclip.errors import ConfigError
from jclip.features import heads
from jclip.features import source as sources
from jclip.postponed import jt
from jclip.train import prompt_training
from jclip.train import run as runs


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str  # a name or weight file; the model that made the features, where they are precomputed
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"
    templates: str = "simple"  # the prompts to stay near; the authors': the data set's own
    views: int = 10  # augmented views that epochs take in turn; 0: each epoch a new one, as the authors do
    augment: str = "coop"
    context: int = 4  # M, where there are no words
    words: str = "a photo of a"  # start from their embeddings
    weight: float = 8.0  # λ
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(name="sgd", lr=2e-3, weight_decay=5e-4, epochs=100, batch=128)
    )
    selection: Literal["val", "last", "test"] = "last"  # the epoch that is kept
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {
        "": ("optim.schedule", "optim.warmup"),
        "words=": ("context",),
    }

    def __post_init__(self):
        if self.context < 1 or self.views < 0 or self.weight < 0:
            raise ConfigError(
                f"context must be at least 1, views and weight at least 0, got {self.context}, {self.views} and {self.weight}"
            )


def rows_of_ranks(cfg: Config) -> None:
    """Several ranks divide the class names, however many there are."""


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Vectors and their start, training, evaluation of val and test; writes the words nearest to each vector."""
    source, data = prompt_training.features_for(cfg, run)
    prompts = prompt_training.prompts_for(source, data, cfg.context, cfg.words, cfg.seed)
    return prompt_training.learn(cfg, run, data, source, prompts, distance(data.text, cfg.weight))


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E): scores (N, C)."""
    return heads.ZeroShotHead(learned["text"], float(learned["scale"][0]))


def for_classes(
    learned: dict[str, np.ndarray], cfg: Config, classnames: Sequence[str], source: sources.ModelSource
) -> dict[str, np.ndarray]:
    """What `scorer` needs for other classes: the vectors around their names."""
    return prompt_training.with_names(learned, source, classnames)


def distance(frozen: np.ndarray, weight: float) -> Callable:
    """T (C, E) of length one → λ (1 - mean_k t_k · t⁰_k), a scalar."""
    held = jt.array(frozen).stop_grad()
    return lambda text: weight * (1 - (text * held).sum() / len(frozen))
