"""Read and write Jittor's `.pkl`, a pickle of arrays followed by a checksum, without Jittor.

Files made from torch tensors (the challenge's `ViT-B-32.pkl`: `jt.save(torch_state_dict, path)`) hold each storage as
bytes in torch's old format inside the pickle; those are read too.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping

import numpy as np

from jclip.errors import CheckpointError
from jclip.paths import replacing
from jclip.readers.held_file import CHUNK, HeldFile, InMemory, Part, Source
from jclip.readers.pickle_machine import Budget, run_pickle
from jclip.readers.pickle_stream import Stream
from jclip.readers.recorders import Storage, Weights, weight_file
from jclip.readers.tensors import WeightFile, itemsize

_TRAILER = b"HCAJSLHD"


def read(file: HeldFile) -> WeightFile:
    """Return every array of the pickled tree under its dotted name. Raises `CheckpointError` when the checksum is
    wrong."""
    body: Source = file
    end = file.read(max(0, file.size - 28), min(28, file.size)).tobytes()
    if has_trailer(end):
        body = Part(file, 0, file.size - 28)
        if _sha1(body) != end[:20]:
            raise CheckpointError(f"{file.path} is damaged: its checksum does not match, fetch or copy it again")
    place, budget = str(file.path), Budget()
    meaning = Weights(place, nested=lambda data: _old_torch_storage(data, place, budget))
    tree = run_pickle(Stream(body), place, meaning, budget)
    return weight_file(tree, "jittor", place, file.size)


def has_trailer(end: bytes) -> bool:
    """Return whether these last bytes of a file are Jittor's trailer, which follows a checksum."""
    return len(end) == 28 and end.endswith(_TRAILER)


def _sha1(data: Source) -> bytes:
    sha = hashlib.sha1()
    for at in range(0, data.size, CHUNK):
        sha.update(data.read(at, min(CHUNK, data.size - at)))
    return sha.digest()


def _old_torch_storage(data: Source, place: str, budget: Budget) -> Storage:
    """Return the storage in `torch.save(storage, _use_new_zipfile_serialization=False)`: four pickles, keys, raw
    values."""
    stream = Stream(data)
    claims: list[tuple[str, str, int]] = []

    def storage(claim: tuple[str, str, int]) -> Storage:
        claims.append(claim)
        return Storage(InMemory(b""), claim[1], 0)

    for _ in range(5):  # magic number, protocol, system, the storage itself, keys
        run_pickle(stream, place, Weights(place, storage), budget)
    if len(claims) != 1 or stream.left < 8:
        raise CheckpointError(f"{place} holds a nested file that is not one storage")
    _, dtype, _ = claims[0]
    count = int.from_bytes(stream.take(8), "little")
    if count * itemsize(dtype) > stream.left:
        raise CheckpointError(f"{place} is truncated inside a storage of {count} {dtype}")
    return Storage(stream.part(count * itemsize(dtype)), dtype, count)


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file that `jt.load` of any Jittor reads: a dict of NumPy arrays, protocol 4, SHA-1, trailer."""
    body = pickle.dumps({k: np.array(v, order="C") for k, v in arrays.items()}, 4)
    with replacing(path) as temporary, open(temporary, "wb") as f:
        f.write(body)
        f.write(hashlib.sha1(body).digest())
        f.write(_TRAILER)
