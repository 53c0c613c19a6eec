"""Scores from cosines at each place: numbers worked by hand, and torch written from the formulas."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.functional import multi_label_scores as heads
from jclip.functional.caption_bank import nearest_in_bank, pulled
from jclip.functional.directions import unit
from jclip.runtime import jt

A = np.array([[[0.20, 0.10], [0.30, 0.25], [9.0, -7.0]]], np.float32)  # the last place is padding
E = np.array([[[0.25, 0.05], [0.15, 0.30], [8.0, 8.0]]], np.float32)
MASK = np.array([[1, 1, 0]], np.int8)


def test_local_scores_by_hand(close):
    shares = heads.place_shares(jt.array(A), 50.0, MASK).numpy()[0]
    close(shares, [[0.006693, 0.000553], [0.993307, 0.999447], [0, 0]], "loss")
    assert not shares[2].any()
    close(heads.local_scores(jt.array(A), 50.0, 4.0, MASK).numpy(), [[1.197323, 0.999668]], "loss")


def test_evidence_and_winner_by_hand(close):
    cosines, evidence = jt.array(A), jt.array(E)
    shares = heads.with_winner(jt.array(A[:, :2]), "seed", 50.0).numpy()[0] / A[0, :2]
    close(shares, [[0.997527, 0.002473], [0.962673, 0.037327]], "loss")
    got = heads.local_scores(cosines, 50.0, 4.0, MASK, evidence, "seed").numpy()
    close(got, [[0.800412, 0.037327]], "loss")


def test_a_winner_keeps_its_value_or_doubles_it(close):
    cosines = jt.array(A[:, :2])
    kept, more = (heads.with_winner(cosines, kind).numpy()[0] for kind in ("pp_norm", "pp_plus"))
    close(kept[:, 0], A[0, :2, 0], "rounding")  # class 0 wins at both places
    u = 1 / (1 + np.exp(200 * 0.30 * (0.25 - 0.30)))
    close(kept[1, 1], 0.25 * (1 - u) / u, "loss")
    close(more[1], [0.30 * (1 + u), 0.25 * (2 - u)], "loss")


def torch_scores(torch, a, e, mask, tau, scale, winner, negative=None):
    """Written over (P, B, C), as the authors lay them."""
    a, e = a.permute(1, 0, 2), e.permute(1, 0, 2)
    hidden = torch.zeros(mask.shape, dtype=a.dtype).masked_fill(torch.tensor(mask == 0), -torch.inf).T[:, :, None]
    p = torch.softmax(tau * e + hidden, dim=0)
    best = a.max(dim=-1, keepdim=True)[0]
    found = a
    if winner == "seed":
        found = a * torch.softmax(tau * a * (best + 1), dim=-1)
    elif winner != "none":
        u = torch.softmax(200 * a * best, dim=-1)
        found = a * (1 + u if winner == "pp_plus" else u / u.max(dim=-1, keepdim=True)[0])
    rest = () if negative is None else ((scale * negative.permute(1, 0, 2) * p).sum(0),)
    return ((scale * found * p).sum(0), *rest)


@pytest.mark.parametrize("winner", ["none", "seed", "pp_norm", "pp_plus"])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_and_their_gradients_equal_torchs(winner, seed, close):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    arrays = [(rng.uniform(-0.3, 0.4, (3, 5, 4))).astype(np.float32) for _ in range(3)]
    mask = (np.arange(5) < np.array([[5], [2], [4]])).astype(np.int8)
    pulls = [rng.standard_normal((3, 4)).astype(np.float32) for _ in range(2)]
    for own in (True, False):  # whose shares: an evidence prompt's, or the positive one's
        ours = [jt.array(a) for a in arrays]
        theirs = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in arrays]
        evidence = (ours[2], theirs[2]) if own else (None, theirs[0])
        tau = 50.0 if winner == "seed" else 20.0
        got = heads.local_scores(ours[0], tau, 4.0, mask, evidence[0], winner)
        (wanted,) = torch_scores(torch, theirs[0], evidence[1], mask, tau, 4.0, winner)
        check(got, wanted, ours, theirs, pulls[0], close)
        if winner != "seed":
            two = heads.pair_scores(ours[0], ours[1], 20.0, 100.0, mask, evidence[0], winner)
            other = torch_scores(torch, theirs[0], evidence[1], mask, 20.0, 100.0, winner, theirs[1])
            for g, w in zip(two, other, strict=True):
                check(g, w, ours, theirs, pulls[1], close)


def check(got, wanted, ours, theirs, pull, close):
    import torch

    for t in theirs:
        t.grad = None
    (wanted * torch.tensor(pull)).sum().backward(retain_graph=True)
    close(got.numpy(), wanted.detach(), "scores", "scores of places")
    for g, t in zip(jt.grad((got * jt.array(pull)).sum(), ours), theirs, strict=True):
        grad = np.zeros(t.shape) if t.grad is None else t.grad
        close(g.numpy(), grad, "gradient_relative", "scores of places: gradients, relative", relative=True)


def test_what_stands_at_padding_does_not_matter():
    mask = np.array([[1, 1, 0]], np.int8)
    for winner in ("none", "seed", "pp_norm", "pp_plus"):
        got = [
            heads.local_scores(jt.array(np.where(mask[:, :, None], A, fill).astype(np.float32)), 50.0, 4.0, mask,
                               jt.array(E), winner).numpy()
            for fill in (0.0, 0.7, -0.2)
        ]  # fmt: skip
        assert np.array_equal(got[0], got[1]) and np.array_equal(got[0], got[2])


def test_dual_prompts_have_the_authors_probability(close):
    """20 · cosine at each place, shares of the positive one, five times the sum: DualCoOp's own way of writing."""
    rng = np.random.default_rng(3)
    positive, negative = (rng.uniform(-0.2, 0.4, (2, 6, 3)) for _ in range(2))
    shares = np.exp(20 * positive) / np.exp(20 * positive).sum(axis=1, keepdims=True)
    wanted = [5 * (20 * x * shares).sum(axis=1) for x in (positive, negative)]
    made = (jt.array(x.astype(np.float32)) for x in (positive, negative))
    for got, own in zip(heads.pair_scores(*made, 20.0, 100.0), wanted, strict=True):
        close(got.numpy(), own, "scores")


@pytest.mark.parametrize("at_once", [1, 7, 64])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_bank_pulls_by_its_nearest_sentences(at_once, seed, close):
    rng = np.random.default_rng(seed)
    features, bank = (unit(rng.standard_normal((n, 6))).astype(np.float32) for n in (5, 23))
    moved, cosines = pulled(features, bank, 10, 0.5, at_once)
    whole = features.astype(np.float64) @ bank.T.astype(np.float64)
    order = np.argsort(-whole, axis=1)[:, :10]
    close(cosines, np.take_along_axis(whole, order, axis=1), "rounding")
    close(moved, (features + bank[order].mean(axis=1)) / 2, "rounding")
    assert np.array_equal(nearest_in_bank(features, bank, 10, at_once)[1], order)


def test_a_bank_smaller_than_what_is_asked_for_is_taken_whole(close):
    features, bank = np.eye(3, 4, dtype=np.float32), np.eye(2, 4, dtype=np.float32)
    moved, cosines = pulled(features, bank, 10, 0.25)
    close(moved, 0.75 * features + 0.25 * bank.mean(axis=0), "rounding")
    assert cosines.tolist() == [[1, 0], [1, 0], [0, 0]]
    with pytest.raises(ValueError, match="a bank must hold at least one sentence, got none"):
        nearest_in_bank(features, bank[:0])
