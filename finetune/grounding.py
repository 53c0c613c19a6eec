"""Visual grounding: a phrase's box in a photo, by a small network over the tokens of frozen towers.

Xiao et al., IEEE Transactions on Multimedia 2023, arXiv 2305.08685 (CLIP-VG).   Trains: the fusion network, 21 M parameters
for ViT-B/16, and if asked visual positions or low-rank updates (HiVG, arXiv 2404.13400).   Needs: phrases with boxes, or the
embedded world.

    box = sigmoid(MLP(fusion([REG], text tokens, image tokens of four levels))_REG)
    L = Σ|p - t| + 1 - GIoU(p, t)

Where towers are frozen and photos are seen whole, photos and phrases are encoded once. A low rate and a bound on the
gradient are what makes small batches learn (`optim.lr`, `clip`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from jclip.config import BoxDataConfig, BoxViewConfig, OptimConfig, ReadWith
from jclip.data import box_parts, box_samples, box_views
from jclip.errors import ConfigError
from jclip.features import box_features
from jclip.features import source as sources
from jclip.model import grounding as networks
from jclip.model import tower_levels, trainable
from jclip.model.parameter_groups import LowRank
from jclip.train import box_batches, box_plan, box_towers, box_training, loop, several_ranks
from jclip.train import optim as optimisation
from jclip.train import run as runs

TASK = "ground"
REPORTED = ("val", "test", "unseen")


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
    positions: Literal["random", "sine"] = "random"  # where image tokens' learned positions start; sine learns sooner
    present: bool = False  # one more output: whether the thing is there at all
    absent: float = 0.3  # share of a batch's phrases that are of other photos, for that
    clip: float = 0.1  # bound of the gradient's global norm; 0: none
    augment: bool = False  # each phrase's photo in a training view of its own: photos are encoded in each step
    augmentation: BoxViewConfig = field(default_factory=BoxViewConfig)  # how that view is drawn
    visual_positions: Literal["fixed", "trained"] = "fixed"  # trained, as CLIP-VG does: photos are encoded in each step
    tower: Literal["frozen", "lora"] = "frozen"  # lora: low-rank updates of the towers' attention learn too
    lora: LowRank = field(default_factory=lambda: LowRank(rank=8, dropout=0.0))
    tower_rate: float = 1.0  # the rate of what learns in the towers, times optim.lr
    accumulate: int = 1  # batches of optim.batch that share one step
    lr_scaling: Literal["none", "linear"] = "none"  # linear: optim.lr is that of reference_batch phrases a step
    reference_batch: int = 384
    criterion: Literal["iou", "giou"] = "iou"  # what must be at least t for acc@t
    frame: Literal["square", "image"] = "square"  # where boxes are compared
    stored: Literal["fp16", "fp32"] = "fp16"  # numbers that the photos' tokens are kept in
    # where: up to 1 GiB in memory, else on the cache's disk
    tokens: Literal["auto", "memory", "disk", "steps"] = "auto"
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig("adamw", lr=2e-4, weight_decay=1e-4, epochs=20, batch=32)
    )
    selection: Literal["last", "val"] = "last"  # the epoch that is kept
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {
        "augment=true": ("augmentation",),
        "tower=lora": ("lora",),
        "lr_scaling=linear": ("reference_batch",),
        "present=true": ("absent",),
    }

    def __post_init__(self):
        least = {"hidden": 0, "layers": 1, "heads": 1, "ffn": 1, "clip": 0, "accumulate": 1, "reference_batch": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if not 0 <= self.absent < 1:
            raise ConfigError(f"absent must be in [0, 1), got {self.absent}")
        if self.prompt.count("{phrase}") != 1:
            raise ConfigError(f"prompt must hold {{phrase}} once, got {self.prompt!r}")

    @property
    def compared(self) -> dict[str, str]:
        """What is compared, and where."""
        return {"criterion": self.criterion, "frame": self.frame}

    @property
    def trains_images(self) -> bool:
        """Whether photos' features change in training."""
        return self.visual_positions == "trained" or (self.tower == "lora" and self.lora.towers != "text")

    @property
    def trains_texts(self) -> bool:
        """Whether phrases' features change in training."""
        return self.tower == "lora" and self.lora.towers != "image"

    @property
    def trains_tower(self) -> bool:
        """Whether any of them do."""
        return self.trains_images or self.trains_texts

    @property
    def sees_anew(self) -> bool:
        """Whether photos are encoded in each step: seen in views, or by a tower that learns."""
        return self.augment or self.trains_images

    @property
    def updates(self) -> LowRank | None:
        """The low-rank updates of the towers, if there are any."""
        return self.lora if self.tower == "lora" else None

    @property
    def scaled(self) -> OptimConfig:
        """The optimiser at the rate of a step's phrases."""
        share = self.optim.batch * self.accumulate / self.reference_batch if self.lr_scaling == "linear" else 1.0
        return replace(self.optim, lr=self.optim.lr * share)

    @property
    def reading(self) -> box_features.Reading:
        """How photos and phrases are read."""
        return box_features.Reading(self.visual_layers, self.normalise, self.prompt, self.stored)


def rows_of_ranks(cfg: Config) -> tuple[int, str]:
    """Phrases of a batch, which several ranks divide, and the name of their number. Raises `ConfigError`."""
    if cfg.tower == "lora" and cfg.lora.dropout:
        raise ConfigError(f"lora.dropout must be 0 where several ranks train, got {cfg.lora.dropout:g}")
    if cfg.augment and cfg.data.on_error == "skip":
        raise ConfigError(
            "data.on_error must be stop where several ranks train, got skip: remove photos that are broken"
        )
    return cfg.optim.batch, "optim.batch"


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Features of both towers, training, boxes of the test phrases."""
    source = sources.source_of(cfg)
    run.note(weights_sha256=source.weights_sha256)
    samples = read_samples(cfg, source)
    check_samples(cfg, source, samples)
    several_ranks.note_ranks(run, box_training.samples_digest(samples))
    return run_on(cfg, run, source, features_of_parts(cfg, source, samples))


def run_on(
    cfg: Config, run: runs.Run, source: sources.ModelSource, parts: Mapping[str, box_features.BoxFeatures]
) -> dict[str, float]:
    """Training and measuring on parts that have been read."""
    check_parts(cfg, parts)
    run.note(data={part: features.samples.counts() for part, features in parts.items()})
    network, towers = new_network(cfg, source), learning_towers(cfg, source)
    state, outcome = train(cfg, run, source, network, towers, parts)
    learned = towers.kept(outcome.best_arrays if cfg.selection == "val" else state.arrays())
    towers.end()
    put_learned(source, network, learned)
    run.save_learned(learned, shape=network.shape.to_dict())
    metrics = {"train_loss": outcome.last["loss"], "parameters": sum(a.size for a in learned.values())}
    for part in REPORTED:
        if part in parts:
            found = box_training.found_in(network, of_now(cfg, source, parts[part]), cfg.seed, **cfg.compared)
            metrics |= {f"{part}_{k}": v for k, v in found.report().items()}
            if part == "test":
                run.hand_over(found)
    return {**metrics, **({"best_epoch": outcome.best_epoch + 1} if outcome.best else {})}


def check_parts(cfg: Config, parts: Mapping[str, Any]) -> None:
    """Raises `ConfigError` where a part of the data is missing."""
    if "train" not in parts:
        raise ConfigError("there is nothing to learn from: set data.train")
    if cfg.selection == "val" and "val" not in parts:
        raise ConfigError(
            "selection=val needs validation phrases: set data.val, of the embedded world also data.val_scenes"
        )


def check_samples(cfg: Config, source: sources.ModelSource, samples: Mapping[str, box_samples.BoxSamples]) -> None:
    """What a training would refuse, before photos are encoded for it. Raises `ConfigError` and `DataError`."""
    check_parts(cfg, samples)
    fusion_shape(cfg, source)
    box_training.check_step(len(samples["train"]), cfg.optim.batch, cfg.accumulate)


def read_parts(cfg: Config, source: sources.ModelSource) -> dict[str, box_features.BoxFeatures]:
    """Features of all parts that there are. Where each step encodes them, photos or phrases have none yet."""
    return features_of_parts(cfg, source, read_samples(cfg, source))


def features_of_parts(
    cfg: Config, source: sources.ModelSource, samples: Mapping[str, box_samples.BoxSamples]
) -> dict[str, box_features.BoxFeatures]:
    """The same of parts that were read."""
    found = {
        part: features_of(cfg, source, own, later=cfg.trains_tower) for part, own in samples.items() if part != "train"
    }
    return found | ({"train": features_to_learn_from(cfg, source, samples["train"])} if "train" in samples else {})


def read_samples(cfg: Config, source: sources.ModelSource) -> dict[str, box_samples.BoxSamples]:
    """Phrases, boxes and photos of all parts that there are; says where photos to measure on are learned from."""
    found = {part: samples for part in box_samples.PARTS if (samples := samples_of(cfg, source, part))}
    for part, samples in found.items() if "train" in found else ():
        if part != "train":
            box_parts.warn_shared(found["train"], samples, part)
    return found


def samples_of(cfg: Config, source: sources.ModelSource, part: str) -> box_samples.BoxSamples | None:
    """Phrases, boxes and photos of a part of the data; None where there is no such part."""
    return box_parts.part_samples(cfg.data, part, box_features.square_side(source))


def features_to_learn_from(
    cfg: Config, source: sources.ModelSource, samples: box_samples.BoxSamples
) -> box_features.BoxFeatures:
    """Features that steps take: photos have none that are seen in views or by a tower that learns, nor such phrases."""
    return box_features.box_features(
        source, samples, cfg.reading, tokens=not cfg.sees_anew, where=cfg.tokens, texts=not cfg.trains_texts
    )


def features_of(
    cfg: Config, source: sources.ModelSource, samples: box_samples.BoxSamples, later: bool = False
) -> box_features.BoxFeatures:
    """Features to measure on, by the towers as they are now; `later`: none yet, for `of_now`."""
    return box_features.box_features(
        source, samples, cfg.reading, not cfg.trains_images, not later, cfg.tokens, texts=not later
    )


def of_now(cfg: Config, source: sources.ModelSource, features: box_features.BoxFeatures) -> box_features.BoxFeatures:
    """The same by the towers as they are now, where these learn."""
    return features_of(cfg, source, features.samples) if cfg.trains_tower else features


def part_features(cfg: Config, source: sources.ModelSource, part: str) -> box_features.BoxFeatures | None:
    """Features of a part of the data, by the towers as they are now; None where there is no such part."""
    samples = samples_of(cfg, source, part)
    return features_of(cfg, source, samples) if samples else None


def fusion_shape(cfg: Config, source: sources.ModelSource) -> networks.FusionShape:
    """The network's sizes."""
    sizes = {name: getattr(cfg, name) for name in ("layers", "heads", "ffn", "dropout", "project_norm", "present")}
    return tower_levels.fusion_shape(
        source.config, cfg.visual_layers, **sizes, **({"hidden": cfg.hidden} if cfg.hidden else {})
    )


def new_network(cfg: Config, source: sources.ModelSource) -> networks.GroundingNetwork:
    """The network as training begins with it."""
    return networks.GroundingNetwork(fusion_shape(cfg, source), cfg.seed, cfg.positions)


def learning_towers(cfg: Config, source: sources.ModelSource) -> box_towers.LearningTowers:
    """What of the towers learns."""
    positions = cfg.visual_positions == "trained"
    return box_towers.LearningTowers(source, cfg.visual_layers, positions, cfg.updates, cfg.seed)


def training_batches(cfg: Config, features: box_features.BoxFeatures) -> box_batches.SteppedBatches:
    """The batches of each step."""
    share = cfg.absent if cfg.present else 0.0
    if cfg.sees_anew:
        view = box_views.BoxAugment(**asdict(cfg.augmentation)) if cfg.augment else None
        batches = box_batches.PhotoBatches(features, cfg.optim.batch, cfg.seed, share, view, cfg.data.on_error)
    else:
        batches = box_training.PhraseBatches(features, cfg.optim.batch, cfg.seed, share)
    return box_batches.SteppedBatches(batches, cfg.accumulate)


def optimiser_of(cfg: Config, network: networks.GroundingNetwork, towers: box_towers.LearningTowers):
    """The optimiser of the network and of what learns in the towers."""
    optim = optimisation.optimiser(cfg.scaled, {**trainable.trainable(network), **towers.params})
    optim.rates = dict.fromkeys(towers.params, cfg.tower_rate)
    return optim


def train(
    cfg: Config,
    run: runs.Run,
    source: sources.ModelSource,
    network: networks.GroundingNetwork,
    towers: box_towers.LearningTowers,
    parts: Mapping[str, box_features.BoxFeatures],
):
    """Trains the network, and what of the towers learns: the state and the outcome."""
    batches, optim = training_batches(cfg, parts["train"]), optimiser_of(cfg, network, towers)
    state, total = optimisation.TrainState(optim), cfg.optim.epochs * len(batches)

    def step(of_step, number: int):
        optim.lr = optimisation.learning_rate(cfg.scaled, number, total)
        loss, gradients = box_batches.step_gradients(network, towers, of_step, optim.params.values(), cfg.seed, number)
        optim.apply(optimisation.clip_by_norm(gradients, cfg.clip) if cfg.clip else gradients)
        return loss

    def evaluate() -> dict[str, float]:
        features = of_now(cfg, source, parts["val"])
        report = box_training.found_in(network, features, cfg.seed, **cfg.compared).report()
        return {k: report[k] for k in ("acc@0.5", "mean_iou")}

    outcome = loop.fit(
        step, batches.epoch, state=state, run=run, epochs=cfg.optim.trained_epochs,
        evaluate=evaluate if "val" in parts else None, select="acc@0.5", steps=cfg.optim.trained_epochs * len(batches),
    )  # fmt: skip
    return state, outcome


def put_learned(
    source: sources.ModelSource, network: networks.GroundingNetwork, arrays: Mapping[str, np.ndarray]
) -> None:
    """Gives the network its parameters, and the towers what was trained of them, if anything."""
    network.put({k: v for k, v in arrays.items() if not box_towers.is_of_towers(k)})
    box_towers.put_learned_towers(source, arrays)


def network_of(learned: Mapping[str, np.ndarray], shape: Mapping[str, Any], source: sources.ModelSource):
    """The network of a finished run; `source` gets what was trained of the towers with it."""
    network = networks.GroundingNetwork(networks.FusionShape(**shape))
    put_learned(source, network, learned)
    return network


def plan(cfg: Config, folder: Path) -> str:
    """What is learned from, where its tokens are kept, and the steps."""
    source = sources.source_of(cfg)
    samples = read_samples(cfg, source)
    check_samples(cfg, source, samples)
    schedule = box_plan.Schedule(cfg.optim.batch, cfg.accumulate, cfg.optim.trained_epochs, cfg.sees_anew, cfg.tokens)
    return "\n".join(box_plan.plan_lines(samples, schedule, source, cfg.reading))
