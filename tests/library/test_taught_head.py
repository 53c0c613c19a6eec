"""The head that answers teach: the optimum that scipy and scikit-learn find, the text exactly without answers, a bound on
what one answer moves; precision and recall of an audit by hand and by scipy's distributions."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.functional.audited_shares import Stratum, precision, recall, right_bounds
from jclip.functional.background import Background, background
from jclip.functional.taught_head import Spread, ground_of, map_change, taught_head, text_head
from tests.made_galleries import unit_rows


def problem(seed: int, answers: int, width: int = 11):
    draw = np.random.default_rng(seed)
    features = draw.standard_normal((answers, width))
    half = draw.standard_normal((width, width + 3))
    return draw.standard_normal(answers), features, draw.integers(0, 2, answers), half @ half.T / width


@pytest.mark.parametrize(("seed", "answers"), [(0, 1), (1, 7), (2, 40)])
def test_the_optimum_is_scipys(seed, answers, close):
    from scipy.optimize import minimize

    prior, features, labels, covariance = problem(seed, answers)
    change, offset = map_change(prior, features, labels, covariance)
    precision_matrix, sign = np.linalg.inv(covariance), 2 * labels - 1

    def loss(v):
        return (
            np.logaddexp(0, -sign * (prior + features @ v[:-1] + v[-1])).sum()
            + v[:-1] @ precision_matrix @ v[:-1] / 2
            + v[-1] ** 2 / 2
        )

    found = minimize(loss, np.zeros(12), method="BFGS", options={"gtol": 1e-9})
    close(np.append(change, offset), found.x, "scores", "taught head: weights by scipy")
    assert loss(np.append(change, offset)) <= found.fun + 1e-12 * abs(found.fun)


def test_without_a_text_it_is_scikit_learns_logistic_regression(close):
    from sklearn.linear_model import LogisticRegression

    _, features, labels, _ = problem(3, 40)
    wide = np.column_stack([features, np.ones(40)])  # its own bias is not penalised: a constant column is
    change, offset = map_change(np.zeros(40), features, labels, 2.5 * np.eye(11))
    scaled = np.column_stack([features * np.sqrt(2.5), np.ones(40)])
    theirs = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(scaled, labels)
    close(wide @ np.append(change, offset), scaled @ theirs.coef_[0], "scores", "taught head: logits by scikit-learn")


def test_it_is_torchs_lbfgs_of_the_posterior(close):
    torch = pytest.importorskip("torch", reason="compares with torch: pip install '.[parity]'")

    gallery, text = unit_rows(90), unit_rows(1, seed=5)[0]
    spread, labels, rows = Spread.of(gallery), np.array([1, 0, 0, 1, 1]), [3, 8, 20, 41, 77]
    ground = background(gallery @ text, 90)
    head = taught_head(text_head(text, ground), gallery[rows], labels, spread)
    x, t = torch.tensor(gallery, dtype=torch.float64), torch.tensor(text, dtype=torch.float64)
    mean = torch.tensor(spread.mean)
    weights, offset = (
        torch.zeros(len(text), dtype=torch.float64, requires_grad=True),
        torch.zeros((), dtype=torch.float64, requires_grad=True),
    )
    inverse = torch.linalg.inv(8.0 * torch.tensor(spread.freedom))
    search = torch.optim.LBFGS([weights, offset], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def logits():
        return (x @ t - ground.middle) / ground.deviation - ground.line + (x - mean) @ weights + offset

    def posterior():
        search.zero_grad()
        lost = torch.nn.functional.binary_cross_entropy_with_logits(
            logits()[rows], torch.tensor(labels, dtype=torch.float64), reduction="sum"
        )
        total = lost + weights @ inverse @ weights / 2 + offset**2 / 2
        total.backward()
        return total

    search.step(posterior)
    close(head.logits(gallery @ head.vector), logits().detach().numpy(), "scores", "taught head: logits by torch")


def test_without_answers_it_is_the_text():
    gallery, text = unit_rows(200), unit_rows(1, seed=5)[0]
    ground = background(gallery @ text, 200, line=1.5)
    head = taught_head(text_head(text, ground), gallery[:0], np.zeros(0), Spread.of(gallery))
    assert head.vector is text
    above = head.logits(gallery @ head.vector) > 0
    assert (above == (ground.z(gallery @ text) > ground.line)).all() and 0 < above.sum() < 30


def test_scores_of_the_gallery_move_by_one_on_average_over_the_prior(close):
    draw = np.random.default_rng(0)
    gallery = draw.standard_normal((300, 9)) * np.arange(1, 10) + 3
    spread = Spread.of(gallery)
    centred = gallery - gallery.mean(axis=0)
    close(np.einsum("ne,ef,nf->n", centred, spread.freedom, centred).mean(), 1.0, "closed_form")
    covariance = np.cov(gallery.T)
    inverse = np.linalg.inv(covariance + 0.5 * np.trace(covariance) / 9 * np.eye(9))
    close(spread.freedom / spread.freedom[0, 0], inverse / inverse[0, 0], "closed_form")


def test_odd_answers_leave_it_finite():
    gallery, text = unit_rows(60), unit_rows(1, seed=5)[0]
    start = text_head(text, background(gallery @ text, 60))
    spread = Spread.of(gallery)
    for rows, labels in (
        ([1, 2, 3], [1, 1, 1]),
        ([1, 2, 3], [0, 0, 0]),
        ([4, 4, 4, 4], [1, 0, 1, 0]),
        ([0] * 50, [1] * 50),
    ):
        head = taught_head(start, gallery[rows], np.array(labels), spread)
        assert np.isfinite([*head.vector, head.scale, head.bias]).all()
    both = taught_head(start, gallery[[4, 4]], np.array([1, 0]), spread)
    assert abs(both.logits(gallery[4] @ both.vector)) < abs(start.logits(gallery[4] @ text))  # half, half
    alike = Spread.of(np.ones((30, 5)))
    assert np.isfinite(alike.freedom).all()
    small = ground_of(np.array([0.1, 0.3]), Background(0.0, 0.0, 2.0))
    assert (small.middle, small.deviation) == (pytest.approx(0.2), pytest.approx(0.1))


def test_an_answer_moves_its_photo_its_own_way_and_others_less():
    gallery, text = unit_rows(200), unit_rows(1, seed=5)[0]
    start, spread = text_head(text, background(gallery @ text, 200)), Spread.of(gallery)
    for label, sign in ((1, 1), (0, -1)):
        head = taught_head(start, gallery[[17]], np.array([label]), spread)
        moved = sign * (head.logits(gallery @ head.vector) - start.logits(gallery @ text))
        assert moved[17] > 0 and moved.argmax() == 17


def test_bounds_are_those_of_scipys_distribution(close):
    from scipy import stats

    draw = np.random.default_rng(0)
    for _ in range(60):
        size = int(draw.integers(1, 300))
        asked = int(draw.integers(1, min(size, 30) + 1))
        right = int(draw.integers(0, asked + 1))
        possible = np.arange(right, size - asked + right + 1)
        tails = [
            stats.hypergeom.sf(right - 1, size, possible, asked),
            stats.hypergeom.cdf(right, size, possible, asked),
        ]
        held = possible[(np.min(tails, axis=0) > 0.025)]
        assert right_bounds(size, asked, right) == (held[0], held[-1])
    interval = stats.binomtest(17, 20).proportion_ci(method="exact")  # Clopper-Pearson, of an endless gallery
    close(np.array(right_bounds(10**8, 20, 17)) / 10**8, [interval.low, interval.high], "rounding")
    assert right_bounds(9, 9, 4) == (4, 4) and right_bounds(7, 0, 0) == (0, 7)


def test_precision_and_recall_by_hand():
    strata = [Stratum(True, 10, 10, 8, 4, 1), Stratum(False, 50, 10, 1, 0, 3), Stratum(False, 100, 20, 0)]
    assert precision(strata).value == pytest.approx(12 / 15)
    assert (precision(strata).low, precision(strata).high) == (12 / 15, 12 / 15)  # all of them were asked about
    found = recall(strata)
    assert found.value == pytest.approx(12 / (12 + 5))
    near, far = right_bounds(50, 10, 1, 1 - 0.05 / 3), right_bounds(100, 20, 0, 1 - 0.05 / 3)
    assert found.low == pytest.approx(12 / (12 + near[1] + far[1])) and found.high == pytest.approx(
        12 / (12 + near[0] + far[0])
    )
    assert precision([Stratum(True, 0), Stratum(False, 5)]).value is None
    nothing = recall([Stratum(True, 3), Stratum(False, 5)])
    assert (nothing.value, nothing.low, nothing.high) == (None, 0.0, 1.0)


def test_intervals_hold_as_often_as_they_say():
    draw = np.random.default_rng(0)
    right = np.zeros(400, bool)
    right[:30], right[60:90], right[200:204] = True, True, True  # 30 of 60 above, 30 near, 4 elsewhere
    truth, held = (30 / 60, 30 / 64), np.zeros(2, int)
    for _ in range(200):
        strata = []
        for above, start, end, asked in ((True, 0, 60, 20), (False, 60, 200, 10), (False, 200, 400, 10)):
            rows = draw.permutation(np.arange(start, end))[:asked]
            strata.append(Stratum(above, end - start, asked, int(right[rows].sum())))
        held += [s.low <= t <= s.high for s, t in zip((precision(strata), recall(strata)), truth, strict=True)]
    assert (held >= 190).all()
