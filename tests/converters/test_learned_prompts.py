"""Prompts of TaI-DPT and DualCoOp, as torch writes their checkpoints, become runs that score as their formulas say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convert.cli import main
from jclip.features.source import ModelSource
from jclip.model.prompt_sets import PromptSets
from jclip.report.predictor import Predictor
from jclip.runtime import jt
from tests.recipes import toys

torch = pytest.importorskip("torch", reason=toys.NO_TORCH)

NAMES = ("red thing", "green thing", "blue thing")
KINDS = {  # what the file calls them → the sets, and what shape their vectors have
    "tai": ({"ctx": "global", "ctx_double": "local"}, 2),
    "seed": ({"ctx": "global", "ctx_double": "local", "ctx_evidence": "evidence"}, 2),
    "dualcoop": ({"prompt_learner.ctx_pos": "positive", "prompt_learner.ctx_neg": "negative"}, 3),
    "tai_dual": ({"ctx": "positive", "ctx_neg": "negative"}, 2),
    "pp": ({f"prompt_learner.ctx_{k[:3]}" if k != "evidence" else "prompt_learner.ctx_evidence": k for k in (
        "positive", "negative", "evidence")}, 3),
}  # fmt: skip


def write(path: Path, kind: str, width: int = 32, classes: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """A checkpoint with epoch, optimiser and buffers; the vectors by set, (K, W) or (C K, W)."""
    names, dims = KINDS[kind]
    rng, made, state = np.random.default_rng(seed), {}, {}
    for theirs, name in names.items():
        array = (rng.standard_normal((classes, 5, width)[3 - dims :]) / 9).astype(np.float32)
        made[name], state[theirs] = array.reshape(-1, width), torch.tensor(array)
    prefix = "prompt_learner." if "prompt_learner" in next(iter(names)) else ""
    state |= {f"{prefix}temperature": torch.tensor(3.5), f"{prefix}spatial_T": torch.tensor(2.5)}
    state[f"{prefix}token_prefix"] = torch.zeros(classes, 1, width)
    moments = {"state": {0: {"momentum_buffer": torch.ones(5, width)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"state_dict": state, "epoch": 20, "optimizer": moments}, path)
    return made


@pytest.fixture
def photos(tmp_path) -> list[str]:
    from PIL import Image

    rng, lines = np.random.default_rng(0), []
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png {i % 3}\n")
    (tmp_path / "test.txt").write_text("".join(lines))
    (tmp_path / "classes.txt").write_text("".join(f"{name} {k}\n" for k, name in enumerate(NAMES)))
    return [f"data.test={tmp_path / 'test.txt'}", f"data.classes={tmp_path / 'classes.txt'}", f"data.root={tmp_path}"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_becomes_a_run_that_labels_and_measures(kind, small_models, photos, tmp_path, capsys, close):
    made, dims = write(tmp_path / "model.pth.tar-20", kind), KINDS[kind][1]
    size = ["--set", "size=64", "data.upright=false"] if "positive" in made else []
    model = str(small_models["resnet"])
    command = [
        str(tmp_path / "model.pth.tar-20"),
        str(tmp_path / "run"),
        "--prompts-of",
        model,
        "--classes",
        ",".join(NAMES),
    ]
    assert main([*command, *size]) == 0
    assert f"written: {tmp_path / 'run'} (a run of" in capsys.readouterr().out
    done = Predictor.load(tmp_path / "run", photos)
    for name, array in made.items():
        assert np.array_equal(done.learned[f"context_{name}"], array)
    own = tuple(made) if dims == 3 else ()
    prompts = PromptSets(ModelSource(model).model, NAMES, tuple(made), 5, per_class=own)
    with jt.no_grad():
        text = prompts.features({name: jt.array(array) for name, array in made.items()})
    for name, array in text.items():
        close(done.learned[f"text_{name}"], array.numpy(), "features_normalised")
    if kind in ("tai_dual", "pp"):
        close(done.learned["sharpness"], [np.exp(2.5)], "scores")
        close(done.learned["scale"], [np.exp(3.5 if kind == "tai_dual" else 3.0)], "scores")
    measured = done.measure(tmp_path / "eval")
    assert measured["count"] == 6 and 0 < measured["map_merged"] <= 1
    tags, rows = done.label(done.own_split()[1])
    assert tags.scores.shape == (6, 3) and len(rows) == 6
    if dims == 2:
        assert done.telling_apart(("ox", "ant"), done.source()).scorer() is not None


def test_what_does_not_fit_is_reported_in_one_line(small_models, tmp_path, capsys):
    model = str(small_models["vit"])
    write(tmp_path / "narrow.pt", "tai", width=16)
    write(tmp_path / "five.pt", "dualcoop", classes=5)
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    broken = write(tmp_path / "nan.pt", "tai")["global"].copy()
    broken[0, 0] = np.nan
    torch.save({"ctx": torch.tensor(broken), "ctx_double": torch.tensor(broken)}, tmp_path / "nan.pt")
    for file, message in (
        ("narrow.pt", "the global prompts must be 32-dimensional, as the model's, got shape [5, 16]"),
        ("five.pt", "the positive prompts are of 5 classes, got 3 names"),
        ("other.pt", "must hold learned prompts, ctx and ctx_double or ctx_pos and ctx_neg, got none"),
        ("nan.pt", "the global prompts must be finite, got NaN or infinite numbers"),
    ):
        options = ["--prompts-of", model, "--classes", ",".join(NAMES)]
        assert main([str(tmp_path / file), str(tmp_path / "run"), *options]) in (1, 2)
        lines = capsys.readouterr().err.splitlines()
        assert len([line for line in lines if message in line]) == 1 and not (tmp_path / "run" / "result.json").exists()
    assert main([str(tmp_path / "five.pt"), str(tmp_path / "run"), "--prompts-of", model]) == 2
    assert "--prompts-of and --classes must be given together" in capsys.readouterr().err
