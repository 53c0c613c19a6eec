"""FG-CLIP 2 back to its authors' layout, tensor by tensor."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
transformers = pytest.importorskip("transformers", reason="the reference is not installed: pip install '.[parity]'")

import safetensors.torch  # noqa: E402

from convert.cli import main  # noqa: E402
from jclip.weights.checkpoint import open_checkpoint, save_checkpoint  # noqa: E402
from jclip.weights.families import Stated  # noqa: E402
from jclip.weights.identify import identify  # noqa: E402
from tests.parity.test_fg_clip import EMBEDDINGS, TEXTS, fg_clip_folder  # noqa: E402
from tests.toys import TOY_VIT, toy_file  # noqa: E402

HEAD = {"short": "text_model.head", "box": "boxtext_head", "long": "longtext_head"}


def converted(*argv, texts=None):
    return main([*map(str, argv), *(["--texts", texts] if texts else [])])


def refused(capsys, code, *argv, texts=None):
    assert converted(*argv, texts=texts) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


def changed(file, out, seed):
    """A file like one that training writes: other values, and nothing said of where they come from."""
    found, rng = open_checkpoint(file), np.random.default_rng(seed)
    arrays = {k: np.asarray(a + rng.standard_normal(a.shape) / 9, np.float32) for k, a in found.arrays()}
    save_checkpoint(out, arrays, found.config, found.preprocess, {"made_by": "full"}, found.vocabulary)
    return arrays


@pytest.mark.parametrize("texts", TEXTS)
def test_unchanged_weights_come_back_bit_for_bit(texts, tmp_path, capsys):
    _, tensors = fg_clip_folder(tmp_path / "fg", 0)
    (tmp_path / "fg" / "modeling_fgclip2.py").write_text("raise SystemExit('code of a folder must not run')\n")
    (tmp_path / "fg" / "pytorch_model.bin").write_bytes(b"other weights")
    out = tmp_path / "out, of jclip"
    assert converted(tmp_path / "fg", tmp_path / "a.safetensors", texts=texts) == 0
    assert converted(tmp_path / "a.safetensors", out, "--to", "fg_clip", "--rest-of", tmp_path / "fg") == 0
    kept = {"short": 7, "box": 7, "long": 6}[texts]  # two heads of two, dense probe, two tables; of long texts one
    assert f"of {tmp_path / 'fg'}: {kept} tensors" in capsys.readouterr().out
    back = safetensors.torch.load_file(out / "model.safetensors")
    assert list(back) == list(safetensors.torch.load_file(tmp_path / "fg" / "model.safetensors"))
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype, name
    beside = {file.name for file in (tmp_path / "fg").iterdir()} - {"pytorch_model.bin", "model.safetensors"}
    assert {file.name for file in out.iterdir()} - {"model.safetensors"} == beside
    for name in beside:
        assert (out / name).read_bytes() == (tmp_path / "fg" / name).read_bytes()


@pytest.mark.parametrize("texts", TEXTS)
def test_changed_weights_are_there_and_no_others(texts, tmp_path):
    _, tensors = fg_clip_folder(tmp_path / "fg", 1)
    assert converted(tmp_path / "fg", tmp_path / "a.safetensors", texts=texts) == 0
    arrays = changed(tmp_path / "a.safetensors", tmp_path / "b.safetensors", 1)
    own = () if texts == "long" else ("--texts", texts)  # long texts show in the number of positions
    command = [tmp_path / "b.safetensors", tmp_path / "out", "--to", "fg_clip", "--rest-of", tmp_path / "fg", *own]
    assert converted(*command) == 0
    again = identify(tmp_path / "out", Stated(texts=texts))
    again.check()
    for name, array in again.checkpoint.arrays():
        assert np.array_equal(array.ravel(), arrays[name].ravel()), name
    back = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    same = {name for name, tensor in tensors.items() if torch.equal(back[name], tensor)}
    others = {f"{head}.{part}" for way, head in HEAD.items() if way != texts for part in ("weight", "bias")}
    tables = (
        {f"{EMBEDDINGS}.weight"} if texts == "long" else {f"{EMBEDDINGS}_{which}.weight" for which in ("ori", "res")}
    )
    assert same == others | tables | {"dense_feature_head.probe"}
    if texts == "long":  # each table's rows that are never read stay the authors'
        assert torch.equal(back[f"{EMBEDDINGS}_ori.weight"][20:], tensors[f"{EMBEDDINGS}_ori.weight"][20:])
        assert torch.equal(back[f"{EMBEDDINGS}_res.weight"][:20], tensors[f"{EMBEDDINGS}_res.weight"][:20])
        assert not torch.equal(back[f"{EMBEDDINGS}_ori.weight"][:20], tensors[f"{EMBEDDINGS}_ori.weight"][:20])


def test_two_ways_in_turn_and_one_tower(tmp_path):
    """A second file goes on top of the first one's folder; an image tower alone replaces no word."""
    _, tensors = fg_clip_folder(tmp_path / "fg", 2)
    rest = tmp_path / "fg"
    for texts in ("long", "box"):
        assert converted(rest, tmp_path / f"{texts}.safetensors", texts=texts) == 0
        arrays = changed(tmp_path / f"{texts}.safetensors", tmp_path / f"{texts}2.safetensors", 3)
        out = tmp_path / f"with {texts}"
        source = tmp_path / f"{texts}2.safetensors"
        assert converted(source, out, "--to", "fg_clip", "--rest-of", rest, texts=texts) == 0
        rest = out
        head = safetensors.torch.load_file(out / "model.safetensors")[f"{HEAD[texts]}.weight"]
        assert np.array_equal(head.numpy(), arrays["text.text_projection.weight"])
    both = safetensors.torch.load_file(rest / "model.safetensors")
    assert not torch.equal(both["longtext_head.weight"], tensors["longtext_head.weight"])
    assert torch.equal(both["text_model.head.weight"], tensors["text_model.head.weight"])
    tower = tmp_path / "tower.safetensors"
    assert converted(rest, tower, "--tower", "image") == 0
    assert converted(tower, tmp_path / "one", "--tower", "image", "--to", "fg_clip", "--rest-of", tmp_path / "fg") == 0
    one = safetensors.torch.load_file(tmp_path / "one" / "model.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(one[name], both[name] if name.startswith("vision_model.") else tensor), name


def test_half_precision_and_shards(tmp_path):
    _, tensors = fg_clip_folder(tmp_path / "fg", 4)
    names = list(tensors)
    parts = {"one.safetensors": names[: len(names) // 2], "two.safetensors": names[len(names) // 2 :]}
    for file, held in parts.items():
        safetensors.torch.save_file({k: tensors[k].contiguous() for k in held}, tmp_path / "fg" / file)
    (tmp_path / "fg" / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (tmp_path / "fg" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert (
        converted(tmp_path / "fg", tmp_path / "out", "--to", "fg_clip", "--rest-of", tmp_path / "fg", "--dtype", "bf16")
        == 0
    )
    back = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
    for name, tensor in tensors.items():
        wanted = tensor if name.startswith("logit_") else tensor.bfloat16()
        assert torch.equal(back[name], wanted) and back[name].dtype == wanted.dtype, name


def test_what_does_not_fit_is_one_line(tmp_path, capsys):
    fg_clip_folder(tmp_path / "fg", 0)
    other = {"it": ("vision_config", "hidden_act", "gelu")}
    fg_clip_folder(tmp_path / "other", 0, **other)
    shutil.copytree(tmp_path / "fg", tmp_path / "words")
    words = tmp_path / "words" / "tokenizer.json"
    said = json.loads(words.read_text())
    vocabulary = said["model"]["vocab"]
    vocabulary[10], vocabulary[11] = vocabulary[11], vocabulary[10]
    words.write_text(json.dumps(said))
    file, free, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "out"
    assert converted(tmp_path / "fg", file) == 0
    changed(file, free, 5)
    clip, large = toy_file(tmp_path, TOY_VIT), tmp_path / "large.safetensors"
    assert converted(file, large, "--image-size", 30) == 0
    capsys.readouterr()
    into = ("--to", "fg_clip", "--rest-of")
    for message, argv, texts in [
        ("--to fg_clip and --rest-of must be given together", (file, out, "--to", "fg_clip"), None),
        ("--to fg_clip and --rest-of must be given together", (file, out, "--rest-of", tmp_path / "fg"), None),
        ("must be a folder whose config.json says model_type fgclip2", (file, out, *into, tmp_path), None),
        ("must be a folder whose config.json says model_type fgclip2", (file, out, *into, file), None),
        ("DST must be apart from --rest-of's folder", (file, tmp_path / "fg", *into, tmp_path / "fg"), None),
        ("DST must be apart from --rest-of's folder", (file, tmp_path / "fg" / "in", *into, tmp_path / "fg"), None),
        ("of another family", (clip, out, *into, tmp_path / "fg"), None),
        ("which has vision.image_size [20, 20], got [30, 30]", (large, out, *into, tmp_path / "fg"), None),
        ("activation gelu, got gelu_tanh", (file, out, *into, tmp_path / "other"), None),
        ("must have the vocabulary of", (file, out, *into, tmp_path / "words"), None),
        ("--texts must be short, as", (file, out, *into, tmp_path / "fg"), "box"),
        ("--texts must be short or box", (free, out, *into, tmp_path / "fg"), None),
        ("text.context_length 29, got 11", (free, out, *into, tmp_path / "fg"), "long"),
    ]:  # fmt: skip
        assert message in refused(capsys, 2, *argv, texts=texts), message
        assert not out.exists()
