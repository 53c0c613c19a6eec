"""What the configurations of vision transformers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jclip.errors import ConfigError
from jclip.readers.schema import SIDE, Condition, obey, several
from jclip.weights.tower_sizes import BLOCKS, HEADS, HIDDEN, PATCH, WIDTH, check_heads

_MOST_PATCHES = 1 << 16
_PATCHES: dict[str, Condition] = {
    "image_size": several(SIDE, 2), "patch_size": PATCH, "width": WIDTH, "layers": BLOCKS, "heads": HEADS,
    "mlp_width": HIDDEN,
}  # fmt: skip


@dataclass(frozen=True)
class PatchTower:
    """What vision transformers share: patches and learned positions, those of a class token first where there is one."""

    image_size: tuple[int, int]  # H, W in pixels
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int

    class_tokens: ClassVar[int] = 1  # before the patches

    def __post_init__(self) -> None:
        obey(vars(self), _PATCHES, "vision")
        check_heads(self.heads, self.width, "vision")
        if self.patch_size > min(self.image_size):
            H, W = self.image_size
            raise ConfigError(f"vision.patch_size must fit image_size ({H}, {W}), got {self.patch_size}")
        if (count := self.grid[0] * self.grid[1]) > _MOST_PATCHES:
            raise ConfigError(
                f"vision.image_size and patch_size must make at most {_MOST_PATCHES:,} patches, got {count:,}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches along H and W."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size
