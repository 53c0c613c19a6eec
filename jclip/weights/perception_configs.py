"""The image towers of Perception Encoder as data. Bolya et al., 2025, arXiv 2504.13181."""

from __future__ import annotations

from dataclasses import dataclass

from jclip.errors import ConfigError
from jclip.readers.schema import FLAG, SIDE, obey, one_of, several
from jclip.weights.patch_tower import PatchTower
from jclip.weights.tower_sizes import HEADS, HIDDEN, check_heads


@dataclass(frozen=True)
class PerceptionConfig(PatchTower):
    """PE-Core's vision transformer: rotary positions beside the learned ones, a pool by attention over all tokens."""

    pool_heads: int = 8
    pool_mlp_width: int = 0  # four times `width` where it is 0
    class_token: bool = True  # one more token that the pool reads; G has none
    rope_grid: tuple[int, int] = (0, 0)  # H, W of the grid in pre-training, to which rotary positions are scaled
    layer_scale: bool = False  # each branch multiplied by a learned vector, `ls_1.gamma` and `ls_2.gamma`
    proj_bias: bool = False  # of the projection: open_clip's files have one, the authors' none
    kind: str = "pe"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pool_mlp_width:
            object.__setattr__(self, "pool_mlp_width", 4 * self.width)
        if self.rope_grid == (0, 0):
            object.__setattr__(self, "rope_grid", self.grid)
        rules = {
            "pool_heads": HEADS,
            "pool_mlp_width": HIDDEN,
            "class_token": FLAG,
            "proj_bias": FLAG,
            "layer_scale": FLAG,
        }
        obey(vars(self), {**rules, "rope_grid": several(SIDE, 2), "kind": one_of("pe")}, "vision")
        check_heads(self.pool_heads, self.width, "vision.pool")
        if (own := self.width // self.heads) % 4:
            raise ConfigError(f"vision.heads must give heads whose width is a multiple of 4, got heads of width {own}")

    @property
    def class_tokens(self) -> int:  # type: ignore[override]
        """Number of tokens before the patches."""
        return int(self.class_token)
