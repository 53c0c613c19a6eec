"""Read zip checkpoints of torch >= 1.6 and TorchScript archives.

Tensors are read on demand; the checksum of a tensor's storage is verified at its first read.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from jclip.errors import CheckpointError
from jclip.readers.held_file import HeldFile, shown
from jclip.readers.pickle_machine import Table, run_pickle
from jclip.readers.pickle_stream import Stream
from jclip.readers.recorders import Storage, Weights, weight_file
from jclip.readers.tensors import WeightFile, itemsize
from jclip.readers.zip_archive import Archive, Checked, Entry


def read(file: HeldFile) -> WeightFile:
    """Return every tensor of the pickled tree under its dotted name. `kind` is "torchscript" or "torch"."""
    archive, place = Archive(file), str(file.path)
    tree = run_pickle(Stream(pickled(archive)), place, Weights(place, storages(archive)))
    root = _root(archive.entries, place)
    script = f"{root}constants.pkl" in archive.entries or any(n.startswith(f"{root}code/") for n in archive.entries)
    return weight_file(tree, "torchscript" if script else "torch", place, file.size)


def saved_values(path: str | os.PathLike) -> dict[str, str | int | float | bool]:
    """Return the texts and numbers that a checkpoint has beside its tensors, by name: `epoch`, `args.lr`. Only those at the
    top or one level below; objects there count by their attributes, and none is made."""
    archive, place = Archive(HeldFile(path)), str(path)
    tree = run_pickle(Stream(pickled(archive)), place, Weights(place, storages(archive)))
    found: dict[str, str | int | float | bool] = {}
    for name, value in tree.items() if isinstance(tree, Table) else ():
        below = {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, Table) else {name: value}
        found |= {key: v for key, v in below.items() if type(v) in (str, int, float, bool)}
    return found


def pickled(archive: Archive) -> Entry:
    """Return the entry that holds the pickle, its checksum verified. Raises `CheckpointError` for big-endian data."""
    place = str(archive.file.path)
    root = _root(archive.entries, place)
    order = archive.entries.get(f"{root}byteorder")
    if order and (order.size > 16 or order.read().tobytes().strip() != b"little"):
        raise CheckpointError(f"{place} must hold little-endian data: save it again on a little-endian machine")
    found = archive.entries[f"{root}data.pkl"]
    found.check()
    return found


def storages(archive: Archive) -> Callable[[tuple[str, str, int]], Storage]:
    """Return what finds the storage of a key, dtype and number of values. It raises `CheckpointError`."""
    place, entries = str(archive.file.path), archive.entries
    root = _root(entries, place)

    def storage(claim: tuple[str, str, int]) -> Storage:
        key, dtype, count = claim
        entry = entries.get(f"{root}data/{key}")
        if entry is None:
            raise CheckpointError(f"{place} lacks the storage '{shown(key)}'")
        if count * itemsize(dtype) > entry.size:
            raise CheckpointError(
                f"{place} is damaged: storage {shown(key)} holds {entry.size} bytes, {count} {dtype} are claimed"
            )
        return Storage(Checked(entry), dtype, count)

    return storage


def _root(names: dict, place: str) -> str:
    roots = [n.removesuffix("data.pkl") for n in names if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(roots) != 1:
        raise CheckpointError(f"{place} is a zip, but not one that torch wrote (no data.pkl inside)")
    return roots[0]
