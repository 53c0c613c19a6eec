"""What bench/multi_label_speed.py runs on jclip's side, and what both sides are given: weights, captions, photos, prompts."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from jclip.prompts.tokenizer import tokenize
from jclip.weights.variants import VARIANTS

Side = tuple[Callable[[], dict], dict]  # what is timed, which returns figures to compare; facts that it prints

MODEL, BATCH, VECTORS, SEED = "RN50", 512, 16, 1
SCALE, TAU = 4.0, 50.0
RATE, MOMENTUM, DECAY = 1e-4, 0.9, 5e-4
NAMES = ("best", "difft", "zema", "diff", "diffh", "ema")  # the first two have evidence prompts and a winner
RUNS = (("best", "difft"), ("zema", "diff", "diffh"), ("ema",))  # models that the authors score in one go
WITH_EVIDENCE = RUNS[0]
PHOTO_SIZE, PHOTOS = (640, 480), 16
FOLDER = Path(tempfile.gettempdir()) / "jclip-bench-multi-label"


def classnames() -> list[str]:
    """COCO's 80, as sentences say them."""
    from jclip.data.lexicons import load_lexicon, spoken_names

    return [*spoken_names(load_lexicon("coco").classnames)]


def checkpoint() -> Path:
    """RN50 with seeded random weights; made at the first call."""
    from jclip.data.preprocess import Preprocess
    from jclip.weights.checkpoint import random_arrays, save_checkpoint

    path = FOLDER / f"{MODEL}.safetensors"
    if not path.is_file():
        from tests.toys import shapes_of

        config = VARIANTS[MODEL]
        FOLDER.mkdir(exist_ok=True)
        save_checkpoint(path, random_arrays(shapes_of(config), 0), config, Preprocess(size=config.vision.image_size))
    return path


def captions(data: Path) -> tuple[list[str], np.ndarray]:
    """512 captions of COCO val2017 with a noun of a class each, and their labels (512, 80) by the lexicon."""
    from jclip.data.lexicons import load_lexicon
    from jclip.data.nouns import Labeller

    rows = json.loads((data / "captions_val2017.json").read_text(encoding="utf-8"))["annotations"]
    texts = [row["caption"] for row in rows[: 4 * BATCH]]
    targets = Labeller(load_lexicon("coco")).targets(texts)
    named = np.flatnonzero((targets == 1).any(axis=1))[:BATCH]
    return [texts[i] for i in named], targets[named].astype(np.int8)


def first_vectors() -> np.ndarray:
    """(2, 16, 512) at which the global and the local prompts start, as the recipe draws them."""
    rng = np.random.default_rng((SEED, 0xC0))
    width = VARIANTS[MODEL].text.width
    return (0.02 * rng.standard_normal((2 * VECTORS, width))).astype(np.float32).reshape(2, VECTORS, width)


def photos() -> list[str]:
    """JPEGs of 640 x 480 of coloured noise in the temporary folder, made at the first call."""
    from PIL import Image

    FOLDER.mkdir(exist_ok=True)
    paths = [FOLDER / f"{i:02}.jpg" for i in range(PHOTOS)]
    for i, path in enumerate(paths):
        if not path.is_file():
            coarse = np.random.default_rng(i).integers(0, 256, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(PHOTO_SIZE, Image.Resampling.BICUBIC).save(path, quality=95)
    return [str(path) for path in paths]


def texts_of(name: str) -> dict[str, np.ndarray]:
    """Text features (80, 1024) of length one by set of prompts, seeded by the model's name."""
    rng = np.random.default_rng((SEED, NAMES.index(name)))
    sets = ("global", "local", "evidence") if name in WITH_EVIDENCE else ("global", "local")
    made = {}
    for one in sets:
        rows = rng.standard_normal((len(classnames()), VARIANTS[MODEL].embed_dim))
        made[one] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return made


def winner(name: str) -> str:
    """Of a model, as its published configuration has it."""
    return "seed" if name in WITH_EVIDENCE else "none"


def plan_of(kind: str) -> dict[str, Any]:
    """`16 windows`, `304 windows` or `dense` → options of a `WindowPlan`."""
    if kind == "dense":
        return {"mode": "dense"}
    few = {"scales": (2,), "shapes": "unit"} if kind == "16 windows" else {}
    return {"mode": "seed", "resize": "center_crop", **few}


def training(data: Path) -> Side:
    """The recipe's step: captions encoded beforehand, prompts of both sets in one pass, cut, their beginnings once."""
    from finetune import text_as_image
    from jclip.features.sentence_features import SentenceFeatures, encode_captions
    from jclip.features.source import ModelSource
    from jclip.model.prompt_sets import PromptSets
    from jclip.train.caption_training import CaptionLoss
    from jclip.train.optim import optimiser

    cfg = text_as_image.Config(model=MODEL, seed=SEED, tau_text=TAU, scale=SCALE)
    source = ModelSource(checkpoint())
    texts, targets = captions(data)
    made = encode_captions(source, texts, cfg.stored)
    starts = np.cumsum([0, *made["lengths"][:-1]])
    features = SentenceFeatures(made["sentences"], made["tokens"], starts, made["lengths"].astype(np.int64))
    prompts = PromptSets(source.model, classnames(), cfg.sets, VECTORS, seed=SEED)
    loss_of = CaptionLoss(cfg, prompts, features, targets)
    optim = optimiser(cfg.optim, {f"context_{name}": v for name, v in prompts.vectors.items()})
    optim.lr, rows = RATE, np.arange(len(texts))

    def step() -> dict:
        loss = loss_of(rows)
        optim.step(loss)
        return {"loss": float(loss.numpy()[0])}

    return step, {}


def scoring(kind: str, count: int) -> Side:
    """All six models over the whole photo and its windows."""
    from jclip.features.photo_maps import MapScorer, MapSource
    from jclip.features.source import ModelSource
    from jclip.features.window_scores import WindowModel, WindowPlan, WindowScorer

    source = MapSource(ModelSource(checkpoint()))
    models = []
    for name in NAMES:
        cfg: Any = SimpleNamespace(
            scale=SCALE, tau_image=TAU, winner=winner(name), bank=0, bank_mix=0.5, modulation=0.0
        )
        learned = {f"text_{kind}": rows for kind, rows in texts_of(name).items()}
        models.append(WindowModel(name, source, MapScorer(learned, cfg), len(classnames())))
    scorer, paths = WindowScorer(models, WindowPlan(**plan_of(kind))), photos()[:count]

    def run() -> dict:
        before = scorer.passes
        found, _ = scorer.scores(paths)
        return {"passes": (scorer.passes - before) / count, "scores": fingerprint(found)}

    return run, {"photos": count}


def fingerprint(found: dict[str, dict[str, np.ndarray]]) -> list[list[float]]:
    """Of the first photo: highest and mean score of each model and kind, so that two sides can be compared."""
    return [[float(part[0].max()), float(part[0].mean())] for own in found.values() for part in own.values()]


def labelling(data: Path, count: int) -> dict[str, float]:
    """Seconds of CPU that `count` captions take to be labelled, by lexicon and kind; nothing else is counted."""
    import time
    from itertools import cycle, islice

    from jclip.data.lexicons import KINDS, load_lexicon
    from jclip.data.nouns import Labeller

    rows = json.loads((data / "captions_val2017.json").read_text(encoding="utf-8"))["annotations"]
    texts, spent = [row["caption"] for row in islice(cycle(rows), count)], {}
    for named in ("coco", "nuswide"):
        for kind in KINDS:
            labeller = Labeller(load_lexicon(named, kind))
            begun = time.process_time()
            labeller.targets(texts)
            spent[f"{named} {kind}"] = time.process_time() - begun
    return spent


@contextmanager
def drawn_scenes(count: int, side: int, seed: int = 1) -> Iterator[tuple[list[str], np.ndarray]]:
    """Photos of scenes of two to four things, and which of the world's classes are in them (N, 100)."""
    from jclip.data.shapes import CLASSNAMES, SEEN_STYLES, draw_scene

    scenes = [draw_scene((seed, i), styles=SEEN_STYLES, count=(2, 4)) for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, f"{i:05}.png")) for i in range(count)]
        for path, scene in zip(paths, scenes, strict=True):
            scene.render(side).save(path)
        yield paths, np.array([[name in scene.labels for name in CLASSNAMES] for scene in scenes])


def kept_scenes(count: int) -> list[str]:
    """Photos of 64 pixels of so many scenes in the temporary folder, those that are missing drawn."""
    from jclip.data.shapes import SEEN_STYLES, draw_scene

    folder = FOLDER / "scenes"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:05}.png" for i in range(count)]
    for i, path in enumerate(paths):
        if not path.is_file():
            draw_scene((1, i), styles=SEEN_STYLES, count=(2, 4)).render(64).save(path)
    return [str(path) for path in paths]


def trained_on_the_world() -> Path:
    """A run of configs/text_as_image/shapes.yaml, trained at the first call."""
    import finetune  # noqa: F401 - offers its recipes
    from jclip.train.configs import read_config, resolved
    from jclip.train.run import Run

    folder = FOLDER / "shapes"
    if not (folder / "result.json").is_file():
        config = Path(__file__).resolve().parent.parent / "configs" / "text_as_image" / "shapes.yaml"
        module, cfg, _ = read_config(str(config), [])
        with Run(folder, resolved(module, cfg)) as run:
            run.finish(module.run(cfg, run))
    return folder


def score_with_command(paths: list[str], run: Path, out: Path, *options: str) -> None:
    """`jclip score` of a list of photos; what it prints goes to stderr."""
    from jclip.cli import main

    listed = out.with_suffix(".txt")
    listed.write_text("\n".join(paths) + "\n", encoding="utf-8")
    with redirect_stdout(sys.stderr):
        code = main(["score", str(listed), "--run", f"world={run}", "--out", str(out), *options])
    if code:
        raise SystemExit(f"jclip score {' '.join(options)}: exit {code}")


def caption_ids(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (512, 77) of the captions, and their labels (512, 80)."""
    texts, targets = captions(data)
    return tokenize(texts), targets


def prompt_ids() -> np.ndarray:
    """(80, 77): sixteen placeholders, the name, a dot."""
    return tokenize([" ".join(["X"] * VECTORS) + f" {name}." for name in classnames()])
