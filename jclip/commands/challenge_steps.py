"""`jclip challenge`: the few-shot challenge of Jittor in one command, from photos to the file that is handed in.

1. Each backbone is tuned (`tune`); the one that is best on validation photos is kept.
2. On it the `members` are trained that `fuse` and `gate` name.
3. Their scores are added up with weights from validation photos, and the test photos are labelled.

Each step is a run in a folder named after its settings, weights and photos: finished steps
are skipped, interrupted ones resume, and other settings get another folder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jclip.config import DataConfig, to_values
from jclip.data import checks, splits
from jclip.errors import ConfigError, DataError, UnknownName, quoted, say
from jclip.features import source as sources
from jclip.paths import file_sha256, refuse_overwriting
from jclip.prompts.templates import class_prompts, load_templates
from jclip.report import predictions
from jclip.report.predictor import Classifier, unlabelled
from jclip.train.configs import files_named_in
from jclip.train.keyed_runs import KeyedRuns, state_of

if TYPE_CHECKING:  # help answers before NumPy is imported
    import numpy as np

TUNED = "tuned"  # the member that `tune` makes


@dataclass(frozen=True)
class Fusion:
    """How scores are added up, as in the recipe `ensemble`."""

    inputs: Literal["log_softmax", "softmax", "logits"] = "log_softmax"
    step: float = 0.02
    shrink: float = 0.0
    weights: tuple[float, ...] = ()  # one per member of `fuse`, in place of the search

    def __post_init__(self):
        if not 0.001 <= self.step <= 1 or not 0 <= self.shrink <= 1:
            raise ConfigError(
                f"fusion.step must be in [0.001, 1] and fusion.shrink in [0, 1], got {self.step} and {self.shrink}"
            )
        if self.weights and (min(self.weights) < 0 or not any(self.weights)):
            raise ConfigError(f"fusion.weights must be at least 0 and not all 0, got {list(self.weights)}")


@dataclass(frozen=True)
class Config:
    data: DataConfig
    backbones: tuple[str, ...] = ("ViT-B/32", "RN101")  # names or weight files
    family: str | None = None  # for weights that don't say their activation
    board: Literal["A", "B"] = "A"  # B: classes_b.txt and TestSetB of the folder data.root
    templates: str = "jittor_challenge[4]"
    tune: dict = field(default_factory=lambda: {"recipe": "full"})
    members: dict = field(default_factory=dict)  # name → settings, `recipe` if that is another, `on: given` weights
    fuse: tuple[str, ...] = (TUNED,)  # whose scores are added up
    fusion: Fusion = field(default_factory=Fusion)
    gate: str = TUNED  # who labels photos that it takes for a class without training photos; "" for nobody
    gate_margin: float = 0.0
    photos: str = ""  # to label: a folder or list in data.root, or from here; by default TestSetA or TestSetB
    out: str = "results"
    date: str = ""  # MMDD in the files' names; by default today's
    parameters: float = 500.0  # millions that all models together may have
    seed: int = 1

    def __post_init__(self):
        for key in ("backbones", "fuse"):
            if not getattr(self, key):
                raise ConfigError(f"{key} must hold at least one name, got []")
        for name in filter(None, (*self.fuse, self.gate)):
            if name != TUNED and name not in self.members:
                raise UnknownName("member", name, [TUNED, *self.members])
        if self.fusion.weights and len(self.fusion.weights) != len(self.fuse):
            raise ConfigError(
                f"fusion.weights must hold one number per member of fuse ({len(self.fuse)}), got {len(self.fusion.weights)}"
            )
        if self.date and not (len(self.date) == 4 and self.date.isdecimal()):
            raise ConfigError(f"date must be MMDD, such as '0820', got {quoted(self.date)}")
        wrong = [
            name for name, of in self.members.items() if not isinstance(of, Mapping) or of.get("on", TUNED) not in ON
        ]
        if wrong:
            raise ConfigError(
                f"members.{wrong[0]} must be a group of settings with `on` one of {', '.join(ON)}, "
                f"got {quoted(self.members[wrong[0]])}"
            )

    @property
    def needed(self) -> list[str]:
        """The members to train beside the tuned model, each once."""
        return list(dict.fromkeys(name for name in (*self.fuse, self.gate) if name in self.members))

    def on_given(self, member: str) -> bool:
        """Whether it learns on the weights as they were, not on the tuned ones."""
        return member != TUNED and self.members[member].get("on", TUNED) != TUNED


ON = (TUNED, "given")
SPENT = ("seconds", "peak MiB")


class Pipeline:
    """The steps of a challenge, their folders below `folder`; `place` is the file that errors name, `overrides` are the
    settings put over its values."""

    def __init__(self, cfg: Config, folder: Path, place: str, overrides: Sequence[str] = ()):
        self.cfg, self._place, self._runs = cfg, place, KeyedRuns(folder, place, overrides)

    @cached_property
    def data(self) -> DataConfig:
        """What all steps learn from and choose by."""
        data = self.cfg.data
        if self.cfg.board == "A" or data.classes:
            return data
        return replace(data, classes=str(Path(data.root, "classes_b.txt")))

    @cached_property
    def photos(self) -> splits.PhotoData:
        """Training and validation photos and the classes, as `check` finds them fit to be used."""
        return splits.read_photos(self.data)

    @cached_property
    def taught(self) -> np.ndarray:
        """(C,) bool: classes with training photos."""
        import numpy as np

        return np.bincount(self.photos.train.labels, minlength=len(self.photos.classnames)) > 0

    @cached_property
    def to_label(self) -> splits.Split:
        """The test photos; labels are -1 where nobody knows them."""
        root, named = Path(self.data.root), self.cfg.photos or f"TestSet{self.cfg.board}"
        if not self.cfg.photos and len(self.photos.test):
            return self.photos.test
        place = root / named if (root / named).exists() else Path(named)
        is_list = place.suffix == ".txt" and place.is_file()
        return (
            splits.read_list(place, root, self.photos.classnames)
            if is_list
            else unlabelled(splits.find_photos([place]))
        )

    @cached_property
    def sources(self) -> dict[str, sources.ModelSource]:
        """Backbone → its weights."""
        return {
            name: sources.ModelSource(weights_of(name, self.data.root), self.cfg.family) for name in self.cfg.backbones
        }

    def check(self) -> None:
        """Raises at once what would else show hours later: settings, photos, long names, models that are too large, results
        that would replace what is read."""
        for member in (TUNED, *self.cfg.needed):
            self.settings(member, "")
        check_photos(self.photos)
        self._check_models()
        self._check_results()

    def _check_models(self) -> None:
        """Raises `JclipError` for prompts that a model does not take, and for models that are too large."""
        prompts = class_prompts(self.photos.classnames, load_templates(self.cfg.templates))
        copies = 1 + any(map(self.cfg.on_given, self.cfg.needed))
        for name, source in self.sources.items():
            source.tokenize([text for of_class in prompts for text in of_class])
            self.check_size({f"{name}{' and its tuned copy' * (copies - 1)}": copies * parameters(source)})

    def _check_results(self) -> None:
        """Raises `ConfigError` where the results would replace a file that is read."""
        read = [*files_named_in(to_values(self.cfg)), *self.to_label.paths]
        refuse_overwriting(results_of(self.cfg), [*read, *self.photos.train.paths, *self.photos.val.paths])

    def settings(self, member: str, model: str) -> tuple[Any, Any]:
        """Recipe and built config of a member on weights `model`. Raises `ConfigError`."""
        given = {"recipe": member} | dict(self.cfg.tune if member == TUNED else self.cfg.members[member])
        given.pop("on", None)
        family = self.cfg.family if member == TUNED or self.cfg.on_given(member) else None
        shared = {"data": to_values(self.data), "model": model, "family": family}
        shared |= {"templates": self.cfg.templates, "seed": self.cfg.seed}
        return self._runs.settings("tune" if member == TUNED else f"members.{member}", given, shared)

    def finished(self, member: str, backbone: str, model: str, sha256: str) -> Classifier:
        """The member's run on weights `model`, made now unless that was done before."""
        name, made_of = self._named(member, backbone), self._made_of(sha256)
        return Classifier.load(
            self._runs.finished(name, *self.settings(member, model), made_of, f"{member}, {backbone}")
        )

    def _named(self, member: str, backbone: str) -> str:
        return f"{member}-{self.sources[backbone].checkpoint.path.stem}"

    def _made_of(self, sha256: str) -> list[str]:
        return [sha256, self.photos.train.digest(), self.photos.val.digest()]

    def plan(self) -> str:
        """The steps as a table, each with its folder and whether it is done; nothing is run."""
        rows = []
        for name, source in self.sources.items():
            made_of = self._made_of(source.checkpoint.sha256)
            settings = self.settings(TUNED, str(source.checkpoint.path))
            folder = self._runs.folder_of(self._named(TUNED, name), *settings, made_of)
            rows.append(["tune", name, str(folder), state_of(folder)])
        rows += [["members", member, "on the best of these", ""] for member in self.cfg.needed]
        rows.append(["results", f"{len(self.to_label)} photos", str(results_of(self.cfg)[0]), ""])
        return predictions.table(["step", "of", "folder", ""], rows)

    def tune(self) -> str:
        """Tunes each backbone, shows how they do, and returns the one that is best on validation photos."""
        runs = {name: self.tuned(name) for name in self.sources}
        best = max(runs, key=lambda name: runs[name].metrics["val_top1"])  # the first, among equals
        rows = [
            [name, *accuracies(run, "zero_shot_val_top1", "val_top1"), *spent(run), "kept" if name == best else ""]
            for name, run in runs.items()
        ]
        say(predictions.table(["top-1 on validation", "zero-shot", TUNED, *SPENT, ""], rows))
        return best

    def tuned(self, backbone: str) -> Classifier:
        """The tuned backbone. Raises `ConfigError` where `tune` trains no towers."""
        source = self.sources[backbone]
        done = self.finished(TUNED, backbone, str(source.checkpoint.path), source.checkpoint.sha256)
        if not (done.folder / "model.safetensors").is_file():
            raise ConfigError(
                f"{self._place}: tune.recipe must train a tower, got {done.module.__name__.rsplit('.', 1)[-1]}"
            )
        return done

    def train(self, backbone: str) -> dict[str, Classifier]:
        """The tuned backbone and the members on it, by name, in the order of `fuse`."""
        done, source = {TUNED: self.tuned(backbone)}, self.sources[backbone]
        for member in self.cfg.needed:
            if self.cfg.on_given(member):
                weights = str(source.checkpoint.path), source.checkpoint.sha256
            else:
                weights = done[TUNED].model, file_sha256(done[TUNED].model)
            done[member] = self.finished(member, backbone, *weights)
        rows = [[name, *accuracies(run, "val_top1"), *spent(run)] for name, run in done.items()]
        say(predictions.table([backbone, "top-1 on validation", *SPENT], rows))
        return done

    def check_size(self, sizes: Mapping[str, int]) -> None:
        """Raises `ConfigError` where they are more than the challenge allows."""
        total = sum(sizes.values()) / 1e6
        if total > self.cfg.parameters:
            parts = ", ".join(f"{name} {count / 1e6:.2f}" for name, count in sizes.items())
            raise ConfigError(
                f"all models together must have at most {self.cfg.parameters:g} million parameters, got {total:.2f} ({parts}): "
                "take smaller backbones, or fewer members into fuse"
            )


def check_photos(found: splits.PhotoData) -> None:
    """Raises `DataError` where there are no photos to learn from or to choose by, some of these are among those, or the
    classes are fewer than a line of the results names."""
    train, val = found.train.paths, found.val.paths
    if not train or not val:
        raise DataError(
            f"there must be training and validation photos, got {len(train)} and {len(val)}: "
            "`jclip hold-out FOLDER` draws them (docs/challenge.md)"
        )
    checks.check_apart(train, val)
    if again := checks.copied(train, val):
        raise DataError(
            f"{len(again)} of {len(val)} validation photos are copies of training photos ({checks.preview(again)}): "
            "take them out of the list, or draw others with `jclip hold-out`"
        )
    if len(found.classnames) < 5:
        raise DataError(f"there must be at least 5 classes, as 5 are written per photo, got {len(found.classnames)}")


def results_of(cfg: Config) -> list[Path]:
    """The files of the results: lines, .zip and .json."""
    path = Path(cfg.out, f"result{cfg.date or time.strftime('%m%d')}.txt")
    return [path, path.with_suffix(".zip"), path.with_suffix(".json")]


def accuracies(run: Classifier, *names: str) -> list[str]:
    """Figures of a run as cells."""
    return [f"{run.metrics[name]:.4f}" for name in names]


def spent(run: Classifier) -> list[str]:
    """What the last start of a run took, as cells below `SPENT`; the GPU's memory where it used one."""
    peak = run.provenance.get("peak_mib", {})
    return [f"{run.provenance['seconds']:.0f}", str(peak.get("gpu", peak.get("host", "")))]


def weights_of(backbone: str, root: str) -> str:
    """A file of the challenge's folder where it has one of that path, or of OpenAI's name below Weights; else as it is."""
    below = Path(root, "Weights", "initial_weight")
    names = [Path(root, backbone), *(below / f"{backbone.replace('/', '-')}.{kind}" for kind in ("pkl", "pt"))]
    return next((str(path) for path in names if root and path.is_file()), backbone)


def parameters(source: sources.ModelSource) -> int:
    """How many numbers of a model are trained."""
    import math

    shapes = {k: t.shape for k, t in source.checkpoint.tensors.items() if ".running_" not in k}
    return sum(math.prod(shape) for shape in shapes.values())
