"""CoOp: the words around a class's name are learned as vectors, both towers frozen.

Zhou et al., IJCV 2022, arXiv 2109.01134, eq. 2-3.   Trains: M x D parameters, with `per_class` C x M x D.
Needs: a few-shot split and a model, whose text tower the gradient passes.

    logits_k = s f · norm(h([start] v_1 … v_M name_k . [end]))

Images come through a frozen tower, so each view of a photo is encoded once. The authors' schedule counts epochs: the
first at 1e-5, then a cosine; they keep the last. As in their code the weight decay is on the vectors, too.
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
from jclip.train import prompt_training
from jclip.train import run as runs


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str  # a name or weight file; the model that made the features, where they are precomputed
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"
    templates: str = "simple"  # of the zero-shot figures beside; the authors': the data set's own
    views: int = 10  # augmented views that epochs take in turn; 0: each epoch a new one, as the authors do
    augment: str = "coop"
    context: int = 16  # M
    words: str = ""  # start from their embeddings, whose number M then is: "a photo of a"
    position: Literal["end", "middle", "front"] = "end"  # where the name stands
    per_class: bool = False  # vectors of each class's own (CSC)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(name="sgd", lr=2e-3, weight_decay=5e-4, epochs=200, batch=32)
    )  # the authors': 200 epochs of 16 and 8 shots, 100 of 4 and 2, 50 of 1
    selection: Literal["val", "last", "test"] = "last"  # the epoch that is kept
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {
        "": ("optim.schedule", "optim.warmup"),
        "words=": ("context",),
    }

    def __post_init__(self):
        if self.context < 1 or self.views < 0:
            raise ConfigError(f"context must be at least 1 and views at least 0, got {self.context} and {self.views}")


def rows_of_ranks(cfg: Config) -> None:
    """Several ranks divide the class names, however many there are."""


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Vectors and their start, training, evaluation of val and test; writes the words nearest to each vector."""
    source, data = prompt_training.features_for(cfg, run)
    options = {"position": cfg.position, "per_class": cfg.per_class}
    prompts = prompt_training.prompts_for(source, data, cfg.context, cfg.words, cfg.seed, **options)
    return prompt_training.learn(cfg, run, data, source, prompts)


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E): scores (N, C)."""
    return heads.ZeroShotHead(learned["text"], float(learned["scale"][0]))


def for_classes(
    learned: dict[str, np.ndarray], cfg: Config, classnames: Sequence[str], source: sources.ModelSource
) -> dict[str, np.ndarray]:
    """What `scorer` needs for other classes: the vectors around their names."""
    if cfg.per_class:
        raise ConfigError("per_class=true learned vectors for its own classes alone: other class names can't use them")
    return prompt_training.with_names(learned, source, classnames, cfg.position)
