"""An unpickler that builds tensors and containers, and calls nothing else that a file names."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from jclip.errors import CheckpointError

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
_INERT_MODULES = ("__torch__",)
_INERT = {  # may be called: what training scripts leave beside their weights
    ("argparse", "Namespace"), ("torch", "device"), ("torch", "Size"), ("collections", "defaultdict"),
    ("pathlib", "PosixPath"), ("builtins", "set"), ("__builtin__", "set"), ("_codecs", "encode"),
    ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
}  # fmt: skip
_LISTS = {"build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag"}


class Inert(dict):
    """Stands for an object of a class that is not to be imported: it keeps the state and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)


class _Uncallable(type):
    """A class whose instances a file may lay out, as it does for plain objects, but which it may not call."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise CheckpointError(
            f"{cls.place} names {cls.__name__}, which loading it would run or import: refused, nothing was run "
            "(weights need only tensors; get them as safetensors, or as a plain state dict)"
        )


def _stranger(place: str, name: str) -> type:
    """Stands for a class that nobody has. Calling it, as the pickle of a function's result does, is refused."""
    return _Uncallable(name, (Inert,), {"place": place})


class RestrictedUnpickler(pickle.Unpickler):
    """`rebuild` gets what `torch._utils._rebuild_tensor_v2` would; `storage` what a persistent id or nested bytes hold."""

    def __init__(
        self,
        file: BinaryIO,
        place: str,
        rebuild: Callable[..., Any],
        storage: Callable[[Any], Any] | None = None,
        nested: Callable[[bytes], Any] | None = None,
    ):
        super().__init__(file)
        self._place, self._storage = place, storage
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): rebuild,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): _new_array,
            ("numpy._core.multiarray", "_reconstruct"): _new_array,
            ("jittor", "jittor_core.Var"): lambda array: array,
            ("jittor_core", "Var"): lambda array: array,
        }
        if nested:
            self._known["torch.storage", "_load_from_bytes"] = nested

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the file; nothing that is not on the list can be called."""
        if (module, name) in self._known:
            return self._known[module, name]
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if module == "torch.jit._pickle" and name in _LISTS:
            return lambda data, *_: data
        if module.split(".")[0] in _INERT_MODULES or (module, name) in _INERT:
            return Inert
        return _stranger(self._place, f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """A storage named by the file. Raises `CheckpointError` where the format has none."""
        if self._storage is None or not isinstance(pid, tuple) or not pid or pid[0] != "storage":
            raise CheckpointError(f"{self._place} refers to something outside itself: {pid!r}")
        return self._storage(pid)


def _new_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    if kind is not np.ndarray:
        raise CheckpointError(f"an array of kind {kind!r} is not read")
    return np.ndarray.__new__(np.ndarray, (0,), np.uint8)


def load_pickle(unpickler: RestrictedUnpickler, place: str) -> Any:
    """`unpickler.load()`, every failure of which is a `CheckpointError` naming the file."""
    try:
        return unpickler.load()
    except CheckpointError:
        raise
    except Exception as e:  # a broken or hostile stream can raise anything
        raise CheckpointError(
            f"{place} is not a readable pickle ({type(e).__name__}: {e}): damaged, or not a weight file"
        ) from e


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts by dotted name, shared ones under each of their names; cycles are cut."""
    found: dict[str, Any] = {}

    def walk(node: Any, name: str, above: tuple[int, ...]) -> None:
        if is_leaf(node):
            found[name] = node
        elif isinstance(node, dict) and id(node) not in above:
            for key, value in node.items():
                if isinstance(key, str):
                    walk(value, f"{name}.{key}" if name else key, (*above, id(node)))

    walk(tree, prefix, ())
    return found
