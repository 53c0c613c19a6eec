"""The average of weights along training: equal to torch's AveragedModel, of heads and of towers, resumed to the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import finetune
from jclip.config import DataConfig, OptimConfig
from jclip.errors import ConfigError
from jclip.model.trainable import no_weight_decay, trainable
from jclip.runtime import jt
from jclip.train import on_features as adapt
from jclip.train.configs import read_config
from jclip.train.loop import fit
from jclip.train.optim import TrainState, optimiser
from jclip.train.run import Run
from tests.recipes import toys

torch = pytest.importorskip("torch", reason=toys.NO_TORCH)

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn  # noqa: E402

CONFIGS = Path(__file__).parents[2] / "configs"
DECAY = 0.8
SEEN = ("coop", "full", "lora")  # in tests of their own
SMALLER = {  # than their smoke configs, whose other tests train them whole
    "contrastive": ["zero_shot=[]", "data.scenes=24", "data.val_scenes=6", "optim.batch=8"],
    "text_as_image": ["scenes=24", "optim.batch=8", "search=false"],
}
OTHERS = [n for n in finetune.names() if n not in SEEN and "optim" in finetune.load(n).Config.__dataclass_fields__]


class Weights(torch.nn.Module):
    """Arrays by name as parameters, which torch averages from their start on."""

    def __init__(self, arrays):
        super().__init__()
        self.p = torch.nn.ParameterDict({k.replace(".", "/"): torch.tensor(v) for k, v in arrays.items()})

    def averaged(self) -> AveragedModel:
        mean = AveragedModel(self, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        mean.update_parameters(self)  # the first call copies
        return mean


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("selection", ["last", "val"])
def test_a_heads_average_equals_torchs(seed, selection, tmp_path, close):
    data = toys.random_features(seed)
    optim = OptimConfig(lr=0.05, weight_decay=0.1, epochs=5, batch=4, average=DECAY)
    weight, batches = jt.array(data.text), adapt.Batches((data.train, data.train_labels), 4, seed)

    def scores(features):
        return data.scale * jt.nn.matmul_transpose(features, weight)

    with Run(tmp_path, {"recipe": "x"}) as run:
        learner = adapt.Learner({"weight": weight}, scores)
        trained = adapt.train(run, optim, learner, batches, batches.steps, data, selection)
    theirs = Weights({"weight": data.text.astype(np.float64)})
    mean, adamw = theirs.averaged(), torch.optim.AdamW(theirs.parameters(), 0.05, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, 5 * batches.steps)
    x, y = torch.tensor(data.train.astype(np.float64)), torch.tensor(data.train_labels)
    seen = []
    for epoch in range(5):
        for rows in torch.tensor(np.random.default_rng((seed, epoch)).permutation(len(x))).split(4):
            adamw.zero_grad()
            torch.nn.functional.cross_entropy(data.scale * x[rows] @ theirs.p["weight"].T, y[rows]).backward()
            adamw.step()
            schedule.step()
            mean.update_parameters(theirs)
        seen.append(mean.module.p["weight"].detach().numpy().copy())
    right = [[(part @ w.T).argmax(1) for part in (data.val, data.test)] for w in seen]
    best = max(range(5), key=lambda i: ((right[i][0] == data.val_labels).mean(), -i))
    close(trained.arrays["weight"], seen[4 if selection == "last" else best], "trajectory", "average of a head")
    assert trained.metrics["best_epoch"] == best + 1
    for name, epoch in (("last", 4), ("best", best)):
        wanted = (right[epoch][1] == data.test_labels).mean()
        assert trained.metrics[f"test_top1_{name}_epoch"] == pytest.approx(wanted)


def test_towers_average_equals_torchs(small_models, tmp_path, close):
    """Five steps of full fine-tuning, each an epoch; both towers against torch's step on the same pixels."""
    from finetune.full import Config, training_step
    from jclip.model.clip import build
    from jclip.weights.checkpoint import open_checkpoint
    from tests.parity import torch_clip
    from tests.trajectories import without_key_bias

    F = torch.nn.functional
    checkpoint = open_checkpoint(small_models["vit"])
    model, prompts = build(checkpoint), [["a cat."], ["a dog."], ["x"]]
    settings = OptimConfig(lr=1e-4, betas=(0.9, 0.98), eps=1e-6, schedule="constant", average=DECAY, epochs=5)
    cfg = Config(DataConfig(), "x", loss="cross_entropy", optim=settings)
    optim = optimiser(settings, trainable(model), no_weight_decay)
    theirs = Weights(dict(checkpoint.arrays()))
    mean = theirs.averaged()
    decays = {k: 0.0 if no_weight_decay(k, v) else settings.weight_decay for k, v in optim.params.items()}
    groups = [{"params": [theirs.p[k.replace(".", "/")]], "weight_decay": d} for k, d in decays.items()]
    adamw = torch.optim.AdamW(groups, 1e-4, (0.9, 0.98), 1e-6)

    def batches(epoch: int):
        rng = np.random.default_rng(epoch)
        yield rng.standard_normal((4, 3, 32, 32), dtype=np.float32), rng.integers(0, 3, 4)

    with Run(tmp_path, {"recipe": "x"}) as run:
        step = training_step(cfg, model, optim, prompts, 5)
        fit(step, batches, state=TrainState(optim), run=run, epochs=5)
    tokens = torch.tensor(model.tokenize([p for (p,) in prompts])).long()
    for epoch in range(5):
        ((pixels, labels),) = batches(epoch)
        p = {k.replace("/", "."): v for k, v in theirs.p.items()}
        images = F.normalize(torch_clip.encode_image(p, model.config, torch.tensor(pixels)), dim=-1)
        texts = F.normalize(torch_clip.encode_text(p, model.config, tokens), dim=-1)
        adamw.zero_grad()
        F.cross_entropy(p["logit_scale"].exp() * images @ texts.T, torch.tensor(labels)).backward()
        adamw.step()
        mean.update_parameters(theirs)
    for k, v in optim.params.items():
        wanted = mean.module.p[k.replace(".", "/")].detach().numpy()
        compared = without_key_bias(k, v.numpy().reshape(wanted.shape)), without_key_bias(k, wanted)
        close(*compared, "trajectory", "average of both towers after 5 steps")


@pytest.mark.parametrize("recipe", ["coop", "lora"])
def test_a_broken_run_goes_on_to_the_same_average(recipe, small_models, photo_folder, tmp_path, monkeypatch):
    settings = [
        f"model={small_models['vit']}",
        f"data.root={photo_folder}",
        "data.split_file=",
        "data.shots=2",
        "optim.batch=4",
    ]
    settings += ["optim.average=0.7", *(["steps=6"] if recipe == "lora" else ["optim.epochs=3", "views=1"])]
    config, log, lines = CONFIGS / recipe / "smoke.yaml", Run.log, []
    whole = toys.train(config, tmp_path / "whole", *settings)
    assert toys.train(config, tmp_path / "raw", *settings, "optim.average=0")["test_nll"] != whole["test_nll"]
    monkeypatch.setattr("jclip.train.loop.SAVE_SECONDS", 0.0)

    def dying(self, **values):
        lines.append(values)
        if len(lines) == 2:
            raise KeyboardInterrupt
        log(self, **values)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", dying)
        with pytest.raises(KeyboardInterrupt):
            toys.train(config, tmp_path / "killed", *settings)
    assert toys.train(config, tmp_path / "killed", *settings) == whole
    kept = [(tmp_path / name / "learned.safetensors").read_bytes() for name in ("whole", "killed")]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("name", OTHERS)
def test_every_recipe_averages_or_refuses(name, tmp_path, monkeypatch):
    """A run's training ends with an average, or a config error says what is missing."""
    config, settings = CONFIGS / name / "smoke.yaml", ["optim.average=0.9", *SMALLER.get(name, ())]
    try:
        read_config(str(config), settings)
    except ConfigError as e:
        assert "optim.average must be 0 without training steps to average over, got 0.9: it needs" in str(e)
        settings += {"linear_probe": ["solver=sgd", "optim.batch=8"]}.get(name, ["train=true"])
    kept, keep = [], TrainState.keep_average
    monkeypatch.setattr(TrainState, "keep_average", lambda self: kept.append(len(self.average)) or keep(self))
    toys.train(config, tmp_path, *settings)
    assert kept and all(kept)


def test_decays_are_below_one():
    with pytest.raises(ConfigError, match=r"optim.average must be in \[0, 1\), got 1.0"):
        OptimConfig(average=1.0)
