"""What bench/grounding_speed.py runs on torch's side: CLIP-VG from its formulas, as its authors write it, and as jclip saves.

"authors": both towers in each step, 77 text tokens, a photo encoded for each phrase, all tokens in all layers. "same
savings": text cut at the longest, photos once, no token at which nothing looks (padded to the longest sequence), [REG]
alone in the last layer, the first layer's products of distinct tokens, sdpa, a fused optimiser. Dropout on both.
"""

from __future__ import annotations

import os

import numpy as np
import torch
import torch.nn.functional as F
from grounding_sides import (
    CLIP,
    DECAY,
    DROPOUT,
    HEADS,
    LAYERS,
    MODEL,
    RATE,
    Given,
    Step,
    attention_inputs,
    given,
    network_arrays,
    tokens_of_batch,
    weights,
)

from jclip.weights.checkpoint import open_checkpoint
from jclip.weights.variants import VARIANTS
from tests.parity import torch_clip

LEVELS = (0, 3, 7, 11)
MAX_TEXT = 77


class Towers:
    """Both of CLIP's, attention by sdpa."""

    def __init__(self, positions: bool = False):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.p = torch_clip.parameters(dict(open_checkpoint(weights()).arrays()))
        self.config = VARIANTS[MODEL]
        self.act = torch_clip.activation(self.config.activation)
        self.positions = self.p["visual.positional_embedding"].requires_grad_(positions)

    def _blocks(self, x, prefix: str, heads: int, causal: bool):
        """Each block's output."""
        p, found = self.p, []
        for i in range(12):
            b = f"{prefix}transformer.resblocks.{i}."
            y = torch_clip.norm(x, p, b + "ln_1", 1e-5)
            qkv = F.linear(y, p[b + "attn.in_proj_weight"], p[b + "attn.in_proj_bias"])
            split = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)]
            y = F.scaled_dot_product_attention(*split, is_causal=causal).transpose(1, 2).flatten(-2)
            x = x + F.linear(y, p[b + "attn.out_proj.weight"], p[b + "attn.out_proj.bias"])
            y = torch_clip.norm(x, p, b + "ln_2", 1e-5)
            y = self.act(F.linear(y, p[b + "mlp.c_fc.weight"], p[b + "mlp.c_fc.bias"]))
            x = x + F.linear(y, p[b + "mlp.c_proj.weight"], p[b + "mlp.c_proj.bias"])
            found.append(x)
        return found

    def images(self, pixels):
        """(I, 3, S, S) → (I, N, 4 W)."""
        p, v = self.p, self.config.vision
        x = F.conv2d(pixels, p["visual.conv1.weight"], stride=v.patch_size).flatten(2).transpose(1, 2)
        x = torch.cat([p["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + self.positions
        found = self._blocks(torch_clip.norm(x, p, "visual.ln_pre", 1e-5), "visual.", v.heads, False)
        return torch.cat([found[i] for i in LEVELS], dim=2)

    def texts(self, ids):
        """(B, L) → (B, L, E)."""
        p = self.p
        x = p["token_embedding.weight"][ids] + p["positional_embedding"][: ids.shape[1]]
        x = self._blocks(x, "", self.config.text.heads, True)[-1]
        return torch_clip.norm(x, p, "ln_final", 1e-5) @ p["text_projection"]


class Fusion:
    """The fusion network's parameters, and its parts that both ways share."""

    def __init__(self):
        self.p = {k: torch.from_numpy(v).clone().requires_grad_() for k, v in network_arrays().items()}

    def linear(self, x, name: str):
        return F.linear(x, self.p[f"{name}.weight"], self.p[f"{name}.bias"])

    def behind(self, x, mixed, name: str, rate: float):
        """What a layer makes of its input and its attention's projected output."""
        x = torch_clip.norm(x + F.dropout(mixed, rate), self.p, f"{name}.norm1", 1e-5)
        inner = F.dropout(torch.relu(self.linear(x, f"{name}.linear1")), rate)
        return torch_clip.norm(
            x + F.dropout(self.linear(inner, f"{name}.linear2"), rate), self.p, f"{name}.norm2", 1e-5
        )

    def boxes(self, x):
        """[REG] (B, D) → (B, 4)."""
        for i in (0, 1):
            x = torch.relu(self.linear(x, f"bbox_embed.layers.{i}"))
        return torch.sigmoid(self.linear(x, "bbox_embed.layers.2"))

    def as_authors(self, images, texts, said, seen, rate: float):
        """(B, N, W), (B, 77, E) → (B, 4)."""
        p, B = self.p, len(texts)
        reg = p["reg_token.weight"].expand(B, 1, -1)
        x = torch.cat([reg, self.linear(texts, "text_proj"), self.linear(images, "ml_visu_proj")], dim=1).transpose(
            0, 1
        )
        ignored = torch.cat([torch.zeros(B, 1, dtype=torch.bool), ~said, ~seen], dim=1)
        positions = p["vl_pos_embed.weight"][:, None]
        for i in range(LAYERS):
            name = f"vl_transformer.encoder.layers.{i}"
            q = k = x + positions
            mixed, _ = F.multi_head_attention_forward(
                q, k, x, x.shape[-1], HEADS, p[f"{name}.self_attn.in_proj_weight"], p[f"{name}.self_attn.in_proj_bias"],
                None, None, False, rate, p[f"{name}.self_attn.out_proj.weight"], p[f"{name}.self_attn.out_proj.bias"],
                training=True, key_padding_mask=ignored,
            )  # fmt: skip
            x = self.behind(x, mixed, name, rate)
        return self.boxes(x[0])

    def saving(self, images, texts, read: Read, rate: float):
        """Tokens of distinct photos and phrases that are read at all, (R, W) and (S, E) → (B, 4)."""
        p, D = self.p, self.p["reg_token.weight"].shape[1]
        tokens = torch.cat(
            [p["reg_token.weight"], self.linear(texts, "text_proj"), self.linear(images, "ml_visu_proj")]
        )
        x = tokens[read.index]
        shared = len(tokens) < 0.8 * read.index.numel()
        for i in range(LAYERS):
            name = f"vl_transformer.encoder.layers.{i}"
            weight, bias = p[f"{name}.self_attn.in_proj_weight"], p[f"{name}.self_attn.in_proj_bias"]
            moved = F.pad(F.linear(p["vl_pos_embed.weight"], weight[: 2 * D]), (0, D))[read.places]
            if i + 1 < LAYERS:
                first = F.linear(tokens, weight, bias)[read.index] if i == 0 and shared else F.linear(x, weight, bias)
                q, k, v = map(heads_of, (first + moved).chunk(3, dim=-1))
            else:
                q = heads_of(F.linear(x[:, :1], weight[:D], bias[:D]) + moved[:, :1, :D])
                k, v = map(heads_of, (F.linear(x, weight[D:], bias[D:]) + moved[:, :, D:]).chunk(2, dim=-1))
                x = x[:, :1]
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=read.keys[:, None, None], dropout_p=rate)
            mixed = self.linear(mixed.transpose(1, 2).flatten(-2), f"{name}.self_attn.out_proj")
            x = self.behind(x, mixed, name, rate)
        return self.boxes(x[:, 0])


class Read:
    """Which tokens are read: rows of (I N) images and (B L) texts, and of [REG], these texts and images each token of (B, M)
    sequences, padded at their ends, with their places and keys."""

    def __init__(self, said: np.ndarray, seen: np.ndarray, of: np.ndarray):
        texts, images = np.cumsum(said).reshape(said.shape), np.cumsum(seen).reshape(seen.shape)
        rows = [
            [
                (0, 0),
                *((texts[b, j], 1 + j) for j in np.flatnonzero(said[b])),
                *((said.sum() + images[of[b], j], 1 + MAX_TEXT + j) for j in np.flatnonzero(seen[of[b]])),
            ]
            for b in range(len(said))
        ]
        longest = max(map(len, rows))
        table = torch.tensor([row + [(0, 0)] * (longest - len(row)) for row in rows], dtype=torch.long)
        self.index, self.places = table[:, :, 0], table[:, :, 1]
        self.keys = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
        self.texts, self.images = (torch.from_numpy(np.flatnonzero(a)) for a in (said, seen))


def heads_of(x):
    """(B, N, D) → (B, heads, N, d)."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def box_loss(p, t):
    """Σ|p - t| + 1 - GIoU, the mean."""
    (a0, a1), (b0, b1) = ((x[:, :2] - x[:, 2:] / 2, x[:, :2] + x[:, 2:] / 2) for x in (p, t))
    shared = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp(min=0).prod(1)
    union = p[:, 2:].prod(1) + t[:, 2:].prod(1) - shared
    hull = (torch.maximum(a1, b1) - torch.minimum(a0, b0)).prod(1)
    return ((p - t).abs().sum(1) + 1 - shared / (union + 1e-7) + (hull - union) / (hull + 1e-7)).mean()


def found(fusion: Fusion, towers: Towers | None, data: Given, side: str, rate: float, stored: dict | None = None):
    """Boxes (B, 4) of a batch. stored: tokens of both towers, in their place."""
    lengths = torch.from_numpy(data.ids.argmax(axis=1) + 1)
    of, pixels = torch.from_numpy(data.of), torch.from_numpy(data.pixels)
    ids, seen = torch.from_numpy(data.ids).long(), torch.from_numpy(data.seen) > 0
    if side != "same savings":
        with torch.no_grad():
            texts = towers.texts(ids)
        with torch.set_grad_enabled(side == "authors, positions"):
            images = towers.images(pixels[of])
        return fusion.as_authors(images, texts, torch.arange(MAX_TEXT) < lengths[:, None], seen[of], rate)
    with torch.no_grad():
        if stored is None:
            images, texts = towers.images(pixels), towers.texts(ids[:, : int(lengths.max())])
        else:
            images, texts = (torch.from_numpy(stored[k]) for k in ("images", "texts"))
        read = Read((torch.arange(texts.shape[1]) < lengths[:, None]).numpy(), seen.numpy(), data.of)
        images, texts = images.flatten(0, 1)[read.images].float(), texts.flatten(0, 1)[read.texts]
    return fusion.saving(images, texts, read, rate)


def training(side: str, cached: bool = False) -> Step:
    """A step. side: authors; authors, positions (the image tower's are trained, too, as published); same savings."""
    data, fusion = given("training"), Fusion()
    towers = None if cached else Towers(side == "authors, positions")
    wanted, stored = torch.from_numpy(data.boxes), tokens_of_batch() if cached else None
    params = [*fusion.p.values(), *([towers.positions] if side == "authors, positions" else [])]
    saving = side == "same savings"
    optim = torch.optim.AdamW(params, RATE, weight_decay=DECAY, fused=saving or None)

    def run() -> float:
        loss = box_loss(found(fusion, towers, data, side, DROPOUT, stored), wanted)
        optim.zero_grad()
        loss.backward()
        if saving:  # as jclip does; the authors do not
            torch.nn.utils.clip_grad_norm_(params, CLIP)
        optim.step()
        return loss.item()

    def compared() -> np.ndarray:
        with torch.no_grad():
            return box_loss(found(fusion, towers, data, side, 0.0, stored), wanted).reshape(1).numpy()

    return Step(run, compared)


def inference(side: str) -> Step:
    """Boxes of all phrases in a photo."""
    data, fusion, towers = given("inference"), Fusion(), Towers()

    @torch.inference_mode()
    def boxes() -> np.ndarray:
        return found(fusion, towers, data, side, 0.0).numpy()

    return Step(lambda: float(boxes()[0, 0]), boxes)


def attention(rate: float) -> Step:
    """sdpa with a mask, forward and backward, from q, k and v side by side."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    qkv, keys, grad = map(torch.from_numpy, attention_inputs())
    mask = keys[:, None, None] > 0

    def both(rate: float):
        x = qkv.clone().requires_grad_()
        q, k, v = map(heads_of, x.chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        (mixed.transpose(1, 2).flatten(-2) * grad).sum().backward()
        return x.grad

    def run() -> float:
        both(rate)
        return 0.0

    return Step(run, lambda: both(0.0).numpy())
