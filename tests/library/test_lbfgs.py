"""L-BFGS against closed forms, torch's on logistic regression, and functions that go wrong."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.functional.lbfgs import minimise


def quadratic(seed: int, size: int):
    """x'Ax / 2 - b'x with eigenvalues from 1 to 1000, and its minimum."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((size, size)))[0]
    a, b = q @ np.diag(np.logspace(0, 3, size)) @ q.T, rng.standard_normal(size)
    return lambda x: (x @ a @ x / 2 - b @ x, a @ x - b), np.linalg.solve(a, b)


def rosenbrock(x):
    value = (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()
    gradient = np.zeros_like(x)
    gradient[:-1] = -400 * x[:-1] * (x[1:] - x[:-1] ** 2) - 2 * (1 - x[:-1])
    gradient[1:] += 200 * (x[1:] - x[:-1] ** 2)
    return value, gradient


def logistic(rows, labels, classes, c):
    """‖W‖² / 2 + c Σ CE in float64, W (classes, E) and the bias (classes,) after each other."""

    def objective(x):
        weights, bias = x[:-classes].reshape(classes, -1), x[-classes:]
        scores = rows @ weights.T + bias
        logs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        wrong = c * (np.exp(logs) - np.eye(classes)[labels])
        value = (weights**2).sum() / 2 - c * logs[np.arange(len(rows)), labels].sum()
        return value, np.concatenate([(weights + wrong.T @ rows).ravel(), wrong.sum(axis=0)])

    return objective


@pytest.mark.parametrize("seed, size", [(0, 5), (1, 17)])
@pytest.mark.parametrize("memory", [3, 10])
def test_quadratics_end_in_their_closed_form(seed, size, memory, close):
    objective, wanted = quadratic(seed, size)
    found = minimise(objective, np.zeros(size), memory=memory, tolerance=1e-9)
    assert found.converged and found.iterations < 400
    close(found.x, wanted, "loss", "L-BFGS: quadratic")  # the root of what float64 resolves in the value
    close(found.value, objective(wanted)[0], "closed_form", "L-BFGS: value of a quadratic")


@pytest.mark.parametrize("size", [2, 9])
def test_curved_valleys_are_followed(size, close):
    start = np.tile([-1.2, 1.0], size)[:size]
    found = minimise(rosenbrock, start, tolerance=1e-10)
    assert found.converged and 10 < found.iterations < 200
    close(found.x, np.ones(size), "closed_form", "L-BFGS: Rosenbrock")
    assert np.array_equal(start, np.tile([-1.2, 1.0], size)[:size])  # the caller's array is left alone


@pytest.mark.parametrize("c", [1e-2, 1.0, 100.0])
def test_logistic_regression_ends_where_torch_does(c, close):
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    rng = np.random.default_rng(3)
    rows, labels = rng.standard_normal((500, 64)), rng.integers(0, 7, 500)
    found = minimise(logistic(rows, labels, 7, c), np.zeros(7 * 65))
    assert found.converged and found.gradient <= 1e-4
    weights = torch.zeros(7, 64, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    options = {"max_iter": 2000, "tolerance_grad": 1e-9, "tolerance_change": 1e-14, "line_search_fn": "strong_wolfe"}
    reference = torch.optim.LBFGS([weights, bias], **options)
    x, y = torch.tensor(rows), torch.tensor(labels)

    def loss():
        reference.zero_grad()
        value = weights.square().sum() / 2 + c * torch.nn.functional.cross_entropy(
            x @ weights.T + bias, y, reduction="sum"
        )
        value.backward()
        return value

    reference.step(loss)
    close(found.value, loss().item(), "loss", f"L-BFGS: loss at C={c:g}")
    close(found.x[:-7].reshape(7, 64), weights.detach().numpy(), "trajectory", f"L-BFGS: weights at C={c:g}")


def test_logistic_regression_ends_where_scikit_learn_does(close):
    linear = pytest.importorskip(
        "sklearn.linear_model", reason="the reference is not installed: pip install '.[parity]'"
    )
    rng = np.random.default_rng(4)
    rows, labels = rng.standard_normal((500, 64)), rng.integers(0, 7, 500)
    found = minimise(logistic(rows, labels, 7, 0.316), np.zeros(7 * 65))
    fitted = linear.LogisticRegression(C=0.316, tol=1e-8, max_iter=2000).fit(rows, labels)
    x = np.concatenate([fitted.coef_.ravel(), fitted.intercept_])
    close(found.value, logistic(rows, labels, 7, 0.316)(x)[0], "loss", "L-BFGS: scikit-learn's loss")


def test_it_reports_when_it_has_not_arrived():
    found = minimise(rosenbrock, np.array([-1.2, 1.0]), iterations=5)
    assert not found.converged and found.iterations == 5 and found.gradient > 1e-4
    assert minimise(rosenbrock, np.ones(4)).iterations == 0  # started at the minimum
    assert minimise(rosenbrock, np.ones(4)).converged
    assert not minimise(lambda x: (float(-x.sum()), -np.ones_like(x)), np.zeros(3)).converged  # there is no minimum


def test_a_gradient_that_is_wrong_does_not_pass_for_an_end():
    found = minimise(lambda x: (float(x @ x), -2 * x), np.ones(3))
    assert not found.converged and np.array_equal(found.x, np.ones(3))


def test_values_that_are_no_numbers_are_stepped_back_from(close):
    def objective(x):  # x - log x, which ends at 0
        with np.errstate(invalid="ignore", divide="ignore"):
            return float((x - np.log(x)).sum()), 1 - 1 / x

    found = minimise(objective, np.array([0.01, 30.0]), tolerance=1e-10)
    assert found.converged
    close(found.x, np.ones(2), "closed_form", "L-BFGS: x - log x")
    with pytest.raises(ValueError, match="must be finite at the start"):
        minimise(objective, np.array([-1.0, 1.0]))


def test_it_stops_where_float64_ends(close):
    objective, wanted = quadratic(2, 7)
    found = minimise(lambda x: (objective(x)[0] + 1e6, objective(x)[1]), np.zeros(7), tolerance=1e-30)
    assert found.converged and found.iterations < 400  # the value stands still before the gradient does
    close(found.x, wanted, "loss")
