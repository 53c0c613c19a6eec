"""Files that are hostile, broken or don't fit: one line, the right exit code, and DST as it was."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert.cli import main
from jclip.readers import jittor_pickle, read_weights, safetensors
from tests.converters.test_convert import ROOT, hugging_face_folder
from tests.library.test_readers import BROKEN_SAFETENSORS, nested_bomb, zip_with_pickle
from tests.toys import TOY_VIT, toy_file

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")


def refused(tmp_path, capsys, source, *options, code: int = 2) -> str:
    """The one line that the command ends in; what stood at DST stands there still, and nothing else was left."""
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"before")
    before = sorted(p.name for p in tmp_path.iterdir())
    capsys.readouterr()
    assert main([str(source), str(target), *options]) == code
    stderr = capsys.readouterr().err
    assert len(stderr.splitlines()) == 1 and stderr.startswith("convert: "), stderr
    assert target.read_bytes() == b"before" and sorted(p.name for p in tmp_path.iterdir()) == before
    return stderr


class Bomb:
    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return __import__("os").system, (f"touch {self.place}",)


def bomb_file(form: str, folder: Path, mark: Path) -> Path:
    payload = pickle.dumps({"visual.conv1.weight": Bomb(mark)}, 2)
    if form == "hub folder":
        (folder / "config.json").write_text("{}")
        return zipped(folder / "pytorch_model.bin", payload).parent
    if form == "open_clip folder":
        said = {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}}
        (folder / "open_clip_config.json").write_text(json.dumps(said))
        return zipped(folder / "open_clip_pytorch_model.bin", payload).parent
    if form == "shard":
        (folder / "config.json").write_text("{}")
        index = {"weight_map": {"x": "pytorch_model-00001-of-00001.bin"}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        return zipped(folder / "pytorch_model-00001-of-00001.bin", payload).parent
    path = folder / {"jittor": "bomb.pkl", "nested": "nested.pkl"}.get(form, "bomb.pt")
    if form == "jittor":
        path.write_bytes(payload)
    elif form == "nested":
        path.write_bytes(nested_bomb(mark))
    elif form == "beside weights":
        torch.save({"state_dict": {"visual.conv1.weight": torch.ones(2)}, "args": Bomb(mark)}, path)
    else:
        zipped(path, payload, script=form == "torchscript")
    return path


def zipped(path: Path, payload: bytes, script: bool = False) -> Path:
    zip_with_pickle(path, payload, script)
    return path


@pytest.mark.parametrize(
    "form",
    ["jittor", "nested", "torch zip", "torchscript", "beside weights", "hub folder", "open_clip folder", "shard"],
)
def test_what_would_run_code_does_not_run(form, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    source = bomb_file(form, tmp_path / "in", tmp_path / "ran")
    got = refused(tmp_path, capsys, source, *([] if source.is_dir() else ["--family", "openai"]))
    assert "posix.system, which loading it would run or import: refused, nothing was run" in got
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("what", BROKEN_SAFETENSORS)
def test_broken_safetensors(what, tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes(BROKEN_SAFETENSORS[what][0])
    assert "x.safetensors" in refused(tmp_path, capsys, tmp_path / "x.safetensors", "--family", "openai")


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_truncated_files_of_every_kind(keep, tmp_path, capsys):
    whole = toy_file(tmp_path, TOY_VIT)
    arrays = {k: t.read() for k, t in read_weights(whole).items()}
    torch.save({k: torch.tensor(a) for k, a in arrays.items()}, tmp_path / "a.pt")
    jittor_pickle.write(tmp_path / "a.pkl", arrays)
    for path in (whole, tmp_path / "a.pt", tmp_path / "a.pkl"):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        assert path.name in refused(tmp_path, capsys, path, "--family", "openai")


def test_indices_of_shards_that_lie(tmp_path, capsys):
    hugging_face_folder(tmp_path / "hf", TOY_VIT, max_shard_size="20KB")
    index = tmp_path / "hf" / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    key, file = next(iter(said["weight_map"].items()))
    other = next(f for f in said["weight_map"].values() if f != file)
    cases = {
        "is not an index of shards beside it": {"weight_map": {**said["weight_map"], key: "../secret.safetensors"}},
        f"{other} lacks {key}": {"weight_map": {**said["weight_map"], key: other}},
        "every shard is missing": {"weight_map": {}},
        "is not a table": [1, 2],
    }
    for message, wrong in cases.items():
        index.write_text(json.dumps(wrong))
        assert message in refused(tmp_path, capsys, tmp_path / "hf"), message
    index.write_text("{")
    assert "is not valid JSON" in refused(tmp_path, capsys, tmp_path / "hf")
    index.write_text(json.dumps(said))
    (tmp_path / "hf" / file).unlink()
    assert f"{file} is missing, which model.safetensors.index.json names" in refused(tmp_path, capsys, tmp_path / "hf")


def test_of_two_sets_of_shards_the_safer_one_is_read(tmp_path):
    """A hub folder may hold safetensors and torch files, each with its index."""
    hugging_face_folder(tmp_path / "hf", TOY_VIT, max_shard_size="20KB")
    other = {"weight_map": {"x": "pytorch_model-00001-of-00001.bin"}}
    (tmp_path / "hf" / "pytorch_model.bin.index.json").write_text(json.dumps(other))
    zipped(tmp_path / "hf" / "pytorch_model-00001-of-00001.bin", pickle.dumps({}, 2))
    assert main([str(tmp_path / "hf"), str(tmp_path / "out.safetensors")]) == 0


def test_a_converted_file_is_taken_again(tmp_path, capsys):
    """What jclip wrote is a source as good as any; onto itself it is not written."""
    assert main([str(toy_file(tmp_path, TOY_VIT)), str(tmp_path / "once")]) == 0
    assert main([str(tmp_path / "once"), str(tmp_path / "twice")]) == 0
    once, twice = (read_weights(tmp_path / n / "model.safetensors") for n in ("once", "twice"))
    assert all(np.array_equal(t.read(), twice[k].read()) for k, t in once.items()) and once.metadata == twice.metadata
    for target in ("once", "once/model.safetensors"):
        capsys.readouterr()
        assert main([str(tmp_path / "once" / "model.safetensors"), str(tmp_path / target)]) == 2
        assert "name a" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.pop("ln_final.bias"), "1 missing (ln_final.bias)"),
        (lambda a: a.update({"visual.extra": np.zeros(3, np.float32)}), "1 unexpected (visual.extra)"),
        (
            lambda a: a.update({"visual.class_embedding": np.zeros(5, np.float32)}),
            "1 misshaped (visual.class_embedding (5,)",
        ),
    ],
)
def test_keys_that_do_not_fit_are_named_and_nothing_is_written(change, message, tmp_path, capsys):
    folder = tmp_path / "in"
    assert main([str(toy_file(tmp_path, TOY_VIT)), str(folder)]) == 0
    arrays = {k: t.read() for k, t in read_weights(folder / "model.safetensors").items()}
    change(arrays)
    safetensors.write(folder / "model.safetensors", arrays)
    capsys.readouterr()
    assert main([str(folder), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_what_the_user_can_fix_is_one_line_and_exit_2(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.safetensors").write_bytes(b"\xff" * 8 + b"{")
    (tmp_path / "taken").write_text("a file")
    hugging = tmp_path / "siglip"
    hugging.mkdir()
    (hugging / "model.safetensors").write_bytes(b"")
    (hugging / "config.json").write_text(json.dumps({"model_type": "coca"}))
    ok = str(toy_file(tmp_path, TOY_VIT))
    cases = {
        "nowhere is neither a file nor a model's name": [str(tmp_path / "nowhere"), "out"],
        "holds no weights (one of open_clip_model.safetensors": [str(tmp_path / "empty"), "out"],
        "is no weight file that jclip knows": [str(tmp_path / "short.safetensors"), "out"],
        "DST must be a folder, or a file that ends in .safetensors or .pkl, got the file": [
            ok,
            str(tmp_path / "taken"),
        ],
        "is of a coca model": [str(hugging), "out"],
        "says activation": [ok, "out", "--family", "openclip"],
        "a folder that says itself": [str(hugging), "out", "--family", "openai"],
    }
    for message, arguments in cases.items():
        assert main(arguments) == 2, message
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from convert.cli import main
sys.exit(main(sys.argv[1:]))
"""


WRITTEN = {"out.safetensors": "jclip", "out": "jclip", "hf": "huggingface", "out.pt": "torch", "out.pkl": "jclip"}


@pytest.mark.parametrize("name, to", WRITTEN.items())
def test_a_disk_that_fills_up_leaves_what_was_there(name, to, tmp_path):
    """The system itself refuses to write more than 20 KB to a file, half of what the weights take."""
    source, target = toy_file(tmp_path, TOY_VIT), tmp_path / name
    if target.suffix:
        target.write_bytes(b"before")
    before = sorted(p.name for p in tmp_path.iterdir())
    command = [sys.executable, "-c", FULL, str(source), str(target), "--to", to]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"{target.name}: File too large" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert not target.suffix or target.read_bytes() == b"before"


def test_weights_of_8_bits_are_refused_by_name(tmp_path, capsys):
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    state = {k: torch.tensor(t.read()) for k, t in read_weights(toy_file(tmp_path, TOY_VIT)).items()}
    torch.save(state | {name: (30 * state[name]).to(torch.int8)}, tmp_path / "short.pt")
    error = refused(tmp_path, capsys, tmp_path / "short.pt", "--family", "openai")
    assert f"holds 1 weights of 8-bit integers ({name}, …): they must be floats" in error
