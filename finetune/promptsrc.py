"""PromptSRC: vectors inside both towers, regularised towards the frozen towers' outputs, and averaged over the epochs.

Khattak et al., ICCV 2023, arXiv 2307.06948, eq. 3-7.   Trains: J x n x D parameters of each tower.
Needs: a few-shot split of photos and a vision transformer with its text tower, which the gradient passes.

    loss = CE(z, y) + λ1 mean|f - f⁰| + λ2 mean|t - t⁰| + λ3 KL(softmax z⁰ ‖ softmax z) / (B C)
    kept = Σ_e w_e P_e,   w_e ∝ exp(-(e - μ)² / 2σ²) over the epochs e = 1 …

⁰: without vectors, of the same view of a photo, and of the mean over the templates' features as the tower makes them.
The authors divide KL by B C, not by B. Their 60 templates are "promptsrc60", a part of OpenAI's 80.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from jclip.config import DataConfig, OptimConfig, ReadWith
from jclip.errors import ConfigError
from jclip.features import heads
from jclip.features import source as sources
from jclip.functional import directions, losses, similarity
from jclip.model import clip, deep_prompts
from jclip.model.parameter_groups import Prompting
from jclip.postponed import jt
from jclip.prompts.templates import class_prompts, load_templates
from jclip.train import deep_prompt_training, on_features, on_photos
from jclip.train import run as runs


@dataclass(frozen=True)
class Config:
    data: DataConfig
    model: str
    family: str | None = None  # for weights that don't say their activation
    templates: str = "promptsrc60"  # the texts to stay near, and those of the zero-shot figures beside
    augment: str = "coop"
    text: int = 4  # n of texts
    image: int = 4  # n of images
    depth: int = 9  # J, the blocks with vectors of their own
    words: str = "a photo of a"  # before the name: the first n start from them and are learned; "": n at random
    image_weight: float = 10.0  # λ1
    text_weight: float = 25.0  # λ2
    scores_weight: float = 1.0  # λ3
    mean: float = 15.0  # μ, in epochs
    deviation: float = 1.0  # σ
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(name="sgd", lr=2.5e-3, weight_decay=5e-4, epochs=20, batch=4)
    )
    selection: Literal["aggregate", "val", "last"] = "aggregate"  # the epochs' average, or the epoch that is kept
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {"": ("optim.schedule", "optim.warmup")}

    def __post_init__(self):
        if self.data.features:
            raise ConfigError(
                "this recipe tunes towers on photos, not on precomputed features: set data.root or data.train"
            )
        if min(self.text, self.image) < 1:
            raise ConfigError(f"text and image must be at least 1 vector each, got {self.text} and {self.image}")
        if min(self.image_weight, self.text_weight, self.scores_weight) < 0 or self.deviation <= 0:
            raise ConfigError(
                f"the three weights must be at least 0 and deviation above 0, got deviation={self.deviation}"
            )
        _ = self.prompts  # raises for impossible settings

    @property
    def prompts(self) -> Prompting:
        """The vectors of both towers."""
        return Prompting(self.text, self.image, self.depth, self.words)


def rows_of_ranks(cfg: Config) -> tuple[int, str]:
    """Photos of a batch, which several ranks divide, and the name of their number."""
    return cfg.optim.batch, "optim.batch"


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Zero-shot, training, and the same measurements again; writes the words nearest to the first vectors."""
    source, photos, data = deep_prompt_training.photos_for(cfg, run)
    prompts = deep_prompts.DeepPrompts(source.model, data, cfg.prompts, cfg.seed)
    held = raw_means(source, photos.classnames, cfg.templates)
    average = Aggregate(prompts.params, gaussian(cfg.optim.epochs, cfg.mean, cfg.deviation))
    return deep_prompt_training.learn(
        cfg, run, source, photos, data, prompts, regulariser(cfg, source.model, held, data.scale), average
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


def raw_means(source: sources.ModelSource, classnames: Sequence[str], templates: str) -> np.ndarray:
    """t⁰ (C, E): of each class the mean over its prompts' features, brought to length one thereafter alone."""
    prompts = class_prompts(classnames, load_templates(templates))
    features, labels = heads.prompt_features(source, prompts, source.width)
    return directions.unit(on_features.class_means(features, labels, len(classnames))).astype(np.float32)


def regulariser(cfg: Config, model: clip.CLIP, held: np.ndarray, scale: float) -> Callable:
    """(pixels, f, t, z) → what is added to the cross-entropy; the frozen towers keep nothing for a backward pass."""
    frozen = jt.array(held).stop_grad()

    def penalty(pixels, images, text, scores):
        with jt.no_grad():
            plain = on_photos.shared_images(
                lambda own: similarity.normalise(model.encode_image(own)), pixels, *images.shape
            )
            wanted = similarity.zero_shot_scores(plain, frozen, scale)
        moved = cfg.image_weight * mean_distance(images, plain) + cfg.text_weight * mean_distance(text, frozen)
        return moved + cfg.scores_weight * losses.kl_divergence(scores, wanted) / (scores.shape[0] * scores.shape[1])

    return penalty


def mean_distance(x, y):
    """mean|x - y| over all entries of (N, E), row by row, since one float32 sum over many would round."""
    return (x - y).abs().sum(dim=1).sum() / (x.shape[0] * x.shape[1])


def gaussian(epochs: int, mean: float, deviation: float) -> np.ndarray:
    """The weights (epochs,) of the epochs from 1 on, which sum to 1. Raises `ConfigError` where none is above 0."""
    weights = np.exp(-0.5 * ((np.arange(1, epochs + 1) - mean) / deviation) ** 2)
    if not weights.sum() > 0:
        raise ConfigError(f"mean must be near the epochs 1 to {epochs}, got {mean}: no epoch has a weight above 0")
    return weights / weights.sum()


class Aggregate:
    """The weighted sum of the parameters over the epochs, float32; its sums are saved where training stands."""

    def __init__(self, params: Mapping[str, jt.Var], weights: np.ndarray):
        self._params, self._weights = params, weights
        self.sums = {f"sum.{name}": jt.zeros_like(var).stop_grad() for name, var in params.items()}

    def add(self, epoch: int) -> None:
        """Takes in the parameters as they are after that epoch, counted from 0."""
        weight = float(self._weights[epoch])
        with jt.no_grad():
            for name, var in self._params.items():
                total = self.sums[f"sum.{name}"]
                total.update(total + weight * var)
        jt.sync(list(self.sums.values()))

    def arrays(self) -> dict[str, np.ndarray]:
        """The averaged parameters, by name."""
        return {name: self.sums[f"sum.{name}"].numpy() for name in self._params}
