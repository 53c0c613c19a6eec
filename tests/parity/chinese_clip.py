"""Seeded random Chinese-CLIP models, written by transformers, and by the layout of the authors' package."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from transformers import ChineseCLIPConfig, ChineseCLIPModel
from transformers import ChineseCLIPTextConfig as TextConfig
from transformers import ChineseCLIPVisionConfig as VisionConfig

CHARACTERS = "一只两三鹦鹉狗猫红绿蓝圆方的照片在天空"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, "a", "photo", "##s", "of", "dog"]


def written_model(
    folder: Path, seed: int, image: int = 28, text: int = 20, heads: int = 4, odd: bool = False
) -> ChineseCLIPModel:
    """A folder as `save_pretrained` writes it, with vocab.txt; sizes differ pairwise, norms and biases are random.

    odd: the towers' activations are swapped, and each has an epsilon of its own that matters.
    """
    vision = VisionConfig(
        hidden_size=image, intermediate_size=42, num_hidden_layers=2, num_attention_heads=4, image_size=20,
        patch_size=5, projection_dim=14, hidden_act="gelu" if odd else "quick_gelu", layer_norm_eps=0.02 if odd else 1e-5,
    )  # fmt: skip
    words = TextConfig(
        vocab_size=len(PIECES), hidden_size=text, intermediate_size=33, num_hidden_layers=3, num_attention_heads=heads,
        max_position_embeddings=13, hidden_dropout_prob=0.1, hidden_act="quick_gelu" if odd else "gelu",
        layer_norm_eps=0.03 if odd else 1e-12,
    )  # fmt: skip
    torch.manual_seed(seed)
    config = ChineseCLIPConfig(text_config=words.to_dict(), vision_config=vision.to_dict(), projection_dim=14)
    model = ChineseCLIPModel(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            shift = 1.0 if re.search(r"norm\w*\.weight$", name, re.IGNORECASE) else 0.0
            if name != "logit_scale":
                value.copy_(shift + (0.3 if value.ndim > 1 else 0.2) * torch.randn(value.shape))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return model


def as_cn_clip(model: ChineseCLIPModel) -> dict[str, torch.Tensor]:
    """The same weights under the names of the authors' package, written from its source, independent of our rules."""
    state = model.state_dict()
    made = {"logit_scale": state["logit_scale"], "text_projection": state["text_projection.weight"].T.contiguous()}
    made |= {f"bert.{k[11:]}": v for k, v in state.items() if k.startswith("text_model.") and "_ids" not in k}
    eye, layers = "vision_model.", model.config.vision_config.num_hidden_layers
    made["visual.proj"] = state["visual_projection.weight"].T.contiguous()
    made["visual.conv1.weight"] = state[f"{eye}embeddings.patch_embedding.weight"]
    made["visual.class_embedding"] = state[f"{eye}embeddings.class_embedding"]
    made["visual.positional_embedding"] = state[f"{eye}embeddings.position_embedding.weight"]
    for kind in ("weight", "bias"):
        made[f"visual.ln_pre.{kind}"] = state[f"{eye}pre_layrnorm.{kind}"]
        made[f"visual.ln_post.{kind}"] = state[f"{eye}post_layernorm.{kind}"]
        for i in range(layers):
            old, new = f"{eye}encoder.layers.{i}", f"visual.transformer.resblocks.{i}"
            thirds = [state[f"{old}.self_attn.{which}_proj.{kind}"] for which in "qkv"]
            made[f"{new}.attn.in_proj_{kind}"] = torch.cat(thirds)
            for theirs, ours in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("mlp.fc1", "mlp.c_fc"),
                                 ("mlp.fc2", "mlp.c_proj"), ("layer_norm2", "ln_2")):  # fmt: skip
                made[f"{new}.{ours}.{kind}"] = state[f"{old}.{theirs}.{kind}"]
    return made


def batch(model: ChineseCLIPModel, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (3, 3, H, W) and ids (5, L) of unequal lengths, padded with 0."""
    rng, size = np.random.default_rng(seed), model.config.vision_config.image_size
    ids = rng.integers(1, model.config.text_config.vocab_size, (5, 13)).astype(np.int32)
    for row, length in zip(ids, (3, 13, 7, 2, 11), strict=True):
        row[length:] = 0
    return rng.standard_normal((3, 3, size, size), dtype=np.float32), ids


def texts(model: ChineseCLIPModel, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, E) features of ids, and (B, L, D) of all tokens."""
    found = torch.tensor(ids).long()
    out = model.get_text_features(found, attention_mask=(found != 0).long())
    return out.pooler_output, out.last_hidden_state


def with_flash(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names under which the authors' training saves a model that ran with flash attention."""
    made = {}
    for name, value in state.items():
        if ".attention.self." not in name:
            name = name.replace(".attn.in_proj_", ".attn.Wqkv.")
            made[name.replace(".attention.output.dense.", ".attention.self.out_proj.")] = value
        elif ".query." in name:
            packed = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            made[name.replace("query", "Wqkv")] = torch.cat(packed)
    return made
