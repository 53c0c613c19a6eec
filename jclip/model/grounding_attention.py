"""Where [REG] looks: the weights with which the last layer of the network that finds boxes mixes [REG] from all tokens."""

from __future__ import annotations

import math

import numpy as np

from jclip.model.grounding import GroundingNetwork
from jclip.runtime import jt


def reg_attention(network: GroundingNetwork, images, texts, said, seen=None, of=None) -> np.ndarray:
    """Image tokens (I, N, W), text tokens (B, L, E) and what of them counts, as the network is called → (B, heads, 1 + L + N).

    softmax_j(q_REG · k_j / √d) of the last layer: over [REG], the L text tokens and the N image tokens, in this order; 0
    at what does not count.
    """
    with jt.no_grad():
        images, texts = network.projected_images(images), network.projected_texts(texts)
        seen = np.ones(images.shape[:2], np.float32) if seen is None else np.asarray(seen, np.float32)
        if of is not None:
            images, seen = images[jt.array(np.asarray(of, np.int32))], seen[of]
        B, L, D = texts.shape
        start = network.reg_token.weight.reshape((1, 1, D)).expand((B, 1, D))
        x, positions = jt.concat([start, texts, images], dim=1), network.positions(L)
        counted = np.concatenate([np.ones((B, 1), np.float32), np.asarray(said, np.float32), seen], axis=1)
        *before, last = (network.vl_transformer.encoder.layers[i] for i in range(network.shape.layers))
        for layer in before:
            x = layer(x, positions, jt.array(counted))
        qkv = last.self_attn.qkv(x, positions).numpy()
    heads = network.shape.heads
    q, k, _ = np.split(qkv.astype(np.float64).reshape(B, -1, 3 * heads, D // heads), 3, axis=2)
    scores = np.einsum("bhd,bnhd->bhn", q[:, 0], k) / math.sqrt(D // heads)
    scores = np.where(counted[:, None] > 0, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    return weights / weights.sum(axis=2, keepdims=True)
