"""`jclip challenge` for photos of several things each: captions, models that learn from them, scores of photos.

Each step has a folder named after all that it is made of: what has finished is not done again, what was broken off goes
on, and something else never gets into its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jclip.commands import generate_captions, label_captions, multi_label_settings
from jclip.commands import score as scoring
from jclip.config import WORLD, build, dotted_names, refuse_unread, to_json, to_values, why_unread
from jclip.data import (
    caption_formats,
    checks,
    label_files,
    labelled_captions,
    labelled_photos,
    lexicons,
    multi_label,
    multi_label_sets,
    nouns,
    scene_captions,
    shapes,
)
from jclip.errors import ConfigError, DataError, notice
from jclip.features import heads, photo_maps, window_scores
from jclip.features import source as sources
from jclip.functional import window_fusion
from jclip.paths import file_sha256, is_file, replacing
from jclip.prompts import templates
from jclip.readers.text import read_json
from jclip.report import score_files, tagging_run, window_files
from jclip.report.finished_run import unlabelled
from jclip.report.scoring_run import columns_of
from jclip.train import multi_label_photos
from jclip.train.configs import build_config
from jclip.train.keyed_runs import KeyedRuns, key_of, state_of

if TYPE_CHECKING:  # help answers before NumPy is imported
    import numpy as np

UNTRAINED_FILE = "names-alone"
CLASSES = "classes.json"  # beside the captions
WHOLE = "-whole"  # behind a model's name: scores of whole photos, without windows


@dataclass(frozen=True)
class Photos:
    """Photos to score, in order, and what is on them; targets (N, C) in {1, 0, -1}, None where nobody knows."""

    paths: tuple[str, ...]
    targets: np.ndarray | None = None
    source: str = ""

    def first(self, count: int) -> Photos:
        """The first so many, all for 0."""
        count = count or len(self.paths)
        return Photos(self.paths[:count], None if self.targets is None else self.targets[:count], self.source)


class Contest:
    """The steps of a challenge below `folder`; `place` is the file that errors name, `overrides` are the settings put over
    its values."""

    def __init__(self, cfg: multi_label_settings.Config, folder: Path, place: str, overrides: Sequence[str] = ()):
        self.cfg, self.folder, self.place, self._overrides = cfg, folder, place, overrides
        self._runs = KeyedRuns(folder, place, overrides)

    # Captions

    @cached_property
    def lexicon(self) -> lexicons.Lexicon:
        """The classes and their words."""
        if WORLD in self.cfg.captions and self.cfg.classes == WORLD:
            return lexicons.load_lexicon(shapes.CLASSNAMES, self.cfg.lexicon)
        return lexicons.load_lexicon(self.cfg.classes, self.cfg.lexicon)

    @property
    def classnames(self) -> tuple[str, ...]:
        """In the order of all scores."""
        return self.lexicon.classnames

    @cached_property
    def generated(self) -> generate_captions.Config:
        """The settings of the captions."""
        given = {"seed": self.cfg.seed, **self.cfg.generate, "classes": self.cfg.classes, "lexicon": self.cfg.lexicon}
        return build(generate_captions.Config, given, f"{self.place}: generate")

    @cached_property
    def captions_folder(self) -> Path:
        """Where the captions are or will be, named after their settings and files."""
        made_of = to_values(self.generated)
        server = made_of.pop("server")  # whose limits change no caption
        files = [f for f in (*self.cfg.captions, self.cfg.lexicon, self.generated.sets) if is_file(f)]
        hashes = [file_sha256(file) for file in files]
        scenes = [self.cfg.scenes, self.cfg.seed] if WORLD in self.cfg.captions else []
        return self.folder / f"captions-{key_of([made_of, server['model'], [*self.classnames], hashes, scenes])}"

    @property
    def captions_done(self) -> bool:
        """Whether they are all there."""
        file = self.captions_folder / "report.json"
        return file.is_file() and not any(own["failed"] for own in read_json(file)["asked"].values())

    def captions(self) -> Path:
        """The folder of the captions, made unless they are there. Raises `DataError` where a chat server did not answer
        all: the same command asks on."""
        folder = self.captions_folder
        if not self.captions_done:
            notice(f"captions: {folder}")
            with replacing(folder / CLASSES) as temporary:
                temporary.write_text(to_json([*self.classnames]) + "\n", encoding="utf-8")
            given = self._given() if self.cfg.captions else None
            report = generate_captions.make(self.generated, self.lexicon, folder, given=given)
            if failed := sum(own["failed"] for own in report["asked"].values()):
                raise DataError(
                    f"{failed} questions to the chat server got no reply: run the same command again, which asks these alone"
                )
        return folder

    def _given(self) -> labelled_captions.LabelledCaptions:
        """The captions of the files, labelled; those that name no class are left out."""
        import numpy as np

        files, parts = [Path(f) for f in self.cfg.captions if f != WORLD], []
        if WORLD in self.cfg.captions:
            if self.classnames != shapes.CLASSNAMES:
                raise DataError(f"captions of the embedded world are of its hundred classes: set classes to {WORLD}")
            world = {"pairs": shapes.SEEN_PAIRS, "styles": shapes.SEEN_STYLES}
            parts.append(scene_captions.world_captions(self.cfg.seed, self.cfg.scenes, **world))
        if files:
            everything, _ = caption_formats.label_files(files, nouns.Labeller(self.lexicon))
            named = np.flatnonzero((everything.targets == 1).any(axis=1))
            label_captions.check_language(everything, len(named), [*map(str, files)])
            parts.append(everything.at(named))
        return labelled_captions.joined(parts)

    # Photos

    @cached_property
    def photos(self) -> dict[str, Photos]:
        """`val`, where there are labelled validation photos, and `test`, those that the result is of. Raises `DataError`."""
        data, found = self.cfg.data, {}
        if multi_label.has_photos(data, "val"):
            found["val"] = self._labelled("val")
        if self.cfg.photos:
            found["test"] = Photos(tuple(scoring.photos_of([self.cfg.photos], data.root or None)))
        elif multi_label.has_photos(data, "test"):
            found["test"] = self._labelled("test")
        else:
            raise ConfigError(
                f"{self.place}: name the photos to score: photos (a folder or a list), or data.test with labels"
            )
        found = {part: photos.first(self.cfg.first) for part, photos in found.items()}
        if "val" in found and found["test"].targets is not None:
            again = checks.repeated(found["test"].paths, found["val"].paths)
            if again:
                raise DataError(
                    f"{len(again)} validation photos are among the test photos ({checks.preview(again)}): choices would be "
                    "measured on what they were made by: take them out of one of the two"
                )
        return found

    def _labelled(self, part: str) -> Photos:
        """The labelled photos of a part, their labels in the order of the classes."""
        data, named = self.cfg.data, getattr(self.cfg.data, part)
        if named and not data.root.startswith(f"{WORLD}:"):
            root = data.root or (str(Path(named).parent) if is_file(named) else "")
            labels: label_files.PhotoLabels = multi_label_sets.read_labels(named, self.classnames, root=root)
        else:
            labels = labelled_photos.read_labelled_photos(data, part)
        if labels.missing:
            raise DataError(
                f"{labels.source}: {len(labels.missing)} of {len(labels)} photos are missing (first: {labels.missing[0]}): "
                "set data.root to their folder"
            )
        columns = columns_of(self.classnames, labels.classnames)
        if columns is None:
            lacking = [name for name in self.classnames if columns_of([name], labels.classnames) is None]
            raise DataError(
                f"{labels.source}: labels must be of the {len(self.classnames)} classes, got {len(labels.classnames)} "
                f"(missing: {checks.preview(lacking) or 'none, but others are there'})"
            )
        return Photos(labels.paths, labels.targets[:, columns], str(labels.source))

    # Models

    def check_models(self) -> None:
        """Raises `JclipError` for weights that are not there or no CLIP, and for windows that their towers don't have."""
        for name in self.cfg.scored:
            _, cfg = self.settings(name, "")
            source = photo_maps.MapSource(sources.source_of(cfg), cfg.positions, cfg.vit)
            if self.plan_of_windows.mode == "dense":
                window_scores.check_dense(name, source)
            _ = source.config

    def check(self) -> None:
        """Raises at once what would else show hours later: settings, classes, photos, models that fit no other."""
        if len(self.classnames) < 2:
            raise DataError(
                f"{self.place}: classes must be at least two, got one ({self.classnames[0]:.60}), which every photo would be "
                "of: add a second name, or find its photos with `jclip tag`"
            )
        configs = {name: self.settings(name, "")[1] for name in self.cfg.order}
        self._check_common(configs)
        finder = label_files.ClassFinder(self.classnames)
        generate_captions.hard_and_partner(self.generated, self.lexicon)
        for name, classes in self.cfg.ensemble.columns.items():
            for classname in classes:
                finder.find(classname, f"{self.place}: ensemble.columns.{name}")
        for name, own in configs.items():
            for classname in own.only:
                finder.find(classname, f"{self.place}: models.{name}.only")
            if (parent := self.cfg.parent(name)) and (own.context, own.words) != (
                (before := configs[parent]).context,
                before.words,
            ):
                raise ConfigError(
                    f"{self.place}: models.{name} must have as many vectors as {parent}, which it starts from: context "
                    f"{before.context}, got {own.context}"
                )
            if "hard" in self.learns(name) and not self.generated.hard:
                raise ConfigError(
                    f"{self.place}: models.{name} learns hard captions: name their classes in generate.hard"
                )
            for part in ("pairs", "subsets"):
                self._check_part(name, part, part)
            self._check_part(name, "whole_sets", "sets")
        for name in self.cfg.scored:
            self.weighing(name)
        self.plan_of_windows  # noqa: B018 - raises for windows that don't exist
        self.photos  # noqa: B018 - raises for photos that are not there
        for file in self.cfg.captions:
            if file != WORLD and not is_file(file):
                raise DataError(f"{self.place}: no such file of captions: {file}")

    def _check_common(self, configs: Mapping[str, Any]) -> None:
        """Raises `ConfigError` for a setting of `common` that no model reads. configs: of each model by its name."""
        typed = [override.partition("=")[0].removeprefix("common.") for override in self._overrides]
        for setting in dotted_names(self.cfg.common):
            reasons = [
                why_unread(config, setting, set_elsewhere=[one.removeprefix(f"models.{name}.") for one in typed])
                for name, config in configs.items()
            ]
            if all(reasons):
                raise ConfigError(f"{self.place}: common.{setting} must be left out: {reasons[0]}")

    def _check_part(self, name: str, part: str, key: str) -> None:
        if part in self.learns(name) and not getattr(self.generated.templates, key):
            raise ConfigError(f"{self.place}: models.{name} learns {part}: set generate.templates.{key}=true")

    def learns(self, name: str) -> tuple[str, ...]:
        """The parts of the captions that a model learns from."""
        parts = self.cfg.models[name].get("learns", ["captions"])
        return tuple(parts) if isinstance(parts, list | tuple) else (parts,)

    def settings(self, name: str, start: str) -> tuple[Any, Any]:
        """Recipe and built config of a model that starts from the run `start`. Raises `ConfigError`."""
        values = multi_label_settings.model_settings(self.cfg, name)
        folder = self.captions_folder
        values["captions"] = [str(folder / f"{part}.jsonl") for part in self.learns(name)]
        values["classes"] = str(folder / CLASSES)
        values["init_from"] = start or ("" if self.cfg.parent(name) else values.get("init_from", ""))
        place = f"{self.place}: models.{name}"
        module, config = build_config(values, place)
        refuse_unread(config, self.cfg.models[name], self._overrides, place, f"models.{name}.")
        return module, config

    def _made_of(self, name: str, cfg: Any) -> list[str]:
        return [sources.source_of(cfg).weights_sha256, *(file_sha256(file) for file in cfg.captions)]

    def train(self) -> dict[str, tagging_run.TaggingRun]:
        """All models, each made unless it is there, behind the one that it starts from."""
        folders: dict[str, str] = {}
        for name in self.cfg.order:
            module, cfg = self.settings(name, folders.get(self.cfg.parent(name), ""))
            folders[name] = str(self._runs.finished(name, module, cfg, self._made_of(name, cfg)))
        return {name: tagging_run.TaggingRun.load(folder) for name, folder in folders.items()}

    # Scores

    @cached_property
    def plan_of_windows(self) -> window_scores.WindowPlan:
        """The windows of each photo."""
        return window_scores.WindowPlan(**asdict(self.cfg.windows))

    def weighing(self, name: str) -> window_files.Weighing:
        """How a model's windows and branches become one score: its `fusion` over the challenge's."""
        given = self.cfg.models[name].get("fusion", {}) if name in self.cfg.models else {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"{self.place}: models.{name}.fusion must be a group of settings, got {given!r:.60}")
        own: multi_label_settings.Fusion = build(
            multi_label_settings.Fusion, {**asdict(self.cfg.fusion), **given}, f"{self.place}: models.{name}.fusion"
        )
        return window_files.Weighing(window_fusion.FusionRule(own.form, own.theta, own.kappa), own.local_weight)

    def scored(self, runs: Mapping[str, tagging_run.TaggingRun], part: str) -> Path:
        """The folder with a score file of each model for the photos of a part, made unless it is there."""
        photos = self.photos[part]
        chosen = [window_files.ScoredRun(name, runs[name], self.weighing(name)) for name in self.cfg.scored]
        if photos.targets is not None:
            chosen.insert(0, self._untrained(runs[self.cfg.scored[0]]))
        folder = self.scores_folder({name: runs[name].folder for name in self.cfg.scored}, part)
        files = window_files.WindowFiles(folder, chosen, photos.paths, self.plan_of_windows)
        if not all((folder / f"{one.name}.npz").is_file() for one in chosen):
            notice(f"scores of {len(photos.paths)} {part} photos: {folder}")
        files.score()
        return folder

    def scores_folder(self, runs: Mapping[str, Path], part: str) -> Path:
        """Where the scores of a part by the models in `runs` are or will be, named after these, windows and photos."""
        paths = self.photos[part].paths
        made_of = [
            {name: folder.name for name, folder in runs.items()},
            {name: asdict(self.weighing(name)) for name in runs},
            [asdict(self.plan_of_windows), self.photos[part].targets is not None],
            [unlabelled([*paths]).digest(), *paths],
        ]
        return self.folder / f"scores-{part}-{key_of(made_of)}"

    def _untrained(self, run: tagging_run.TaggingRun) -> window_files.ScoredRun:
        """The model of a run as it is: class names in plain templates, no prompts that were learned."""
        source = run.source()
        prompts = templates.prompts_of(lexicons.spoken_names(run.classnames), run.config.templates)
        head = heads.zero_shot_head(source, prompts).weights
        learned = {"text_global": head, "text_local": head, "merge": _half()}
        plain = {
            "tau_image": multi_label_photos.ZERO_SHOT_SHARPNESS,
            "winner": "none",
            "scale": 1.0,
            "bank": 0,
            "modulation": 0.0,
        }
        model = replace(run, learned=learned, config=replace(run.config, **plain))
        return window_files.ScoredRun(UNTRAINED_FILE, model, window_files.Weighing(window_fusion.FusionRule("max")))

    def read_scores(self, folder: Path, name: str) -> score_files.Scores:
        """A model's scores, `NAME` or `NAME-whole`."""
        return score_files.read_scores(str(folder / f"{name}.npz"))

    # The plan

    def plan(self) -> list[list[str]]:
        """The steps as rows of step, what of, folder and how far it is; nothing is done."""
        rows = [["captions", self._kind_of_captions(), str(self.captions_folder), "done" if self.captions_done else ""]]
        folders: dict[str, Path] = {}
        for name in self.cfg.order:
            parent = self.cfg.parent(name)
            start = f", from {parent}" if parent else ""
            module, cfg = self.settings(name, str(folders[parent]) if parent in folders else "")
            shown, state = "named after the captions, once they are there", ""
            if self.captions_done and (not parent or parent in folders):
                folders[name] = self._runs.folder_of(name, module, cfg, self._made_of(name, cfg))
                shown, state = str(folders[name]), state_of(folders[name])
            parts = " + ".join(self.learns(name))
            rows.append(["models", f"{name}: {cfg.optim.trained_epochs} epochs of {parts}{start}", shown, state])
        for part, photos in self.photos.items():
            label = (
                f"{len(photos.paths)} {part} photos by {len(self.cfg.scored)} models{self._windows_label(photos.paths)}"
            )
            known = {name: folders[name] for name in self.cfg.scored if name in folders}
            all_there = len(known) == len(self.cfg.scored)
            folder = self.scores_folder(known, part) if all_there else self.folder / f"scores-{part}-…"
            there = [(folder / f"{name}.npz").is_file() for name in self.cfg.scored]
            rows.append(["scores", label, str(folder), "done" if all(there) else "begun" if folder.is_dir() else ""])
        done = "done" if (Path(self.cfg.out) / "result.json").is_file() else ""
        rows.append(["result", f"ensemble: {self.cfg.ensemble.kind}{self._choices_label()}", self.cfg.out, done])
        return rows

    def _kind_of_captions(self) -> str:
        if self.cfg.captions:
            return f"of {', '.join(Path(f).name for f in self.cfg.captions)}"
        return f"generated: {self.generated.generator}"

    def _windows_label(self, paths: Sequence[str]) -> str:
        plan = self.plan_of_windows
        if plan.mode == "none":
            return ""
        if plan.mode == "dense":
            return f", windows of maps of {len(plan.scales)} sizes"
        count = window_scores.count_windows(paths[0], plan)
        return f", {count} windows of the first"

    def _choices_label(self) -> str:
        if "val" not in self.photos or not self.cfg.choose:
            return "; nothing is chosen"
        return f"; {', '.join(self.cfg.choose)} chosen on {len(self.photos['val'].paths)} val photos"


def _half() -> np.ndarray:
    import numpy as np

    return np.array([0.5])
