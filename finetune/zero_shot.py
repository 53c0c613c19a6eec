"""Zero-shot: classes named in prompts, nothing trained.

Radford et al., 2021, arXiv 2103.00020, section 3.1.   Trains: nothing.   Needs: photos or recorded features with labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jclip.config import DataConfig, Dtype
from jclip.errors import DataError

if TYPE_CHECKING:  # a wrong YAML is told before these are imported
    from jclip.run import Run
    from jclip.source import ModelSource


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str = ""  # a name or weight file; recorded features with text need none
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # bf16 on CPUs with AVX-512, both halves on a GPU
    templates: str = "openai7"
    seed: int = 1


def run(cfg: Config, run: Run) -> dict[str, float]:
    """Builds the head, scores val and test."""
    from jclip.features import few_shot_features
    from jclip.heads import ZeroShotHead
    from jclip.source import source_of

    source = source_of(cfg)
    data = few_shot_features(cfg.data, source, cfg.templates, train=False)
    run.note(**data.facts)
    if data.text is None:
        raise DataError("these features come without text features: set model= to the model they are of")
    if not len(data.val) + len(data.test):
        raise DataError("there are no photos to measure on: set data.val or data.test")
    head = ZeroShotHead(data.text, data.scale)
    run.save_learned(
        {"text": data.text, "scale": np.array([data.scale])}, classnames=data.classnames, width=data.text.shape[1]
    )
    return data.report(head)


def scorer(learned: dict[str, np.ndarray], cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a finished run does with normalised features (N, E): scores (N, C)."""
    from jclip.heads import ZeroShotHead

    return ZeroShotHead(learned["text"], float(learned["scale"][0]))


def for_classes(
    learned: dict[str, np.ndarray], cfg: Config, classnames: Sequence[str], source: ModelSource
) -> dict[str, np.ndarray]:
    """The same for other class names."""
    from jclip.heads import text_for

    return {**learned, **text_for(source, classnames, cfg.templates)}
