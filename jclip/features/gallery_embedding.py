"""Makes a gallery of photos, and brings it up to date: each photo's bytes go through the model once, kills included."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data import deadly_photos, loader, unfinished_gallery
from jclip.data.augment import Views
from jclip.data.gallery_inputs import Inputs, Part, is_unchanged, photo_address
from jclip.data.gallery_store import (
    DTYPES,
    Manifest,
    Store,
    is_gallery,
    made_by,
    open_store,
    read_manifest,
    remove_others,
    verify,
)
from jclip.data.shares import WHOLE, Share
from jclip.errors import ConfigError, DataError
from jclip.features import extraction, gallery_lock, half_models
from jclip.features.cached import key_of
from jclip.features.gallery_changes import distinct_photos, of_others, same_rows
from jclip.features.gallery_merge import write_gallery
from jclip.features.gallery_parts import Known, Parts
from jclip.features.known_photos import CHANGED, PartKnown, Stored, known_of, sorted_out, stored_of
from jclip.features.source import ModelSource
from jclip.functional.directions import unit

DEFAULT_DTYPE = "fp16"
SAVE_SECONDS = 5.0  # a kill loses at most the batches of so long
Seen = Callable[[int, int], None]  # photos done, all photos


@dataclass(frozen=True)
class Outcome:
    """What was done: rows now, photos encoded now, rows dropped and added, rows with the bytes of another, photos left out.

    missing: numbers of parts, of so many, that other processes have not finished: then no gallery is written yet, and the
    rest is 0.
    """

    rows: int
    encoded: int
    added: int
    dropped: int
    duplicates: int
    skipped: list[tuple[str, str]]
    seconds: float = 0.0  # of encoding
    missing: tuple[Sequence[int], int] | None = None


def embed(
    inputs: Inputs,
    source: ModelSource,
    folder: Path,
    dtype: str = "",
    update: bool = False,
    model: str = "",
    share: Share = WHOLE,
    seen: Seen | None = None,
) -> Outcome:
    """Writes the gallery of `inputs` into `folder`, or with `update` brings the one there up to date.

    Photos are encoded part by part (`Inputs.parts`), each part's distinct bytes once and those of the gallery that is
    there not again; what a killed run had encoded is taken over. dtype: of the stored features, by default those of the
    gallery that is there, else fp16. model: the name or path to load it by again. share: which of the parts this process
    does; the one that finds all parts finished writes the gallery, which has the same bytes however they were shared.
    seen: called after each batch with the photos that are done and all of them; what it raises ends the work, and what is
    encoded by then is kept as after a kill.
    Raises `ConfigError` for a gallery of another model, preprocessing or dtype, or of other photos without `update`,
    `DataError` where no photo decodes.
    """
    with gallery_lock.alone(folder, share) as lock:
        old = _checked(inputs, source, folder, dtype)
        if old and (share.is_whole or not update) and same_rows(old, inputs):
            if share.is_whole:
                remove_others(folder, old.manifest)
            return _unchanged(old)
        if old and not update:
            raise of_others(old, inputs, folder)
        dtype = old.manifest.dtype if old else dtype or DEFAULT_DTYPE
        parts = parts_of(inputs, source, folder, dtype)
        _check_shares(parts, share, folder)
        if not share.is_whole:
            lock.note(unfinished_gallery.noted(share, parts.count))
        begun = time.monotonic()
        encoded = _finish_parts(inputs, source, parts, stored_of(old), DTYPES[dtype], share, seen)
        seconds = time.monotonic() - begun
        if not share.ends or parts.missing():
            return Outcome(0, encoded, 0, 0, 0, [], seconds, (parts.missing(), parts.count))
        lock.alone()
        if parts.missing():
            return _unchanged(open_store(folder))  # another shard, which ended at the same time, wrote it
        change = write_gallery(folder, inputs.root, parts, source, dtype, model, old)
        return Outcome(encoded=encoded, seconds=seconds, **vars(change))


class Watched:
    """Parts as they are finished, seen from outside."""

    def __init__(self, parts: Parts | None, sizes: Sequence[int]):
        self._parts, self._sizes = parts, sizes

    def done(self) -> int:
        """How many photos are done, as far as it is known how many a part has."""
        return self._parts.photos_done(self._sizes) if self._parts else sum(self._sizes)

    def missing(self) -> Sequence[int]:
        """Numbers of the parts that are not finished; none where the gallery is up to date."""
        return self._parts.missing() if self._parts else []


def watched(inputs: Inputs, source: ModelSource, folder: Path, dtype: str = "", update: bool = False) -> Watched:
    """What `embed` with these settings has to do, done by other processes. Raises as `embed` does."""
    sizes = [inputs.size(number) for number in range(inputs.parts)]
    with gallery_lock.alone(folder, WHOLE):
        old = _checked(inputs, source, folder, dtype)
        if old and same_rows(old, inputs):
            return Watched(None, sizes)
        if old and not update:
            raise of_others(old, inputs, folder)
    parts = parts_of(inputs, source, folder, dtype)
    for stale in parts.others():
        stale.unlink(missing_ok=True)
    return Watched(parts, sizes)


def parts_of(inputs: Inputs, source: ModelSource, folder: Path, dtype: str) -> Parts:
    """The parts that `embed` finishes. dtype: of the stored features, where no gallery is there that has its own."""
    dtype = read_manifest(folder).dtype if is_gallery(folder) else dtype or DEFAULT_DTYPE
    return Parts(folder, key_of([made_by(source.identity, source.preprocess.to_dict()), dtype]), inputs)


def _checked(inputs: Inputs, source: ModelSource, folder: Path, dtype: str) -> Store | None:
    """The gallery that is there, whose captions and columns `inputs` takes over. Raises `ConfigError`, `DamagedGallery`."""
    old = _opened(folder)
    if old:
        _check_old(old, source, folder, dtype)
        inputs.remember(old.rows)
    return old


def _check_old(old: Store, source: ModelSource, folder: Path, dtype: str) -> None:
    """Raises `ConfigError` for what can't bring this gallery up to date."""
    if dtype not in ("", old.manifest.dtype):
        raise ConfigError(
            f"{folder} stores {old.manifest.dtype}, and must go on so, got {dtype}: embed the photos into a new folder"
        )
    check_same(old.manifest, source, folder)


def _check_shares(parts: Parts, share: Share, folder: Path) -> None:
    """Raises `ConfigError` where other processes' parts are of other photos, or made otherwise."""
    if not share.is_whole and (others := parts.others()):
        raise ConfigError(
            f"{folder} holds parts of another list of photos, of other weights or --store, or by other versions of jclip or "
            f"its packages ({len(others)} files, such as {others[0].name}): all shards must have the same; remove these files "
            "where the others are at fault"
        )


def check_same(manifest: Manifest, source: ModelSource, folder: Path) -> None:
    """Raises `ConfigError` unless the model and its preprocessing are those of the gallery."""
    if manifest.made_by == made_by(source.identity, source.preprocess.to_dict()):
        return
    plain = json.loads(json.dumps([source.identity, source.preprocess.to_dict()]))
    what = "weights" if manifest.identity != plain[0] else "preprocessing"
    raise ConfigError(
        f"{folder} was made with {manifest.model} and must be used with the same {what}, got others "
        f"({source.checkpoint.path}): embed the photos into a new folder"
    )


class DamagedGallery(DataError):
    """What a gallery's folder holds is not what was written."""


def _opened(folder: Path) -> Store | None:
    """The gallery that is there, every file compared with its checksum. Raises `DamagedGallery`."""
    if not is_gallery(folder):
        return None
    try:
        store = open_store(folder)
        verify(store)
    except DataError as e:
        reason = str(e).removesuffix(": embed the photos again").removesuffix(": embed again")
        raise DamagedGallery(f"{reason}: remove {folder} and embed the photos again") from e
    return store


def _unchanged(old: Store) -> Outcome:
    skipped = [(found["path"], found["reason"]) for found in old.skipped()]
    return Outcome(len(old), 0, 0, 0, len(old) - distinct_photos(old), skipped)


def _finish_parts(
    inputs: Inputs,
    source: ModelSource,
    parts: Parts,
    stored: Stored,
    dtype: np.dtype,
    share: Share,
    seen: Seen | None = None,
) -> int:
    """Finishes this process's parts; returns how many photos it encoded."""
    from tqdm import tqdm

    encoded, numbers = 0, share.of_numbers(parts.count)
    total = sum(map(inputs.size, numbers))
    model = functools.cache(lambda: half_models.load_half(source, "vision"))
    with tqdm(total=total, desc="embed", unit="photo", disable=None, leave=False) as shown:
        bar = _Bar(shown, total, seen)
        for number in numbers:
            there = parts.whole(number)
            if there is not None and all(is_unchanged(inputs.root, row) for row in there.rows):
                bar.update(inputs.size(number))
                continue
            part = inputs.part(number)
            bar.total += 0 if inputs.size(number) else len(part.rows)  # a tar's, unknown before
            known = known_of(part, stored, parts.pieces(number))
            encoded += _encode_rest(inputs.root, part, source, model, known, dtype, (parts, number), bar)
            parts.keep_whole(number, sorted_out(part, known, source.config.embed_dim, dtype))
    return encoded


class _Bar:
    """A progress bar, and whoever else wants to know; the bar counts nothing where it isn't shown."""

    def __init__(self, bar: Any, total: int, seen: Seen | None):
        self._bar, self._seen, self.done, self.total = bar, seen, 0, total

    def update(self, photos: int) -> None:
        self.done += photos
        self._bar.total = self.total
        self._bar.update(photos)
        self.look()

    def look(self, more: int = 0) -> None:
        """Says how many are done; `more` are encoded, and not kept yet."""
        if self._seen:
            self._seen(self.done + more, self.total)


def _encode_rest(
    root: str,
    part: Part,
    source: ModelSource,
    model: Callable[[], Any],
    known: PartKnown,
    dtype: np.dtype,
    place: tuple[Parts, int],
    bar: _Bar,
) -> int:
    """Encodes a part's photos of unknown bytes, keeps them every few seconds, and adds them to `known`; how many there are."""
    (parts, number), todo = place, {}
    for row in part.rows:
        if row["sha256"] not in known and known.why_not(row["sha256"]) is None:
            todo.setdefault(row["sha256"], row)
    before = len(part.rows) + len(part.skipped) - len(todo)
    bar.update(before)
    if not todo:
        return 0
    hashes, rows, count, done = list(todo), list(todo.values()), 0, 0
    with _decoding(place, root, rows, source):
        for good, features, failed, end in _saved_up(_features(source, model(), root, rows), len(rows), bar.look):
            features = np.ascontiguousarray(unit(features), dtype)
            piece = Known([hashes[i] for i in good], features, {hashes[i]: why for i, why in failed.items()})
            parts.keep_piece(number, before + end, piece)
            known.add(piece)
            count += len(good)
            bar.update(end - done)
            done = end
    return count


def _decoding(place: tuple[Parts, int], root: str, rows: Sequence[Mapping[str, Any]], source: ModelSource) -> Any:
    """A block that decodes these photos of a part; those that ended the process that did it before do not decode in it."""
    if loader.by_processes(len(rows)):
        return contextlib.nullcontext()
    parts, number = place
    return deadly_photos.decoding(
        parts.mark(number), lambda: [photo_address(root, row) for row in rows], Views(source.preprocess)
    )


def _features(
    source: ModelSource, model: Any, root: str, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str], int]]:
    """Places, features, reasons by place of what failed since the batch before, and the end of what is done."""
    files = [photo_address(root, row) for row in rows]
    messages: list[str] = []
    end = 0
    for at, features in extraction.encoded_batches(model, files, Views(source.preprocess), "skip", messages):
        missing = sorted({*range(end, int(at[-1]) + 1)} - {*at.tolist()})
        failed = dict(zip(missing, map(_reason, messages), strict=False))
        del messages[: len(missing)]  # behind the last batch there may be more
        end = int(at[-1]) + 1
        changed = {int(i): CHANGED for i in at if not is_unchanged(root, rows[i])}
        stay = np.array([int(i) not in changed for i in at])
        yield at[stay], features[stay], {**failed, **changed}, end
    if end < len(files):
        failed = dict(zip(range(end, len(files)), map(_reason, messages), strict=True))
        width = source.config.embed_dim
        yield np.zeros(0, np.int64), np.zeros((0, width), np.float32), failed, len(files)


def _saved_up(
    batches: Iterator, total: int, seen: Callable[[int], None]
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str], int]]:
    """Batches of `SAVE_SECONDS` as one. seen: called with the photos that wait."""
    waiting, begun, last = [], time.monotonic(), 0
    for batch in batches:
        waiting.append(batch)
        seen(batch[3] - last)
        if batch[3] == total or time.monotonic() - begun >= SAVE_SECONDS:
            at, features, failed, ends = zip(*waiting, strict=True)
            yield np.concatenate(at), np.concatenate(features), {k: v for f in failed for k, v in f.items()}, ends[-1]
            waiting, begun, last = [], time.monotonic(), batch[3]


def _reason(message: str) -> str:
    return message.partition(" does not decode: ")[2] or message
