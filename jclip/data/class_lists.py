"""Files of class names as people have them: text with and without numbers, CSV, TSV, JSON, YAML. Imports no Jittor."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from jclip.data.checks import preview
from jclip.errors import DataError, notice, printable
from jclip.prompts.spelling import name_key
from jclip.readers.text import MOST_OF_NAMES, read_json, read_lines, read_records, read_text

LONGEST = 2000
_MOST_OF_YAML = 1 << 22
_NUMBER = "[0-9]{1,18}"
_IN_FRONT = re.compile(rf"(?P<id>{_NUMBER})(?: ?[:,;=)] ?|\. | )(?P<name>\S.*)")
_BEHIND = re.compile(rf"(?P<name>.*?\S)(?: ?[:,;=] ?| )(?P<id>{_NUMBER})")
_WNID = re.compile(r"(n[0-9]{8}) (\S.*)")
_QUOTED = re.compile(r"""(["'])([^"]*)\1 ?,?""")
_NAMES = {"name", "names", "class", "classes", "class name", "classname", "label", "label name", "category"}
_NUMBERS = {"id", "idx", "index", "class id", "class idx", "label id", "category id", "number", "label"}
_OTHERS = {"wnid", "synset", "folder", "synonym", "synonyms", "alias", "aliases"}
_FORMS = (
    "a list of names, a list of {name, id} objects, {number: name}, {name: number}, "
    "or one of these below names, classes, categories, id2label or label2id"
)


@dataclass(frozen=True)
class Entry:
    """A class as a file has it; `others` are synonyms and its folder's name, `place` says where it stands."""

    name: str
    id: int | None = None
    others: tuple[str, ...] = ()
    place: str = ""


def read_entries(path: Path) -> list[Entry]:
    """The classes of a file in the order of their labels. Names are stripped, and blanks within them single.

    Text: a name per line, or with its number before or after it, or with ImageNet's folder in front. CSV and TSV: names,
    or names and numbers, with a header or without. JSON: see `_FORMS`; YAML: the same. Raises `DataError` for what is
    neither, and for numbers that are not 0 or 1 to the last without a gap (of COCO's categories they only give the order).
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _of_values(read_json(path), str(path))
    if suffix in (".yaml", ".yml"):
        return _of_values(_yaml(path), str(path))
    if suffix in (".csv", ".tsv"):
        return in_order(_of_table(path), str(path))
    return in_order(_of_lines(path), str(path))


def read_numbered(path: Path) -> list[Entry]:
    """The classes of a file that says each one's label. Raises `DataError`, also for labels that do not begin at 0."""
    if path.suffix.lower() not in (".csv", ".tsv", ".json", ".yaml", ".yml"):
        entries = _of_lines(path)
        if without := [entry for entry in entries if entry.id is None]:
            raise DataError(f"{without[0].place}: must have `name label` lines, got {without[0].name!r:.80}")
        return in_order(entries, str(path), first=0)
    entries = read_entries(path)
    return in_order(entries, str(path), first=0)


def in_order(entries: Sequence[Entry], place: str, first: int | None = None) -> list[Entry]:
    """Entries by their numbers, or as they stand where they have none. Raises `DataError` for a gap or a repetition."""
    if not entries or entries[0].id is None:
        return [*entries]
    ids = sorted(entry.id for entry in entries)
    start = (1 if ids[0] == 1 else 0) if first is None else first
    if ids != list(range(start, start + len(ids))):
        counts = Counter(ids)
        repeated = next((entry for entry in reversed(entries) if counts[entry.id] > 1), None)
        where = f" ({repeated.place}: {repeated.id} stands there again)" if repeated else ""
        raise DataError(
            f"{place}: labels must be {start} to {start + len(ids) - 1}, each once, got {_first_wrong(ids, start)}{where}"
        )
    return sorted(entries, key=lambda entry: entry.id)


def _first_wrong(ids: Sequence[int], start: int) -> str:
    """The numbers around the first that is repeated or follows a gap."""
    wrong = next(place for place, number in enumerate(ids) if number != start + place)
    return preview(ids[max(0, wrong - 2) : wrong + 3])


def _of_lines(path: Path) -> list[Entry]:
    read = enumerate(read_lines(path, most=MOST_OF_NAMES), start=1)
    lines = _unquoted([(number, _collapsed(line)) for number, line in read if line])
    if comment := next(((number, line) for number, line in lines if line.startswith("# ")), None):
        raise DataError(
            f"{path}, line {comment[0]}: class lists have no comments, got {comment[1]!r:.60}: remove the line"
        )
    if len(lines) == 1 and re.search(r"[,;，、；]", lines[0][1]) and not _split_all(lines, _BEHIND, _IN_FRONT):
        raise DataError(
            f"{path}: must have a class name per line, got one line with commas ({lines[0][1]:.60}): "
            "break the line at each, or give the names themselves in place of the file"
        )
    rows = lines[1:] if len(lines) > 1 and _is_header([lines[0][1]], path) else lines
    folders = [_WNID.fullmatch(line) for _, line in rows]
    if all(folders):
        named = zip(rows, folders, strict=True)
        return [_checked(Entry(m[2], None, (m[1],), f"{path}, line {number}")) for (number, _), m in named]
    numbered = _split_all(rows, _BEHIND, _IN_FRONT)
    entries = [Entry(*numbered.get(number, (line, None)), place=f"{path}, line {number}") for number, line in rows]
    if numbered and len(numbered) < len(rows):
        entries = _without_header(entries, len(numbered))
    return [_checked(entry) for entry in entries]


def _unquoted(lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The entries without the marks and commas of a list in a program's source, where every line has them."""
    found = [_QUOTED.fullmatch(line) for _, line in lines]
    return [(number, m[2]) for (number, _), m in zip(lines, found, strict=True)] if all(found) else lines


def _without_header(entries: list[Entry], numbered: int) -> list[Entry]:
    """Entries of which some have no number: a header may. Raises `DataError` for a class without one."""
    head, *rest = entries
    if head.id is None and all(entry.id is not None for entry in rest) and _words(head.name) <= _NAMES | _NUMBERS:
        return rest
    odd = next(entry for entry in entries if entry.id is None)
    raise DataError(
        f"{odd.place}: must have `name label` lines, got {odd.name!r:.80} (of {len(entries)} lines {numbered} have both)"
    )


def _split_all(lines: Sequence[tuple[int, str]], *patterns: re.Pattern) -> dict[int, tuple[str, int]]:
    """Line number → name and number, by the first pattern that most lines have as a list with numbers has it."""
    for pattern in patterns:
        found = {number: pattern.fullmatch(line) for number, line in lines}
        split = {number: (m["name"], int(m["id"])) for number, m in found.items() if m}
        if _is_numbering(split.values(), len(lines)):
            return split
    return {}


def _is_numbering(rows: Iterable[tuple[str, int]], total: int) -> bool:
    """Whether the numbers beside names count classes, rather than being part of the names as in Boeing 747."""
    rows = [*rows]
    if not rows or 2 * len(rows) <= total:
        return False
    ids, distinct = [number for _, number in rows], len({name_key(name) for name, _ in rows})
    counting = min(ids) in (0, 1) or (len(rows) == total and max(ids) - min(ids) < total)
    return counting and 2 * distinct > len(rows)


def _words(line: str) -> set[str]:
    return {name_key(word) for word in re.split(r"[\s,;:]+", line) if word}


def _is_header(cells: Sequence[str], path: Path) -> bool:
    """Whether the first line names columns and no class, which is reported."""
    if not {name_key(cell) for cell in cells} <= _NAMES | _NUMBERS | _OTHERS:
        return False
    notice(f"{path}, line 1 ({', '.join(cells)}) is taken for a header, not for a class")
    return True


def _of_table(path: Path) -> list[Entry]:
    records = read_records(path, "\t" if path.suffix.lower() == ".tsv" else _delimiter(path))
    width = max(len(fields) for _, fields in records)
    if len(records) == 1 and width > 1:
        raise DataError(f"{path}: must have a class per line, got one line: break it at each name")
    if short := next(((line, fields) for line, fields in records if len(fields) != width), None):
        raise DataError(
            f"{path}, line {short[0]}: must have {width} fields as other lines have, got {len(short[1])}: "
            "quote names that hold the separator"
        )
    head = [name_key(cell) for cell in records[0][1]]
    if len(records) > 1 and (set(head) & (_NAMES | _OTHERS) if width > 1 else _is_header(records[0][1], path)):
        return _of_rows(records[1:], head, path)
    return _of_rows(records, [""] * width, path)


def _delimiter(path: Path) -> str:
    first = next(line for line in read_lines(path) if line)
    return max(",;\t", key=first.count)


def _of_rows(records: Sequence[tuple[int, list[str]]], head: Sequence[str], path: Path) -> list[Entry]:
    """Rows below a header of normalised column names, which are empty where there is none."""
    columns = [*zip(*(fields for _, fields in records), strict=True)]
    whole = [c for c in range(len(head)) if all(re.fullmatch(_NUMBER, cell.strip()) for cell in columns[c])]
    ids = next(
        (c for c in whole if head[c] in _NUMBERS), whole[0] if whole and len(head) == 2 and not any(head) else None
    )
    named = [c for c in range(len(head)) if c != ids and head[c] in _NAMES]
    plain = [c for c in range(len(head)) if c != ids and not head[c]]
    if not named and len(plain) != 1:
        raise DataError(
            f"{path}: must have a column of names and at most one of numbers, got {len(head)} columns: name them in the "
            "first line (name, id)"
        )
    if ids is None and (numbers := [c for c, name in enumerate(head) if name in _NUMBERS - _NAMES]):
        line, cell = next(
            (line, fields[numbers[0]])
            for line, fields in records
            if not re.fullmatch(_NUMBER, fields[numbers[0]].strip())
        )
        raise DataError(f"{path}, line {line}: {head[numbers[0]]} must be an integer from 0, got {cell!r:.40}")
    name = (named or plain)[0]
    others = [c for c, title in enumerate(head) if title in _OTHERS]
    return [
        _checked(
            Entry(
                fields[name],
                None if ids is None else int(fields[ids]),
                tuple(other for c in others for other in re.split(r"[;|,]", fields[c])),
                f"{path}, line {line}",
            )
        )
        for line, fields in records
    ]


def _yaml(path: Path) -> Any:
    """YAML with every scalar as text, so that `no` is a name. Anchors and aliases are refused."""
    try:
        return yaml.load(read_text(path, most=_MOST_OF_YAML), Loader=_PlainLoader)
    except (yaml.YAMLError, RecursionError) as e:
        raise DataError(f"{path} is not valid YAML: {printable(' '.join(str(e).split()), 200)}") from None


class _PlainLoader(yaml.BaseLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("a list of classes has no aliases")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(keys) != len(node.value):
            raise yaml.YAMLError("keys must be names or numbers")
        if twice := [key for key, count in Counter(keys).items() if count > 1]:
            raise yaml.YAMLError(f"key {twice[0]!r} stands more than once")
        return super().construct_mapping(node, deep=True)


def _of_values(values: Any, place: str) -> list[Entry]:
    """Entries of what a JSON or YAML file holds."""
    if isinstance(values, Mapping):
        inner = next((k for k in ("names", "classes", "categories", "id2label", "label2id") if k in values), None)
        if inner and isinstance(values[inner], list | Mapping):
            return _of_count(_of_values(values[inner], f"{place}, {inner}"), values, place)
        return in_order([_checked(entry) for entry in _of_mapping(values, place)], place)
    if not isinstance(values, list):
        raise DataError(f"{place}: must be {_FORMS}, got {_kind(values)}")
    if values and all(isinstance(value, Mapping) for value in values):
        return _of_objects(values, place)
    return [
        _checked(Entry(_name(value, f"{place}, entry {k}"), place=f"{place}, entry {k}")) for k, value in enumerate(values)
    ]  # fmt: skip


def _of_count(entries: list[Entry], values: Mapping, place: str) -> list[Entry]:
    """The entries, as many as `nc` says where YOLO's file gives it. Raises `DataError` otherwise."""
    count = values.get("nc")
    if count is not None and str(count) != str(len(entries)):
        raise DataError(f"{place}: nc must be the number of names, {len(entries)}, got {printable(str(count), 20)}")
    return entries


def _of_mapping(values: Mapping, place: str) -> Iterator[Entry]:
    """{number: name}, {number: [folder, name]} as Keras has ImageNet's, {name: number}."""
    if values and all(re.fullmatch(_NUMBER, key) for key in values):
        for key, value in values.items():
            where = f"{place}, {key}"
            if isinstance(value, list) and len(value) == 2:
                yield Entry(_name(value[1], where), int(key), (_name(value[0], where),), where)
            else:
                yield Entry(_name(value, where), int(key), place=where)
        return
    for key, value in values.items():
        if isinstance(value, bool) or not re.fullmatch(_NUMBER, str(value)):
            raise DataError(
                f"{place}: must be {_FORMS}, got {_kind(value)} for {printable(key, 60)!r}"
                + (" (sentences by class are a prompts file: --templates)" if isinstance(value, list) else "")
            )
        yield Entry(key, int(value), place=f"{place}, {printable(key, 60)}")


def _of_objects(values: Sequence[Mapping], place: str) -> list[Entry]:
    """Categories of COCO and LVIS, in the order of their ids, which may have gaps there."""
    entries = []
    for k, value in enumerate(values):
        where = f"{place}, entry {k}"
        if "name" not in value:
            raise DataError(f"{where}: must have a name, got an object with {preview([*value])[:80] or 'nothing'}")
        number, synonyms = value.get("id"), value.get("synonyms") or []
        if "id" in value and (isinstance(number, bool) or not re.fullmatch(_NUMBER, str(number))):
            raise DataError(f"{where}: id must be an integer from 0, got {_kind(number)}")
        synonyms = [_name(synonym, where) for synonym in (synonyms if isinstance(synonyms, list) else [synonyms])]
        number = int(number) if "id" in value else None
        entries.append(_checked(Entry(_name(value["name"], where), number, tuple(synonyms), where)))
    if len({entry.id is None for entry in entries}) > 1:
        raise DataError(f"{place}: must have an id in every entry, or in none")
    if entries[0].id is None:
        return entries
    entries.sort(key=lambda entry: entry.id)
    for before, entry in pairwise(entries):
        if entry.id == before.id:
            raise DataError(f"{entry.place}: ids must be unique, got {entry.id} also in {before.place}")
    return [replace(entry, id=label) for label, entry in enumerate(entries)]


def _name(value: Any, place: str) -> str:
    """A name, or an integer as one. Raises `DataError` for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{place}: must be a class name in quotation marks, got {_kind(value)}")


def _kind(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return "an object" if isinstance(value, Mapping) else f"a list of {len(value)}"
    return printable(json.dumps(value, ensure_ascii=False), 60)


def _checked(entry: Entry) -> Entry:
    """A name with single blanks. Raises `DataError` for a name that is empty, too long, or holds control characters."""
    name = _collapsed(entry.name)
    if not name or len(name) > LONGEST:
        got = f"one of {len(name):,}" if name else "none"
        raise DataError(f"{entry.place}: must be a class name of 1 to {LONGEST:,} characters, got {got}")
    if odd := next((c for c in name if unicodedata.category(c) in ("Cc", "Cs")), None):
        raise DataError(
            f"{entry.place}: class names must be of letters, digits and signs, got {odd!r} in {name[:40]!r}"
        )
    return replace(entry, name=name, others=tuple(filter(None, map(_collapsed, entry.others))))


def _collapsed(text: str) -> str:
    return " ".join(text.split())
