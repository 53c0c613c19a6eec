"""The parameters of the two towers by depth, for locking all of a tower but its top groups, and where low-rank updates
and learned prompts are. Imports no Jittor.

Groups count from the top as open_clip's `unlocked_groups` do: 1 is the projection, 2 adds the last block and its norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from jclip.errors import ConfigError
from jclip.weights.variants import CLIPConfig, EVAConfig, PatchTower, SigLIPImageConfig

Patterns = tuple[str, ...]
Blocks = Literal["all", "bottom", "middle", "top", "lower half", "upper half", "top 3"]
PARTS = ("q", "k", "v")  # of the packed projection, in its order


@dataclass(frozen=True)
class Lock:
    """What of the towers stays as it is: all but the top `image_groups` and `text_groups` of a locked one."""

    image: bool = False
    image_groups: int = 0
    text: bool = False
    text_groups: int = 0

    def __post_init__(self):
        if min(self.image_groups, self.text_groups) < 0:
            raise ConfigError("lock.image_groups and lock.text_groups must be at least 0")
        if (self.image_groups and not self.image) or (self.text_groups and not self.text):
            raise ConfigError("lock.image_groups and lock.text_groups need a locked tower: set lock.image or lock.text")

    @property
    def freezes_image(self) -> bool:
        """Whether nothing of the image tower is trained, so that its features can be computed once."""
        return self.image and not self.image_groups

    @property
    def freezes_text(self) -> bool:
        """Whether nothing of the text tower is trained."""
        return self.text and not self.text_groups


def trained_patterns(config: CLIPConfig, lock: Lock) -> Patterns:
    """Name patterns of the parameters that `lock` leaves to be trained; the logit scale is always among them.

    Raises `ConfigError` for more groups than a tower has.
    """
    image, text = image_groups(config), text_groups(config)
    for what, wanted, groups in (("image", lock.image_groups, image), ("text", lock.text_groups, text)):
        if wanted > len(groups):
            raise ConfigError(
                f"lock.{what}_groups must be at most {len(groups)}, the groups of the {what} tower, got {wanted}"
            )
    kept = image if not lock.image else image[len(image) - lock.image_groups :]
    kept += text if not lock.text else text[len(text) - lock.text_groups :]
    return ("logit_scale", *(pattern for group in kept for pattern in group))


_VIT_STEM = ("visual.conv1.*", "visual.class_embedding", "visual.positional_embedding", "visual.ln_pre.*")
_VIT_ENDS: dict[str, tuple[Patterns, Patterns]] = {  # stem and head of the towers whose blocks have OpenAI's names
    "vit": (_VIT_STEM, ("visual.proj*",)),
    "pe": (_VIT_STEM, ("visual.attn_pool.*", "visual.proj*")),
    "mobile": (("visual.patch_embed.*", *_VIT_STEM[1:3]), ("visual.proj*",)),
}


def image_groups(config: CLIPConfig) -> list[Patterns]:
    """Patterns from the input to the projection."""
    if isinstance(config.vision, EVAConfig):
        blocks = [(f"visual.trunk.blocks.{i}.*",) for i in range(config.vision.layers)]
        stem = tuple(f"visual.trunk.{part}" for part in ("patch_embed.*", "cls_token", "pos_embed"))
        return [stem, *blocks[:-1], (*blocks[-1], "visual.trunk.norm.*"), ("visual.trunk.head.*",)]
    if isinstance(config.vision, SigLIPImageConfig):
        blocks = [(f"visual.trunk.blocks.{i}.*",) for i in range(config.vision.layers)]
        stem = ("visual.trunk.patch_embed.*", "visual.trunk.pos_embed")
        return [stem, *blocks[:-1], (*blocks[-1], "visual.trunk.norm.*"), ("visual.trunk.attn_pool.*",)]
    if config.vision.kind not in _VIT_ENDS:
        stem = tuple(f"visual.{kind}{i}.*" for kind in ("conv", "bn") for i in (1, 2, 3))
        return [stem, *((f"visual.layer{i}.*",) for i in (1, 2, 3, 4)), ("visual.attnpool.*",)]
    blocks = [(f"visual.transformer.resblocks.{i}.*",) for i in range(config.vision.layers)]
    stem, head = _VIT_ENDS[config.vision.kind]
    if not config.vision.class_tokens:
        stem = tuple(part for part in stem if part != "visual.class_embedding")
    return [stem, *blocks[:-1], (*blocks[-1], "visual.ln_post.*"), head]


def text_groups(config: CLIPConfig) -> list[Patterns]:
    """Patterns from the token embedding to the projection."""
    if config.text.kind == "bert":
        blocks = [(f"text.transformer.resblocks.{i}.*",) for i in range(config.text.layers)]
        tables = ("token_embedding.*", "positional_embedding", "token_type_embedding", "ln_pre.*")
        stem = tuple(f"text.{part}" for part in tables)
        return [stem, *blocks, ("text.text_projection",)]
    if config.text.kind == "siglip":
        blocks = [(f"text.transformer.resblocks.{i}.*",) for i in range(config.text.layers)]
        ends = [("text.text_projection.*",)] if config.text.projection else []
        stem = ("text.token_embedding.*", "text.positional_embedding")
        return [stem, *blocks[:-1], (*blocks[-1], "text.ln_final.*"), *ends]
    blocks = [(f"transformer.resblocks.{i}.*",) for i in range(config.text.layers)]
    stem = ("token_embedding.*", "positional_embedding")
    return [stem, *blocks[:-1], (*blocks[-1], "ln_final.*"), ("text_projection",)]


def rate_factors(config: CLIPConfig, decay: float, names: Iterable[str]) -> dict[str, float]:
    """Factor that lowers the rate of each named parameter: decay^d, d the number of groups above its own.

    Clark et al., 2020, arXiv 2003.10555, as BEiT and open_clip have it: the projection's is 1, the last block's `decay`. Of
    each tower for itself; the logit scale's is 1.
    """
    factors = {}
    for groups in (image_groups(config), text_groups(config)):
        for above, patterns in enumerate(reversed(groups)):
            factors.update(dict.fromkeys(patterns, decay**above))
    found = ((name, next((f for pattern, f in factors.items() if fnmatchcase(name, pattern)), 1.0)) for name in names)
    return {name: factor for name, factor in found if factor != 1}


@dataclass(frozen=True)
class LowRank:
    """Low-rank updates of attention: where they are, and how large."""

    rank: int = 2  # r
    alpha: float = 1.0  # α
    dropout: float = 0.25  # of what A sees, while training
    towers: Literal["both", "text", "image"] = "both"
    blocks: Blocks = "all"
    parts: tuple[Literal["q", "k", "v"], ...] = PARTS

    def __post_init__(self):
        if self.rank < 1 or self.alpha < 0 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"rank must be at least 1, alpha at least 0, dropout in [0, 1), got {self.rank}, {self.alpha}, {self.dropout}"
            )
        if not self.parts or len(set(self.parts)) < len(self.parts):
            raise ConfigError(f"parts must be some of q, k, v, each once, got {list(self.parts)}")

    @property
    def scale(self) -> float:
        """α / √r."""
        return self.alpha / math.sqrt(self.rank)


def block_numbers(count: int, blocks: Blocks) -> Sequence[int]:
    """Which of `count` blocks are meant: thirds and halves from the bottom, rounded up. Raises `ConfigError` for none."""
    third, half = -(-count // 3), -(-count // 2)
    ranges = {
        "all": (0, count),
        "bottom": (0, third),
        "middle": (third, count - third),
        "top": (count - third, count),
        "lower half": (0, half),
        "upper half": (count - half, count),
        "top 3": (max(0, count - 3), count),
    }
    if not (numbers := range(*ranges[blocks])):
        raise ConfigError(f"lora.blocks={blocks} has none of the {count} blocks: set lora.blocks=all")
    return numbers


@dataclass(frozen=True)
class Prompting:
    """Vectors that are learned beside a tower's tokens: how many in each tower, and before how many blocks new ones."""

    text: int  # in the places of the first of `words`; 0: none
    image: int  # after the patches; 0: none
    depth: int  # J
    words: str = ""  # the text's first vectors start from them, words without a vector stay; none: at random
    coupled: bool = False  # a block's image vectors are a linear map of its text vectors

    def __post_init__(self):
        if min(self.text, self.image) < 0 or not self.text + self.image or self.depth < 1:
            raise ConfigError(
                f"text={self.text} and image={self.image} vectors are at least 0, one of them and depth={self.depth} 1"
            )
        if max(self.text, self.image) > 1_000:
            raise ConfigError(f"text and image vectors must be at most 1000 each, got {self.text} and {self.image}")
        if self.coupled and self.text != self.image:
            raise ConfigError(
                f"coupled image vectors are made of the text's, one of each: {self.image} of {self.text} can't be; give "
                "both one number, or set coupled=false"
            )

    def check(self, config: CLIPConfig) -> None:
        """Raises `ConfigError` for towers that can't take them."""
        if self.image and not isinstance(config.vision, PatchTower):
            raise ConfigError(
                "image vectors stand beside the patches of a vision transformer, and this model's image tower is none: "
                "take another model, or learn text vectors alone (image=0, coupled=false)"
            )
        for number, name, tower in ((self.image, "image", config.vision), (self.text, "text", config.text)):
            if number and self.depth > tower.layers:
                raise ConfigError(
                    f"depth must be at most {tower.layers}, the blocks of the {name} tower, got {self.depth}"
                )
