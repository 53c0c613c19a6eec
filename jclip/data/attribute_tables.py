"""Photos with attributes of which some are missing: tables with a column each, and the A3R challenge's `$` files. No Jittor.

A `$` file has lines `image$attributes$caption`. The attributes of a car are words such as `white Audi SUV`; those of a
person are a list with commas, which is left as it is.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from jclip.config import build
from jclip.errors import ConfigError, DataError, UnknownName, printable
from jclip.paths import is_file
from jclip.readers.spreadsheet import write_csv_rows
from jclip.readers.strict_yaml import read_yaml
from jclip.readers.text import read_lines, read_table

PRESETS = Path(__file__).resolve().parent.parent / "assets" / "attributes"
ABSENT = ("", "nan", "null", "none", "n/a", "<na>", "\\n", "unknown")  # how tables write what is not known
_FIELD = re.compile(r"\{(\w+)\}")
_OPENING = re.compile(r"(?:this is )?an? ", re.IGNORECASE)


@dataclass(frozen=True)
class Attributes:
    """Which attributes there are, which values each may take, which are filled, and how a text is made of them.

    attributes: name → values; an empty list takes those that occur in the table. mined: names whose listed values are
    joined by those of the table. template: a text with the names in braces; what has no value drops out.
    """

    attributes: dict
    fill: tuple[str, ...]
    template: str
    mined: tuple[str, ...] = ()

    def __post_init__(self):
        named = _FIELD.findall(self.template)
        if not self.attributes or not self.fill or not named:
            raise ConfigError("attributes, fill and the names in braces of template must not be empty")
        for name in (*self.fill, *self.mined, *named):
            if name not in self.attributes:
                raise UnknownName("attribute", name, self.attributes)
        if unused := [name for name in self.fill if name not in named]:
            raise ConfigError(f"template must name every filled attribute, got no {{{unused[0]}}} in {self.template!r}")
        for name, values in self.attributes.items():
            if not isinstance(values, list | tuple) or not all(isinstance(v, str) and v.strip() for v in values):
                raise ConfigError(f"attributes.{name} must be a list of words, got {printable(repr(values), 100)}")

    def text(self, values: Mapping[str, str]) -> str:
        """The template filled; a word that would stand twice in a row (`Heavy Truck Truck`) stands once."""
        said = _FIELD.sub(lambda m: values.get(m[1], ""), self.template)
        words: list[str] = []
        for word in said.split():
            if not words or word.casefold() != words[-1].casefold():
                words.append(word)
        return re.sub(r"\s+([.,;])", r"\1", " ".join(words))


def read_attributes(name: str) -> Attributes:
    """A preset's, or those of a YAML with the keys of `Attributes`. Raises `ConfigError`, or `UnknownName`."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file() and not name.endswith((".yaml", ".yml")):
        raise UnknownName("preset of attributes", name, sorted(p.stem for p in PRESETS.glob("*.yaml")))
    return build(Attributes, read_yaml(path), str(path))


@dataclass(frozen=True)
class AttributeRow:
    """A line: its photo, the attributes that are given, and what the file says of it otherwise."""

    line: int
    photo: str
    given: dict[str, str]
    columns: dict[str, str]
    fillable: bool = True
    filled: dict[str, tuple[str, float, float]] = field(default_factory=dict)  # value, probability, margin

    @property
    def values(self) -> dict[str, str]:
        """Given and filled."""
        return {**self.given, **{name: value for name, (value, *_) in self.filled.items() if value}}


@dataclass(frozen=True)
class AttributeTable:
    """The lines of a file. `numbered` are a `$` file's."""

    path: Path
    rows: tuple[AttributeRow, ...]
    columns: tuple[str, ...]
    attributes: Attributes
    root: Path
    numbered: bool = False

    @cached_property
    def candidates(self) -> dict[str, tuple[str, ...]]:
        """Values that a missing attribute may take, of each that is filled. Raises `DataError` where there are none."""
        found = {}
        for name in self.attributes.fill:
            listed = tuple(dict.fromkeys(self.attributes.attributes[name]))
            known = sorted({row.given[name] for row in self.rows if name in row.given} - {*listed})
            found[name] = (*listed, *known) if not listed or name in self.attributes.mined else listed
            if not found[name]:
                raise DataError(f"{self.path}: no row has a {name}, so its values must be named: --values {name}=a,b,c")
        return found

    def photo(self, row: AttributeRow) -> str:
        """The path of a row's photo."""
        return str(self.root / row.photo)

    def missing(self, row: AttributeRow) -> tuple[str, ...]:
        """The attributes of a row that are to be filled."""
        return tuple(name for name in self.attributes.fill if row.fillable and name not in row.given)

    def completed(self, row: AttributeRow) -> str:
        """The text of all values of a row; of one that is left as it is, its caption."""
        return self.attributes.text(row.values) if row.fillable else row.columns.get("caption", "").strip()


def read_attribute_table(
    path: Path, attributes: Attributes, root: Path | None = None, image: str = "", *, some_absent: bool = False
) -> AttributeTable:
    """Rows of a .csv, .tsv or `$` .txt; photos are relative to `root`, by default the file's folder.

    image: the column of photos, by default `filepath`, `photo` or `image`. some_absent: photos may be absent, though not
    all of them. Raises `DataError` for another format, a column that is absent, a row without a photo, and photos that
    are absent.
    """
    suffix = path.suffix.lower()
    if suffix == ".txt":
        rows, columns = _dollar_rows(path, attributes), ("image", "attributes", "caption")
    elif suffix in (".csv", ".tsv"):
        columns, rows = _table_rows(path, attributes, image, "\t" if suffix == ".tsv" else ",")
    else:
        raise DataError(f"{path}: tables of attributes must be .csv, .tsv or .txt, got {suffix or 'no ending'}")
    if not rows:
        raise DataError(f"{path} must hold rows, got none below its header")
    table = AttributeTable(path, tuple(rows), tuple(columns), attributes, root or path.parent, suffix == ".txt")
    absent = [row for row in rows if not is_file(table.photo(row))]
    if absent and not (some_absent and len(absent) < len(rows)):
        raise DataError(
            f"{path}: {len(absent)} of {len(rows)} photos are missing, the first in line {absent[0].line}: "
            f"{printable(table.photo(absent[0]), 200)} (set --root to the photos' folder)"
        )
    return table


def _known(value: str) -> bool:
    return value.strip().casefold() not in ABSENT


def _table_rows(path: Path, attributes: Attributes, image: str, delimiter: str):
    columns, found = read_table(path, delimiter)
    named = [image] if image else ["filepath", "photo", "image"]
    column = next((name for name in named if name in columns), None)
    if column is None:
        raise DataError(
            f"{path} must have a column {' or '.join(named)}, got {', '.join(columns)}: name it by --image-key"
        )
    there = [name for name in attributes.attributes if name in columns]
    rows = []
    for line, cells in found:
        if not _known(cells[column]):
            raise DataError(f"{path}, line {line}: must have a photo in column {column}, got none")
        given = {name: cells[name].strip() for name in there if _known(cells[name])}
        rows.append(AttributeRow(line, cells[column].strip(), given, cells))
    return columns, rows


def _dollar_rows(path: Path, attributes: Attributes) -> list[AttributeRow]:
    rows = []
    for line, text in enumerate(read_lines(path), start=1):
        if not text:
            continue
        cells = text.split("$")
        if len(cells) != 3 or not cells[0].strip():
            raise DataError(
                f"{path}, line {line}: must be `image$attributes$caption`, got {len(cells)} fields between `$`"
            )
        person = cells[1].count(",") > 0
        given = {} if person else parse_words(cells[1] if _known(cells[1]) else cells[2], attributes)
        columns = dict(zip(("image", "attributes", "caption"), cells, strict=True))
        rows.append(AttributeRow(line, cells[0].strip(), given, columns, not person))
    return rows


def parse_words(said: str, attributes: Attributes) -> dict[str, str]:
    """Attributes of words such as `This is a white Audi SUV.`: listed values, longest first; words with a capital
    that are left are the value of the first mined attribute."""
    rest = said.strip().rstrip(".").strip()
    rest = rest[opening.end() :] if (opening := _OPENING.match(rest)) else rest
    words, found = rest.split(), {}
    listed = [(value.split(), name) for name, values in attributes.attributes.items() for value in values]
    for value, name in sorted(listed, key=lambda entry: -len(entry[0])):
        at = next((i for i in range(len(words)) if words[i : i + len(value)] == value), None)
        if at is not None and name not in found:
            found[name] = " ".join(value)
            words[at : at + len(value)] = []
    names = [word for word in words if word[:1].isupper()]
    if names and attributes.mined and attributes.mined[0] not in found:
        found[attributes.mined[0]] = " ".join(names)
    return found


def table_bytes(table: AttributeTable) -> bytes:
    """The table as CSV: the file's columns with filled attributes, then the probability and margin of each, and `completed`."""
    names = [*table.columns, *(name for name in table.attributes.attributes if name not in table.columns)]
    head = [*names, *(f"{n}_{what}" for n in table.attributes.fill for what in ("probability", "margin")), "completed"]
    out = io.StringIO(newline="")
    write_csv_rows(out, head, [_cells(table, row, names) for row in table.rows])
    return out.getvalue().encode("utf-8", "surrogateescape")


def _cells(table: AttributeTable, row: AttributeRow, names: Sequence[str]) -> list[str]:
    cells = [
        row.values.get(n, row.columns.get(n, "")) if n in table.attributes.attributes else row.columns[n] for n in names
    ]
    for name in table.attributes.fill:
        _, *numbers = row.filled.get(name, ("", None, None))
        cells += ["" if number is None else f"{number:.6f}" for number in numbers]
    return [*cells, table.completed(row)]


def dollar_bytes(table: AttributeTable) -> bytes:
    """The table as a `$` file, `image$attributes$caption$completed`. Raises `DataError` for a table of columns."""
    if not table.numbered:
        raise DataError(f"{table.path} must be a `$` file to be written as one, got a table: name --out with .csv")
    fields = ("image", "attributes", "caption")
    lines = ["$".join([*(row.columns[f] for f in fields), table.completed(row)]) for row in table.rows]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")
