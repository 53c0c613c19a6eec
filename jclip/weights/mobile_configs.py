"""The image tower of MobileCLIP's and MobileCLIP 2's B as data.

Vasu et al., CVPR 2024, arXiv 2311.17049; Faghri et al., 2025, arXiv 2508.20691.
"""

from __future__ import annotations

from dataclasses import dataclass

from jclip.errors import ConfigError
from jclip.readers.schema import FLAG, obey, one_of
from jclip.weights.patch_tower import PatchTower
from jclip.weights.tower_sizes import EPSILON

STEM_STRIDES = (4, 2, 2)  # three convolutions whose strides are their kernels
APPLE_EPS, TIMM_EPS = 1e-5, 1e-6  # of the norms: in Apple's own code, in timm's and so open_clip's
STEM_NARROWER = 4  # the first two are a quarter as wide as the tower


@dataclass(frozen=True)
class MobileConfig(PatchTower):
    """A vision transformer whose patches come from three convolutions; no norm before its blocks."""

    proj_bias: bool = False  # of the projection: open_clip's files have one, Apple's own none
    norm_eps: float = APPLE_EPS
    layer_scale: bool = False
    kind: str = "mobile"

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {"proj_bias": FLAG, "layer_scale": FLAG, "norm_eps": EPSILON, "kind": one_of("mobile")}
        obey(vars(self), rules, "vision")
        if self.patch_size != 16 or self.width % STEM_NARROWER:
            raise ConfigError(
                "vision must have patch_size 16, the strides of its convolutions, and a width that is a multiple of "
                f"{STEM_NARROWER}, got {self.patch_size} and {self.width}"
            )
