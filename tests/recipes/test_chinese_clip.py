"""Chinese-CLIP at work: commands and recipes with a model whose texts are a BERT's, and what is said of wrong files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from convert.cli import main as convert
from jclip.cli import main
from jclip.features.source import ModelSource
from jclip.weights.checkpoint import random_arrays
from tests.conftest import ROOT
from tests.toys import SMALL_BERT, shapes_of, toy_file

pytest.importorskip(
    "tokenizers", reason="the tokenizers of other families are not installed: pip install '.[tokenizers]'"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return toy_file(tmp_path_factory.mktemp("中文 clip"), SMALL_BERT)


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory) -> Path:
    """The same as Hugging Face's folder."""
    made = tmp_path_factory.mktemp("chinese clip") / "hugging, face"
    assert convert([str(weights), str(made), "--to", "huggingface"]) == 0
    return made


def finished(name: str, weights: Path, run: Path, *settings: str) -> dict[str, float]:
    smoke = ROOT / "configs" / name / "smoke.yaml"
    assert main(["train", str(smoke), "--run", str(run), f"model={weights}", *settings]) == 0
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert all(math.isfinite(value) for value in metrics.values())
    return metrics


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("linear_probe", []),
        ("full", ["optim.epochs=1"]),
        ("lora", ["lora.towers=text", "steps=1"]),
        ("coop", []),
        ("text_as_image", []),
    ],
)
def test_recipes_take_it(recipe, settings, weights, tmp_path):
    finished(recipe, weights, tmp_path / "run", *settings)


def test_contrastive_training_keeps_the_vocabulary(weights, tmp_path):
    quick = ["scratch=false", "zero_shot=[]", "optim.epochs=1", "data.scenes=16", "data.val_scenes=4", "optim.batch=8"]
    finished("contrastive", weights, tmp_path / "run", *quick, "recompute=true", "lock.text=true", "lock.text_groups=2")
    tuned = ModelSource(tmp_path / "run" / "model.safetensors")
    before = ModelSource(weights)
    assert tuned.checkpoint.vocabulary == before.checkpoint.vocabulary
    old, new = (dict(source.checkpoint.arrays()) for source in (before, tuned))
    moved = {k for k in old if not np.array_equal(old[k], new[k])}
    assert any(k.startswith("visual.") for k in moved) and "text.text_projection" in moved
    assert not any("resblocks.0" in k and k.startswith("text.") for k in moved)


def test_deep_prompts_of_both_towers(weights, tmp_path):
    assert finished("maple", weights, tmp_path / "run", "words=一张", "text=1", "image=1", "depth=2")
    words = (tmp_path / "run" / "words.csv").read_text(encoding="utf-8").splitlines()
    assert len(words) == 2 and words[1].startswith("1,")


def test_commands_take_the_folder(folder, photo_folder, tmp_path, capsys):
    photos, model = str(photo_folder / "test"), ["--model", str(folder)]
    classes = ["--classes", "红的,绿的,blue"]
    assert (
        main(["zero-shot", photos, *model, *classes, "--out", str(tmp_path / "a.csv"), "--templates", "一张{}的照片"])
        == 0
    )
    assert main(["tag", photos, *model, *classes, "--templates", "chinese"]) == 0
    assert not capsys.readouterr().err.count("English")
    assert main(["zero-shot", photos, *model, *classes]) == 0
    assert "is English around a Chinese name" in capsys.readouterr().err
    assert main(["embed", photos, *model, "--out", str(tmp_path / "gallery")]) == 0
    assert main(["search", str(tmp_path / "gallery"), "红的", "--csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 3


@pytest.mark.parametrize(
    ("said", "resize", "line"),
    [
        ({"size": {"shortest_edge": 32}, "crop_size": 32, "do_center_crop": True}, "shortest", ""),
        ({"size": {"height": 32, "width": 32}, "crop_size": 31, "do_center_crop": False}, "squash", ""),  # as published
        ({"size": {"height": 32, "width": 32}, "do_center_crop": True}, "squash", ""),
        ({"size": 32, "crop_size": {"height": 18, "width": 32}}, "shortest", "says crop_size 18 x 32: "),
        ({"size": {"shortest_edge": 24}, "do_normalize": False}, "shortest", "says do_normalize=false, size 24 x 24: "),
    ],
)
def test_sizes_of_photos_that_are_not_the_models(said, resize, line, folder, tmp_path, capsys):
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    made = ModelSource(tmp_path).preprocess
    assert (made.size, made.resize) == ((32, 32), resize)
    printed = capsys.readouterr().err
    assert (
        printed.count("\n") == bool(line)
        and f"preprocessor_config.json {line}" in f"{printed}preprocessor_config.json "
    )


WRONG = {
    "needs its vocabulary, which is not beside it: put vocab.txt": lambda f: (f / "vocab.txt").unlink(),
    "must have 1 to": lambda f: (f / "vocab.txt").write_bytes(b""),
    "must be a vocabulary of BERT's kind": lambda f: (f / "vocab.txt").write_text("a\nb\n"),
    "the weights' embedding 1,057": lambda f: (f / "vocab.txt").write_text(
        (f / "vocab.txt").read_text() + "\n".join(f"piece{n}" for n in range(1000))
    ),
    "text_config.hidden_act must be one of quick_gelu, gelu": {"text_config": {"hidden_act": "gelu_new"}},
    "text.heads must divide width 32, got 5": {"text_config": {"num_attention_heads": 5}},
    "text.pad must be below vocab_size 1057": {"text_config": {"pad_token_id": 5000}},
    "does not fit the model": {"text_config": {"num_hidden_layers": 3}},
    "attends backwards only": {"text_config": {"is_decoder": True}},
    "is of a chinese_clip_3 model": {"model_type": "chinese_clip_3"},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_files_are_one_line(message, folder, tmp_path, photo_folder, capsys):
    bad = tmp_path / "bad"
    bad.mkdir()
    for file in folder.iterdir():
        (bad / file.name).write_bytes(file.read_bytes())
    (bad / "tokenizer_config.json").unlink()
    change = WRONG[message]
    if callable(change):
        change(bad)
    else:
        said = json.loads((bad / "config.json").read_text())
        inner = {k: said[k] | v if isinstance(v, dict) else v for k, v in change.items()}
        (bad / "config.json").write_text(json.dumps(said | inner))
    asked = [
        "zero-shot",
        str(photo_folder / "test"),
        "--model",
        str(bad),
        "--classes",
        "红,绿",
        "--templates",
        "chinese",
    ]
    capsys.readouterr()
    code = main(asked)
    said = capsys.readouterr().err
    assert code in (1, 2) and message in said and said.count("\n") == 1, said
    assert convert([str(bad), str(tmp_path / "out.safetensors")]) == code
    assert message in capsys.readouterr().err and not (tmp_path / "out.safetensors").exists()


def test_other_libraries_cannot_hold_it_and_say_so(weights, tmp_path, capsys):
    for target, name in (("open_clip", "out"), ("torch", "out.pt"), ("openai", "out.pt"), ("jclip", "out.pkl")):
        assert convert([str(weights), str(tmp_path / name), "--to", target]) == 2
        assert not (tmp_path / name).exists()
        assert capsys.readouterr().err.count("\n") == 1


def test_one_tower_alone(weights, tmp_path):
    words, eye = tmp_path / "text.safetensors", tmp_path / "image.safetensors"
    assert convert([str(weights), str(words), "--tower", "text"]) == 0
    assert convert([str(weights), str(eye), "--tower", "image"]) == 0
    assert ModelSource(words).tokenize(["一只"])[0, :3].tolist()[0] == 2
    assert ModelSource(eye).checkpoint.vocabulary is None
    assert set(random_arrays(shapes_of(SMALL_BERT), 0)) > set(ModelSource(words).checkpoint.tensors)
