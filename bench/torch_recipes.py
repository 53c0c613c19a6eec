"""What bench/recipes.py runs on torch's side: the recipes' batches, formulas and evaluations with torch's own tools.

Each takes the recipe's config and the data, and returns the metrics. Batches, schedules and the choice of the epoch are
the recipes'; optimisers are torch.optim's as they come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn.functional import cross_entropy, one_hot

from jclip.features.precomputed import FeatureSet, read_precomputed

Score = Callable[[torch.Tensor], torch.Tensor]


class Data:
    """A file's arrays as tensors, and the metrics of scores on them."""

    def __init__(self, arrays: FeatureSet):
        self._arrays, self.scale, self.classes = arrays, arrays.scale, arrays.classes
        for name in ("train", "train_labels", "val", "val_labels", "test", "test_labels", "text"):
            setattr(self, name, torch.from_numpy(getattr(arrays, name)))

    @torch.inference_mode()
    def top1(self, part: str, score: Score) -> float:
        """Accuracy on "val" or "test"."""
        return (score(getattr(self, part)).argmax(dim=1) == getattr(self, f"{part}_labels")).float().mean().item()

    @torch.inference_mode()
    def report(self, score: Score, prefix: str = "") -> dict[str, float]:
        """The recipes' own metrics."""
        return self._arrays.report(lambda features: score(torch.from_numpy(features)).numpy(), prefix)

    def reports(self, score: Score) -> dict[str, float]:
        """Zero-shot's and the result's."""
        return {**self.report(lambda f: self.scale * f @ self.text.T, "zero_shot_"), **self.report(score)}


def load(path: str, shots: int) -> Data:
    """The features of a file."""
    return Data(read_precomputed(path, shots))


class Best:
    """The tensors of the best epoch: the first among equals, or the last."""

    def __init__(self, data: Data, score_with: Callable[[list], Score], last: bool = False):
        self._data, self._score_with, self._last = data, score_with, last
        self._found, self.tensors = -1.0, []

    def look(self, tensors: list[torch.Tensor]) -> None:
        """Measures an epoch."""
        top1 = self._data.top1("val", self._score_with(tensors))
        if top1 > self._found or (self._last and top1 == self._found):
            self._found, self.tensors = top1, [t.detach().clone() for t in tensors]

    def report(self, tensors: list[torch.Tensor]) -> dict[str, float]:
        """Test accuracy of the last epoch's tensors and of the best."""
        both = {"last": tensors, "best": self.tensors}
        return {f"test_top1_{name}_epoch": self._data.top1("test", self._score_with(t)) for name, t in both.items()}


def tip_adapter(cfg, data: Data) -> dict[str, float]:
    """Eq. 5-6; keys trained, or α and β searched."""
    values = one_hot(data.train_labels, data.classes).float()

    def logits(f, keys, alpha: float = cfg.alpha, beta: float = cfg.beta):
        return data.scale * f @ data.text.T + alpha * (torch.exp(beta * (f @ keys.T) - beta) @ values)

    keys, metrics, chosen = data.train, {}, (cfg.alpha, cfg.beta)
    if cfg.train:
        keys, metrics = tip_keys(cfg, data, logits)
    if cfg.search:
        chosen = tip_search(cfg, data, keys, values)
    return {**data.reports(lambda f: logits(f, keys, *chosen)), **metrics}


def tip_keys(cfg, data: Data, logits) -> tuple[torch.Tensor, dict[str, float]]:
    from jclip.train.optim import learning_rate

    keys = data.train.clone().requires_grad_()
    optim = adamw([keys], cfg.optim)
    best = Best(data, lambda tensors: lambda f: logits(f, tensors[0]))
    size, count, step = cfg.optim.batch, len(data.train), 0
    total = cfg.optim.epochs * -(-count // size)
    for epoch in range(cfg.optim.epochs):
        order = torch.from_numpy(np.random.default_rng((cfg.seed, epoch)).permutation(count))
        for rows in order.split(size):
            loss = cross_entropy(logits(data.train[rows], keys), data.train_labels[rows])
            descend(optim, loss, learning_rate(cfg.optim, step, total))
            step += 1
        best.look([keys])
    return best.tensors[0], best.report([keys])


@torch.inference_mode()
def tip_search(cfg, data: Data, keys, values) -> tuple[float, float]:
    from finetune.tip_adapter import grid

    alphas, betas = grid(cfg.search_alpha, cfg.search_steps[0]), grid(cfg.search_beta, cfg.search_steps[1])
    weights = torch.from_numpy(alphas).float()[:, None, None]
    affinity, base = data.val @ keys.T, data.scale * data.val @ data.text.T
    best, chosen = -1, (0.0, 0.0)
    for beta in betas.tolist():
        scores = base + weights * (torch.exp(beta * affinity - beta) @ values)
        right = (scores.argmax(dim=2) == data.val_labels).sum(dim=1)
        if int(right.max()) > best:
            best, chosen = int(right.max()), (float(alphas[int(right.argmax())]), beta)
    return chosen


def cross_modal(cfg, data: Data) -> dict[str, float]:
    """A linear head on photos and texts, started at the texts, and its mean with them."""
    from jclip.train.on_features import warmed_rate

    head, scale = data.text.clone().requires_grad_(), math.exp(cfg.logit_scale)
    samples = torch.cat([data.train, data.text])
    labels = torch.cat([data.train_labels, torch.arange(data.classes)])
    optim, rows = adamw([head], cfg.optim), halves(cfg, len(data.train), data.classes)
    best = Best(data, lambda tensors: lambda f: scale * f @ tensors[0].T)
    total = cfg.optim.epochs * cfg.every
    rate = warmed_rate(cfg.optim, total)
    for step in range(total):
        at = next(rows)
        descend(optim, cross_entropy(scale * samples[at] @ head.T, labels[at]), rate(step))
        if (step + 1) % cfg.every == 0:
            best.look([head])
    wise = (1 - cfg.wise) * best.tensors[0] + cfg.wise * data.text
    metrics = {**best.report([head]), **data.report(lambda f: scale * f @ wise.T, "wise_")}
    return {**data.reports(lambda f: scale * f @ best.tensors[0].T), **metrics}


def halves(cfg, photos: int, texts: int) -> Iterator[torch.Tensor]:
    """The recipe's batches: half photos, half texts, from two endless shuffled streams."""

    def stream(kind: int, count: int, size: int) -> Iterator[torch.Tensor]:
        turn = 0
        while True:
            order = torch.from_numpy(np.random.default_rng((cfg.seed, kind, turn)).permutation(count))
            yield from order[: count // size * size].split(size)
            turn += 1

    of_texts = cfg.optim.batch // 2
    for photo, text in zip(stream(0, photos, cfg.optim.batch - of_texts), stream(1, texts, of_texts), strict=True):
        yield torch.cat([photo, photos + text])


def lp_plus(cfg, data: Data) -> dict[str, float]:
    """Full-batch descent on weight and bias, every tenth step on α."""
    similar = data.train.double() @ data.text.double().T
    hot = one_hot(data.train_labels, data.classes).double()
    counts = hot.sum(dim=0)
    nearness = ((similar * hot).sum(dim=0) / counts).mean()
    weight = (hot.T @ data.train.double()).float().requires_grad_()
    bias = torch.zeros(data.classes, requires_grad=True)
    alpha = torch.full((data.classes,), float(cfg.init_alpha * nearness), requires_grad=True)
    features = data.train.double()
    rate = 4 * len(features) / float(torch.linalg.eigvalsh(features.T @ features)[-1])
    alpha_rate = len(features) / (4 * float((similar**2).sum(dim=0).max()))

    def score_with(tensors: list) -> Score:
        w, b, a = tensors
        return lambda f: f @ (w + a[:, None] * data.text).T + b

    optim, best = torch.optim.SGD([weight, bias], rate, cfg.momentum), Best(data, score_with, last=True)
    for epoch in range(cfg.epochs):
        optim.zero_grad()  # α's gradient goes on adding up, as in the authors' code
        cross_entropy(score_with([weight, bias, alpha])(data.train), data.train_labels).backward()
        optim.step()
        if (epoch + 1) % cfg.alpha_every == 0:
            with torch.no_grad():
                alpha -= alpha_rate * alpha.grad
        best.look([weight, bias, alpha])
    return {**data.reports(score_with(best.tensors)), **best.report([weight, bias, alpha])}


def gda(cfg, data: Data) -> dict[str, float]:
    """The closed form in float64, α chosen on validation."""
    rows, hot = data.train.double(), one_hot(data.train_labels, data.classes).double()
    means = hot.T @ rows / hot.sum(dim=0)[:, None]
    centred = rows - means[data.train_labels]
    scatter, (count, width) = centred.T @ centred, rows.shape
    matrix = (scatter + scatter.trace() / (count - 1) * torch.eye(width, dtype=torch.float64)) / width
    weights = torch.linalg.solve(matrix, means.T).T
    bias = math.log(1 / data.classes) - (means * weights).sum(dim=1) / 2

    def own(f):
        return f.double() @ weights.T + bias

    def zero_shot(f):
        return data.scale * f @ data.text.T

    base, added = zero_shot(data.val), own(data.val)
    right = [int(((base + alpha * added).argmax(dim=1) == data.val_labels).sum()) for alpha in cfg.search_alpha]
    alpha = cfg.search_alpha[int(np.argmax(right))]
    return data.reports(lambda f: zero_shot(f) + alpha * own(f))


def adamw(params: list, optim) -> torch.optim.Optimizer:
    """Of a config."""
    return torch.optim.AdamW(params, optim.lr, optim.betas, optim.eps, optim.weight_decay)


def descend(optim: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    """One step."""
    for group in optim.param_groups:
        group["lr"] = rate
    optim.zero_grad()
    loss.backward()
    optim.step()
