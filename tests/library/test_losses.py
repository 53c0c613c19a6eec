"""Cross-entropy against torch, of few rows and of many, where float32 sums drift."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.functional.losses import cross_entropy
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
