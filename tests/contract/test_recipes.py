"""What every recipe keeps, those not written yet too: found by their files, run on their smoke configs."""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
from pathlib import Path
from typing import get_type_hints

import pytest

import finetune
from jclip.config import WORLD, load_values, refuse_unread
from jclip.errors import ConfigError, UnknownName
from jclip.report.finished_run import FinishedRun
from jclip.report.predictor import Predictor
from jclip.report.tasks import TASKS, task_of
from jclip.train.configs import build_config, read_config, resolved
from jclip.train.run import Run

CONFIGS = Path(__file__).parent.parent.parent / "configs"
YAMLS = sorted(  # challenges are no recipe's, but of several
    p for p in CONFIGS.rglob("*.yaml") if p.parent != CONFIGS or "challenge" not in p.name
)


@pytest.mark.parametrize("name", finetune.names())
def test_a_recipe_is_a_frozen_config_and_a_run(name):
    module = finetune.load(name)
    assert dataclasses.is_dataclass(module.Config) and module.Config.__dataclass_params__.frozen
    assert list(inspect.signature(module.run).parameters) == ["cfg", "run"]
    for function, parameters in task_of(module).functions.items():
        assert tuple(inspect.signature(getattr(module, function)).parameters) == parameters, function
    first, *rest = (module.__doc__ or "").splitlines()
    assert ":" in first and "Trains:" in " ".join(rest) and "Needs:" in " ".join(rest)
    assert (CONFIGS / name / "smoke.yaml").is_file()


@pytest.mark.parametrize("name", finetune.names())
def test_what_a_recipe_reads_with_a_switch_alone_are_settings_that_it_has(name):
    config = finetune.load(name).Config
    hints = get_type_hints(config)
    for switch, settings in getattr(config, "READ_WITH", {}).items():
        for setting in filter(None, [switch.partition("=")[0].rstrip("!"), *settings]):
            group, _, inner = setting.partition(".")
            assert group in {f.name for f in dataclasses.fields(config)}, setting
            assert not inner or inner in {f.name for f in dataclasses.fields(hints[group])}, setting


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_config_that_ships_builds_and_says_how_to_run_it(path):
    module, cfg, _ = read_config(str(path))
    if path.parent != CONFIGS:
        assert module.__name__ == f"finetune.{path.parent.name}"
    refuse_unread(cfg, load_values(path), (), str(path))
    assert build_config(resolved(module, cfg), "again")[1] == cfg
    head = path.read_text(encoding="utf-8").split("recipe:")[0]
    assert f"Command: python -m finetune train configs/{path.relative_to(CONFIGS)}" in head and "Time:" in head


@pytest.mark.parametrize("name", finetune.names())
def test_smoke_runs_twice_with_equal_numbers(name, tmp_path):
    results = []
    for folder in ("one", "two"):
        module, cfg, _ = read_config(str(CONFIGS / name / "smoke.yaml"))
        with Run(tmp_path / folder, resolved(module, cfg)) as run:
            results.append(run.finish(module.run(cfg, run))["metrics"])
        task = task_of(module)
        assert (tmp_path / folder / task.product).is_file()
    assert results[0] == results[1]
    assert all(math.isfinite(v) for v in results[0].values())
    assert {*results[0]} & {task.main, f"val_{task.main}", f"test_{task.main}"}
    assert isinstance(Predictor.load(tmp_path / "one"), task.load_predictor())


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_has_a_class_of_its_finished_runs(name):
    task, predictor = TASKS[name], TASKS[name].load_predictor()
    assert task.name == predictor.task == name and issubclass(predictor, FinishedRun)
    assert predictor.files()[0] == "eval.json" and predictor.run_table({}) == ""
    assert any(task.main in metric for metric in task.metrics)
    assert any(task_of(finetune.load(recipe)) is task for recipe in finetune.names())


def test_a_task_that_there_is_none_of_suggests_the_nearest():
    with pytest.raises(UnknownName, match="task 'classifi', did you mean 'classify'"):
        task_of(types.SimpleNamespace(TASK="classifi"))


@pytest.mark.parametrize("name", finetune.names())
def test_an_unknown_key_is_refused_by_name(name):
    with pytest.raises(ConfigError, match="smoke.yaml: unknown key dtaa, did you mean 'data'"):
        read_config(str(CONFIGS / name / "smoke.yaml"), ["dtaa.shots=1"])


def test_unknown_recipes_and_configs_suggest_the_nearest(tmp_path):
    with pytest.raises(UnknownName, match="recipe 'tip_adaptor', did you mean 'tip_adapter'"):
        finetune.load("tip_adaptor")
    with pytest.raises(UnknownName, match="config 'tip_adapter/smok.yaml', did you mean 'tip_adapter/smoke'"):
        read_config("tip_adapter/smok.yaml")
    (tmp_path / "x.yaml").write_text("alpha: 1\n")
    with pytest.raises(ConfigError, match="x.yaml: recipe is missing \\(one of "):
        read_config(str(tmp_path / "x.yaml"))


def test_configs_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tip_adapter/smoke", "tip_adapter/smoke.yaml", "configs/tip_adapter/smoke.yaml"):
        assert read_config(name)[2] == CONFIGS / "tip_adapter" / "smoke.yaml"


def test_paths_of_configs_belong_to_the_project():
    for path in YAMLS:
        data = load_values(path).get("data", {})
        for key in ("root", "images", "train", "val", "test", "classes", "split_file", "features"):
            given = data.get(key) or []
            for named in [given] if isinstance(given, str) else given:
                assert named.partition(":")[0] == WORLD or Path(named).is_absolute(), f"{path}: data.{key}"
