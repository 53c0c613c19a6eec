"""A vision transformer read as TagCLIP reads it: patch features with the layers' attention, and crops seen in part.

Lin et al., AAAI 2024, arXiv 2312.12828. Needs attention weights, which the fused operator does not give.
"""

from __future__ import annotations

import numpy as np

from jclip import kernels
from jclip.functional.positions import resample_bilinearly
from jclip.functional.similarity import normalise
from jclip.kernels import plain
from jclip.model import clip, vit
from jclip.model.layers import Block
from jclip.runtime import jt


def patches_with_attention(model: clip.CLIP, pixels, layers: range, votes: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, 3, H, W) of any size in patches → features (B, P, E), of length one, and attention (B, P, P).

    In the last block each token attends to itself alone, all else there is as ever. attention: the mean over `layers` of
    the heads' mean weights of the patches, 0 where fewer than `votes` of all layers are above their own mean.
    """
    tower = model.visual
    x, depth = tower.ln_pre(_embedded(model, pixels)), len(tower.transformer.resblocks)
    total, count = np.float32(0), 0
    for i in range(depth):
        block = tower.transformer.resblocks[i]
        normed = block.ln_1(x)
        qkv = block.attn.in_proj(normed)
        weights = plain.attention_weights(qkv, block.attn.heads)[:, 1:, 1:].numpy()
        count = count + (weights > weights.mean(axis=(1, 2), keepdims=True))
        total = total + weights if i in layers else total
        mixed = block.attn.values(normed) if i == depth - 1 else block.attn.out_proj(attend(block, qkv))
        x = _behind_attention(block, x, mixed)
    attention = total / np.float32(len(layers)) * (count >= votes)
    return _features(tower, x[:, 1:]).numpy(), attention


def crops_seen_in_part(model: clip.CLIP, pixels, masks: np.ndarray):
    """(B, 3, H, W) of the model's size, masks (B, P) bool → (B, E), of length one.

    In every layer the class token sees itself and the patches of its mask, patches see everything.
    """
    tower = model.visual
    keep = jt.array(np.pad(masks.astype(np.float32), ((0, 0), (1, 0)), constant_values=1))
    x = tower.ln_pre(_embedded(model, pixels))
    for i in range(len(tower.transformer.resblocks)):
        block = tower.transformer.resblocks[i]
        qkv = block.attn.in_proj(block.ln_1(x))
        first = plain.attention_at_first(qkv, block.attn.heads, keep)
        mixed = jt.concat([first, attend(block, qkv)[:, 1:].cast(first.dtype)], dim=1)
        x = _behind_attention(block, x, block.attn.out_proj(mixed))
    return _features(tower, x[:, 0]).numpy()


def attend(block: Block, qkv):
    """(B, N, 3D) → (B, N, D), before the output projection."""
    return kernels.attention(qkv, block.attn.heads)


def _embedded(model: clip.CLIP, pixels):
    """(B, 3, H, W) → (B, 1 + P, D), the table of positions brought to the photo's grid (bilinear)."""
    tower, vision = model.visual, model.config.vision
    x, patch = model.image_input(pixels), vision.patch_size
    grid = (x.shape[2] // patch, x.shape[3] // patch)
    if grid == vision.grid:
        return tower.embed(x)
    table = resample_bilinearly(tower.positional_embedding.float32().numpy(), vision.grid, grid)
    return tower.embed(x, jt.array(np.ascontiguousarray(table)).cast(tower.positional_embedding.dtype))


def _behind_attention(block: Block, x, mixed):
    """What a block makes of its input and its attention's output, both (B, N, D)."""
    if block.layer_scale:
        x = x + block.ls_1(mixed)
        return x + block.ls_2(block.mlp(block.ln_2(x)))
    x = x + mixed
    return block.mlp(block.ln_2(x), residual=x)


def _features(tower: vit.VisionTransformer, x):
    """(..., D) → (..., E), of length one."""
    return normalise(kernels.linear(tower.ln_post(x), tower.proj.transpose(0, 1)))
