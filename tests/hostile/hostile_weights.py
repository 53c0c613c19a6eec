"""Hostile weight files and features, made here: name → (bytes, what the refusal says). None runs anything by itself."""

# ruff: noqa: E501 - a case is a line

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable

import numpy as np

from tests.hostile.readers_formats import (
    LYING,
    NPZ,
    NUMPY_DTYPE,
    TORCH,
    WHOLE,
    checked,
    nested,
    number,
    numbers,
    storage,
    table,
    tensor,
    text,
    zipped,
)  # fmt: skip

MANY = 1 << 20
REFUSED_CALL = "refused, nothing was run"


def _pickles() -> dict[str, tuple[bytes, str]]:
    call = b"cnumpy\nndarray\n"
    write = (
        b"\x80\x05}" + text("w") + call + b"((K\x01t" + LYING + b"\x96" + struct.pack("<Q", 64) + bytes(64) + b"K\x00tR"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + numbers(0) + text("b") + b"tR(K\x01"
    f4 = NUMPY_DTYPE + text("f4") + b"\x89\x88tR"
    values = nested(np.arange(4, dtype=np.float32))
    return {
        "a record whose field lies behind it": (table(w=WHOLE[0]), REFUSED_CALL),
        "an object out of eight bytes": (table(w=WHOLE[1]), REFUSED_CALL),
        "more values than bytes": (table(w=WHOLE[2]), REFUSED_CALL),
        "a negative stride": (table(w=WHOLE[3]), REFUSED_CALL),
        "a storage of zero strides": (table(w=WHOLE[4]), REFUSED_CALL),
        "a write behind a buffer": (write + text("a") + number(0x4242424242424242) + b"ss.", REFUSED_CALL),
        "a record in an array's state": (table(w=array + numbers(1) + LYING + b"\x89B\x08\0\0\0AAAAAAAAtb"), "array of objects"),
        "an array larger than its bytes": (table(w=array + numbers(MANY) + f4 + b"\x89B\x08\0\0\0AAAAAAAAtb"), "takes 4194304 bytes"),
        "an array of negative size": (table(w=array + numbers(-2) + f4 + b"\x89B\x08\0\0\0AAAAAAAAtb"), "integers in [0, 2^48)"),
        "an array of 2^48 times nothing": (table(w=array + numbers(1 << 48, 0) + f4 + b"\x89C\0tb"), "integers in [0, 2^48)"),
        "a buffer that is a number": (table(w=array + numbers(2) + f4 + b"\x89K\x08tb"), "takes 8 bytes"),
        "items into an array": (table(w=array + numbers(0) + f4 + b"\x89C\0tbK\x00K\x01s"), "not a dict"),
        "a state for a name": (table(w=b"cnumpy\nndarray\n}b"), "a state to what has none"),
        "a tensor behind its storage": (table(w=tensor(values, 2, (3,), (1,))), "reaches to element 4"),
        "a tensor of negative stride": (table(w=tensor(values, 3, (3,), (-1,))), "integers in [0, 2^48)"),
        "a tensor that repeats four values": (table(w=tensor(values, 0, (1 << 20, 1 << 14), (0, 0))), "in a storage of 16"),
        "a nested storage that is cut": (table(w=tensor(nested(np.zeros(4, np.float32), 1 << 61), 0, (1,), (1,))), "truncated inside a storage"),
        "a name with escape codes": (b"\x80\x04" + text("\x1b]0;owned\x07\x1bc") + text("x\ny\nz") + b"\x93)R.", REFUSED_CALL),
        "a name of ten megabytes": (b"\x80\x04X" + struct.pack("<I", 10 * MANY) + b"a" * 10 * MANY + b"\x8c\x01x\x93)R.", "not a short text"),
        "a tensor's name with a line break": (table(**{"a\nTraceback": tensor(values, 0, (), ())}), "must be printable"),
        "a tensor's name of ten megabytes": (table(**{"a" * 10 * MANY: tensor(values, 0, (), ())}), "at most 1000"),
        "bytes without end": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f", "bytes are needed, "),
        "text without end": (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f", "bytes are needed, "),
        "four gigabytes": (b"\x80\x02B\xff\xff\xff\xff.", "bytes are needed, "),
        "a bytearray without end": (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", "bytes are needed, "),
        "a number of two gigabytes": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "an integer of"),
        "a frame without end": (b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.", "a frame that is longer"),
        "a memo of four billion": (b"\x80\x02Nr\xff\xff\xff\xffh\x01.", "never stored"),
        "a megabyte of digits": (b"\x80\x02I" + b"9" * MANY + b"\n.", "an unterminated line"),
        "a long of a megabyte of digits": (b"\x80\x02L" + b"9" * MANY + b"L\n.", "an unterminated line"),
        "a float of a megabyte": (b"\x80\x02F" + b"9" * MANY + b"\n.", "an unterminated line"),
        "pairs that double": (b"\x80\x02K\x01" + b"2\x86" * 200 + b"cposix\nsystem\n)R.", REFUSED_CALL),
        "pairs that double as a key": (b"\x80\x02}K\x01" + b"2\x86" * 200 + b"K\x01scposix\nsystem\n)R.", REFUSED_CALL),
        "pairs that double as a persistent id": (b"\x80\x02K\x01" + b"2\x86" * 200 + b"Q.", "outside itself"),
        "pairs that double as a size": (table(w=tensor(values, 0, (), ()).replace(numbers(), b"K\x01" + b"2\x86" * 200, 1)), "got"),
        "dicts that double": (_laughing(40), "without end"),
        "dicts that double under long names": (_laughing(40, "k" * 900), "without end"),
        "dicts ten thousand deep": (b"\x80\x02" + (b"}" + text("a")) * 10_000 + values + b"s" * 10_000 + b".", "without end"),
        "tuples half a million deep": (b"\x80\x02N" + b"\x85" * (1 << 20) + b".", "instructions"),
        "a million marks": (b"\x80\x02" + b"(" * (1 << 20) + b".", "instructions"),
        "a million dicts": (b"\x80\x02" + b"}" * (1 << 20) + b".", "instructions"),
        "a storage inside a storage": (_nested_twice(values), REFUSED_CALL),
        "an extension": (b"\x80\x02\x82\x01.", "not one that weights need"),
        "a buffer out of band": (b"\x80\x05\x97.", "not one that weights need"),
        "a stack that is empty": (b"\x80\x02R.", "the stack is empty"),
        "a mark that is none": (b"\x80\x02t.", "the stack has none"),
        "a program": (table(w=b"cposix\nsystem\n" + text("true") + b"\x85R"), "names posix.system, which loading it would run"),
        "a program as an instance": (b"\x80\x02(" + text("true") + b"iposix\nsystem\n.", "names posix.system"),
        "a program as an object": (b"\x80\x02(cposix\nsystem\n" + text("true") + b"o.", "names posix.system"),
        "a member of a class of Python's own": (table(w=b"csubprocess\nPopen\n" + text("true") + b"\x85R"), "names subprocess.Popen"),
        "an attribute": (table(w=b"cbuiltins\ngetattr\n(cmy.own\nColour\n" + text("x") + b"tR"), "names builtins.getattr"),
        "a call of a call's result": (table(w=b"cargparse\nNamespace\n)R)R"), "a call of something that is not a name"),
        "a checksum of other bytes": (checked(table(w=tensor(values, 0, (), ())))[:-30] + b"x" * 2 + b"\0" * 20 + b"HCAJSLHD", "checksum"),
    }  # fmt: skip


def _laughing(levels: int, key: str = "a") -> bytes:
    """Dicts, each of which holds the one before twice: a few hundred bytes, 2^levels names."""
    dicts = b"".join(
        b"}q" + bytes([i + 1]) + text(key) + b"h" + bytes([i]) + b"s" + text(f"{key}b") + b"h" + bytes([i]) + b"s"
        for i in range(levels)
    )
    return b"\x80\x02" + tensor(nested(np.ones(4, np.float32)), 0, (), ()) + b"q\x00" + dicts + b"."


def _nested_twice(values: bytes) -> bytes:
    inner = b"\x80\x02" + values + b"." * 5
    return table(w=b"ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(inner)) + inner + b"\x85R")


def _archives() -> dict[str, tuple[bytes, str]]:
    four, sound = {"0": bytes(16)}, TORCH.seeds()[0]
    flat = table(w=tensor(storage("0", 4), 0, (4,), (1,)))
    central = sound.index(b"PK\x01\x02")
    bomb = zipped(flat, {"0": bytes(100 * MANY)}, zipfile.ZIP_DEFLATED)
    return {
        "strides of zero": (zipped(table(w=tensor(storage("0", 4), 0, (1 << 20, 1 << 14), (0, 0))), four), "in a storage of 16"),
        "overlapping strides": (zipped(table(w=tensor(storage("0", 4), 0, (1 << 20, 1), (0, 1))), four), "in a storage of 16"),
        "a view behind its storage": (zipped(table(w=tensor(storage("0", 4), 1 << 40, (1,), (1,))), four), "reaches to element"),
        "a storage that claims more": (zipped(table(w=tensor(storage("0", 5), 0, (5,), (1,))), four), "holds 16 bytes"),
        "a storage that is lost": (zipped(table(w=tensor(storage("7", 4), 0, (4,), (1,))), four), "lacks the storage"),
        "a storage of a strange kind": (zipped(table(w=tensor(storage("0", 4, "os\nsystem"), 0, (4,), (1,))), four), "lacks the storage"),
        "one storage under too many names": (zipped(table(**{f"k{i}": tensor(storage("0", 1 << 18), 0, (1 << 18,), (1,)) for i in
                                                             range(99)}), {"0": bytes(MANY)}), "hold tensors of"),
        "a bomb in a storage": (bomb, "would unpack to"),
        "a bomb as the pickle": (zipped(table(w=b"N") + bytes(100 * MANY), four, zipfile.ZIP_DEFLATED), "would unpack to"),
        "more than it declares": (_declaring(zipped(flat, {"0": bytes(MANY)}, zipfile.ZIP_DEFLATED), 16), "more than the 16"),
        "less than it declares": (_declaring(zipped(flat, four, zipfile.ZIP_DEFLATED), 64), "64 it declares"),
        "two entries of a name": (_twice(sound), "the same name"),
        "entries that overlap": (_overlapping(), "overlap"),
        "a header of another entry": (sound.replace(b"archive/data/1", b"archive/data/2", 1), "not the one that its directory names"),
        "a header that lies about sizes": (sound[:22] + b"\x01\0\0\0" + sound[26:], "contradicts the directory"),
        "an entry behind the end": (sound[: central + 42] + b"\xf0\xff\xff\x7f" + sound[central + 46 :], "points outside"),
        "an encrypted entry": (sound[: central + 8] + b"\x01" + sound[central + 9 :], "encrypted"),
        "a method of another kind": (sound[: central + 10] + b"\x0e" + sound[central + 11 :], "method 14"),
        "a directory of entries without end": (sound[:-12] + b"\xff\xfe" + sound[-10:], "ends too early"),
        "a checksum of another pickle": (sound.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3", 1), "checksum of"),
        "big-endian values": (zipped(flat, four, byteorder=b"big"), "little-endian"),
        "a program": (zipped(table(w=b"cposix\nsystem\n" + text("true") + b"\x85R"), {}), REFUSED_CALL),
        "dicts that double": (zipped(_laughing(40).replace(nested(np.ones(4, np.float32)), storage("0", 4)), four), "without end"),
        "no pickle inside": (zipped(b"", {}).replace(b"data.pkl", b"data.xyz"), "no data.pkl inside"),
        "nothing but a beginning": (b"PK\x03\x04", "no directory"),
    }  # fmt: skip


def _declaring(data: bytes, size: int) -> bytes:
    """The storage's unpacked size as another number, in both headers."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        local = archive.getinfo("archive/data/0").header_offset
    changed = bytearray(data)
    for place in (local + 22, data.rfind(b"archive/data/0") - 46 + 24):
        changed[place : place + 4] = struct.pack("<I", size)
    return bytes(changed)


def _twice(data: bytes) -> bytes:
    out = io.BytesIO(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(out, "a") as archive:
            archive.writestr("archive/data/0", bytes(48))
    return out.getvalue()


def _overlapping() -> bytes:
    """Two entries of the directory that share one local header's bytes."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data/0", bytes(16))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/big", inner.getvalue())
        place = archive.getinfo("archive/big").header_offset + 30 + len("archive/big")
        info = zipfile.ZipInfo("archive/data/0")
        info.header_offset, info.file_size, info.compress_size, info.CRC = place, 16, 16, 0xECBB4B55
        archive.filelist.append(info)
        archive.NameToInfo[info.filename] = info
        archive._didModify = True
    return out.getvalue()


def header(values: object, data: bytes = b"") -> bytes:
    """A safetensors file of any header."""
    said = values if isinstance(values, bytes) else json.dumps(values).encode()
    return len(said).to_bytes(8, "little") + said + data


def entry(shape: object = (2,), begin: object = 0, end: object = 8, dtype: object = "F32") -> dict:
    """A tensor in such a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _safetensors() -> dict[str, tuple[bytes, str]]:
    eight = bytes(8)
    twice = b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}"
    return {
        "metadata that is a list": (header({"__metadata__": [1], "a": entry()}, eight), "table of texts"),
        "metadata of numbers": (header({"__metadata__": {"a": 1}, "a": entry()}, eight), "table of texts"),
        "a name with a line break and an escape": (header({"a\nTraceback: b\x1b[31m": entry()}, eight), "must be printable"),
        "a name of a megabyte": (header({"a" * MANY: entry()}, eight), "must be printable, of at most"),
        "2^63 times nothing": (header({"a": entry([1 << 63, 0], 0, 0), "b": entry()}, eight), "integers in [0, 2^48)"),
        "2^47 times 2^47 times nothing": (header({"a": entry([1 << 47, 1 << 47, 0], 0, 0), "b": entry()}, eight), "fewer than 2^48"),
        "a shape of tables": (header({"a": entry([{}])}, eight), "integers in [0, 2^48)"),
        "a shape of nothing": (header({"a": entry([None, 2])}, eight), "integers in [0, 2^48)"),
        "a shape of text": (header({"a": entry("ab")}, eight), "a list of at most"),
        "a shape of truths": (header({"a": entry([True, 2])}, eight), "integers in [0, 2^48)"),
        "a shape of fractions": (header({"a": entry([2.0])}, eight), "integers in [0, 2^48)"),
        "a hundred axes": (header({"a": entry([1] * 99 + [2])}, eight), "a list of at most 32"),
        "a tensor twice": (header(twice, eight), "says 'a' twice"),
        "a key twice in an entry": (header(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', eight), "twice"),
        "bytes of no tensor": (header({"a": entry()}, bytes(9)), "belong to no tensor"),
        "a gap": (header({"a": entry(), "b": entry((1,), 12, 16)}, bytes(16)), "leave a gap"),
        "an overlap": (header({"a": entry(), "b": entry((1,), 4, 8)}, eight), "overlap"),
        "offsets backwards": (header({"a": entry((0,), 8, 0)}, eight), "does not fit"),
        "offsets of text": (header({"a": entry((2,), "x" * 9000, 8)}, eight), "does not fit"),
        "a kind that is a list": (header({"a": entry(dtype=["F32"])}, eight), "not one that jclip reads"),
        "eight bits of a float": (header({"a": entry((8,), dtype="F8_E4M3")}, eight), "not one that jclip reads"),
        "a megabyte of digits": (header(b'{"a":{"dtype":"F32","shape":[' + b"9" * MANY + b'],"data_offsets":[0,8]}}', eight), "damaged"),
        "a hundred thousand brackets": (header(b'{"a":' + b"[" * 100_000, eight), "not JSON"),
        "sixteen megabytes of brackets": (header(b'{"a":[' + b"[]," * (5 * MANY), eight), "lists more than"),
        "a header of a hundred megabytes": ((100 * MANY).to_bytes(8, "little") + b"{" + bytes(100 * MANY), "claims"),
        "half a character": (header(b'{"\\ud800":' + json.dumps(entry()).encode() + b"}", eight), "must be printable"),
        "a header of other bytes": (header(b'{"a":"\xff\xfe"}', eight), "damaged"),
    }  # fmt: skip


def _npy(said: str, data: bytes = b"") -> bytes:
    said += " " * (-len(said) % 16) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(said)) + said.encode() + data


def _features() -> dict[str, tuple[bytes, str]]:
    def with_labels(array: bytes, method: int = zipfile.ZIP_STORED, name: str = "train_labels_2.npy") -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(NPZ.seeds()[0])) as old, zipfile.ZipFile(out, "w", method) as new:
            for known in old.namelist():
                new.writestr(known, array if known == name else old.read(known))
        return out.getvalue()

    def said(shape: str, descr: str = "'<i8'") -> str:
        return f"{{'descr': {descr}, 'fortran_order': False, 'shape': ({shape}), }}"

    objects = pickle.dumps(np.array([1], object), 2)
    return {
        "objects": (with_labels(_npy(said("1,", "'|O'"), objects)), "Python objects"),
        "records": (with_labels(_npy(said("1,", "[('a', '<i8')]"), bytes(8))), "does not describe a plain array"),
        "more values than bytes": (with_labels(_npy(said("99999999999,"), bytes(8))), "takes 799999999992 bytes"),
        "fewer values than bytes": (with_labels(_npy(said("1,"), bytes(32))), "takes 8 bytes, 32 follow"),
        "a negative size": (with_labels(_npy(said("-4,"), bytes(32))), "does not describe a plain array"),
        "2^63 times nothing": (with_labels(_npy(said("9223372036854775808, 0"))), "integers in [0, 2^48)"),
        "a header of a megabyte": (with_labels(b"\x93NUMPY\x02\x00" + struct.pack("<I", MANY) + b"9" * MANY), "header claims"),
        "a header of digits": (with_labels(_npy(said("9" * 5000 + ",")), ), "does not describe a plain array"),
        "a header of brackets": (with_labels(_npy("(" * 9000)), "does not describe a plain array"),
        "a header that is a program": (with_labels(_npy(said("__import__('os').getpid(),"))), "does not describe a plain array"),
        "text that is none": (with_labels(_npy(said("2,", "'<U1'"), b"\xff" * 8), name="classnames.npy"), "not valid Unicode"),
        "a bomb": (with_labels(_npy(said(f"{13 * MANY},"), bytes(104 * MANY)), zipfile.ZIP_DEFLATED), "would unpack to"),
        "an entry that is no array": (with_labels(b"hello"), "it is not an .npy"),
        "an entry that is empty": (with_labels(b""), "it is not an .npy"),
        "a page": (b"<!DOCTYPE html><html></html>", "is not an .npz archive"),
        "nothing": (b"", "is not an .npz archive"),
    }  # fmt: skip


FILES: dict[str, tuple[str, Callable[[], dict[str, tuple[bytes, str]]]]] = {  # format → ending, hostile files
    "pickle": (".pkl", _pickles),
    "torch": (".pt", _archives),
    "safetensors": (".safetensors", _safetensors),
    "npz": (".npz", _features),
}
