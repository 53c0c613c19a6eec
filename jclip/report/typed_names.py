"""Class names and templates as somebody types them into a form: names and sets, but never a file of this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from jclip.data import class_names
from jclip.data.class_lists import LONGEST, Entry
from jclip.errors import ConfigError, DataError, UnknownName, quoted
from jclip.features import concepts
from jclip.paths import is_file
from jclip.prompts import class_sets, templates

MOST = 100_000  # names
SEPARATED = 20  # names at most that a command has between commas; more stand in a file
NAMES_FILE = "names.json"


@dataclass(frozen=True)
class TypedNames:
    """Class names; set: the published one that they are, empty for own names."""

    names: tuple[str, ...]
    set: str = ""

    @property
    def has_concepts(self) -> bool:
        """Whether one of them is a concept."""
        return any(map(concepts.is_concept, self.names))

    @property
    def argument(self) -> str:
        """What `--classes` is given; `NAMES_FILE` where only a file can hold them."""
        if self.set:
            return self.set
        joined = ",".join(self.names)
        plain = len(self.names) <= SEPARATED and not any("," in name for name in self.names)
        as_path = (
            len(self.names) == 1
            and not self.has_concepts
            and ("/" in joined or Path(joined).suffix or joined in class_sets.class_sets())
        )
        return joined if plain and not as_path else NAMES_FILE

    @property
    def file(self) -> str:
        """What a command's `NAMES_FILE` holds; empty where it needs none."""
        return json.dumps([*self.names], ensure_ascii=False) if self.argument == NAMES_FILE else ""


def typed_classes(text: str, least: int = 2, taught: bool = False) -> TypedNames:
    """Names, one a line; a line alone may be the name of a set or have commas between names.

    taught: concepts, which are files, may stand among them. Raises `DataError` for fewer than `least` names and for one that
    stands twice, whatever its case, blanks or Unicode form, and for a concept where none may stand.
    """
    lines = [" ".join(line.split()) for line in (text or "").splitlines() if line.strip()]
    if not lines:
        raise DataError("class names must be given: one a line, or the name of a set such as cifar10")
    if len(lines) == 1 and lines[0] in class_sets.class_sets():
        return TypedNames(class_sets.class_set(lines[0]), lines[0])
    if len(lines) == 1:
        lines = [" ".join(part.split()) for part in lines[0].split(",") if part.strip()]
    if len(lines) > MOST or (long := next((line for line in lines if len(line) > LONGEST), "")):
        what = f"{len(lines):,} names" if len(lines) > MOST else f"one of {len(long):,} characters"
        raise DataError(f"class names must be at most {MOST:,}, of {LONGEST:,} characters each, got {what}")
    if not taught and (concept := next(filter(concepts.is_concept, lines), "")):
        raise DataError(f"names must be texts here, got the concept {quoted(concept, 80)}: tags are given by concepts")
    entries = [Entry(name, place=f"line {number}") for number, name in enumerate(lines, 1)]
    return TypedNames(class_names.distinct_names(entries, least=least).names)


def typed_templates(text: str) -> str:
    """The name of a prompt set, several with +, or one template with {}; empty stays empty. Raises `UnknownName`."""
    text = (text or "").strip()
    if len(text) > LONGEST or ("{" in text and is_file(text)):
        raise DataError(
            f"a template must be one text with {{}} of at most {LONGEST:,} characters, or the name of a prompt set"
        )
    if not text or "{" in text:
        return text
    for part in text.split("+"):
        if part.partition("[")[0] not in templates.prompt_sets():
            raise UnknownName("prompt set", part[:80], templates.prompt_sets())
    return text


def typed_phrases(text: str, most: int = 100) -> tuple[str, ...]:
    """Phrases, one a line, each once. Raises `ConfigError` for none, and for more than `most`."""
    phrases = tuple(dict.fromkeys(" ".join(line.split()) for line in (text or "").splitlines() if line.strip()))
    if not phrases:
        raise ConfigError('name what to find: a phrase a line, such as "the red one"')
    if len(phrases) > most:
        raise ConfigError(f"phrases must be at most {most}, got {len(phrases)} (first: {quoted(phrases[0], 60)})")
    return phrases
