"""What the tests of recipes on frozen features share: toy features, the embedded ones with parts missing, a whole run."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import finetune  # noqa: F401 - so that recipes are known
from jclip.config import OptimConfig
from jclip.features.precomputed import FeatureSet
from jclip.functional.directions import unit
from jclip.paths import ASSETS
from jclip.train.configs import read_point, resolved
from jclip.train.run import Run

COLOURS = ("red thing", "green thing", "blue thing")
NO_TORCH = "the reference is not installed: pip install '.[parity]'"


def train(config: Path, folder: Path, *overrides: str) -> dict[str, float]:
    """The metrics of a run in `folder`; settings that only other points of a parametrised test read may stand there."""
    module, cfg, _ = read_point(str(config), overrides)
    with Run(folder, resolved(module, cfg)) as run:
        return run.finish(module.run(cfg, run))["metrics"]


def photos_of_colours(folder: Path, **parts: int) -> list[str]:
    """Settings that name photos of one to three of `COLOURS` each, with lists: so many of each part."""
    rng = np.random.default_rng(0)
    (folder / "classes.txt").write_text("".join(f"{name} {k}\n" for k, name in enumerate(COLOURS)))
    for part, count in parts.items():
        lines = []
        for i in range(count):
            own = sorted({*rng.integers(0, 3, 2).tolist(), i % 3})
            pixels = rng.integers(0, 60, (30, 40, 3), dtype=np.uint8)
            for k in own:
                pixels[:, 10 * k : 10 * k + 10, k] += 150
            Image.fromarray(pixels).save(folder / f"{part} {i}.png")
            lines.append(f"{part} {i}.png {' '.join(map(str, own))}\n")
        (folder / f"{part}.txt").write_text("".join(lines))
    return [f"data.root={folder}", *(f"data.{part}={folder / part}.txt" for part in (*parts, "classes"))]


def check_resumes(
    monkeypatch, config: Path, root: Path, settings: list[str], owner: type, loss: str, call: int
) -> None:
    """A training that Ctrl-C ends in that call of `owner`'s `loss` goes on to the metrics and bytes of an unbroken one."""
    monkeypatch.setattr("jclip.train.loop.SAVE_SECONDS", 0.0)
    whole = train(config, root / "whole", *settings)
    real, calls = getattr(owner, loss), []

    def dying(self, *arguments):
        calls.append(0)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, loss, dying)
        train(config, root / "broken", *settings)
    assert train(config, root / "broken", *settings) == whole
    unbroken, resumed = ((root / run / "learned.safetensors").read_bytes() for run in ("whole", "broken"))
    assert unbroken == resumed


@contextlib.contextmanager
def broken_off(recipe, monkeypatch, step: int):
    """In it a training ends with Ctrl-C in that step of its `batch_loss`; each epoch before was saved."""
    real, calls = recipe.batch_loss, []

    def dying(*arguments):
        loss = real(*arguments)

        def once(*batch):
            calls.append(0)
            if len(calls) == step:
                raise KeyboardInterrupt
            return loss(*batch)

        return once

    monkeypatch.setattr("jclip.train.loop.SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "batch_loss", dying)
        with pytest.raises(KeyboardInterrupt):
            yield


def random_features(seed: int, classes: int = 5, width: int = 7, shots: int = 3) -> FeatureSet:
    """Seeded rows of length one that mean nothing, with text, at a scale of 8."""
    rng = np.random.default_rng(seed)

    def rows(n):
        return unit(rng.standard_normal((n, width))).astype(np.float32)

    labels = rng.permutation(np.repeat(np.arange(classes), shots))
    val, test = rng.integers(0, classes, 23), rng.integers(0, classes, 31)
    return FeatureSet(tuple("abcde"), rows(len(labels)), labels, rows(23), val, rows(31), test, rows(classes), 8.0)


def torch_rates(optimiser, optim: OptimConfig, total: int):
    """The learning rates of every step: torch's cosine, held back while a linear warm-up from 1e-5 runs."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, float(total))
    for step in range(total):
        if step < optim.warmup:
            yield 1e-5 if step == 0 else optim.lr * step / optim.warmup
        else:
            yield successor.get_last_lr()[0]
            optimiser.step()
            successor.step()


def torch_loader(seed: tuple[int, ...], features: np.ndarray, labels: np.ndarray, size: int):
    """Batches without end as torch tensors, reshuffled in each pass, which drops what is left over."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    for turn in itertools.count():
        order = np.random.default_rng((*seed, turn)).permutation(len(features))
        for begin in range(0, len(order) - size + 1, size):
            rows = order[begin : begin + size]
            yield torch.tensor(features[rows]), torch.tensor(labels[rows])


def smoke_arrays() -> dict[str, np.ndarray]:
    """The embedded features as they are recorded: 7 classes of 16 numbers, 4 shots and one."""
    with np.load(ASSETS / "smoke_features.npz") as data:
        return {k: data[k] for k in data.files}


def record(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """Writes precomputed features; the setting that names them."""
    np.savez(path, **arrays)
    return f"data.features={path}"


def smoke_without(part: str, folder: Path) -> str:
    """The setting that names the embedded features without "text", or without rows to "train", "val" or "test" on."""
    arrays = smoke_arrays()
    if part == "text":
        del arrays["text_features"]
    else:
        shots = "_4" if part == "train" else ""
        arrays |= {f"{part}_features{shots}": np.zeros((0, 16)), f"{part}_labels{shots}": np.zeros(0, int)}
    return record(folder / f"no_{part}.npz", arrays)
