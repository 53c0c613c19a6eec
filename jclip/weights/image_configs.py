"""Image towers as data: one frozen dataclass for each kind, and the table of kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from jclip.errors import ConfigError
from jclip.readers.schema import FLAG, SIDE, obey, one_of, several, whole
from jclip.weights.mobile_configs import MobileConfig
from jclip.weights.patch_tower import PatchTower
from jclip.weights.perception_configs import PerceptionConfig
from jclip.weights.tower_sizes import (
    EPSILON,
    HEADS,
    LAYERS,
    Activation,
    check_heads,
    tower_from_table,
    without_defaults,
)

_FLAGS = ("swiglu", "sub_norm", "rope", "post_norm", "rms_norm", "bias")


@dataclass(frozen=True)
class ViTConfig(PatchTower):
    """OpenAI's and open_clip's vision transformer."""

    layer_scale: bool = False  # each branch multiplied by a learned vector, `ls_1.gamma` and `ls_2.gamma`
    proj_bias: bool = False  # of the projection: towers that open_clip takes from timm have one
    kind: str = "vit"

    def __post_init__(self) -> None:
        super().__post_init__()
        obey(vars(self), {"layer_scale": FLAG, "proj_bias": FLAG, "kind": one_of("vit")}, "vision")


@dataclass(frozen=True)
class EVAConfig(PatchTower):
    """EVA-CLIP's vision transformer. Sun et al., arXiv 2303.15389 and 2402.04252."""

    swiglu: bool = False  # MLP: W3 LN(SiLU(W1 x) * (W2 x)) instead of W2 GELU(W1 x)
    sub_norm: bool = False  # q, k, v apart, and a norm between attention and its output projection
    rope: bool = False  # rotary positions on the patches' q and k
    post_norm: bool = False  # x + norm(f(x)) instead of x + f(norm(x))
    rms_norm: bool = False
    bias: bool = True  # of q, v and head; k has none, all else always
    norm_eps: float = 1e-6
    rope_grid: int = 16  # side of the grid in pre-training, to which rotary positions are scaled
    kind: str = "eva"

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = dict.fromkeys(_FLAGS, FLAG) | {"norm_eps": EPSILON, "rope_grid": SIDE, "kind": one_of("eva")}
        obey(vars(self), rules, "vision")
        if self.rope and self.width // self.heads % 4:
            width = self.width // self.heads
            raise ConfigError(f"vision.rope needs heads whose width is a multiple of 4, got heads of width {width}")


@dataclass(frozen=True)
class ResNetConfig:
    """CLIP's modified ResNet: three-convolution stem, anti-aliased strides, attention pool."""

    image_size: tuple[int, int]  # H, W in pixels
    width: int
    layers: tuple[int, int, int, int]
    heads: int
    kind: str = "resnet"

    def __post_init__(self) -> None:
        rules = {"image_size": several(whole(32, 8192), 2), "width": whole(2, 4096), "heads": HEADS}
        obey(vars(self), {**rules, "layers": several(LAYERS, 4), "kind": one_of("resnet")}, "vision")
        check_heads(self.heads, self.output_width, "vision", "the last feature map's width")

    @property
    def grid(self) -> tuple[int, int]:
        """Cells of the last feature map along H and W."""
        return self.image_size[0] // 32, self.image_size[1] // 32

    @property
    def output_width(self) -> int:
        """Channels of the last feature map."""
        return 32 * self.width


@dataclass(frozen=True)
class SigLIPImageConfig(PatchTower):
    """SigLIP's vision transformer: no class token; one learned query attends to the patches, and an MLP follows.

    Zhai et al., 2023, arXiv 2303.15343; Tschannen et al., 2025, arXiv 2502.14786. There is no projection: embeddings are as
    wide as the tower. Pixels beyond the last whole patch are not seen (384 by patches of 14).
    """

    activation: Activation = "gelu_tanh"
    norm_eps: float = 1e-6
    any_shape: bool = False  # photos of any proportions: positions are resampled to each one's patches (NaFlex)
    kind: str = "siglip"

    class_tokens: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {"activation": one_of(*get_args(Activation)), "norm_eps": EPSILON, "kind": one_of("siglip")}
        obey(vars(self), {**rules, "any_shape": FLAG}, "vision")


AnyImage = ViTConfig | ResNetConfig | EVAConfig | SigLIPImageConfig | PerceptionConfig | MobileConfig
IMAGE_KINDS: dict[str, type] = {
    "vit": ViTConfig,
    "resnet": ResNetConfig,
    "eva": EVAConfig,
    "siglip": SigLIPImageConfig,
    "pe": PerceptionConfig,
    "mobile": MobileConfig,
}


def image_from_table(values: Any) -> AnyImage:
    """Return the image tower of a table, of the kind that it names; CLIP's ViT without one. Raises `ConfigError`."""
    obey(values, {"kind": one_of(*IMAGE_KINDS)}, "vision")
    return tower_from_table(IMAGE_KINDS[values.get("kind", "vit")], values, "vision")


def image_to_table(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of an image tower as files hold them, without the keys that older ones lack."""
    newer = {"vit": {"proj_bias": False}, "siglip": {"any_shape": False}}
    return without_defaults(values, newer.get(values["kind"], {}))
