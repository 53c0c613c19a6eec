"""transformers' CLIPModel with given weights: the independent reference for both transformers."""

from __future__ import annotations

import numpy as np
import torch
from transformers import CLIPConfig as HFConfig
from transformers import CLIPModel

from jclip.weights.variants import CLIPConfig

_LAYER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
_TOP = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def hugging_face_model(config: CLIPConfig, arrays: dict[str, np.ndarray]) -> CLIPModel:
    """The model of that configuration holding `arrays` (OpenAI's names), in evaluation mode."""
    v, t = config.vision, config.text
    common = {
        "layer_norm_eps": config.norm_eps,
        "hidden_act": {"quickgelu": "quick_gelu"}.get(config.activation, "gelu"),
    }
    vision = dict(
        hidden_size=v.width, intermediate_size=v.mlp_width, num_hidden_layers=v.layers, num_attention_heads=v.heads,
        image_size=v.image_size[0], patch_size=v.patch_size, projection_dim=config.embed_dim, **common,
    )  # fmt: skip
    text = dict(
        hidden_size=t.width, intermediate_size=t.mlp_width, num_hidden_layers=t.layers, num_attention_heads=t.heads,
        vocab_size=t.vocab_size, max_position_embeddings=t.context_length, projection_dim=config.embed_dim,
        eos_token_id=t.vocab_size - 1, bos_token_id=0, pad_token_id=0, **common,
    )  # fmt: skip
    model = CLIPModel(HFConfig(text_config=text, vision_config=vision, projection_dim=config.embed_dim)).eval()
    state = {k: torch.tensor(np.ascontiguousarray(a)) for k, a in _renamed(arrays)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("position_ids" in k for k in missing), (missing, unexpected)
    return model


def _renamed(arrays):
    for key, value in arrays.items():
        if key in _TRANSPOSED:
            yield _TRANSPOSED[key], value.T
        elif key in _TOP:
            yield _TOP[key], value.reshape(()) if key == "logit_scale" else value
        else:
            side = "vision_model" if key.startswith("visual.") else "text_model"
            _, rest = key.split("resblocks.")
            index, rest = rest.split(".", 1)
            yield from _layer(f"{side}.encoder.layers.{index}.", rest, value)


def _layer(prefix, rest, value):
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        for name, part in zip("qkv", np.split(value, 3), strict=True):
            yield f"{prefix}self_attn.{name}_proj.{kind}", part
    else:
        name, kind = rest.rsplit(".", 1)
        yield f"{prefix}{_LAYER[name]}.{kind}", value
