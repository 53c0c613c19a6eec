"""SigLIP's and SigLIP 2's architectures by open_clip's names, and timm's names of their image towers."""

from __future__ import annotations

from dataclasses import replace

from jclip.weights.image_configs import SigLIPImageConfig
from jclip.weights.text_configs import SigLIPTextConfig

C4, MC4, GEMMA = 32000, 250000, 256000  # vocabularies: English, multilingual, SigLIP 2's
_SO400M = 4304  # width of the MLPs, 3.7362 times 1152
_SIZES = {  # of an image tower: width, layers, heads, width of the MLPs
    "B": (768, 12, 12, 3072), "L": (1024, 24, 16, 4096), "SO400M": (1152, 27, 16, _SO400M), "gopt": (1536, 40, 16, 6144),
}  # fmt: skip
_TEXTS = {  # of a text tower: width, heads, layers, width of the MLPs
    "B": (768, 12, 12, 3072), "L": (1024, 16, 24, 4096), "SO400M": (1152, 16, 27, _SO400M),
}  # fmt: skip


def _image(size: str, patch: int, side: int) -> SigLIPImageConfig:
    width, layers, heads, hidden = _SIZES[size]
    return SigLIPImageConfig((side, side), patch, width, layers, heads, hidden)


def _text(size: str, vocabulary: int, context: int = 64, projection: bool = True) -> SigLIPTextConfig:
    return SigLIPTextConfig(*_TEXTS[size], context, vocabulary, projection)


SIGLIP_TOWERS: dict[str, tuple[SigLIPImageConfig, SigLIPTextConfig]] = {
    "ViT-B-16-SigLIP": (_image("B", 16, 224), _text("B", C4)),
    "ViT-B-16-SigLIP-256": (_image("B", 16, 256), _text("B", C4)),
    "ViT-B-16-SigLIP-i18n-256": (_image("B", 16, 256), _text("B", MC4)),
    "ViT-B-16-SigLIP-384": (_image("B", 16, 384), _text("B", C4)),
    "ViT-B-16-SigLIP-512": (_image("B", 16, 512), _text("B", C4)),
    "ViT-L-16-SigLIP-256": (_image("L", 16, 256), _text("L", C4)),
    "ViT-L-16-SigLIP-384": (_image("L", 16, 384), _text("L", C4)),
    "ViT-SO400M-14-SigLIP": (_image("SO400M", 14, 224), _text("SO400M", C4, context=16)),
    "ViT-SO400M-14-SigLIP-378": (_image("SO400M", 14, 378), _text("SO400M", C4)),
    "ViT-SO400M-14-SigLIP-384": (_image("SO400M", 14, 384), _text("SO400M", C4)),
    "ViT-SO400M-16-SigLIP-i18n-256": (_image("SO400M", 16, 256), _text("SO400M", MC4, projection=False)),
    "ViT-B-32-SigLIP2-256": (_image("B", 32, 256), _text("B", GEMMA)),
    "ViT-B-16-SigLIP2": (_image("B", 16, 224), _text("B", GEMMA)),
    "ViT-B-16-SigLIP2-256": (_image("B", 16, 256), _text("B", GEMMA)),
    "ViT-B-16-SigLIP2-384": (_image("B", 16, 384), _text("B", GEMMA)),
    "ViT-B-16-SigLIP2-512": (_image("B", 16, 512), _text("B", GEMMA)),
    "ViT-L-16-SigLIP2-256": (_image("L", 16, 256), _text("L", GEMMA)),
    "ViT-L-16-SigLIP2-384": (_image("L", 16, 384), _text("L", GEMMA)),
    "ViT-L-16-SigLIP2-512": (_image("L", 16, 512), _text("L", GEMMA)),
    "ViT-SO400M-14-SigLIP2": (_image("SO400M", 14, 224), _text("SO400M", GEMMA)),
    "ViT-SO400M-14-SigLIP2-378": (_image("SO400M", 14, 378), _text("SO400M", GEMMA)),
    "ViT-SO400M-14-SigLIP2-384": (
        _image("SO400M", 14, 384),
        _text("SO400M", GEMMA),
    ),  # Hugging Face's; 378 is open_clip's
    "ViT-SO400M-16-SigLIP2-256": (_image("SO400M", 16, 256), _text("SO400M", GEMMA)),
    "ViT-SO400M-16-SigLIP2-384": (_image("SO400M", 16, 384), _text("SO400M", GEMMA)),
    "ViT-SO400M-16-SigLIP2-512": (_image("SO400M", 16, 512), _text("SO400M", GEMMA)),
    **{
        f"ViT-{size}-16-SigLIP2-NaFlex": (replace(_image(size, 16, 256), any_shape=True), _text(size, GEMMA))
        for size in ("B", "SO400M")
    },  # Hugging Face's, for photos of any proportions
    "ViT-gopt-16-SigLIP2-256": (_image("gopt", 16, 256), _text("SO400M", GEMMA)),
    "ViT-gopt-16-SigLIP2-384": (_image("gopt", 16, 384), _text("SO400M", GEMMA)),
}
_TIMM = {  # timm's name without the side → size, patch
    "vit_base_patch32_siglip": ("B", 32), "vit_base_patch16_siglip": ("B", 16), "vit_large_patch16_siglip": ("L", 16),
    "vit_so400m_patch14_siglip": ("SO400M", 14), "vit_so400m_patch16_siglip": ("SO400M", 16),
    "vit_giantopt_patch16_siglip": ("gopt", 16),
}  # fmt: skip
_EXACT = {  # sides of the towers in which timm computes GELU exactly, though SigLIP was trained with its tanh form
    ("B", 16): (224, 256, 384, 512), ("L", 16): (256, 384), ("SO400M", 14): (224, 378, 384),
}  # fmt: skip
_OTHERS = {("B", 32): (256,), ("L", 16): (512,), ("SO400M", 16): (256, 384, 512), ("gopt", 16): (256, 384)}


def _of_timm() -> dict[str, SigLIPImageConfig]:
    found = {}
    for name, of in _TIMM.items():
        for sides, activation in ((_EXACT, "gelu"), (_OTHERS, "gelu_tanh")):
            for side in sides.get(of, ()):
                found[f"{name}_{side}"] = replace(_image(*of, side), activation=activation)
    return found


SIGLIP_TIMM: dict[str, SigLIPImageConfig] = _of_timm()
