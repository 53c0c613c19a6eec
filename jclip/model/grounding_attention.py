"""Where [REG] looks: the weights with which the last layer of the network that finds boxes mixes [REG] from all tokens.

The network itself keeps no weights of attention; here its formulas are written out in NumPy, for the few phrases that one
looks at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from jclip.functional.metrics import softmax
from jclip.model.grounding import GroundingNetwork, shape_projection

EPSILON = 1e-5  # of the LayerNorms
HIDDEN = -1e30  # score of a token that does not count


def reg_attention(network: GroundingNetwork, images, texts, said, seen=None, of=None) -> np.ndarray:
    """Image tokens (I, N, W), text tokens (B, L, E) and what of them counts, as the network is called → (B, heads, 1 + L + N).

    softmax_j(q_REG · k_j / √d) of the last layer, over [REG], the L text tokens and the N image tokens, in this order; 0 at
    what does not count.
    """
    p = {name: value.numpy() for name, value in network.state_dict().items()}
    shape, texts = network.shape, np.asarray(texts, np.float32)
    images = _projected(np.asarray(images, np.float32), p, shape_projection(shape), "visu_norm")
    seen = np.ones(images.shape[:2], np.float32) if seen is None else np.asarray(seen, np.float32)
    if of is not None:
        images, seen = images[of], seen[of]
    texts = _projected(texts, p, "text_proj", "text_norm")
    B, L, D = texts.shape
    x = np.concatenate([np.broadcast_to(p["reg_token.weight"], (B, 1, D)), texts, images], axis=1)
    positions = np.delete(p["vl_pos_embed.weight"], np.s_[1 + L : 1 + shape.max_text], axis=0)
    counted = np.concatenate([np.ones((B, 1), np.float32), np.asarray(said, np.float32), seen], axis=1)
    for number in range(shape.layers):
        layer = f"vl_transformer.encoder.layers.{number}"
        first = number + 1 == shape.layers
        weights, v = _attention(x, positions, counted, p, f"{layer}.self_attn", shape.heads, first)
        if first:
            break
        mixed = (weights.astype(np.float32) @ v).transpose(0, 2, 1, 3).reshape(B, -1, D)
        x = _normed(x + _linear(mixed, p, f"{layer}.self_attn.out_proj"), p, f"{layer}.norm1")
        inner = np.maximum(_linear(x, p, f"{layer}.linear1"), 0)
        x = _normed(x + _linear(inner, p, f"{layer}.linear2"), p, f"{layer}.norm2")
    return weights[:, :, 0]


def _attention(x, positions, counted, p: Mapping[str, np.ndarray], name: str, heads: int, first: bool):
    """Weights (B, heads, N, N), with `first` (B, heads, 1, N) of the first token alone, and values (B, heads, N, d)."""
    B, N, D = x.shape
    parts = zip(np.split(p[f"{name}.in_proj_weight"], 3), np.split(p[f"{name}.in_proj_bias"], 3), strict=True)
    inputs = (x + positions, x + positions, x)
    q, k, v = (
        (y @ weight.T + bias).reshape(B, N, heads, D // heads).transpose(0, 2, 1, 3)
        for y, (weight, bias) in zip(inputs, parts, strict=True)
    )
    scores = (q[:, :, :1] if first else q) @ k.transpose(0, 1, 3, 2) / math.sqrt(D // heads)
    return softmax(np.where(counted[:, None, None] > 0, scores, HIDDEN)), v


def _projected(x: np.ndarray, p: Mapping[str, np.ndarray], name: str, norm: str) -> np.ndarray:
    x = _linear(x, p, name)
    return _normed(x, p, norm) if f"{norm}.weight" in p else x


def _linear(x: np.ndarray, p: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _normed(x: np.ndarray, p: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(EPSILON))
    return centred / deviation * p[f"{name}.weight"] + p[f"{name}.bias"]
