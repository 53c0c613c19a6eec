"""Losses of several classes at once: numbers worked by hand, and torch written from the formulas."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.functional import multi_label_losses as losses
from jclip.runtime import jt

SCORES = np.array([[2, 0.5, 1.2], [0, 0, 0]], np.float32)
LABELS = np.array([[1, 0, 0], [0, 1, 1]], np.int8)
TOGETHER = np.array([[0, 8, 2], [8, 0, 1], [2, 1, 0]], np.float64)


def value(loss) -> list[float]:
    return loss.numpy().ravel().tolist()


def test_ranking_by_hand(close):
    close(value(losses.ranking_loss(jt.array(SCORES), LABELS)), [1.1], "loss")
    close(value(losses.ranking_loss(jt.array(SCORES[:1]), LABELS[:1])), [0.2], "loss")


def pair_weights(together):
    """ln(1 / (P + 1e-6)) of the shares P of each row, 0 on the diagonal, over the row's mean."""
    weights = np.log(1 / (together / together.sum(axis=1, keepdims=True) + 1e-6))
    np.fill_diagonal(weights, 0)
    return weights / weights.mean(axis=1, keepdims=True)


def test_cooccurrence_by_hand(close):
    loss = losses.ranking_loss(jt.array(SCORES), LABELS, weights=pair_weights(TOGETHER))
    close(value(loss), [1.580873], "loss")


def test_asymmetric_by_hand(close):
    negative, positive = (jt.array(np.array([row], np.float32)) for row in ([0.3, -0.2, 1.0], [1.1, 0.4, 0.9]))
    labels = np.array([[1, 0, -1]], np.int8)
    close(value(losses.pair_asymmetric_loss(positive, negative, labels)), [0.436324], "loss")
    close(value(losses.pair_asymmetric_loss(positive, negative, labels, weight=0.02)), [0.436324 * 0.02], "loss")
    close(value(losses.asymmetric_loss(positive - negative, labels)), [0.436324], "loss")


def test_teacher_by_hand(close):
    student, teacher = (jt.array(np.array([row], np.float32)) for row in ([1, 2, 0], [1, 1, 1]))
    close(value(losses.teacher_loss(student, teacher)), [0.308994], "loss")
    assert value(losses.teacher_loss(student, student)) == [0.0]


def drawn(seed, rows=7, classes=5):
    rng = np.random.default_rng(seed)
    scores = [rng.standard_normal((rows, classes)).astype(np.float32) for _ in range(2)]
    labels = rng.choice([-1, 0, 1], (rows, classes), p=[0.2, 0.5, 0.3]).astype(np.int8)
    labels[0], labels[1], labels[2] = 1, 0, -1  # rows without pairs, or without anything known
    return scores, labels


def torch_ranking(torch, s, y, margin, weights):
    total = 0.0
    for b in range(len(y)):
        for j in np.flatnonzero(y[b] == 1):
            for i in np.flatnonzero(y[b] == 0):
                w = 1.0 if weights is None else weights[i, j]
                total = total + w * torch.clamp(margin - s[b, j] + s[b, i], min=0)
    return total / len(y)


def torch_asymmetric(torch, p, y, minus, plus, clip, eps):
    q = torch.clamp(1 - p + clip, max=1)
    with torch.no_grad():
        focus = torch.where(y == 1, (1 - p) ** plus, (1 - q) ** minus)
    logs = torch.where(y == 1, torch.log(p.clamp(min=eps)), torch.log(q.clamp(min=eps)))
    return -(focus * logs * (y != -1)).sum()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("at_once", [1 << 24, 6])
def test_ranking_and_its_gradient_equal_torchs(seed, at_once, close, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(losses, "PAIRS_AT_ONCE", at_once)
    (scores, _), labels = drawn(seed)
    weights = pair_weights(np.random.default_rng(seed).uniform(0.1, 9, (5, 5)))
    for own in (None, weights):
        ours, theirs = jt.array(scores), torch.tensor(scores.astype(np.float64), requires_grad=True)
        loss, wanted = losses.ranking_loss(ours, labels, 0.7, own), torch_ranking(torch, theirs, labels, 0.7, own)
        wanted.backward()
        close(value(loss), [wanted.item()], "loss", "ranking loss")
        gradient = jt.grad(loss, ours).numpy()
        close(gradient, theirs.grad, "gradient_relative", "ranking loss: gradients, relative", relative=True)
        assert np.array_equal(ours.numpy(), scores)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("minus, plus", [(2.0, 1.0), (4.0, 1.0), (1.5, 0.0)])
def test_asymmetric_and_its_gradient_equal_torchs(seed, minus, plus, close):
    torch = pytest.importorskip("torch")
    scores, labels = drawn(seed)
    scores = [3 * s for s in scores]
    scores[0][3, 0], scores[1][3, 0] = -30.0, 30.0  # a probability that is nothing
    y = torch.tensor(labels.astype(np.int64))
    powers = {"negative_power": minus, "positive_power": plus}
    for pair in (True, False):
        ours, theirs = [jt.array(s) for s in scores], [torch.tensor(s, requires_grad=True) for s in scores]
        if pair:
            loss = losses.pair_asymmetric_loss(*ours, labels, **powers, weight=0.03)
            p = torch.softmax(torch.stack([theirs[1], theirs[0]]), dim=0)[1]
            wanted = 0.03 * torch_asymmetric(torch, p, y, minus, plus, 0.05, 1e-6)
        else:
            loss = losses.asymmetric_loss(ours[0] - ours[1], labels, **powers)
            p = torch.sigmoid(theirs[0] - theirs[1])
            wanted = torch_asymmetric(torch, p, y, minus, plus, 0.05, 1e-8) / len(labels)
        wanted.backward()
        close(value(loss), [wanted.item()], "loss", "asymmetric loss")
        for g, t in zip(jt.grad(loss, ours), theirs, strict=True):
            close(g.numpy(), t.grad, "gradient_relative", "asymmetric loss: gradients, relative", relative=True)


@pytest.mark.parametrize("seed", [0, 1])
def test_teacher_teaches_the_student_alone(seed, close):
    torch = pytest.importorskip("torch")
    scores, _ = drawn(seed)
    ours, theirs = [jt.array(s) for s in scores], [torch.tensor(s, requires_grad=True) for s in scores]
    loss = losses.teacher_loss(*ours)
    log = torch.nn.functional.log_softmax
    wanted = torch.nn.functional.kl_div(log(theirs[0], 1), torch.softmax(theirs[1], 1).detach(), reduction="batchmean")
    wanted.backward()
    close(value(loss), [wanted.item()], "loss", "teacher's loss")
    own, other = jt.grad(loss, ours)
    close(own.numpy(), theirs[0].grad, "gradient_relative", "teacher's loss: gradients, relative", relative=True)
    assert not other.numpy().any()
