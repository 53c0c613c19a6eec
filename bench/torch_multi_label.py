"""What bench/multi_label_speed.py runs on torch's side: TaI-DPT's training step and a contest entry's scoring, as published.

"authors": each step encodes its captions and both sets of prompts, all of 77 tokens; each model has an image tower of its
own, and each of three runs decodes and cuts the photos again. "same savings": what jclip saves is saved here as well.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from multi_label_sides import (
    BATCH,
    DECAY,
    MODEL,
    MOMENTUM,
    RATE,
    RUNS,
    SCALE,
    TAU,
    VECTORS,
    Side,
    caption_ids,
    checkpoint,
    fingerprint,
    first_vectors,
    photos,
    plan_of,
    prompt_ids,
    texts_of,
    winner,
)
from PIL import Image

from jclip.data.preprocess import Preprocess
from jclip.functional.window_fusion import fused_windows
from jclip.functional.windows import cut, sliding_windows
from jclip.weights.checkpoint import open_checkpoint
from jclip.weights.variants import VARIANTS
from tests.parity import torch_clip

AT_ONCE = 16  # photos of which the authors encode the same window together


def loaded() -> dict:
    """Parameters by name, at the number of threads that was asked for."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return torch_clip.parameters(dict(open_checkpoint(checkpoint()).arrays()))


class Text:
    """The text tower, its attention torch's own; what rows begin alike with may be computed once."""

    def __init__(self, p: dict):
        self.p, self.config = p, VARIANTS[MODEL].text
        self.act = torch_clip.activation(VARIANTS[MODEL].activation)

    def _heads(self, x):
        return x.unflatten(-1, (self.config.heads, -1)).transpose(-3, -2)

    def _qkv(self, x, b):
        y = torch_clip.norm(x, self.p, b + "ln_1", 1e-5)
        qkv = F.linear(y, self.p[b + "attn.in_proj_weight"], self.p[b + "attn.in_proj_bias"])
        return [self._heads(part) for part in qkv.chunk(3, dim=-1)]

    def _after(self, x, seen, b):
        p, seen = self.p, seen.transpose(-3, -2).flatten(-2)
        x = x + F.linear(seen, p[b + "attn.out_proj.weight"], p[b + "attn.out_proj.bias"])
        hidden = self.act(
            F.linear(torch_clip.norm(x, p, b + "ln_2", 1e-5), p[b + "mlp.c_fc.weight"], p[b + "mlp.c_fc.bias"])
        )
        return x + F.linear(hidden, p[b + "mlp.c_proj.weight"], p[b + "mlp.c_proj.bias"])

    def blocks(self, x):
        """(B, L, D) → (B, L, D)."""
        for i in range(self.config.layers):
            b = f"transformer.resblocks.{i}."
            x = self._after(x, F.scaled_dot_product_attention(*self._qkv(x, b), is_causal=True), b)
        return x

    def blocks_sharing(self, start, x):
        """start (R, A, D) stands before each of x (R, C, S, D) → x after the blocks."""
        R, C, S, _ = x.shape
        alike = start.shape[1]
        mask = torch.ones(S, alike + S, dtype=torch.bool).tril(alike)
        for i in range(self.config.layers):
            b = f"transformer.resblocks.{i}."
            q, k, v = self._qkv(x, b)
            first = self._qkv(start, b)
            k, v = (
                torch.cat([own[:, None].expand(-1, C, -1, -1, -1), each], dim=3).flatten(0, 1)
                for own, each in zip(first[1:], (k, v), strict=True)
            )
            seen = F.scaled_dot_product_attention(q.flatten(0, 1), k, v, attn_mask=mask).unflatten(0, (R, C))
            x = self._after(x, seen, b)
            start = self._after(start, F.scaled_dot_product_attention(*first, is_causal=True), b)
        return x

    def projected(self, x):
        """Features, not normalised."""
        return torch_clip.norm(x, self.p, "ln_final", 1e-5) @ self.p["text_projection"]


def ranking_loss(scores, targets):
    """The authors': all (B, C, C) pairs."""
    hinge = torch.clamp(1 - scores[:, None, :] + scores[:, :, None], min=0)
    return (hinge * (targets[:, None, :] == 1) * (targets[:, :, None] == 0)).sum((1, 2)).mean()


def ranking_loss_of_pairs(scores, targets):
    """The same of the pairs of what is present alone."""
    rows, present = torch.nonzero(targets == 1, as_tuple=True)
    hinge = torch.clamp(1 - scores[rows, present][:, None] + scores[rows], min=0)
    return (hinge * (targets[rows] == 0)).sum() / len(scores)


def training(data: Path, side: str) -> Side:
    """side: authors, cut or cut and shared."""
    p = loaded()
    text = Text(p)
    ids, labels = caption_ids(data)
    tokens, targets, prompts = (
        torch.from_numpy(ids).long(),
        torch.from_numpy(labels),
        torch.from_numpy(prompt_ids()).long(),
    )
    ends = prompts.argmax(dim=1)
    vectors = [torch.from_numpy(v).clone().requires_grad_() for v in first_vectors()]
    optim = torch.optim.SGD(vectors, RATE, momentum=MOMENTUM, weight_decay=DECAY)
    length = 77 if side == "authors" else int(ends.max()) + 1
    words, places = p["token_embedding.weight"][prompts[:, :length]], p["positional_embedding"][:length]

    def sentences():
        """(L, B, D) of length one at every token, (B, D) at the ends, padding (B, L)."""
        kept = tokens if side == "authors" else tokens[:, : int(tokens.argmax(dim=1).max()) + 1]
        with torch.no_grad():
            x = p["token_embedding.weight"][kept] + p["positional_embedding"][: kept.shape[1]]
            every = text.projected(text.blocks(x))
            end = F.normalize(every[torch.arange(BATCH), kept.argmax(dim=1)], dim=-1)
            return F.normalize(every, dim=-1).permute(1, 0, 2).contiguous(), end, kept == 0

    def filled(own):
        return torch.cat([words[:, :1], own.expand(len(words), -1, -1), words[:, 1 + VECTORS :]], dim=1) + places

    def features():
        """(80, 1024) of both sets."""
        rows = torch.arange(len(words))
        if side == "authors":
            return [F.normalize(text.projected(text.blocks(filled(own))[rows, ends]), dim=-1) for own in vectors]
        x = torch.stack([filled(own) for own in vectors])
        if side == "cut":
            x = text.blocks(x.flatten(0, 1)).unflatten(0, (2, -1))[:, rows, ends]
        else:
            alike = 1 + VECTORS
            x = text.blocks_sharing(x[:, 0, :alike], x[:, :, alike:])[:, rows, ends - alike]
        return F.normalize(text.projected(x), dim=-1).unbind(0)

    known, loss_of = (
        None if side == "authors" else sentences(),
        ranking_loss if side == "authors" else ranking_loss_of_pairs,
    )

    def step() -> dict:
        every, end, padding = known or sentences()
        whole, local = features()
        found = every @ local.T - 10_000.0 * padding.T[:, :, None]
        scores = (SCALE * found * torch.softmax(TAU * found, dim=0)).sum(dim=0)
        loss = loss_of(SCALE * end @ whole.T, targets) + loss_of(scores, targets)
        optim.zero_grad()
        loss.backward()
        optim.step()
        return {"loss": loss.item()}

    return step, {}


def scoring(kind: str) -> Side:
    """One photo by six models: three runs, each of which decodes and cuts it; a tower pass per model."""
    p, config, path = loaded(), VARIANTS[MODEL], photos()[0]
    p["visual.attnpool.positional_embedding"] = torch.zeros_like(p["visual.attnpool.positional_embedding"])
    heads = {name: {k: torch.from_numpy(v) for k, v in texts_of(name).items()} for run in RUNS for name in run}
    whole = Preprocess(size=config.vision.image_size)

    @torch.inference_mode()
    def run() -> dict:
        found, passes = {}, 0
        for names in RUNS:
            rgb = Image.open(path).convert("RGB")
            boxes = windows_of(rgb, kind)
            pixels = np.asarray(rgb)
            views = [whole(rgb), *(whole(Image.fromarray(cut(pixels, box))) for box in boxes)]
            for name in names:
                parts = []
                for at in range(0, len(views), AT_ONCE):
                    batch = torch.from_numpy(np.stack(views[at : at + AT_ONCE]))
                    parts.append(scores_of(p, config, batch, heads[name], winner(name)))
                    passes += len(batch)
                found[name] = fused(*(torch.cat(part).numpy() for part in zip(*parts, strict=True)))
        order = [name for run in RUNS for name in run]
        return {"passes": passes, "scores": fingerprint({name: found[name] for name in order})}

    return run, {"photos": 1}


def windows_of(rgb: Image.Image, kind: str) -> np.ndarray:
    """The published boxes."""
    plan = {k: v for k, v in plan_of("304 windows" if kind == "dense" else kind).items() if k in ("scales", "shapes")}
    return sliding_windows(rgb.height, rgb.width, "seed", **plan).boxes


def fused(whole: np.ndarray, places: np.ndarray) -> dict[str, np.ndarray]:
    """Of a photo and its windows (1 + V, C): the four kinds of scores."""
    kinds = {"whole_global": whole[0], "whole_local": places[0]}
    kinds |= {"windows_global": fused_windows(whole[1:]), "windows_local": fused_windows(places[1:])}
    return {name: row[None] for name, row in kinds.items()}


def scores_of(p: dict, config, pixels, text: dict, wins: str) -> tuple:
    """Global and local scores (B, C)."""
    taps: dict = {}
    pooled = F.normalize(torch_clip.encode_resnet(p, config, pixels, taps), dim=-1)
    a, cells = "visual.attnpool.", taps["visual.layer4"].flatten(2).permute(2, 0, 1)
    cells = F.linear(cells, p[a + "v_proj.weight"], p[a + "v_proj.bias"])
    cells = F.normalize(F.linear(cells, p[a + "c_proj.weight"], p[a + "c_proj.bias"]), dim=-1)
    found = cells @ text["local"].T
    where = cells @ text["evidence"].T if "evidence" in text else found
    if wins == "seed":
        found = found * torch.softmax(TAU * found * (found.max(-1, keepdim=True)[0] + 1), dim=-1)
    return SCALE * pooled @ text["global"].T, (SCALE * found * torch.softmax(TAU * where, dim=0)).sum(dim=0)
