"""Visual grounding: a phrase's box in a photo, by a small network over the tokens of frozen towers.

Xiao et al., IEEE Transactions on Multimedia 2023, arXiv 2305.08685 (CLIP-VG).   Trains: the fusion network, 21 M parameters
for ViT-B/16.   Needs: phrases with boxes, or the embedded world.

    box = sigmoid(MLP(fusion([REG], text tokens, image tokens of four levels))_REG)
    L = Σ|p - t| + 1 - GIoU(p, t)

Towers are frozen, so photos and phrases are encoded once. A low rate and a bound on the gradient are what makes small
batches learn (`optim.lr`, `clip`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from jclip.config import BoxDataConfig, OptimConfig
from jclip.data import box_samples
from jclip.errors import ConfigError
from jclip.features import box_features
from jclip.features import source as sources
from jclip.model import clip, tower_levels, trainable
from jclip.model import grounding as networks
from jclip.postponed import jt
from jclip.train import box_training, loop
from jclip.train import optim as optimisation
from jclip.train import run as runs
from jclip.weights import variants

TASK = "ground"
POSITIONS = "visual.positional_embedding"


@dataclass(frozen=True)
class Config:
    model: str  # a name or weight file
    data: BoxDataConfig = field(default_factory=BoxDataConfig)
    family: str | None = None  # for weights that don't say their activation
    visual_layers: Literal["levels", "last"] = "levels"  # four levels of the image tower, or its end
    normalise: Literal["model", "imagenet"] = "model"  # ImageNet's mean and deviation are for CLIP-VG's own weights
    prompt: str = "{phrase}"
    hidden: int = 0  # width; 0: the text tower's
    layers: int = 6
    heads: int = 8
    ffn: int = 2048  # inner width of a layer
    dropout: float = 0.1
    project_norm: bool = False  # a LayerNorm after both projections: small data needs it
    present: bool = False  # one more output: whether the thing is there at all
    absent: float = 0.3  # share of a batch's phrases that are of other photos, for that
    clip: float = 0.1  # bound of the gradient's global norm; 0: none
    visual_positions: Literal["fixed", "trained"] = "fixed"  # trained, as CLIP-VG does: photos are encoded in each step
    criterion: Literal["iou", "giou"] = "iou"  # what must be at least t for acc@t
    frame: Literal["square", "image"] = "square"  # where boxes are compared
    stored: Literal["fp16", "fp32"] = "fp16"  # numbers that the photos' tokens are kept in
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig("adamw", lr=2e-4, weight_decay=1e-4, epochs=20, batch=32)
    )
    selection: Literal["last", "val"] = "last"  # the epoch that is kept
    seed: int = 1

    def __post_init__(self):
        for name, least in (("hidden", 0), ("layers", 1), ("heads", 1), ("ffn", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.absent < 1:
            raise ConfigError(f"absent must be in [0, 1), got {self.absent}")
        if self.prompt.count("{phrase}") != 1:
            raise ConfigError(f"prompt must hold {{phrase}} once, got {self.prompt!r}")

    @property
    def compared(self) -> dict[str, str]:
        """What is compared, and where."""
        return {"criterion": self.criterion, "frame": self.frame}

    @property
    def trains_tower(self) -> bool:
        """Whether photos' features change in training."""
        return self.visual_positions == "trained"

    @property
    def reading(self) -> box_features.Reading:
        """How photos and phrases are read."""
        return box_features.Reading(self.visual_layers, self.normalise, self.prompt, self.stored)


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Features of both towers, training, boxes of the test scenes."""
    source = sources.source_of(cfg)
    run.note(weights_sha256=source.weights_sha256)
    check_positions(cfg, source)
    return run_on(cfg, run, source, read_parts(cfg, source))


def check_positions(cfg: Config, source: sources.ModelSource) -> None:
    """Raises `ConfigError` where positions are to be trained that the tower has not."""
    if cfg.trains_tower and not isinstance(source.config.vision, variants.ViTConfig):
        raise ConfigError(
            "visual_positions=trained needs a ViT, whose patches have positions: set visual_positions=fixed"
        )


def run_on(cfg: Config, run: runs.Run, source: sources.ModelSource, parts: dict) -> dict[str, float]:
    """Training and measuring on features that have been read: of each part."""
    if "train" not in parts:
        raise ConfigError("there is nothing to learn from: set data.train")
    if cfg.selection == "val" and "val" not in parts:
        raise ConfigError("selection=val needs validation phrases: set data.val and data.val_scenes")
    network = networks.GroundingNetwork(fusion_shape(cfg, source), cfg.seed)
    state, outcome = train(cfg, run, source, network, parts)
    arrays = outcome.best_arrays if cfg.selection == "val" else state.arrays()
    put_learned(source, network, arrays)
    run.save_learned(arrays, shape=network.shape.to_dict())
    metrics = {"train_loss": outcome.last["loss"], "parameters": sum(a.size for a in arrays.values())}
    for part in ("val", "test", "unseen"):
        if part in parts:
            features = part_features(cfg, source, part) if cfg.trains_tower else parts[part]
            found = box_training.found_in(network, features, cfg.seed, **cfg.compared)
            metrics |= {f"{part}_{k}": v for k, v in found.report().items()}
            if part == "test":
                run.hand_over(found)
    return {**metrics, **({"best_epoch": outcome.best_epoch + 1} if outcome.best else {})}


def read_parts(cfg: Config, source: sources.ModelSource) -> dict[str, box_features.BoxFeatures]:
    """Features of all parts that there are; where the tower is trained, no photo is encoded yet."""
    if not cfg.trains_tower:
        return {part: found for part in box_samples.PARTS if (found := part_features(cfg, source, part))}
    side = box_features.square_side(source)
    samples = {part: box_samples.world_samples(cfg.data, part, side) for part in box_samples.PARTS}
    return {
        part: box_features.box_features(source, own, cfg.reading, tokens=False) for part, own in samples.items() if own
    }


def part_features(cfg: Config, source: sources.ModelSource, part: str) -> box_features.BoxFeatures | None:
    """Features of a part of the data, by the towers as they are now; None where there is no such part."""
    samples = box_samples.world_samples(cfg.data, part, box_features.square_side(source))
    keep = not cfg.trains_tower
    return box_features.box_features(source, samples, cfg.reading, keep=keep) if samples else None


def fusion_shape(cfg: Config, source: sources.ModelSource) -> networks.FusionShape:
    """The network's sizes."""
    sizes = {name: getattr(cfg, name) for name in ("layers", "heads", "ffn", "dropout", "project_norm", "present")}
    return tower_levels.fusion_shape(
        source.config, cfg.visual_layers, **sizes, **({"hidden": cfg.hidden} if cfg.hidden else {})
    )


def train(cfg: Config, run: runs.Run, source: sources.ModelSource, network: networks.GroundingNetwork, parts: dict):
    """Trains the network, and the tower's positions where asked for: the state and the outcome."""
    params = trainable.trainable(network)
    if cfg.trains_tower:
        params |= trainable.trainable(source.model, [POSITIONS])
    optim = optimisation.optimiser(cfg.optim, params)
    batches = box_training.PhraseBatches(parts["train"], cfg.optim.batch, cfg.seed, cfg.absent if cfg.present else 0.0)
    state, total = optimisation.TrainState(optim), cfg.optim.epochs * len(batches)

    def step(batch, number: int):
        optim.lr = optimisation.learning_rate(cfg.optim, number, total)
        seed = int(np.random.default_rng((cfg.seed, number)).integers(2**31))
        images = None
        if cfg.trains_tower:
            pixels = parts["train"].pixels(batch.photos)
            images = tower_levels.image_parts(source.model, pixels, cfg.visual_layers)[0]
        loss = box_training.batch_loss(network, batch, seed, images)
        optim.step(loss, cfg.clip)
        return loss

    def evaluate() -> dict[str, float]:
        features = part_features(cfg, source, "val") if cfg.trains_tower else parts["val"]
        report = box_training.found_in(network, features, cfg.seed, **cfg.compared).report()
        return {k: report[k] for k in ("acc@0.5", "mean_iou")}

    outcome = loop.fit(
        step, batches.epoch, state=state, run=run, epochs=cfg.optim.trained_epochs,
        evaluate=evaluate if "val" in parts else None, select="acc@0.5", steps=cfg.optim.trained_epochs * len(batches),
    )  # fmt: skip
    jt.gc()
    return state, outcome


def put_learned(
    source: sources.ModelSource, network: networks.GroundingNetwork, arrays: Mapping[str, np.ndarray]
) -> None:
    """Gives the network its parameters, and the tower the positions that were trained, if any."""
    network.put({k: v for k, v in arrays.items() if k != POSITIONS})
    if POSITIONS in arrays:
        clip.put_arrays(source.model, {POSITIONS: arrays[POSITIONS]})


def network_of(learned: Mapping[str, np.ndarray], shape: Mapping[str, Any], source: sources.ModelSource):
    """The network of a finished run; `source` gets the positions that were trained with it."""
    network = networks.GroundingNetwork(networks.FusionShape(**shape))
    put_learned(source, network, learned)
    return network
