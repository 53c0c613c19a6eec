"""What bench/tower_recipes.py runs on torch's side: each function gives one optimiser step, cut or of all 77 tokens."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from sides import images, torch_clip_model
from torch.nn.functional import cross_entropy, linear, normalize
from tower_recipes import BATCH, DROPOUT, MODEL, RANK, VECTORS, batch_labels, class_names

from jclip.prompts.tokenizer import tokenize
from jclip.weights.variants import VARIANTS

Step = Callable[[], None]


def coop(cut: bool) -> Step:
    """Vectors of N(0, 0.02²) in the place of sixteen words; not cut, the image tower runs in each step."""
    model = loaded().requires_grad_(False)
    names = class_names()
    tokens = prompts([" ".join(["X"] * VECTORS) + f" {name}." for name in names], cut)
    embedding, text = model.text_model.embeddings, model.text_model
    with torch.no_grad():
        words, positions = embedding.token_embedding(tokens), embedding.position_embedding.weight[: tokens.shape[1]]
    vectors = (0.02 * torch.randn(VECTORS, words.shape[2])).requires_grad_()
    optim = torch.optim.SGD([vectors], 2e-3, momentum=0.9, weight_decay=5e-4)
    pixels, labels = torch.from_numpy(images(VARIANTS[MODEL], BATCH)), torch.from_numpy(batch_labels())

    def encoded():
        with torch.no_grad():
            return normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)

    known = encoded() if cut else None

    def step() -> None:
        shared = vectors.expand(len(names), -1, -1)
        x = torch.cat([words[:, :1], shared, words[:, 1 + VECTORS :]], dim=1) + positions
        x = text.encoder(inputs_embeds=x, attention_mask=None, is_causal=True).last_hidden_state
        x = text.final_layer_norm(x)[torch.arange(len(names)), tokens.argmax(dim=1)]
        scores = 100 * (encoded() if known is None else known) @ normalize(model.text_projection(x), dim=-1).T
        take(optim, cross_entropy(scores, labels))

    return step


class LowRankLinear(torch.nn.Module):
    """A linear map with an update beside it, as the authors' with dropout: of rank `RANK`, alpha 1."""

    def __init__(self, frozen: torch.nn.Linear):
        super().__init__()
        self.frozen, width = frozen, frozen.in_features
        self.down = torch.nn.Parameter(torch.empty(RANK, width).uniform_(-1, 1) / width**0.5)
        self.up = torch.nn.Parameter(torch.zeros(width, RANK))
        self.dropout = torch.nn.Dropout(DROPOUT)

    def forward(self, x):
        return self.frozen(x) + linear(linear(self.dropout(x), self.down), self.up) / RANK**0.5


def lora(cut: bool) -> Step:
    """CLIP-LoRA's step: q, k and v of both towers, all classes' texts again."""
    model = loaded().requires_grad_(False)
    for tower in (model.vision_model, model.text_model):
        for layer in tower.encoder.layers:
            for part in ("q_proj", "k_proj", "v_proj"):
                setattr(layer.self_attn, part, LowRankLinear(getattr(layer.self_attn, part)))
    model.train()
    optim = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-4, weight_decay=1e-2)
    tokens = prompts([f"a photo of a {name}." for name in class_names()], cut)
    pixels, labels = torch.from_numpy(images(VARIANTS[MODEL], BATCH)), torch.from_numpy(batch_labels())

    def step() -> None:
        seen = normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        texts = normalize(model.get_text_features(input_ids=tokens).pooler_output, dim=-1)
        take(optim, cross_entropy(100 * seen @ texts.T, labels))

    return step


def full(cut: bool) -> Step:
    """Both towers against the prompts of the batch's own classes."""
    model = loaded().train()
    names = class_names()
    tokens = prompts([f"a photo of a {names[k]}." for k in batch_labels()], cut)
    optim = torch.optim.AdamW(model.parameters(), 2e-6, (0.9, 0.98), 1e-6, 1e-3)
    pixels = torch.from_numpy(images(VARIANTS[MODEL], BATCH))
    return lambda: take(optim, model(input_ids=tokens, pixel_values=pixels, return_loss=True).loss)


def classified(cut: bool) -> Step:
    """Both towers by cross-entropy over the prompts of all classes."""
    model = loaded().train()
    tokens = prompts([f"a photo of a {name}." for name in class_names()], cut)
    optim = torch.optim.AdamW(model.parameters(), 2e-6, (0.9, 0.98), 1e-6, 1e-3)
    pixels, labels = torch.from_numpy(images(VARIANTS[MODEL], BATCH)), torch.from_numpy(batch_labels()).long()

    def step() -> None:
        scores = model(input_ids=tokens, pixel_values=pixels).logits_per_image
        take(optim, torch.nn.functional.cross_entropy(scores, labels))

    return step


def loaded():
    """The model with random weights, at the number of threads that was asked for."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return torch_clip_model(VARIANTS[MODEL])


def prompts(texts: list[str], cut: bool):
    """(n, L) ids: 77 tokens, or as many as the longest has."""
    tokens = torch.from_numpy(tokenize(texts)).long()
    return tokens[:, : int(tokens.argmax(dim=1).max()) + 1] if cut else tokens


def take(optim, loss) -> None:
    """One step down the loss."""
    optim.zero_grad()
    loss.backward()
    optim.step()
