"""Makes a gallery of photos, and brings it up to date: each photo's bytes go through the model once, kills included."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.augment import Views
from jclip.data.gallery_inputs import Inputs, is_unchanged, photo_address, shown_path
from jclip.data.gallery_store import (
    DTYPES,
    PART_ROWS,
    Manifest,
    Store,
    is_gallery,
    made_by,
    open_store,
    remove_others,
    verify,
    write_features,
    write_manifest,
    write_rows,
    write_skipped,
)
from jclip.errors import CheckpointError, ConfigError, DataError, notice
from jclip.features import extraction, half_models
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.functional.nearest import take
from jclip.readers import safetensors

DEFAULT_DTYPE = "fp16"
SAVE_SECONDS = 5.0  # a kill loses at most the batches of so long
COPIED = 8192  # rows at once
CHANGED = "changed while it was read: embed it again with --update"
INSTALL = "pip install"  # a reason that may be gone by the next time


@dataclass(frozen=True)
class Outcome:
    """What was done: rows now, photos encoded now, rows dropped and added, rows with the bytes of another, photos left out."""

    rows: int
    encoded: int
    added: int
    dropped: int
    duplicates: int
    skipped: list[tuple[str, str]]
    seconds: float = 0.0  # of encoding


@dataclass
class _Known:
    """Features by their photos' SHA-256: where each stands in `parts`, one after the other, and what does not decode."""

    parts: list[np.ndarray] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def add(self, hashes: Sequence[str], features: np.ndarray) -> None:
        for place, digest in enumerate(hashes, start=self.count):
            self.places.setdefault(digest, place)
        self.parts.append(features)
        self.count += len(features)


def embed(
    inputs: Inputs, source: ModelSource, folder: Path, dtype: str = "", update: bool = False, model: str = ""
) -> Outcome:
    """Writes the gallery of `inputs` into `folder`, or with `update` brings the one there up to date.

    Photos of known bytes are not encoded again; what a killed run had encoded is taken over. dtype: of the stored
    features, by default those of the gallery that is there, else fp16. model: the name or path to load it by again.
    Raises `ConfigError` for a gallery of another model, preprocessing or dtype, or of other photos without `update`,
    `DataError` where no photo decodes.
    """
    with _alone(folder):
        old = _opened(folder)
        if old:
            if dtype not in ("", old.manifest.dtype):
                raise ConfigError(
                    f"{folder} stores {old.manifest.dtype}, and must go on so, got {dtype}: embed the photos into a new folder"
                )
            check_same(old.manifest, source, folder)
            _take_over(inputs, old)
            if _same_rows(old, inputs):
                remove_others(folder, old.manifest)
                return _outcome(old, list(old.rows), _skipped_of(old), 0, 0.0)
            if not update:
                raise _of_others(old, inputs, folder)
        dtype = old.manifest.dtype if old else dtype or DEFAULT_DTYPE
        key = hashlib.sha256(f"{made_by(source.identity, source.preprocess.to_dict())} {dtype}".encode()).hexdigest()
        known = _known(folder, key[:16], old)
        before, begun = len(known.places), time.monotonic()
        _encode_rest(inputs, source, known, folder / f"unfinished-{key[:16]}", DTYPES[dtype])
        seconds = time.monotonic() - begun
        kept, skipped = _sorted_out(inputs, known)
        if not kept:
            raise DataError(f"no photo decodes of {len(skipped)} (first: {skipped[0]['path']}: {skipped[0]['reason']})")
        manifest = _write(folder, inputs, kept, skipped, known, source, dtype, model)
        remove_others(folder, manifest)
    left_out = [(found["path"], found["reason"]) for found in skipped]
    return _outcome(old, kept, left_out, len(known.places) - before, seconds)


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


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """In the block no other process writes the gallery, whose folder is made; of a block that fails no empty one stays.

    Raises `ConfigError` where another process does.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"another process is writing {folder}: wait for its end") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
        raise
    finally:
        os.close(descriptor)


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


def _take_over(inputs: Inputs, old: Store) -> None:
    """Captions and columns of photos that had some and are given none now: they were joined from a table once."""
    bare = {shown_path(row): row for row in inputs.rows if not (row["caption"] or row["columns"])}
    for before in old.rows:
        row = bare.get(shown_path(before))
        if row is not None:
            row["caption"], row["columns"] = before["caption"], before["columns"]
    inputs.columns.extend(name for name in old.manifest.columns if name not in inputs.columns)


def _facts(row: Mapping[str, Any]) -> str:
    return json.dumps([shown_path(row), row["sha256"]])


def _same_rows(old: Store, inputs: Inputs) -> bool:
    """Whether the gallery has just the rows that it would get now."""
    now = _readable(old, inputs)
    absent = sorted(found["path"] for found in old.skipped() if not found.get("sha256"))
    return (
        old.manifest.root == inputs.root
        and len(now) == len(old)
        and absent == sorted(path for path, _ in inputs.skipped)
        and all(before == row for before, row in zip(old.rows, now, strict=True))
    )


def _readable(old: Store, inputs: Inputs) -> list[dict[str, Any]]:
    """Without the bytes that did not decode before."""
    lost = {found.get("sha256") for found in old.skipped()} - {None}
    return [row for row in inputs.rows if row["sha256"] not in lost]


def _of_others(old: Store, inputs: Inputs, folder: Path) -> ConfigError:
    there, now = {_facts(row) for row in old.rows}, {_facts(row) for row in _readable(old, inputs)}
    return ConfigError(
        f"{folder} holds a gallery of other photos ({len(now - there)} to add, {len(there - now)} to drop): "
        "add --update to bring it up to date"
    )


def _skipped_of(old: Store) -> list[tuple[str, str]]:
    return [(found["path"], found["reason"]) for found in old.skipped()]


def _outcome(old: Store | None, kept: list, skipped: list[tuple[str, str]], encoded: int, seconds: float) -> Outcome:
    before = {_facts(row) for row in old.rows} if old else set()
    now = {_facts(row) for row in kept}
    distinct = len({row["sha256"] for row in kept})
    return Outcome(len(kept), encoded, len(now - before), len(before - now), len(kept) - distinct, skipped, seconds)


def _known(folder: Path, key: str, old: Store | None) -> _Known:
    """What the gallery and unfinished runs of the same key hold; damaged files of such runs are removed."""
    known = _Known()
    if old:
        hashes, start = list(old.rows.column("sha256")), 0
        for part in old.parts:
            known.add(hashes[start : start + len(part)], part)
            start += len(part)
        lost = [found for found in old.skipped() if found.get("sha256") and INSTALL not in found["reason"]]
        known.failed.update({found["sha256"]: found["reason"] for found in lost if CHANGED not in found["reason"]})
    for file in sorted(folder.glob(f"unfinished-{key}-*.safetensors")):
        try:
            saved = {name: tensor.read() for name, tensor in safetensors.read_sealed(file).items()}
            failed = json.loads(bytes(saved["failed"]).decode())
            known.add([digest.tobytes().hex() for digest in saved["hashes"]], saved["features"])
        except (CheckpointError, KeyError, ValueError) as e:
            notice(f"{e}; its photos are encoded again")
            file.unlink()
            continue
        known.failed.update(failed)
    return known


def _encode_rest(inputs: Inputs, source: ModelSource, known: _Known, stem: Path, dtype: np.dtype) -> None:
    """Encodes the photos of unknown bytes, saves them every few seconds, and adds them to `known`."""
    todo = {}
    for row in inputs.rows:
        if row["sha256"] not in known.places and row["sha256"] not in known.failed:
            todo.setdefault(row["sha256"], row)
    if not todo:
        return
    from tqdm import tqdm

    hashes, rows = list(todo), list(todo.values())
    number = 1 + max(
        (int(p.stem.rpartition("-")[2]) for p in stem.parent.glob(f"{stem.name}-*.safetensors")), default=0
    )
    with tqdm(total=len(rows), desc="embed", unit="photo", disable=None, leave=False) as bar:
        for good, features, failed, end in _saved_up(_features(source, inputs.root, rows), len(rows)):
            bar.update(end - bar.n)
            features = np.ascontiguousarray(unit(features), dtype)
            own, lost = [hashes[i] for i in good], {hashes[i]: why for i, why in failed.items()}
            _save(Path(f"{stem}-{number:06d}.safetensors"), own, features, lost)
            known.add(own, features)
            known.failed.update(lost)
            number += 1


def _features(
    source: ModelSource, root: str, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str], int]]:
    """Places, features, reasons by place of what failed since the batch before, and the end of what is done."""
    files = [photo_address(root, row) for row in rows]
    messages: list[str] = []
    model, end = half_models.load_half(source, "vision"), 0
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


def _saved_up(batches: Iterator, total: int) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str], int]]:
    """Batches of `SAVE_SECONDS` as one."""
    waiting, begun = [], time.monotonic()
    for batch in batches:
        waiting.append(batch)
        if batch[3] == total or time.monotonic() - begun >= SAVE_SECONDS:
            at, features, failed, ends = zip(*waiting, strict=True)
            yield np.concatenate(at), np.concatenate(features), {k: v for f in failed for k, v in f.items()}, ends[-1]
            waiting, begun = [], time.monotonic()


def _reason(message: str) -> str:
    return message.partition(" does not decode: ")[2] or message


def _save(file: Path, hashes: Sequence[str], features: np.ndarray, failed: Mapping[str, str]) -> None:
    arrays = {
        "hashes": np.array([list(bytes.fromhex(digest)) for digest in hashes], np.uint8).reshape(-1, 32),
        "features": features,
        "failed": np.frombuffer(json.dumps(failed).encode(), np.uint8),
    }
    safetensors.write(file, arrays)


def _sorted_out(inputs: Inputs, known: _Known) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Rows that have features, and what is left out with its reason."""
    kept = [row for row in inputs.rows if row["sha256"] in known.places]
    lost = [row for row in inputs.rows if row["sha256"] not in known.places]
    skipped = [{"path": path, "reason": reason} for path, reason in inputs.skipped]
    reasons = ((shown_path(row), row["sha256"]) for row in lost)
    return kept, [*skipped, *({"path": p, "reason": known.failed[h], "sha256": h} for p, h in reasons)]


def _write(
    folder: Path, inputs: Inputs, kept: list, skipped: list, known: _Known, source: ModelSource, dtype: str, model: str
) -> Manifest:
    ids = np.array([known.places[row["sha256"]] for row in kept], np.int64)
    width = source.config.embed_dim
    parts = []
    for at in range(0, len(ids), PART_ROWS):
        some = ids[at : at + PART_ROWS]
        blocks = (take(known.parts, some[i : i + COPIED]) for i in range(0, len(some), COPIED))
        parts.append(write_features(folder, blocks, DTYPES[dtype], width, len(some)))
    table = {**write_rows(folder, kept), **write_skipped(folder, skipped)}
    manifest = Manifest(
        model or str(source.checkpoint.path), source.identity, source.preprocess.to_dict(), dtype, width, inputs.root,
        len(kept), parts, table, list(inputs.columns), source.family or "",
    )  # fmt: skip
    write_manifest(folder, manifest)
    return manifest
