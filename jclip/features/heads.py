"""What turns image features into class scores: the zero-shot head, built from prompts, cached by what made it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jclip import kernels
from jclip.errors import ConfigError, DataError, printable
from jclip.features.cached import keep, key_of, read_cached
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.machine import ranks, work_meter
from jclip.paths import cache_dir
from jclip.postponed import jt
from jclip.prompts import scripts
from jclip.prompts.templates import class_prompts, load_templates, prompts_of

PROMPTS_AT_ONCE, PROMPTS_AT_LEAST = 512, 24  # of a batch; fewer only where there are no more


@dataclass(frozen=True)
class ZeroShotHead:
    """scores = scale * f · w_k for a normalised feature f: Radford et al., 2021, section 3.1."""

    weights: np.ndarray  # (C, E) float32, rows of length one
    scale: float  # exp(logit_scale)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(N, E) normalised → (N, C) float32 scores."""
        return np.float32(self.scale) * (features @ self.weights.T)


def zero_shot_head(source: ModelSource, prompts: Sequence[Sequence[str]], truncate: bool = False) -> ZeroShotHead:
    """w_k = norm(mean_j norm(h(prompt_kj))): each class's prompts averaged in embedding space.

    The model is loaded only when the cache does not hold the head. Raises `DataError` for a prompt that is too long,
    unless `truncate`.
    """

    def make() -> dict[str, np.ndarray]:
        return _arrays(head_of(source.model, prompts, truncate))

    saved = _cached(_head_file(source, prompts, truncate), make)
    return ZeroShotHead(saved["weights"], float(saved["scale"][0]))


def head_of_names(source: ModelSource, classnames: Sequence[str], templates: str) -> ZeroShotHead:
    """The zero-shot head of class names; reports on stderr names in a script that the weights never learned."""
    prompts = prompts_of(classnames, templates)
    scripts.warn_names(classnames, prompts, source.vocabulary_kind)
    return zero_shot_head(source, prompts)


def prompt_embeddings(
    source: ModelSource, prompts: Sequence[Sequence[str]], truncate: bool = False
) -> tuple[np.ndarray, float]:
    """Every prompt by itself, (P, E) rows of length one, and exp(logit_scale); cached, as heads are."""

    def make() -> dict[str, np.ndarray]:
        features, _ = prompt_features(source, prompts, source.config.embed_dim, truncate)
        return {"prompts": unit(features), "scale": np.array([scale_of(source.model)], np.float64)}

    saved = _cached(_head_file(source, prompts, truncate, kind="each"), make)
    return saved["prompts"], float(saved["scale"][0])


def text_means(
    source: ModelSource, prompts: Sequence[Sequence[str]], unit_first: bool = True
) -> tuple[ZeroShotHead, np.ndarray]:
    """Prompts averaged both ways: each class's over the templates, the zero-shot head (C, E), and each template's over
    the classes, (T, E); rows of length one.

    unit_first: off averages unnormalised texts. Cached; the texts are read once for this and for
    `zero_shot_head`. Raises `ConfigError` where not all classes have prompts of the same templates.
    """
    if len(counts := {len(of_class) for of_class in prompts}) > 1:
        raise ConfigError(
            f"templates fill {min(counts)} to {max(counts)} prompts per class, and here all classes need the same: "
            "name a set of templates, not sentences"
        )

    def make() -> dict[str, np.ndarray]:
        features, _ = prompt_features(source, prompts, source.config.embed_dim)
        features = unit(features) if unit_first else features
        head = ZeroShotHead(unit(_class_means(features, prompts)), scale_of(source.model))
        if unit_first:
            keep(_head_file(source, prompts), _arrays(head))
        by_template = features.reshape(len(prompts), -1, features.shape[1]).mean(axis=0)
        return {**_arrays(head), "templates": unit(by_template)}

    saved = _cached(_head_file(source, prompts, kind=f"both ways, unit first: {unit_first}"), make)
    return ZeroShotHead(saved["weights"], float(saved["scale"][0])), saved["templates"]


def text_for(source: ModelSource | ZeroShotHead, classnames: Sequence[str], templates: str) -> dict[str, np.ndarray]:
    """`text` (C, E) and `scale` of other class names: what recipes that classify by text recompute for them.

    source: the model; or, of precomputed features without one, the head of these classes stored with them.
    """
    recorded = isinstance(source, ZeroShotHead)
    head = source if recorded else zero_shot_head(source, class_prompts(classnames, load_templates(templates)))
    return {"text": head.weights, "scale": np.array([head.scale])}


def head_of(model, prompts: Sequence[Sequence[str]], truncate: bool = False) -> ZeroShotHead:
    """The zero-shot head of a model at hand, whatever state it is in: nothing is cached."""
    flat = [p for of_class in prompts for p in of_class]
    encoded = encode_prompts(model, model.tokenize(flat, truncate))
    check_directions(encoded, flat)
    embedded = unit(encoded)
    return ZeroShotHead(unit(_class_means(embedded, prompts)), scale_of(model))


def _class_means(features: np.ndarray, prompts: Sequence[Sequence[str]]) -> np.ndarray:
    counts = [len(of_class) for of_class in prompts]
    return np.add.reduceat(features, np.cumsum([0, *counts[:-1]]), axis=0) / np.array(counts, np.float32)[:, None]


def scale_of(model) -> float:
    """exp(logit scale). Raises `DataError` for one that is not finite."""
    stored = float(model.logit_scale.numpy()[0])
    with np.errstate(over="ignore"):
        scale = float(np.exp(np.float64(stored)))
    if not 0 < scale <= np.finfo(np.float32).max:
        raise DataError(f"logit_scale must be a number whose exponential is finite and above 0, got {stored}")
    return scale


def prompt_features(
    source: ModelSource, prompts: Sequence[Sequence[str]], width: int, truncate: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Raw features (P, E) of every prompt, and its class (P,). Raises `ConfigError` for a model of another width."""
    check_width(source, width)
    flat = [prompt for of_class in prompts for prompt in of_class]
    features = encode_prompts(source.model, source.tokenize(flat, truncate))
    check_directions(features, flat)
    return features, np.repeat(np.arange(len(prompts)), [len(c) for c in prompts])


def check_directions(features: np.ndarray, of: Sequence[str]) -> None:
    """Raises `DataError` where a row of features (n, E) holds NaN or infinities, or has no length: its prompt, or the
    path of its photo, is in `of`."""
    lengths = np.linalg.norm(features.astype(np.float64), axis=-1)
    lost = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(lost):
        what = "is zero" if lengths[lost[0]] == 0 else "holds NaN or infinite values"
        raise DataError(
            f"the model's feature of {printable(str(of[lost[0]]), 200)!r} {what}, as do {len(lost)} of {len(of)}: its "
            "weights are damaged, or too large for a half dtype (use dtype fp32)"
        )


def check_width(source: ModelSource, width: int) -> None:
    """Raises `ConfigError` for a model whose features are of another width than those at hand."""
    if source.config.embed_dim != width:
        widths = f"{source.config.embed_dim} dimensions and not {width}"
        raise ConfigError(
            f"the model gives features of {widths}: set model to the one that made these, or leave it out"
        )


def encode_prompts(model, tokens: np.ndarray) -> np.ndarray:
    """(P, L) ids → (P, E), not normalised; prompts of a length are encoded together, so that each batch is cut early."""
    return _encoded(model, tokens, rows_by_length(model.ends(tokens)))


def encode_prompts_by_ranks(model, tokens: np.ndarray) -> np.ndarray:
    """`encode_prompts`, of which several ranks encode a share of the batches each, and all get all."""
    batches = list(rows_by_length(model.ends(tokens)))
    return kernels.collectives.total(_encoded(model, tokens, batches[ranks.here().share(len(batches))]))


def _encoded(model, tokens: np.ndarray, batches: Iterable[np.ndarray]) -> np.ndarray:
    features, done = np.zeros((len(tokens), model.config.embed_dim), np.float32), np.zeros(len(tokens), bool)
    asked, ends = list(batches), model.ends(tokens)
    of = {"phase": "encoding texts", "weigh": lambda rows: len(rows) * (1.0 + float(ends[rows].max()))}
    with jt.no_grad():
        for rows in work_meter.some(asked, ("texts", id(model)), **of):
            for step in _WATCHING:
                step(int(done.sum()), len(tokens))
            features[rows], done[rows] = model.encode_text(tokens[rows]).float32().numpy(), True
    if work_meter.running() and asked:
        left = np.setdiff1d(np.concatenate(asked), np.flatnonzero(done))
        features[left] = work_meter.resembling(features[done], left)
    return features


_WATCHING: list[Callable[[int, int], None]] = []


@contextlib.contextmanager
def prompts_watched_by(step: Callable[[int, int], None]) -> Iterator[None]:
    """In the block `step(done, total)` is called between batches of prompts; what it raises ends their encoding."""
    _WATCHING.append(step)
    try:
        yield
    finally:
        _WATCHING.remove(step)


def rows_by_length(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of each batch, the shortest first: a batch ends where the next prompts are longer, or when full.

    Each has from `PROMPTS_AT_LEAST` to `PROMPTS_AT_ONCE` rows, the last perhaps fewer.
    """
    order = np.argsort(lengths, kind="stable")
    longer = np.flatnonzero(np.diff(lengths[order])) + 1
    start = 0
    while start < len(order):
        ends = longer[(longer >= start + PROMPTS_AT_LEAST) & (longer <= len(order) - PROMPTS_AT_LEAST)]
        end = min(int(ends[0]) if len(ends) else len(order), start + PROMPTS_AT_ONCE)
        yield order[start:end]
        start = end


def _head_file(
    source: ModelSource, prompts: Sequence[Sequence[str]], truncate: bool = False, kind: str = "embed"
) -> Path:
    made_of = [source.text_identity, source.vocabulary_digest, kind, truncate, [list(p) for p in prompts], "sealed"]
    return cache_dir("classifiers") / f"{key_of(made_of)}.safetensors"


def _arrays(head: ZeroShotHead) -> dict[str, np.ndarray]:
    return {"weights": head.weights, "scale": np.array([head.scale], np.float64)}


def _cached(file: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What the file holds, made and written first where it is absent or damaged."""
    saved = read_cached(file, ("scale",))
    if saved is None:
        saved = make()
        keep(file, saved)
    return saved
