"""Configs by path or name, built into their recipe's `Config`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from jclip.config import build, load_values, protocols, refuse_unread, to_values
from jclip.errors import ConfigError, UnknownName, quoted
from jclip.paths import is_file
from jclip.postponed import postponed
from jclip.train import recipe_finder

PACKAGES = Path(__file__).parents[2]  # the checkout, or where packages are installed
INSTALLED_CONFIGS = PACKAGES / "finetune" / "configs"
CHECKOUT_CONFIGS = PACKAGES / "configs"
LOGS = ("", "tensorboard")  # of a run, beside metrics.jsonl


def find_config(name: str) -> Path:
    """A path, or the name of a shipped config such as `tip_adapter/features_caltech_lvis`. Raises `ConfigError`."""
    path = Path(name)
    if is_file(path):
        return path
    for folder in (CHECKOUT_CONFIGS, INSTALLED_CONFIGS):
        for candidate in (folder / name, folder / f"{name}.yaml", folder.parent / name):
            if is_file(candidate):
                return candidate
    if name and os.path.lexists(path):
        return path  # a folder, a FIFO: whoever reads it says so
    names = [str(p.relative_to(f).with_suffix("")) for f in (CHECKOUT_CONFIGS, INSTALLED_CONFIGS) for p in shipped(f)]
    if own := [known for known in names if known.startswith(f"{name}/")]:
        raise ConfigError(f"{quoted(name)} is a recipe, name one of its configs: {', '.join(dict.fromkeys(own))}")
    raise UnknownName("config", name, names, "no such file, and not one of those that `jclip recipes` lists")


def shipped(folder: Path) -> list[Path]:
    """The YAML files below a folder of configs."""
    return sorted(folder.rglob("*.yaml"))


def read_config(name: str, overrides: Sequence[str] = ()) -> tuple[Any, Any, Path]:
    """The recipe's module, its built `Config`, and the file. Raises `ConfigError` before Jittor or NumPy is loaded, also
    for a setting that nothing would read."""
    module, config, path = read_point(name, overrides)
    refuse_unread(config, load_values(path), overrides, str(path))
    return module, config, path


def read_point(name: str, overrides: Sequence[str] = ()) -> tuple[Any, Any, Path]:
    """As `read_config`, of one point of several: a setting that only others of them read is none too many."""
    path = find_config(name)
    if path.is_dir():
        writes = f"for photos `jclip check-data {quoted(name)} --write run.yaml` writes a config"
        raise ConfigError(f"can't read {quoted(name)}: must be a regular file, got a folder; {writes}")
    return (*build_config(load_values(path, overrides), str(path)), path)


def data_settings(name: str) -> set[str]:
    """The names of the settings in the group `data` of a config's recipe; none where it has none. Raises `ConfigError`."""
    recipe = load_values(find_config(name)).get("recipe")
    if not isinstance(recipe, str):
        return set()
    with postponed("numpy"):
        data = get_type_hints(recipe_finder.load(recipe).Config).get("data")
        return {field.name for field in dataclasses.fields(data)} if dataclasses.is_dataclass(data) else set()


def build_config(values: dict[str, Any], place: str) -> tuple[Any, Any]:
    """The recipe that `values` names with its key `recipe`, and its `Config`."""
    values = dict(values)
    log_named(values.pop("log", ""), place)
    recipe = values.pop("recipe", None)
    if recipe is None and ("backbones" in values or "task" in values):
        raise ConfigError(f"{place} is of several recipes: run it with `jclip challenge`")
    if not isinstance(recipe, str):
        raise ConfigError(f"{place}: recipe is missing (one of {', '.join(recipe_finder.names())})")
    with postponed("numpy"):
        module = recipe_finder.load(recipe)
        return module, build(module.Config, values, place)


def log_of(name: str, overrides: Sequence[str] = ()) -> str:
    """What the config's key `log` names, "" without one: `tensorboard`. It changes no figure and so no run's identity."""
    path = find_config(name)
    return log_named(load_values(path, overrides).get("log", ""), str(path))


def log_named(log: Any, place: str) -> str:
    """The kind of log of that name. Raises `ConfigError`."""
    if log not in LOGS:
        raise ConfigError(f"{place}: log must be tensorboard or empty, got {quoted(log)}")
    return log


def files_named_in(values: Any) -> list[str]:
    """The files that settings name: lists, features, weights, templates. What is written may be none of them."""
    if isinstance(values, Mapping):
        return [file for value in values.values() for file in files_named_in(value)]
    if isinstance(values, list | tuple):
        return [file for value in values for file in files_named_in(value)]
    return [values] if isinstance(values, str) and _is_file(values) else []


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a name that is longer than names can be, or has a zero byte
        return False


def resolved(module: Any, cfg: protocols.Dataclass) -> dict[str, Any]:
    """The configuration as plain values, recipe included: what is compared, written and fed back."""
    return {"recipe": module.__name__.rsplit(".", 1)[-1], **to_values(cfg)}


def default_folder(module: Any, cfg: protocols.Dataclass, path: Path, runs: str = "runs") -> Path:
    """<runs>/<recipe>/<config>-<hash of all settings>: another setting, another folder."""
    values = resolved(module, cfg)
    key = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    return Path(runs, values["recipe"], f"{path.stem}-{key}")
