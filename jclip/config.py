"""Strict YAML to frozen dataclasses. Imports no Jittor: a wrong setting is refused at once.

Merge order: defaults of the dataclass, then the file, then `key=value` from the command line; nothing else. Unknown,
missing, duplicate, ill-typed and out-of-set values are errors that name the file and the dotted key.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from jclip.errors import ConfigError, did_you_mean, printable, quoted
from jclip.paths import ASSETS, is_file
from jclip.readers.strict_yaml import parse_yaml, read_yaml, unusable

Dtype = Literal["fp32", "fp16", "bf16"]  # what a model computes its products in
Subset = Literal["all", "base", "new"]  # of the classes: the first half, with the middle one, and the rest


class OutOfRange(ConfigError):
    """A value outside its range: `optim.betas must be in [0, 1), got [1.2]`; the group is named as the config names it."""

    def __init__(self, group: str, key: str, must: str, value: Any):
        self.group, self._rest = group, f"{key} must be {must}, got {quoted(value)}"
        super().__init__(f"{group}.{self._rest}")

    def below(self, group: str) -> str:
        """The message for a config that has these settings in another group, such as `head_optim`."""
        return f"{group or self.group}.{self._rest}"


def require(holds: bool, group: str, key: str, must: str, value: Any) -> None:
    """Raises `OutOfRange` unless `holds`."""
    if not holds:
        raise OutOfRange(group, key, must, list(value) if isinstance(value, tuple) else value)


@dataclass(frozen=True)
class DataConfig:
    """Where photos or precomputed features are, and what is drawn of them.

    One of four sources: `features` (an .npz of precomputed features), `split_file` (CoOp's split_zhou_*.json), `train`
    (list files of the Jittor challenge), or `root` alone (a folder per class, below train/val/test or directly; the
    Jittor challenge's folder, see `jclip.data.challenge_folder`; `shapes:STYLE` for rendered photos of the embedded world).
    """

    root: str = ""  # the folder that photos and lists are relative to
    train: str = ""  # list file: "relative/path label" per line
    val: str = ""
    test: str = ""
    classes: str = (
        ""  # "name label" per line; beside folders alone "folder name" per line, as ImageNet's classnames.txt
    )
    split_file: str = ""
    features: str = ""
    text_features: str = ""  # .npy (C, E) for precomputed features that come without
    shots: int = 16  # photos per class to learn from; 0 takes all
    val_shots: int = -1  # photos per class to choose by; -1: min(shots, 4), the field's custom; 0: all
    pool: int = (
        0  # of precomputed features: draw the shots, and val_shots, by seed from those of so many shots; 0: as they are
    )
    seed: int = 1
    subset: Subset = "all"  # of the classes, labels counted from 0 again; shots are drawn as if there were all
    strip_prefix: bool = False  # class names "Animal_Bear" → "Bear", as the challenge's
    on_error: Literal["stop", "skip"] = "stop"  # what to do with a photo that does not decode
    draft: bool = False  # large JPEGs are decoded at a fraction of their size: faster, not bit-exact
    upright: bool = True  # an EXIF orientation is applied; false leaves photos as they are stored

    def __post_init__(self):
        require(self.shots >= 0, "data", "shots", "at least 0 (all photos)", self.shots)
        require(self.val_shots >= -1, "data", "val_shots", "at least -1 (min(shots, 4))", self.val_shots)
        require(self.pool >= 0, "data", "pool", "at least 0 (features as they are)", self.pool)
        drawable = not self.pool or 0 < self.shots <= self.pool
        require(drawable, "data", "shots", f"in [1, {self.pool}], as many as data.pool has", self.shots)


@dataclass(frozen=True)
class CaptionConfig:
    """Where image-caption pairs are.

    train, val: a .csv or .tsv with a header line, .jsonl, or .txt with `image$attributes$caption` lines (A3R); or
    `shapes`, the embedded world, of which `scenes` are drawn anew for each epoch.
    """

    train: str = ""
    val: str = ""
    root: str = ""  # the folder that images are relative to; by default the file's own
    image_key: str = "filepath"
    caption_key: str = "title"
    scenes: int = 20_000
    val_scenes: int = 500
    easy_epochs: int = 0  # of the embedded world: epochs on the way from one large thing to up to four
    on_error: Literal["stop", "skip"] = "stop"
    upright: bool = True  # an EXIF orientation is applied; false leaves photos as they are stored

    def __post_init__(self):
        require(self.scenes >= 2, "data", "scenes", "at least 2", self.scenes)
        require(self.val_scenes >= 2, "data", "val_scenes", "at least 2", self.val_scenes)
        require(self.easy_epochs >= 0, "data", "easy_epochs", "at least 0", self.easy_epochs)


@dataclass(frozen=True)
class OptimConfig:
    """An optimiser and its schedule; the defaults are each recipe's own."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    nesterov: bool = False
    schedule: Literal["constant", "cosine", "step", "epoch_cosine"] = "cosine"  # the last is constant within an epoch
    step_epochs: int = 10  # of the schedule "step": epochs after which the rate is multiplied by gamma, again and again
    gamma: float = 0.1
    warmup: float = 0.0  # steps, of epoch_cosine epochs; below 1 a share of all
    warmup_lr: float = 0.0  # the rate throughout the warm-up; 0: it rises linearly to lr
    average: float = 0.0  # decay of a moving average of the weights, which then is what is measured and kept; 0: none
    epochs: int = 20
    stop: int = 0  # epochs after which training ends, at the rates of a training of all `epochs`; 0: these
    batch: int = 256

    def __post_init__(self):
        for name in ("epochs", "batch", "step_epochs"):
            require((value := getattr(self, name)) >= 1, "optim", name, "at least 1", value)
        require(0 <= self.stop <= self.epochs, "optim", "stop", f"in [0, {self.epochs}], optim.epochs", self.stop)
        for name in ("lr", "warmup", "warmup_lr", "weight_decay"):
            require((value := getattr(self, name)) >= 0, "optim", name, "at least 0", value)
        require(self.eps > 0, "optim", "eps", "above 0", self.eps)
        require(0 <= self.gamma <= 1, "optim", "gamma", "in [0, 1]", self.gamma)
        for name in ("momentum", "average"):
            require(0 <= (value := getattr(self, name)) < 1, "optim", name, "in [0, 1)", value)
        require(all(0 <= beta < 1 for beta in self.betas), "optim", "betas", "in [0, 1)", self.betas)

    @property
    def trained_epochs(self) -> int:
        """How many epochs are trained."""
        return self.stop or self.epochs


def check_grid(optim: OptimConfig, **values: Sequence[float]) -> None:
    """Raises `ConfigError` for a value that `optim` could not have: `check_grid(optim, lr=(1e-3, -1))`."""
    for name, given in values.items():
        for value in given:
            dataclasses.replace(optim, **{name: value})


def refuse_average(optim: OptimConfig, instead: str) -> None:
    """Raises `ConfigError` where an average of weights is asked for and there are no steps to average over."""
    if optim.average:
        raise ConfigError(
            f"optim.average must be 0 without training steps to average over, got {optim.average}: it needs {instead}"
        )


ALIASES = {
    "epoches": "epochs", "ckt_gap": "every",  # as an entry of the Jittor challenge spells them
    "exif_rotate": "upright",  # as it was called while it was off by default
}  # fmt: skip
MOST_NAMES = 8  # of groups and the setting in `a.b.c=value`
MOST_NUMBER = 3.4e38  # a float32 holds no more
MOST_WHOLE = 1_000_000
MOST_OF = {  # whole numbers of that name, in whatever recipe: a seed allocates nothing, the others photos and prompts
    "seed": 2**32 - 1,
    "views": 1_000,
    "head_views": 1_000,
    "context": 256,
    "search_steps": 10_000,
    "max_requests": 10**9,
    "max_tokens": 10**12,
}
WORLD = "shapes"  # in place of a file or folder: the embedded world, as in `shapes:sketch`
_DATA_PATHS = ("root", "train", "val", "test", "classes", "split_file", "features", "text_features")
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
        if isinstance(data.get(key), str) and data[key] and data[key].partition(":")[0] != WORLD:
            data[key] = _absolute(data[key], base)
    if isinstance(values.get("classes"), str) and is_file(base / values["classes"]):
        values["classes"] = _absolute(values["classes"], base)
    _resolve_captions(values, base)
    _resolve_weights(values, "model", base)
    for member in _entries(values.get("models")):
        _resolve_weights(member, "weights", base)
        if isinstance(member.get("prompts"), str) and member["prompts"] and is_file(base / member["prompts"]):
            member["prompts"] = _absolute(member["prompts"], base)


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
    return value.startswith((".", "~")) or value.endswith(_WEIGHT_SUFFIXES) or is_file(base / value)


def _apply_override(values: dict, override: str) -> None:
    dotted, equals, text = override.partition("=")
    *above, last = names = dotted.split(".")
    if not equals or not all(names) or len(names) > MOST_NAMES or not dotted.isprintable():
        raise ConfigError(f"{quoted(override)} is no setting: write key=value, such as data.shots=4")
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
    """What stands behind `=`, as YAML; a path whose bytes are no UTF-8 is text as it stands."""
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


def build(schema: type, values: Mapping[str, Any], place: str) -> Any:
    """`schema`, a frozen dataclass, from nested `values`; `place` is the file named in errors. Raises `ConfigError`.

    What a group of settings leaves out stays as the schema above it has it: `optim: {lr: 1e-3}` keeps a recipe's optimiser.
    """
    return _build(schema, values, place, "")


def _build(schema: type, values: Any, place: str, prefix: str, default: Any = None) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{place}: {prefix or 'the file'} must be a group of settings, got {quoted(values)}")
    fields = {f.name: f for f in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    values = {new if (new := ALIASES.get(key)) in fields and new not in values else key: v for key, v in values.items()}
    for key in values:
        if key not in fields:
            where = f"{prefix}.{printable(key, 60)}" if prefix else printable(key, 60)
            raise ConfigError(f"{place}: unknown key {where}{did_you_mean(key, fields)} (known: {', '.join(fields)})")
    made = {} if default is None else {name: getattr(default, name) for name in fields}
    for name, field in fields.items():
        dotted = f"{prefix}.{name}" if prefix else name
        if name in values and dataclasses.is_dataclass(hints[name]):
            made[name] = _build(hints[name], values[name], place, dotted, made.get(name, _default_of(field)))
        elif name in values:
            made[name] = _convert(hints[name], values[name], place, dotted)
        elif name in made:
            continue
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{place}: {dotted} is missing")
        if name == "seed" and made.get(name, 0) < 0:
            raise ConfigError(f"{place}: {dotted} must be at least 0, got {made[name]}")
    try:
        return schema(**made)
    except OutOfRange as e:
        raise ConfigError(f"{place}: {e.below(prefix)}") from e
    except ConfigError as e:
        raise ConfigError(f"{place}: {e}") from e


def _default_of(field: dataclasses.Field) -> Any:
    """The group of settings that a schema has in this place by default, None where it has to be given."""
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def _convert(hint: Any, value: Any, place: str, dotted: str) -> Any:
    """`value` as `hint`, or a `ConfigError`. Whole numbers pass as float; nothing else is converted silently."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, place, dotted)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[0], bool):
            near = did_you_mean(str(value), map(str, arguments))
            raise ConfigError(
                f"{place}: {dotted} must be one of {', '.join(map(str, arguments))}, got {quoted(value)}{near}"
            )
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, place, dotted)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, place, dotted)
    if (
        hint is int
        and isinstance(value, int)
        and abs(value) > (most := MOST_OF.get(dotted.rpartition(".")[2], MOST_WHOLE))
    ):
        shown = value if value.bit_length() < 100 else f"a number of {value.bit_length()} bits"
        raise ConfigError(f"{place}: {dotted} must be in [-{most}, {most}], got {shown}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= MOST_NUMBER else math.inf
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{place}: {dotted} must be {_TYPE_NAMES.get(hint, hint.__name__)}, got {quoted(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{place}: {dotted} must be a finite number, got {value}")
    if isinstance(value, float) and abs(value) > MOST_NUMBER:
        raise ConfigError(f"{place}: {dotted} must be in [-{MOST_NUMBER}, {MOST_NUMBER}], got {value}")
    if isinstance(value, str) and (why := unusable(value)):
        raise ConfigError(f"{place}: {dotted} must not hold {why}, got {quoted(value)}")
    return value


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _convert_tuple(arguments: tuple, value: Any, place: str, dotted: str) -> tuple:
    items = list(value) if isinstance(value, list | tuple) else [value]
    if arguments and arguments[-1] is Ellipsis:
        numbered = dataclasses.is_dataclass(arguments[0])
        names = [f"{dotted}.{i}" if numbered else dotted for i in range(len(items))]
        return tuple(_convert(arguments[0], item, place, name) for item, name in zip(items, names, strict=True))
    if len(items) != len(arguments):
        raise ConfigError(f"{place}: {dotted} must be a list of {len(arguments)} values, got {quoted(value)}")
    return tuple(_convert(hint, item, place, dotted) for hint, item in zip(arguments, items, strict=True))


def to_values(config: Any) -> dict[str, Any]:
    """The resolved configuration as plain values, which `build` reads back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_json(values: Any, indent: int | None = None) -> str:
    """JSON text that is UTF-8, whatever names of files it holds: bytes that are none are escaped, and read back equal."""
    text = json.dumps(values, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML text of plain values, in their order."""
    fast = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # PyYAML may come without its C parts
    try:
        return yaml.dump(dict(values), Dumper=fast, sort_keys=False, allow_unicode=True)
    except UnicodeEncodeError:  # a path whose bytes are no UTF-8
        return yaml.dump(dict(values), Dumper=yaml.SafeDumper, sort_keys=False)
