"""EVA-CLIP's image tower in float64 NumPy, written from the papers' formulas: the oracle where no package has the model."""

from __future__ import annotations

import math

import numpy as np


def encode_image(arrays: dict[str, np.ndarray], pixels: np.ndarray, heads: int, post_norm: bool) -> np.ndarray:
    """(B, 3, H, W) → (B, E). What kind of tower it is shows in the names, but for `post_norm`."""
    w = {k.removeprefix("visual.trunk."): v.astype(np.float64) for k, v in arrays.items() if k.startswith("visual.")}
    x, grid = patches(w, pixels.astype(np.float64))
    layers = 1 + max(int(k.split(".")[1]) for k in w if k.startswith("blocks."))
    for i in range(layers):
        block = {k.removeprefix(f"blocks.{i}."): v for k, v in w.items() if k.startswith(f"blocks.{i}.")}

        def attend(x, block=block):
            return attention(block, x, heads, grid)

        def widen(x, block=block):
            return mlp(block, x)

        for norm, branch in (("norm1", attend), ("norm2", widen)):
            x = x + (normed(block, norm, branch(x)) if post_norm else branch(normed(block, norm, x)))
    return normed(w, "norm", x)[:, 0] @ w["head.weight"].T + w.get("head.bias", 0.0)


def patches(w: dict, pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    kernel = w["patch_embed.proj.weight"]
    p = kernel.shape[-1]
    rows, columns = pixels.shape[2] // p, pixels.shape[3] // p
    cells = [
        np.einsum("bchw,dchw->bd", pixels[:, :, r * p : (r + 1) * p, c * p : (c + 1) * p], kernel)
        for r in range(rows)
        for c in range(columns)
    ]
    x = np.stack(cells, axis=1) + w["patch_embed.proj.bias"]
    first = np.repeat(w["cls_token"], len(x), axis=0)
    return np.concatenate([first, x], axis=1) + w["pos_embed"], (rows, columns)


def normed(w: dict, name: str, x: np.ndarray) -> np.ndarray:
    if f"{name}.bias" not in w:
        return w[f"{name}.weight"] * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    centred = x - x.mean(-1, keepdims=True)
    return w[f"{name}.weight"] * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) + w[f"{name}.bias"]


def attention(w: dict, x: np.ndarray, heads: int, grid: tuple[int, int]) -> np.ndarray:
    width = x.shape[-1]
    if "attn.qkv.weight" in w:
        q, k, v = (x @ part.T for part in np.split(w["attn.qkv.weight"], 3))
        q, v = q + w.get("attn.q_bias", 0.0), v + w.get("attn.v_bias", 0.0)
    else:
        q, k, v = (x @ w[f"attn.{n}_proj.weight"].T + w.get(f"attn.{n}_proj.bias", 0.0) for n in "qkv")
    d, joined = width // heads, np.empty_like(x)
    for h in range(heads):
        own = slice(h * d, (h + 1) * d)
        a, b = q[..., own], k[..., own]
        if "attn.norm.weight" in w:
            a, b = rotated(a, grid), rotated(b, grid)
        scores = a @ b.transpose(0, 2, 1) / math.sqrt(d)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        joined[..., own] = weights / weights.sum(-1, keepdims=True) @ v[..., own]
    if "attn.norm.weight" in w:
        joined = normed(w, "attn.norm", joined)
    return joined @ w["attn.proj.weight"].T + w["attn.proj.bias"]


def rotated(x: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Patch (r, c): pair j of the first half turns by r/rows*16 * 10000^(-2j/(d/2)), of the second by the column's."""
    y, half = x.copy(), x.shape[-1] // 2
    for patch in range(grid[0] * grid[1]):
        places = (patch // grid[1] / grid[0] * 16, patch % grid[1] / grid[1] * 16)
        for j in range(half // 2):
            for offset, place in zip((0, half), places, strict=True):
                turn = complex(math.cos(angle := place * 10000 ** (-2 * j / half)), math.sin(angle))
                at = offset + 2 * j
                pair = (x[:, 1 + patch, at] + 1j * x[:, 1 + patch, at + 1]) * turn
                y[:, 1 + patch, at], y[:, 1 + patch, at + 1] = pair.real, pair.imag
    return y


def mlp(w: dict, x: np.ndarray) -> np.ndarray:
    def through(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[f"mlp.{name}.weight"].T + w[f"mlp.{name}.bias"]

    if "mlp.fc1_g.weight" in w:
        gate = through("fc1_g", x)
        return through("fc2", normed(w, "mlp.norm", gate / (1 + np.exp(-gate)) * through("fc1_x", x)))
    x = through("fc1", x)
    return through("fc2", 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))
