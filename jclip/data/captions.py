"""Images with captions: from tables, JSON lines and the A3R challenge's files, or rendered afresh each epoch. No Jittor."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from jclip.config import WORLD, CaptionConfig
from jclip.data import shapes
from jclip.data.loader import OnError, tell_once
from jclip.data.loader import batches as photo_batches
from jclip.errors import DataError
from jclip.views import Views

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
    path = Path(source)
    rows = READERS.get(path.suffix, _unknown_format)(path, config)
    if not rows:
        raise DataError(f"{path} lists no image with its caption")
    root = Path(config.root) if config.root else path.parent
    paths = tuple(str(root / image) for image, _ in rows)
    absent = [p for p in paths if not Path(p).is_file()]
    if absent:
        raise DataError(f"{path}: {len(absent)} of {len(paths)} images are missing: {', '.join(absent[:3])}")
    captions = [caption for _, caption in rows]
    return Pairs(len(rows), lambda row, _: (captions[row],) * 2, paths, on_error=config.on_error)


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


def _read_table(path: Path, config: CaptionConfig) -> list[tuple[str, str]]:
    lines = _text(path).splitlines()
    table = csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" or "\t" in (lines or [""])[0] else ",")
    lacking = {config.image_key, config.caption_key} - set(table.fieldnames or ())
    if lacking:
        raise DataError(
            f"{path} lacks the column {', '.join(sorted(lacking))} (has {', '.join(table.fieldnames or ['none'])}): "
            "set data.image_key and data.caption_key"
        )
    return [(row[config.image_key], row[config.caption_key]) for row in table]


def _read_json_lines(path: Path, config: CaptionConfig) -> list[tuple[str, str]]:
    rows = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append((str(row[config.image_key]), str(row[config.caption_key])))
        except (ValueError, KeyError, TypeError) as e:
            raise DataError(
                f"{path}, line {number}: expected a JSON object with {config.image_key} and {config.caption_key}"
            ) from e
    return rows


def _read_a3r(path: Path, config: CaptionConfig) -> list[tuple[str, str]]:
    rows = [line.split("$") for line in _text(path).splitlines() if line.strip()]
    short = [number for number, row in enumerate(rows, start=1) if len(row) < 2]
    if short:
        raise DataError(f"{path}, line {short[0]}: expected `image$attributes$caption`")
    return [(row[0].strip(), row[-1].strip()) for row in rows]


def _unknown_format(path: Path, config: CaptionConfig) -> list[tuple[str, str]]:
    raise DataError(f"{path}: captions come as {', '.join(READERS)} (or `{WORLD}`), not as {path.suffix or 'that'}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"can't read {path}: {getattr(e, 'strerror', None) or 'it is not UTF-8 text'}") from e


READERS = {".csv": _read_table, ".tsv": _read_table, ".jsonl": _read_json_lines, ".txt": _read_a3r}
