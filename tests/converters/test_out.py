"""Weights go out to the PyTorch world and come back bit for bit; the other side loads them and computes the same."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from convert.cli import main
from jclip.data.preprocess import Preprocess
from jclip.errors import SetupError
from jclip.features.loading import load
from jclip.model.clip import build
from jclip.readers import read_weights
from jclip.runtime import jt
from jclip.weights.checkpoint import open_checkpoint, random_arrays, save_checkpoint
from jclip.weights.parameter_shapes import parameter_shapes
from jclip.weights.variants import ARCHITECTURES, CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from tests.toys import SMALL_VIT, TOY_EVAS, TOY_LAYER_SCALE, TOY_RESNET, TOY_VIT, TOY_VIT_GELU, toy_batch, toy_file

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")

_TEXT64 = TextConfig(width=64, heads=1, layers=2, mlp_width=256, context_length=11, vocab_size=97)
OPENAI_VIT = CLIPConfig(14, ViTConfig((20, 20), 5, 128, 2, 2, 512), _TEXT64)  # in the proportions its code assumes
OPENAI_RESNET = CLIPConfig(14, ResNetConfig((96, 96), 6, (1, 2, 1, 1), heads=3), _TEXT64)
EVA_8B = replace(TOY_EVAS["8b"], vision=replace(TOY_EVAS["8b"].vision, image_size=(20, 20)))
EVA_18B = replace(TOY_EVAS["18b"], vision=replace(TOY_EVAS["18b"].vision, image_size=(20, 20)))
HOLDS = {
    "open_clip": {"vit": TOY_VIT, "gelu": TOY_VIT_GELU, "layer scale": TOY_LAYER_SCALE, "resnet": TOY_RESNET},
    "huggingface": {"vit": TOY_VIT, "gelu": TOY_VIT_GELU, "8b": EVA_8B, "18b": EVA_18B},
    "openai": {"vit": OPENAI_VIT, "resnet": OPENAI_RESNET},
    "torch": {"vit": OPENAI_VIT, "resnet": OPENAI_RESNET, "layer scale": TOY_LAYER_SCALE, **TOY_EVAS},
}
CASES = [pytest.param(to, config, id=f"{to}-{name}") for to, held in HOLDS.items() for name, config in held.items()]


def name_of(to: str) -> str:
    return {"openai": "out.pt", "torch": "out.pth"}.get(to, "out")


def identity(to: str, config) -> list[str]:
    """What a bare state dict does not say."""
    v = config.vision
    if to == "openai":
        return ["--vision-head-width", "64"] if v.kind == "vit" else []
    if to != "torch":
        return []
    options = ["--activation", config.activation]
    if v.kind != "resnet":
        options += ["--vision-head-width", str(v.width // v.heads), "--image-size", *map(str, v.image_size)]
    if v.kind == "eva" and not v.sub_norm:
        options += ["--post-norm", "yes" if v.post_norm else "no"]
    return options


@pytest.mark.parametrize("to, config", CASES)
def test_out_and_in_again_changes_no_bit(to, config, tmp_path):
    out, back = tmp_path / name_of(to), tmp_path / "back.safetensors"
    source = toy_file(tmp_path, config)
    assert main([str(source), str(out), "--to", to]) == 0
    assert main([str(out), str(back), *identity(to, config)]) == 0
    wanted, got = read_weights(source), read_weights(back)
    assert set(wanted) == set(got)
    for name, tensor in wanted.items():
        assert np.array_equal(tensor.read(), got[name].read()), name
    found = open_checkpoint(back)
    if to != "torch":
        assert found.config == config if to != "openai" else found.config.vision == config.vision
        first = to == "huggingface"  # transformers makes photos RGB before it resizes them
        assert found.preprocess == replace(open_checkpoint(source).preprocess, rgb_first=first)


@pytest.mark.parametrize("config", HOLDS["open_clip"].values(), ids=HOLDS["open_clip"])
def test_open_clip_loads_ours(config, tmp_path, close):
    """Both what `--to open_clip` writes and jclip's own folder; its preprocessing too."""
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    source = squashing(tmp_path, config)
    pixels, tokens = toy_batch(config)
    ours = build(open_checkpoint(source))
    for to in ("open_clip", "jclip"):
        assert main([str(source), str(tmp_path / to), "--to", to]) == 0
        theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / to}")
        assert "Resize" in str(transform) and "0.5, 0.5, 0.5" in str(transform)
        with torch.no_grad(), jt.no_grad():
            close(
                ours.encode_image(pixels).numpy(),
                theirs.eval().encode_image(torch.tensor(pixels)),
                "features",
                f"to {to}: image",
            )
            close(
                ours.encode_text(tokens).numpy(),
                theirs.encode_text(torch.tensor(tokens).long()),
                "features",
                f"to {to}: text",
            )


def squashing(folder, config):
    path = folder / "squashing.safetensors"
    shown = Preprocess(size=config.vision.image_size, resize="squash", mean=(0.5,) * 3, std=(0.5,) * 3)
    save_checkpoint(path, random_arrays(parameter_shapes(config), 0), config, shown)
    return path


@pytest.mark.parametrize("config", [TOY_VIT, TOY_VIT_GELU], ids=["quickgelu", "gelu"])
def test_transformers_loads_ours(config, tmp_path, close):
    from transformers import CLIPModel

    source = toy_file(tmp_path, config)
    assert main([str(source), str(tmp_path / "hf"), "--to", "huggingface"]) == 0
    theirs, said = CLIPModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(said[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels, tokens = toy_batch(config)
    ours = build(open_checkpoint(source))
    with torch.no_grad(), jt.no_grad():
        image = theirs.eval().get_image_features(torch.tensor(pixels)).pooler_output
        text = theirs.get_text_features(torch.tensor(tokens).long()).pooler_output
        close(ours.encode_image(pixels).numpy(), image, "features", "to huggingface: image")
        close(ours.encode_text(tokens).numpy(), text, "features", "to huggingface: text")


def test_transformers_tokenizer_and_processor_load_ours(tmp_path, close):
    from PIL import Image
    from transformers import CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from jclip.prompts.tokenizer import tokenize

    assert main([str(toy_file(tmp_path, SMALL_VIT)), str(tmp_path / "hf"), "--to", "huggingface"]) == 0
    texts = ["a photo of a dog", "Ünïcode's 2 cats!", "don't"]
    theirs = CLIPTokenizer.from_pretrained(tmp_path / "hf")(texts, padding="max_length", max_length=77)["input_ids"]
    ours = tokenize(texts)
    for row, ids in zip(ours, theirs, strict=True):
        end = row.argmax()
        assert list(row[: end + 1]) == ids[: end + 1]
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8))
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path / "hf")
    wanted = Preprocess(size=(32, 32))(photo)
    got = processor(photo, return_tensors="np")["pixel_values"][0]
    close(got, wanted, "kernel")


@pytest.mark.parametrize("config", [OPENAI_VIT, OPENAI_RESNET], ids=["vit", "resnet"])
def test_openais_code_loads_ours(config, tmp_path, close):
    """Its `build_model` rounds weights to half precision, so features are compared in its class itself."""
    clip = pytest.importorskip("clip.model", reason="openai-clip is not installed")
    source = toy_file(tmp_path, config)
    assert main([str(source), str(tmp_path / "out.pt"), "--to", "openai"]) == 0
    state = torch.load(tmp_path / "out.pt", weights_only=True)
    assert clip.build_model(dict(state)) is not None
    v, t = config.vision, config.text
    theirs = clip.CLIP(
        config.embed_dim, v.image_size[0], v.layers, v.width, getattr(v, "patch_size", None),
        t.context_length, t.vocab_size, t.width, t.heads, t.layers,
    )  # fmt: skip
    theirs.load_state_dict(
        {k: x for k, x in state.items() if k not in ("input_resolution", "context_length", "vocab_size")}
    )
    pixels, tokens = toy_batch(config)
    ours = build(open_checkpoint(source))
    with torch.no_grad(), jt.no_grad():
        close(
            ours.encode_image(pixels).numpy(),
            theirs.eval().encode_image(torch.tensor(pixels)),
            "features",
            "to openai: image",
        )
        close(
            ours.encode_text(tokens).numpy(),
            theirs.encode_text(torch.tensor(tokens).long()),
            "features",
            "to openai: text",
        )


@pytest.mark.parametrize("dtype, kind", [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_torch_reads_the_archive_in_every_dtype(dtype, kind, tmp_path):
    source = toy_file(tmp_path, TOY_RESNET)
    assert main([str(source), str(tmp_path / "out.pth"), "--to", "torch", "--dtype", dtype]) == 0
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    for name, tensor in read_weights(source).items():
        wanted = torch.tensor(tensor.read())
        assert torch.equal(state[name], wanted if name == "logit_scale" else wanted.to(kind)), name
    assert state["logit_scale"].shape == () and state["visual.bn1.num_batches_tracked"].dtype == torch.int64
    mapped = torch.load(tmp_path / "out.pth", weights_only=True, mmap=True)
    assert all(torch.equal(mapped[k], v) for k, v in state.items())


@pytest.mark.parametrize(
    "to, config, message",
    [
        ("openai", TOY_VIT_GELU, "must support the model, which has GELU"),
        ("openai", TOY_VIT, "must support the model, which has heads of another width"),
        ("openai", TOY_EVAS["8b"], "must support the model, which has an EVA tower"),
        ("openai", replace(OPENAI_VIT, vision=replace(OPENAI_VIT.vision, image_size=(20, 15))), "non-square input"),
        ("huggingface", TOY_RESNET, "holds no ResNet"),
        ("huggingface", TOY_LAYER_SCALE, "holds no layer scale"),
        ("huggingface", TOY_EVAS["eva02"], "holds no tower of a non-square input"),
        ("open_clip", EVA_18B, "open_clip has no such model"),
    ],
)
def test_what_a_target_can_not_hold_is_reported(to, config, message, tmp_path, capsys):
    source = toy_file(tmp_path, config)
    before = sorted(tmp_path.iterdir())
    assert main([str(source), str(tmp_path / name_of(to)), "--to", to]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_where_things_go_is_checked_first(tmp_path, capsys):
    source = toy_file(tmp_path, TOY_VIT)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    cases = {
        "DST must end in .pth or .pt or .bin with --to torch, got": [str(tmp_path / "out"), "--to", "torch"],
        "DST must be a new file, got SRC itself": [str(source)],
        "DST must not be a folder that SRC is in": [str(tmp_path)],
        "already holds config.json of other weights": [str(tmp_path / "hf")],
    }
    for message, options in cases.items():
        assert main([str(source), *options]) == 2, message
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", source.name]
    assert [p.name for p in (tmp_path / "hf").iterdir()] == ["config.json"]


def test_eva02_is_described_by_timms_name(tmp_path):
    from jclip.weights.layouts.from_open_clip import config_from, described

    for name in ("EVA02-B-16", "EVA02-L-14", "EVA02-L-14-336", "EVA02-E-14", "EVA02-E-14-plus"):
        config = ARCHITECTURES[name]
        said = described(config, Preprocess())
        assert (
            said["model_cfg"]["custom_text"] and config_from(json.loads(json.dumps(said))["model_cfg"], name) == config
        )
    assert described(ARCHITECTURES["EVA-CLIP-18B"], Preprocess()) is None


# --check


def test_check_runs_the_reference(tmp_path, capsys):
    pytest.importorskip("open_clip", reason="open_clip is not installed")
    from tests.converters.test_convert import hugging_face_folder

    hugging_face_folder(tmp_path / "hf", TOY_VIT)
    sources = {"hf": [], "toy": []}
    toy_file(tmp_path, OPENAI_VIT).rename(tmp_path / "toy")
    assert main([str(tmp_path / "toy"), str(tmp_path / "state.pt"), "--to", "torch"]) == 0
    assert main([str(tmp_path / "toy"), str(tmp_path / "old.pkl")]) == 0
    for bare in ("state.pt", "old.pkl"):
        sources[bare] = ["--activation", "quickgelu", "--vision-head-width", "64"]
    for name, options in sources.items():
        capsys.readouterr()
        assert main([str(tmp_path / name), str(tmp_path / f"out-{name}"), "--check", *options]) == 0
        printed = capsys.readouterr().out
        assert "check: image features differ by" in printed and "check: text features differ by" in printed


def test_check_fails_for_what_computes_something_else(tmp_path, capsys):
    """A folder whose config says GELU where the user states QuickGELU."""
    pytest.importorskip("open_clip", reason="open_clip is not installed")
    from convert import check
    from jclip.weights import identify as source

    assert main([str(toy_file(tmp_path, TOY_VIT)), str(tmp_path / "in"), "--to", "open_clip"]) == 0
    found = source.identify(tmp_path / "in")
    wrong = replace(found, checkpoint=replace(found.checkpoint, config=TOY_VIT_GELU))
    with pytest.raises(check.DifferenceError, match="compute something else here"):
        check.against_reference(wrong)
    assert check.DifferenceError.exit_code == 1


def test_check_needs_the_reference(tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    source = toy_file(tmp_path, TOY_VIT)
    assert main([str(source), str(tmp_path / "out"), "--check"]) == 2
    error = capsys.readouterr().err
    assert "can't import open_clip" in error and "pip install 'jclip[parity]'" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_torchvision_of_another_build_is_no_hindrance_where_none_is_needed(tmp_path, monkeypatch):
    import importlib.metadata as metadata
    import sys

    from convert import check

    sources = {
        "torchvision": "raise RuntimeError('operator torchvision::nms does not exist')",
        "transformers": "import importlib.util as u\nif u.find_spec('torchvision'): import torchvision\nCLIPModel = 'model'",
        "open_clip": "import torchvision",
    }
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.setitem(sys.modules, name, None)  # what is imported now goes when the test ends
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(metadata, "version", {"torch": "2.13.0+cpu", "torchvision": "0.28.0"}.get)
    assert check._imported("transformers", "CLIPModel") == ["model"] and "torchvision" not in sys.modules
    wanted = (
        "by open_clip must have a torchvision that fits torch, got torchvision 0.28.0 of another build than torch 2.13"
    )
    with pytest.raises(SetupError, match=wanted):
        check._imported("open_clip", "create_model")


def test_check_says_what_no_package_has(tmp_path, capsys):
    assert main([str(toy_file(tmp_path, EVA_18B)), str(tmp_path / "out"), "--check"]) == 2
    assert "must have a reference, got a model that no package computes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_loading_what_was_written_for_others(tmp_path, close):
    """jclip.load takes the folders that it writes for others, as they lie."""
    source = toy_file(tmp_path, TOY_VIT)
    pixels, _ = toy_batch(TOY_VIT)
    with jt.no_grad():
        wanted = load(source)[0].encode_image(pixels).numpy()
        for to in ("open_clip", "huggingface"):
            assert main([str(source), str(tmp_path / to), "--to", to]) == 0
            close(load(tmp_path / to)[0].encode_image(pixels).numpy(), wanted, "kernel")
