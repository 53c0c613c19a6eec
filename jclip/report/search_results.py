"""What a search found: a table on screen, JSON, CSV, paths, and a folder of links for each query."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from jclip.errors import ConfigError, counted, notice
from jclip.paths import replacing
from jclip.readers.spreadsheet import write_csv_rows
from jclip.report.folder_names import class_folders, folded, free_name
from jclip.report.predictions import shorten, table
from jclip.report.sorted_folders import Manifest, Placement, check_folder, check_places

FORMATS = (".csv", ".json", ".jsonl", ".txt")
OTHERS = "results depend on the other queries of this call"
_HEADING, _PATH, _CAPTION, _CELL = 200, 60, 50, 24  # letters on screen


class Photo(Protocol):
    """One photo that was found; z: deviations above the query's background, above: whether it stands out, hidden: how many
    near-duplicates of it are not shown."""

    @property
    def row(self) -> int: ...
    @property
    def path(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def z(self) -> float: ...
    @property
    def above(self) -> bool: ...
    @property
    def caption(self) -> str | None: ...
    @property
    def columns(self) -> dict[str, Any]: ...
    @property
    def hidden(self) -> int: ...


class Background(Protocol):
    """A query's scores against a sample of the gallery, and the line; no deviation where there are too few photos."""

    @property
    def middle(self) -> float: ...
    @property
    def deviation(self) -> float: ...
    @property
    def line(self) -> float: ...


class Answer(Protocol):
    """The photos of one query, best first."""

    @property
    def query(self) -> str: ...
    @property
    def hits(self) -> Sequence[Photo]: ...
    @property
    def background(self) -> Background: ...
    @property
    def uses_other_queries(self) -> bool: ...


@dataclass(frozen=True)
class How:
    """How results were sorted, and what a table shows of them.

    rerank, flips: as asked for. first: rank of a page's first photo. shown: columns of the table. alone: whether there is
    one query, which needs no heading. cut: whether only what stands out was asked for.
    """

    rerank: str = "none"
    flips: str = "none"
    first: int = 1
    shown: Sequence[str] = field(default_factory=tuple)
    alone: bool = True
    cut: bool = False


def check_results_file(path: str | None) -> None:
    """Raises `ConfigError` for a file whose ending names no format: to be asked before the work, not after."""
    if path is not None and Path(path).suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: results are written as one of {', '.join(FORMATS)}")


def show_answer(answer: Answer, how: How) -> str:
    """A table, with a line where the query's background ends, and what is to be said of it below."""
    heading = "" if how.alone else f"{_cut(answer.query, _HEADING)}\n"
    if not answer.hits:
        line = f"no photo stands out from the background of this query (z ≥ {answer.background.line:.1f})"
        return heading + (line if how.cut else "no photo is left for this page")
    captions, alike = any(hit.caption for hit in answer.hits), any(hit.hidden for hit in answer.hits)
    flags = [hit.above for hit in answer.hits]
    compared, in_order = answer.background.deviation > 0, flags == sorted(flags, reverse=True)
    head = [
        "",
        "photo",
        "cosine",
        *["z"] * compared,
        *["stands out"] * (not in_order),
        *["hidden"] * alike,
        *how.shown,
        *["caption"] * captions,
    ]
    rows = []
    for rank, hit in enumerate(answer.hits, start=how.first):
        cells = [str(rank), shorten(_near(hit.path), _PATH), f"{hit.score:.3f}"]
        cells += [f"{hit.z:.1f}"] * compared + ["yes" if hit.above else "no"] * (not in_order)
        cells += [str(hit.hidden or "")] * alike
        cells += [_cut(str(_column(hit, name)), _CELL) for name in how.shown]
        rows.append([*cells, *[_cut(hit.caption or "", _CAPTION)] * captions])
    lines = table(head, rows).split("\n")
    if compared and in_order and not all(flags):
        lines.insert(2 + sum(flags), f"--- below: background of this query (z < {answer.background.line:.1f}) ---")
    return heading + "\n".join([*lines, *_said(answer, how, compared)])


def _said(answer: Answer, how: How, compared: bool) -> Iterator[str]:
    if not compared:
        yield "too few photos to say where the background of this query ends"
    if how.rerank != "none" or how.flips != "none":
        mirrored = f", mirrored photos: {how.flips}" if how.flips != "none" else ""
        other = f"; {OTHERS}" if answer.uses_other_queries else ""
        yield f"re-ranked: {how.rerank}{mirrored}{other}"


def _column(hit: Photo, name: str) -> Any:
    value = hit.columns.get(name)
    return "" if value is None else value


def _near(path: str) -> str:
    """The path as seen from the caller's folder, where it lies below."""
    here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118
    return path[len(here) :] if path.startswith(here) else path


def _cut(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1]}…"


def record_of(answer: Answer, how: How) -> dict[str, Any]:
    """One query and its photos as plain values."""
    ground = answer.background
    compared = ground.deviation > 0
    hits = []
    for rank, hit in enumerate(answer.hits, start=how.first):
        own = {"rank": rank, "row": hit.row, "photo": hit.path, "cosine": round(hit.score, 6)}
        own |= {"z": round(hit.z, 4), "stands_out": hit.above} if compared else {}
        own |= {"hidden": hit.hidden} if hit.hidden else {}
        own |= {"caption": hit.caption} if hit.caption is not None else {}
        hits.append(own | ({"columns": hit.columns} if hit.columns else {}))
    found: dict[str, Any] = {"query": answer.query, "rerank": how.rerank, "flips": how.flips}
    found["uses_other_queries"] = answer.uses_other_queries
    if compared:
        values = {"middle": ground.middle, "deviation": ground.deviation, "line": ground.line}
        found["background"] = {name: round(value, 6) for name, value in values.items()}
    return {**found, "photos": hits}


def json_line(answer: Answer, how: How) -> str:
    """One query as a line of JSON; what is no UTF-8 in names is escaped."""
    return _json(record_of(answer, how))


def _json(value: Any, indent: int | None = None) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent)
    return text + "\n"


def csv_text(answers: Sequence[Answer], how: How) -> str:
    """A row per photo; numbers where there is no background are empty."""
    columns = list(dict.fromkeys(name for answer in answers for hit in answer.hits for name in hit.columns))
    head = ["query", "rank", "row", "photo", "cosine", "z", "stands_out", "rerank", "uses_other_queries", "caption"]
    file = io.StringIO(newline="")
    write_csv_rows(file, [*head, *columns], _csv_rows(answers, how, columns))
    return file.getvalue()


def _csv_rows(answers: Sequence[Answer], how: How, columns: Sequence[str]) -> Iterator[list]:
    sorting = how.rerank if how.flips == "none" else f"{how.rerank}, flips {how.flips}"
    for answer in answers:
        compared = answer.background.deviation > 0
        for rank, hit in enumerate(answer.hits, start=how.first):
            stands = [f"{hit.z:.4f}", str(hit.above).lower()] if compared else ["", ""]
            own = [answer.query, rank, hit.row, hit.path, f"{hit.score:.6f}", *stands]
            own += [sorting, str(answer.uses_other_queries).lower(), hit.caption or ""]
            yield [*own, *(_column(hit, name) for name in columns)]


def paths_text(answers: Iterable[Answer], end: str = "\n") -> str:
    """Absolute paths, each once, in the order in which they were found."""
    return "".join(f"{path}{end}" for path in dict.fromkeys(hit.path for answer in answers for hit in answer.hits))


def write_results(answers: Sequence[Answer], path: str, how: How) -> None:
    """Writes all queries: .csv, .json (a list), .jsonl (a line per query) or .txt (paths alone)."""
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        text = csv_text(answers, how)
    elif suffix == ".json":
        text = _json([record_of(answer, how) for answer in answers], indent=1)
    elif suffix == ".jsonl":
        text = "".join(json_line(answer, how) for answer in answers)
    else:
        text = paths_text(answers)
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def plan_links(answers: Sequence[Answer], folder: Path, beside: Manifest | None = None) -> list[Placement]:
    """A folder per query in `folder`, photos named by their ranks. Photos that are not files of their own are reported.

    beside: what was placed there before; a query that has a folder there gets more photos into it. Raises `DataError` when
    something else stands there already.
    """
    check_folder(folder, beside)
    before = () if beside is None else beside.photos
    names = class_folders([answer.query for answer in answers], {one.label: one.folder for one in before})
    placed, absent, taken = [], [], {one.folder + folded(one.target.removeprefix(one.folder)) for one in before}
    there = {(one.photo, one.label) for one in before if os.path.lexists(folder / one.target)}
    for name, answer in zip(names, answers, strict=True):
        width = len(str(len(answer.hits)))
        for rank, hit in enumerate(answer.hits, start=1):
            if not os.path.isfile(hit.path):  # noqa: PTH113
                absent.append(hit.path)
                continue
            if (hit.path, answer.query) in there:
                continue
            link = free_name(f"{rank:0{width}}-{Path(hit.path).name}", taken, f"{name}/")
            placed.append(Placement(hit.path, f"{name}/{link}", answer.query, score=round(hit.score, 6)))
    if absent:
        notice(
            f"without a link, as they are in tars or not there: {counted(len(absent), 'photo')} (first: {absent[0]})"
        )
    check_places(placed, folder)
    return placed
