"""Cross-entropy against torch, of few rows and of many, where float32 sums drift."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.functional.losses import cross_entropy, kl_divergence, soft_cross_entropy
from jclip.runtime import jt


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("rows, classes", [(7, 5), (1600, 100), (16000, 101)])
def test_cross_entropy_and_its_gradient_equal_torchs(rows, classes, seed, close):
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    rng = np.random.default_rng(seed)
    scores, labels = 9 * rng.standard_normal((rows, classes), dtype=np.float32), rng.integers(0, classes, rows)
    theirs = torch.tensor(scores, requires_grad=True)
    wanted = torch.nn.functional.cross_entropy(theirs, torch.tensor(labels))
    wanted.backward()
    ours = jt.array(scores)
    loss = cross_entropy(ours, jt.array(labels.astype(np.int32)))
    close(loss.numpy(), [wanted.item()], "loss", "cross-entropy, relative", relative=True)
    close(jt.grad(loss, ours).numpy(), theirs.grad, "loss", "cross-entropy: gradient, relative", relative=True)


def test_large_scores_neither_overflow_nor_lose_their_gradient():
    scores = jt.array(np.array([[1e4, 0.0], [-1e4, 1e4]], np.float32))
    loss = cross_entropy(scores, jt.array(np.array([1, 0], np.int32)))
    assert loss.item() == 15000.0
    assert np.array_equal(jt.grad(loss, scores).numpy(), [[0.5, -0.5], [-0.5, 0.5]])


@pytest.mark.parametrize("seed", [0, 1])
def test_losses_of_soft_targets_equal_torchs(seed, close):
    """Of more classes than rows: which of the two a mean is over can be seen."""
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    F = torch.nn.functional
    rng = np.random.default_rng(seed)
    scores, targets = 9 * rng.standard_normal((5, 7), dtype=np.float32), rng.dirichlet(np.ones(7), 5).astype(np.float32)
    other = 9 * rng.standard_normal((5, 7), dtype=np.float32)
    theirs = torch.tensor(scores, requires_grad=True)
    divergence = F.kl_div(theirs.log_softmax(1), torch.tensor(other).log_softmax(1), reduction="sum", log_target=True)
    pairs = [
        (soft_cross_entropy, targets, F.cross_entropy(theirs, torch.tensor(targets)), "soft cross-entropy"),
        (kl_divergence, other, divergence, "Kullback-Leibler divergence"),
    ]
    for ours, second, wanted, name in pairs:
        theirs.grad = None
        wanted.backward()
        x = jt.array(scores)
        loss = ours(x, jt.array(second))
        close(loss.numpy(), [wanted.item()], "loss", f"{name}, relative", relative=True)
        close(jt.grad(loss, x).numpy(), theirs.grad, "loss", f"{name}: gradient, relative", relative=True)
