"""The retrieval challenge: photos found by sentences, from lists with missing attributes to ten names a query.

1. Missing attributes of the training captions are filled by the weights as they are (`fill`).
2. The weights are tuned on the filled captions (`tune`).
3. On validation queries it is chosen how queries are rewritten (`rules`), which mirrored photos count (`flips`) and how
   photos are sorted again (`rerank`).
4. The test queries are answered.

Each step stands in a folder named after all that it is made of: what has finished is not done again, and what was broken
off goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jclip.config import WORLD, CaptionConfig, to_values
from jclip.data import attribute_tables, captions, checks, photo_queries, traffic_world
from jclip.data.stored_photos import is_stored
from jclip.errors import ConfigError, DataError, quoted, say
from jclip.features import attribute_filling, photo_search
from jclip.features import source as sources
from jclip.functional import reranking
from jclip.paths import file_sha256, refuse_overwriting, write_together
from jclip.prompts import query_rules
from jclip.report import finished_run, predictions
from jclip.train import keyed_runs

FIGURES = {"map@10_of_found": "official mAP@10", "map@10": "mAP@10"}
RESULTS, NOTES, PREDICTIONS = "retrieval_results.json", "retrieval_notes.json", "retrieval_predictions.jsonl"
TRAINING = "train.jsonl"
NEEDED = ("train_list", "val_list", "queries", "gallery")
HEAD = ["attribute", "missing", "filled", "left empty", "mean probability"]


@dataclass(frozen=True)
class Lists:
    """Files and folders, each in `root` or from here; `shapes:traffic` as root is the embedded world."""

    root: str = ""
    train_list: str = "train_label.txt"  # `image$attributes$caption`, or what data.train of `contrastive` takes
    train_photos: str = ""  # the folder that a list's photos are relative to; by default the list's own
    val_list: str = "val_label.txt"
    val_photos: str = ""
    val_more: str = ""  # a folder of photos that validation queries are to tell from the right ones
    queries: str = "test_text.txt"
    gallery: str = "test"  # a folder of photos, or a list of them
    gallery_photos: str = ""
    truth: str = ""  # `text$photo$photo…` of the queries, where they are known: measured, never chosen by
    image_key: str = "filepath"
    caption_key: str = "title"
    on_error: Literal["stop", "skip"] = "stop"
    upright: bool = True


@dataclass(frozen=True)
class Filling:
    """As of `jclip fill`. preset: "" for no filling: captions are learned as they are."""

    preset: str = ""
    model: str = ""  # weights that fill, by default those that are tuned afterwards
    fill: tuple[str, ...] = ()
    template: str = ""
    min_probability: float = 0.0
    min_margin: float = 0.0


@dataclass(frozen=True)
class Config:
    model: str
    data: Lists = field(default_factory=Lists)
    family: str | None = None
    fill: Filling = field(default_factory=Filling)
    tune: dict = field(default_factory=dict)  # of the recipe contrastive; {}: the weights as they are
    rules: tuple[str, ...] = ("none",)  # of queries: sets of jclip/assets/query_rules.yaml, or YAML files
    rerank: tuple[dict, ...] = ({"kind": "none"},)
    flips: tuple[Literal["none", "max", "mean"], ...] = ("none",)
    choose: Literal["map@10_of_found", "map@10"] = "map@10_of_found"  # the official score, or the standard one
    bank: int = 2000  # training captions for the re-ranking querybank, at most
    # of the results: the queries' own, or kind by kind of the first rules
    order: Literal["queries", "kinds"] = "queries"
    out: str = "results"
    seed: int = 1

    def __post_init__(self):
        for key in ("rules", "rerank", "flips"):
            if not getattr(self, key):
                raise ConfigError(f"{key} must hold at least one entry, got []")
        if self.bank < 1:
            raise ConfigError(f"bank must be at least 1, got {self.bank}")
        if "data" in self.tune:
            raise ConfigError("tune.data must be left out: the lists stand in data")


@dataclass(frozen=True)
class Trial:
    """What was tried on validation: a step, its candidate, and both figures."""

    step: str
    name: str
    how: photo_search.SearchedWith
    figures: Mapping[str, float]


class Pipeline:
    """The steps of a retrieval challenge, their folders below `folder`; `place` is the file that errors name, `overrides`
    are the settings put over its values."""

    def __init__(self, cfg: Config, folder: Path, place: str, overrides: Sequence[str] = ()):
        self.cfg, self._place, self._folder = cfg, place, folder
        self._runs = keyed_runs.KeyedRuns(folder, place, overrides)

    # What is read

    @cached_property
    def root(self) -> Path:
        """The folder of the lists."""
        root = self.cfg.data.root
        world = root.partition(":")[0] == WORLD
        if not world and not Path(root).is_dir():
            raise DataError(f"{self._place}: data.root must be the folder of the lists, got {quoted(root)}")
        return traffic_world.named_folder(root.partition(":")[2]) if world else Path(root)

    def _at(self, name: str) -> Path:
        """What the settings name, in `root` or from here."""
        place = self.root / name
        return (place if place.exists() else Path(name)).absolute()

    def _photos_of(self, folder: str, of_list: Path) -> str:
        """The folder that a list's photos lie in: what is named, else `train` beside train_label.txt, else the list's own."""
        if folder:
            return str(self._at(folder))
        beside = of_list.with_name(of_list.name.partition("_")[0])
        return str(beside) if of_list.name.endswith("_label.txt") and beside.is_dir() else ""

    @cached_property
    def table(self) -> attribute_tables.AttributeTable | None:
        """The training list with its attributes; None where none is filled."""
        of, data = self.cfg.fill, self.cfg.data
        if not of.preset:
            return None
        found = attribute_tables.read_attributes(of.preset)
        given = {"fill": of.fill, "template": of.template}
        attributes = attribute_tables.Attributes(**(asdict(found) | {k: v for k, v in given.items() if v}))
        path = self._at(data.train_list)
        root = self._photos_of(data.train_photos, path)
        column = data.image_key if data.image_key != Lists.image_key else ""
        return attribute_tables.read_attribute_table(path, attributes, Path(root) if root else None, column)

    def _pairs(self, part: Literal["train", "val"]) -> captions.Pairs:
        return captions.read_pairs(self._captions(part), part, (0, 0), self.cfg.seed)

    def _captions(self, part: Literal["train", "val"]) -> CaptionConfig:
        data = self.cfg.data
        path = self._at(getattr(data, f"{part}_list"))
        root = self._photos_of(getattr(data, f"{part}_photos"), path)
        keys = {key: getattr(data, key) for key in ("image_key", "caption_key", "on_error", "upright")}
        return CaptionConfig(**{part: str(path)}, root=root, queries="texts", **keys)

    @cached_property
    def train_pairs(self) -> captions.Pairs:
        """Training photos with their captions as they are."""
        return self._pairs("train")

    @cached_property
    def train_photos(self) -> tuple[str, ...]:
        """Of the training list, each once."""
        paths = self.train_pairs.paths if self.table is None else map(self.table.photo, self.table.rows)
        return tuple(dict.fromkeys(paths))

    @cached_property
    def val(self) -> photo_queries.PhotoSearch:
        """Validation captions as queries over their photos."""
        more = self.cfg.data.val_more
        return photo_queries.search_among(
            self._pairs("val"), photo_queries.read_gallery(self._at(more))[0] if more else ()
        )

    @cached_property
    def test(self) -> photo_queries.PhotoSearch:
        """The test queries over the gallery."""
        data = self.cfg.data
        asked = photo_queries.read_queries(self._at(data.queries))
        below = self._at(data.gallery_photos) if data.gallery_photos else None
        photos, names = photo_queries.read_gallery(self._at(data.gallery), below)
        wanted = tuple(map(frozenset, asked.wanted)) or None
        if data.truth:
            wanted = photo_queries.read_truth(self._at(data.truth), asked.texts, names)
        return photo_queries.PhotoSearch(asked.texts, photos, names, wanted, asked.ids)

    @cached_property
    def rules(self) -> dict[str, query_rules.QueryRules]:
        """The sets of rules that are tried."""
        return {name: query_rules.load_rules(name) for name in self.cfg.rules}

    @cached_property
    def methods(self) -> dict[str, reranking.Method]:
        """The re-rankings that are tried, by what sets them apart."""
        found = {}
        for number, settings in enumerate(self.cfg.rerank):
            name = " ".join(
                [str(settings.get("kind", "none")), *(f"{k}={v}" for k, v in settings.items() if k != "kind")]
            )
            found[name] = reranking.method_of(settings, f"{self._place}: rerank.{number}")
        return found

    def given(self, plain: bool = False) -> sources.ModelSource:
        """The weights as they were, with the preprocessing of the tuned ones or, `plain`, with their own."""
        choice = None if plain or not self.cfg.tune else self.tuning("")[1].preprocess
        return sources.ModelSource(self.cfg.model, self.cfg.family, preprocess=choice, upright=self.cfg.data.upright)

    def filling(self) -> sources.ModelSource:
        """The weights that fill, as they are."""
        named = self.cfg.fill.model
        return sources.ModelSource(named, upright=self.cfg.data.upright) if named else self.given(plain=True)

    @cached_property
    def bank(self) -> tuple[str, ...]:
        """At most `bank` of the training captions, evenly from all distinct ones."""
        if not any(isinstance(method, reranking.QueryBank) for method in self.methods.values()):
            return ()
        distinct = list(dict.fromkeys(entry[1] for entry in self.training()))
        step = -(-len(distinct) // self.cfg.bank)
        return tuple(distinct[::step])

    def check(self) -> None:
        """Raises at once what would else show hours later."""
        if lacking := [key for key in NEEDED if not getattr(self.cfg.data, key)]:
            raise ConfigError(f"{self._place}: data.{lacking[0]} must name a file or folder, got nothing")
        if (out := Path(self.cfg.out)).exists() and not out.is_dir():
            raise ConfigError(f"{self._place}: out must be a folder, got {quoted(self.cfg.out)}")
        if not self.train_photos:
            raise DataError(f"{self._place}: data.train_list must list photos, got none")
        self.tuning("")
        checks.check_apart(self.train_photos, [path for path in self.val.photos if not is_stored(path)])
        files = [path for path in (*self.train_photos, *self.val.photos, *self.test.photos) if not is_stored(path)]
        lists = [self._at(name) for name in (self.cfg.data.train_list, self.cfg.data.val_list, self.cfg.data.queries)]
        refuse_overwriting([Path(self.cfg.out, name) for name in (RESULTS, NOTES, PREDICTIONS)], [*files, *lists])
        on_disk = [path for path in self.train_photos if not is_stored(path)]
        checks.warn_leaks(on_disk, {"test": [path for path in self.test.photos if not is_stored(path)]})
        for _ in self.rules, self.methods:
            pass

    # The steps

    def filled_folder(self) -> Path:
        """Where the filled training list is or will be."""
        if self.table:
            said = file_sha256(self.table.path)
        else:
            said = keyed_runs.key_of(self.train_pairs.texts(range(len(self.train_pairs)))[0])
        of = {key: value for key, value in asdict(self.cfg.fill).items() if key != "model"}
        made_of = [of, said, [*self.train_photos], self.filling().weights_sha256]
        attributes = asdict(self.table.attributes) if self.table else None
        return self._folder / f"filled-{keyed_runs.key_of([made_of, attributes, asdict(self.cfg.data)])}"

    def fill(self) -> Path:
        """The file of training captions, `{"filepath", "title"}` a line, their missing attributes filled."""
        folder = self.filled_folder()
        file = folder / TRAINING
        if file.is_file():
            return file
        files: dict[str, bytes] = {}
        if self.table is None:
            pairs = self.train_pairs
            rows = zip(pairs.paths, pairs.texts(range(len(pairs)))[0], strict=True)
        else:
            done = attribute_filling.fill(
                self.table, self.filling(), min_probability=self.cfg.fill.min_probability,
                min_margin=self.cfg.fill.min_margin, on_error=self.cfg.data.on_error,
            )  # fmt: skip
            say(predictions.table(HEAD, attribute_filling.counts(done)))
            rows = [(done.photo(row), done.completed(row)) for row in done.rows]
            files["filled.csv"] = attribute_tables.table_bytes(done)
            if done.numbered:
                files["filled.txt"] = attribute_tables.dollar_bytes(done)
        keys = self.cfg.data.image_key, self.cfg.data.caption_key
        lines = [json.dumps(dict(zip(keys, row, strict=True)), ensure_ascii=False) for row in rows if row[1].strip()]
        write_together(folder, {TRAINING: ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"), **files})
        return file

    def training(self) -> list[tuple[str, str]]:
        """Photo and caption of each filled row."""
        keys = self.cfg.data.image_key, self.cfg.data.caption_key
        rows = (json.loads(line) for line in self.fill().read_text("utf-8", "surrogateescape").splitlines())
        return [tuple(row[key] for key in keys) for row in rows]

    def tuning(self, train: str) -> tuple[Any, Any]:
        """Recipe and built config of the tuning on the captions of file `train`. Raises `ConfigError`."""
        of_val = self._captions("val")
        stored = any(map(is_stored, self.train_photos))
        own = self._captions("train").train if stored else train
        data = to_values(of_val) | {"train": own}
        shared = {"data": data, "model": self.cfg.model, "family": self.cfg.family, "seed": self.cfg.seed}
        module, cfg = self._runs.settings("tune", {"recipe": "contrastive"} | dict(self.cfg.tune), shared)
        if getattr(module, "TASK", "") != "retrieve":
            raise ConfigError(f"{self._place}: tune.recipe must be of the task retrieve, got {self.cfg.tune['recipe']}")
        return module, cfg

    def tuned_folder(self) -> Path:
        """Where the tuning is or will be."""
        return self._runs.folder_of(*self._tuning_named())

    def _tuning_named(self) -> tuple[str, Any, Any, list[str]]:
        """Name, recipe, config of the tuning, and hashes of what these only name."""
        photos = finished_run.unlabelled((*self.train_photos, *self.val.photos))
        said = keyed_runs.key_of([self.val.texts, [sorted(names) for names in self.val.wanted or ()]])
        hashes = [self.given(plain=True).weights_sha256, photos.digest(), said]
        return ("tuned", *self.tuning(str(self.filled_folder() / TRAINING)), hashes)

    def tune(self) -> sources.ModelSource:
        """The tuned weights, or those that were given where nothing is tuned."""
        self.fill()
        if not self.cfg.tune:
            return self.given()
        name, module, cfg, made_of = self._tuning_named()
        folder = self._runs.finished(name, module, cfg, made_of, "tuning")
        return sources.ModelSource(folder / "model.safetensors", upright=self.cfg.data.upright)

    def choose(self, source: sources.ModelSource) -> tuple[list[Trial], Trial]:
        """What was tried on validation, and what is taken: rules first, then mirrored photos with a re-ranking."""
        of_val = photo_search.SearchFeatures(source, self.val, self.bank, self.cfg.data.on_error)
        tried: list[Trial] = []

        def trial(
            step: str, name: str, how: photo_search.SearchedWith, on: photo_search.SearchFeatures = of_val
        ) -> Trial:
            tried.append(Trial(step, name, how, on.figures(how)))
            return tried[-1]

        def best(trials: Sequence[Trial]) -> Trial:
            return max(trials, key=lambda one: one.figures[self.cfg.choose])  # the first, among equals

        first = query_rules.load_rules("none")
        if self.cfg.tune:
            given = self.given()
            features = photo_search.SearchFeatures(given, self.val, (), self.cfg.data.on_error)
            trial("weights", "as they are", photo_search.SearchedWith(first), features)
            given.release()
        trial("weights", "tuned" if self.cfg.tune else "as they are", photo_search.SearchedWith(first))
        taken = best([trial("rules", name, photo_search.SearchedWith(rules)) for name, rules in self.rules.items()])
        ways = [
            (f"{name}, flips {flips}", method, flips)
            for flips in self.cfg.flips
            for name, method in self.methods.items()
        ]
        how = taken.how
        return tried, best(
            [trial("rerank", name, photo_search.SearchedWith(how.rules, method, flips)) for name, method, flips in ways]
        )
