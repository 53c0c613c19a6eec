"""Every task of bench/speed.py can be prepared and run on both sides, on models of small size; nothing is measured."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from jclip import kernels
from jclip.weights import variants
from tests.toys import SMALL_RESNET, SMALL_VIT

pytest.importorskip("transformers", reason="torch's side is not installed: pip install '.[parity]'")
if importlib.util.find_spec("torchvision"):  # the benches do without one, whatever else a session has imported
    importlib.import_module("torchvision")
BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))
speed, sides, targets = (importlib.import_module(name) for name in ("speed", "sides", "targets"))
sys.path.remove(str(BENCH))
COMPUTED = [task for task in speed.TASKS if not task.startswith("photos")]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The same tasks on small models."""
    for name in variants.VARIANTS:
        monkeypatch.setitem(variants.VARIANTS, name, SMALL_RESNET if name.startswith("RN") else SMALL_VIT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def few(task: str) -> str:
    """The same task with two images."""
    return task.replace("batch 32", "batch 2").replace("batch 16", "batch 2")


@pytest.mark.parametrize("task", COMPUTED)
@pytest.mark.parametrize("side", ["jclip", "torch"])
def test_a_task_can_be_prepared_and_runs(side, task):
    if side == "jclip" and task.endswith("bf16") and (reason := kernels.why_no_half("bf16")):
        pytest.skip(reason)
    warm, run, items = getattr(sides, f"prepare_{side}")(few(task))
    warm()
    run()
    assert items == sides.parse(few(task))[2]


def test_tasks_with_a_target_are_tasks():
    assert {t.row for t in targets.TARGETS if t.section == "tasks"} <= set(speed.TASKS)


def test_a_training_multiplies_in_the_dtype_of_its_task(monkeypatch):
    used = []
    monkeypatch.setattr(
        kernels, "products_in", lambda dtype, real=kernels.products_in: used.append(dtype) or real("fp32")
    )
    for task in speed.TRAIN:
        sides.prepare_jclip(few(task))[1]()
    assert used == ["fp32", "bf16"] * 2
