"""Captions in tables and lines: CSV, TSV, Flickr8k's and Flickr30k's files, and those of the A3R challenge."""

from __future__ import annotations

import re
from pathlib import Path

from jclip.config import CaptionConfig
from jclip.data.caption_rows import Broken, Row
from jclip.errors import DataError, printable
from jclip.readers.text import read_lines, read_table

IMAGE_NAME = r"\.(?:jpe?g|png|webp|bmp|gif|tiff?)"
PUBLISHED = ({"image", "caption"}, {"image_name", "comment"})  # columns of Flickr8k's and Flickr30k's tables
_COMMA = re.compile(rf"^(.*?{IMAGE_NAME})\s*,\s*(.*)$", re.IGNORECASE)
_TOKEN = re.compile(r"^(.+?)#(\d+)(?:\t|\s{2,})(.*)$")
_ENDS_AS_IMAGE = re.compile(rf"{IMAGE_NAME}$", re.IGNORECASE)


def read_caption_table(path: Path, config: CaptionConfig, broken: Broken) -> list[Row]:
    """Rows of a table with a header, which shows the separator of its columns."""
    header = next(line for line in read_lines(path) if line)
    if is_flickr(header):
        return read_flickr(path, broken)
    delimiter = "\t" if path.suffix.lower() == ".tsv" or "\t" in header else "|" if "|" in header else ","
    columns, rows = read_table(path, delimiter, broken)
    keys = _keys(columns, config)
    lacking = {*keys} - {*columns}
    if lacking:
        raise DataError(
            f"{path} lacks the column {', '.join(sorted(lacking))} (has {', '.join(columns) or 'none':.200}): "
            "set data.image_key and data.caption_key"
        )
    return [Row(f"line {line}", row[keys[0]], row[keys[1]]) for line, row in rows]


def _keys(columns: list[str], config: CaptionConfig) -> tuple[str, str]:
    """The names of both columns: the config's, or, where it leaves them, those of a published table."""
    usual = CaptionConfig()
    if (config.image_key, config.caption_key) == (usual.image_key, usual.caption_key):
        for image, caption in (("image", "caption"), ("image_name", "comment")):
            if {image, caption} <= {*columns}:
                return image, caption
    return config.image_key, config.caption_key


def read_caption_lines(path: Path, config: CaptionConfig, broken: Broken) -> list[Row]:
    """Rows of a .txt or .token file: `image.jpg#0<tab>caption`, `image.jpg,caption`, or fields between `$`, as in line 1."""
    first = next(line for line in read_lines(path) if line)
    if "$" not in first and _TOKEN.match(first):
        return _read_tokens(path, broken)
    return read_flickr(path, broken) if is_flickr(first) else read_dollar_lines(path, broken)


def is_flickr(line: str) -> bool:
    """Whether a file's first line is of Flickr's `image.jpg,caption`, in which captions may have commas of their own."""
    return "$" not in line and (line.replace(" ", "").casefold() == "image,caption" or bool(_COMMA.match(line)))


def read_flickr(path: Path, broken: Broken) -> list[Row]:
    """Rows of `image.jpg,caption` lines, split after the image's ending; a caption may stand in quotation marks, whole."""
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line or (number == 1 and not _COMMA.match(line)):
            continue
        found = _COMMA.match(line)
        caption = _unquoted(found.group(2)) if found else None
        if caption is None:
            lacks = "a quotation mark that nothing closes" if found else printable(line, 60)
            broken(DataError(f"{path}, line {number}: must be `image.jpg,caption`, got {lacks}"))
        else:
            rows.append(Row(f"line {number}", found.group(1).strip(), caption))
    return rows


def _unquoted(caption: str) -> str | None:
    """A caption without the marks around it; None where these are not closed on the line."""
    if not caption.startswith('"'):
        return caption
    inner = caption[1:-1]
    closed = len(caption) > 1 and caption.endswith('"') and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if closed else None


def _read_tokens(path: Path, broken: Broken) -> list[Row]:
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        found = _TOKEN.match(line)
        if found:
            rows.append(Row(f"line {number}", found.group(1).strip(), found.group(3)))
        elif line:
            broken(DataError(f"{path}, line {number}: must be `image#number<tab>caption`, got {printable(line, 60)}"))
    return rows


def read_dollar_lines(path: Path, broken: Broken) -> list[Row]:
    """`image$attributes$caption`, `image$caption`, `image$attributes$caption$completed`: one of them throughout, so that a
    caption with a `$` of its own is none; the last field is the caption. Or `caption$image$image…`, the challenge's truth."""
    lines = [(number, line.split("$")) for number, line in enumerate(read_lines(path), start=1) if line]
    if _is_truth(lines[0][1]):
        return _read_truth(path, lines, broken)
    counts = {width: sum(len(row) == width for _, row in lines) for width in (3, 2, 4)}
    width = max(counts, key=counts.get)
    kinds = {2: "image$caption", 3: "image$attributes$caption", 4: "image$attributes$caption$completed"}
    for number, row in lines:
        if len(row) != width:
            broken(DataError(f"{path}, line {number}: must be `{kinds[width]}`, got {len(row)} fields between `$`"))
    return [Row(f"line {number}", row[0], row[-1]) for number, row in lines if len(row) == width]


def _is_truth(fields: list[str]) -> bool:
    are_images = [bool(_ENDS_AS_IMAGE.search(field.strip())) for field in fields]
    return len(fields) > 1 and not are_images[0] and all(are_images[1:])


def _read_truth(path: Path, lines: list[tuple[int, list[str]]], broken: Broken) -> list[Row]:
    rows = []
    for number, fields in lines:
        if not _is_truth(fields):
            broken(
                DataError(
                    f"{path}, line {number}: must be `caption$image$image…`, got {printable('$'.join(fields), 60)}"
                )
            )
            continue
        rows += [Row(f"line {number}", image, fields[0], text=number) for image in fields[1:]]
    return rows
