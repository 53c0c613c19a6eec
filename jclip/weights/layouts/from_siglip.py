"""SigLIP's layouts: Hugging Face's `SiglipModel` folders and `Siglip2Model`'s (NaFlex), and what open_clip says of it.

SigLIP was trained with the tanh form of GELU. Hugging Face's class computes it everywhere; timm computes the exact form in
some image towers, and open_clip in SigLIP 1's text towers. Each layout is read as its own library computes it. NaFlex towers
take photos of any proportions; their files hold the patches' kernel as a matrix over a patch's pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

import numpy as np

from jclip.data.preprocess import DEVIATIONS, MEANS, NORMALISATIONS, Preprocess
from jclip.errors import CheckpointError, ConfigError
from jclip.readers import LazyTensor
from jclip.readers.schema import FLAG, NOTHING, SIDE, TABLE, TEXT, Condition, either, number, obey, one_of, whole
from jclip.weights.families import refused
from jclip.weights.image_configs import SigLIPImageConfig
from jclip.weights.layouts.keymap import Report, Rule, apply, both, stacked, unapply
from jclip.weights.layouts.photo_sizes import is_squashed
from jclip.weights.siglip_variants import C4, GEMMA, MC4, SIGLIP_TIMM
from jclip.weights.text_configs import SigLIPTextConfig
from jclip.weights.tower_sizes import CONTEXT, EPSILON, HEADS, HIDDEN, LAYERS, PATCH, VOCABULARY, WIDTH, Activation
from jclip.weights.variants import CLIPConfig

IMAGE, TEXT_BLOCK = "visual.trunk.blocks.{}", "text.transformer.resblocks.{}"
_LAYERS = {  # within a layer: Hugging Face's, the image tower's, the text tower's
    "self_attn.out_proj": ("attn.proj", "attn.out_proj"), "layer_norm1": ("norm1", "ln_1"),
    "layer_norm2": ("norm2", "ln_2"), "mlp.fc1": ("mlp.fc1", "mlp.c_fc"), "mlp.fc2": ("mlp.fc2", "mlp.c_proj"),
}  # fmt: skip
_HEAD = "vision_model.head"
_PATCHES, _NONE = "vision_model.embeddings.patch_embedding.weight", LazyTensor((), "float32", lambda: np.zeros(()))
_PACKED = f"{_HEAD}.attention.in_proj_"  # q, k and v of the pool: ours has q, and k with v
_PARTS = (f"{_HEAD}.attention.q.", f"{_HEAD}.attention.kv.")


def _layer_rules(source: str, target: str, packed: str, side: int) -> list[Rule]:
    rules = []
    for kind in ("weight", "bias"):
        thirds = tuple(f"{source}.self_attn.{which}_proj.{kind}" for which in "qkv")
        rules.append(Rule(thirds, f"{target}.{packed}{kind}", "stack"))
    return rules + [
        rule for part, ours in _LAYERS.items() for rule in both(f"{source}.{part}", f"{target}.{ours[side]}")
    ]


HUGGING_FACE, OPEN_CLIP = "Hugging Face SiglipModel", "open_clip's SigLIP"
NAFLEX = "Hugging Face Siglip2Model"  # the names of the other, whose description tells them apart


def tower_alone(names: Set[str]) -> str:
    """Return the prefix that the names of one exported tower lack, as transformers 5 writes them; else nothing."""
    if "head.probe" in names:
        return "vision_model."
    return "text_model." if {"final_layer_norm.weight", "head.weight"} <= names else ""


def layout_of(names: Set[str]) -> str | None:
    """Return the layout if the keys are SigLIP's; None for another model's."""
    if {f"{_HEAD}.probe", "text_model.head.weight"} & names or tower_alone(names):
        return HUGGING_FACE
    of_text = {"text.text_projection.weight", "text.transformer.resblocks.0.ln_1.weight"} <= names
    pools = "visual.trunk.attn_pool.latent" in names and "visual.trunk.norm_pre.weight" not in names
    return OPEN_CLIP if (pools and "visual.trunk.cls_token" not in names) or of_text else None


RULES = [
    *_layer_rules("vision_model.encoder.layers.{}", IMAGE, "attn.qkv.", 0),
    *both("vision_model.embeddings.patch_embedding", "visual.trunk.patch_embed.proj"),
    Rule(("vision_model.embeddings.position_embedding.weight",), "visual.trunk.pos_embed", "table"),
    *both("vision_model.post_layernorm", "visual.trunk.norm"),
    Rule((f"{_HEAD}.probe",), "visual.trunk.attn_pool.latent"),
    *both(_PARTS[0][:-1], "visual.trunk.attn_pool.q"),
    *both(_PARTS[1][:-1], "visual.trunk.attn_pool.kv"),
    *both(f"{_HEAD}.attention.out_proj", "visual.trunk.attn_pool.proj"),
    *both(f"{_HEAD}.layernorm", "visual.trunk.attn_pool.norm"),
    *both(f"{_HEAD}.mlp.fc1", "visual.trunk.attn_pool.mlp.fc1"),
    *both(f"{_HEAD}.mlp.fc2", "visual.trunk.attn_pool.mlp.fc2"),
    *_layer_rules("text_model.encoder.layers.{}", TEXT_BLOCK, "attn.in_proj_", 1),
    Rule(("text_model.embeddings.token_embedding.weight",), "text.token_embedding.weight"),
    Rule(("text_model.embeddings.position_embedding.weight",), "text.positional_embedding"),
    *both("text_model.final_layer_norm", "text.ln_final"),
    *both("text_model.head", "text.text_projection"),
    Rule(("logit_scale",), "logit_scale"),
    Rule(("logit_bias",), "logit_bias"),
    *(Rule((f"{tower}_model.embeddings.position_ids",), "") for tower in ("vision", "text")),  # of old exports
]


def called(layout: str, config: CLIPConfig) -> str:
    """Return what people call a layout: NaFlex weights have the names of `SiglipModel`'s, and are a `Siglip2Model`."""
    return NAFLEX if layout == HUGGING_FACE and config.vision is not None and config.vision.any_shape else layout


def hugging_face(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], Report]:
    """Return tensors under open_clip's names, and the report of all keys."""
    prefix, split = tower_alone(set(tensors)), []
    given = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    if len(given.get(_PATCHES, _NONE).shape) == 2:
        given[_PATCHES] = _convolution(given[_PATCHES])
        split.append(_PATCHES)
    for kind in ("weight", "bias"):
        packed = given.pop(f"{_PACKED}{kind}", None)
        if packed is not None and packed.shape:
            split.append(f"{_PACKED}{kind}")
            rows = packed.shape[0] // 3
            given |= {f"{_PARTS[0]}{kind}": _rows(packed, 0, rows), f"{_PARTS[1]}{kind}": _rows(packed, rows, 3 * rows)}
    made, report = apply(given, RULES)
    report.copied = [name for name in report.copied if not name.startswith(_PARTS) and name not in split]
    report.transformed += split
    return made, report


def to_hugging_face(tensors: Mapping[str, LazyTensor], any_shape: bool = False) -> dict[str, LazyTensor]:
    """Return tensors under the names of Hugging Face's `SiglipModel`, or with `any_shape` `Siglip2Model`: the inverse of
    `hugging_face`."""
    made = unapply(tensors, RULES)
    if any_shape and _PATCHES in made:
        made[_PATCHES] = _linear(made[_PATCHES])
    for kind in ("weight", "bias"):
        parts = [made.pop(f"{part}{kind}", None) for part in _PARTS]
        if all(parts):
            made[f"{_PACKED}{kind}"] = stacked(parts)
    return made


def _convolution(linear: LazyTensor) -> LazyTensor:
    """(D, p * p * 3), a patch's pixels row by row and its colours last → (D, 3, p, p)."""
    width, side = linear.shape[0], math.isqrt(linear.shape[1] // 3)
    if linear.shape != (width, side * side * 3):
        raise CheckpointError(f"{_PATCHES} must be of whole patches, (D, p * p * 3), got {linear.shape}")
    shape = (width, 3, side, side)
    return LazyTensor(
        shape,
        linear.dtype,
        lambda: np.ascontiguousarray(linear.read().reshape(width, side, side, 3).transpose(0, 3, 1, 2)),
    )


def _linear(convolution: LazyTensor) -> LazyTensor:
    """(D, 3, p, p) → (D, p * p * 3): the inverse of `_convolution`."""
    width, colours, *sides = convolution.shape
    shape = (width, colours * math.prod(sides))
    return LazyTensor(
        shape,
        convolution.dtype,
        lambda: np.ascontiguousarray(convolution.read().transpose(0, 2, 3, 1)).reshape(shape),
    )


def _rows(tensor: LazyTensor, first: int, end: int) -> LazyTensor:
    return LazyTensor((end - first, *tensor.shape[1:]), tensor.dtype, lambda: tensor.read()[first:end])


def open_clip(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], Report]:
    """Return open_clip's tensors, whose names are ours."""
    return dict(tensors), Report(copied=list(tensors))


ACTIVATIONS: dict[str, Activation] = {
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu", "quick_gelu": "quickgelu",
}  # fmt: skip
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's codes
_TOWER: dict[str, Condition] = {  # what config.json may say of a tower
    "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "hidden_act": one_of(*ACTIVATIONS), "layer_norm_eps": EPSILON,
}  # fmt: skip
_NAFLEX = {"num_patches": whole(1, 1 << 16), "patch_size": PATCH, "max_num_patches": either(whole(1, 1 << 16), NOTHING)}
_VISION = {**_TOWER, "image_size": SIDE, "patch_size": PATCH, "vision_use_head": FLAG, "num_channels": one_of(3)}
_TEXT = {
    **_TOWER, "max_position_embeddings": CONTEXT, "vocab_size": VOCABULARY, "projection_size": either(WIDTH, NOTHING),
}  # fmt: skip
_PHOTOS = {  # what preprocessor_config.json may say of photos
    "do_center_crop": FLAG, "do_convert_rgb": FLAG, "resample": one_of(*RESAMPLE), "image_mean": MEANS, "image_std": DEVIATIONS,
}  # fmt: skip
KINDS = tuple(f"{family}{tower}" for family in ("siglip", "siglip2") for tower in ("", "_vision_model", "_text_model"))


def config_from(config: Mapping[str, Any], place: object) -> CLIPConfig:
    """Return the configuration of config.json, with SigLIP-B/16's values for missing keys, as Hugging Face has them.

    Raises `CheckpointError` for a tower without its pool.
    """
    kind, any_shape = str(config.get("model_type")), str(config.get("model_type")).startswith("siglip2")
    kind = kind.replace("siglip2", "siglip")
    obey(config, {"vision_config": either(TABLE, NOTHING), "text_config": either(TABLE, NOTHING)})
    vision = None if kind == "siglip_text_model" else config if kind != "siglip" else config.get("vision_config") or {}
    text = None if kind == "siglip_vision_model" else config if kind != "siglip" else config.get("text_config") or {}
    where = "" if kind != "siglip" else "vision_config"
    image = None if vision is None else (_any_shape if any_shape else _vision_from)(vision, place, where)
    words = None if text is None else _text_from(text, "" if kind != "siglip" else "text_config")
    embed = text.get("projection_size") or text.get("hidden_size", 768) if image is None else image.width
    tower = image or words
    try:
        return CLIPConfig(embed, image, words, tower.activation, tower.norm_eps, sigmoid=bool(image and words))
    except ConfigError as e:
        raise CheckpointError(f"{place}: {e}") from e


def _vision_from(vision: Mapping[str, Any], place: object, where: str) -> SigLIPImageConfig:
    obey(vision, _VISION, where)
    if not vision.get("vision_use_head", True):
        raise CheckpointError(f"{place}: an image tower must have its attention pool, got vision_use_head false")
    side = vision.get("image_size", 224)
    return SigLIPImageConfig(
        image_size=(side, side), patch_size=vision.get("patch_size", 16), activation=_activation(vision),
        norm_eps=vision.get("layer_norm_eps", 1e-6), **_sizes(vision),
    )  # fmt: skip


def _any_shape(vision: Mapping[str, Any], place: object, where: str) -> SigLIPImageConfig:
    """A NaFlex tower, whose positions are a square's."""
    obey(vision, _NAFLEX, where)
    count = vision.get("num_patches", 256)
    if (grid := math.isqrt(count)) ** 2 != count:
        raise CheckpointError(f"{place}: {where or 'the tower'}.num_patches must be a square, got {count}")
    side = grid * vision.get("patch_size", 16)
    return replace(_vision_from({**vision, "image_size": side}, place, where), any_shape=True)


def _text_from(text: Mapping[str, Any], where: str) -> SigLIPTextConfig:
    obey(text, _TEXT, where)
    return SigLIPTextConfig(
        context_length=text.get("max_position_embeddings", 64), vocab_size=text.get("vocab_size", C4),
        activation=_activation(text), norm_eps=text.get("layer_norm_eps", 1e-6), **_sizes(text),
    )  # fmt: skip


def _sizes(tower: Mapping[str, Any]) -> dict[str, int]:
    return {
        "width": tower.get("hidden_size", 768), "layers": tower.get("num_hidden_layers", 12),
        "heads": tower.get("num_attention_heads", 12), "mlp_width": tower.get("intermediate_size", 3072),
    }  # fmt: skip


def _activation(tower: Mapping[str, Any]) -> Activation:
    return ACTIVATIONS[tower.get("hidden_act", "gelu_pytorch_tanh")]


def preprocess_from(said: Mapping[str, Any], config: CLIPConfig, counts: tuple[int, ...] = ()) -> Preprocess:
    """Return the preprocessing in preprocessor_config.json: photos are squashed to the model's size, or of a NaFlex tower
    proportional, with `counts` patches or as many as the file says. Raises `ConfigError`."""
    said = {key: value for key, value in said.items() if value is not None}
    obey(said, {**_PHOTOS, "max_num_patches": _NAFLEX["max_num_patches"]})
    mean, std = NORMALISATIONS["half"]
    if config.vision and config.vision.any_shape:
        return Preprocess(
            config.vision.image_size, "proportional", RESAMPLE[said.get("resample", 2)],
            tuple(said.get("image_mean", mean)), tuple(said.get("image_std", std)), rgb_first=True,
            patch=config.vision.patch_size, patch_counts=counts or (said.get("max_num_patches", 256),),
        )  # fmt: skip
    return Preprocess(
        size=config.vision.image_size if config.vision else (224, 224),
        resize="squash" if is_squashed(said, crops=False) else "shortest",
        interpolation=RESAMPLE[said.get("resample", 3)],
        mean=tuple(said.get("image_mean", mean)),
        std=tuple(said.get("image_std", std)),
        rgb_first=said.get("do_convert_rgb", True),
    )


_OPEN_CLIP: dict[str, Condition] = {  # what open_clip_config.json says of every SigLIP's text tower
    "no_causal_mask": one_of(True), "pool_type": one_of("last"), "norm_kwargs": TABLE, "act_kwargs": either(TABLE, NOTHING),
    "proj_type": one_of("linear", "none"), "proj_bias": FLAG,
}  # fmt: skip
_RATIO = number(0, 64, above=True)
_WORDS: dict[str, Condition] = {
    "width": WIDTH, "heads": HEADS, "layers": LAYERS, "mlp_ratio": _RATIO, "context_length": CONTEXT,
    "vocab_size": VOCABULARY, "tokenizer_kwargs": either(TABLE, NOTHING), "hf_tokenizer_name": either(TEXT, NOTHING),
}  # fmt: skip
_SEEN = {"image_size", "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj"}


def is_whole(config: CLIPConfig) -> bool:
    """Return whether the towers, or the one that is there, are SigLIP's."""
    return {tower.kind for tower in (config.vision, config.text) if tower is not None} == {"siglip"}


def is_siglip(vision: Mapping[str, Any]) -> bool:
    """Return whether open_clip's `vision_cfg` names a SigLIP tower."""
    return "siglip" in str(vision.get("timm_model_name") or "")


def config_from_open_clip(said: Mapping[str, Any], place: object) -> CLIPConfig:
    """Return the configuration of open_clip's `model_cfg`, which names the image tower by timm's name.

    Raises `CheckpointError` for a tower that is none of SigLIP's, `KeyError` for a missing key.
    """
    vision, text = said["vision_cfg"], said["text_cfg"]
    name = vision["timm_model_name"]
    if text.get("hf_model_name") or name not in SIGLIP_TIMM:
        raise refused("foreign-tower", place, text.get("hf_model_name") or name)
    unread = [k for k in vision if k not in _SEEN] + [k for k in text if k not in {*_OPEN_CLIP, *_WORDS}]
    if unread or said.get("quick_gelu"):
        raise CheckpointError(f"{place} sets {', '.join(unread or ['quick_gelu'])}, which jclip does not read")
    obey(vision, {"timm_pool": one_of("map"), "timm_proj": one_of("none")}, "vision_cfg")
    obey(text, {**_OPEN_CLIP, **_WORDS}, "text_cfg", needed=("no_causal_mask", "pool_type"))
    image = SIGLIP_TIMM[name]
    words = _words_from(text)
    return CLIPConfig(said["embed_dim"], image, words, image.activation, image.norm_eps, sigmoid=True)


def _words_from(text: Mapping[str, Any]) -> SigLIPTextConfig:
    kept, approximate = text.get("norm_kwargs", {}), (text.get("act_kwargs") or {}).get("approximate", "none")
    obey(kept, {"eps": EPSILON}, "text_cfg.norm_kwargs")
    obey({"approximate": approximate}, {"approximate": one_of("none", "tanh")}, "text_cfg.act_kwargs")
    width = text.get("width", 512)
    return SigLIPTextConfig(
        width, text.get("heads", 8), text.get("layers", 12), int(width * text.get("mlp_ratio", 4.0)),
        text.get("context_length", 77), text.get("vocab_size", 49408), text.get("proj_type", "linear") != "none",
        "gelu_tanh" if approximate == "tanh" else "gelu", kept.get("eps", 1e-5),
    )  # fmt: skip


_TOKENIZERS = {  # open_clip's repositories of the vocabularies, by their size
    C4: "timm/ViT-B-16-SigLIP", MC4: "timm/ViT-B-16-SigLIP-i18n-256", GEMMA: "timm/ViT-B-16-SigLIP2-256",
}  # fmt: skip


def described(config: CLIPConfig) -> dict[str, Any] | None:
    """Return open_clip's `model_cfg`; None for towers that timm or open_clip lack.

    Where timm knows the tower by another activation only, its name stands all the same: see `timm_differs`.
    """
    if config.vision.any_shape or (name := timm_name(config.vision)) is None or config.text.activation == "quickgelu":
        return None
    t = config.text
    text = {
        "context_length": t.context_length, "vocab_size": t.vocab_size, "width": t.width, "heads": t.heads,
        "layers": t.layers, "mlp_ratio": _ratio(t), "no_causal_mask": True, "pool_type": "last",
        "norm_kwargs": {"eps": t.norm_eps}, "tokenizer_kwargs": {"clean": "canonicalize"},
    }  # fmt: skip
    text |= {"proj_bias": True} if t.projection else {"proj_type": "none"}
    if t.activation == "gelu_tanh":
        text["act_kwargs"] = {"approximate": "tanh"}
    text["hf_tokenizer_name"] = _TOKENIZERS.get(t.vocab_size, "local")
    vision = {
        "image_size": config.vision.image_size[0], "timm_model_name": name, "timm_model_pretrained": False,
        "timm_pool": "map", "timm_proj": "none",
    }  # fmt: skip
    head = {"embed_dim": config.embed_dim, "init_logit_bias": -10, "custom_text": True}
    return {**head, "vision_cfg": vision, "text_cfg": text}


def _ratio(t: SigLIPTextConfig) -> float:
    """A ratio from which open_clip, which cuts the product to an integer, makes the width of the MLPs."""
    exact = t.mlp_width / t.width
    return exact if int(t.width * exact) == t.mlp_width else (t.mlp_width + 0.5) / t.width


def timm_name(v: SigLIPImageConfig) -> str | None:
    """Return timm's name of a tower, of one with the same activation where there is one; None where it has none."""
    same = [name for name, known in SIGLIP_TIMM.items() if _but_activation(known) == _but_activation(v)]
    return next((name for name in same if SIGLIP_TIMM[name] == v), (same or [None])[0])


def timm_differs(v: SigLIPImageConfig) -> bool:
    """Return whether timm computes a tower that it names with another activation than this one has."""
    name = timm_name(v)
    return name is not None and SIGLIP_TIMM[name].activation != v.activation


def _but_activation(v: SigLIPImageConfig) -> dict[str, Any]:
    return {key: value for key, value in vars(v).items() if key != "activation"}


def described_for_hugging_face(config: CLIPConfig, dtype: str) -> dict[str, Any]:
    """Return config.json for Hugging Face's `SiglipModel`, of a tower for any proportions `Siglip2Model`, or of one tower."""
    v, t = config.vision, config.text
    family, size = ("siglip", {}) if v is None or not v.any_shape else ("siglip2", {"num_patches": math.prod(v.grid)})
    vision = {} if v is None else {
        **_described_sizes(v), "model_type": f"{family}_vision_model", "patch_size": v.patch_size,
        **(size or {"image_size": v.image_size[0]}), "num_channels": 3, "attention_dropout": 0.0,
    }  # fmt: skip
    text = {} if t is None else {
        **_described_sizes(t), "model_type": f"{family}_text_model", "vocab_size": t.vocab_size,
        "max_position_embeddings": t.context_length, "projection_size": config.embed_dim, "attention_dropout": 0.0,
    }  # fmt: skip
    if not (vision and text):
        name = f"{family.capitalize()}{'Vision' if vision else 'Text'}Model"
        return {"architectures": [name], "torch_dtype": dtype, **vision, **text}
    return {
        "architectures": [f"{family.capitalize()}Model"], "model_type": family, "torch_dtype": dtype, "initializer_factor": 1.0,
        "vision_config": vision, "text_config": text,
    }  # fmt: skip


def _described_sizes(tower: SigLIPImageConfig | SigLIPTextConfig) -> dict[str, Any]:
    names = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "quickgelu": "quick_gelu"}
    return {
        "hidden_size": tower.width, "intermediate_size": tower.mlp_width, "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads, "hidden_act": names[tower.activation], "layer_norm_eps": tower.norm_eps,
    }  # fmt: skip
