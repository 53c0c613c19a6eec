"""Placeholders for what a pickle of weights may name: arrays and tensors that know where their bytes are, nothing
else."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from jclip.errors import CheckpointError
from jclip.readers.held_file import InMemory, Source, shown
from jclip.readers.pickle_machine import Inert, Name, Table
from jclip.readers.tensors import (
    MOST_NAME,
    LazyTensor,
    WeightFile,
    check_name,
    decode,
    itemsize,
    sizes,
    strided,
)

STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_ARRAY_DTYPES = {
    "f2": "float16", "f4": "float32", "f8": "float64", "c8": "complex64", "c16": "complex128", "b1": "bool", "?": "bool",
    "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64",
    "u1": "uint8", "u2": "uint16", "u4": "uint32", "u8": "uint64",
}  # fmt: skip
_ARRAY_DTYPES |= {name: name for name in _ARRAY_DTYPES.values()}
_TEXT_OR_TIME = re.compile(r"[SUMmV]\d{0,6}")
_TABLES = {("collections", "OrderedDict"), ("collections", "defaultdict"), ("collections", "Counter")}
_INERT = {  # may be called: objects that training scripts save with their weights
    "argparse": {"Namespace"},
    "torch": {"device"},
    "collections": {"deque"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "builtins": {"bytearray", "complex", "frozenset", "object", "range", "set", "slice"},
    "decimal": {"Decimal"},
    "uuid": {"UUID"},
    "numpy.core.multiarray": {"scalar"},
}
_SAME_MODULE = {
    "__builtin__": "builtins", "copy_reg": "copyreg", "pathlib._local": "pathlib", "numpy._core.multiarray":
    "numpy.core.multiarray", "numpy._core.numeric": "numpy.core.numeric",
}  # fmt: skip
_LISTS = {"build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag"}
_KNOWN_PACKAGES = {*sys.stdlib_module_names, "__builtin__", "copy_reg", "numpy", "torch", "jittor", "jittor_core"}
_MOST_REPEATED = 1 << 20  # bytes of a tensor that is larger than its storage, as expanded ones are
_MOST_VISITS = 1 << 18  # visits to dicts and their items; shared ones count each time
_MOST_DEPTH = 64
_MOST_TIMES = 16  # limit of all tensors together: this many times the file's size, shared ones each time ...
_FREE = 64 << 20  # ... plus this many bytes


@dataclass(frozen=True)
class Values:
    """Type of an array's values. code: None unless numeric; text: strings or times, which are skipped."""

    code: str | None
    text: bool
    swapped: bool


class ArrayDType:
    """A `numpy.dtype` of the file, as a code from a fixed list, or as unreadable."""

    def __init__(self, code: Any):
        plain = code.lstrip("<=|>") if type(code) is str else ""
        swapped = type(code) is str and code.startswith(">")
        self.values = Values(_ARRAY_DTYPES.get(plain), _TEXT_OR_TIME.fullmatch(plain) is not None, swapped)

    def fill(self, state: tuple) -> None:
        """Set the state: (version, byte order, then three values that are None except for records, …)."""
        plain = len(state) >= 5 and type(state[1]) is str and state[1] in tuple("<>=|") and set(map(type, state[2:5]))
        if plain != {type(None)}:
            self.values = Values(None, False, False)
        else:
            self.values = replace(self.values, swapped=state[1] == ">")


@dataclass
class Array:
    """A `numpy.ndarray` of the file, whose bytes are exactly those of its shape and dtype."""

    place: str
    values: Values = Values(None, False, False)
    shape: tuple[int, ...] = (0,)
    fortran: bool = False
    data: Source | None = None

    def fill(self, state: Any) -> None:
        """Set the state: (version, shape, dtype, Fortran order, bytes). For objects, whose last item is a list, only
        the dtype is used."""
        if type(state) is not tuple or len(state) != 5:
            raise CheckpointError(f"{self.place} holds an array of an unknown form")
        _, shape, dtype, fortran, data = state
        self.set(shape, dtype, bool(fortran) if type(fortran) in (bool, int) else None, data)

    def set(self, shape: Any, dtype: Any, fortran: bool | None, data: Any) -> None:
        """Set shape, dtype, order and bytes. Raises `CheckpointError` unless their sizes agree."""
        if type(dtype) is not ArrayDType or fortran is None:
            raise CheckpointError(f"{self.place} holds an array of an unknown form")
        self.values, self.shape, self.fortran = dtype.values, sizes(shape, self.place), fortran
        if self.values.code is None:
            return
        self.data = InMemory(data.encode("latin-1")) if type(data) is str else data
        wanted = math.prod(self.shape) * itemsize(self.values.code)
        size = getattr(self.data, "size", None)
        if size != wanted:
            raise CheckpointError(f"{self.place} is damaged: an array {self.shape} takes {wanted} bytes, it has {size}")

    def lazy(self, name: str) -> LazyTensor | None:
        """Return the tensor, or None for text and times. Raises `CheckpointError` for objects and records."""
        if self.values.text:
            return None
        if self.values.code is None:
            raise CheckpointError(f"{self.place}: {name} is an array of objects, must be numeric")
        return LazyTensor(self.shape, self.values.code, self._read)

    def _read(self) -> np.ndarray:
        values = decode(self.data.read(0, self.data.size), self.values.code)
        values = values.byteswap() if self.values.swapped else values
        return values.reshape(self.shape, order="F" if self.fortran else "C")


@dataclass(frozen=True)
class Storage:
    """`count` values of a torch storage, and the source of their bytes."""

    data: Source
    dtype: str
    count: int


class TorchTensor:
    """A view of a storage. Raises `CheckpointError` where it exceeds the storage, or is larger than it."""

    def __init__(self, place: str, storage: Any, offset: Any, shape: Any, strides: Any):
        if type(storage) is not Storage:
            raise CheckpointError(f"{place} holds a tensor without a storage")
        self.storage = storage
        (self.offset,) = sizes((offset,), place)
        self.shape, self.strides = sizes(shape, place), sizes(strides, place, together=False)
        if len(self.shape) != len(self.strides):
            raise CheckpointError(f"{place} holds a tensor of {len(self.shape)} sizes and {len(self.strides)} strides")
        count, item = math.prod(self.shape), itemsize(storage.dtype)
        reach = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        self.span = reach + 1 if count else 0
        if self.offset + self.span > storage.count:
            raise CheckpointError(
                f"{place} is damaged: a tensor reaches to element {self.offset + reach} of a storage of {storage.count}"
            )
        if count * item > max(storage.count * item, _MOST_REPEATED):
            raise CheckpointError(
                f"{place} holds a tensor {self.shape} of {count * item} bytes in a storage of {storage.count * item}"
            )

    def lazy(self, name: str) -> LazyTensor:
        """Return the tensor; `read` reads only its part of the storage."""
        return LazyTensor(self.shape, self.storage.dtype, self._read)

    def _read(self) -> np.ndarray:
        item = itemsize(self.storage.dtype)
        raw = self.storage.data.read(self.offset * item, self.span * item)
        return strided(decode(raw, self.storage.dtype), self.shape, self.strides)


class Weights:
    """The `Meaning` of names in a pickle of weights.

    storage: returns the storage for the fields of a persistent id; nested: returns the storage of a file in torch's
    old format that is embedded in the pickle as bytes. Where they are None, such files are refused.
    """

    def __init__(
        self,
        place: str,
        storage: Callable[[tuple], Storage] | None = None,
        nested: Callable[[Source], Storage] | None = None,
    ):
        self._place, self._storage, self._nested = place, storage, nested
        self._functions: dict[tuple[str, str], tuple[Callable[..., Any], int]] = {  # and how many arguments count
            ("torch._utils", "_rebuild_tensor"): (self._tensor, 4),
            ("torch._utils", "_rebuild_tensor_v2"): (self._tensor, 4),
            ("torch._utils", "_rebuild_parameter"): (_first, 1),
            ("torch._utils", "_rebuild_parameter_with_state"): (_first, 1),
            ("torch", "Size"): (_first, 1),
            ("numpy", "dtype"): (ArrayDType, 1),
            ("numpy.core.multiarray", "_reconstruct"): (self._new_array, 1),
            ("numpy.core.numeric", "_frombuffer"): (self._array, 4),
            ("jittor", "jittor_core.Var"): (_first, 1),
            ("jittor_core", "Var"): (_first, 1),
            ("_codecs", "encode"): (self._encoded, 2),
            ("copyreg", "_reconstructor"): (Inert, 0),
            ("builtins", "bytes"): (_no_bytes, 0),
        }
        if nested:
            self._functions["torch.storage", "_load_from_bytes"] = (self._from_bytes, 1)

    def call(self, name: Name, arguments: tuple) -> Any:
        """Return the placeholder for the result of a call. Raises `CheckpointError` for every name that is not on the
        list."""
        module = _SAME_MODULE.get(name.module, name.module)
        function, count = self._functions.get((module, name.name), (None, 0))
        if function:
            if len(arguments) < count:
                self._refuse(f"calls {name} with {len(arguments)} values, {count} are needed")
            return function(*arguments[:count])
        if (module, name.name) in _TABLES:
            return Table()
        if module == "torch.jit._pickle" and name.name in _LISTS and arguments:
            return arguments[0]
        if name.name in _INERT.get(module, ()) or name.module.split(".")[0] == "__torch__":
            return Inert()
        if _is_member_of_enum(name, arguments):
            return Inert()
        raise CheckpointError(
            f"{self._place} names {name}, which loading it would run or import: refused, nothing was run "
            "(weights need only tensors; get them as safetensors, or as a plain state dict)"
        )

    def lay_out(self, name: Name, arguments: tuple) -> Any:
        """Return the placeholder for an object of a class that is not imported."""
        return Table() if (name.module, name.name) in _TABLES else Inert()

    def fill(self, made: Any, state: Any) -> None:
        """Set the state of arrays, dtypes and placeholders."""
        if isinstance(made, Array) or (type(made) is ArrayDType and type(state) is tuple):
            made.fill(state)
        elif isinstance(made, Inert):
            for part in state if type(state) is tuple else (state,):
                if isinstance(part, Table):
                    made.update(part)
        elif not isinstance(made, Table | list | TorchTensor):
            self._refuse("gives a state to what has none")

    def load(self, identity: Any) -> Storage:
        """Return a storage named by the file."""
        if self._storage is None or type(identity) is not tuple or len(identity) < 5 or identity[0] != "storage":
            self._refuse("refers to something outside itself")
        kind = identity[1]
        dtype = STORAGE_DTYPES.get(kind.name) if type(kind) is Name and kind.module in ("torch", "torch.cuda") else None
        (count,) = sizes((identity[4],), self._place)
        if dtype is None or type(identity[2]) is not str:
            self._refuse(f"lacks the storage {shown(identity[2]) if type(identity[2]) is str else 'of a tensor'}")
        return self._storage((identity[2], dtype, count))

    def _refuse(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self._place} {what}: damaged, or not a weight file")

    def _tensor(self, *arguments: Any) -> TorchTensor:
        return TorchTensor(self._place, *arguments)

    def _new_array(self, kind: Any) -> Array:
        if kind != Name("numpy", "ndarray"):
            self._refuse("holds an array of another kind than numpy.ndarray")
        return Array(self._place)

    def _array(self, data: Any, dtype: Any, shape: Any, order: Any) -> Array:
        made = Array(self._place)
        made.set(shape, dtype, {"C": False, "F": True}.get(order) if type(order) is str else None, data)
        return made

    def _encoded(self, text: Any, code: Any) -> InMemory:
        if type(text) is not str or code not in ("latin1", "latin-1"):
            self._refuse("holds bytes of an unknown form")
        return InMemory(text.encode("latin-1"))

    def _from_bytes(self, data: Any) -> Storage:
        if not hasattr(data, "read"):
            self._refuse("holds a storage of an unknown form")
        return self._nested(data)


def _first(value: Any) -> Any:
    return value


def _no_bytes() -> InMemory:
    return InMemory(b"")  # protocols below 3 spell empty bytes as a call


def _is_member_of_enum(name: Name, arguments: tuple) -> bool:
    """Return whether a call has the form in which members of a script's own `Enum` are pickled, `Colour("red")`;
    never for modules of Python or torch."""
    own = name.module.split(".")[0] not in _KNOWN_PACKAGES
    looks_so = re.fullmatch(r"([A-Za-z_]\w*\.)*[A-Z]\w*", name.name) and re.fullmatch(r"[A-Za-z_][\w.]*", name.module)
    return own and bool(looks_so) and len(arguments) == 1 and type(arguments[0]) in (str, int)


def weight_file(tree: Any, kind: str, place: str, size: int) -> WeightFile:
    """Return tensors and arrays of nested dicts by dotted name, shared ones under each of their names; cycles are
    cut.

    size: bytes of the file. Raises `CheckpointError` for more names, deeper nesting or more bytes than weights have.
    """
    found: dict[str, LazyTensor] = {}
    for name, leaf in _leaves(tree, place):
        tensor = leaf.lazy(check_name(name, place))
        if name in found:
            raise CheckpointError(f"{place} holds two tensors of the name {name}")
        if tensor:
            found[name] = tensor
    total = sum(math.prod(t.shape) * itemsize(t.dtype) for t in found.values())
    if total > _FREE + _MOST_TIMES * size:
        raise CheckpointError(f"{place}: {size} bytes hold tensors of {total} bytes: damaged, or not a weight file")
    return WeightFile(found, kind=kind)


def _leaves(tree: Any, place: str) -> list[tuple[str, Array | TorchTensor]]:
    found: list[tuple[str, Array | TorchTensor]] = []
    visits = 0

    def walk(table: Table, name: str, above: tuple[int, ...]) -> None:
        nonlocal visits
        visits += 1 + len(table)
        if visits > _MOST_VISITS or len(above) > _MOST_DEPTH or len(name) > MOST_NAME:
            raise CheckpointError(f"{place} nests or repeats its dicts without end: damaged, or not a weight file")
        for key, value in table.items():
            if isinstance(value, Array | TorchTensor):
                found.append((f"{name}{key}", value))
            elif isinstance(value, Table) and id(value) not in above:
                walk(value, f"{name}{key}.", (*above, id(value)))

    if isinstance(tree, Table):
        walk(tree, "", (id(tree),))
    return [("", tree)] if isinstance(tree, Array | TorchTensor) else found
