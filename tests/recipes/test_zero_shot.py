"""The zero-shot recipe: figures of the recorded real features, and photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jclip.cli import main
from jclip.errors import DataError
from tests.recipes import toys

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "zero_shot"


def train(name, folder, *overrides):
    return toys.train(CONFIGS / name, folder, *overrides)


def test_the_published_figure(shared, tmp_path):
    metrics = train("features_caltech_lvis.yaml", tmp_path)
    d = np.load(shared / "clip_vitb32_features" / "caltech_lvis.npz")
    right = (d["test_features"].astype(np.float64) @ d["text_features"].astype(np.float64).T).argmax(1) == d[
        "test_labels"
    ]
    assert metrics["test_correct"] == 900 == right.sum() and metrics["test_count"] == 922


def test_features_without_text_ask_for_a_model(shared, tmp_path):
    with pytest.raises(DataError, match="set model="):
        train(
            "features_caltech_lvis.yaml",
            tmp_path,
            f"data.features={shared / 'clip_vitb32_features' / 'oxford_pets.npz'}",
        )


def test_photos_agree_with_the_command(small_models, photo_folder, tmp_path, monkeypatch, capsys):
    """The recipe on a test folder and `jclip zero-shot` on the same photos say the same."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        f"recipe: zero_shot\nmodel: '{small_models['vit']}'\ndata: {{root: '{photo_folder}', shots: 0}}\n",
        encoding="utf-8",
    )
    assert main(["train", "mine.yaml", "--run", "run"]) == 0
    assert main(["predict", "run", str(photo_folder / "test"), "--out", "recipe.json"]) == 0
    names = sorted((p.name for p in (photo_folder / "train").iterdir()), key=lambda n: n.encode())
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    options = [
        "--model",
        str(small_models["vit"]),
        "--classes",
        "names.txt",
        "--templates",
        "openai7",
        "--out",
        "command.json",
    ]
    assert main(["zero-shot", str(photo_folder / "test"), *options]) == 0
    told = [json.loads((tmp_path / f"{n}.json").read_text(encoding="utf-8")) for n in ("recipe", "command")]
    assert told[0] == told[1] and len(told[0]) == 18
