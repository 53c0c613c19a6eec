"""What the whole suite shares: the torchvision stub, the real data, toy models, a report of the largest differences."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import finetune  # noqa: F401 (offers the recipes, as every entry point does: a test file runs alone, too)

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
FIGURE = re.compile(r"^(\S.*?) {2,}(\d\.\d+e-\d+)$", re.MULTILINE)
_differences: dict[str, float] = {}
# Files that take longest, longest first: where several processes share the suite, none has one of them left at the end.
LONGEST = (
    "contract/test_readme.py", "recipes/test_ranks.py", "hostile/test_crash_points.py", "recipes/test_contrastive.py",
    "recipes/test_curriculum.py", "recipes/test_challenge.py", "hostile/test_readers.py", "recipes/test_memory.py",
    "contract/test_recipes.py", "library/test_shares.py", "parity/test_models.py", "app/test_search_tab.py",
    "recipes/test_average.py", "library/test_memory_estimate.py", "app/test_classify_tab.py",
)  # fmt: skip


def pytest_sessionstart(session) -> None:
    """Of two processes that share the whole suite one imports the tests from behind: rewriting their asserts takes long,
    and what the one has compiled the other finds."""
    whole = session.config.args == session.config.getini("testpaths")
    if not whole or os.environ.get("PYTEST_XDIST_WORKER") != "gw1" or sys.dont_write_bytecode:
        return
    for path in sorted((ROOT / "tests").rglob("test_*.py"), reverse=True):
        with contextlib.suppress(Exception, pytest.skip.Exception):  # collecting imports it again, and reports it
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def pytest_configure() -> None:
    """Nothing waits for the disk: killed processes leave what they wrote to the kernel, synced or not. That files are synced
    in the right places is seen by tests that put something of their own here, and by bench/crash_points.py."""
    os.fsync = lambda descriptor: None


def pytest_collection_modifyitems(items) -> None:
    """`LONGEST` before all others, which stay in their order."""
    places = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def _stub_torchvision() -> None:
    """Two operator schemas that torchvision wants before it is imported beside a torch of another build."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("torchvision") is None:
        return
    import torch

    if torch.version.cuda:  # its own torchvision brings the operators
        return
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


@pytest.fixture(scope="session")
def small_models(tmp_path_factory) -> dict[str, Path]:
    """Weight files of two small models that read real photos and real text, with seeded random weights."""
    from tests.toys import SMALL_RESNET, SMALL_VIT, toy_file

    folder = tmp_path_factory.mktemp("small models")
    return {"vit": toy_file(folder, SMALL_VIT), "resnet": toy_file(folder, SMALL_RESNET)}


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory) -> Path:
    """A folder per class, train and test, of seeded pictures that a random model distinguishes by their colour."""
    from PIL import Image

    root = tmp_path_factory.mktemp("图片 of things")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("red_thing", "绿 thing", "blue thing")):
        for part, count in (("train", 10), ("test", 6)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 90, (40 + 3 * i, 50, 3), dtype=np.uint8)
                pixels[:, :, label] += 120
                Image.fromarray(pixels).save(folder / f"{part} {label}-{i}.png")
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Features, heads and hashes of a test are its own; Jittor's compiled code is shared."""
    folder = tmp_path_factory.mktemp("cache")
    use_cache(folder, monkeypatch.setattr)
    return folder


def use_cache(folder: str | Path, setattr) -> None:
    """From now on features, heads, hashes and weights are kept below `folder`, all else where it was."""
    import jclip.paths

    before = jclip.paths.cache_dir

    def cache_dir(*parts: str) -> Path:
        if parts and parts[0] in ("features", "classifiers", "hashes", "weights", "queries", "galleries", "columns"):
            below = Path(folder).joinpath(*parts)
            below.mkdir(parents=True, exist_ok=True)
            return below
        return before(*parts)

    for module in ("paths", "paths.file_hashes", "features.extraction", "features.heads", "weights.download"):
        setattr(importlib.import_module(f"jclip.{module}"), "cache_dir", cache_dir)


@functools.cache
def published_figures() -> dict[str, float]:
    """Largest differences by label, as docs/parity.md prints them. The tests that measure one compare it with that."""
    return {
        label: float(value)
        for label, value in FIGURE.findall((ROOT / "docs" / "parity.md").read_text(encoding="utf-8"))
    }


@pytest.fixture
def close():
    """Asserts that two arrays agree within a tolerance of the table, and remembers the largest difference for the report.

    drift: how far rounding carries the reference itself (tests/trajectories.py); the tolerance is no smaller than some of it.
    """
    from tests.tolerances import tolerance

    published = published_figures()

    def check(got, wanted, name: str, label: str = "", relative: bool = False, drift: float = 0.0) -> float:
        got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
        assert got.shape == wanted.shape, f"{label}: shape {got.shape} instead of {wanted.shape}"
        assert np.isfinite(got).all(), f"{label}: not finite"
        difference = float(np.abs(got - wanted).max()) if got.size else 0.0
        if relative and got.size:
            difference /= max(float(np.abs(wanted).max()), 1e-4)
        if label:
            _differences[label] = max(_differences.get(label, 0.0), difference)
        if label in published:
            assert difference <= 10 * published[label], (
                f"{label}: differs by {difference:.3g}, docs/parity.md says {published[label]}"
            )
        allowed = max(tolerance(name), tolerance("drift") * drift)
        assert difference <= allowed, f"{label or name}: differs by {difference:.3g}, allowed {allowed:.3g}"
        return difference

    return check


def pytest_sessionfinish(session) -> None:
    """A worker of pytest-xdist hands its differences over."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["differences"] = _differences


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """The largest of all workers are reported."""
    for label, value in getattr(node, "workeroutput", {}).get("differences", {}).items():
        _differences[label] = max(_differences.get(label, 0.0), value)


def pytest_terminal_summary(terminalreporter) -> None:
    if _differences:
        terminalreporter.section("largest differences")
        for label, value in sorted(_differences.items()):
            terminalreporter.write_line(f"{label:58} {value:.2e}")
