"""Compiles a model's operators ahead, so that the first real batch doesn't wait for the compiler.

Operators depend on kinds and dimensions of arrays, not on sizes: any batch size, text length and image size use them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from jclip.choices import default_model
from jclip.commands.arguments import Parser, add_dtype, add_shared
from jclip.errors import say
from jclip.features import source as sources
from jclip.functional import losses, similarity
from jclip.model import clip, trainable
from jclip.paths import exists, is_file
from jclip.postponed import jt
from jclip.report import predictions
from jclip.train import optim as optimisation
from jclip.weights import sample_ids
from jclip.weights.variants import SHIPPED, VARIANTS, config_of

STAGES = ("image", "text", "training")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip warmup", description=__doc__.split("\n\n")[0])
    add_shared(p, "--model", " (default: JCLIP_MODEL, else ViT-B/32); a name needs no weights", default=default_model())
    add_shared(p, "--family")
    add_dtype(p, default="fp32")
    p.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="what to compile (default: all)")
    return p


def main(argv: list[str]) -> int:
    """Runs each stage once on random weights and shows what it compiled. Returns the exit code."""
    args = parser().parse_args(argv)
    config = named_config(args.model, args.family)

    from tqdm import tqdm

    rows = []
    stages = stages_of(config, args.dtype)
    for name in tqdm(args.stages, desc="compiling", unit="stage", disable=None, leave=False):
        before, begun = compiled(jt), time.perf_counter()
        stages[name]()
        jt.sync_all(True)
        rows.append([name, str(compiled(jt) - before), f"{time.perf_counter() - begun:.1f}"])
    say(predictions.table(["stage", "operators compiled", "seconds"], rows))
    return 0


def named_config(model: str, family: str | None):
    """The architecture of a name, or of a weight file or folder. Raises `CheckpointError` or `UnknownName`."""
    if is_file(model) or (exists(model) and model not in (*SHIPPED, *VARIANTS)):
        return sources.ModelSource(model, family).config
    return config_of(model)


def compiled(jt) -> int:
    """Number of operators that stand compiled in Jittor's cache."""
    return len(list((Path(jt.flags.cache_path) / "jit").glob("*.so")))


def stages_of(config, dtype: str = "fp32") -> dict[str, Callable[[], None]]:
    """What to run for each stage: images, texts, one step of contrastive training.

    A batch of one has broadcasts of its own, so it is run as well as a batch of two.
    """
    import numpy as np

    model = clip.CLIP(config)
    jt.sync_all()
    encoders = clip.CLIP(config).to(dtype) if dtype != "fp32" else model
    images = np.zeros((2, 3, *config.vision.image_size), np.float32)
    tokens = sample_ids.sample_ids(config.text, 2)

    def image() -> None:
        with clip.inference(encoders):
            for batch in (1, 2):
                similarity.normalise(encoders.encode_image(images[:batch])).numpy()

    def text() -> None:
        with clip.inference(encoders):
            for batch in (1, 2):
                similarity.normalise(encoders.encode_text(tokens[:batch])).numpy()

    def training() -> None:
        clip.training_mode(model)
        optim = optimisation.AdamW(trainable.trainable(model), exclude=trainable.no_weight_decay)
        features = similarity.normalise(model.encode_image(images)), similarity.normalise(model.encode_text(tokens))
        optim.step(losses.contrastive_loss(*features, model.logit_scale.exp()))

    return {"image": image, "text": text, "training": training}
