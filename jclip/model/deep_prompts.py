"""Prompts inside the towers: vectors learned beside the tokens of texts and images, new ones for each of the first blocks.

Jia et al., ECCV 2022, arXiv 2203.12119 (VPT); Khattak et al., CVPR 2023, arXiv 2210.03117 (MaPLe), eq. 3-8. The weights
stay as they are. Block j ≤ J reads, and what it makes of its vectors is dropped where the next one has its own:

    text: [start] P_j words name . [end],   image: [class] patches P̃_j,   coupled: P̃_j = W_j P_j + b_j
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jclip.errors import ConfigError
from jclip.functional.initial_values import linear_start
from jclip.functional.similarity import normalise
from jclip.model.clip import CLIP
from jclip.model.learned_prompts import SPREAD, Frame, Layout
from jclip.model.parameter_groups import Prompting
from jclip.model.trainable import check_in_memory
from jclip.runtime import jt

Arrays = dict[str, np.ndarray]


class ClassTexts(Protocol):
    """Classes, and the features of their texts where they are known."""

    classnames: Sequence[str]
    text: np.ndarray | None  # (C, E)


class DeepPrompts:
    """The vectors that `config` asks for, started by `seed`; `params`, by name, are what is trained.

    context (J, n, D): of the text, first row from words. image (J, n, D), or W (J, D', D) and b (J, D') where coupled.
    data: class names, and the text features of a text tower without vectors. Raises `ConfigError` and `DataError`.
    """

    def __init__(self, model: CLIP, data: ClassTexts, config: Prompting, seed: int):
        check_in_memory(model)
        config.check(model.config)
        self._model, self._text = model, jt.array(data.text).stop_grad()
        self._frame = gapped(model, data.classnames, config) if config.text else None
        self.params = {name: jt.array(array) for name, array in first_arrays(model, config, seed).items()}

    @property
    def width(self) -> int:
        """E, of both towers' features."""
        return self._model.config.embed_dim

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
    """(B, 3, H, W) and vectors (J, n, D) after the patches of the first J blocks → (B, E), not normalised."""
    tokens = model.visual.embed(jt.array(images))
    first = vectors[0].unsqueeze(0).expand((tokens.shape[0], *vectors.shape[1:]))
    deep = {j: (tokens.shape[1], vectors[j]) for j in range(1, vectors.shape[0])}
    return model.visual.encode(jt.concat([tokens, first], dim=1), insert=deep, **options)


def opening(model: CLIP, config: Prompting) -> list[int]:
    """The tokens of the words that the text starts from. Raises `ConfigError` for more vectors than words."""
    tokens = model.tokenizer.encode(config.words.replace("_", " "))
    if config.text > len(tokens) > 0:
        raise ConfigError(
            f"text={config.text} vectors can't start from the {len(tokens)} tokens of words={config.words!r}: take "
            'fewer vectors, more words, or words="" to start at random'
        )
    return tokens


def gapped(model: CLIP, classnames: Sequence[str], config: Prompting) -> Frame:
    """The prompts of class names with gaps for the text vectors, and after these the words that have none."""
    fixed = opening(model, config)[config.text :]
    return Frame(model, Layout.of(model, classnames, config.text, fixed=fixed))


def first_arrays(model: CLIP, config: Prompting, seed: int) -> Arrays:
    """The start: words and N(0, 0.02²); maps as torch starts them, those of deeper blocks all alike."""
    rng, depth, arrays = np.random.default_rng((seed, 0xDE)), config.depth, {}

    def random(count: int, width: int) -> np.ndarray:
        return (SPREAD * rng.standard_normal((depth, count, width))).astype(np.float32)

    if config.text:
        table = model.word_vectors.numpy()
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
