"""A YAML's nested values, its paths made absolute, with `key=value` settings put into them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jclip.choices import HUBS
from jclip.errors import ConfigError, quoted
from jclip.paths import ASSETS, is_file
from jclip.readers.strict_yaml import parse_yaml, read_yaml

MOST_NAMES = 8  # of groups and the setting in `a.b.c=value`
WORLD = "shapes"  # in place of a file or folder: the embedded world, as in `shapes:sketch`
_DATA_PATHS = ("root", "images", "train", "val", "test", "classes", "split_file", "features", "text_features")
_WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".safetensors")


def load_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The nested values of a YAML file with `a.b=value` overrides applied. Raises `ConfigError`."""
    values = read_yaml(path)
    _resolve_paths(values, project_of(path))
    return apply_overrides(values, overrides)


def load_groups(path: Path) -> dict[str, dict[str, Any]]:
    """The nested values below each name of a YAML file that holds several configs. Raises `ConfigError`."""
    groups = read_yaml(path)
    for name, values in groups.items():
        if not isinstance(values, dict):
            raise ConfigError(
                f"{path}: {name} must be a group of settings ({name}: {{data: {{root: …}}}}), got {quoted(values)}"
            )
        _resolve_paths(values, project_of(path))
    return groups


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with each `a.b=value` put in its place; paths are relative to the caller's folder."""
    for override in overrides:
        _apply_override(values, override)
    return values


def project_of(path: Path) -> Path:
    """What relative paths in a YAML are relative to: the folder that holds its `configs` folder, else its own folder.

    Configs that were installed with the package belong to no project: theirs are relative to the caller's folder.
    """
    path = path.absolute()  # where the user sees it: a linked folder of configs belongs to the project that links it
    above = [p for p in path.parents if p.name == "configs"]
    if above and (above[-1].parent / "__init__.py").is_file():
        return Path.cwd()
    return above[-1].parent if above else path.parent


def _resolve_paths(values: dict, base: Path) -> None:
    """Relative paths under `data` and in `model` become absolute, relative to `base`."""
    data = values.get("data")
    for key in _DATA_PATHS if isinstance(data, dict) else ():
        if isinstance(data.get(key), str):
            data[key] = _of_project(data[key], base)
        elif isinstance(data.get(key), list):
            data[key] = [_of_project(name, base) if isinstance(name, str) else name for name in data[key]]
    _resolve_sources(values, base)
    if isinstance(values.get("classes"), str) and is_file(base / values["classes"]):
        values["classes"] = _absolute(values["classes"], base)
    _resolve_captions(values, base)
    _resolve_weights(values, "model", base)
    for member in _entries(values.get("models")):
        _resolve_weights(member, "weights", base)
        if isinstance(member.get("prompts"), str) and member["prompts"] and is_file(base / member["prompts"]):
            member["prompts"] = _absolute(member["prompts"], base)


def _resolve_sources(values: dict, base: Path) -> None:
    """Files of a curriculum's sources, the folder of their photos, and the paths of the recipe that it trains."""
    data = values.get("data")
    if isinstance(data, dict) and isinstance(data.get("sources"), dict):
        named = data["sources"]
        named |= {k: _of_project(file, base) for k, file in named.items() if isinstance(file, str)}
    if isinstance(data, dict) and isinstance(data.get("photos"), str):
        data["photos"] = _of_project(data["photos"], base)
    if isinstance(values.get("learn"), dict):
        _resolve_paths(values["learn"], base)


def _resolve_captions(values: dict, base: Path) -> None:
    """Files of captions, one or several, and the run that prompts start from."""
    if isinstance(named := values.get("captions"), str | list):
        files = [named] if isinstance(named, str) else named
        values["captions"] = [_absolute(f, base) if isinstance(f, str) and f and f != WORLD else f for f in files]
    if isinstance(values.get("init_from"), str) and values["init_from"]:
        values["init_from"] = _absolute(values["init_from"], base)


def _resolve_weights(values: dict, key: str, base: Path) -> None:
    if isinstance(values.get(key), str) and _is_weight_path(values[key], base):
        values[key] = _absolute(values[key], base)


def _entries(groups: Any) -> list[dict]:
    """The groups of settings in a list of them, or in part of one: `{"0": {…}}`."""
    listed = groups if isinstance(groups, list) else list(groups.values()) if isinstance(groups, dict) else []
    return [group for group in listed if isinstance(group, dict)]


def _of_project(name: str, base: Path) -> str:
    return _absolute(name, base) if name and name.partition(":")[0] != WORLD else name


def _absolute(value: str, base: Path) -> str:
    if value.startswith("asset:"):  # what ships inside the package
        asset = os.path.normpath(ASSETS / value.removeprefix("asset:"))
        if not asset.startswith(f"{ASSETS}{os.sep}"):
            raise ConfigError(
                f"{quoted(value)} must name a file that ships with jclip, such as asset:smoke_features.npz"
            )
        return asset
    return os.path.realpath(base / os.path.expanduser(value))  # noqa: PTH111 - neither raises for an unknown ~name or a loop of links


def _is_weight_path(value: str, base: Path) -> bool:
    """A model's name such as ViT-B/32 has a slash too: it is a path when it looks like a file or exists."""
    named = value.startswith(HUBS)
    return value.startswith((".", "~")) or (value.endswith(_WEIGHT_SUFFIXES) and not named) or is_file(base / value)


def _apply_override(values: dict, override: str) -> None:
    dotted, equals, text = override.partition("=")
    *above, last = names = dotted.split(".")
    if not equals or not all(names) or len(names) > MOST_NAMES or not dotted.isprintable():
        raise ConfigError(f"{quoted(override)} is not a setting: write key=value, such as data.shots=4")
    given: dict[str, Any] = {}
    node, inside = values, given
    for key in above:
        node, inside = _below(node, key, dotted), inside.setdefault(key, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"{dotted}: {key} is a single value and has no {last} inside")
    inside[last] = _value_of(text, dotted)
    _resolve_paths(given, Path.cwd())
    if isinstance(node, list):
        _below(node, last, dotted)
        last, inside = int(last), {int(last): inside[last]}
    node[last] = inside[last]


def _value_of(text: str, dotted: str) -> Any:
    """What stands after `=`, as YAML; a path whose bytes are no UTF-8 is text as it stands."""
    if not text or any("\udc80" <= c <= "\udcff" for c in text):
        return text
    try:
        return parse_yaml(text)
    except ConfigError as e:
        raise ConfigError(f"{dotted}: {quoted(text)} is not a valid value ({e})") from e


def _below(node: dict | list, key: str, dotted: str) -> Any:
    """What stands in a group under `key`, made where it is absent, or in a list at that number from 0."""
    if isinstance(node, dict):
        return node.setdefault(key, {})
    if not key.isdecimal() or len(key) > 9 or int(key) >= len(node):
        raise ConfigError(f"{dotted}: {key} is none of the list's {len(node)} entries, which are numbered from 0")
    return node[int(key)]
