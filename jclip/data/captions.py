"""Images with captions: from tables, JSON lines and the A3R challenge's files, or rendered afresh each epoch. No Jittor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from jclip.config import WORLD, CaptionConfig
from jclip.data import shapes
from jclip.data.augment import Views
from jclip.data.checks import preview
from jclip.data.loader import OnError, tell_once
from jclip.data.loader import batches as photo_batches
from jclip.data.photo_lists import on_disk
from jclip.errors import DataError, notice, printable
from jclip.paths import is_file
from jclip.readers.text import parse_json, read_lines, read_table

VALIDATION_SEED = 10**6


@dataclass(frozen=True)
class Pairs:
    """Captions, and images to them: photos at `paths`, or what `render` draws; both by row and epoch."""

    size: int
    caption: Callable[[int, int], tuple[str, str]]  # the text, and what two texts of the same meaning share
    paths: tuple[str, ...] = ()
    render: Callable[[int, int], Image.Image] | None = None
    on_error: OnError = "stop"
    skipped: set[str] = field(default_factory=set)  # what was told of images that do not decode

    def __len__(self) -> int:
        return self.size

    def texts(self, rows: Iterable[int], epoch: int = 0) -> tuple[list[str], list[str]]:
        """Captions of `rows`, and what they mean: equal where two say the same."""
        said = [self.caption(int(row), epoch) for row in rows]
        return [text for text, _ in said], [meaning for _, meaning in said]

    def batches(
        self, rows: Sequence[int], epoch: int, size: int, prepare: Views
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows (n,) and `prepare(image, row)`, of one view (n, 3, H, W), `size` at a time in the order of `rows`.

        An image that does not decode stops the run, or is left out and told of once. The last batch may be short.
        """
        rows = np.asarray(rows)
        if self.render:
            starts = range(0, len(rows), size)
            yield from ahead(lambda i: self._rendered(rows[starts[i] : starts[i] + size], epoch, prepare), len(starts))
            return
        failed: list[str] = []
        paths = [self.paths[row] for row in rows]
        for at, pixels in photo_batches(paths, prepare, size, self.on_error, failed, rows):
            yield rows[at], pixels[:, 0]
        tell_once(failed, self.skipped)

    def _rendered(self, rows: np.ndarray, epoch: int, prepare) -> tuple[np.ndarray, np.ndarray]:
        return rows, np.concatenate([prepare(self.render(int(row), epoch), int(row)) for row in rows])


def read_pairs(config: CaptionConfig, part: Literal["train", "val"], size: tuple[int, int], seed: int) -> Pairs | None:
    """The pairs of that part; None when none are named. `size` is what scenes are rendered at. Raises `DataError`."""
    source = getattr(config, part)
    if not source:
        return None
    if source == WORLD:
        return rendered_pairs(config, part, max(size), seed)
    path, broken = Path(source), _Broken(source, config.on_error)
    rows = READERS.get(path.suffix.lower(), _unknown_format)(path, config, broken)
    root = Path(config.root) if config.root else path.parent
    rows = _with_images(rows, root, path, broken)
    if not rows:
        raise DataError(f"{path} lists no image with its caption{broken.first}")
    broken.report(len(rows))
    captions = [caption for _, caption in rows]
    return Pairs(len(rows), lambda row, _: (captions[row],) * 2, tuple(p for p, _ in rows), on_error=config.on_error)


@dataclass
class _Broken:
    """What to do with rows of a captions file that can't be used: the first stops, or all are left out and counted."""

    path: str
    on_error: OnError
    refusals: list[DataError] = field(default_factory=list)

    def __call__(self, refusal: DataError) -> None:
        if self.on_error == "stop":
            raise refusal
        self.refusals.append(refusal)

    @property
    def first(self) -> str:
        """Why the first was left out, in brackets."""
        return f" (first left out: {self.refusals[0]})" if self.refusals else ""

    def report(self, kept: int) -> None:
        """Reports in one line on stderr how many rows were left out."""
        if self.refusals:
            told = f"{self.path}: {len(self.refusals)} of {len(self.refusals) + kept} rows left out{self.first}"
            notice(told)


def _with_images(
    rows: Sequence[tuple[int, object, object]], root: Path, path: Path, broken: _Broken
) -> list[tuple[str, str]]:
    """The path of the image and the caption of each row that has both."""
    usable = []
    for line, image, caption in rows:
        lacking = next(
            (what for what, text in (("an image", image), ("a caption", caption)) if not _is_said(text)), None
        )
        if lacking:
            got = {"an image": image, "a caption": caption}[lacking]
            broken(DataError(f"{path}, line {line}: must have {lacking} as text, got {printable(repr(got), 60)}"))
        else:
            usable.append((line, image.strip(), caption.strip()))
    found = on_disk(_place(root, image) for _, image, _ in usable)
    there = [is_file(image) for image in found]
    absent = [(line, image) for (line, *_), image, is_there in zip(usable, found, there, strict=True) if not is_there]
    if absent and broken.on_error == "stop":
        line, image = absent[0]
        raise DataError(
            f"{path}: {len(absent)} of {len(usable)} images are missing: {preview([p for _, p in absent], 3)} "
            f"(first in line {line}; left out with data.on_error=skip)"
        )
    for line, image in absent:
        broken(DataError(f"{path}, line {line}: there is no image {image}"))
    kept = zip(usable, found, there, strict=True)
    return [(image, caption) for (_, _, caption), image, is_there in kept if is_there]


def _is_said(text: object) -> bool:
    """Whether a field holds something; tables write what is absent in these ways."""
    return isinstance(text, str) and text.strip().casefold() not in ("", "nan", "null", "none", "n/a", "<na>", "\\n")


def _place(root: Path, image: str) -> str:
    path = str(root / image)
    return path if "\\" not in image or is_file(path) else str(root / image.replace("\\", "/"))


def rendered_pairs(config: CaptionConfig, part: Literal["train", "val"], size: int, seed: int) -> Pairs:
    """Scenes of the embedded world without the held-out pairs and styles; for training new ones in each epoch."""

    def scene(row: int, epoch: int) -> shapes.Scene:
        if part == "val":
            return shapes.draw_scene((VALIDATION_SEED, row), pairs=shapes.SEEN_PAIRS, styles=shapes.SEEN_STYLES)
        ease = max(0.0, 1.0 - epoch / config.easy_epochs) if config.easy_epochs else 0.0
        alone = row % 100 < 50 + 50 * ease
        return shapes.draw_scene(
            (seed, epoch, row),
            pairs=shapes.SEEN_PAIRS,
            styles=shapes.SEEN_STYLES if ease < 0.5 else shapes.SEEN_STYLES[:1],
            count=(1, 1) if alone else (2, 4),
            radius=(0.16 + 0.1 * ease, 0.36),
        )

    def caption(row: int, epoch: int) -> tuple[str, str]:
        drawn = scene(row, epoch)
        return drawn.caption, drawn.meaning

    count = config.scenes if part == "train" else config.val_scenes
    return Pairs(count, caption, render=lambda row, epoch: scene(row, epoch).render(size))


def ahead(make: Callable[[int], object], count: int):
    """make(0), make(1), … in order, the next one made in a thread while the present one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting = pool.submit(make, 0) if count else None
        for number in range(count):
            ready = waiting.result()
            waiting = pool.submit(make, number + 1) if number + 1 < count else None
            yield ready


def _read_table(path: Path, config: CaptionConfig, broken: _Broken) -> list[tuple[int, object, object]]:
    """Number of line, image and caption; the columns are separated by what stands in the header."""
    header = next(line for line in read_lines(path) if line)
    delimiter = "\t" if path.suffix.lower() == ".tsv" or "\t" in header else "|" if "|" in header else ","
    columns, rows = read_table(path, delimiter, broken)
    lacking = {config.image_key, config.caption_key} - {*columns}
    if lacking:
        raise DataError(
            f"{path} lacks the column {', '.join(sorted(lacking))} (has {', '.join(columns) or 'none':.200}): "
            "set data.image_key and data.caption_key"
        )
    return [(line, row[config.image_key], row[config.caption_key]) for line, row in rows]


def _read_json_lines(path: Path, config: CaptionConfig, broken: _Broken) -> list[tuple[int, object, object]]:
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line:
            continue
        expected = f"{path}, line {number}: expected a JSON object with {config.image_key} and {config.caption_key}"
        try:
            row = parse_json(line, "it")
        except DataError as e:
            broken(DataError(f"{expected}: {e}"))
            continue
        if isinstance(row, dict) and row.keys() >= {config.image_key, config.caption_key}:
            rows.append((number, row[config.image_key], row[config.caption_key]))
        else:
            has = f"an object with {', '.join(row) or 'nothing':.100}" if isinstance(row, dict) else f"{line:.60}"
            broken(DataError(f"{expected}, got {has}"))
    return rows


def _read_a3r(path: Path, config: CaptionConfig, broken: _Broken) -> list[tuple[int, object, object]]:
    """`image$attributes$caption`, or `image$caption`, one of the two throughout: a caption with a `$` of its own is none."""
    lines = [(number, line.split("$")) for number, line in enumerate(read_lines(path), start=1) if line]
    width = 2 if sum(len(row) == 2 for _, row in lines) > sum(len(row) == 3 for _, row in lines) else 3
    expected = "image$caption" if width == 2 else "image$attributes$caption"
    for number, row in lines:
        if len(row) != width:
            broken(DataError(f"{path}, line {number}: expected `{expected}`, got {len(row)} fields between `$`"))
    return [(number, row[0], row[-1]) for number, row in lines if len(row) == width]


def _unknown_format(path: Path, config: CaptionConfig, broken: _Broken) -> list[tuple[int, object, object]]:
    raise DataError(f"{path}: captions come as {', '.join(READERS)} (or `{WORLD}`), not as {path.suffix or 'that'}")


READERS = {".csv": _read_table, ".tsv": _read_table, ".jsonl": _read_json_lines, ".txt": _read_a3r}
