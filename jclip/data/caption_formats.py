"""Files of captions as other projects have them, read line by line with what is wrong counted. Imports no Jittor.

Read are: a JSON list of {id, caption}, {class number: ["1. sentence"]}, COCO's captions, JSON lines with labels and
captions, of localized narratives, of `jclip captions`, tables with a column of captions, and text with or without numbers.
No pickle is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.labelled_captions import LabelledCaptions
from jclip.data.nouns import Labeller
from jclip.errors import DataError, did_you_mean, notice, printable, quoted
from jclip.readers.text import parse_json, read_lines, read_table, read_text

FIRST_SHOWN = 5
MAX_BAD = 0.01
SHORTEST, LONGEST = 5, 150  # letters of a numbered sentence, neither included
CJK = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]")
_NUMBERED = re.compile(r"\d+[.)]\s+")
_HEADER = re.compile(r"\[\d+\]\s*(\(|$)")
COLUMNS = ("title", "caption", "comment", "text")  # of tables: the first that is there
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".npy")


@dataclass(frozen=True)
class RawCaption:
    """A caption as a file has it; asked: labels of the classes that the file says it is about."""

    id: str
    text: str
    source: str
    asked: tuple[int, ...] = ()


@dataclass
class CaptionFile:
    """What a file holds: its captions, how many of its rows were dropped why, and the rows that are none."""

    path: Path
    format: str = ""
    captions: list[RawCaption] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Captions, dropped and bad rows together."""
        return len(self.captions) + len(self.bad) + self.dropped.total()


class _Bad(Exception):
    """Why a row is not a caption."""


def read_caption_file(path: Path, labeller: Labeller, max_bad: float = MAX_BAD) -> CaptionFile:
    """Returns the captions of a file in any of the formats, recognised by its content.

    Rows that are none are left out, counted, and the first five shown on stderr. Raises `DataError` for a file that is
    absent, empty or none of the formats, and where more than a share `max_bad` of the rows is bad.
    """
    if path.suffix.lower() in _PICKLES:
        raise DataError(
            f"{path} must be captions as text or JSON, got a pickle, which could run anything: export it as JSON"
        )
    found = CaptionFile(path)
    delimiter = _separator(path)
    for place, row in _of_table(found, delimiter) if delimiter else _rows(read_text(path), found):
        try:
            for caption in row(labeller):
                found.captions.append(caption)
        except _Bad as e:
            found.bad.append(f"{place}: {e}")
    _report_bad(found, max_bad)
    return found


def label_files(
    paths: list[Path], labeller: Labeller, max_bad: float = MAX_BAD
) -> tuple[LabelledCaptions, list[CaptionFile]]:
    """Returns the captions of the files with their labels, also those that name no class, and the files as they were read.

    A class that a file says a caption is about, and that the caption does not name, is unknown; it stands in `meta.asked`.
    Raises as `read_caption_file`.
    """
    files = [read_caption_file(path, labeller, max_bad) for path in paths]
    rows = [caption for file in files for caption in file.captions]
    targets = labeller.targets(row.text for row in rows)
    for target, row in zip(targets, rows, strict=True):
        for label in row.asked:
            target[label] = target[label] or -1
    names = labeller.lexicon.classnames
    captions = LabelledCaptions(
        names,
        tuple(row.text for row in rows),
        targets,
        np.ones(len(rows), np.float32),
        tuple(row.id for row in rows),
        tuple(row.source for row in rows),
        tuple({"asked": [names[label] for label in row.asked]} if row.asked else {} for row in rows),
    )
    return captions, files


def numbered_sentence(line: str) -> tuple[str, str]:
    """Returns (text, "") of a numbered sentence such as `3. A dog.`, or ("", why it is dropped).

    Kept is a line that begins with a digit, has no Chinese, Japanese or Korean letters, and is of 6 to 149 letters. The
    parts after the first ". " are joined by a blank, so that an inner ". " loses its dot.
    """
    if not line[:1].isdigit():
        return "", "no number at the start"
    if CJK.search(line):
        return "", "letters of another script"
    if not SHORTEST < len(line) < LONGEST:
        return "", "too short or too long"
    text = " ".join(" ".join(line.split(". ")[1:]).split())
    return (text, "") if text else ("", "nothing after the number")


_Row = Callable[[Labeller], Iterator[RawCaption]]


def _rows(text: str, found: CaptionFile) -> Iterator[tuple[str, _Row]]:
    """Place and reader of each row."""
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    first = lines[0][1]
    if first[0] == "[" and not _HEADER.match(first):
        return _of_list(parse_json(text, found.path), found)
    if first[0] != "{":
        found.format = "text"
        return _of_text(lines, found)
    if len(lines) > 1 and any(_is_object(line) for _, line in lines[:FIRST_SHOWN]):
        return _of_json_lines(lines, found)
    value = parse_json(text, found.path)
    if isinstance(value.get("annotations"), list):
        return _of_coco(value["annotations"], found)
    if {"text", "caption", "captions"} & {*value}:
        return _of_json_lines([(1, " ".join(line for _, line in lines))], found)
    return _of_classes(value, found)


def _separator(path: Path) -> str:
    """What separates the columns of a table that has one of captions; empty for other files."""
    if path.suffix.lower() not in (".csv", ".tsv"):
        return ""
    header = next((line for line in read_lines(path) if line), "")
    separator = next((sign for sign in "\t|," if sign in header), "")
    return separator if separator and {*COLUMNS} & {name.strip() for name in header.split(separator)} else ""


def _of_table(found: CaptionFile, separator: str) -> Iterator[tuple[str, _Row]]:
    found.format = "table"
    broken: list[DataError] = []
    columns, rows = read_table(found.path, separator, broken.append)
    key = next(name for name in COLUMNS if name in columns)
    found.bad += map(str, broken)
    for number, row in rows:
        yield f"line {number}", lambda _, v=row, n=number: iter([RawCaption(str(n), _text(v, key), "table")])


def _is_object(line: str) -> bool:
    try:
        return isinstance(parse_json(line, "it"), dict)
    except DataError:
        return False


def _of_list(values: list[Any], found: CaptionFile) -> Iterator[tuple[str, _Row]]:
    found.format = "list"
    for number, value in enumerate(values, start=1):
        yield f"entry {number}", lambda labeller, v=value, n=number: _listed(v, n, labeller)


def _listed(value: Any, number: int, labeller: Labeller) -> Iterator[RawCaption]:
    if not isinstance(value, dict):
        raise _Bad(f'must be an object such as {{"id": 1, "caption": "a dog"}}, got {quoted(value, 60)}')
    yield RawCaption(
        str(value.get("id", number)), _text(value, "caption"), "list", _asked(value.get("labels", []), labeller)
    )


def _of_classes(value: dict[str, Any], found: CaptionFile) -> Iterator[tuple[str, _Row]]:
    found.format = "sentences by class number"
    for key, sentences in value.items():
        for number, sentence in enumerate(sentences if isinstance(sentences, list) else [sentences], start=1):
            args = (key, number, sentence, found)
            yield f"class {key:.40}, sentence {number}", lambda labeller, a=args: _of_class(*a, labeller)


def _of_class(key: str, number: int, line: Any, found: CaptionFile, labeller: Labeller) -> Iterator[RawCaption]:
    count = len(labeller.lexicon.classnames)
    if not (key.isascii() and key.isdecimal() and len(key) < 9 and int(key) < count):
        raise _Bad(f"the key must be the number of a class, 0 to {count - 1}, got {quoted(key, 60)}")
    yield from _numbered(line, f"{key}-{number}", "single", (int(key),), found)


def _numbered(line: Any, id: str, source: str, asked: tuple[int, ...], found: CaptionFile) -> Iterator[RawCaption]:
    if not isinstance(line, str):
        raise _Bad(f"a sentence must be text, got {quoted(line, 60)}")
    text, why = numbered_sentence(line.strip())
    if why:
        found.dropped[why] += 1
    else:
        yield RawCaption(id, text, source, asked)


def _of_coco(values: list[Any], found: CaptionFile) -> Iterator[tuple[str, _Row]]:
    found.format = "COCO captions"
    for number, value in enumerate(values, start=1):
        yield f"annotation {number}", lambda _, v=value, n=number: _annotated(v, n)


def _annotated(value: Any, number: int) -> Iterator[RawCaption]:
    if not isinstance(value, dict):
        raise _Bad(f"must be an object with a caption, got {quoted(value, 60)}")
    yield RawCaption(str(value.get("id", number)), _text(value, "caption"), "coco")


def _of_json_lines(lines: list[tuple[int, str]], found: CaptionFile) -> Iterator[tuple[str, _Row]]:
    found.format = "JSON lines"
    for number, line in lines:
        yield f"line {number}", lambda labeller, a=(line, number): _json_line(*a, found, labeller)


def _json_line(line: str, number: int, found: CaptionFile, labeller: Labeller) -> Iterator[RawCaption]:
    try:
        value = parse_json(line, "it")
    except DataError as e:
        raise _Bad(str(e)) from None
    if not isinstance(value, dict):
        raise _Bad(f"must be an object, got {quoted(value, 60)}")
    if "captions" in value:
        found.format = "JSON lines with labels and captions"
        asked = _asked(value.get("labels", []), labeller)
        if not isinstance(value["captions"], list):
            raise _Bad(f"captions must be a list of sentences, got {quoted(value['captions'], 60)}")
        for place, sentence in enumerate(value["captions"], start=1):
            yield from _numbered(sentence, f"{number}-{place}", "hard", asked, found)
    elif "text" in value:
        found.format = "jclip's JSON lines"
        meta = value.get("meta")
        asked = _asked(meta.get("asked", []) if isinstance(meta, dict) else [], labeller)
        source = str(value.get("source", "text"))
        yield RawCaption(str(value.get("id", number)), _text(value, "text"), source, asked)
    else:
        found.format = "localized narratives" if "annotator_id" in value or "timed_caption" in value else found.format
        parts = [str(value[key]) for key in ("image_id", "annotator_id") if key in value]
        yield RawCaption("-".join(parts) or str(value.get("id", number)), _text(value, "caption"), "narratives")


def _of_text(lines: list[tuple[int, str]], found: CaptionFile) -> Iterator[tuple[str, _Row]]:
    for number, line in lines:
        if _HEADER.match(line):
            found.dropped["header"] += 1
            continue
        yield f"line {number}", lambda _, a=(line, number): iter([_of_line(*a)])


def _of_line(line: str, number: int) -> RawCaption:
    text = " ".join(_NUMBERED.sub("", line, count=1).split() if _NUMBERED.match(line) else line.split())
    if not any(c.isalpha() for c in text):
        raise _Bad(f"must hold a sentence, got {quoted(line, 60)}")
    return RawCaption(str(number), text, "text")


def _text(value: dict[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text.strip():
        raise _Bad(f"must have a {key} as text, got {quoted(text, 60) if key in value else 'none'}")
    return " ".join(text.split())


def _asked(names: Any, labeller: Labeller) -> tuple[int, ...]:
    """Labels of the classes that names are of, synonyms included: some files have whatever word was found."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _Bad(f"labels must be a list of names, got {quoted(names, 60)}")
    found = [labeller.label_of(name) for name in names]
    if None in found:
        name, known = names[found.index(None)], labeller.lexicon.classnames
        raise _Bad(f"label {quoted(name, 60)} must be the name of a class{did_you_mean(name, known)}")
    return tuple(dict.fromkeys(found))


def _report_bad(found: CaptionFile, max_bad: float) -> None:
    if not found.rows:
        raise DataError(f"{found.path} holds no captions")
    if not found.bad:
        return
    shown = "; ".join(printable(why, 200) for why in found.bad[:FIRST_SHOWN])
    counted = f"{found.path}: {len(found.bad)} of {found.rows} rows are not captions ({shown})"
    if len(found.bad) > max_bad * found.rows:
        raise DataError(f"{counted}: at most {max_bad:.3g} of them may be bad (max_bad)")
    notice(f"{counted}, left out")
