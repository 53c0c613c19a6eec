"""One model of several that score the same photos, as a YAML has it. Imports no Jittor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from jclip.choices import LOGITS, Mix, Mode, PreprocessChoice, TestViews
from jclip.config import Dtype
from jclip.errors import ConfigError
from jclip.features import source as sources
from jclip.prompts.templates import class_prompts, load_templates, prompts_of


@dataclass(frozen=True)
class Member:
    """One model of several, as a YAML has it."""

    weights: str  # a name or weight file
    prompts: str = "openai80"  # a set, a file, or one template with {}
    mode: Mode = "embed"  # how prompts make scores of classes, see functional/prompt_scores.py
    weight: float = 1.0  # its share of the mixture, beside the others'
    scale: float = 0.0  # of the logits; 0: exp(logit_scale) of the weights
    drop_below: float = 0.0  # of `prob-prompts`: probabilities of prompts up to it count as none
    drop_below_uniform: float = 0.0  # the same in units of uniform mass, 1 / the number of all prompts
    preprocess: PreprocessChoice = field(default_factory=PreprocessChoice)
    views: TestViews = "none"  # how often and how a photo is seen; features are averaged
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"
    stream: bool | None = None  # blocks stay on disk; by default where the memory is too small
    truncate: bool = False  # cut prompts that are too long
    article: bool = False  # "a" and "an" agree with what follows
    plural: bool = False  # "many apple" → "many apples"

    def __post_init__(self):
        if min(self.weight, self.scale, self.drop_below, self.drop_below_uniform) < 0:
            raise ConfigError("weight, scale, drop_below and drop_below_uniform must be at least 0")
        if (self.drop_below or self.drop_below_uniform) and self.mode != "prob-prompts":
            raise ConfigError(f"drop_below is of probabilities of prompts: set mode to prob-prompts (now {self.mode})")

    def reading(self, upright: bool) -> Member:
        """The same, its photos read upright or as stored where it does not say so itself."""
        if self.preprocess.upright is not None:
            return self
        return replace(self, preprocess=replace(self.preprocess, upright=upright))

    def source(self) -> sources.ModelSource:
        """The model, opened. Raises `CheckpointError` for one that is not there or doesn't say what it is."""
        return sources.ModelSource(
            self.weights, self.family, self.dtype, stream=self.stream, preprocess=self.preprocess
        )

    @property
    def asks(self) -> tuple:
        """What its prompts depend on."""
        return self.prompts, self.article, self.plural

    def class_prompts(self, classnames: Sequence[str], report: bool = False) -> list[list[str]]:
        """Its prompts for each class. report: on stderr, repeated ones and classes without sentences."""
        if report:
            return prompts_of(classnames, self.prompts, self.article, self.plural)
        return class_prompts(classnames, load_templates(self.prompts), self.article, self.plural)


def check_mixture(members: Sequence[Member], mix: Mix, drop_below: float = 0.0) -> None:
    """Raises `ConfigError` for members that can't be mixed so."""
    if not any(member.weight for member in members):
        raise ConfigError("models: at least one weight must be above 0")
    probabilities = [member.weights for member in members if member.mode not in LOGITS]
    if mix == "logit" and len(members) > 1 and probabilities:
        raise ConfigError(f"mix=logit: {probabilities[0]} scores by probabilities, which have no logits: set mix=geo")
    if drop_below and (mix != "prob" or any(member.mode != "prob-prompts" for member in members)):
        raise ConfigError("drop_below is of the mixture's probabilities of prompts: all models need mode prob-prompts, "
                          "and mix=prob")  # fmt: skip
