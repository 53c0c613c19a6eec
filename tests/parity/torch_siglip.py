"""Seeded random SigLIP models of transformers' and open_clip's own classes, at toy size."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from jclip.weights.variants import CLIPConfig
from tests.converters.writers import torch_model

ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu"}


def hugging_face_model(config: CLIPConfig, seed: int):
    """transformers' `SiglipModel` of that configuration."""
    from transformers import SiglipConfig, SiglipModel

    def tower(t):
        return dict(
            hidden_size=t.width, intermediate_size=t.mlp_width, num_hidden_layers=t.layers, layer_norm_eps=t.norm_eps,
            num_attention_heads=t.heads, hidden_act=ACTIVATIONS[t.activation],
        )  # fmt: skip

    v, t = config.vision, config.text
    vision = {**tower(v), "image_size": v.image_size[0], "patch_size": v.patch_size}
    text = {**tower(t), "vocab_size": t.vocab_size, "max_position_embeddings": t.context_length}
    text |= {"projection_size": config.embed_dim, "bos_token_id": 0, "eos_token_id": 1}
    return with_scale(torch_model(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)), seed))


def with_scale(model):
    """The model with logits that are neither all 0 nor all 1 as probabilities."""
    with torch.no_grad():
        model.logit_scale.fill_(1.9)
        model.logit_bias.fill_(-1.3)
    return model


def timm_tower(config: CLIPConfig, **options):
    """timm's vision transformer as it makes SigLIP's."""
    from timm.models.vision_transformer import VisionTransformer

    v = config.vision
    return VisionTransformer(
        img_size=v.image_size, patch_size=v.patch_size, embed_dim=v.width, depth=v.layers, num_heads=v.heads,
        mlp_ratio=(v.mlp_width + 0.5) / v.width, class_token=False, global_pool="map", num_classes=0,
        act_layer="gelu_tanh" if v.activation == "gelu_tanh" else None,
    )  # fmt: skip


def open_clip_folder(folder: Path, model_cfg: dict, seed: int, preprocess_cfg: dict):
    """The folder of a model that open_clip makes, and the model."""
    import open_clip

    (folder.parent / "cfg").mkdir(exist_ok=True)
    (folder.parent / "cfg" / "toy.json").write_text(json.dumps(model_cfg))
    open_clip.add_model_config(folder.parent / "cfg" / "toy.json")
    model = with_scale(torch_model(open_clip.create_model("toy"), seed))
    folder.mkdir()
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / "open_clip_model.safetensors")
    said = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    return model
