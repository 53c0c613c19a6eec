"""What the whole suite shares: the torchvision stub, the real data, toy models, a report of the largest differences."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
_differences: dict[str, float] = {}


def _stub_torchvision() -> None:
    """Two operator schemas that torchvision wants before it is imported beside a torch of another build."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("torchvision") is None:
        return
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    sys.modules["tests._torchvision_stub"] = library  # kept alive as long as the process


_stub_torchvision()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data, or a skip that says what is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"real data not found at {SHARED}")
    return SHARED


@pytest.fixture
def close():
    """Asserts that two arrays agree within a tolerance of the table, and remembers the largest difference for the report."""
    from tests.tolerances import tolerance

    def check(got, wanted, name: str, label: str = "", relative: bool = False) -> float:
        got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
        assert got.shape == wanted.shape, f"{label}: shape {got.shape} instead of {wanted.shape}"
        assert np.isfinite(got).all(), f"{label}: not finite"
        difference = float(np.abs(got - wanted).max()) if got.size else 0.0
        if relative:
            difference /= max(float(np.abs(wanted).max()), 1e-6)
        if label:
            _differences[label] = max(_differences.get(label, 0.0), difference)
        assert difference <= tolerance(name), f"{label or name}: differs by {difference:.3g}, allowed {tolerance(name):.3g}"
        return difference

    return check


def pytest_terminal_summary(terminalreporter) -> None:
    if _differences:
        terminalreporter.section("largest differences")
        for label, value in sorted(_differences.items()):
            terminalreporter.write_line(f"{label:58} {value:.2e}")
