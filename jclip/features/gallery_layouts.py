"""Galleries in clip-retrieval's layout: img_emb/img_emb_0.npy, text_emb/text_emb_0.npy, metadata/metadata_0.parquet, …"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.gallery_inputs import PATH_COLUMNS, shown_path
from jclip.data.gallery_store import (
    DTYPES,
    Manifest,
    Store,
    map_array,
    open_store,
    remove_others,
    write_features,
    write_manifest,
    write_rows,
    write_skipped,
)
from jclip.data.photo_hashes import is_hash, photo_hashes
from jclip.errors import ConfigError, DataError
from jclip.features import query_features
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.functional.nearest import widened
from jclip.paths import replacing
from jclip.readers import parquet as parquet_files

IMAGES, TEXTS, METADATA = "img_emb", "text_emb", "metadata"
ROWS_AT_ONCE = 8192
OWN = ("size", "mtime", "sha256")  # facts of a row that are written beside its path and caption
NEEDS = "clip-retrieval's metadata are Parquet files"


def is_layout(folder: str | os.PathLike) -> bool:
    """Whether a folder holds features as clip-retrieval writes them."""
    return (Path(folder) / IMAGES).is_dir()


def import_layout(layout: Path, source: ModelSource, folder: Path, dtype: str = "fp16", model: str = "") -> Store:
    """Writes the gallery of features that exist; nothing is encoded. The layout does not say which model made them.

    Raises `DataError` for parts that are absent, of different numbers of rows, or of another width than the model's,
    `ConfigError` where `folder` holds other files.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} must be empty or absent: features are imported into a new gallery")
    parts = list(_parts(layout))
    width = source.config.embed_dim
    for features, _, path in parts:
        if features.ndim != 2 or features.shape[1] != width:
            raise DataError(f"{path} must hold rows of {width} numbers, as the model gives, got {features.shape}")
    folder.mkdir(parents=True, exist_ok=True)
    written = [write_features(folder, _units(f, path), DTYPES[dtype], width, len(f)) for f, _, path in parts]
    root, columns = _root(layout, [table for _, table, _ in parts]), {}
    rows = (row for features, table, path in parts for row in _rows(features, table, (layout, root), columns, path))
    table = write_rows(folder, rows)
    manifest = Manifest(
        model or str(source.checkpoint.path), source.identity, source.preprocess.to_dict(), dtype, width, root,
        sum(len(features) for features, *_ in parts), written, {**table, **write_skipped(folder, [])}, list(columns),
        source.family or "",
    )  # fmt: skip
    write_manifest(folder, manifest)
    remove_others(folder, manifest)
    return open_store(folder)


def export_layout(store: Store, folder: Path, source: ModelSource | None = None) -> None:
    """Writes a gallery's features and rows into a new folder, part by part; with `source` captions' features as well.

    Raises `ConfigError` where `folder` holds files, `SetupError` without pyarrow.
    """
    check_export(folder)
    arrow, parquet = parquet_files.arrow(NEEDS)
    start, digits = (
        0,
        len(str(len(store.parts))),
    )  # as clip-retrieval writes them, which reads files by their sorted names
    for count, part in enumerate(store.parts):
        number = f"{count:0{digits}d}"
        rows = [store.rows[row] for row in range(start, start + len(part))]
        start += len(part)
        _write_array(folder / IMAGES / f"{IMAGES}_{number}.npy", part)
        if source is not None:
            _write_array(folder / TEXTS / f"{TEXTS}_{number}.npy", _texts(rows, source).astype(part.dtype))
        _write_table(folder / METADATA / f"{METADATA}_{number}.parquet", rows, store, arrow, parquet)


def check_export(folder: Path) -> None:
    """Raises what `export_layout` would, before the work."""
    parquet_files.arrow(NEEDS)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} must be an empty folder, or absent")


def _parts(layout: Path) -> Iterator[tuple[np.ndarray, Path | None, Path]]:
    """Features, the table of the same number, and where the features are."""
    numbered = {
        int(m[1]): p for p in (layout / IMAGES).iterdir() if (m := re.fullmatch(rf"{IMAGES}_(\d+)\.npy", p.name))
    }
    if not numbered:
        raise DataError(f"{layout / IMAGES} must hold {IMAGES}_0.npy, …, got none")
    for number in sorted(numbered):
        table = layout / METADATA / f"{METADATA}_{number}.parquet"
        if not table.is_file():
            table = layout / METADATA / f"{METADATA}_{numbered[number].stem.rpartition('_')[2]}.parquet"
        if not table.is_file():
            raise DataError(f"{table} must stand beside {numbered[number].name}: it says where the photos are")
        yield map_array(numbered[number]), table, numbered[number]


def _units(features: np.ndarray, path: Path) -> Iterator[np.ndarray]:
    for at in range(0, len(features), ROWS_AT_ONCE):
        block = widened(np.ascontiguousarray(features[at : at + ROWS_AT_ONCE]))
        if not np.isfinite(block).all():
            row = at + int(np.argmin(np.isfinite(block).all(axis=1)))
            raise DataError(f"{path} must hold finite numbers, got others in row {row}")
        yield unit(block)


def _root(layout: Path, tables: list[Path]) -> str:
    """The deepest folder that holds all photos."""
    root = ""
    for table in tables:
        file = _opened(table)
        named = _path_column(file.schema_arrow.names, table)
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=[named]):
            folders = {os.path.dirname(_place(layout, value)) for value in batch.column(0).to_pylist()}  # noqa: PTH120
            root = os.path.commonpath(folders | ({root} if root else set())) if folders else root
    return root or str(layout.absolute())


def _place(layout: Path, named: Any) -> str:
    """The absolute path of a photo; relative ones begin at the layout's folder."""
    return os.path.normpath(os.path.join(layout.absolute(), str(named)))  # noqa: PTH118


def _opened(table: Path) -> Any:
    return parquet_files.open_table(table, NEEDS)


def _path_column(names: list[str], table: Path) -> str:
    named = next((name for name in PATH_COLUMNS if name in names), None)
    if named is None:
        raise DataError(f"{table} must have a column {' or '.join(PATH_COLUMNS[:4])}, got {', '.join(names)[:200]}")
    return named


def _rows(
    features: np.ndarray, table: Path, places: tuple[Path, str], columns: dict[str, None], path: Path
) -> Iterator[dict[str, Any]]:
    """The rows of one part; places: the layout's folder and the root; names of further columns are gathered in `columns`."""
    file, (layout, root) = _opened(table), places
    if (count := file.metadata.num_rows) != len(features):
        raise DataError(f"{table} must have a row for each of {len(features)} in {path.name}, got {count}")
    done = 0
    for batch in file.iter_batches(ROWS_AT_ONCE):
        found = batch.to_pylist()
        named = _path_column(batch.schema.names, table)
        places = [_place(layout, record[named]) for record in found]
        known = [record.get("sha256") for record in found]
        hashes = known if all(isinstance(h, str) and is_hash(h) for h in known) else photo_hashes(places)
        for record, place, digest in zip(found, places, hashes, strict=True):
            own = digest if is_hash(digest) else hashlib.sha256(features[done].tobytes()).hexdigest()
            others = {k: v for k, v in record.items() if k not in (named, "caption", *OWN) and _plain(v)}
            columns.update(dict.fromkeys(others))
            yield {
                "path": os.path.relpath(place, root), "member": None, "size": record.get("size"),
                "mtime": record.get("mtime"), "sha256": own, "caption": record.get("caption") or None, "columns": others,
            }  # fmt: skip
            done += 1


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and value == value and value != ""


def _texts(rows: list[Mapping[str, Any]], source: ModelSource) -> np.ndarray:
    captions = [row["caption"] or "" for row in rows]
    distinct = list(dict.fromkeys(captions))
    features = query_features.text_features(source, distinct, truncate=True)
    places = {caption: place for place, caption in enumerate(distinct)}
    return np.asarray(features)[[places[caption] for caption in captions]]


def _write_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def _write_table(path: Path, rows: list[Mapping[str, Any]], store: Store, arrow: Any, parquet: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    root = store.manifest.root
    table = {
        "image_path": [os.path.join(root, shown_path(row)) for row in rows],  # noqa: PTH118
        "caption": [row["caption"] or "" for row in rows],
        **{name: [row[name] for row in rows] for name in OWN},
    }
    for name in store.manifest.columns:
        values = [row["columns"].get(name) for row in rows]
        mixed = len({type(v) for v in values if v is not None}) > 1
        table.setdefault(name, [None if v is None else str(v) for v in values] if mixed else values)
    with replacing(path) as temporary:
        parquet.write_table(arrow.table(table), temporary)
