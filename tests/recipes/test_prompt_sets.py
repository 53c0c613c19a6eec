"""Several sets of learned prompts in one pass of the text tower, against each set alone in torch."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.features.source import ModelSource
from jclip.model import learned_prompts
from jclip.model.prompt_sets import PromptSets
from jclip.runtime import jt
from jclip.weights.checkpoint import open_checkpoint
from tests.recipes import toys

torch = pytest.importorskip("torch", reason=toys.NO_TORCH)

from tests.parity import torch_clip  # noqa: E402
from tests.parity.test_contrastive import doubled  # noqa: E402
from tests.recipes.test_coop import NAMES, authors_text  # noqa: E402

SETS = ("global", "local", "evidence")


def vectors_of(prompts: PromptSets, seed: int) -> dict[str, np.ndarray]:
    """Random ones, so large that they matter, in the place of the start's."""
    rng = np.random.default_rng((seed, 5))
    made = {k: (rng.standard_normal(v.shape) / 9).astype(np.float32) for k, v in prompts.vectors.items()}
    for name, array in made.items():
        prompts.vectors[name].update(jt.array(array))
        prompts.vectors[name].start_grad()
    return made


def torch_text(config, p, vectors, per_class, position="end"):
    """(C, E) of each set, one tower pass of whole sequences for each."""
    shape = {name: (len(NAMES), -1, v.shape[1]) if name in per_class else v.shape for name, v in vectors.items()}
    return {name: authors_text(config, p, v.reshape(shape[name]), position) for name, v in vectors.items()}


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("per_class", [(), ("global", "local")])
@pytest.mark.parametrize("at_once", [256, 4, 3])
def test_all_sets_in_one_pass_equal_each_alone(position, per_class, at_once, small_models, monkeypatch, close):
    monkeypatch.setattr(learned_prompts, "AT_ONCE", at_once)
    checkpoint = open_checkpoint(small_models["vit"])
    p = doubled(torch_clip.parameters(dict(checkpoint.arrays())))
    prompts = PromptSets(ModelSource(small_models["vit"]).model, NAMES, SETS, 5, "", position, per_class)
    theirs = {k: torch.tensor(v.astype(np.float64), requires_grad=True) for k, v in vectors_of(prompts, 0).items()}
    got, wanted = prompts.features(), torch_text(checkpoint.config, p, theirs, per_class, position)
    pull = np.random.default_rng(1).standard_normal((3, *got["global"].shape)).astype(np.float32)
    ours, other = 0.0, 0.0
    for name, own in zip(SETS, pull, strict=True):
        close(got[name].numpy(), wanted[name].detach(), "features_normalised", "prompt sets: text features")
        ours, other = ours + (got[name] * jt.array(own)).sum(), other + (wanted[name] * torch.tensor(own)).sum()
    other.backward()
    for g, t in zip(jt.grad(ours, [*prompts.vectors.values()]), theirs.values(), strict=True):
        close(g.numpy(), t.grad, "gradient_relative", "prompt sets: gradients, relative", relative=True)


def test_sets_start_apart_at_random_and_alike_from_words(small_models):
    model = ModelSource(small_models["vit"]).model
    first, second = (PromptSets(model, NAMES, SETS, 5, seed=seed).vectors for seed in (0, 1))
    drawn = [v.numpy() for v in (*first.values(), *second.values())]
    assert all(not np.array_equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    words = PromptSets(model, NAMES, SETS, 5, words="a photograph_of one", per_class=("evidence",)).vectors
    count = len(words["global"].numpy())
    assert words["evidence"].shape[0] == len(NAMES) * count
    assert np.array_equal(words["global"].numpy(), words["local"].numpy())
    assert np.array_equal(words["evidence"].numpy()[count : 2 * count], words["local"].numpy())
