"""Weight files: what is read equals what torch, safetensors and Jittor wrote; what is hostile or broken is refused."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import io
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from jclip.errors import CheckpointError
from jclip.readers import jittor_pickle, npz, read_weights, safetensors
from jclip.readers.held_file import HeldFile

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.weight": RNG.standard_normal((3, 5)).astype(np.float32),
    "half": RNG.standard_normal((2, 3, 4)).astype(np.float16),
    "ids": np.arange(7, dtype=np.int64),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "flags": np.array([True, False]),
}


class Bomb:
    """Unpickled by anything careless, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def same(file, arrays):
    assert list(file) == list(arrays)
    for name, wanted in arrays.items():
        got = file[name].read()
        assert got.dtype == wanted.dtype and got.shape == wanted.shape == file[name].shape, name
        assert np.array_equal(got, wanted), name


# safetensors


def test_safetensors_round_trip(tmp_path):
    safetensors.write(tmp_path / "x.safetensors", ARRAYS, {"format": "jclip", "中文": "是"})
    file = read_weights(tmp_path / "x.safetensors")
    assert file.kind == "safetensors" and file.metadata == {"format": "jclip", "中文": "是"}
    same(file, ARRAYS)


def test_safetensors_of_the_library_and_back(tmp_path):
    library = pytest.importorskip("safetensors.numpy", reason="the reference is not installed: pip install '.[parity]'")
    library.save_file(ARRAYS, tmp_path / "theirs.safetensors")
    file = read_weights(tmp_path / "theirs.safetensors")
    assert sorted(file) == sorted(ARRAYS)
    assert all(np.array_equal(file[k].read(), v) for k, v in ARRAYS.items())
    safetensors.write(tmp_path / "ours.safetensors", ARRAYS, {"format": "pt"})
    for name, array in library.load_file(tmp_path / "ours.safetensors").items():
        assert np.array_equal(array, ARRAYS[name]) and array.dtype == ARRAYS[name].dtype


def test_bfloat16_is_widened_exactly(tmp_path):
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    library = pytest.importorskip("safetensors.torch")
    values = torch.randn(3, 5).bfloat16()
    library.save_file({"x": values}, tmp_path / "x.safetensors")
    tensor = read_weights(tmp_path / "x.safetensors")["x"]
    assert tensor.dtype == "bfloat16" and np.array_equal(tensor.read(), values.float().numpy())
    torch.save({"x": values}, tmp_path / "x.pt")
    assert np.array_equal(read_weights(tmp_path / "x.pt")["x"].read(), values.float().numpy())


def raw_safetensors(header: dict, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BROKEN_SAFETENSORS = {
    "header longer than the file": (raw_safetensors({"a": entry()}, bytes(8), length=10**6), "no weight file|claims"),
    "header of terabytes": (raw_safetensors({"a": entry()}, bytes(8), length=2**45), "no weight file"),
    "header is no JSON": (struct.pack("<Q", 9) + b"{not json" + bytes(8), "not JSON"),
    "offsets outside the file": (raw_safetensors({"a": entry(offsets=(0, 80), shape=(20,))}, bytes(8)), "does not fit"),
    "size differs from the shape": (raw_safetensors({"a": entry(shape=(3,))}, bytes(8)), "does not fit"),
    "negative offset": (raw_safetensors({"a": entry(offsets=(-8, 0))}, bytes(8)), "does not fit"),
    "negative shape": (
        raw_safetensors({"a": entry(shape=(-2, -1), offsets=(0, 8))}, bytes(8)),
        r"integers in \[0, 2\^48\)",
    ),
    "tensors overlap": (raw_safetensors({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "overlap"),
    "unknown dtype": (raw_safetensors({"a": entry(dtype="F8_E4M3")}, bytes(8)), "not one that jclip reads"),
    "entry is no entry": (raw_safetensors({"a": [1, 2]}, bytes(8)), "not one that jclip reads"),
    "shape of text": (raw_safetensors({"a": entry(shape=("x",))}, bytes(8)), r"integers in \[0, 2\^48\)"),
}


@pytest.mark.parametrize("what", BROKEN_SAFETENSORS)
def test_broken_safetensors_are_refused(what, tmp_path):
    data, message = BROKEN_SAFETENSORS[what]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as error:
        read_weights(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# torch


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")


def test_torch_zip_with_views_shares_and_strides(tmp_path, torch):
    base = torch.randn(6, 7)
    state = {
        "plain": base,
        "transposed": base.t(),
        "sliced": base[1:3, 2:5],
        "strided": base[::2, ::3],
        "shared": base,
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "half": torch.randn(3).half(),
        "scalar": torch.tensor(3.5),
        "long": torch.arange(3),
        "bool": torch.tensor([True, False]),
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "empty": torch.zeros(0, 3),
    }
    torch.save(state, tmp_path / "x.pt")
    same(read_weights(tmp_path / "x.pt"), {k: v.detach().numpy() for k, v in state.items()})


def test_nested_checkpoint_with_inert_objects(tmp_path, torch):
    import argparse

    state = {
        "epoch": 3,
        "args": argparse.Namespace(lr=1.0),
        "state_dict": {"w": torch.ones(2)},
        "device": torch.device("cpu"),
    }
    torch.save(state, tmp_path / "x.pt")
    assert list(read_weights(tmp_path / "x.pt")) == ["state_dict.w"]


def test_torchscript_archive_without_torch(tmp_path, torch):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4))
            self.proj = torch.nn.Parameter(torch.randn(4, 5))
            self.register_buffer("input_resolution", torch.tensor(224))

        def forward(self, x):
            return self.stem(x).mean((2, 3)) @ self.proj

    net = Net().eval()
    torch.jit.trace(net, torch.ones(1, 3, 8, 8)).save(str(tmp_path / "x.pt"))
    file = read_weights(tmp_path / "x.pt")
    wanted = torch.jit.load(str(tmp_path / "x.pt")).state_dict()
    assert file.kind == "torchscript" and set(file) == set(wanted)
    assert all(np.array_equal(file[k].read(), v.numpy()) for k, v in wanted.items())
    code = (
        "import sys; from jclip.readers import read_weights\n"
        f"assert len(read_weights({str(tmp_path / 'x.pt')!r})) == {len(wanted)}\n"
        "assert not {'torch', 'jittor'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torch_from_before_1_6_is_refused_with_advice(tmp_path, torch):
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6.*save it again"):
        read_weights(tmp_path / "old.pt")


def test_damaged_torch_files_are_refused(tmp_path, torch):
    torch.save({"w": torch.randn(100, 100)}, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged archive"):
        read_weights(tmp_path / "cut.pt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="not one that torch wrote"):
        read_weights(tmp_path / "other.zip")


def rewrite(source, target, change):
    """A copy of a zip whose files went through `change(name, data)`; None drops one."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)


def test_storages_that_lie_about_their_size_are_refused(tmp_path, torch):
    torch.save({"w": torch.randn(4, 4)}, tmp_path / "x.pt")
    rewrite(tmp_path / "x.pt", tmp_path / "short.pt", lambda n, d: d[:8] if "/data/" in n else d)
    with pytest.raises(CheckpointError, match="holds 8 bytes"):
        read_weights(tmp_path / "short.pt")
    rewrite(tmp_path / "x.pt", tmp_path / "lost.pt", lambda n, d: None if "/data/" in n else d)
    with pytest.raises(CheckpointError, match="lacks the storage"):
        read_weights(tmp_path / "lost.pt")


def test_compressed_archives_are_read_too(tmp_path, torch):
    value = torch.randn(4, 4)
    torch.save({"w": value}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as old,
        zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert np.array_equal(read_weights(tmp_path / "z.pt")["w"].read(), value.numpy())


# Jittor


def test_jittor_pickle_of_ours_and_of_jittors(tmp_path):
    from jclip.runtime import jt

    jittor_pickle.write(tmp_path / "ours.pkl", ARRAYS)
    same(read_weights(tmp_path / "ours.pkl"), ARRAYS)
    for name, array in jt.load(str(tmp_path / "ours.pkl")).items():
        assert np.array_equal(array, ARRAYS[name])
    jt.save({"var": jt.array(ARRAYS["a.weight"]), "numpy": ARRAYS["ids"]}, str(tmp_path / "theirs.pkl"))
    same(read_weights(tmp_path / "theirs.pkl"), {"var": ARRAYS["a.weight"], "numpy": ARRAYS["ids"]})


def test_jittor_pickle_made_from_torch_tensors(tmp_path, torch):
    """As the challenge's ViT-B-32.pkl was made: `jt.save(torch_state_dict, path)`."""
    from jclip.runtime import jt

    state = {"w": torch.randn(3, 4).t(), "half": torch.randn(2).half(), "input_resolution": torch.tensor(224.0)}
    jt.save(state, str(tmp_path / "x.pkl"))
    same(read_weights(tmp_path / "x.pkl"), {k: v.numpy() for k, v in state.items()})


def test_a_wrong_checksum_is_reported(tmp_path):
    jittor_pickle.write(tmp_path / "x.pkl", ARRAYS)
    data = bytearray((tmp_path / "x.pkl").read_bytes())
    data[40] ^= 1
    (tmp_path / "x.pkl").write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum does not match"):
        read_weights(tmp_path / "x.pkl")


def test_arrays_of_objects_are_refused(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"x": np.array([1, "a"], object)}, 4))
    with pytest.raises(CheckpointError, match="array of objects"):
        read_weights(tmp_path / "x.pkl")


# Files that would run something


def zip_with_pickle(path, payload: bytes, script: bool = False):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")
        if script:
            archive.writestr("archive/constants.pkl", payload)


@pytest.mark.parametrize("form", ["jittor", "jittor with checksum", "torch zip", "torchscript", "nested torch"])
def test_a_pickle_that_would_run_code_is_refused_by_name_and_does_not_run(form, tmp_path):
    mark = tmp_path / "ran"
    payload = pickle.dumps({"w": Bomb(mark)}, 4 if "jittor" in form else 2)
    path = tmp_path / "x.bin"
    if form == "jittor":
        path.write_bytes(payload)
    elif form == "jittor with checksum":
        import hashlib

        path.write_bytes(payload + hashlib.sha1(payload).digest() + b"HCAJSLHD")
    elif form == "nested torch":
        path.write_bytes(nested_bomb(mark))
    else:
        zip_with_pickle(path, payload, script=form == "torchscript")
    with pytest.raises(CheckpointError, match=r"names (posix|nt)\.system.*refused"):
        read_weights(path)
    assert not mark.exists()
    assert pickle.loads(payload) and mark.exists()  # the bomb is live: it is the reader that is safe


def nested_bomb(mark) -> bytes:
    """A Jittor pickle whose torch storage is a nested file with a bomb inside."""
    inner = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {}, Bomb(mark)))
    out = io.BytesIO()
    out.write(b"\x80\x02c" + b"torch.storage\n_load_from_bytes\n")
    pickled = pickle.dumps(inner, 4)
    out.write(pickled[2:-1] + b"\x85R.")  # the bytes, a tuple of one, the call
    return out.getvalue()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "torch.load", "numpy.load", "jittor.load", "importlib.import_module"]
)
def test_other_callables_are_refused_too(name, tmp_path):
    module, function = name.rsplit(".", 1)
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02c" + f"{module}\n{function}\n".encode() + b"X\x01\x00\x00\x00a\x85R.")
    with pytest.raises(CheckpointError, match=f"names {name}"):
        read_weights(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\x80\x04", b"hello world, not weights", bytes(100), b"PK\x03\x04"], ids=repr
)
def test_what_is_no_weight_file_is_reported(data, tmp_path):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(CheckpointError, match="x "):
        read_weights(tmp_path / "x")


def test_random_damage_never_escapes_as_another_error(tmp_path, torch):
    torch.save({"w": torch.randn(3, 3)}, tmp_path / "x.pt")
    jittor_pickle.write(tmp_path / "x.pkl", {"w": ARRAYS["a.weight"]})
    safetensors.write(tmp_path / "x.safetensors", {"w": ARRAYS["a.weight"]})
    rng = np.random.default_rng(5)
    for name in ("x.pt", "x.pkl", "x.safetensors"):
        whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for _ in range(150):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 3)] = rng.integers(0, 256, 3)
            (tmp_path / "damaged").write_bytes(damaged.tobytes())
            try:
                for tensor in read_weights(tmp_path / "damaged").values():
                    tensor.read()
            except CheckpointError as e:
                assert "\n" not in str(e)


# Pickles as NumPy, torch and people's scripts write them


class Colour(enum.Enum):
    RED = "red"
    TWO = 2


BESIDE = {
    "where": pathlib.PureWindowsPath("c:/runs/1"),
    "other": pathlib.PurePosixPath("runs/1"),
    "at": datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
    "took": datetime.timedelta(3),
    "args": argparse.Namespace(lr=0.1, names=["a"]),
    "colour": Colour.RED,
    "number": Colour.TWO,
    "counts": collections.Counter("aab"),
    "lists": collections.defaultdict(list, a=[1]),
    "last": collections.deque([1, 2]),
    "seen": {1, 2},
    "fixed": frozenset((1, 2)),
    "best": np.float32(3),
    "names": np.array(["ox", "cat"]),
    "large": 1 << 100,
    "small": -5,
    "nothing": (None, True, 1.5, 1 + 2j, b"bytes", "中文\n", bytearray(b"x")),
    (1, 2): "a key that is no text",
}


@pytest.mark.parametrize("protocol", range(6))
def test_numpys_pickles_of_every_protocol(protocol, tmp_path):
    arrays = {
        **ARRAYS,
        "fortran": np.asfortranarray(ARRAYS["a.weight"]),
        "transposed": ARRAYS["half"].T,
        "big-endian": ARRAYS["a.weight"].astype(">f4"),
        "unsigned": np.arange(3, dtype=np.uint16),
        "complex": np.array([1 + 2j], np.complex64),
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"state": arrays, "epoch": 3}, protocol))
    same(
        read_weights(tmp_path / "x.pkl"), {f"state.{k}": v.astype(v.dtype.newbyteorder("=")) for k, v in arrays.items()}
    )


@pytest.mark.parametrize("protocol", range(6))
def test_objects_beside_weights_do_nothing(protocol, tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({**BESIDE, "state_dict": ARRAYS}, protocol))
    same(read_weights(tmp_path / "x.pkl"), {f"state_dict.{k}": v for k, v in ARRAYS.items()})


def test_numpy_2_and_paths_of_other_systems(tmp_path):
    """Names as NumPy 2 and other Pythons spell them."""
    data = pickle.dumps({"a": ARRAYS["ids"], "b": np.float32(3), "c": pathlib.PurePosixPath("x")}, 2)
    data = data.replace(b"numpy.core.", b"numpy._core.").replace(
        b"cpathlib\nPurePosixPath", b"cpathlib._local\nWindowsPath"
    )
    (tmp_path / "x.pkl").write_bytes(data)
    same(read_weights(tmp_path / "x.pkl"), {"a": ARRAYS["ids"]})
    data = pickle.dumps({"a": ARRAYS["ids"]}, 5)
    core, numpy_2 = b"\x8c\x12numpy.core.numeric", b"\x8c\x13numpy._core.numeric"
    assert core in data
    at = data.index(b"\x95")  # a frame, whose length goes along
    length = struct.pack("<Q", struct.unpack_from("<Q", data, at + 1)[0] + 1)
    (tmp_path / "y.pkl").write_bytes((data[: at + 1] + length + data[at + 9 :]).replace(core, numpy_2))
    same(read_weights(tmp_path / "y.pkl"), {"a": ARRAYS["ids"]})


def test_python_2s_arrays(tmp_path):
    """Text of one byte a character stood for bytes."""
    head = b"\x80\x02}U\x01aq\x01cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
    dtype = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    values = np.array([1.5, -2], np.float32)
    (tmp_path / "x.pkl").write_bytes(head + dtype + b"\x89U\x08" + values.tobytes() + b"tbs.")
    same(read_weights(tmp_path / "x.pkl"), {"a": values})


def test_torchs_objects_beside_weights(tmp_path, torch):
    state = {**BESIDE, "size": torch.Size((1, 2)), "device": torch.device("cpu"), "dtype": torch.float32}
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))], foreach=False)
    optimiser.param_groups[0]["params"][0].grad = torch.ones(3)
    optimiser.step()
    state |= {"optimizer": optimiser.state_dict(), "rng": torch.get_rng_state(), "model": {"w": torch.arange(3.0)}}
    state["expanded"] = torch.arange(3.0).expand(4, 3)
    torch.save(state, tmp_path / "x.pt")
    file = read_weights(tmp_path / "x.pt")
    assert list(file) == ["rng", "model.w", "expanded"]
    assert all(
        np.array_equal(file[k].read(), v.numpy())
        for k, v in {"model.w": state["model"]["w"], "expanded": state["expanded"], "rng": state["rng"]}.items()
    )


def test_whole_pickled_modules_are_laid_out(tmp_path, torch):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
    torch.save(model, tmp_path / "x.pt")
    file = read_weights(tmp_path / "x.pt")
    assert list(file) == ["_modules.0._parameters.weight", "_modules.0._parameters.bias"]
    assert np.array_equal(file["_modules.0._parameters.weight"].read(), model[0].weight.detach().numpy())


def test_a_tensor_takes_its_own_part_of_a_storage(tmp_path, torch, monkeypatch):
    """Views of one large storage: each reads what it shows, after one look at all for the checksum."""
    flat = torch.arange(100_000.0)
    torch.save({f"w{i}": flat[i * 10 : i * 10 + 10] for i in range(5)}, tmp_path / "x.pt")
    file, taken = read_weights(tmp_path / "x.pt"), []
    read = HeldFile.read
    monkeypatch.setattr(HeldFile, "read", lambda self, at, size: taken.append(size) or read(self, at, size))
    assert all(np.array_equal(file[f"w{i}"].read(), np.arange(10.0) + 10 * i) for i in range(5))
    assert taken == [400_000, *[40] * 5]


def flipped(path, entry: str, at: int, out) -> None:
    """A copy of a zip with one bit of a stored entry changed, its checksum left."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(entry).header_offset
    lengths = struct.unpack_from("<HH", data, start + 26)
    data[start + 30 + sum(lengths) + at] ^= 4
    out.write_bytes(data)


@pytest.mark.parametrize("at", [0, 100, 399_999])
def test_a_bit_that_flipped_in_a_storage_is_refused_by_its_name(tmp_path, torch, at):
    flat = torch.arange(100_000.0)
    torch.save({"whole": flat, "part": flat[500:520], "other": torch.ones(3)}, tmp_path / "x.pt")
    flipped(tmp_path / "x.pt", "x/data/0", at, tmp_path / "y.pt")
    for first in ("whole", "part"):
        file = read_weights(tmp_path / "y.pt")
        assert file["other"].read().tolist() == [1, 1, 1]
        for name in (first, "part", "whole"):  # and again, whatever was asked before
            with pytest.raises(
                CheckpointError, match=r"y.pt is a damaged archive \(the checksum of x/data/0 does not match"
            ):
                file[name].read()
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 2)), tmp_path / "s.pt")
    flipped(tmp_path / "s.pt", "s/data/0", 5, tmp_path / "t.pt")
    with pytest.raises(CheckpointError, match="the checksum of s/data/0 does not match"):
        read_weights(tmp_path / "t.pt")["weight"].read()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_bit_that_flipped_in_an_npz_is_refused_by_its_name(tmp_path, method):
    (np.savez if method == zipfile.ZIP_STORED else np.savez_compressed)(tmp_path / "x.npz", **ARRAYS)
    flipped(tmp_path / "x.npz", "ids.npy", 130 if method == zipfile.ZIP_STORED else 60, tmp_path / "y.npz")
    arrays = npz.read_npz(tmp_path / "x.npz")
    assert all(np.array_equal(arrays[name].read(), values) for name, values in ARRAYS.items())
    with pytest.raises(CheckpointError, match="ids.npy"):
        npz.read_npz(tmp_path / "y.npz")["ids"].read()


@pytest.mark.parametrize("how", ["none", "filled behind"])
def test_torch_files_without_checksums_are_read(tmp_path, torch, how):
    """Both are torch's own: `set_crc32_options(False)` writes zeros for all, `skip_data` for storages filled afterwards."""
    state = {"w": torch.randn(5, 3), "v": torch.randn(4)}
    try:
        torch.serialization.set_crc32_options(how != "none")
        torch.save(state, tmp_path / "x.pt")
    except AttributeError:
        pytest.skip("this torch always writes checksums")
    finally:
        torch.serialization.set_crc32_options(True)
    if how == "filled behind":
        with torch.serialization.skip_data():
            torch.save(state, tmp_path / "x.pt")
        with zipfile.ZipFile(tmp_path / "x.pt") as archive:
            entries = {e.filename: e for e in archive.infolist()}
        assert entries["x/data/0"].CRC == entries["x/data/1"].CRC == 0 != entries["x/data.pkl"].CRC
        skipped = bytearray((tmp_path / "x.pt").read_bytes())
        for name, values in (("x/data/0", state["w"]), ("x/data/1", state["v"])):
            start = entries[name].header_offset
            start += 30 + sum(struct.unpack_from("<HH", skipped, start + 26))
            raw = values.numpy().tobytes()
            skipped[start : start + len(raw)] = raw
        (tmp_path / "x.pt").write_bytes(skipped)
    else:
        with zipfile.ZipFile(tmp_path / "x.pt") as archive:
            assert not any(e.CRC for e in archive.infolist())
    same(read_weights(tmp_path / "x.pt"), {k: v.numpy() for k, v in state.items()})


def test_archives_of_many_gigabytes_keep_sizes_and_places_elsewhere(tmp_path, torch, monkeypatch):
    """A small one that is written as if it were large: 64 bits for sizes, places and the directory."""
    value = torch.randn(4, 4)
    torch.save({"w": value}, tmp_path / "x.pt")
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    rewrite(tmp_path / "x.pt", tmp_path / "large.pt", lambda _, data: data)
    assert b"PK\x06\x06" in (tmp_path / "large.pt").read_bytes()
    assert np.array_equal(read_weights(tmp_path / "large.pt")["w"].read(), value.numpy())


def test_truths_are_0_and_1(tmp_path):
    """NumPy sizes the result of indexing by a mask by summing its bytes."""
    safetensors.write(tmp_path / "x.safetensors", {"a": (np.array([0, 2, 255, 1], np.uint8), "bool")})
    mask = read_weights(tmp_path / "x.safetensors")["a"].read()
    assert mask.view(np.uint8).tolist() == [0, 1, 1, 1]
