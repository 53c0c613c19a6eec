"""The image tower of MobileCLIP's and MobileCLIP 2's B as data.

Vasu et al., CVPR 2024, arXiv 2311.17049; Faghri et al., 2025, arXiv 2508.20691.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jclip.errors import ConfigError
from jclip.readers.schema import FLAG, obey, one_of
from jclip.weights.patch_tower import PatchTower
from jclip.weights.tower_sizes import EPSILON

STEM_STRIDES = (4, 2, 2)  # three convolutions whose strides are their kernels
APPLE_EPS, TIMM_EPS = 1e-5, 1e-6  # of the norms: in Apple's own code, in timm's and so open_clip's
APPLE_PADDING = 1  # pixels, of the first convolution: in Apple's own code; timm and open_clip have none
STEM_NARROWER = 4  # the first two are a quarter as wide as the tower


@dataclass(frozen=True)
class MobileConfig(PatchTower):
    """A vision transformer whose patches come from three convolutions; no norm before its blocks."""

    proj_bias: bool = False  # of the projection: open_clip's files have one, Apple's own none
    norm_eps: float = APPLE_EPS
    layer_scale: bool = False
    stem_padding: int = 0
    kind: str = "mobile"

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {"proj_bias": FLAG, "layer_scale": FLAG, "norm_eps": EPSILON, "kind": one_of("mobile")}
        rules["stem_padding"] = one_of(0, APPLE_PADDING)
        obey(vars(self), rules, "vision")
        if self.patch_size != 16 or self.width % STEM_NARROWER:
            raise ConfigError(
                "vision must have patch_size 16, the strides of its convolutions, and a width that is a multiple of "
                f"{STEM_NARROWER}, got {self.patch_size} and {self.width}"
            )


def as_apple(tower: MobileConfig) -> MobileConfig:
    """Return a tower as Apple's own code computes it."""
    return replace(tower, norm_eps=APPLE_EPS, stem_padding=APPLE_PADDING)


def as_timm(tower: MobileConfig) -> MobileConfig:
    """Return a tower as timm computes it, and so open_clip."""
    return replace(tower, norm_eps=TIMM_EPS, stem_padding=0)
