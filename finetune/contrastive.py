"""Contrastive training on images with captions, from scratch or from weights: how CLIP itself was made.

Radford et al., 2021, arXiv 2103.00020, section 2.3 and figure 3.   Trains: both towers, or what `lock` leaves of them.
Needs: image-caption pairs, or the embedded world (`data.train: shapes`).

    softmax:  L = (CE(s I T', own) + CE(s T I', own)) / 2,   s = exp(logit scale) <= 100
    sigmoid:  L = -1/B Σ_ij log σ(y_ij (s I_i T_j + b)),     y = 1 for own, -1 for others (SigLIP, arXiv 2303.15343)

With a `teacher` its scores are learned as well; low-rank updates are merged in the end; `mix` ends between the weights
before and after (WiSE-FT, arXiv 2109.01903).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from jclip import kernels
from jclip.choices import PreprocessChoice
from jclip.config import CaptionConfig, DataConfig, Dtype, OptimConfig, ReadWith
from jclip.data import augment, captions, splits
from jclip.data import preprocess as preprocessing
from jclip.errors import ConfigError, DataError, notice
from jclip.features import caption_features, extraction, heads
from jclip.features import source as sources
from jclip.functional import directions, metrics
from jclip.machine import memory_limit, ranks
from jclip.model import clip, patch_dropout, recompute, trainable
from jclip.model.parameter_groups import Lock, LowRank, rate_factors, trained_patterns
from jclip.postponed import jt
from jclip.prompts.templates import class_prompts, load_templates
from jclip.train import loop, memory_estimate, on_captions, several_ranks, tuned_towers
from jclip.train import optim as optimisation
from jclip.train import run as runs
from jclip.weights import interpolation
from jclip.weights.variants import config_of

TASK = "retrieve"
FIRST_BIAS = -10.0  # of the sigmoid loss
SIGLIP_SCALE = 10.0  # where SigLIP's exp(logit scale) starts


@dataclass(frozen=True)
class Config:
    data: CaptionConfig
    model: str  # a name or weight file; with `scratch` the name of an architecture
    scratch: bool = False  # random weights to begin with
    family: str | None = None  # for weights that don't say their activation
    dtype: Dtype = "fp32"  # bf16: linear maps multiply in it while training, on CPUs with AVX-512
    preprocess: PreprocessChoice = field(default_factory=PreprocessChoice)  # square-pad pads before a random crop, too
    augment: str = "none"
    loss: Literal["softmax", "sigmoid"] = "softmax"
    scale: float = 0.0  # exp(logit scale) at the start; 0: the weights' own, from scratch 1 / 0.07, of sigmoid 10
    bias: float | None = None  # of sigmoid, at the start; by default the weights' own, where they have none -10
    # whose captions belong to each other's images
    positives: Literal["own", "same", "caption", "image", "both"] = "own"
    patch_dropout: float = 0.0  # share of a ViT's patches that a training step leaves out
    teacher: str = ""  # a larger model whose scores are learned as well
    distill: float = 1.0  # the weight of that
    accumulate: int = 1  # batches of optim.batch that share one step and one matrix of scores
    rank_loss: Literal["global", "local"] = "global"  # each rank scores all pairs of a step, or its own among all
    recompute: bool = False  # blocks are computed again in the backward pass: far less memory, a third more time
    clip: float = 0.0  # bound of the gradient's global norm; 0: none
    update: Literal["full", "top", "lora", "none"] = "full"  # none: the weights are measured as they are
    top: int = 2  # groups of each tower that update=top trains: 1 is the projection, 2 adds the last block
    lora: LowRank = field(default_factory=lambda: LowRank(rank=8, dropout=0.0))
    lock: Lock = field(default_factory=Lock)
    layer_decay: float = 1.0  # factor of the rate from each group of a tower to the one below
    mix: int = 0  # steps of α between the weights before and after, chosen on validation; 0: those after
    checkpoints: int = 0  # epochs from one model file to the next; 0: the last alone
    keep: int = 0  # how many of these files are kept, the last ones; 0: all
    zero_shot: tuple[str, ...] = ()  # photo folders (or shapes:…) to classify while training
    templates: str = "simple"
    every: int = 1  # epochs between measurements
    select: str = ""  # the metric of the best epoch; by default i2t_r1, without data.val the first zero-shot accuracy
    selection: Literal["val", "last"] = "last"  # the epoch that is kept
    half: bool = False  # keep the weights in fp16
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, warmup=0.05, epochs=10, batch=64
        )
    )
    seed: int = 1
    READ_WITH: ClassVar[ReadWith] = {
        "update=top": ("top",),
        "update=lora": ("lora",),
        "teacher!=": ("distill",),
        "loss=sigmoid": ("bias",),
        "checkpoints!=0": ("keep",),
        "zero_shot!=": ("templates",),
    }

    def __post_init__(self):
        if self.accumulate < 1 or self.clip < 0 or self.every < 1:
            raise ConfigError(
                f"accumulate and every must be at least 1, clip at least 0, got {self.accumulate}, {self.every}, {self.clip:g}"
            )
        for name, low, high in (
            ("patch_dropout", 0, 0.99), ("layer_decay", 1e-3, 1), ("distill", 0, 1e6), ("scale", 0, 100),
            ("bias", -100, 100), ("mix", 0, 100), ("checkpoints", 0, 10**6), ("keep", 0, 10**6), ("top", 1, 1000),
        ):  # fmt: skip
            if (value := getattr(self, name)) is not None and not low <= value <= high:
                raise ConfigError(f"{name} must be in [{low:g}, {high:g}], got {value:g}")
        if self.update != "full" and (self.lock.image or self.lock.text):
            raise ConfigError(f"lock must be left out with update={self.update}, which says itself what is trained")
        if self.scratch:
            config_of(self.model)
        if self.scratch and (self.mix or self.preprocess.size is not None):
            raise ConfigError("mix and preprocess.size must be left out with scratch: there are no weights before")

    @property
    def locked(self) -> Lock:
        """What of the towers stays as it is, low-rank updates aside."""
        return Lock(True, self.top, True, self.top) if self.update == "top" else self.lock

    @property
    def freezes_image(self) -> bool:
        """Whether nothing of the image tower is trained, so that its features can be computed once."""
        return self.lora.towers == "text" if self.update == "lora" else self.locked.freezes_image


def rows_of_ranks(cfg: Config) -> tuple[int, str]:
    """Pairs of a batch, which several ranks divide, and the name of their number. Raises `ConfigError`."""
    if cfg.update == "lora" and cfg.lora.dropout:
        raise ConfigError(f"lora.dropout must be 0 where several ranks train, got {cfg.lora.dropout:g}")
    return cfg.optim.batch, "optim.batch"


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Training, with retrieval and zero-shot measured on the way; writes the model as model.safetensors."""
    kernels.products_in(cfg.dtype)  # refuses what the device can't do before anything is computed
    model, preprocess = start_model(cfg, run)
    if cfg.update == "none":
        return measured(cfg, run, model, preprocess)
    if model.config.sigmoid and cfg.loss == "softmax":
        raise ConfigError(f"loss must be sigmoid for {cfg.model}, which was trained with it (SigLIP): set loss=sigmoid")
    train = captions.read_pairs(cfg.data, "train", preprocess.size, cfg.seed)
    val = captions.read_pairs(cfg.data, "val", preprocess.size, cfg.seed)
    check(cfg, train, val)
    several_ranks.note_ranks(run, on_captions.pairs_digest(train, val))
    teacher = on_captions.open_teacher(cfg.teacher, preprocess) if cfg.teacher else None
    tuned = prepared(cfg, model)
    optim = optimisation.optimiser(cfg.optim, tuned.params, trainable.no_weight_decay)
    optim.rates = rate_factors(model.config, cfg.layer_decay, optim.params)
    of_epoch = len(train) // (cfg.optim.batch * cfg.accumulate)
    batches = on_captions.PairBatches(
        model, preprocess, train, augment.augment(cfg.augment), cfg.seed, cfg.optim.batch, cfg.accumulate,
        cfg.patch_dropout, teacher, cfg.freezes_image,
    )  # fmt: skip
    folders = {name_of(root): splits.read_photos(DataConfig(root=root, shots=0, val_shots=0)) for root in cfg.zero_shot}
    evaluate = measure(cfg, model, preprocess, val, folders)
    state = optimisation.TrainState(optim, clip.running_statistics(model))
    before = tuned.weights(state.arrays()) if cfg.mix else {}
    needed = memory(cfg, model, optim, train, teacher)
    memory_limit.require(needed.total - needed.process - needed.weights, "a training step (optim.batch)")
    if not run.quiet:
        notice(f"memory of a step: {needed}")
        memory_limit.warn_of_memory(needed.total - needed.process - needed.weights, "a training step")

    outcome = loop.fit(
        training_step(cfg, tuned, optim, teacher, cfg.optim.epochs * of_epoch), batches.epoch, state=state, run=run,
        epochs=cfg.optim.trained_epochs, every=cfg.every, evaluate=evaluate, select=selected(cfg),
        steps=cfg.optim.trained_epochs * of_epoch, after_epoch=checkpoints(cfg, run, tuned, state, preprocess),
    )  # fmt: skip
    after = tuned.weights(outcome.best_arrays if cfg.selection == "val" else state.arrays())
    tuned.end(after)
    mixed = mixed_end(cfg, model, before, after, evaluate) if cfg.mix else {}
    save(run, "model.safetensors", cfg, model, preprocess)
    bias = {"logit_bias": model.logit_bias} if model.config.sigmoid else tuned.bias
    return {**kept_metrics(cfg, outcome), **mixed, **{k: float(v.numpy()[0]) for k, v in bias.items()}}


def measured(cfg: Config, run: runs.Run, model, preprocess: preprocessing.Preprocess) -> dict[str, float]:
    """Retrieval among the validation pairs by the weights as they are, by pairs and by groups. Raises `ConfigError`."""
    val = captions.read_pairs(cfg.data, "val", preprocess.size, cfg.seed)
    if val is None:
        raise ConfigError("update=none measures: set data.val to a table of captions")
    with clip.inference(model):
        encoded = caption_features.encode_pairs(model, val, preprocess)
    save(run, "model.safetensors", cfg, model, preprocess)
    return {**encoded.report(), **encoded.grouped()}


def kept_metrics(cfg: Config, outcome: loop.Outcome) -> dict[str, float]:
    """The metrics of the epoch that is kept, and which was the best."""
    if not outcome.best:
        return outcome.last
    best = {f"best_epoch_{selected(cfg)}": outcome.best[selected(cfg)], "best_epoch": outcome.best_epoch + 1}
    return {**(outcome.best if cfg.selection == "val" else outcome.last), **best}


def start_model(cfg: Config, run: runs.Run):
    """The model that training starts from, and its preprocessing."""
    if cfg.scratch:
        config = config_of(cfg.model)
        jt.set_global_seed(cfg.seed, different_seed_for_mpi=False)
        model = clip.CLIP(config)
        jt.sync(list(model.state_dict().values()))  # drawn in this order, not in that of their first use
        usual = preprocessing.Preprocess(size=config.vision.image_size, upright=cfg.data.upright)
        preprocess = preprocessing.with_choice(usual, cfg.preprocess)
    else:
        source = sources.ModelSource(cfg.model, cfg.family, preprocess=cfg.preprocess, upright=cfg.data.upright)
        source.squared()
        run.note(weights_sha256=source.checkpoint.sha256)
        model, preprocess = source.model, source.preprocess
    scale = cfg.scale or (SIGLIP_SCALE if cfg.scratch and cfg.loss == "sigmoid" else 0.0)
    if scale:
        clip.put_arrays(model, {"logit_scale": np.array([math.log(scale)], np.float32)})
    if model.config.sigmoid and cfg.bias is not None:
        clip.put_arrays(model, {"logit_bias": np.array([cfg.bias], np.float32)})
    return model, preprocess


def prepared(cfg: Config, model) -> tuned_towers.TunedTowers:
    """What of the model is trained, and how its passes are computed."""
    if cfg.patch_dropout:
        patch_dropout.check_patch_dropout(model)
    lora, bias = cfg.lora if cfg.update == "lora" else None, None
    if cfg.loss == "sigmoid" and not model.config.sigmoid:
        bias = FIRST_BIAS if cfg.bias is None else cfg.bias
    tuned = tuned_towers.TunedTowers(model, trained_patterns(model.config, cfg.locked), lora, bias, cfg.seed)
    if cfg.recompute:
        recompute.recompute_blocks(model, tuned.params, tuned.adapters)
    return tuned


def training_step(cfg: Config, tuned: tuned_towers.TunedTowers, optim, teacher, total: int):
    """One optimiser step on a list of parts."""
    objective = on_captions.Objective(
        cfg.loss, cfg.positives, teacher, cfg.distill, tuned.adapters, cfg.seed, cfg.rank_loss == "local", tuned.further
    )

    def step(batch, number: int):
        optim.lr = optimisation.learning_rate(cfg.optim, number, total)
        tuned.train(True)
        with kernels.products_in(cfg.dtype):
            names = list(optim.params)
            loss, gradients = on_captions.caption_gradients(tuned.model, batch, names, objective, number)
            optim.apply(optimisation.clip_by_norm(gradients, cfg.clip) if cfg.clip else gradients)
        tuned.train(False)
        clip.clamp_logit_scale(tuned.model)
        return loss

    return step


def check(cfg: Config, train: captions.Pairs | None, val: captions.Pairs | None) -> None:
    """Raises `DataError` or `ConfigError` for what would only show, or not even show, after hours."""
    size = cfg.optim.batch * cfg.accumulate
    if train is None:
        raise DataError("no training pairs named: set data.train to a table of captions, or to shapes")
    if size > len(train):
        raise DataError(
            f"a step of {size} pairs (optim.batch x accumulate) is larger than the data set of {len(train)}: lower them"
        )
    for asked, what in ((cfg.selection == "val", "the best epoch"), (cfg.mix, "α (mix)")):
        if asked and val is None and not cfg.zero_shot:
            raise ConfigError(f"choosing {what} needs data.val or zero_shot, or set selection=last and mix=0")
    total = cfg.optim.epochs * (len(train) // size)
    if (warm := optimisation.warmup_steps(cfg.optim, total)) > 0.2 * total:
        notice(f"the warm-up takes {warm} of {total} steps, more than a fifth: lower optim.warmup?")


def memory(cfg: Config, model, optim, train: captions.Pairs, teacher) -> memory_estimate.MemoryEstimate:
    """What a step is going to take; texts as long as the longest of the first few hundred."""
    texts, _ = train.texts(range(min(len(train), 256)))
    longest = int(model.ends(model.tokenize(texts, truncate=True)).max()) + 1
    names = [name for name in optim.params if name not in ("logit_scale", "logit_bias")]
    image = [name.startswith("visual.") for name in names]
    rows, patches = -(-cfg.optim.batch // ranks.here().size), 1 - cfg.patch_dropout
    step = memory_estimate.StepSize(rows, cfg.accumulate, longest, patches, any(image), not all(image), cfg.recompute)
    trained, further = sum(p.numel() for p in optim.params.values()), clip.parameter_count(teacher) if teacher else 0
    return memory_estimate.estimate(model.config, clip.parameter_count(model), trained, cfg.optim, step, further)


def checkpoints(cfg: Config, run: runs.Run, tuned: tuned_towers.TunedTowers, state, preprocess):
    """Writes epoch_005.safetensors and so on, and removes what is older than the last `keep` of them; None without any."""

    def name(epoch: int) -> str:
        return f"epoch_{epoch:03d}.safetensors"

    def after_epoch(epoch: int) -> None:
        if (epoch + 1) % cfg.checkpoints:
            return
        with tuned.merged(state.arrays()):
            save(run, name(epoch + 1), cfg, tuned.model, preprocess)
        if cfg.keep and (old := epoch + 1 - cfg.keep * cfg.checkpoints) > 0:
            run.file(name(old)).unlink(missing_ok=True)

    return after_epoch if cfg.checkpoints else None


def save(run: runs.Run, name: str, cfg: Config, model, preprocess: preprocessing.Preprocess) -> None:
    """Writes the model as it is into the run's folder, where this process writes."""
    if run.writer:
        clip.save_model(run.file(name), model, preprocess, cfg.half, made_by="contrastive")


def mixed_end(cfg: Config, model, before: Mapping, after: Mapping, evaluate: Callable) -> dict[str, float]:
    """Leaves the model at the α with the best selected metric on validation, the lowest of equals; its measurements."""
    found = {}
    for alpha in interpolation.grid(cfg.mix):
        clip.put_arrays(model, interpolation.interpolate(before, after, alpha))
        found[alpha] = evaluate()
    name = selected(cfg)
    best = max(found, key=lambda alpha: found[alpha][name])
    clip.put_arrays(model, interpolation.interpolate(before, after, best))
    curve = {f"{name}_at_{alpha:.2f}": report[name] for alpha, report in found.items()}
    return {**found[best], "alpha": best, **curve}


def measure(
    cfg: Config,
    model,
    preprocess: preprocessing.Preprocess,
    val: captions.Pairs | None,
    folders: Mapping[str, splits.PhotoData],
) -> Callable[[], dict[str, float]] | None:
    """What is measured on the way: retrieval among the validation pairs, zero-shot on each named folder."""
    templates = load_templates(cfg.templates)

    def zero_shot(photos: splits.PhotoData) -> float:
        split = photos.test if len(photos.test) else photos.train
        head = heads.head_of(model, class_prompts(photos.classnames, templates))
        rows, features = extraction.encode_photos(model, preprocess, split, cfg.data.on_error)
        return metrics.top_k(head(directions.unit(features)), split.labels[rows])

    def evaluate() -> dict[str, float]:
        report: dict[str, float] = {}
        with clip.inference(model):
            if val is not None:
                report = caption_features.encode_pairs(model, val, preprocess).report()
            report.update({f"{name}_top1": zero_shot(photos) for name, photos in folders.items()})
        return report

    return evaluate if val is not None or folders else None


def selected(cfg: Config) -> str:
    """The metric by which the best epoch is chosen."""
    if cfg.select or not cfg.zero_shot or cfg.data.val:
        return cfg.select or "i2t_r1"
    return f"{name_of(cfg.zero_shot[0])}_top1"


def name_of(root: str) -> str:
    """`shapes:sketch` → sketch, /photos/birds → birds."""
    return Path(root.partition(":")[2] or root).name
