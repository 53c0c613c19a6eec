"""Toy models of the families of 2025, written by open_clip and transformers: seeded, sizes pairwise different, norms random."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np

from jclip.weights.mobile_configs import TIMM_EPS, MobileConfig
from jclip.weights.perception_configs import PerceptionConfig
from jclip.weights.variants import CLIPConfig, TextConfig, ViTConfig

_TEXT = TextConfig(width=20, heads=4, layers=3, mlp_width=40, context_length=11, vocab_size=97)
_PE = PerceptionConfig(
    (20, 20), patch_size=5, width=48, layers=2, heads=3, mlp_width=42, rope_grid=(3, 5), proj_bias=True
)
PE = CLIPConfig(14, _PE, _TEXT, "gelu")
PE_G = CLIPConfig(14, PerceptionConfig(**{**vars(_PE), "class_token": False}), _TEXT, "gelu")
MOBILE_B = CLIPConfig(
    14, MobileConfig((48, 48), 16, width=24, layers=2, heads=3, mlp_width=42, proj_bias=True, norm_eps=TIMM_EPS), _TEXT,
    "gelu",
)  # fmt: skip
MOBILE_L = CLIPConfig(
    14, ViTConfig((20, 20), 5, width=24, layers=2, heads=3, mlp_width=42, proj_bias=True),
    TextConfig(**{**vars(_TEXT), "causal": False}), "gelu",
)  # fmt: skip
WORLDWIDE = CLIPConfig(
    14, ViTConfig((20, 20), 5, width=24, layers=2, heads=3, mlp_width=42),
    TextConfig(**{**vars(_TEXT), "end": 2}), "quickgelu",
)  # fmt: skip
TOYS_2025 = {"pe": PE, "pe_g": PE_G, "mobile_b": MOBILE_B, "mobile_l": MOBILE_L, "worldwide": WORLDWIDE}
TIMM_NAMES = {
    "pe": "vit_pe_core_toy",
    "pe_g": "vit_pe_core_toy_g",
    "mobile_b": "vit_toy_mci",
    "mobile_l": "vit_toy_clip",
}


def register_timm() -> None:
    """The toy towers under `TIMM_NAMES` in timm, made as timm makes those of real size."""
    import timm.models.eva as eva
    import timm.models.vision_transformer as vit
    from timm.layers import LayerNorm
    from timm.models import register_model
    from timm.models._registry import is_model
    from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed
    from torch import nn

    if is_model(TIMM_NAMES["pe"]):
        return

    def perception(config, **kwargs):
        v = config.vision
        return eva.Eva(
            img_size=v.image_size, patch_size=v.patch_size, embed_dim=v.width, depth=v.layers, num_heads=v.heads,
            mlp_ratio=v.mlp_width / v.width, attn_type="rope", use_pre_transformer_norm=True, use_rot_pos_emb=True,
            class_token=v.class_token, ref_feat_shape=v.rope_grid, rope_grid_offset=float(v.class_token),
            rope_grid_indexing="xy", attn_pool_num_heads=v.pool_heads, attn_pool_mlp_ratio=4.0,
            norm_layer=partial(LayerNorm, eps=1e-5), **_known(kwargs),
        )  # fmt: skip

    def plain(v, **more):
        sizes = {"embed_dim": v.width, "depth": v.layers, "num_heads": v.heads, "mlp_ratio": v.mlp_width / v.width}
        return vit.VisionTransformer(img_size=v.image_size, patch_size=v.patch_size, **sizes, **more)

    def vit_pe_core_toy(pretrained=False, **kwargs):
        return perception(PE, **kwargs)

    def vit_pe_core_toy_g(pretrained=False, **kwargs):
        return perception(PE_G, **kwargs)

    def vit_toy_mci(pretrained=False, **kwargs):
        v = MOBILE_B.vision
        channels = (v.width // 4, v.width // 4, v.width)
        stem = ConvStem(channels=channels, stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0, act_layer=nn.GELU)
        embed = partial(HybridEmbed, backbone=stem, proj=False)
        sizes = {"embed_dim": v.width, "depth": v.layers, "num_heads": v.heads, "mlp_ratio": v.mlp_width / v.width}
        return vit.VisionTransformer(
            img_size=v.image_size, patch_size=1, embed_layer=embed, no_embed_class=True, **sizes, **_known(kwargs)
        )

    def vit_toy_clip(pretrained=False, **kwargs):
        return plain(MOBILE_L.vision, pre_norm=True, norm_layer=partial(LayerNorm, eps=1e-5), **_known(kwargs))

    for maker in (vit_pe_core_toy, vit_pe_core_toy_g, vit_toy_mci, vit_toy_clip):
        register_model(maker)


def _known(kwargs: dict) -> dict:
    return {key: kwargs[key] for key in ("num_classes", "global_pool") if key in kwargs}


def shuffled(model, seed: int):
    """The model with seeded random norms, statistics, biases and tables, in evaluation mode."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand_like(value))
            elif value.ndim < 2 and name != "logit_scale":
                value.add_(0.2 * torch.randn_like(value))
            elif value.ndim >= 2:
                value.copy_(torch.randn_like(value) * max(value[0].numel(), 2) ** -0.5)
    return model.eval()


def open_clip_folder(folder: Path, name: str, seed: int = 0):
    """A toy as open_clip writes it, and open_clip's model: open_clip_config.json and its safetensors."""
    from open_clip.model import CLIP, CustomTextCLIP
    from safetensors.torch import save_file

    register_timm()
    said = described(name)
    kind = CustomTextCLIP if name in TIMM_NAMES else CLIP
    model = said["model_cfg"]
    made = kind(model["embed_dim"], model["vision_cfg"], model["text_cfg"], quick_gelu=model["quick_gelu"])
    made = shuffled(made, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    save_file({k: v.contiguous() for k, v in made.state_dict().items()}, folder / "open_clip_model.safetensors")
    if TOYS_2025[name].text.end is not None:
        (folder / "tokenizer.json").write_bytes(worldwide_words(TOYS_2025[name].text.vocab_size))
    return made


def worldwide_words(size: int = 97) -> bytes:
    """A tokenizer.json of `size` pieces in XLM-V's form: <s> before each text, </s> after it, <pad> behind."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = "▁abcdefghijklmnopqrstuvwxyz0123456789.,-'" + "".join(map(chr, range(0x4E00, 0x4E00 + size)))
    pieces = [*specials, *letters][:size]
    around = {token: {"id": token, "ids": [i], "tokens": [token]} for i, token in enumerate(specials) if i != 1}
    single = [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    ]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
    spec = {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": space,
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": around},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": [[piece, -float(i)] for i, piece in enumerate(pieces)]},
    }  # fmt: skip
    return json.dumps(spec).encode()


def described(name: str) -> dict:
    """open_clip_config.json of a toy, in open_clip's words."""
    config = TOYS_2025[name]
    v, t = config.vision, config.text
    vision = {"image_size": v.image_size[0]}
    if name in TIMM_NAMES:
        pool = "map" if v.kind == "pe" else "token"
        vision |= {"timm_model_name": TIMM_NAMES[name], "timm_pool": pool, "timm_proj": None}
    else:
        vision |= {"layers": v.layers, "width": v.width, "head_width": v.width // v.heads, "patch_size": v.patch_size}
        vision["mlp_ratio"] = v.mlp_width / v.width
    text = {"context_length": t.context_length, "vocab_size": t.vocab_size, "width": t.width, "heads": t.heads}
    text |= {"layers": t.layers, "mlp_ratio": t.mlp_width / t.width, "no_causal_mask": not t.causal}
    if t.end is not None:
        text |= {"pool_type": "eos", "eos_id": t.end, "hf_tokenizer_name": "facebook/xlm-v-base"}
    photos = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    model = {"embed_dim": config.embed_dim, "quick_gelu": config.activation == "quickgelu", "vision_cfg": vision}
    model |= {"custom_text": True} if name in TIMM_NAMES else {}
    return {"model_cfg": {**model, "text_cfg": text}, "preprocess_cfg": photos}


def toy_texts(config: CLIPConfig, seed: int = 0, texts: int = 5) -> np.ndarray:
    """Ids (T, L) whose end-of-text stands at different places, padding after it."""
    rng = np.random.default_rng(2000 + seed)
    t = config.text
    end, pad = (t.vocab_size - 1, 0) if t.end is None else (t.end, 1)
    ids = rng.integers(3, t.vocab_size - 1, (texts, t.context_length)).astype(np.int32)
    for row, place in zip(ids, rng.permutation(np.arange(2, t.context_length - 2))[:texts], strict=True):
        row[place], row[place + 1 :] = end, pad
    return ids
