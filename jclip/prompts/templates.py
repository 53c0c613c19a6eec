"""Prompt sets as data, and class names put into them. Imports no Jittor."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jclip.errors import DataError, UnknownName, did_you_mean, notice
from jclip.paths import ASSETS, is_file
from jclip.prompts.grammar import article_before, plural_of
from jclip.prompts.spelling import name_key
from jclip.readers.text import MOST_OF_NAMES, read_json, read_lines

Sentences = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class WithSentences:
    """Templates that every class is put into, and sentences besides for the classes that are named."""

    templates: tuple[str, ...]
    sentences: Sentences


Set = tuple[str, ...] | Sentences | WithSentences
Templates = Set | list[Set]  # several sets: a class has the prompts of all
NAME = ("{}", "{c}", "{raw}")  # where a template has the class's name, of which it needs one
LAYOUT = '{"templates": [...], "class_sentences": {class: [...]}}'  # of a file with both
_PLACES = re.compile(r"\{(c|raw|length|in)?\}")
_WORDS = re.compile(  # that agree with the class's name, and the places of it
    r"(?i:\b(?P<article>an?)(?=\s))"
    r"|(?P<many>(?i:\b(?:many|several|various|multiple|few|these|those))\s+)?\{(?P<place>c|raw|length|in)?\}"
)
_NUMBERED = re.compile(r"(.+)\[([0-9]{1,9})\]")
_SHOWN = 80  # characters of a text in a message


def prompt_sets() -> list[str]:
    """Names of the sets that ship: those of papers, and that of each data set that CLIP was measured on."""
    return sorted({p.stem for p in (ASSETS / "prompts").glob("*.json")} | _of_benchmarks().keys())


@cache
def _of_benchmarks() -> dict[str, list[str] | str]:
    """Templates by data set, or the name of the set that has the same ones."""
    return json.loads((ASSETS / "benchmark_prompts.json").read_text(encoding="utf-8"))


def load_templates(name_or_file: str) -> Templates:
    """Templates of a shipped set, of a file (.json list or one per line), or whole sentences by class (.json object).

    A .json object of `LAYOUT` has both: the class's sentences follow its templates. A single template may stand in place
    of a name: anything with `{}`, `{c}` or `{raw}`. `openai7+sentences.json` are both sets together,
    `jittor_challenge[4]` is the template of that number from 0. Raises `UnknownName` or `DataError`.
    """
    single = "{" in name_or_file or is_file(name_or_file)
    if "+" in name_or_file and not single:
        return [_load_set(part) for part in name_or_file.split("+")]
    return _load_set(name_or_file)


def _load_set(name_or_file: str) -> Set:
    if _has_name(name_or_file) and not is_file(name_or_file):
        return _checked([name_or_file], "templates")
    if numbered := _NUMBERED.fullmatch(name_or_file):
        return (_one_of(_whole_set(numbered[1]), int(numbered[2]), name_or_file),)
    return _whole_set(name_or_file)


def _whole_set(name_or_file: str) -> Set:
    if found := _of_benchmarks().get(name_or_file):
        return _whole_set(found) if isinstance(found, str) else tuple(found)
    shipped = ASSETS / "prompts" / f"{name_or_file}.json"
    if "/" not in name_or_file and is_file(shipped):
        return _read_set(shipped)
    if is_file(name_or_file):
        return _read_set(Path(name_or_file))
    if re.search(r"[{}]|\s", name_or_file) and not name_or_file.endswith((".txt", ".json")):
        raise DataError(f"templates: {_without_name(name_or_file)}")
    raise UnknownName("prompt set or file", name_or_file[:_SHOWN], prompt_sets())


def _read_set(path: Path) -> Set:
    if path.suffix.lower() != ".json":
        lines = [
            (f"{path}, line {number}", line)
            for number, line in enumerate(read_lines(path, most=MOST_OF_NAMES), start=1)
            if line
        ]
        return tuple(_template(line, place) for place, line in lines)
    values = read_json(path)
    if not isinstance(values, dict):
        return _checked(values, path)
    if "class_sentences" not in values and values.keys() != {"templates"}:
        return _by_class(values, path)
    sentences = values.get("class_sentences", {})
    unknown = values.keys() - {"templates", "class_sentences"}
    if unknown or "templates" not in values or not isinstance(sentences, dict):
        raise DataError(f"{path} must be {LAYOUT}, got {', '.join(values):.200}")
    return WithSentences(_checked(values["templates"], path), _by_class(sentences, path))


def _checked(templates: object, place: str | Path) -> tuple[str, ...]:
    if not isinstance(templates, list) or not templates:
        raise DataError(f"{place}: must be a list of templates, got {templates!r:.80}")
    return tuple(_template(template, str(place)) for template in templates)


def _template(text: object, place: str) -> str:
    if not isinstance(text, str) or not _has_name(text):
        raise DataError(f"{place}: {_without_name(text)}")
    return _sentence(text, place)


def _without_name(template: object) -> str:
    return f"{template!r:.{_SHOWN}} has no place for the class name ({', '.join(NAME)})"


def _sentence(text: object, place: str) -> str:
    """Raises `DataError` for what is no text, empty, or holds control characters."""
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: must be text in quotation marks, got {text!r:.{_SHOWN}}")
    if odd := next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r\x85"), None):
        raise DataError(f"{place}: must be plain text, got {odd!r} in {text!r:.{_SHOWN}}")
    return text


def _by_class(values: Mapping[str, object], path: Path) -> dict[str, tuple[str, ...]]:
    found = {}
    for name, given in values.items():
        sentences = given if isinstance(given, list) else [given]
        found[name] = tuple(_sentence(text, f"{path}, {name!r:.{_SHOWN}}") for text in sentences)
    return found


def _has_name(template: str) -> bool:
    return any(place in template for place in NAME)


def _one_of(found: Set, number: int, asked: str) -> str:
    templates = found.templates if isinstance(found, WithSentences) else found
    if isinstance(templates, Mapping) or number >= len(templates):
        choices = (
            "sentences by class" if isinstance(templates, Mapping) else f"{len(templates)} templates, counted from 0"
        )
        raise DataError(f"templates: {asked!r} names none of its {choices}")
    return templates[number]


def fill(template: str, name: str, article: bool = False, plural: bool = False) -> str:
    """The template with the class name in its place: `{}` and `{c}` with underscores as spaces, `{raw}` as it is.

    `{length}` is the number of its characters, `{in}` says whether it has underscores: "in" or "not in".
    article: an "a" or "an" of the template, never of the name, becomes what the word after it asks for.
    plural: the name in `{}` or `{c}` is put in the plural right after many, several, various, multiple, few, these
        and those.
    """
    said = {
        None: name.replace("_", " "),
        "raw": name,
        "length": str(len(name)),
        "in": "in" if "_" in name else "not in",
    }
    said["c"] = said[None]
    if article or plural:
        return _agreeing(template, said, article, plural)
    return _PLACES.sub(lambda place: said[place[1]], template)


def _agreeing(template: str, said: Mapping[str | None, str], article: bool, plural: bool) -> str:
    filled, end = "", len(template)
    for found in reversed(list(_WORDS.finditer(template))):  # from the end, since an article depends on what follows it
        filled = template[found.end() : end] + filled
        end = found.start()
        if word := found["article"]:
            agreed = article_before(filled) if article else ""
            filled = ((agreed.capitalize() if word[0].isupper() else agreed) or word) + filled
        else:
            name, many = said[found["place"]], found["many"] or ""
            filled = many + (plural_of(name) if plural and many and found["place"] in (None, "c") else name) + filled
    return template[:end] + filled


def class_prompts(
    classnames: Sequence[str], templates: Templates, article: bool = False, plural: bool = False
) -> list[list[str]]:
    """The prompts of each class: every template filled, or the sentences given for it, or first these and then those.

    article, plural: as `fill` has them; sentences are never changed.
    """
    if isinstance(templates, list):
        return _joined([class_prompts(classnames, one, article, plural) for one in templates])
    if isinstance(templates, WithSentences):
        filled = class_prompts(classnames, templates.templates, article, plural)
        return _joined([filled, _given(classnames, templates.sentences)])
    if isinstance(templates, Mapping):
        given = _given(classnames, templates)
        if lacking := [name for name, sentences in zip(classnames, given, strict=True) if not sentences]:
            raise DataError(f"no sentences are given for class {lacking[0]!r:.80}{did_you_mean(lacking[0], templates)}")
        return given
    return [[fill(t, name, article, plural) for t in templates] for name in classnames]


def _joined(parts: Sequence[list[list[str]]]) -> list[list[str]]:
    return [[prompt for prompts in of_class for prompt in prompts] for of_class in zip(*parts, strict=True)]


def _given(classnames: Sequence[str], sentences: Sentences) -> list[list[str]]:
    """The sentences of each class under its name, or under another spelling of it (`jclip.prompts.spelling`); or none."""
    by_key: dict[str, list[str]] = {}
    for spelled in sentences:
        by_key.setdefault(name_key(spelled), []).append(spelled)
    return [list(sentences[name] if name in sentences else _of_key(name, by_key, sentences)) for name in classnames]


def _of_key(name: str, by_key: Mapping[str, Sequence[str]], sentences: Sentences) -> Sequence[str]:
    spelled = by_key.get(name_key(name), ())
    if len(spelled) > 1:
        raise DataError(
            f"sentences of class {name!r:.80} must be given once, got them for {spelled[0]!r} and {spelled[1]!r}"
        )
    return sentences[spelled[0]] if spelled else ()


def prompts_of(
    classnames: Sequence[str], name_or_file: str, article: bool = False, plural: bool = False
) -> list[list[str]]:
    """The prompts of each class, as `load_templates` and `class_prompts` give them.

    Reports on stderr, one line each, classes without sentences where others have some, and repeated prompts.
    """
    templates = load_templates(name_or_file)
    prompts = class_prompts(classnames, templates, article, plural)
    warn_without_sentences(classnames, templates)
    warn_repeated(prompts, classnames)
    return prompts


def without_sentences(classnames: Sequence[str], templates: Templates) -> list[str]:
    """The classes to which a set with templates and sentences gives templates alone."""
    sets = templates if isinstance(templates, list) else [templates]
    given = [_given(classnames, one.sentences) for one in sets if isinstance(one, WithSentences)]
    return [name for k, name in enumerate(classnames) if not all(of_set[k] for of_set in given)]


def warn_without_sentences(classnames: Sequence[str], templates: Templates) -> None:
    """Reports classes that get templates alone."""
    if lacking := without_sentences(classnames, templates):
        some = ", ".join(lacking[:5]) + (", …" if len(lacking) > 5 else "")
        notice(
            f"classes without sentences in the prompt set: {len(lacking)} of {len(classnames)} ({some}): "
            "the templates alone stand for them"
        )


def repeated(prompts: Sequence[Sequence[str]]) -> list[tuple[str, tuple[int, ...]]]:
    """Prompts that stand more than once, each with the class's number for every time: (3, 3) is twice in class 3."""
    standing: dict[str, list[int]] = {}
    for k, of_class in enumerate(prompts):
        for prompt in of_class:
            standing.setdefault(prompt, []).append(k)
    return [(prompt, tuple(classes)) for prompt, classes in standing.items() if len(classes) > 1]


def warn_repeated(prompts: Sequence[Sequence[str]], classnames: Sequence[str]) -> None:
    """Reports prompts that classes share, and those that a class has twice."""
    again, examples = repeated(prompts), []
    shared = [(prompt, classes) for prompt, classes in again if len(set(classes)) > 1]
    twice = [(prompt, classes) for prompt, classes in again if len(set(classes)) < len(classes)]
    if shared:
        prompt, classes = shared[0]
        first, other = (f"{k} ({classnames[k]})" for k in sorted(set(classes))[:2])
        examples.append(
            f"prompts that several classes share: {len(shared)}, first {prompt!r} of {first} and {other}; "
            "they can't separate these classes: give them other names, or sentences of their own"
        )
    if twice:
        prompt, classes = twice[0]
        k = next(k for k in classes if classes.count(k) > 1)
        examples.append(
            f"prompts that a class has more than once: {len(twice)}, first {prompt!r} of {k} ({classnames[k]}); "
            "they count as often: leave the copies out"
        )
    if examples:
        notice("; ".join(examples))
