"""Training learned prompts on sentences in the place of photos: their features, their labels, and the loss of a step.

Guo et al., CVPR 2023, arXiv 2211.12739: a sentence's end token stands for the whole photo, each of its tokens for a place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jclip.config import WORLD, WithOptimiser
from jclip.data import labelled_captions, shapes
from jclip.data.checks import preview
from jclip.data.labelled_captions import LabelledCaptions
from jclip.data.lexicons import load_lexicon, spoken_names
from jclip.data.scene_captions import template_captions, world_captions
from jclip.data.training_sentences import pair_sentences, single_sentences
from jclip.errors import DataError, UnknownName, notice
from jclip.features.photo_maps import by_set
from jclip.features.sentence_features import SentenceFeatures
from jclip.features.source import ModelSource
from jclip.functional.cooccurrence import ranking_weights
from jclip.functional.multi_label_losses import asymmetric_loss, ranking_loss, teacher_loss
from jclip.functional.multi_label_scores import Winner, cosines, local_scores
from jclip.functional.similarity import zero_shot_scores
from jclip.model.learned_prompts import Position
from jclip.model.prompt_sets import PromptSets, check_shapes, texts_with
from jclip.prompts.spelling import name_key
from jclip.readers import safetensors
from jclip.runtime import jt
from jclip.train.loop import Outcome, fit
from jclip.train.optim import TrainState, learning_rate, optimiser, step_together
from jclip.train.run import Run, read_result
from jclip.train.run_folder import LEARNED

SENTENCES = {"single": single_sentences, "pairs": pair_sentences}  # made of templates, beside other captions


class CaptionBatches:
    """Rows of captions, reshuffled in each epoch by (seed, epoch); what fills no batch is left out.

    weights: (N,), how often a caption stands in an epoch: to the nearest integer, once where it is not 0.
    """

    def __init__(self, weights: np.ndarray, size: int, seed: int):
        self._rows = np.repeat(np.arange(len(weights)), labelled_captions.repeats(weights))
        self._size, self._seed = min(size, len(self._rows)), seed

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return len(self._rows) // self._size

    def __call__(self, epoch: int) -> Iterator[np.ndarray]:
        order = np.random.default_rng((self._seed, epoch)).permutation(self._rows)
        for number in range(self.steps):
            yield order[number * self._size : (number + 1) * self._size]


class LearnedFromCaptions(WithOptimiser, Protocol):
    """Captions, prompts and losses: see the recipe `text_as_image`."""

    @property
    def captions(self) -> tuple[str, ...]: ...
    @property
    def scenes(self) -> int: ...
    @property
    def per_name(self) -> int: ...
    @property
    def sentences(self) -> Sequence[str]: ...
    @property
    def only(self) -> tuple[str, ...]: ...
    @property
    def scale(self) -> float: ...
    @property
    def tau_text(self) -> float: ...
    @property
    def winner(self) -> Winner: ...
    @property
    def loss(self) -> str: ...
    @property
    def margin(self) -> float: ...
    @property
    def cooccurrence(self) -> bool: ...
    @property
    def teacher_global(self) -> float: ...
    @property
    def teacher_local(self) -> float: ...
    @property
    def keep(self) -> str: ...
    @property
    def modulation(self) -> float: ...
    @property
    def bank(self) -> int: ...
    @property
    def seed(self) -> int: ...


class CaptionLoss:
    """The loss of a batch of sentences, with the prompts as they are.

    cfg: a recipe's config with scale, tau_text, winner, margin, loss, teacher_global and teacher_local. targets: (N, C)
    int8, 1 named, 0 not, -1 unknown. weights: (C, C) of the ranking loss's pairs, or None.
    """

    def __init__(
        self,
        cfg: LearnedFromCaptions,
        prompts: PromptSets,
        captions: SentenceFeatures,
        targets: np.ndarray,
        weights: np.ndarray | None = None,
    ):
        self._cfg, self._prompts, self._captions, self._targets = cfg, prompts, captions, targets
        self._weights = weights

    def __call__(self, rows: np.ndarray, teacher: Mapping[str, jt.Var] | None = None):
        """rows (B,) → a scalar. teacher: vectors by set that scores are to stay near to; they take no gradient."""
        cfg, seen = self._cfg, self._captions.batch(rows)
        whole, places = self._scores(self._prompts.features(), *seen)
        loss = self._ranked(whole, self._targets[rows]) + self._ranked(places, self._targets[rows])
        if teacher is None or not (cfg.teacher_global or cfg.teacher_local):
            return loss
        with jt.no_grad():
            taught = self._scores(self._prompts.features(teacher), *seen)
        for own, wanted, weight in zip((whole, places), taught, (cfg.teacher_global, cfg.teacher_local), strict=True):
            loss = loss + weight * teacher_loss(own, wanted)
        return loss

    def _scores(self, text: Mapping[str, jt.Var], ends: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> tuple:
        """(B, C) twice: of the whole sentences and of their tokens."""
        cfg, x = self._cfg, jt.array(tokens).stop_grad()
        evidence = cosines(x, text["evidence"]) if "evidence" in text else None
        places = local_scores(cosines(x, text["local"]), cfg.tau_text, cfg.scale, mask, evidence, cfg.winner)
        return zero_shot_scores(jt.array(ends).stop_grad(), text["global"], cfg.scale), places

    def _ranked(self, scores, targets: np.ndarray):
        if self._cfg.loss == "asymmetric":
            return asymmetric_loss(scores, targets)
        return ranking_loss(scores, targets, self._cfg.margin, self._weights)


def train(
    cfg: LearnedFromCaptions,
    run: Run,
    prompts: PromptSets,
    loss: CaptionLoss,
    batches: CaptionBatches,
    evaluate: Any = None,
) -> tuple[Outcome, TrainState]:
    """`cfg.optim`'s epochs on the captions. The teacher of a step is the average as it stands before it.

    evaluate() measures validation photos after an epoch; its "map_merged" is what the best epoch is chosen by. The state's
    parameters end as `cfg.keep` says.
    """
    optim = optimiser(cfg.optim, {f"context_{name}": v for name, v in prompts.vectors.items()})
    state, total = TrainState(optim), cfg.optim.epochs * batches.steps

    def step(rows: np.ndarray, number: int):
        optim.lr = learning_rate(cfg.optim, number, total)
        teacher = {name: state.average[f"context_{name}"] for name in prompts.vectors} if state.average else None
        value = loss(rows, teacher)
        step_together(optim, value)
        return value

    epochs = cfg.optim.trained_epochs
    options = {"evaluate": evaluate, "select": "map_merged", "steps": epochs * batches.steps, "keep": cfg.keep}
    return fit(step, batches, state=state, run=run, epochs=epochs, **options), state


def check_captions(targets: np.ndarray, weights: np.ndarray, classnames: Sequence[str]) -> None:
    """Raises `DataError` for captions that teach nothing; reports on stderr classes that none names, and captions
    without a pair of a class that is there and one that is not."""
    if len(classnames) < 2:
        raise DataError(
            f"captions teach what sets classes apart: there must be at least two, got {len(classnames)}; `jclip tag` takes one"
        )
    if not len(targets) or not weights.any():
        raise DataError("there are no captions to learn from: set captions to a file of them")
    named = (targets == 1).sum(axis=0)
    if not named.any():
        raise DataError(
            f"none of {len(targets)} captions names any of the {len(classnames)} classes: name the classes with the words "
            "of the captions (and in their language), or give a lexicon of other words"
        )
    missing = [name for name, count in zip(classnames, named, strict=True) if not count]
    if missing:
        notice(
            f"{len(missing)} of {len(classnames)} classes are in no caption, and are only pushed down: {preview(missing)}"
        )
    pairs = (targets == 1).any(axis=1) & (targets == 0).any(axis=1)
    if not pairs.any():
        raise DataError("every caption names all classes that are known of it: there must be some that leave one out")
    if not pairs.all():
        notice(f"{int((~pairs).sum())} of {len(targets)} captions name no class, or all: they teach nothing")


def read_captions(cfg: LearnedFromCaptions, classnames: Sequence[str], run: Run) -> LabelledCaptions:
    """The captions that `cfg` names, checked; those made of the names are written into the run's folder.

    Raises `DataError` for captions that teach nothing.
    """
    parts, files = [], [name for name in cfg.captions if name != WORLD]
    if WORLD in cfg.captions:
        if tuple(classnames) != shapes.CLASSNAMES:
            raise DataError("captions of the embedded world are of its hundred classes: leave other class names out")
        world = {"pairs": shapes.SEEN_PAIRS, "styles": shapes.SEEN_STYLES}
        parts.append(world_captions(cfg.seed, cfg.scenes, **world))
    if files:
        parts.append(labelled_captions.read_captions(files, classnames))
    if not parts:
        parts.append(template_captions(tuple(classnames), cfg.seed, min_per_class=cfg.per_name))
        labelled_captions.write_captions(run.file("captions.jsonl"), parts[0])
        notice(f"{len(parts[0])} captions were made of the class names: {run.folder / 'captions.jsonl'}")
    if cfg.sentences:
        lexicon = load_lexicon(tuple(classnames))
        parts += [SENTENCES[kind](lexicon) for kind in cfg.sentences]
    captions = labelled_captions.joined(parts)
    if cfg.only:
        captions = captions.only(_labels_of(cfg.only, classnames))
    check_captions(captions.targets, captions.weights, classnames)
    return captions


def _labels_of(names: Sequence[str], classnames: Sequence[str]) -> list[int]:
    """Labels of some classes by name. Raises `UnknownName`."""
    label = {name_key(name): k for k, name in enumerate(classnames)}
    for name in names:
        if name_key(name) not in label:
            raise UnknownName("class in only", name, classnames)
    return [label[name_key(name)] for name in names]


def captions_digest(captions: LabelledCaptions) -> str:
    """SHA-256 over texts, labels and weights."""
    digest = hashlib.sha256(json.dumps(list(captions.texts)).encode())
    digest.update(captions.targets.astype(np.int8).tobytes())
    digest.update(captions.weights.astype(np.float32).tobytes())
    return digest.hexdigest()


def weights_of_pairs(cfg: LearnedFromCaptions, captions: LabelledCaptions) -> np.ndarray | None:
    """(C, C) weights of the ranking loss's pairs, None where all weigh alike."""
    if not cfg.cooccurrence:
        return None
    return ranking_weights(labelled_captions.counted(captions).shares)


def extras_of(
    cfg: LearnedFromCaptions, captions: LabelledCaptions, features: SentenceFeatures
) -> dict[str, np.ndarray]:
    """What scores of photos need of the captions: `shares` (C, C) for modulation, `bank` (Q, E) of distinct sentences."""
    extras = {}
    if cfg.modulation:
        extras["shares"] = labelled_captions.counted(captions).shares.astype(np.float32)
    if cfg.bank:
        _, first = np.unique(features.starts, return_index=True)
        extras["bank"] = features.sentences[first]
    return extras


def learned_of(prompts: PromptSets, chosen: Mapping[str, np.ndarray], state: TrainState) -> dict[str, np.ndarray]:
    """`context_<set>` of the chosen epoch and `text_<set>` (C, E) of it, and `average_<set>` where there is an average."""
    vectors = {name: jt.array(chosen[f"context_{name}"]) for name in prompts.vectors}
    with jt.no_grad():
        text = {f"text_{name}": t.numpy() for name, t in prompts.features(vectors).items()}
    averages = {f"average_{k.removeprefix('context_')}": v.numpy() for k, v in state.average.items()}
    return {**chosen, **text, **averages}


def with_names(
    learned: Mapping[str, np.ndarray], source: ModelSource, classnames: Sequence[str], position: Position
) -> dict[str, np.ndarray]:
    """What was learned, its text features those of other classes' names. Raises `DataError` for names that don't fit."""
    vectors = by_set(learned, "context")
    return {**learned, **texts_with(source.model, spoken_names(classnames), vectors, position)}


def start_from(prompts: PromptSets, place: str) -> None:
    """Gives the prompts the vectors that a finished run kept. place: its folder. Raises `ConfigError` or `DataError`."""
    path = Path(place)
    read_result(path)  # which says what is wrong with a folder that holds no finished run
    saved = {name: np.array(t.read()) for name, t in safetensors.read_sealed(path / LEARNED).items()}
    given = by_set(saved, "context")
    if "evidence" in prompts.vectors and "evidence" not in given:
        notice(f"{place} has no evidence prompts: these start at random")
    taken = {k: v for k, v in prompts.vectors.items() if k != "evidence" or k in given}
    check_shapes(taken, given, place)
    for name, var in taken.items():
        var.update(jt.array(given[name].astype(np.float32)))
        var.start_grad()
