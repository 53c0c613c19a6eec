"""Several models as one zero-shot classifier: each with its own prompts, preprocessing and way to score, mixed by weights.

All models are opened first, so that a wrong one is reported at once, then loaded one by one. What is computed of
each is cached by what made it: a break loses the model at work, and another model added to the list is all that is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jclip.choices import LOGITS, Mix, Mode
from jclip.data.loader import OnError
from jclip.data.splits import Split
from jclip.errors import ConfigError
from jclip.features.extraction import extract_of
from jclip.features.heads import prompt_embeddings, zero_shot_head
from jclip.features.member import Member, check_mixture
from jclip.features.source import ModelSource, SideBySide
from jclip.functional.directions import unit
from jclip.functional.fusion import INPUTS, best_weights, mixed, transformed
from jclip.functional.prompt_scores import class_scores, deciding_prompts, prompt_probabilities, shares


@dataclass(frozen=True)
class PromptHead:
    """Scores of a model's normalised features (N, E) for the classes of its prompts."""

    prompts: np.ndarray  # (J, E) rows of length one, by class
    counts: np.ndarray  # (C,) prompts of each class
    scale: float
    mode: Mode = "embed"
    drop_below: float = 0.0

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(N, E) → (N, C)."""
        return class_scores(features, self.prompts, self.counts, self.scale, self.mode, self.drop_below)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """(N, E) → (N, J) of all prompts."""
        return prompt_probabilities(features, self.prompts, self.scale)


@dataclass(frozen=True)
class Mixture:
    """What several heads say of one photo, as scores (N, C); of one head, what it says."""

    heads: tuple[PromptHead, ...]
    weights: np.ndarray  # (M,) that sum to one
    mix: Mix = "prob"
    drop_below: float = 0.0  # of the mixture's probabilities of prompts

    @property
    def width(self) -> int:
        """Dimensions of a row of features, all models' side by side."""
        return sum(head.prompts.shape[1] for head in self.heads)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(N, width) → (N, C)."""
        parts = self.parts(features)
        if self.drop_below:
            return self._of_prompts(np.tensordot(self.weights, self._probabilities(parts), axes=1))
        used = [head(x) if w else None for head, x, w in zip(self.heads, parts, self.weights, strict=True)]
        return mixed(used, self.weights, self.mix)

    def parts(self, features: np.ndarray) -> list[np.ndarray]:
        """Each model's own features (N, E), of length one; those of one model alone are so."""
        if len(self.heads) == 1:
            return [features]
        edges = np.cumsum([head.prompts.shape[1] for head in self.heads])[:-1]
        return [unit(x) for x in np.split(features, edges, axis=1)]

    def searched(self, features: np.ndarray, labels: np.ndarray, step: float) -> Mixture:
        """The mixture with the weights, in steps of `step`, that are best on labelled photos (N, width)."""
        parts = self.parts(features)
        if self.drop_below:
            found = best_weights(self._probabilities(parts), labels, step, self._of_prompts)
        else:
            scores = [head(x) for head, x in zip(self.heads, parts, strict=True)]
            found = best_weights(np.stack([transformed(z, INPUTS[self.mix], 1.0) for z in scores]), labels, step)
        return replace(self, weights=found)

    def _probabilities(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([head.probabilities(x) for head, x in zip(self.heads, parts, strict=True)])

    def _of_prompts(self, probabilities: np.ndarray) -> np.ndarray:
        return shares(probabilities, self.heads[0].counts, self.drop_below)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` reads back."""
        arrays = {"weights": np.asarray(self.weights, np.float64), "drop_below": np.array([self.drop_below])}
        for number, head in enumerate(self.heads):
            arrays |= {f"{number}.prompts": head.prompts, f"{number}.counts": np.asarray(head.counts, np.int64),
                     f"{number}.numbers": np.array([head.scale, head.drop_below], np.float64)}  # fmt: skip
        return arrays

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray], modes: Sequence[Mode], mix: Mix) -> Mixture:
        """The mixture whose `arrays` these are; modes: of its heads."""
        heads = [
            PromptHead(arrays[f"{i}.prompts"], arrays[f"{i}.counts"], float(scale), mode, float(drop_below))
            for i, mode in enumerate(modes)
            for scale, drop_below in [arrays[f"{i}.numbers"]]
        ]
        return Mixture(tuple(heads), arrays["weights"], mix, float(arrays["drop_below"][0]))


def build_mixture(
    together: SideBySide,
    members: Sequence[Member],
    classnames: Sequence[str],
    splits: Mapping[str, Split],
    *,
    mix: Mix = "prob",
    drop_below: float = 0.0,
    drop_below_uniform: float = 0.0,
    on_error: OnError = "stop",
    whole: bool = False,
    release: bool = True,
) -> Mixture:
    """All members' heads for these classes, with their weights; in the cache, the features of all `splits`.

    One model after the other, each loaded once. drop_below: of the mixture's probabilities of prompts, or
    drop_below_uniform in units of uniform mass. whole: heads keep every prompt, also where the mode needs but their mean.
    release: free each model's memory before the next one is loaded.
    Raises `ConfigError` for members that can't be mixed so, before anything is computed.
    """
    check_mixture(members, mix, drop_below or drop_below_uniform)
    asked = [member.asks for member in members]
    prompts = [m.class_prompts(classnames, report=m.asks not in asked[:i]) for i, m in enumerate(members)]
    check_prompts(members, prompts, drop_below or drop_below_uniform)
    heads = []
    for number, (source, member) in enumerate(zip(together.sources, members, strict=True)):
        heads.append(prompt_head(source, member, prompts[number], whole))
        for label, split in splits.items():
            if len(split):
                extract_of(together, number, split, on_error, label)
        if release:
            source.release()
    weights = np.array([member.weight for member in members], np.float64)
    threshold = drop_below or drop_below_uniform / sum(map(len, prompts[0]))
    return Mixture(tuple(heads), weights / weights.sum(), mix, threshold)


def belongs_by_sigmoid(sources: Sequence[ModelSource], members: Sequence[Member]) -> bool:
    """Whether scores are logits of one model that was trained with the sigmoid loss: each class has a probability of its
    own, σ(score + bias), as transformers has it for SigLIP. Mixed models have shares."""
    return len(members) == 1 and members[0].mode in LOGITS and sources[0].config.sigmoid


def check_alone(sources: Sequence[ModelSource], members: Sequence[Member]) -> None:
    """Raises `ConfigError` for one model, trained with the sigmoid loss, that is asked for CLIP's softmax: probabilities
    that share each other out, or a scale that its bias does not belong to. Mixed models have shares."""
    if len(members) > 1 or not sources[0].config.sigmoid:
        return
    member, why = members[0], "which was trained with the sigmoid loss (SigLIP)"
    if member.mode not in LOGITS:
        raise ConfigError(f"mode must be one of {', '.join(LOGITS)} for {member.weights}, {why}, got {member.mode}: it shares "
                          "probabilities out by CLIP's softmax")  # fmt: skip
    if member.scale:
        raise ConfigError(f"scale must be left out for {member.weights}, {why}, got {member.scale:g}: the weights' own scale "
                          "and bias belong together")  # fmt: skip


def check_prompts(members: Sequence[Member], prompts: Sequence[list[list[str]]], drop_below: float) -> None:
    """Raises `ConfigError` where classes have unequal numbers of prompts and the mode needs equal ones."""
    counts = [[*map(len, of_member)] for of_member in prompts]
    for member, own in zip(members, counts, strict=True):
        if member.mode == "prob-templates" and len({*own}) > 1:
            raise ConfigError(f"{member.prompts} has {min(own)} to {max(own)} prompts per class: mode prob-templates "
                              "needs the same number of each, prob-prompts does not")  # fmt: skip
    if drop_below and counts.count(counts[0]) < len(counts):
        raise ConfigError("drop_below compares prompts of all models: give them the same prompts")


def prompt_head(
    source: ModelSource, member: Member, prompts: Sequence[Sequence[str]], whole: bool = False
) -> PromptHead:
    """A member's head of its prompts by class."""
    if member.mode == "embed" and not whole:
        head = zero_shot_head(source, prompts, member.truncate)
        return PromptHead(head.weights, np.ones(len(prompts), np.int64), member.scale or head.scale)
    embedded, scale = prompt_embeddings(source, prompts, member.truncate)
    counts, threshold = np.array([*map(len, prompts)]), member.drop_below or member.drop_below_uniform / len(embedded)
    return PromptHead(embedded, counts, member.scale or scale, member.mode, threshold)


def deciding(
    mixture: Mixture, members: Sequence[Member], classnames: Sequence[str], features: np.ndarray, classes: np.ndarray
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """For each photo (N, width) the prompt nearest to it among those of the class (N,) it was given, by the model that
    gave this class most, and its cosine. The heads keep every prompt."""
    parts = mixture.parts(features)
    given = np.stack([
        w * np.exp(transformed(head(x), "log_softmax", 1.0))[np.arange(len(x)), classes]
        for head, x, w in zip(mixture.heads, parts, mixture.weights, strict=True)
    ]).argmax(axis=0)  # fmt: skip
    chosen = []
    for head, x, member in zip(mixture.heads, parts, members, strict=True):
        sentences = [prompt for of_class in member.class_prompts(classnames) for prompt in of_class]
        which, cosines = deciding_prompts(x, head.prompts, head.counts, classes)
        chosen.append([(sentences[i], float(cosine)) for i, cosine in zip(which, cosines, strict=True)])
    of_photos = [chosen[m][i] for i, m in enumerate(given)]
    return tuple(prompt for prompt, _ in of_photos), tuple(cosine for _, cosine in of_photos)
