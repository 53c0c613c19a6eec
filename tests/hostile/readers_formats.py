"""Sound weight files and features to make mutants of: small, of every way that a reader goes, made without torch."""

from __future__ import annotations

import argparse
import collections
import datetime
import hashlib
import io
import json
import pathlib
import pickle
import pickletools
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jclip.features.precomputed import read_precomputed
from jclip.readers import read_weights, safetensors, torch_writer
from jclip.readers.tensors import LazyTensor
from tests.hostile.fuzz import Format

ARRAYS = {
    "visual.conv1.weight": np.arange(12, dtype=np.float32).reshape(3, 2, 2),
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "ids": np.arange(5, dtype=np.int64),
}
TRAILER = b"HCAJSLHD"


def text(value: str) -> bytes:
    """A short text in the opcodes of pickle."""
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def number(value: int) -> bytes:
    """An integer in the opcodes of pickle."""
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def numbers(*values: int) -> bytes:
    """A tuple of integers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str, count: int, kind: str = "torch\nFloatStorage") -> bytes:
    """A storage of torch by its persistent identity."""
    return b"(" + text("storage") + b"c" + kind.encode() + b"\n" + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(stored: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """A tensor that shows a part of a storage."""
    given = stored + number(offset) + numbers(*shape) + numbers(*strides) + b"\x89}"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + given + b"tR"


def nested(values: np.ndarray, claimed: int | None = None) -> bytes:
    """A storage as Jittor's pickle of a torch tensor has it: a whole file of torch's old format as bytes."""
    opening = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    held = b"\x80\x02" + storage("7", values.size) + b"." + pickle.dumps(["7"], 2)
    inner = opening + held + struct.pack("<Q", values.size if claimed is None else claimed) + values.tobytes()
    return b"ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(inner)) + inner + b"\x85R"


def table(**items: bytes) -> bytes:
    """A whole pickle of a dict."""
    return b"\x80\x02}(" + b"".join(text(k) + v for k, v in items.items()) + b"u."


def checked(body: bytes) -> bytes:
    """A pickle with Jittor's checksum after it."""
    return body + hashlib.sha1(body).digest() + TRAILER


def zipped(pickled: bytes, stored: Mapping[str, bytes], method: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    """A checkpoint as torch writes it: the pickle, its storages, and what else is named."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in {**{f"data/{k}": v for k, v in stored.items()}, **more, "version": b"3\n"}.items():
            archive.writestr(f"archive/{name}", data)
    return out.getvalue()


def _pickles() -> list[bytes]:
    plain = [pickle.dumps(ARRAYS, protocol) for protocol in range(2, 6)]
    beside = {
        "state_dict": {"w": np.asfortranarray(ARRAYS["half"]), "big": ARRAYS["ids"].astype(">i8"), "flags": np.ones(2, bool)},
        "args": argparse.Namespace(lr=0.1, where=pathlib.PurePosixPath("a/b")),
        "at": datetime.datetime(2026, 1, 2), "seen": {1, 2}, "best": np.float32(3), "names": np.array(["ox", "cat"]),
        "more": collections.defaultdict(list, a=[1]), "big number": 1 << 90, "nothing": None, "text": "中文" * 3,
    }  # fmt: skip
    values = np.arange(6, dtype=np.float32)
    torch = table(w=tensor(nested(values), 1, (2, 2), (1, 2)), v=tensor(nested(values), 0, (), ()))
    older = [pickle.dumps(ARRAYS, protocol) for protocol in (0, 1)]
    return [*plain, pickle.dumps(beside, 2), pickle.dumps(beside, 4), torch, checked(torch), checked(plain[2]), *older]


def _torch() -> list[bytes]:
    values, bits = np.arange(12, dtype=np.float32).tobytes(), bytes(range(16))
    state = table(
        a=tensor(storage("0", 12), 0, (3, 4), (4, 1)), b=tensor(storage("0", 12), 1, (2, 3), (1, 4)),
        c=tensor(storage("1", 8, "torch\nBFloat16Storage"), 0, (8,), (1,)),
        d=tensor(storage("1", 8, "torch\nHalfStorage"), 0, (), ()),
        e=tensor(storage("0", 12), 0, (0, 3), (3, 1)),
    )  # fmt: skip
    script = b"\x80\x02c__torch__\nNet\n)\x81}(" + text("w") + tensor(storage("0", 12), 0, (12,), (1,)) + b"ub."
    made = [
        zipped(state, {"0": values, "1": bits}, byteorder=b"little"),
        zipped(state, {"0": values, "1": bits}, zipfile.ZIP_DEFLATED),
        zipped(script, {"0": values}, **{"constants.pkl": b"\x80\x02)."}),
    ]
    with tempfile.TemporaryDirectory() as folder:
        tensors = {k: LazyTensor(a.shape, str(a.dtype), lambda a=a: a) for k, a in ARRAYS.items()}
        torch_writer.write(Path(folder, "x.pt"), tensors, {k: t.dtype for k, t in tensors.items()})
        return [*made, Path(folder, "x.pt").read_bytes()]


def _safetensors() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        safetensors.write(path, ARRAYS, {"format": "jclip", "中文": "是"})
        sealed = path.read_bytes()
        safetensors.write(path, {"bits": (np.arange(4, dtype=np.uint16), "bfloat16"), "flags": np.array([True, False])})
        other = path.read_bytes()
    head = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return [sealed, other, len(head).to_bytes(8, "little") + head + bytes(8)]


def _features(folder: Path, save: Callable) -> bytes:
    rng = np.random.default_rng(0)
    rows = {"train_features_2": 4, "val_features": 2, "test_features": 3}
    arrays = {k: rng.standard_normal((n, 5), np.float32) for k, n in rows.items()}
    arrays |= {k.replace("features", "labels"): np.arange(n) % 2 for k, n in rows.items()}
    arrays |= {"text_features": np.asfortranarray(rng.standard_normal((2, 5))), "classnames": np.array(["ox", "cat"])}
    save(folder / "x.npz", **arrays, logit_scale=np.float16(90))
    return (folder / "x.npz").read_bytes()


def _npz() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return [_features(Path(folder), save) for save in (np.savez, np.savez_compressed)]


def _read_all(path: Path) -> dict[str, np.ndarray]:
    return {k: np.asarray(t.read()) for k, t in read_weights(path).items()}


def _read_features(path: Path) -> dict[str, np.ndarray]:
    found = read_precomputed(str(path), 2)
    parts = {
        k: getattr(found, k) for k in ("train", "train_labels", "val", "val_labels", "test", "test_labels", "text")
    }
    return {k: v for k, v in parts.items() if v is not None} | {
        "names": np.array(found.classnames, dtype=np.str_),
        "scale": np.array(found.scale),
    }


def rezipped(rng: random.Random, data: bytes, mutate: Callable[[bytes], bytes]) -> bytes:
    """One entry mutated, sizes and checksums right."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    place = next((name for name in entries if name.endswith("/data.pkl")), "")
    pickled = bool(place) and rng.random() < 0.8
    chosen = place if pickled else rng.choice(sorted(entries))
    changed = _other_opcodes(rng, entries[chosen]) if pickled and rng.random() < 0.6 else mutate(entries[chosen])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as new:
        for name, content in entries.items():
            new.writestr(name, changed if name == chosen else content)
    return out.getvalue()


def _rechecked(rng: random.Random, data: bytes, mutate: Callable[[bytes], bytes]) -> bytes:
    """The pickle mutated, Jittor's checksum right."""
    body = data.removesuffix(data[-28:]) if data.endswith(TRAILER) else data
    return checked(_other_opcodes(rng, body) if rng.random() < 0.7 else mutate(body))


def _other_opcodes(rng: random.Random, data: bytes) -> bytes:
    """Whole instructions left out, doubled, moved, replaced: most of such pickles are well-formed."""
    starts = [place for _, _, place in pickletools.genops(data)]
    parts = [data[i:j] for i, j in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(parts) - 1)
        kind = rng.random()
        if kind < 0.15:
            parts[at] = b""
        elif kind < 0.3:
            parts.insert(at, parts[rng.randrange(len(parts) - 1)])
        elif kind < 0.65:
            parts[at] = rng.choice(WHOLE)
        else:
            parts.insert(at, rng.choice([*GLOBALS, *OPCODES, *VALUES]))
    return b"".join(parts)


def _rejson(rng: random.Random, data: bytes, mutate: Callable[[bytes], bytes]) -> bytes:
    """The header mutated, its length right."""
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    header = other_values(rng, header) if rng.random() < 0.6 else mutate(header)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def other_values(rng: random.Random, header: bytes) -> bytes:
    """A JSON text with one key or value replaced by another."""
    values = json.loads(header)
    node = values
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = rng.choice(keys)
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.3:
            break
        node = node[key]
    if isinstance(node, dict) and rng.random() < 0.2:
        node["\0"] = node.pop(key)
    else:
        node[key] = "\0"
    return json.dumps(values, ensure_ascii=False).encode().replace(b'"\\u0000"', rng.choice([*JSON, *JSON_VALUES]))


GLOBALS = [
    b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.numeric\n_frombuffer\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch.storage\n_load_from_bytes\n", b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n", b"c_codecs\nencode\n", b"cposix\nsystem\n", b"cbuiltins\ngetattr\n", b"c__torch__\nX\n",
    b"ccopyreg\n_reconstructor\n", b"cjittor_core\nVar\n", b"ctorch\nSize\n", b"cmy.own\nColour\n",
]  # fmt: skip
OPCODES = [
    bytes([c]) for c in b"(.012FIJKLMNPQRSTUVXabcdeghijlopqrstu]})\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e"
]
OPCODES += [bytes([c]) for c in range(0x8F, 0x99)]
NUMPY_DTYPE = b"cnumpy\ndtype\n("
LYING = (  # a record of 8 bytes whose field lies after it
    NUMPY_DTYPE
    + text("V8")
    + b"\x89\x88tR(K\x03"
    + text("|")
    + b"N("
    + text("a")
    + b"t}"
    + text("a")
    + b"("
    + NUMPY_DTYPE
    + text("u8")
    + b"\x89\x88tR"
    + number(4096)
    + b"tsK\x08K\x01K\x00tb"
)
WHOLE = [  # values that reach where nothing of theirs is
    b"cnumpy\nndarray\n((K\x01t" + LYING + b"B\x08\x00\x00\x00AAAAAAAAtR",
    b"cnumpy\nndarray\n((K\x01t" + NUMPY_DTYPE + text("O") + b"\x89\x88tRB\x08\x00\x00\x00AAAAAAAAtR",
    b"cnumpy\nndarray\n(" + numbers(1 << 20) + text("f4") + b"B\x08\x00\x00\x00AAAAAAAAK\x00(K\x00ttR",
    b"cnumpy\nndarray\n(" + numbers(2) + text("f4") + b"B\x08\x00\x00\x00AAAAAAAAK\x04(J\xfc\xff\xff\xffttR",
    tensor(b"cnumpy\nndarray\n(" + numbers(1 << 40) + text("f4") + b"NK\x00(K\x00ttR", 0, (9,), (1,)),
    tensor(storage("0", 12), 0, (1 << 20, 1 << 14), (0, 0)), tensor(storage("0", 12), 1 << 40, (1,), (1,)),
    tensor(storage("0", 12), 0, (3, 4), (-4, 1)), tensor(storage("0", 12), -3, (3,), (1,)), b"}" + b"2" * 30 + b"\x86" * 30,
    b"cmy.own\nColour\n" + text("red") + b"\x85R", b"cbuiltins\nexec\n" + text("1") + b"\x85R",
]  # fmt: skip
VALUES = [
    number(0), number(-1), number(1 << 47), number(1 << 62), text("f4"), text("O8"), text("V8"), text("U3"), text(">"),
    text("|"), numbers(), numbers(1 << 40, 1 << 40), numbers(-4), numbers(0), b"\x8b\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8,
    b"\x85R", b"\x86R", b"\x87R", b"tR", b"b",
    b"\x94h\x00", b"2\x86", b"2\x87" * 40, b"j\xff\xff\xff\xff", b"r\xff\xff\xff\x7f",
    b"I" + b"9" * 5000 + b"\n",
    b"\x95" + b"\xff" * 8, storage("0", 12), storage("0", 1 << 40), numbers(4, 4) + numbers(0, 0),
]  # fmt: skip
JSON = [
    b'"__metadata__":', b'{"a":1}', b"[1]", b"null", b"-1", b"9223372036854775808", b"18446744073709551615", b"1e308", b"NaN",
    b"true",
    b"9" * 4000, b"[" * 500, b'"\\ud800"', b'"\\u0000"', b'"a\\nb\\u001b[31m"', b'"F32"', b'"BF16"', b'"F8_E4M3"', b'"dtype":',
    b'"shape":',
    b'"data_offsets":', b"[]", b"[0,0]", b"[0,8]", b"[2]", b"{", b"}", b",", b'"', b'"half":', b"1.5",
    b"[281474976710656,0]",
]  # fmt: skip
ZIP = [
    b"PK\x01\x02",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x06\x07",
    b"archive/data.pkl",
    b"archive/data/0",
    b"\x08\x00",
]
NPY = [
    b"'descr': '|O'", b"'descr': '<f8'", b"'descr': '<U9'", b"'descr': '>f4'", b"'descr': [('a','<f4')]",
    b"'fortran_order': True", b"'shape': (9999999999,)",
    b"'shape': (-1,)", b"'shape': ()", b"'shape': (0, 99999999999999999999)",
    b"(" * 300,
    b"9" * 5000,
    b"\x93NUMPY\x02\x00", b"\x93NUMPY\x01\x00v\x00", b"<f4", b"<i8", b"|b1", b"<U3", b"}", b"{",
]  # fmt: skip

JSON_VALUES = [
    b"{}", b"[{}]", b"[null,2]", b'"ab"', b"[9223372036854775808,0]", b"[2,2]", b"[1,1,1,1,1,1,1,1]", b"[1.0]", b"[true]",
    b"[-8,0]",
    b"[" + b",".join([b"1"] * 70) + b"]", b'"' + b"x" * 5000 + b'"', b'"\xff"', b'"F4"', b'"C64"', b"[0,1099511627776]",
]  # fmt: skip

PICKLE = Format("x.pkl", _pickles, _read_all, [*GLOBALS, *OPCODES, *VALUES, *WHOLE], _rechecked)
TORCH = Format("x.pt", _torch, _read_all, [*GLOBALS, *OPCODES, *VALUES, *WHOLE, *ZIP], rezipped)
SAFETENSORS = Format("x.safetensors", _safetensors, _read_all, JSON, _rejson)
NPZ = Format("x.npz", _npz, _read_features, [*NPY, *ZIP], rezipped)
