"""Scores of several classes at once from cosines with learned prompts at each place. Jittor in, Jittor out.

Places p are a photo's cells or a sentence's tokens; A = x_p · t_c are cosines (B, P, C); s a scale, τ a sharpness.

    plain (TaI-DPT)      S_c = s Σ_p A_pc w_pc,  w = softmax over p of τ A;  Guo et al., CVPR 2023, arXiv 2211.12739
    evidence             w = softmax over p of τ E, with the cosines E of a prompt of its own
    winner "seed"        A becomes A u,  u = softmax over c of τ A (max_c A + 1)
    winner "pp_norm"     A becomes A u / max_c u,  u = softmax over c of 200 A max_c A  (DualCoOp++, arXiv 2308.01890)
    winner "pp_plus"     A becomes A (1 + u), the same u

A place that is padding has no part in the softmax over places, and with it none in the sum.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from jclip.kernels import linear
from jclip.runtime import jt

nn = jt.nn

Winner = Literal["none", "seed", "pp_norm", "pp_plus"]
WINNER_SHARPNESS = 200.0  # of the winners that have a sharpness of their own
_PADDING = -1e4  # far below any τ A of the softmax over places


def cosines(places, text):
    """(B, P, E), (C, E), both of length one → (B, P, C)."""
    return linear(places, text)


def place_shares(evidence, sharpness, mask: np.ndarray | None = None):
    """Softmax over the places of τ E: (B, P, C) → (B, P, C), 0 where `mask` (B, P) is."""
    logits = evidence * sharpness
    if mask is not None:
        logits = logits + jt.array((_PADDING * (1 - mask.astype(np.float32)))[:, :, None])
    return nn.softmax(logits, dim=1)


def with_winner(cosines, kind: Winner, sharpness: float = 50.0):
    """(B, P, C) → (B, P, C): at each place the class that fits best stands out. sharpness: τ, of "seed" alone."""
    if kind == "none":
        return cosines
    best = cosines.max(dim=2, keepdims=True)
    if kind == "seed":
        return cosines * nn.softmax(sharpness * cosines * (best + 1.0), dim=2)
    share = nn.softmax(WINNER_SHARPNESS * cosines * best, dim=2)
    return cosines * (1.0 + share if kind == "pp_plus" else share / share.max(dim=2, keepdims=True))


def local_scores(
    cosines,
    sharpness: float,
    scale: float = 4.0,
    mask: np.ndarray | None = None,
    evidence=None,
    winner: Winner = "none",
):
    """S (B, C) of cosines (B, P, C).

    mask: (B, P), 0 at padding. evidence: (B, P, C), the cosines that say where to look, by default those themselves.
    """
    shares = place_shares(cosines if evidence is None else evidence, sharpness, mask)
    return scale * (with_winner(cosines, winner, sharpness) * shares).sum(dim=1)


def pair_scores(
    positive, negative, sharpness, scale, mask: np.ndarray | None = None, evidence=None, winner: Winner = "none"
):
    """(B, C) twice: scores of a positive and a negative prompt, both summed with the positive one's shares, or evidence's.

    DualCoOp (Sun et al., NeurIPS 2022, arXiv 2206.09541): sharpness 20, scale 100. DualCoOp++: evidence, winner "pp_norm",
    sharpness exp(T) with a learned T, scale exp(3). `winner` is among the positive ones. The probability of a class is the
    softmax over the two.
    """
    shares = place_shares(positive if evidence is None else evidence, sharpness, mask)
    found = with_winner(positive, winner)
    return scale * (found * shares).sum(dim=1), scale * (negative * shares).sum(dim=1)
