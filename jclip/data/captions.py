"""Images with captions: from files of many kinds, or rendered afresh each epoch. No Jittor."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from jclip.config import WORLD, CaptionConfig
from jclip.data import shapes
from jclip.data.augment import Views
from jclip.data.caption_json import read_caption_json, read_caption_json_lines
from jclip.data.caption_rows import Broken, Row, first_captions, with_images
from jclip.data.caption_tables import read_caption_lines, read_caption_table
from jclip.data.loader import OnError, warn_once
from jclip.data.loader import batches as photo_batches
from jclip.data.tar_shards import read_shards
from jclip.errors import DataError

VALIDATION_SEED = 10**6


@dataclass(frozen=True)
class Pairs:
    """Captions, and images to them: photos at `paths`, or what `render` draws; both by row and epoch.

    text_ids: (N,), equal where rows hold the same text, which then is one query that finds several images; by default
    each row's text is its own. Rows with the same path have the same image.
    """

    size: int
    caption: Callable[[int, int], tuple[str, str]]  # the text, and what two texts of the same meaning share
    paths: tuple[str, ...] = ()
    render: Callable[[int, int], Image.Image] | None = None
    on_error: OnError = "stop"
    skipped: set[str] = field(default_factory=set)  # images reported as not decodable
    text_ids: np.ndarray | None = None
    names: tuple[str, ...] = ()  # (N,) what the file calls each row's text, where it has ids of texts

    def __len__(self) -> int:
        return self.size

    @cached_property
    def images(self) -> np.ndarray:
        """(N,) numbers that are equal where rows have the same image, from 0 in order of their first rows."""
        return _numbered(self.paths) if self.paths else np.arange(self.size)

    @cached_property
    def queries(self) -> np.ndarray:
        """(N,) numbers that are equal where rows have the same text, from 0 in order of their first rows."""
        return np.arange(self.size) if self.text_ids is None else self.text_ids

    def texts(self, rows: Iterable[int], epoch: int = 0) -> tuple[list[str], list[str]]:
        """Captions of `rows`, and what they mean: equal where two say the same."""
        said = [self.caption(int(row), epoch) for row in rows]
        return [text for text, _ in said], [meaning for _, meaning in said]

    def batches(
        self, rows: Sequence[int], epoch: int, size: int, prepare: Views
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows (n,) and `prepare(image, row)`, of one view (n, 3, H, W), `size` at a time in the order of `rows`; of photos
        that vary in size, those of equal size among these together.

        An image that does not decode stops the run, or is left out and reported once. The last batch may be short.
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
        warn_once(failed, self.skipped)

    def _rendered(self, rows: np.ndarray, epoch: int, prepare) -> tuple[np.ndarray, np.ndarray]:
        return rows, np.concatenate([prepare(self.render(int(row), epoch), int(row)) for row in rows])


def read_pairs(config: CaptionConfig, part: Literal["train", "val"], size: tuple[int, int], seed: int) -> Pairs | None:
    """The pairs of that part; None when none are named. `size` is what scenes are rendered at. Raises `DataError`."""
    source = getattr(config, part)
    if not source:
        return None
    if source == WORLD:
        return rendered_pairs(config, part, max(size), seed)
    path, broken = Path(source), Broken(source, config.on_error)
    rows = _rows_of(path, config, part, broken)
    root = Path(config.root) if config.root else path.parent
    rows = first_captions(with_images(rows, root, path, broken), config.captions_per_image)
    if not rows:
        raise DataError(f"{path} lists no image with its caption{broken.first}")
    broken.report(len(rows))
    return pairs_of(rows, config)


def pairs_of(rows: Sequence[Row], config: CaptionConfig) -> Pairs:
    """Rows with whole paths as pairs."""
    captions = [row.caption for row in rows]
    own = [number if row.text is None else (row.text,) for number, row in enumerate(rows)]
    return Pairs(
        len(rows),
        lambda row, _: (captions[row],) * 2,
        tuple(row.image for row in rows),
        on_error=config.on_error,
        text_ids=_numbered(captions if config.queries == "texts" else own),
        names=tuple(str(row.text) for row in rows) if all(row.text is not None for row in rows) else (),
    )


def _rows_of(path: Path, config: CaptionConfig, part: Literal["train", "val"], broken: Broken) -> list[Row]:
    """What the file says, by its ending and, where that leaves it open, by its first line."""
    ending = path.suffix.lower()
    if ending == ".tar" or path.is_dir():
        return read_shards(path, broken)
    if ending == ".json":
        return read_caption_json(path, config, broken, part)
    if ending not in READERS:
        kinds = ", ".join((*READERS, ".json", ".tar"))
        raise DataError(f"{path}: captions must be {kinds} (or `{WORLD}`), got {path.suffix or 'no ending'}")
    return READERS[ending](path, config, broken)


def _numbered(values: Iterable[Hashable]) -> np.ndarray:
    """(N,) numbers from 0, equal where values are, in order of their first places."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)


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


READERS = {
    ".csv": read_caption_table,
    ".tsv": read_caption_table,
    ".jsonl": read_caption_json_lines,
    ".txt": read_caption_lines,
    ".token": read_caption_lines,
}
