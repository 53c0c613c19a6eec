"""KgCoOp against torch: the distance by hand, a training, and that none of it is left at λ = 0."""

from __future__ import annotations

import numpy as np
import pytest

from finetune import kgcoop
from jclip.config import DataConfig, OptimConfig
from jclip.errors import ConfigError
from jclip.runtime import jt
from jclip.train import prompt_training as context
from jclip.train.run import Run
from tests.recipes import toys

torch = pytest.importorskip("torch", reason=toys.NO_TORCH)

from tests.recipes.test_coop import authors_text, data_of, reference, source  # noqa: E402, F401


def trained(folder, cfg, model, data, weight):
    prompts = context.prompts_for(model, data, 4, "a photo of a", cfg.seed)
    start = prompts.vectors.numpy()
    with Run(folder, {"recipe": "kgcoop"}) as run:
        found = context.train(cfg, run, data, model, prompts, kgcoop.distance(data.text, weight))
    return start, found.arrays["context"]


def test_the_distance_by_hand():
    text = np.array([[1, 0], [0.6, 0.8]], np.float32)
    held = np.array([[0, 1], [1, 0]], np.float32)
    assert np.isclose(kgcoop.distance(held, 8.0)(jt.array(text)).item(), 8 * (1 - 0.3))


@pytest.mark.parametrize("seed", [0, 1])
def test_training_equals_torchs(seed, source, reference, tmp_path, close):  # noqa: F811
    data = data_of(seed)
    optim = OptimConfig(name="sgd", lr=0.05, weight_decay=5e-4, epochs=3, batch=7)
    cfg = kgcoop.Config(DataConfig(features="x"), model="x", optim=optim, seed=seed)
    start, got = trained(tmp_path, cfg, source, data, cfg.weight)
    theirs = torch.tensor(start.astype(np.float64), requires_grad=True)
    sgd = torch.optim.SGD([theirs], 1e-5, momentum=0.9, weight_decay=5e-4)
    x, y, held = (torch.tensor(a) for a in (data.train.astype(np.float64), data.train_labels, data.text))
    for epoch in range(3):
        sgd.param_groups[0]["lr"] = 1e-5 if epoch == 0 else 0.05 * (1 + np.cos(np.pi * (epoch - 1) / 3)) / 2
        for rows in torch.tensor(np.random.default_rng((seed, epoch)).permutation(len(x))).split(7):
            text = authors_text(*reference, theirs, "end")
            away = 1 - torch.nn.functional.cosine_similarity(text, held.double()).mean()
            loss = torch.nn.functional.cross_entropy(data.scale * x[rows] @ text.T, y[rows]) + 8 * away
            sgd.zero_grad()
            loss.backward()
            sgd.step()
    close(got, theirs.detach(), "trajectory", "KgCoOp: vectors after 6 steps")


def test_without_weight_it_is_coop(source, tmp_path):  # noqa: F811
    data, optim = data_of(3), OptimConfig(name="sgd", lr=0.05, epochs=2, batch=6)
    cfg = kgcoop.Config(DataConfig(features="x"), model="x", optim=optim)
    _, got = trained(tmp_path / "kgcoop", cfg, source, data, 0.0)
    prompts = context.prompts_for(source, data, 4, "a photo of a", 1)
    with Run(tmp_path / "coop", {"recipe": "coop"}) as run:
        wanted = context.train(cfg, run, data, source, prompts).arrays["context"]
    assert np.array_equal(got, wanted)


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="views and weight at least 0, got .* and -1"):
        kgcoop.Config(DataConfig(), model="x", weight=-1)
