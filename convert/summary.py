"""What weights are, in lines for people."""

from __future__ import annotations

import math

from jclip.data.preprocess import Preprocess
from jclip.errors import printable
from jclip.weights.checkpoint import Checkpoint
from jclip.weights.identify import Source
from jclip.weights.image_configs import AnyImage, ResNetConfig, SigLIPImageConfig, ViTConfig
from jclip.weights.text_configs import AnyText
from jclip.weights.variants import architecture_name

UNSAID = "not stated by the weights: set it with --family"


def summary(source: Source, unsaid: bool = False) -> str:
    """Family, architecture, activation, dtype, size and hash, line by line; `unsaid`: nobody stated the family."""
    found = source.checkpoint
    bytes_on_disk = sum(file.stat().st_size for file in found.files)
    dtypes = sorted({tensor.dtype for tensor in found.tensors.values()})
    count = sum(math.prod(t.shape) for k, t in found.tensors.items() if "running_" not in k)
    rows = {
        "layout": source.layout,
        "family": UNSAID if unsaid else found.metadata.get("source_family", "jclip"),
        "architecture": architecture_name(found.config) or "without a name",
        "image tower": image_tower(found.config.vision),
        "text tower": text_tower(found.config.text, vocabulary(found)),
        "embedding": found.config.embed_dim,
        "activation": UNSAID if unsaid else found.config.activation,
        "photos": UNSAID if unsaid else photos(found.preprocess),
        "parameters": f"{count:,} in {len(found.tensors)} tensors, {', '.join(dtypes)}",
        "size": f"{bytes_on_disk / 1e6:,.1f} MB in {len(found.files)} file{'s' * (len(found.files) != 1)}",
        "sha256": found.sha256,
        **positions(found),
    }
    return "\n".join(f"{name:<12} {printable(str(value))}" for name, value in rows.items())


def vocabulary(found: Checkpoint) -> str:
    """What follows the text tower's sizes, where its vocabulary is not CLIP's."""
    return "" if found.vocabulary is None else f", {found.config.text.vocab_size:,} tokens ({found.vocabulary.kind})"


def photos(shown: Preprocess) -> str:
    """One line."""
    mean, deviation = (" ".join(f"{v:g}" for v in values) for values in (shown.mean, shown.std))
    most = f" (at most {', '.join(map(str, shown.patch_counts))} patches of {shown.patch})" if shown.varies else ""
    first = "RGB first, " * shown.rgb_first
    return f"{first}{shown.resize}{most}, {shown.interpolation}, mean {mean}, deviation {deviation}"


def positions(found: Checkpoint) -> dict[str, str]:
    """How position tables were resampled, if they were."""
    names = {"image positions": "image_positions", "text positions": "text_positions"}
    return {name: found.metadata[key] for name, key in names.items() if key in found.metadata}


def image_tower(v: AnyImage | None) -> str:
    """One line."""
    if v is None:
        return "none"
    size = f"heads {v.heads}, input {v.image_size[0]} x {v.image_size[1]}"
    if isinstance(v, ResNetConfig):
        return f"ResNet, width {v.width}, layers {'-'.join(map(str, v.layers))}, {size}"
    kind = {"pe": "PE-Core", "mobile": "ViT behind three convolutions"}.get(v.kind)
    line = f"patch {v.patch_size}, width {v.width}, layers {v.layers}, {size}"
    if isinstance(v, SigLIPImageConfig):
        return f"SigLIP, {line}{' or any other' * v.any_shape}, {v.activation}, pooled by attention"
    if isinstance(v, ViTConfig):
        return f"ViT, {line}{', layer scale' * v.layer_scale}"
    if kind:
        return f"{kind}, {line}{', photos padded by a pixel' * getattr(v, 'stem_padding', 0)}"
    kinds = {"SwiGLU": v.swiglu, "inner norms": v.sub_norm, "rotary positions": v.rope, "RMS norm": v.rms_norm}
    kinds |= {"post-norm": v.post_norm, "without q, k, v bias": not v.bias}
    return f"EVA, {', '.join([line, *(kind for kind, true in kinds.items() if true)])}"


def text_tower(t: AnyText | None, words: str = "") -> str:
    """One line. words: the kind of vocabulary, where it is another than CLIP's."""
    if t is None:
        return "none"
    kind = "" if t.kind == "clip" else f"SigLIP, {t.activation}, " if t.kind == "siglip" else f"{t.kind.upper()}, "
    return f"{kind}width {t.width}, layers {t.layers}, heads {t.heads}, context length {t.context_length}{words}"
