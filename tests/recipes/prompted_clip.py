"""CLIP with learned vectors inside its towers, in torch and the authors' way: whole prompts of 77 tokens, cut and joined.

Vectors are lists, one of (n, D) for each block that has its own.
"""

from __future__ import annotations

import numpy as np
import torch

from jclip.prompts.tokenizer import tokenizer
from jclip.weights.checkpoint import open_checkpoint
from tests.parity import torch_clip
from tests.parity.test_contrastive import doubled


class PromptedCLIP:
    """The weights of `file` in float64, which stay."""

    def __init__(self, file):
        checkpoint = open_checkpoint(file)
        self.config, self.weights = checkpoint.config, doubled(torch_clip.parameters(dict(checkpoint.arrays())))
        self.scale = self.weights["logit_scale"].exp()

    def texts(self, names, vectors, words: str = "a photo of a"):
        """(C, E) of length one; the first words, or as many "X", make room for the vectors."""
        p, t = self.weights, self.config.text
        count = len(vectors[0]) if vectors else 0
        prompts = [f"{words or ' '.join(['X'] * count)} {name.replace('_', ' ')}." for name in names]
        tokens = torch.tensor(tokenizer()(prompts), dtype=torch.int64)

        def put(x, own):
            return torch.cat([x[:, :1], own.expand(len(x), -1, -1), x[:, 1 + count :]], 1)

        x = p["token_embedding.weight"][tokens]
        x = (put(x, vectors[0]) if vectors else x) + p["positional_embedding"]
        mask = torch.full((77, 77), float("-inf"), dtype=x.dtype).triu(1)
        x = torch_clip.transformer(
            x, p, "", t.layers, t.heads, torch_clip.activation(self.config.activation), self.config.norm_eps, mask,
            before=lambda i, x: put(x, vectors[i]) if 1 <= i < len(vectors) else x,
        )  # fmt: skip
        x = torch_clip.norm(x, p, "ln_final", self.config.norm_eps)
        return unit(x[torch.arange(len(x)), tokens.argmax(1)] @ p["text_projection"])

    def images(self, pixels, vectors):
        """(B, E) of length one."""
        p, v, eps = self.weights, self.config.vision, self.config.norm_eps
        x = torch.nn.functional.conv2d(torch.tensor(np.asarray(pixels, np.float64)), p["visual.conv1.weight"],
                                       stride=v.patch_size).flatten(2).transpose(1, 2)  # fmt: skip
        x = torch.cat([p["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + p["visual.positional_embedding"]
        patches = x.shape[1]

        def put(x, own):
            return torch.cat([x[:, :patches], own.expand(len(x), -1, -1)], 1)

        x = torch_clip.norm(put(x, vectors[0]) if vectors else x, p, "visual.ln_pre", eps)
        x = torch_clip.transformer(
            x, p, "visual.", v.layers, v.heads, torch_clip.activation(self.config.activation), eps,
            before=lambda i, x: put(x, vectors[i]) if 1 <= i < len(vectors) else x,
        )  # fmt: skip
        return unit(torch_clip.norm(x[:, 0], p, "visual.ln_post", eps) @ p["visual.proj"])


def unit(x):
    """Rows of length one."""
    return x / x.norm(dim=-1, keepdim=True)


def vectors_of(params) -> tuple[list, list]:
    """Those of texts and of images, from tensors by jclip's names."""
    text = list(params.get("context", ()))
    if "W" in params:
        maps = zip(text, params["W"], params["b"], strict=True)
        return text, [torch.nn.functional.linear(own, weight, bias) for own, weight, bias in maps]
    return text, list(params.get("image", ()))


def tensors(arrays) -> dict:
    """Arrays by name as float64 tensors that want gradients."""
    return {k: torch.tensor(a.astype(np.float64), requires_grad=True) for k, a in arrays.items()}


def epochs_of_sgd(params, lr: float, epochs: int, batches, loss_of, after=lambda epoch: None) -> list[float]:
    """Trains in place by CoOp's schedule; the mean loss of each epoch."""
    sgd, losses = torch.optim.SGD(params.values(), 1e-5, momentum=0.9, weight_decay=5e-4), []
    for epoch in range(epochs):
        sgd.param_groups[0]["lr"] = 1e-5 if epoch == 0 else lr * (1 + np.cos(np.pi * (epoch - 1) / epochs)) / 2
        of_epoch = []
        for pixels, labels in batches(epoch):
            loss = loss_of(pixels, torch.tensor(labels.astype(np.int64)))
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            of_epoch.append(loss.item())
        losses.append(float(np.mean(of_epoch)))
        after(epoch)
    return losses
