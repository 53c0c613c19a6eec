"""Twenty steps of contrastive training by one process or by several, of toy models: what tests compare. Run: FILE CASE…"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from jclip.config import OptimConfig
from jclip.machine import ranks
from jclip.model.clip import build, clamp_logit_scale, running_statistics, training_mode
from jclip.model.trainable import no_weight_decay, trainable
from jclip.runtime import jt
from jclip.train.on_captions import Objective, Part, caption_gradients
from jclip.train.optim import TrainState, learning_rate, optimiser
from jclip.weights.checkpoint import open_checkpoint
from tests.toys import TOYS, toy_batch, toy_file

STEPS = 20
CASES = {  # model, rows of a step's parts, objective, rate
    "softmax": ("vit", (7, 5), {"positives": "same"}, 1e-3),
    "softmax local": ("vit", (7,), {"by_rows": True}, 1e-3),
    "sigmoid": ("vit", (5, 7), {"loss": "sigmoid"}, 1e-3),
    "sigmoid local": ("vit", (7,), {"loss": "sigmoid", "by_rows": True, "positives": "both"}, 1e-3),
    "ResNet": ("resnet", (7,), {"positives": "image"}, 1e-4),
}


def steps(case: str, noise: float = 0.0) -> dict[str, np.ndarray]:
    """Losses, weights and statistics after the steps. noise: relative, of the weights before."""
    kind, sizes, options, rate = CASES[case]
    config = TOYS[kind]
    with tempfile.TemporaryDirectory() as folder:
        model = build(open_checkpoint(toy_file(Path(folder), config, seed=3)))
    training_mode(model)
    params, rng = trainable(model, ["*"]), np.random.default_rng(7)
    bias = {"logit_bias": jt.array([-2.0])} if options.get("loss") == "sigmoid" else {}
    for v in params.values():
        v.update(jt.array(v.numpy() * (1 + noise * rng.standard_normal(v.shape).astype(np.float32))))
        v.start_grad()
    settings = OptimConfig(lr=rate, epochs=1, weight_decay=0.1, warmup=3)
    optim = optimiser(settings, {**params, **bias}, no_weight_decay)
    state = TrainState(optim, running_statistics(model))
    objective, losses = Objective(further=bias, **options), []
    for number in range(STEPS):
        optim.lr = learning_rate(settings, number, STEPS)
        loss, gradients = caption_gradients(model, parts_of(config, sizes, number), list(optim.params), objective)
        optim.apply(gradients)
        clamp_logit_scale(model)
        state.settle()
        losses.append(float(loss.numpy().ravel()[0]))
    return {"losses": np.array(losses), **state.arrays()}


def parts_of(config, sizes: tuple[int, ...], number: int) -> list[Part]:
    """The rows of a step, or this rank's among them."""
    made, here = [], ranks.here()
    for i, size in enumerate(sizes):
        pixels, tokens = toy_batch(config, seed=10 * number + i, images=size, texts=size)
        own, groups = here.share(size), np.arange(size) + 10 * i
        places = np.arange(own.start, own.stop) if here.several else None
        made.append(Part(pixels[own], tokens[own], groups % 4, groups % 3, own=places))
    return made


if __name__ == "__main__":
    found = {f"{case}/{name}": array for case in sys.argv[2:] for name, array in steps(case).items()}
    if ranks.here().first:
        np.savez(sys.argv[1], **found)
