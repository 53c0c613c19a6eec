"""Every task of bench/speed.py can be prepared and run on both sides, on models of small size; nothing is measured."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from jclip import kernels
from jclip.weights import variants
from jclip.weights.parameter_shapes import parameter_shapes
from tests.toys import SMALL_RESNET, SMALL_VIT

pytest.importorskip("transformers", reason="torch's side is not installed: pip install '.[parity]'")
if importlib.util.find_spec("torchvision"):  # the benches do without one, whatever else a session has imported
    importlib.import_module("torchvision")
BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))
speed, sides, targets, encoder_sides, equal_towers = map(
    importlib.import_module, ("speed", "sides", "targets", "encoder_sides", "equal_towers")
)
sys.path.remove(str(BENCH))
COMPUTED = [task for task in speed.TASKS if not task.startswith("photos")]
OF_2025 = [*speed.ENCODERS, *speed.CHINESE]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The same tasks on small models."""
    for name in variants.VARIANTS:
        monkeypatch.setitem(variants.VARIANTS, name, SMALL_RESNET if name.startswith("RN") else SMALL_VIT)
    for name in {sides.parse(task)[1] for task in OF_2025}:
        known = variants.ARCHITECTURES[name]
        towers = {side: replace(getattr(known, side), layers=1) for side in ("vision", "text")}
        monkeypatch.setitem(variants.ARCHITECTURES, name, replace(known, **towers))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def few(task: str) -> str:
    """The same task with two images, or four texts."""
    return task.replace("batch 128", "batch 4").replace("batch 32", "batch 2").replace("batch 16", "batch 2")


@pytest.mark.parametrize("task", COMPUTED)
@pytest.mark.parametrize("side", ["jclip", "torch"])
def test_a_task_can_be_prepared_and_runs(side, task):
    if side == "jclip" and task.endswith("bf16") and (reason := kernels.why_no_half("bf16")):
        pytest.skip(reason)
    warm, run, items = getattr(sides, f"prepare_{side}")(few(task))
    warm()
    run()
    assert items == sides.parse(few(task))[2]


@pytest.mark.parametrize("name", [*encoder_sides.TIMM, "ViT-B-16-SigLIP2"])
def test_both_sides_have_the_same_image_tower(name):
    config = encoder_sides.config_of(f"image {name} batch 2")
    tower = encoder_sides.torch_timm(name, config) if name in encoder_sides.TIMM else encoder_sides.torch_siglip(config)
    shapes = {k: s for k, s in parameter_shapes(config).items() if k.startswith("visual.") and "running_" not in k}
    theirs = sum(p.numel() for p in tower.parameters())
    assert theirs - sum(map(prod, shapes.values())) in (0, config.embed_dim)  # a projection's bias, which timm's has


def test_towers_of_one_size_take_turns():
    calls = []
    spent = equal_towers.take_turns([lambda: calls.append("a"), lambda: calls.append("b")], 2, iter(range(99)).__next__)
    assert calls == ["a", "b"] * 3 and spent == [(1, 1), (1, 1)]
    for row in equal_towers.ROWS[1:]:
        equal_towers.prepare(row, 2, "fp32")()
    first, whole = map(equal_towers.gflop, equal_towers.ROWS[:2])
    assert first == sides.gflop("image ViT-B/16 batch 32") < whole


def test_chinese_texts_are_of_6_to_52_tokens_or_full():
    config = encoder_sides.config_of(speed.CHINESE[0])
    lengths = (encoder_sides.texts(config, 128) != config.text.pad).sum(axis=1)
    assert (lengths.min(), lengths.mean(), lengths.max()) == (6, 29, 52)
    assert (encoder_sides.texts(config, 4, full=True) != config.text.pad).all()


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
