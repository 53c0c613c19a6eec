"""Descriptions that no model has: each is refused in one line that names file, key, condition and value, or computes."""

from __future__ import annotations

import itertools
import json
import math
import os

import numpy as np
import pytest

from convert.cli import main
from jclip.cli import main as jclip
from jclip.errors import CheckpointError, JclipError, MisfitError
from jclip.features.source import open_any
from jclip.readers import jittor_pickle, read_weights, safetensors
from jclip.readers.schema import parse, read_weight_map
from jclip.weights.checkpoint import open_checkpoint, refuse_infinite
from jclip.weights.families import Stated
from jclip.weights.variants import CLIPConfig
from tests.hostile import descriptions
from tests.hostile.descriptions import KINDS, drawn, end_of, with_value

MUTANTS = 300  # in the suite; `python -m tests.hostile.descriptions` tries more


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_refused_or_make_sense(kind, tmp_path):
    base, write = KINDS[kind]()
    assert end_of(write(tmp_path, base)) == "accepted"
    ends = set()
    for number, (name, changed) in enumerate(drawn(base, MUTANTS // len(KINDS), seed=1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            ends.add(end_of(write(folder, changed)))
        except Exception as e:
            raise AssertionError(f"{kind}, {name}: {type(e).__name__}: {e}") from e
    assert "refused" in ends


WRONG = [  # kind, where, what, and what the message says
    ("ours, vit", "config.vision.heads", 0, "vision.heads must be an integer from 1 to 4096, got 0"),
    ("ours, vit", "config.vision.heads", 5, "vision.heads must divide width 24, got 5"),
    ("ours, vit", "config.vision.layers", 10**9, "vision.layers must be an integer from 0 to 1000, got 1000000000"),
    ("ours, vit", "config.vision.layers", 900, "does not fit the model"),
    ("ours, vit", "config.vision.patch_size", 0, "vision.patch_size must be an integer from 1 to 1024, got 0"),
    ("ours, vit", "config.vision.width", None, "vision.width must be an integer from 1 to 65536, got None"),
    ("ours, vit", "config.vision.image_size", 20, "vision.image_size must be a list of 2, each an integer from 1 to 8192"),
    ("ours, vit", "config.vision.image_size", [10**9, 20], "vision.image_size must be a list of 2"),
    ("ours, vit", "config.vision", "vit", "vision must be a table, got 'vit'"),
    ("ours, vit", "config.vision.kind", ["vit"], "must be one of vit, resnet, eva, siglip, pe, mobile, got ['vit']"),
    ("ours, vit", "config.text.context_length", -1, "text.context_length must be an integer from 1 to 65536, got -1"),
    ("ours, vit", "config.norm_eps", "«nan»", "numbers must be finite, got NaN"),
    ("ours, vit", "config.norm_eps", "«1e999»", "numbers must be finite, got 1e999"),
    ("ours, vit", "config.embed_dim", "«digits»", "an integer must have at most 30 digits, got 5000"),
    ("ours, vit", "config.embed_dim", "«deep»", "config must nest at most 32 tables"),
    ("ours, vit", "config.embed_dim", "«deep and whole»", "config must nest at most 32 tables"),
    ("ours, vit", "config.embed_dim", "«twice»", "the key 'a' appears twice"),
    ("ours, vit", "config", [1, 2], "config is not a table"),
    ("ours, vit", "preprocess.mean", ["a", "b", "c"], "mean must be a list of 3, each a number from -1000 to 1000"),
    ("ours, vit", "preprocess.std", [0, 0, 0], "std must be a list of 3, each a number from 1e-06 to 1000, got [0, 0, 0]"),
    ("ours, vit", "preprocess.size", [10, 10], "size must be image_size (20, 20) of vision, got (10, 10)"),
    ("ours, vit", "preprocess.draft", 1, "draft must be true or false, got 1"),
    ("ours, resnet", "config.vision.heads", 5, "vision.heads must divide the last feature map's width 128, got 5"),
    ("ours, resnet", "config.vision.layers", [1, 1, 1], "vision.layers must be a list of 4"),
    ("ours, eva", "config.vision.heads", 12, "vision.rope needs heads whose width is a multiple of 4"),
    ("open_clip", "open_clip_config.json/model_cfg", 3, "model_cfg must be a table, got 3"),
    ("open_clip", "open_clip_config.json/model_cfg.vision_cfg.head_width", 5, "vision_cfg.head_width must divide 24, got 5"),
    ("open_clip", "open_clip_config.json/model_cfg.vision_cfg.patch_size", 0, "vision_cfg.patch_size must be an integer"),
    ("open_clip", "open_clip_config.json/preprocess_cfg.mean", "abc", "preprocess_cfg.mean must be a list of 3"),
    ("Hugging Face", "config.json/vision_config", [1], "vision_config must be a table, or null, got [1]"),
    ("Hugging Face", "config.json/vision_config.num_attention_heads", 0, "vision_config.num_attention_heads must be an"),
    ("Hugging Face", "config.json/model_type", ["clip"], "model_type must be a text"),
    ("Hugging Face", "preprocessor_config.json/image_mean", "abc", "image_mean must be a list of 3, each a number"),
    ("Hugging Face", "preprocessor_config.json/image_std", [0, 0, 0], "image_std must be a list of 3, each a number"),
    ("Hugging Face", "preprocessor_config.json/resample", 1, "resample must be one of 2, 3, got 1"),
    ("EVA of the hub", "config.json/vision_config.layer_norm_eps", 0, "vision_config.layer_norm_eps must be a number above"),
]  # fmt: skip


@pytest.mark.parametrize("kind, at, value, message", WRONG)
def test_a_wrong_value_is_named_with_its_file_and_its_condition(kind, at, value, message, tmp_path, capsys):
    base, write = KINDS[kind]()
    file, _, keys = at.partition("/") if "/" in at else ("", "", at)
    keys = [*filter(None, [file]), *keys.split(".")]
    path = write(tmp_path, with_value(base, tuple(keys), value))
    assert jclip(["inspect", str(path)]) in (1, 2)
    stderr = capsys.readouterr().err
    assert message in stderr and len(stderr.splitlines()) == 1
    assert (file or "model.safetensors") in stderr


def test_files_with_lying_descriptions_are_refused(shared, capsys):
    files = sorted((shared / "hostile").glob("ours_*.safetensors"))
    assert files
    for file in files:
        assert jclip(["inspect", str(file)]) in (1, 2), file
        printed = capsys.readouterr()
        assert len(printed.err.splitlines()) == 1 and printed.err.isprintable() is False  # but for the line's end
        assert printed.err.rstrip("\n").isprintable() and file.name in printed.err and not printed.out


def test_free_text_of_a_file_is_printed_and_kept_as_one_harmless_line(tmp_path, capsys):
    said, arrays = describe_toy(), descriptions._arrays("vit")
    safetensors.write(
        tmp_path / "x.safetensors", arrays, {**said, "source_family": "\x1b]0;owned\x07\nfamily: trusted"}
    )
    assert jclip(["inspect", str(tmp_path / "x.safetensors")]) == 0
    assert "family       \\x1b]0;owned\\x07\\nfamily: trusted" in capsys.readouterr().out
    assert main([str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors")]) == 0
    assert open_checkpoint(tmp_path / "y.safetensors").metadata["source_family"].isprintable()


def describe_toy() -> dict[str, str]:
    from jclip.data.preprocess import Preprocess
    from jclip.weights.checkpoint import describe

    return describe(descriptions.MODELS["vit"], Preprocess(size=(20, 20)), 4.6)


@pytest.mark.parametrize("name", ["../x.bin", "/etc/passwd", "a\\b.bin", ".hidden", "", "c:x", "a\nb", 5, None, ["a"]])
def test_an_index_names_only_shards_beside_it(name, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "good.safetensors", "b": name}}))
    with pytest.raises(
        CheckpointError, match=r"is not an index of shards beside it: the shard of 'b' must be the plain name"
    ):
        read_weight_map(index)


def test_an_index_of_a_million_entries_is_refused(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {' + '"a": "model.safetensors", ' * 700_000)
    with pytest.raises(CheckpointError, match="must be a description of at most 16,777,216 bytes, got"):
        read_weight_map(index)
    index.write_text(json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(1001)}}))
    with pytest.raises(CheckpointError, match="must name at most 1000 shards, got 1001"):
        read_weight_map(index)


@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe\x00", b"\xff\xff", b'{"a": 1} x', b'"text"', b"12", b"null", b"{" * 10]
)
def test_what_is_no_table_is_refused(text):
    with pytest.raises(CheckpointError, match="^x.json is not "):
        parse(text, "x.json")


@pytest.mark.parametrize("place", ["config.json", "open_clip_config.json", "model.safetensors"])
def test_a_fifo_in_a_files_place_does_not_block(place, tmp_path, capsys):
    base, write = KINDS["open_clip" if place.startswith("open") else "EVA of the hub"]()
    write(tmp_path, base)
    (tmp_path / place).unlink()
    os.mkfifo(tmp_path / place)
    for path in (tmp_path, tmp_path / place):
        assert jclip(["inspect", str(path)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("form", ["ours", "openai", "hf"])
def test_numbers_that_are_not_finite_are_refused_by_the_tensors_name(form, value, tmp_path, capsys):
    arrays = descriptions._arrays("vit")
    if form == "hf":
        base, write = KINDS["Hugging Face"]()
        (tmp_path / "hf").mkdir()
        path, name, ours = write(tmp_path / "hf", base), "visual_projection.weight", "visual.proj"
        for file in path.glob("*-of-*"):
            part = {k: np.array(t.read()) for k, t in read_weights(file).items()}
            if name in part:
                part[name].ravel()[5] = value
                safetensors.write(file, part)
    else:
        ours = "transformer.resblocks.0.mlp.c_fc.weight"
        arrays[ours].ravel()[7] = value
        path = tmp_path / ("x.safetensors" if form == "ours" else "x.pkl")
        if form == "ours":
            safetensors.write(path, arrays, describe_toy())
        else:
            jittor_pickle.write(path, arrays)
    options = ["--family", "openai", "--vision-head-width", "8"] if form == "openai" else []
    assert main([str(path), str(tmp_path / "out.safetensors"), *options]) == 2
    stderr = capsys.readouterr().err
    assert f"{ours} must be finite, got 1 NaN or infinite of" in stderr and len(stderr.splitlines()) == 1
    assert not (tmp_path / "out.safetensors").exists()
    if form != "openai":
        with pytest.raises(CheckpointError, match="must be finite"):
            dict(open_any(path, Stated()).arrays())


def test_large_sums_are_finite():
    """Numbers whose sum leaves float's range are themselves in it."""
    refuse_infinite("x", np.full(10, 3e38, np.float32), "file")
    refuse_infinite("x", np.full(10, 6e4, np.float16), "file")
    refuse_infinite("x", np.zeros((0, 3), np.float32), "file")
    with pytest.raises(CheckpointError, match="file: x must be finite, got 2 NaN or infinite of 5 values"):
        refuse_infinite("x", np.array([1, np.inf, -np.inf, 3e38, 3e38], np.float32), "file")


def test_numbers_beyond_half_precision_are_not_written_as_infinite(tmp_path, capsys):
    arrays = descriptions._arrays("vit")
    arrays["visual.proj"].ravel()[3] = 1e6
    safetensors.write(tmp_path / "x.safetensors", arrays, describe_toy())
    assert main([str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors"), "--dtype", "fp16"]) == 2
    assert (
        "visual.proj must be at most 65504 in size as fp16, got 1e+06: take --dtype bf16 or fp32"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "y.safetensors").exists()
    assert main([str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors"), "--dtype", "bf16"]) == 0


@pytest.mark.parametrize("value, message", [(100.0, "save its logarithm 4.6052"), (14.2857, "save its logarithm 2.6593"),
                                         (-50.0, "got -50"), (math.nan, "must be finite")])  # fmt: skip
def test_a_temperature_that_is_no_logarithm_is_noticed(value, message, tmp_path):
    arrays = {**descriptions._arrays("vit"), "logit_scale": np.array(value, np.float32)}
    safetensors.write(tmp_path / "x.safetensors", arrays, describe_toy())
    with pytest.raises(CheckpointError, match=message):
        dict(open_checkpoint(tmp_path / "x.safetensors").arrays())


@pytest.mark.parametrize("order", list(itertools.permutations(["module.", "_orig_mod.", "model.", "state_dict."], 3)))
def test_wrappers_come_off_in_any_order(order, tmp_path):
    arrays = descriptions._arrays("vit")
    wrapped = {"".join(order) + k: a for k, a in arrays.items()} | {"optimizer.step": np.zeros(3, np.float32)}
    jittor_pickle.write(tmp_path / "x.pkl", wrapped)
    found = open_checkpoint(tmp_path / "x.pkl", family="openai", head_width=8)
    assert set(found.tensors) == set(arrays)


def test_wrappers_inside_a_name_come_off_and_real_names_stay(tmp_path):
    arrays = descriptions._arrays("vit")
    inside = {
        k.replace("visual.", "module.visual._orig_mod.") if "visual" in k else f"module.{k}": a
        for k, a in arrays.items()
    }
    jittor_pickle.write(tmp_path / "x.pkl", inside)
    assert set(open_checkpoint(tmp_path / "x.pkl", family="openai", head_width=8).tensors) == set(arrays)
    jittor_pickle.write(tmp_path / "y.pkl", {**arrays, "module.visual.proj": arrays["visual.proj"]})
    with pytest.raises(MisfitError, match=r"1 unexpected \(module.visual.proj\)"):
        open_checkpoint(tmp_path / "y.pkl", family="openai", head_width=8)
    jittor_pickle.write(tmp_path / "z.pkl", {**arrays, "visual._orig_mod.proj": arrays["visual.proj"]})
    with pytest.raises(CheckpointError, match="visual.proj must appear once in a file"):
        open_checkpoint(tmp_path / "z.pkl", family="openai", head_width=8)


@pytest.mark.parametrize("shape", [(), (3,), (0, 3, 5, 5), (24, 3, 0, 0)])
def test_shapes_that_make_no_model_are_refused(shape, tmp_path):
    jittor_pickle.write(
        tmp_path / "x.pkl", {**descriptions._arrays("vit"), "visual.conv1.weight": np.zeros(shape, np.float32)}
    )
    with pytest.raises(CheckpointError, match="visual.conv1.weight must have 4 axes, none of them empty"):
        open_checkpoint(tmp_path / "x.pkl", family="openai", head_width=8)


@pytest.mark.parametrize(
    "name", ["~nobody-of-that-name/x", "a" * 300, "a\0b", "a\nb", "\x1b[2J", "/proc/1/mem/x", "\ud800"]
)
def test_names_that_no_file_has_are_refused(name, capsys):
    assert jclip(["inspect", name]) == 2
    stderr = capsys.readouterr().err.rstrip("\n")
    assert stderr.isprintable() and len(stderr) < 2500


def test_a_device_is_no_weight_file(capsys):
    for command in (["inspect", "/dev/zero"], ["inspect", "/dev/null"]):
        assert jclip(command) == 2
        assert "must be a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(), (24, 5), (24, 24, 2)])
def test_thirds_that_do_not_stack_are_refused(shape, tmp_path, capsys):
    base, write = KINDS["Hugging Face"]()
    write(tmp_path, base)
    name = "vision_model.encoder.layers.0.self_attn.k_proj.weight"
    file = tmp_path / base["model.safetensors.index.json"]["weight_map"][name]
    safetensors.write(file, {**{k: t.read() for k, t in read_weights(file).items()}, name: np.ones(shape, np.float32)})
    assert jclip(["inspect", str(tmp_path)]) == 2
    assert "must have shapes that differ in the first axis only" in capsys.readouterr().err


def test_hashes_of_the_catalogue_are_found_again_and_others_are_not():
    from jclip.weights import catalogue

    assert all(len(file.sha256) in (8, 64) for file in catalogue.files())
    for file in catalogue.files():
        digest = file.sha256.ljust(64, "0")
        assert catalogue.by_sha256(digest) == catalogue.lookup(f"{file.architecture}/{file.tag}")
    assert catalogue.by_sha256("0" * 64) is None


def test_every_variant_meets_the_conditions():
    from jclip.weights.variants import ARCHITECTURES, SHIPPED, VARIANTS

    for config in (*VARIANTS.values(), *SHIPPED.values(), *ARCHITECTURES.values()):
        assert CLIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_errors_of_descriptions_are_of_the_named_kinds():
    with pytest.raises(JclipError, match="the description must be a table, got"):
        CLIPConfig.from_dict([1])
