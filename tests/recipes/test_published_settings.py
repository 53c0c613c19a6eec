"""The configs of published settings of several labels, after defaults, against tables written from the papers' code."""

from __future__ import annotations

from pathlib import Path

import pytest

import finetune  # noqa: F401 - brings the recipes that configs name
from jclip.train.configs import read_config
from jclip.train.optim import learning_rate

CONFIGS = Path(__file__).parents[2] / "configs"
EVIDENCE, TEACHER = (
    {"evidence": True, "winner": "seed", "modulation": 0.5},
    {"teacher_global": 1, "teacher_local": 10_000},
)
# name: vectors, batch, rates of the first two epochs, epochs trained, classes learned (0: all), τ of photos, seed, more
SENTENCES = {
    "tai_dpt_voc": (16, 512, (1e-5, 1e-4), 20, 0, 40, 1, {}),
    "tai_dpt_coco": (16, 512, (1e-5, 1e-4), 20, 0, 40, 1, {}),
    "tai_dpt_nus": (16, 512, (1e-5, 1e-3), 20, 0, 4, 1, {}),
    "seed_best": (16, 1024, (1e-5, 0.9045085e-5), 5, 0, 50, 0, EVIDENCE),  # no warm-up: ½ (1 + cos(π / 5))
    "seed_ema": (64, 1024, (1e-3, 1e-3), 80, 0, 50, 1, TEACHER),
    "seed_zema": (16, 1024, (1e-3, 1e-3), 80, 0, 50, 1, TEACHER),
    "seed_diff": (16, 1024, (1e-6, 1e-6), 10, 22, 50, 1, {}),
    "seed_diffh": (16, 1024, (1e-3, 1e-3), 80, 22, 50, 1, TEACHER),
    "seed_difft": (16, 1024, (1e-6, 1e-6), 10, 34, 50, 1, EVIDENCE),
    "seed_zema_continued": (64, 1024, (1e-3, 1e-3), 80, 0, 50, 1, TEACHER),
    "seed_diff_continued": (64, 1024, (1e-6, 1e-6), 10, 22, 50, 1, {}),
    "seed_diffh_continued": (64, 1024, (1e-3, 1e-3), 80, 12, 50, 1, TEACHER),
    "seed_difft_continued": (64, 1024, (1e-6, 1e-6), 10, 34, 50, 1, EVIDENCE),
}
# name: kind, vectors, batch, rate, augmentation, photos' side, loss weight, more
PHOTOS = {
    "coco": ("dualcoop", 16, 32, 2e-3, "dualcoop", 448, 0.03, {"scale": 100, "sharpness": 20}),
    "voc": ("dualcoop", 16, 32, 1e-3, "dualcoop", 448, 0.03, {"scale": 100, "sharpness": 20}),
    "coco_zero_shot": ("dualcoop", 64, 32, 2e-3, "dualcoop", 224, 0.01, {"per_class": False}),
    "dualcoop_pp": ("dualcoop_pp", 21, 64, 5e-3, "dualcoop", 448, 0.02, {"learn": ("sharpness",), "winner": "pp_norm"}),
    "tai_coco": ("dualcoop", 16, 64, 2e-3, "tai_dual", 448, 1, {"loss": "difference", "places": "cells"}),
    "tai_voc": ("dualcoop", 16, 64, 2e-3, "tai_dual", 448, 1, {"loss": "difference", "places": "cells"}),
    "tai_nus": ("dualcoop", 16, 192, 2e-3, "tai_dual_nus", 448, 1, {"loss": "difference", "places": "cells"}),
}


def of(cfg, names) -> dict:
    return {name: getattr(cfg, name) for name in names}


@pytest.mark.parametrize("name", SENTENCES)
def test_learning_from_sentences(name, close):
    context, batch, rates, epochs, only, tau, seed, more = SENTENCES[name]
    _, cfg, _ = read_config(str(CONFIGS / "text_as_image" / f"{name}.yaml"), [])
    o = cfg.optim
    assert (cfg.model, cfg.context, o.batch, o.trained_epochs, len(cfg.only)) == ("RN50", context, batch, epochs, only)
    close([learning_rate(o, e, o.epochs) for e in (0, 1)], rates, "closed_form")
    assert (o.name, o.momentum, o.nesterov, o.weight_decay) == ("sgd", 0.9, False, 5e-4)
    plain = {"evidence": False, "winner": "none", "modulation": 0, "teacher_global": 0, "teacher_local": 0}
    assert of(cfg, plain) == {**plain, **more}
    assert (cfg.scale, cfg.tau_text, cfg.tau_image, cfg.merge, cfg.seed) == (4, 50, tau, 0.5, seed)
    assert not more.get("teacher_local") or (o.average, cfg.keep) == (0.995, "student")
    assert bool(cfg.init_from) is name.endswith("_continued")


@pytest.mark.parametrize("name", PHOTOS)
def test_learning_from_photos(name, close):
    kind, context, batch, rate, augment, size, weight, more = PHOTOS[name]
    _, cfg, _ = read_config(str(CONFIGS / "dual_prompt" / f"{name}.yaml"), ["data.train=labels.csv"])
    o = cfg.optim
    assert (cfg.kind, cfg.context, o.batch, cfg.augment, cfg.size) == (kind, context, batch, augment, size)
    close([learning_rate(o, e, o.epochs) for e in (0, 1)], (1e-5, rate), "closed_form")
    assert (o.trained_epochs, cfg.loss_weight, cfg.negative_power, cfg.positive_power, cfg.clip) == (
        50,
        weight,
        2,
        1,
        0.05,
    )
    assert of(cfg, more) == more
