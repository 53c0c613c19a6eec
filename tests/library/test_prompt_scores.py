"""Scores of prompts as scores of classes: by hand, in torch, and in the order in which the Ajou entry computes them."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.choices import MODES
from jclip.functional import prompt_scores
from jclip.functional.prompt_scores import class_scores, deciding_prompts, prompt_probabilities, shares

EVEN, UNEVEN = [52] * 6, [3, 1, 7, 2, 5, 4]


def rows(rng: np.random.Generator, count: int, width: int = 19) -> np.ndarray:
    x = rng.standard_normal((count, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def toy(seed: int, counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rows(rng, 23), rows(rng, sum(counts))


def test_every_mode_by_hand(close):
    """One photo along (1, 0); class 0 has prompts at cosines 1 and 0, class 1 one at 0.6; s = ln 2."""
    x = np.array([[1.0, 0.0]], np.float32)
    e = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], np.float32)
    s, powers = float(np.log(2)), np.array([2.0, 1.0, 2**0.6])  # of the softmax over all prompts
    means = np.array([(powers[0] + powers[1]) / 2, powers[2]])
    wanted = {
        "embed": [s * 0.5**0.5, s * 0.6],  # norm of (½, ½) is (√½, √½)
        "embed-raw": [s * 0.5, s * 0.6],
        "max": [s * 1.0, s * 0.6],
        "prob-prompts": np.log(means / means.sum()),
    }
    for mode, scores in wanted.items():
        close(class_scores(x, e, [2, 1], s, mode), [scores], "rounding")
    pairs = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-0.6, 0.8]], np.float32)  # two classes of two templates
    shares_of_first = [2 / (2 + 2**0.6), 1 / (1 + 2**-0.6)]
    got = np.exp(class_scores(x, pairs, [2, 2], s, "prob-templates"))
    close(got[0, 0], np.mean(shares_of_first), "rounding")
    close(got.sum(), 1.0, "rounding")


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("counts", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_every_mode_equals_torch_class_by_class(seed, counts, close):
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    x, e = toy(seed, counts)
    photos, prompts = torch.tensor(x, dtype=torch.float64), torch.tensor(e, dtype=torch.float64)
    by_class = prompts.split(counts)
    z = [17.5 * photos @ of.T for of in by_class]
    p = torch.cat(z, 1).softmax(1).split(counts, 1)
    means = torch.stack([of.mean(1) for of in p], 1)
    wanted = {
        "embed": torch.stack([17.5 * photos @ torch.nn.functional.normalize(of.mean(0), dim=0) for of in by_class], 1),
        "embed-raw": torch.stack([of.mean(1) for of in z], 1),
        "max": torch.stack([of.amax(1) for of in z], 1),
        "prob-prompts": (means / means.sum(1, keepdim=True)).log(),
    }
    if counts == EVEN:
        wanted["prob-templates"] = torch.stack(z, 2).softmax(2).mean(1).log()
    assert {*wanted} == {*MODES} - ({"prob-templates"} if counts == UNEVEN else set())
    for mode, scores in wanted.items():
        close(class_scores(x, e, counts, 17.5, mode), scores, "scores", f"prompts of a class: {mode}")


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("threshold", [0.0, 0.002, 0.62 / 312])
def test_the_ajou_entrys_order_of_operations(seed, threshold, close):
    """softmax of 100 x · e over 312 prompts for each of two models, mixed prompt by prompt, small ones dropped, then means
    over each class's 52."""
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    (x, e), (y, f) = toy(seed, EVEN), toy(seed + 10, EVEN)
    both = [(100 * torch.tensor(a) @ torch.tensor(b).T).softmax(1) for a, b in ((x, e), (y, f))]
    probabilities = 0.54 * both[0] + 0.46 * both[1]
    if threshold:
        probabilities = torch.where(probabilities > threshold, probabilities, torch.zeros(()))
    scores = probabilities.reshape(len(x), 6, 52).mean(2)
    ours = 0.54 * prompt_probabilities(x, e, 100.0) + 0.46 * prompt_probabilities(y, f, 100.0)
    got = shares(ours, np.array(EVEN), threshold)
    assert (got.argmax(1) == scores.argmax(1).numpy()).all()
    close(np.exp(got), scores / scores.sum(1, keepdim=True), "probabilities_at_100", "Ajou: shares of classes")
    if not threshold:
        close(np.exp(class_scores(x, e, EVEN, 100.0, "prob-prompts")), 52 * both[0].reshape(23, 6, 52).mean(2),
              "probabilities_at_100")  # fmt: skip


def test_a_threshold_drops_what_is_not_above_it():
    p = np.array([[0.5, 0.2, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]], np.float32)
    kept = np.exp(shares(p, np.array([2, 2]), drop_below=0.2))
    assert kept[0, 0] == 1.0 and kept[0, 1] < 1e-300  # 0.2 is not above 0.2
    assert np.exp(shares(p, np.array([2, 2]), drop_below=0.3))[1].tolist() == [0.5, 0.5]  # nothing is left


def test_rows_may_be_scored_in_parts(monkeypatch, close):
    x, e = toy(3, UNEVEN)
    whole = {mode: class_scores(x, e, UNEVEN, 9.0, mode) for mode in MODES if mode != "prob-templates"}
    monkeypatch.setattr(prompt_scores, "AT_ONCE", 5 * len(e))
    for mode, scores in whole.items():
        close(class_scores(x, e, UNEVEN, 9.0, mode), scores, "rounding", mode)
    assert class_scores(x[:0], e, UNEVEN, 9.0, "max").shape == (0, 6)


def test_templates_need_the_same_number_in_each_class():
    with pytest.raises(ValueError, match="classes have 1 to 7 prompts"):
        class_scores(*toy(1, UNEVEN), UNEVEN, 1.0, "prob-templates")


def test_the_deciding_prompt_is_the_nearest_of_the_class_that_was_given(close):
    x, e = toy(4, UNEVEN)
    given = np.arange(23) % 6
    which, cosines = deciding_prompts(x, e, np.array(UNEVEN), given)
    starts = np.cumsum([0, *UNEVEN])
    for photo, (c, row, cosine) in enumerate(zip(given, which, cosines, strict=True)):
        own = [float(x[photo] @ e[i]) for i in range(starts[c], starts[c + 1])]
        assert row == starts[c] + int(np.argmax(own))
        close(cosine, max(own), "rounding")
