"""Low-rank updates of a transformer's attention: beside q, k, v a product of two thin matrices, which alone is trained.

Hu et al., ICLR 2022, arXiv 2106.09685; as CLIP-LoRA has it (Zanella & Ben Ayed, CVPR-W 2024, arXiv 2405.18541):

    y = W x + b + (α / √r) B A drop(x),   A (r, D) uniform within 1 / √D, B (D, r) zero at the start
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from jclip.errors import ConfigError
from jclip.functional.initial_values import linear_start
from jclip.kernels import dropout, linear
from jclip.model.clip import CLIP, put_arrays
from jclip.model.layers import Attention
from jclip.model.parameter_groups import PARTS, LowRank, block_numbers
from jclip.runtime import jt
from jclip.weights.mobile_configs import MobileConfig
from jclip.weights.perception_configs import PerceptionConfig
from jclip.weights.variants import SigLIPImageConfig, ViTConfig


class Adapters:
    """The updates of a model: `params` by name, `<attention>.<part>.A` and `.B`. Attached, they take part in its passes.

    Raises `ConfigError` for a rank above the width, and for a tower that is no transformer.
    """

    def __init__(self, model: CLIP, config: LowRank, seed: int):
        self._model, self._config, self._training = model, config, False
        self._seed, self._drawn = (0,), 0
        self._rows: tuple[int, int] | None = None
        self.params: dict[str, jt.Var] = {}
        rng = np.random.default_rng((seed, 0x10A))
        for name, attention in self._places():
            width = attention.in_proj_weight.shape[1]
            if config.rank > width:
                raise ConfigError(f"rank must be at most {width}, the width of {name}, got {config.rank}")
            for part in config.parts:
                self.params[f"{name}.{part}.A"] = jt.array(linear_start(rng, config.rank, width))
                self.params[f"{name}.{part}.B"] = jt.zeros((width, config.rank))

    def _places(self) -> Iterator[tuple[str, Attention]]:
        """The attention modules that get updates, by name."""
        model, towers = self._model, self._config.towers
        if towers != "text":
            if isinstance(model.config.vision, SigLIPImageConfig):
                yield from _chosen("visual.trunk.blocks", model.visual.trunk.blocks, self._config.blocks)
            elif isinstance(model.config.vision, (ViTConfig, PerceptionConfig, MobileConfig)):
                blocks = model.visual.transformer.resblocks
                yield from _chosen("visual.transformer.resblocks", blocks, self._config.blocks)
            else:
                raise ConfigError(
                    f"low-rank updates are of a ViT's attention: set lora.towers=text for other image towers, got {towers}"
                )
        if towers != "image":
            name, tower = ("transformer", model) if model.holds_text else ("text.transformer", model.text)
            yield from _chosen(f"{name}.resblocks", tower.transformer.resblocks, self._config.blocks)

    def attach(self) -> None:
        """From now on the model's attention computes with the updates."""
        for name, attention in self._places():
            attention.in_proj = self._projection(name, attention)

    def detach(self) -> None:
        """The model as it was."""
        for _, attention in self._places():
            if "in_proj" in vars(attention):
                del attention.in_proj

    def train(self, on: bool) -> None:
        """Whether dropout is on."""
        self._training = on

    def draw(self, *seed: int, rows: tuple[int, int] | None = None) -> None:
        """From now on dropout draws by `seed`, mask after mask.

        rows: of which row of how many a batch is the first, where it is a part of one that is drawn as a whole.
        """
        self._seed, self._drawn, self._rows = seed, 0, rows

    @property
    def position(self) -> tuple[tuple[int, ...], int]:
        """Where dropout's draws stand; setting it repeats them."""
        return self._seed, self._drawn

    @position.setter
    def position(self, position: tuple[tuple[int, ...], int]) -> None:
        self._seed, self._drawn = position

    def _projection(self, name: str, attention: Attention):
        parts = [part for part in PARTS if f"{name}.{part}.A" in self.params]
        places = np.array(
            [[here == part for part in parts] for here in PARTS], np.float32
        )  # of the updates among q, k, v
        places = jt.array(places[:, None, :, None]).stop_grad()

        def in_proj(x):
            D, r = self.params[f"{name}.{parts[0]}.B"].shape
            low = [linear(self._dropped(x), self.params[f"{name}.{part}.A"]) for part in parts]
            ups = jt.concat([self.params[f"{name}.{part}.B"] for part in parts], dim=1).reshape((1, D, len(parts), r))
            up = (places * ups * self._config.scale).reshape((3 * D, len(parts) * r))
            update = linear(jt.concat(low, dim=-1), up)
            return linear(x, attention.in_proj_weight, attention.in_proj_bias, residual=update)

        return in_proj

    def _dropped(self, x):
        if not (self._training and self._config.dropout):
            return x
        self._drawn += 1
        seed = int(np.random.default_rng((*self._seed, self._drawn)).integers(2**31))
        return dropout(x, self._config.dropout, seed, self._rows)

    def merged(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Weights (3D, D) of the model, by name, with the updates of `arrays`, named as `params`, added in."""
        found = {}
        for name, attention in self._places():
            weight = attention.in_proj_weight.numpy()
            width = weight.shape[1]
            for part in self._config.parts:
                rows = slice(PARTS.index(part) * width, (PARTS.index(part) + 1) * width)
                weight[rows] += np.float32(self._config.scale) * (
                    arrays[f"{name}.{part}.B"] @ arrays[f"{name}.{part}.A"]
                )
            found[_weight_of(name)] = weight
        return found


def merge_updates(model: CLIP, arrays: Mapping[str, np.ndarray]) -> None:
    """Adds products B A to the model's weights, for good.

    arrays: `<attention>.<part>.A` (r, D) and `.B` (D, r), the latter with its scale.
    """
    own = model.state_dict()
    changed: dict[str, np.ndarray] = {}
    for name in arrays:
        attention, part, kind = name.rsplit(".", 2)
        if kind != "A":
            continue
        key = _weight_of(attention)
        weight = changed.setdefault(key, own[key].numpy().copy())
        width = weight.shape[1]
        rows = slice(PARTS.index(part) * width, (PARTS.index(part) + 1) * width)
        weight[rows] += arrays[f"{attention}.{part}.B"] @ arrays[name]
    put_arrays(model, changed)


def _weight_of(attention: str) -> str:
    """The name of the packed projection of an attention module: timm's in SigLIP's image tower, else OpenAI's."""
    return f"{attention}.{'qkv.weight' if attention.startswith('visual.trunk.') else 'in_proj_weight'}"


def _chosen(name: str, blocks, which: str) -> Iterator[tuple[str, Attention]]:
    for i in block_numbers(len(blocks), which):
        yield f"{name}.{i}.attn", blocks[i].attn
