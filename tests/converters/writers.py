"""Files as the families' own libraries, or their authors' code, write them: seeded random weights under foreign names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from jclip.readers import safetensors

EVA_ORIGINAL = {  # timm's part of a block → the authors' name, written from the paper's repository
    "attn.q_bias": "attn.q_bias", "attn.v_bias": "attn.v_bias", "attn.q_proj.bias": "attn.q_bias",
    "attn.v_proj.bias": "attn.v_bias", "attn.norm": "attn.inner_attn_ln", "mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2",
    "mlp.norm": "mlp.ffn_ln",
}  # fmt: skip


def torch_model(module, seed: int):
    """Seeded random parameters and statistics in a torch module, norms too, so that a swapped one shows."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not value.is_floating_point() or name.endswith("attn_mask") or "rope" in name:
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(0.5 + noise.abs())
            elif value.ndim < 2:
                value.copy_(0.1 * noise + (1.0 if name.endswith(("weight", "gamma")) else 0.0))
            else:
                value.copy_(noise * value[0].numel() ** -0.5)
        module.logit_scale.fill_(4.6052) if hasattr(module, "logit_scale") else None
    return module.eval()


def open_clip_model(model_cfg: dict, seed: int):
    """A model of open_clip's own classes."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

    kind = CustomTextCLIP if model_cfg.get("custom_text") else CLIP
    vision, text = CLIPVisionCfg(**model_cfg["vision_cfg"]), CLIPTextCfg(**model_cfg["text_cfg"])
    return torch_model(kind(model_cfg["embed_dim"], vision, text, quick_gelu=model_cfg.get("quick_gelu", False)), seed)


def open_clip_folder(folder: Path, model_cfg: dict, seed: int, preprocess: dict | None = None):
    """The folder that open_clip pushes to the hub."""
    import safetensors.torch

    model = open_clip_model(model_cfg, seed)
    folder.mkdir()
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / "open_clip_model.safetensors")
    said = {"model_cfg": model_cfg, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    return model


def eva_original(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A model's arrays as EVA's authors save them: `visual.blocks.…`, `text.…`, a rotary table in each block."""
    made = {}
    for name, array in arrays.items():
        if not name.startswith("visual.trunk."):
            made[name if name == "logit_scale" else f"text.{name}"] = array
            continue
        name = name.removeprefix("visual.trunk.")
        for ours, theirs in EVA_ORIGINAL.items():
            if f".{ours}." in f"{name}.":
                name = name.replace(ours, theirs)
                break
        else:
            if "attn.norm" not in name and any("mlp.fc1_g" in k for k in arrays):
                name = name.replace("mlp.fc2", "mlp.w3")
        made[f"visual.{name}"] = array
    if any("q_proj" in k for k in arrays):
        for place in ("visual.rope", "visual.blocks.0.attn.rope", "visual.blocks.1.attn.rope"):
            made |= {
                f"{place}.freqs_cos": np.ones((3, 4), np.float32),
                f"{place}.freqs_sin": np.ones((3, 4), np.float32),
            }
    return made


def eva_hub_folder(folder: Path, config, arrays: dict[str, np.ndarray]) -> None:
    """A folder as BAAI/EVA-CLIP-8B has it, in the layout of its remote code; thirds of qkv apart, projections as linears."""
    v, t, made = config.vision, config.text, {}
    plain = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
    for name, array in arrays.items():
        if name.startswith("visual.trunk.blocks."):
            _, _, _, i, rest = name.split(".", 4)
            for ours, theirs in plain.items():
                rest = rest.replace(ours, theirs)
            place = f"vision_model.encoder.layers.{i}"
            if rest == "attn.qkv.weight":
                parts = np.split(array, 3)
                made |= {f"{place}.self_attn.{n}_proj.weight": p for n, p in zip("qkv", parts, strict=True)}
            else:
                made[f"{place}.{rest}"] = array
    top = {
        "visual.trunk.cls_token": "vision_model.embeddings.class_embedding",
        "visual.trunk.pos_embed": "vision_model.embeddings.position_embedding.weight",
        "visual.trunk.patch_embed.proj.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.trunk.patch_embed.proj.bias": "vision_model.embeddings.patch_embedding.bias",
        "visual.trunk.norm.weight": "vision_model.post_layernorm.weight",
        "visual.trunk.head.weight": "visual_projection.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final.weight": "text_model.final_layer_norm.weight", "ln_final.bias": "text_model.final_layer_norm.bias",
    }  # fmt: skip
    made |= {theirs: arrays[ours] for ours, theirs in top.items()}
    made["vision_model.embeddings.class_embedding"] = arrays["visual.trunk.cls_token"].reshape(-1)
    made["vision_model.embeddings.position_embedding.weight"] = arrays["visual.trunk.pos_embed"][0]
    made["text_projection.weight"] = np.ascontiguousarray(arrays["text_projection"].T)
    made["logit_scale"] = arrays["logit_scale"].reshape(())
    inner = {"out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "c_fc": "mlp.fc1"}
    inner["c_proj"] = "mlp.fc2"
    for i in range(t.layers):
        ours, theirs = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        for kind in ("weight", "bias"):
            parts = np.split(arrays[f"{ours}.attn.in_proj_{kind}"], 3)
            made |= {f"{theirs}.self_attn.{n}_proj.{kind}": p for n, p in zip("qkv", parts, strict=True)}
            for part, name in inner.items():
                place = {"out_proj": "attn.", "c_fc": "mlp.", "c_proj": "mlp."}.get(part, "")
                made[f"{theirs}.{name}.{kind}"] = arrays[f"{ours}.{place}{part}.{kind}"]
    folder.mkdir()
    safetensors.write(folder / "model.safetensors", made)
    vision = {
        "hidden_size": v.width, "image_size": v.image_size[0], "patch_size": v.patch_size, "intermediate_size": v.mlp_width,
        "num_hidden_layers": v.layers, "num_attention_heads": v.heads, "layer_norm_eps": 1e-6, "use_rms_norm": True,
        "post_layernorm": v.post_norm, "q_bias": False, "k_bias": False, "v_bias": False, "use_rope": False,
    }  # fmt: skip
    text = {
        "hidden_size": t.width, "num_attention_heads": t.heads, "num_hidden_layers": t.layers,
        "intermediate_size": t.mlp_width, "max_position_embeddings": t.context_length, "vocab_size": t.vocab_size,
    }  # fmt: skip
    said = {"architectures": ["EvaCLIPModel"], "model_type": "clip", "projection_dim": config.embed_dim}
    (folder / "config.json").write_text(json.dumps({**said, "vision_config": vision, "text_config": text}))
