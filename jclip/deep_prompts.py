"""Prompts inside the towers: vectors learned beside the tokens of texts and images, anew for each of the first blocks.

Jia et al., ECCV 2022, arXiv 2203.12119 (VPT); Khattak et al., CVPR 2023, arXiv 2210.03117 (MaPLe), eq. 3-8. The weights
stay as they are. Block j ≤ J reads, and what it makes of its vectors is dropped where the next one has its own:

    text: [start] P_j words name . [end],   image: [class] patches P̃_j,   coupled: P̃_j = W_j P_j + b_j
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jclip.adapt import coop_rate, linear_start, zero_shot_report
from jclip.clip import CLIP, normalise
from jclip.context import SPREAD, Frame, Layout, write_nearest
from jclip.data.splits import PhotoData, read_photos
from jclip.errors import ConfigError
from jclip.features import few_shot_features
from jclip.functional.losses import cross_entropy
from jclip.functional.similarity import zero_shot_scores
from jclip.heads import ZeroShotHead, zero_shot_head
from jclip.loop import fit
from jclip.optim import TrainState, check_in_memory, optimiser
from jclip.prompts import class_prompts, load_templates
from jclip.recorded import FeatureSet
from jclip.run import Run
from jclip.runtime import jt
from jclip.source import ModelSource, with_vectors
from jclip.tokenizer import tokenizer_for
from jclip.towers import Prompting
from jclip.tuning import check_photos, measure, photo_epochs

Arrays = dict[str, np.ndarray]
Penalty = Callable[[Any, Any, Any, Any], Any]  # pixels, image features, text features, scores → a scalar


class Average(Protocol):
    """Sums over the epochs, which are part of what a checkpoint holds."""

    sums: Mapping[str, jt.Var]

    def add(self, epoch: int) -> None:
        """Takes in the parameters as they are after that epoch."""

    def arrays(self) -> Arrays:
        """The averaged parameters, by name."""


class DeepPrompts:
    """The vectors that `config` asks for, started by `seed`; `params`, by name, are what is trained.

    context (J, n, D): of the text, first row from words. image (J, n, D), or W (J, D', D) and b (J, D') where coupled.
    data: class names, and the text features of a text tower without vectors. Raises `ConfigError` and `DataError`.
    """

    def __init__(self, model: CLIP, data: FeatureSet, config: Prompting, seed: int):
        check_in_memory(model)
        config.check(model.config)
        self._model, self._text = model, jt.array(data.text).stop_grad()
        self._frame = gapped(model, data.classnames, config) if config.text else None
        self.params = {name: jt.array(array) for name, array in first_arrays(model, config, seed).items()}

    def text(self):
        """(C, E) text features of length one."""
        return self._frame.features(self.params["context"]) if self._frame else self._text

    def images(self, pixels):
        """(B, 3, H, W) → (B, E) of length one."""
        vectors = self.image_vectors()
        if vectors is None:
            with jt.no_grad():
                return normalise(self._model.encode_image(pixels))
        return normalise(encode_beside(self._model, pixels, vectors))

    def image_vectors(self):
        """(J, n, D), or None where there are none."""
        if "W" not in self.params:
            return self.params.get("image")
        return jt.nn.bmm_transpose(self.params["context"], self.params["W"]) + self.params["b"].unsqueeze(1)

    def seeing(self) -> PromptedModel | None:
        """The model with the image vectors as they are, for measuring; None where there are none."""
        vectors = self.image_vectors()
        return None if vectors is None else PromptedModel(self._model, vectors.detach())

    def arrays(self) -> Arrays:
        """Copies of the parameters."""
        return {name: var.numpy() for name, var in self.params.items()}

    def put(self, arrays: Mapping[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        for name, var in self.params.items():
            var.update(jt.array(arrays[name]))

    def learned(self, scale: float) -> Arrays:
        """What a finished run needs: parameters, image vectors, and the zero-shot head of the classes."""
        with jt.no_grad():
            vectors, text = self.image_vectors(), self.text().numpy()
            image = {} if vectors is None else {"image": vectors.numpy()}
        return {**self.arrays(), **image, "text": text, "scale": np.array([scale])}


class PromptedModel:
    """A `CLIP` in all but this: its image tower sees vectors (J, n, D) beside the patches."""

    def __init__(self, model: CLIP, vectors):
        self._model, self._vectors = model, vectors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode_image(self, images, penultimate: bool = False):
        """As `CLIP`'s."""
        return encode_beside(self._model, images, self._vectors, penultimate=penultimate)


def encode_beside(model: CLIP, images, vectors, **options):
    """(B, 3, H, W) and vectors (J, n, D) behind the patches of the first J blocks → (B, E), not normalised."""
    tokens = model.visual.embed(jt.array(images))
    first = vectors[0].unsqueeze(0).expand((tokens.shape[0], *vectors.shape[1:]))
    deep = {j: (tokens.shape[1], vectors[j]) for j in range(1, vectors.shape[0])}
    return model.visual.encode(jt.concat([tokens, first], dim=1), insert=deep, **options)


def opening(model: CLIP, config: Prompting) -> list[int]:
    """The tokens of the words that the text starts from. Raises `ConfigError` for more vectors than words."""
    tokens = tokenizer_for(model.config.text).encode(config.words.replace("_", " "))
    if config.text > len(tokens) > 0:
        raise ConfigError(
            f"text={config.text} vectors can't start from the {len(tokens)} tokens of words={config.words!r}: take "
            'fewer vectors, more words, or words="" to start at random'
        )
    return tokens


def gapped(model: CLIP, classnames: Sequence[str], config: Prompting) -> Frame:
    """The prompts of class names with gaps for the text vectors, and behind these the words that have none."""
    fixed = opening(model, config)[config.text :]
    return Frame(model, Layout.of(model.config.text, classnames, config.text, fixed=fixed))


def first_arrays(model: CLIP, config: Prompting, seed: int) -> Arrays:
    """The start: words and N(0, 0.02²); maps as torch starts them, those of deeper blocks all alike."""
    rng, depth, arrays = np.random.default_rng((seed, 0xDE)), config.depth, {}

    def random(count: int, width: int) -> np.ndarray:
        return (SPREAD * rng.standard_normal((depth, count, width))).astype(np.float32)

    if config.text:
        table = model.token_embedding.weight.numpy()
        arrays["context"] = random(config.text, table.shape[1])
        if tokens := opening(model, config):
            arrays["context"][0] = table[tokens[: config.text]]
    if config.coupled:
        inputs, outputs = arrays["context"].shape[2], model.config.vision.width
        own, deeper = (linear_start(rng, outputs, inputs) for _ in range(2))
        own_b, deeper_b = (linear_start(rng, outputs, inputs)[:, 0] for _ in range(2))
        arrays["W"] = np.stack([own] + [deeper] * (depth - 1))
        arrays["b"] = np.stack([own_b] + [deeper_b] * (depth - 1))
    elif config.image:
        arrays["image"] = random(config.image, model.config.vision.width)
    return arrays


def with_names(
    learned: Arrays, config: Prompting, templates: str, classnames: Sequence[str], source: ModelSource
) -> Arrays:
    """What was learned, with text features of other classes' names. Raises `DataError` for names that don't fit."""
    if "context" not in learned:
        return {**learned, "text": zero_shot_head(source, class_prompts(classnames, load_templates(templates))).weights}
    with jt.no_grad():
        text = gapped(source.model, classnames, config).features(jt.array(learned["context"]))
        return {**learned, "text": text.numpy()}


def photos_for(cfg: Any, run: Run) -> tuple[ModelSource, PhotoData, FeatureSet]:
    """A recipe's model and photos, and the features of val, test and class names without vectors, noted in the run.

    Raises `ConfigError` or `DataError` for what can't be learned from.
    """
    source = ModelSource(cfg.model, cfg.family, draft=cfg.data.draft, upright=cfg.data.upright)
    cfg.prompts.check(source.config)
    photos = read_photos(cfg.data)
    check_photos(cfg, photos)
    data = few_shot_features(cfg.data, source, cfg.templates, train=False, photos=photos)
    run.note(**data.facts)
    return source, photos, data


def learn(
    cfg: Any,
    run: Run,
    source: ModelSource,
    photos: PhotoData,
    data: FeatureSet,
    prompts: DeepPrompts,
    penalty: Penalty | None = None,
    average: Average | None = None,
) -> dict[str, float]:
    """`train`, what was learned as arrays and as the words nearest to it, and the run's metrics.

    cfg: a recipe's config with data, templates, augment, prompts, optim, selection and seed.
    """
    kept, told = train(cfg, run, source, photos, data, prompts, penalty, average)
    prompts.put(kept)
    learned = prompts.learned(data.scale)
    run.save_learned(learned, classnames=photos.classnames, width=learned["text"].shape[1])
    if "context" in learned:
        write_nearest(run.file("words.csv"), source.model, learned["context"][0])
    seen = few_shot_features(cfg.data, with_vectors(source, learned), cfg.templates, train=False, photos=photos)
    metrics = seen.report(ZeroShotHead(learned["text"], data.scale))
    if cfg.selection == "last" and len(photos.test):
        told["test_top1_last_epoch"] = metrics["test_top1"]
    parameters = sum(array.size for array in prompts.arrays().values())
    return {**zero_shot_report(data), **metrics, **told, "parameters": parameters}


def train(
    cfg: Any,
    run: Run,
    source: ModelSource,
    photos: PhotoData,
    data: FeatureSet,
    prompts: DeepPrompts,
    penalty: Penalty | None,
    average: Average | None,
) -> tuple[Arrays, dict[str, float]]:
    """The parameters that `cfg.selection` keeps, and what to tell. The schedule is CoOp's."""
    optim = optimiser(cfg.optim, prompts.params)
    steps = -(-len(photos.train) // cfg.optim.batch)
    rate, every_epoch = coop_rate(cfg.optim, steps), photo_epochs(cfg, photos, source)
    loss_of = batch_loss(prompts, data.scale, penalty)

    def step(batch, number: int):
        optim.lr = rate(number)
        loss = loss_of(*batch)
        optim.step(loss)
        return loss

    def epochs(epoch: int):
        yield from every_epoch(epoch)
        if average:  # after the epoch's last step, before it is saved
            average.add(epoch)

    def top1(part: str) -> float:
        with jt.no_grad():
            head, seeing = ZeroShotHead(prompts.text().numpy(), data.scale), prompts.seeing()
        if seeing is None:
            return data.top1(part, head)
        return measure(seeing, head, source.preprocess, getattr(photos, part), cfg.data.on_error)["top1"]

    outcome = fit(
        step, epochs, state=TrainState(optim, average.sums if average else None), run=run, epochs=cfg.optim.epochs,
        evaluate=(lambda: {"top1": top1("val")}) if len(photos.val) else None, steps=cfg.optim.epochs * steps,
    )  # fmt: skip
    told = {"test_top1_last_epoch": top1("test")} if cfg.selection != "last" and len(photos.test) else {}
    told |= {"best_epoch": outcome.best_epoch + 1} if outcome.best_arrays else {}
    if cfg.selection == "val":
        return outcome.best_arrays, told
    return (average.arrays() if cfg.selection == "aggregate" else prompts.arrays()), told


def batch_loss(prompts: DeepPrompts, scale: float, penalty: Penalty | None = None) -> Callable:
    """(pixels, labels) → cross-entropy of s f T' over all classes, plus the penalty."""

    def loss(pixels: np.ndarray, labels: np.ndarray):
        pixels = jt.array(pixels).stop_grad()
        images, text = prompts.images(pixels), prompts.text()
        scores = zero_shot_scores(images, text, scale)
        own = cross_entropy(scores, jt.array(labels.astype(np.int32)))
        return own + penalty(pixels, images, text, scores) if penalty else own

    return loss
