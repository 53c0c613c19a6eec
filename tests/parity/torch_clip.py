"""CLIP in torch, written from the paper and the published layout: the reference for what transformers lacks.

Forward functions on a state dict with OpenAI's names. Attention is torch's own `multi_head_attention_forward`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from jclip.weights.variants import CLIPConfig


def activation(name: str):
    return {"quickgelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": F.gelu}[name]


def self_attention(x, p, prefix, heads, mask=None):
    y = x.transpose(0, 1)
    out, _ = F.multi_head_attention_forward(
        y, y, y, y.shape[-1], heads, p[f"{prefix}in_proj_weight"], p[f"{prefix}in_proj_bias"], None, None, False, 0.0,
        p[f"{prefix}out_proj.weight"], p[f"{prefix}out_proj.bias"], attn_mask=mask, need_weights=False,
    )  # fmt: skip
    return out.transpose(0, 1)


def norm(x, p, name, eps):
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], eps)


def transformer(x, p, prefix, layers, heads, act, eps, mask=None, taps=None, name="", before=lambda i, x: x):
    for i in range(layers):
        x = before(i, x)
        b = f"{prefix}transformer.resblocks.{i}."
        x = x + self_attention(norm(x, p, b + "ln_1", eps), p, b + "attn.", heads, mask)
        hidden = act(F.linear(norm(x, p, b + "ln_2", eps), p[b + "mlp.c_fc.weight"], p[b + "mlp.c_fc.bias"]))
        x = x + F.linear(hidden, p[b + "mlp.c_proj.weight"], p[b + "mlp.c_proj.bias"])
        if taps is not None:
            taps[f"{name}block{i}"] = x
    return x


def encode_image(p, config: CLIPConfig, images, taps=None, training=False):
    if config.vision.kind == "resnet":
        return encode_resnet(p, config, images, taps, training)
    return encode_vit(p, config, images, taps)


def encode_vit(p, config: CLIPConfig, images, taps=None):
    v, eps = config.vision, config.norm_eps
    x = F.conv2d(images, p["visual.conv1.weight"], stride=v.patch_size).flatten(2).transpose(1, 2)
    x = torch.cat([p["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + p["visual.positional_embedding"]
    x = norm(x, p, "visual.ln_pre", eps)
    if taps is not None:
        taps["visual.stem"] = x
    x = transformer(x, p, "visual.", v.layers, v.heads, activation(config.activation), eps, taps=taps, name="visual.")
    return norm(x[:, 0], p, "visual.ln_post", eps) @ p["visual.proj"]


def encode_resnet(p, config: CLIPConfig, images, taps=None, training=False):
    def bn(x, name):
        running = p[f"{name}.running_mean"], p[f"{name}.running_var"]
        return F.batch_norm(x, *running, p[f"{name}.weight"], p[f"{name}.bias"], training, 0.1, 1e-5)

    x = images
    for i, stride in ((1, 2), (2, 1), (3, 1)):
        x = F.relu(bn(F.conv2d(x, p[f"visual.conv{i}.weight"], stride=stride, padding=1), f"visual.bn{i}"))
    x = F.avg_pool2d(x, 2)
    if taps is not None:
        taps["visual.stem"] = x
    for stage, blocks in enumerate(config.vision.layers, start=1):
        for j in range(blocks):
            b, stride = f"visual.layer{stage}.{j}.", 2 if stage > 1 and j == 0 else 1
            y = F.relu(bn(F.conv2d(x, p[b + "conv1.weight"]), b + "bn1"))
            y = F.relu(bn(F.conv2d(y, p[b + "conv2.weight"], padding=1), b + "bn2"))
            y = bn(F.conv2d(F.avg_pool2d(y, stride) if stride > 1 else y, p[b + "conv3.weight"]), b + "bn3")
            if b + "downsample.0.weight" in p:
                x = F.avg_pool2d(x, stride) if stride > 1 else x
                x = bn(F.conv2d(x, p[b + "downsample.0.weight"]), b + "downsample.1")
            x = F.relu(x + y)
        if taps is not None:
            taps[f"visual.layer{stage}"] = x
    return attention_pool(p, config, x)


def attention_pool(p, config: CLIPConfig, x):
    a = "visual.attnpool."
    x = x.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x]) + p[a + "positional_embedding"][:, None]
    out, _ = F.multi_head_attention_forward(
        x[:1], x, x, x.shape[-1], config.vision.heads, None,
        torch.cat([p[f"{a}{k}_proj.bias"] for k in "qkv"]), None, None, False, 0.0,
        p[a + "c_proj.weight"], p[a + "c_proj.bias"], use_separate_proj_weight=True, need_weights=False,
        q_proj_weight=p[a + "q_proj.weight"], k_proj_weight=p[a + "k_proj.weight"], v_proj_weight=p[a + "v_proj.weight"],
    )  # fmt: skip
    return out[0]


def encode_text(p, config: CLIPConfig, tokens, taps=None):
    t, eps = config.text, config.norm_eps
    x = p["token_embedding.weight"][tokens] + p["positional_embedding"]
    if taps is not None:
        taps["text.stem"] = x
    mask = torch.full((tokens.shape[1],) * 2, float("-inf"), dtype=x.dtype).triu(1)  # of another type it is misread
    x = transformer(x, p, "", t.layers, t.heads, activation(config.activation), eps, mask, taps, "text.")
    x = norm(x, p, "ln_final", eps)
    return x[torch.arange(len(x)), tokens.argmax(1)] @ p["text_projection"]


def parameters(arrays, requires_grad=False):
    """Arrays by name as torch tensors; running statistics never want gradients."""
    p = {k: torch.tensor(v).squeeze(0) if k == "logit_scale" and v.ndim else torch.tensor(v) for k, v in arrays.items()}
    for k, v in p.items():
        v.requires_grad_(requires_grad and "running_" not in k)
    return p
