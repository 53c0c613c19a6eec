"""Prompt sets as data, and class names put into them. Imports no Jittor."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jclip.errors import DataError, UnknownName, did_you_mean
from jclip.paths import ASSETS

Set = tuple[str, ...] | Mapping[str, Sequence[str]]
Templates = Set | list[Set]  # several sets: a class has the prompts of all
NAME = ("{}", "{c}", "{raw}")  # where a template has the class's name, of which it needs one
_PLACES = re.compile(r"\{(c|raw|length|in)?\}")
_NUMBERED = re.compile(r"(.+)\[([0-9]+)\]")


def prompt_sets() -> list[str]:
    """Names of the sets that ship."""
    return sorted(p.stem for p in (ASSETS / "prompts").glob("*.json"))


def load_templates(name_or_file: str) -> Templates:
    """Templates of a shipped set, of a file (.json list or one per line), or whole sentences by class (.json object).

    A single template may stand in place of a name: anything with `{}`, `{c}` or `{raw}`. `openai7+sentences.json` are
    both sets together, `jittor_challenge[4]` is the template of that number from 0. Raises `UnknownName` or `DataError`.
    """
    single = "{" in name_or_file or Path(name_or_file).is_file()
    if "+" in name_or_file and not single:
        return [_load_set(part) for part in name_or_file.split("+")]
    return _load_set(name_or_file)


def _load_set(name_or_file: str) -> Set:
    if _has_name(name_or_file):
        return (name_or_file,)
    if numbered := _NUMBERED.fullmatch(name_or_file):
        return (_one_of(_load_set(numbered[1]), int(numbered[2]), name_or_file),)
    shipped = ASSETS / "prompts" / f"{name_or_file}.json"
    path = shipped if shipped.is_file() else Path(name_or_file)
    if not path.is_file():
        raise UnknownName("prompt set or file", name_or_file, prompt_sets())
    text = path.read_text(encoding="utf-8-sig")
    try:
        values = (
            json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines() if line.strip()]
        )
    except ValueError as e:
        raise DataError(f"{path} is not valid JSON: {e}") from e
    if isinstance(values, dict):
        return {str(k): tuple(map(str, v if isinstance(v, list) else [v])) for k, v in values.items()}
    for template in values:
        if not isinstance(template, str) or not _has_name(template):
            raise DataError(f"{path}: {template!r} has no place for the class name ({', '.join(NAME)})")
    return tuple(values)


def _has_name(template: str) -> bool:
    return any(place in template for place in NAME)


def _one_of(templates: Set, number: int, asked: str) -> str:
    if isinstance(templates, Mapping) or number >= len(templates):
        told = "sentences by class" if isinstance(templates, Mapping) else f"{len(templates)} templates, counted from 0"
        raise DataError(f"templates: {asked!r} names none of its {told}")
    return templates[number]


def fill(template: str, name: str) -> str:
    """The template with the class name in its place: `{}` and `{c}` with underscores as spaces, `{raw}` as it is.

    `{length}` is the number of its characters, `{in}` says whether it has underscores: "in" or "not in".
    """
    said = {
        None: name.replace("_", " "),
        "raw": name,
        "length": str(len(name)),
        "in": "in" if "_" in name else "not in",
    }
    said["c"] = said[None]
    return _PLACES.sub(lambda place: said[place[1]], template)


def class_prompts(classnames: Sequence[str], templates: Templates) -> list[list[str]]:
    """The prompts of each class: every template filled, or the sentences given for it, or both."""
    if isinstance(templates, list):
        parts = [class_prompts(classnames, one) for one in templates]
        return [[prompt for prompts in of_class for prompt in prompts] for of_class in zip(*parts, strict=True)]
    if isinstance(templates, Mapping):
        return [_sentences(name, templates) for name in classnames]
    return [[fill(t, name) for t in templates] for name in classnames]


def _sentences(raw: str, templates: Mapping[str, Sequence[str]]) -> list[str]:
    found = templates.get(raw) or templates.get(raw.replace("_", " "))
    if not found:
        raise DataError(f"no sentences are given for class {raw!r}{did_you_mean(raw, templates)}")
    return list(found)
