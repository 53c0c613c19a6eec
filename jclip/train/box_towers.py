"""What of the towers learns along with the network that finds boxes: visual positions, low-rank updates, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jclip.errors import ConfigError
from jclip.features.box_phrases import phrase_ids
from jclip.features.source import ModelSource
from jclip.model import clip, tower_levels
from jclip.model.low_rank import Adapters, merge_updates
from jclip.model.parameter_groups import LowRank
from jclip.model.trainable import trainable
from jclip.runtime import jt
from jclip.weights.variants import ViTConfig

POSITIONS = "visual.positional_embedding"


class LearningTowers:
    """`params` of the towers by name: the visual positions, and the updates of `lora`; without both there are none.

    image, text: whether gradients pass the tower. Raises `ConfigError` for positions of another image tower than a ViT.
    """

    def __init__(
        self, source: ModelSource, layers: tower_levels.Layers, positions: bool, lora: LowRank | None, seed: int
    ):
        if positions and not isinstance(source.config.vision, ViTConfig):
            raise ConfigError(
                "visual_positions=trained needs a ViT, whose patches have positions: set visual_positions=fixed"
            )
        self._source, self._layers, self._seed = source, layers, seed
        self.params: dict[str, jt.Var] = trainable(source.model, [POSITIONS]) if positions else {}
        self._adapters = Adapters(source.model, lora, seed) if lora else None
        self._scale = lora.scale if lora else 1.0
        if self._adapters:
            self._adapters.attach()
            self.params |= self._adapters.params
        self.image = positions or bool(lora and lora.towers != "text")
        self.text = bool(lora and lora.towers != "image")

    def images(self, pixels: np.ndarray) -> Any:
        """(I, 3, side, side) → tokens (I, N, W) for the network, with gradients where something of the tower learns."""
        model = self._source.model
        if self.image:
            return tower_levels.image_parts(model, pixels, self._layers)[0]  # of a ViT, whose tokens are in one part
        with clip.inference(model):
            parts = tower_levels.image_parts(model, pixels, self._layers)
            jt.sync(parts)
            if len(parts) == 1:
                return parts[0].float32().stop_grad()
            return tower_levels.spread([part.float32().numpy() for part in parts], model.config)

    def texts(self, texts: Sequence[str]) -> tuple[Any, np.ndarray]:
        """Texts as the tower reads them → tokens (B, L, E) with gradients, and (B, L) which of them count."""
        ids, lengths = phrase_ids(self._source, texts)
        _, every = self._source.model.encode_text(ids, dense=True)
        said = (np.arange(every.shape[1]) < lengths[:, None]).astype(np.float32)
        return every * jt.array(said).unsqueeze(2), said

    def learn(self, *draw: int) -> None:
        """From now on the updates' dropout is on and draws by `draw`."""
        if self._adapters:
            self._adapters.train(True)
            self._adapters.draw(self._seed, *draw)

    def rest(self) -> None:
        """From now on there is no dropout."""
        if self._adapters:
            self._adapters.train(False)

    def kept(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays of a state as a finished run keeps them: B of an update is multiplied with its scale."""
        scale = np.float32(self._scale)
        updates = self._adapters.params if self._adapters else {}
        return {k: v * scale if k in updates and k.endswith(".B") else v for k, v in arrays.items()}

    def end(self) -> None:
        """Training has ended: the towers have no updates any more."""
        if self._adapters:
            self._adapters.detach()


def is_of_towers(name: str) -> bool:
    """Whether an array of that name in a finished run belongs to the towers."""
    return name == POSITIONS or ".attn." in name


def put_learned_towers(source: ModelSource, arrays: Mapping[str, np.ndarray]) -> None:
    """Gives the towers what a run learned of them: positions as they are, updates added to the weights they are of."""
    if POSITIONS in arrays:
        clip.put_arrays(source.model, {POSITIONS: arrays[POSITIONS]})
    merge_updates(source.model, {k: v for k, v in arrays.items() if is_of_towers(k) and k != POSITIONS})
