"""Architectures as data: frozen configurations, one row for each of OpenAI's nine models and each shipped one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_args

from jclip.errors import ConfigError, UnknownName
from jclip.readers.schema import FLAG, obey, one_of, refuse_unknown
from jclip.weights.chinese_variants import CHINESE_TOWERS
from jclip.weights.image_configs import (
    AnyImage,
    EVAConfig,
    PatchTower,
    ResNetConfig,
    SigLIPImageConfig,
    ViTConfig,
    image_from_table,
    image_to_table,
)
from jclip.weights.mobile_configs import MobileConfig, as_apple
from jclip.weights.perception_configs import PerceptionConfig
from jclip.weights.recent_architectures import MOBILE, PERCEPTION, WITH_SIZE, WITH_TEXT
from jclip.weights.siglip_variants import SIGLIP_TOWERS
from jclip.weights.text_configs import AnyText, SigLIPTextConfig, TextConfig, text_from_table, text_to_table
from jclip.weights.tower_sizes import EPSILON, WIDTH, Activation, without_defaults


@dataclass(frozen=True)
class CLIPConfig:
    """Two towers and their shared space; of an export of one tower the other is None.

    `activation` is not visible in the weights, so it is never guessed. It and `norm_eps` are those of both towers, except
    of those that have their own (EVA's, SigLIP's, BERT). `sigmoid`: the pair was trained with the sigmoid loss, and has a
    bias of its logits; it is the sigmoid of such a logit that says whether an image and a text belong together.
    """

    embed_dim: int
    vision: AnyImage | None
    text: AnyText | None
    activation: Activation = "quickgelu"
    norm_eps: float = 1e-5
    sigmoid: bool = False

    def __post_init__(self) -> None:
        rules = {"embed_dim": WIDTH, "activation": one_of(*get_args(Activation)), "norm_eps": EPSILON, "sigmoid": FLAG}
        obey(vars(self), rules)
        if isinstance(self.vision, SigLIPImageConfig) and self.vision.width != self.embed_dim:
            raise ConfigError(f"embed_dim must be SigLIP's vision.width {self.vision.width}, got {self.embed_dim}")
        if isinstance(t := self.text, SigLIPTextConfig) and not t.projection and t.width != self.embed_dim:
            raise ConfigError(f"embed_dim must be text.width {t.width} without text.projection, got {self.embed_dim}")

    def feature_width(self, penultimate: bool = False) -> int:
        """Return the dimension of an image feature: E, or D before the projection. Raises `ConfigError` for a tower
        without one."""
        if not penultimate:
            return self.embed_dim
        if isinstance(self.vision, SigLIPImageConfig):
            raise ConfigError("SigLIP's image tower has no projection: take features=projected, which are its own")
        if not isinstance(self.vision, PatchTower):
            raise ConfigError("only vision transformers have features before their projection: take projected ones")
        return self.vision.width

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; `from_dict` is the inverse."""
        values = without_defaults(asdict(self), {"sigmoid": False})
        for key, table in (("vision", image_to_table), ("text", text_to_table)):
            values[key] = table(values[key]) if values[key] else None
        return values

    @staticmethod
    def from_dict(values: dict[str, Any]) -> CLIPConfig:
        """Return the configuration of `to_dict`'s values. Raises `ConfigError`, which names the key, for anything
        else."""
        obey(values, {"embed_dim": WIDTH}, needed=("embed_dim",))
        refuse_unknown(values, [field.name for field in fields(CLIPConfig)], "it")
        towers = {name: values.get(name) for name in ("vision", "text")}
        if towers["vision"] is None and towers["text"] is None:
            raise ConfigError("vision and text must not both be absent")
        vision = None if towers["vision"] is None else image_from_table(towers["vision"])
        text = None if towers["text"] is None else text_from_table(towers["text"])
        return CLIPConfig(**{**values, "vision": vision, "text": text})


def vit(embed: int, image: int, patch: int, layers: int, width: int, text_width: int) -> CLIPConfig:
    """Return a ViT with OpenAI's proportions: heads of width 64, MLP four times as wide, twelve text layers."""
    return CLIPConfig(
        embed_dim=embed,
        vision=ViTConfig((image, image), patch, width, layers, heads=width // 64, mlp_width=4 * width),
        text=TextConfig(text_width, heads=text_width // 64, layers=12, mlp_width=4 * text_width),
    )


def resnet(embed: int, image: int, layers: tuple[int, int, int, int], width: int, text_width: int) -> CLIPConfig:
    """Return a ResNet with OpenAI's proportions: attention pool of width 32 * `width` with heads of 64."""
    return CLIPConfig(
        embed_dim=embed,
        vision=ResNetConfig((image, image), width, layers, heads=width * 32 // 64),
        text=TextConfig(text_width, heads=text_width // 64, layers=12, mlp_width=4 * text_width),
    )


VARIANTS: dict[str, CLIPConfig] = {
    "RN50": resnet(1024, 224, (3, 4, 6, 3), 64, 512),
    "RN101": resnet(512, 224, (3, 4, 23, 3), 64, 512),
    "RN50x4": resnet(640, 288, (4, 6, 10, 6), 80, 640),
    "RN50x16": resnet(768, 384, (6, 8, 18, 8), 96, 768),
    "RN50x64": resnet(1024, 448, (3, 15, 36, 10), 128, 1024),
    "ViT-B/32": vit(512, 224, 32, 12, 768, 512),
    "ViT-B/16": vit(512, 224, 16, 12, 768, 512),
    "ViT-L/14": vit(768, 224, 14, 24, 1024, 768),
    "ViT-L/14@336px": vit(768, 336, 14, 24, 1024, 768),
}

_TINY_TEXT = TextConfig(width=96, heads=4, layers=2, mlp_width=384, vocab_size=512 + 1500 + 2)
SHIPPED: dict[str, CLIPConfig] = {  # come inside the package; trained on `jclip.data.shapes`
    "shapes-tiny-rn": CLIPConfig(128, ResNetConfig((64, 64), 16, (1, 2, 2, 1), heads=8), _TINY_TEXT),
    "shapes-tiny-vit": CLIPConfig(128, ViTConfig((64, 64), 8, 128, 6, heads=4, mlp_width=512), _TINY_TEXT),
}


def _open_clip(
    embed: int,
    image: int,
    patch: int,
    layers: int,
    width: int,
    text_width: int,
    *,
    head: int = 64,
    mlp: int = 0,
    text_layers: int = 12,
    layer_scale: bool = False,
) -> CLIPConfig:
    """Return a row of open_clip's: `head` is the width of an image head, `mlp` the hidden width (four times `width`
    by default)."""
    tower = ViTConfig((image, image), patch, width, layers, width // head, mlp or 4 * width, layer_scale)
    text = TextConfig(text_width, text_width // 64, text_layers, 4 * text_width)
    return CLIPConfig(embed, tower, text, activation="gelu")


def _eva(embed: int, tower: EVAConfig, text_width: int, text_layers: int = 12) -> CLIPConfig:
    return CLIPConfig(embed, tower, TextConfig(text_width, text_width // 64, text_layers, 4 * text_width), "gelu")


_GATED = {"swiglu": True, "sub_norm": True, "rope": True}
_BILLIONS = {"rms_norm": True, "bias": False}


def _long(config: CLIPConfig) -> CLIPConfig:
    """Return CLIP's towers with Long-CLIP's context."""
    return replace(config, text=replace(config.text, context_length=248))


# open_clip's and EVA's names of further architectures; weights of one shape differ in activation and normalisation.
ARCHITECTURES: dict[str, CLIPConfig] = {
    "ViT-S-32": _open_clip(384, 224, 32, 12, 384, 384),
    "ViT-S-16": _open_clip(384, 224, 16, 12, 384, 384),
    "ViT-S-32-alt": _open_clip(256, 224, 32, 12, 384, 256, text_layers=10),
    "ViT-S-16-alt": _open_clip(256, 224, 16, 12, 384, 256, text_layers=10),
    "ViT-M-32": _open_clip(512, 224, 32, 12, 512, 512),
    "ViT-M-16": _open_clip(512, 224, 16, 12, 512, 512),
    "ViT-M-32-alt": _open_clip(384, 224, 32, 12, 512, 384),
    "ViT-M-16-alt": _open_clip(384, 224, 16, 12, 512, 384, layer_scale=True),
    "ViT-B-32-256": _open_clip(512, 256, 32, 12, 768, 512),
    "ViT-B-32-plus-256": _open_clip(640, 256, 32, 12, 896, 640),
    "ViT-B-16-plus": _open_clip(640, 224, 16, 12, 896, 640),
    "ViT-B-16-plus-240": _open_clip(640, 240, 16, 12, 896, 640),
    "ViT-L-14-280": _open_clip(768, 280, 14, 24, 1024, 768),
    "ViT-L-16": _open_clip(768, 224, 16, 24, 1024, 768),
    "ViT-L-16-320": _open_clip(768, 320, 16, 24, 1024, 768),
    "ViT-H-14": _open_clip(1024, 224, 14, 32, 1280, 1024, head=80, text_layers=24),
    "ViT-H-14-378": _open_clip(1024, 378, 14, 32, 1280, 1024, head=80, text_layers=24),
    "ViT-H-16": _open_clip(1024, 224, 16, 32, 1280, 1024, head=80, text_layers=24),
    "ViT-g-14": _open_clip(1024, 224, 14, 40, 1408, 1024, head=88, mlp=6144, text_layers=24),
    "ViT-bigG-14": _open_clip(1280, 224, 14, 48, 1664, 1280, head=104, mlp=8192, text_layers=32),
    "ViT-e-14": _open_clip(1280, 224, 14, 56, 1792, 1280, head=112, mlp=15360, text_layers=36),
    "EVA02-B-16": _eva(512, EVAConfig((224, 224), 16, 768, 12, 12, 2048, **_GATED), 512),
    "EVA02-L-14": _eva(768, EVAConfig((224, 224), 14, 1024, 24, 16, 2730, **_GATED), 768),
    "EVA02-L-14-336": _eva(768, EVAConfig((336, 336), 14, 1024, 24, 16, 2730, **_GATED), 768),
    "EVA02-E-14": _eva(1024, EVAConfig((224, 224), 14, 1792, 64, 16, 15360, post_norm=True), 1024, 24),
    "EVA02-E-14-plus": _eva(1024, EVAConfig((224, 224), 14, 1792, 64, 16, 15360, post_norm=True), 1280, 32),
    "EVA-CLIP-8B": _eva(1280, EVAConfig((224, 224), 14, 4096, 32, 32, 20480, **_BILLIONS), 1280, 32),
    "EVA-CLIP-8B-448": _eva(1280, EVAConfig((448, 448), 14, 4096, 32, 32, 20480, **_BILLIONS), 1280, 32),
    "EVA-CLIP-18B": _eva(
        1536, EVAConfig((224, 224), 14, 5120, 48, 40, 25600, post_norm=True, **_BILLIONS), 1280, 32
    ),
    **{
        name: CLIPConfig(vision.width, vision, text, "gelu_tanh", vision.norm_eps, sigmoid=True)
        for name, (vision, text) in SIGLIP_TOWERS.items()
    },
    **{name: CLIPConfig(embed, vision, text) for name, (embed, vision, text) in CHINESE_TOWERS.items()},
    **{f"LongCLIP-{size}": _long(VARIANTS[name]) for size, name in (("B-16", "ViT-B/16"), ("L-14", "ViT-L/14"))},
}  # fmt: skip
ARCHITECTURES |= {name: CLIPConfig(*row, "gelu") for name, row in {**PERCEPTION, **MOBILE}.items()}
for _name, (_known, _text) in WITH_TEXT.items():
    ARCHITECTURES[_name] = replace({**VARIANTS, **ARCHITECTURES}[_known], text=_text, activation="gelu")
for _name, (_known, _side) in WITH_SIZE.items():
    _vision = replace(ARCHITECTURES[_known].vision, image_size=(_side, _side))
    ARCHITECTURES[_name] = replace(ARCHITECTURES[_known], vision=_vision)


def architecture_name(config: CLIPConfig) -> str | None:
    """Return the name of these towers, whatever their activation."""
    wanted = _towers(config)
    for name, known in {**VARIANTS, **ARCHITECTURES}.items():
        if _towers(known) == wanted:
            return name
    return None


def _towers(config: CLIPConfig) -> tuple:
    """Return what a name stands for, without what differs between libraries: activations of SigLIP's towers, a bias of
    the projection, MobileCLIP's epsilon and padding."""
    own = (SigLIPImageConfig, SigLIPTextConfig)
    image, text = (
        replace(t, activation="gelu_tanh") if isinstance(t, own) else t for t in (config.vision, config.text)
    )
    if isinstance(image, (ViTConfig, PerceptionConfig, MobileConfig)):
        image = replace(image, proj_bias=False)
    return config.embed_dim, as_apple(image) if isinstance(image, MobileConfig) else image, text


def slug(name: str) -> str:
    """Return a name fit for files and configs: `ViT-L/14@336px` → `vit_l14_336`, `RN50x4` → `rn50x4`."""
    family, _, rest = name.lower().replace("px", "").partition("-")
    letters = rest.replace("/", "").replace("-", "").replace("@", "_")
    return f"{family}_{letters}" if rest else family


def canonical_name(name: str) -> str:
    """Return the name as OpenAI writes it, for `ViT-B/32`, `ViT-B-32`, `vit_b32` alike. Raises `UnknownName`."""
    if name in SHIPPED:
        return name
    for known in VARIANTS:
        if name in (known, file_stem(known)) or name.lower() in (known.lower(), slug(known)):
            return known
    raise UnknownName("model", name, [*SHIPPED, *VARIANTS])


def config_of(name: str) -> CLIPConfig:
    """Return the architecture of that name. Raises `UnknownName`."""
    name = canonical_name(name)
    return SHIPPED.get(name) or VARIANTS[name]


def file_stem(name: str) -> str:
    """Return the name of OpenAI's weight file without its ending: `ViT-L/14@336px` → `ViT-L-14-336px`."""
    return name.replace("/", "-").replace("@", "-")
