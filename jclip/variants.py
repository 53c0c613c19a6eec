"""Architectures as data: frozen configurations, one row for each of OpenAI's nine models and each one that ships."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from jclip.errors import ConfigError, UnknownName

Activation = Literal["quickgelu", "gelu"]

FAMILIES = {  # what the weights don't show: activation; normalisation and resize mode are OpenAI's in all of these
    "openai": "quickgelu",
    "metaclip": "quickgelu",
    "dfn2b": "quickgelu",
    "openclip": "gelu",
}


@dataclass(frozen=True)
class ViTConfig:
    """A vision transformer: patches, class token, learned positions."""

    image_size: tuple[int, int]  # H, W in pixels
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    kind: str = "vit"

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along H and W."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


@dataclass(frozen=True)
class ResNetConfig:
    """CLIP's modified ResNet: three-convolution stem, anti-aliased strides, attention pool."""

    image_size: tuple[int, int]  # H, W in pixels
    width: int
    layers: tuple[int, int, int, int]
    heads: int
    kind: str = "resnet"

    @property
    def grid(self) -> tuple[int, int]:
        """Cells of the last feature map along H and W."""
        return self.image_size[0] // 32, self.image_size[1] // 32

    @property
    def output_width(self) -> int:
        """Channels of the last feature map."""
        return 32 * self.width


@dataclass(frozen=True)
class TextConfig:
    """A causal text transformer, read at the end-of-text token."""

    width: int
    heads: int
    layers: int
    mlp_width: int
    context_length: int = 77
    vocab_size: int = 49408


@dataclass(frozen=True)
class CLIPConfig:
    """Two towers and the space they share. `activation` is not visible in the weights, so it is never guessed."""

    embed_dim: int
    vision: ViTConfig | ResNetConfig
    text: TextConfig
    activation: Activation = "quickgelu"
    norm_eps: float = 1e-5

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `from_dict` reads them back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> CLIPConfig:
        """The inverse of `to_dict`. Raises `ConfigError` for keys or kinds it doesn't know."""
        try:
            vision = dict(values["vision"])
            tower = {"vit": ViTConfig, "resnet": ResNetConfig}[vision.get("kind", "vit")]
            listed = {k: tuple(v) if isinstance(v, list) else v for k, v in vision.items()}
            rest = {k: v for k, v in values.items() if k not in ("vision", "text")}
            return CLIPConfig(vision=tower(**listed), text=TextConfig(**values["text"]), **rest)
        except (KeyError, TypeError, ValueError) as e:
            raise ConfigError(f"not a description of a CLIP model: {e}") from e


def vit(embed: int, image: int, patch: int, layers: int, width: int, text_width: int) -> CLIPConfig:
    """OpenAI's proportions: heads of width 64, MLP four times as wide, twelve text layers."""
    return CLIPConfig(
        embed_dim=embed,
        vision=ViTConfig((image, image), patch, width, layers, heads=width // 64, mlp_width=4 * width),
        text=TextConfig(text_width, heads=text_width // 64, layers=12, mlp_width=4 * text_width),
    )


def resnet(embed: int, image: int, layers: tuple[int, int, int, int], width: int, text_width: int) -> CLIPConfig:
    """OpenAI's proportions: attention pool of width 32 * `width` with heads of 64."""
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


def parameter_shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all parameters and statistics of `CLIP(config)`, in OpenAI's names, without making it."""
    v, t = config.vision, config.text
    image = _resnet_shapes(v, config.embed_dim) if isinstance(v, ResNetConfig) else _vit_shapes(v, config.embed_dim)
    text = {
        "token_embedding.weight": (t.vocab_size, t.width),
        "positional_embedding": (t.context_length, t.width),
        **_transformer_shapes("transformer", t.layers, t.width, t.mlp_width),
        **_affine("ln_final", t.width),
        "text_projection": (t.width, config.embed_dim),
        "logit_scale": (1,),
    }
    return {**{f"visual.{k}": shape for k, shape in image.items()}, **text}


def _affine(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _transformer_shapes(name: str, layers: int, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for block in (f"{name}.resblocks.{i}" for i in range(layers)):
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= _linear(f"{block}.attn.out_proj", width, width) | _affine(f"{block}.ln_1", width)
        shapes |= _linear(f"{block}.mlp.c_fc", width, hidden) | _linear(f"{block}.mlp.c_proj", hidden, width)
        shapes |= _affine(f"{block}.ln_2", width)
    return shapes


def _vit_shapes(v: ViTConfig, embed: int) -> dict[str, tuple[int, ...]]:
    return {
        "conv1.weight": (v.width, 3, v.patch_size, v.patch_size),
        "class_embedding": (v.width,),
        "positional_embedding": (1 + v.grid[0] * v.grid[1], v.width),
        **_affine("ln_pre", v.width),
        **_transformer_shapes("transformer", v.layers, v.width, v.mlp_width),
        **_affine("ln_post", v.width),
        "proj": (v.width, embed),
    }


def _resnet_shapes(v: ResNetConfig, embed: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def convolve(conv: str, norm: str, inputs: int, outputs: int, size: int) -> None:
        shapes[f"{conv}.weight"] = (outputs, inputs, size, size)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{kind}"] = (outputs,)

    widths = (3, v.width // 2, v.width // 2, v.width)
    for i in (1, 2, 3):
        convolve(f"conv{i}", f"bn{i}", widths[i - 1], widths[i], 3)
    inputs = v.width
    for stage, blocks in enumerate(v.layers, start=1):
        planes = v.width * 2 ** (stage - 1)
        for block in (f"layer{stage}.{i}" for i in range(blocks)):
            convolve(f"{block}.conv1", f"{block}.bn1", inputs, planes, 1)
            convolve(f"{block}.conv2", f"{block}.bn2", planes, planes, 3)
            convolve(f"{block}.conv3", f"{block}.bn3", planes, 4 * planes, 1)
            if block.endswith(".0"):  # it strides or widens
                convolve(f"{block}.downsample.0", f"{block}.downsample.1", inputs, 4 * planes, 1)
            inputs = 4 * planes
    shapes["attnpool.positional_embedding"] = (1 + v.grid[0] * v.grid[1], inputs)
    for part in ("q_proj", "k_proj", "v_proj"):
        shapes |= _linear(f"attnpool.{part}", inputs, inputs)
    return shapes | _linear("attnpool.c_proj", inputs, embed)


def slug(name: str) -> str:
    """A name fit for files and configs: `ViT-L/14@336px` → `vit_l14_336`, `RN50x4` → `rn50x4`."""
    family, _, rest = name.lower().replace("px", "").partition("-")
    letters = rest.replace("/", "").replace("-", "").replace("@", "_")
    return f"{family}_{letters}" if rest else family


def canonical_name(name: str) -> str:
    """The name as OpenAI writes it, for `ViT-B/32`, `ViT-B-32`, `vit_b32` alike. Raises `UnknownName`."""
    if name in SHIPPED:
        return name
    for known in VARIANTS:
        if name in (known, file_stem(known)) or name.lower() in (known.lower(), slug(known)):
            return known
    raise UnknownName("model", name, [*SHIPPED, *VARIANTS])


def config_of(name: str) -> CLIPConfig:
    """The architecture of that name. Raises `UnknownName`."""
    name = canonical_name(name)
    return SHIPPED.get(name) or VARIANTS[name]


def file_stem(name: str) -> str:
    """The name of OpenAI's weight file without its ending: `ViT-L/14@336px` → `ViT-L-14-336px`."""
    return name.replace("/", "-").replace("@", "-")
