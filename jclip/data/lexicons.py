"""Lexicons: the words by which a caption names each class. Three ship, users bring their own as YAML. Imports no Jittor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from jclip.data.class_names import read_class_names, read_names
from jclip.errors import ConfigError, UnknownName, did_you_mean, quoted
from jclip.paths import ASSETS, is_file
from jclip.prompts.class_sets import class_set, class_sets
from jclip.prompts.spelling import name_key
from jclip.readers.strict_yaml import parse_yaml, read_yaml
from jclip.readers.text import read_text

KINDS = ("extended", "compat")
_FOLDER = ASSETS / "lexicons"
_SHIPPED = ("coco", "voc2007", "nuswide")
_LISTS = frozenset(
    ("names", "classes", "categories", "id2label", "label2id")
)  # below which a file of class names has them
_GROUPS = ("synonyms", "doubtful", "implies")
_KEYS = (*_GROUPS, "prompt_names", "verb_forms", "most_tokens", "guards")


@dataclass(frozen=True)
class Guards:
    """Words that name a class only where they are nouns.

    adjectives: word → words that, like determiners and numbers, make a noun of it; verbs: no nouns after "to", a pronoun
    or a modal; beside: word → words that make another thing of it.
    """

    adjectives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    verbs: frozenset[str] = frozenset()
    beside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Lexicon:
    """Classes and their words; all tuples are in the order of the labels.

    synonyms: words beside the class's name; doubtful: words that leave the class unknown; implies: labels of classes that
    are unknown where this one is named and they are not; verb_forms: labels of classes that their -ing and -ed forms name;
    most_tokens: only this many words of a caption count (0: all).
    """

    name: str
    classnames: tuple[str, ...]
    prompt_names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    doubtful: tuple[tuple[str, ...], ...]
    implies: tuple[tuple[int, ...], ...]
    verb_forms: frozenset[int] = frozenset()
    most_tokens: int = 0
    guards: Guards = Guards()


def load_lexicon(named: str | PathLike | Sequence[str], kind: str = "extended") -> Lexicon:
    """Returns the lexicon of a shipped set, of a file, or of class names.

    named: `coco`, `voc2007`, `nuswide`; a YAML file `{class: [synonyms]}`; anything that names classes for
    `jclip.data.class_names.read_class_names`; or the names themselves. Names that are those of a shipped set get its
    words; any others name themselves. kind: `compat` (the published words, no guards), `extended` (more words, guards for
    words of two meanings), or a YAML file of the words of these classes. Raises `ConfigError`, `DataError`, `UnknownName`.
    """
    if not isinstance(named, str | PathLike):
        return _of_names(tuple(named), kind)
    named = fspath(named)
    if is_file(named) and named.lower().endswith((".yaml", ".yml")):
        values = _yaml_of_words(Path(named))
        if values is not None:
            if kind not in KINDS:
                raise ConfigError(f"{named} is a lexicon of its own: leave out {kind}")
            return _of_values(named, tuple(values["synonyms"]), [values], named)
    if named in class_sets():
        return _of_names(class_set(named), kind)
    return _of_names(read_names(Path(named)) if is_file(named) else read_class_names(named).names, kind)


def spoken_names(classnames: Sequence[str]) -> tuple[str, ...]:
    """Returns class names as prompts say them: `dining table` for VOC2007's `diningtable`; names of no known set as they
    are. Raises as `load_lexicon`."""
    return load_lexicon(tuple(classnames)).prompt_names


def _of_names(names: tuple[str, ...], kind: str) -> Lexicon:
    if kind not in KINDS:
        if not is_file(kind):
            raise ConfigError(f"a lexicon must be compat, extended or a YAML file, got {quoted(kind)}")
        values = _yaml_of_words(Path(kind))
        if values is None:
            raise ConfigError(f"{kind} must hold `class: [synonyms]` lines, got a list of names")
        return _of_values(kind, names, [values], kind)
    shipped = next((name for name in _SHIPPED if class_set(name) == names), "")
    if not shipped:
        return _of_values("names", names, [{}] if kind == "compat" else [{"guards": _guards()}], "the class names")
    values = read_yaml(place := _FOLDER / f"{shipped}.yaml")
    more = values.pop("extended", {})
    layers = [values] if kind == "compat" else [values, more, {"guards": _guards()}]
    return _of_values(shipped, names, layers, str(place))


def _guards() -> dict[str, Any]:
    return read_yaml(_FOLDER / "guards.yaml")


def _yaml_of_words(path: Path) -> dict[str, Any] | None:
    """The groups of a user's lexicon, with the guards that ship; None for a YAML list of class names."""
    values = parse_yaml(read_text(path))
    if not isinstance(values, dict) or ({*values} & _LISTS and len(values) == 1):
        return None
    if isinstance(values.get("synonyms"), dict):
        if unknown := [key for key in values if key not in _KEYS]:
            near = did_you_mean(unknown[0], _KEYS)
            raise ConfigError(f"{path}: unknown key {quoted(unknown[0])}{near} (known: {', '.join(_KEYS)})")
        return {"guards": _guards(), **values}
    lists = [value for value in values.values() if value is None or isinstance(value, list)]
    if not lists or all(key.isdecimal() for key in values):
        return None
    if len(lists) < len(values):
        raise ConfigError(f"{path}: every class must have a list of synonyms, such as `forklift: [lift truck]`")
    return {"guards": _guards(), "synonyms": values}


def _of_values(name: str, classnames: tuple[str, ...], layers: Sequence[Mapping[str, Any]], place: str) -> Lexicon:
    """A lexicon from nested values, the later layers added to the earlier. A word that becomes doubtful names no more."""
    if broken := [name for name in classnames if any("\ud800" <= c <= "\udfff" for c in name)]:
        raise ConfigError(f"{place}: class names must be UTF-8 text, got {quoted(broken[0])}")
    labels = {name_key(classname): label for label, classname in enumerate(classnames)}
    words: dict[str, list[list[str]]] = {group: [[] for _ in classnames] for group in _GROUPS}
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= {key: value for key, value in layer.items() if key not in _GROUPS}
        for group in _GROUPS:
            for classname, more in _lists(layer.get(group), f"{place}: {group}"):
                words[group][_label(classname, labels, classnames, place)] += more
    spoken = merged.get("prompt_names") or {}
    if not isinstance(spoken, dict) or not all(isinstance(value, str) for value in spoken.values()):
        raise ConfigError(f"{place}: prompt_names must be `class: name` lines, got {quoted(spoken)}")
    names = {_label(classname, labels, classnames, place): value for classname, value in spoken.items()}
    doubtful = [{name_key(word) for word in own} for own in words["doubtful"]]
    verb_forms = _words(merged.get("verb_forms"), f"{place}: verb_forms")
    return Lexicon(
        name,
        classnames,
        tuple(names.get(label, classname) for label, classname in enumerate(classnames)),
        tuple(
            tuple(w for w in own if name_key(w) not in out)
            for own, out in zip(words["synonyms"], doubtful, strict=True)
        ),
        tuple(map(tuple, words["doubtful"])),
        tuple(tuple(_label(word, labels, classnames, place) for word in own) for own in words["implies"]),
        frozenset(_label(word, labels, classnames, place) for word in verb_forms),
        _most_tokens(merged.get("most_tokens", 0), place),
        _read_guards(merged.get("guards"), place),
    )


def _label(classname: str, labels: Mapping[str, int], classnames: Sequence[str], place: str) -> int:
    if (label := labels.get(name_key(classname))) is None:
        raise UnknownName(f"class in {place}", classname, classnames)
    return label


def _lists(values: Any, place: str) -> list[tuple[str, list[str]]]:
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{place} must be `class: [words]` lines, got {quoted(values)}")
    return [(name, _words(words, f"{place}.{name}")) for name, words in (values or {}).items()]


def _words(values: Any, place: str) -> list[str]:
    values = [] if values is None else values
    if not isinstance(values, list) or not all(isinstance(word, str) and word.strip() for word in values):
        raise ConfigError(f"{place} must be a list of words, got {quoted(values)}")
    return values


def _most_tokens(value: Any, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{place}: most_tokens must be an integer from 0, got {quoted(value)}")
    return value


def _read_guards(values: Any, place: str) -> Guards:
    values = {} if values in (None, False) else _guards() if values is True else values
    if not isinstance(values, dict) or (unknown := [k for k in values if k not in ("adjectives", "verbs", "beside")]):
        known = "adjectives, verbs and beside"
        raise ConfigError(
            f"{place}: guards must hold {known}, got {quoted(unknown if isinstance(values, dict) else values)}"
        )
    return Guards(
        {word: tuple(more) for word, more in _lists(values.get("adjectives"), f"{place}: guards.adjectives")},
        frozenset(_words(values.get("verbs"), f"{place}: guards.verbs")),
        {word: tuple(more) for word, more in _lists(values.get("beside"), f"{place}: guards.beside")},
    )
