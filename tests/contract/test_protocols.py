"""What library functions ask of a recipe's config (`jclip.config.protocols`) is what the recipes' configs have."""

from __future__ import annotations

import ast
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import pytest

import finetune
from jclip.config import DataConfig, OptimConfig, WithClasses, WithGrid, WithModel, WithTemplates, WithViews

RECIPES = finetune.names()


def wanted_by(protocol: type) -> dict[str, Any]:
    """Settings that a protocol asks for → their types."""
    found = {}
    for base in reversed(protocol.__mro__):
        for name, member in vars(base).items():
            if getattr(base, "_is_protocol", False) and isinstance(member, property):
                found[name] = typing.get_type_hints(member.fget)["return"]
    return found


def fits(have: Any, want: Any) -> bool:
    """Whether a field of type `have` serves where `want` is read."""
    parts = [t for t in (have, want) if typing.get_origin(t) in (typing.Union, types.UnionType)]
    if parts:
        of_have, of_want = (typing.get_args(t) if t in parts else (t,) for t in (have, want))
        return all(any(fits(h, w) for w in of_want) for h in of_have)
    if typing.get_origin(have) is Literal and typing.get_origin(want) is not Literal:
        return all(isinstance(value, want) for value in typing.get_args(have))
    if typing.get_origin(want) is Sequence:
        return typing.get_origin(have) is tuple
    return have == want


def lacking(config: type, protocol: type) -> list[str]:
    """What a config has not as a field or property, or has with another type."""
    made = {k: v for k, v in vars(config).items() if isinstance(v, property)}
    have = {k: typing.get_type_hints(v.fget).get("return") for k, v in made.items()} | typing.get_type_hints(config)
    return [
        f"{name}: {want}, got {have.get(name)}"
        for name, want in wanted_by(protocol).items()
        if name not in have or not fits(have[name], want)
    ]


def given_to_the_library(recipe: types.ModuleType) -> Iterator[tuple[Callable, str]]:
    """(function of the library, parameter) of each call in a recipe that passes `cfg` on."""
    tree = ast.parse(inspect.getsource(recipe))
    named = dict(vars(recipe))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("jclip"):
            home = importlib.import_module(node.module)
            named |= {alias.asname or alias.name: getattr(home, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            function = getattr(named.get(called.value.id), called.attr, None)
        else:
            function = named.get(getattr(called, "id", ""))
        if not inspect.isfunction(function) or not function.__module__.startswith("jclip."):
            continue
        places = [i for i, given in enumerate(node.args) if isinstance(given, ast.Name) and given.id == "cfg"]
        names = list(inspect.signature(function).parameters)
        yield from ((function, names[place]) for place in places)


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_has_what_the_functions_that_it_goes_to_ask_for(name):
    recipe = finetune.load(name)
    for function, parameter in given_to_the_library(recipe):
        protocol = typing.get_type_hints(function)[parameter]
        assert getattr(protocol, "_is_protocol", False), f"{function.__qualname__}: {parameter} is no protocol"
        assert not lacking(recipe.Config, protocol), (function.__qualname__, lacking(recipe.Config, protocol))


def test_most_recipes_pass_their_config_on():
    passed = [name for name in RECIPES if [*given_to_the_library(finetune.load(name))]]
    assert len(passed) >= 18, passed


def test_a_config_that_lacks_something_is_seen():
    class Config:
        data: DataConfig
        augment: Literal["none", "coop"]
        views: str
        grid_lr: tuple[float, ...]
        grid_weight_decay: tuple[float, ...]
        grid_batch: int
        optim: OptimConfig

    assert [line.split(":")[0] for line in lacking(Config, WithViews)] == ["seed", "views"]
    assert [line.split(":")[0] for line in lacking(Config, WithGrid)] == ["grid_batch"]
    assert [line.split(":")[0] for line in lacking(Config, WithModel)] == ["model", "family"]


def test_what_only_some_have_is_asked_for():
    with_templates = types.SimpleNamespace(templates="simple")
    assert isinstance(with_templates, WithTemplates) and not isinstance(with_templates, WithClasses)
