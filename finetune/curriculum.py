"""Curriculum: which rows of machine-made or human labels a recipe learns from, by how well it reproduces them itself.

Xiao et al., IEEE Transactions on Multimedia 2023, arXiv 2305.08685 (CLIP-VG, sections 3.3 and 3.4).   Trains: another
recipe, once for each selection of rows.   Needs: a file of rows for each source, or the embedded world.

    r_ij(s) = how well a run on all rows of source i reproduces row s of source j: IoU of the box, probability of the class
    SSA: train on S, score S, climb from h = 0.5 to the best accuracy of training on { s : r(s) > h }
    MSA: source after source, for each the measurer i at h = 0.5, then h as SSA; D ← D ∪ { s : r_ij(s) > h }

Every training is a run in the run's folder, named after its rows and never repeated; `curriculum.json` says what is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

from jclip.config import WORLD, ReadWith, SourcesConfig
from jclip.data import shape_sources
from jclip.data.box_forms import FORMATS
from jclip.errors import ConfigError, UnknownName, notice
from jclip.report import curriculum_files, row_sets
from jclip.report.finished_run import FinishedRun
from jclip.report.predictor import Predictor
from jclip.train import cost_estimate, curriculum_plan, curriculum_search, curriculum_state, keyed_runs
from jclip.train import run as runs
from jclip.train.configs import build_config, resolved

TASK = "curriculum"
PLANS_WHOLE = True  # a dry run: which trainings there are follows from what they find
AUTO = "auto"
MOST = 5
ADJUSTABLE = (  # a search over the same trainings: a run's folder goes on with other values
    "mode", "source", "order", "start", "step", "low", "high", "min_gain", "folds", "max_trainings", "dataset",
)  # fmt: skip
HELD = "held"  # the file of rows that choices are made by, where these are pseudo-labels


@dataclass(frozen=True)
class Config:
    learn: dict  # the recipe that is trained, with its settings: {recipe: grounding, model: shapes-tiny-rn}
    data: SourcesConfig = field(default_factory=SourcesConfig)
    # measure: no selection, reliabilities alone; all: one training
    mode: Literal["ssa", "msa", "measure", "all"] = "msa"
    source: str = ""  # of ssa: which one; by default the first
    order: tuple[str, ...] = ()  # of msa: sources, simple ones first; by default their own; auto: by things per phrase
    start: float = 0.5  # thresholds h
    step: float = 0.1
    low: float = 0.0
    high: float = 0.9
    min_gain: float = 0.0  # of accuracy, for another step
    folds: int = 1  # parts that a source's own measurers leave out in turn, where they would learn labels by heart
    # of the search's trainings; the winner is trained at full length in the end; 0: all at full length
    proxy_epochs: int = 0
    steps: int = 0  # of each training, however few its rows: epochs follow, up to MOST times learn's; 0: learn's epochs
    max_trainings: int = 0  # the best so far wins then; 0: as many as it takes
    selection: Literal["val", "pseudo_val"] = "val"  # choices by validation labels of people, or by held-out rows
    held_out: float = 0.05  # share of photos whose rows are held out, for pseudo_val
    dataset: str = ""  # of the files that are written as CLIP-VG's are: unc, …
    seed: int = 1  # of held-out photos, and of trainings where learn names none
    READ_WITH: ClassVar[ReadWith] = {"selection=pseudo_val": ("held_out",)}

    def __post_init__(self):
        module, learned = self.recipe
        row_sets.check(module)
        if (self.proxy_epochs or self.steps) and not hasattr(learned, "optim"):
            raise ConfigError("proxy_epochs and steps must be 0 for a recipe without epochs")
        if self.proxy_epochs and self.steps:
            raise ConfigError("only one of proxy_epochs and steps may be given, got both")
        if min(self.proxy_epochs, self.steps, self.max_trainings) < 0 or not 0 < self.held_out < 0.9:
            raise ConfigError("proxy_epochs, steps and max_trainings must be at least 0, held_out in (0, 0.9)")
        if self.dataset and self.dataset not in FORMATS:
            raise UnknownName("dataset", self.dataset, FORMATS)
        for name in filter(None, [self.source, *(self.order if self.order != (AUTO,) else ())]):
            if name not in self.data.sources:
                raise UnknownName("source", name, self.data.sources)
        worlds = [name for name, file in self.data.sources.items() if file == WORLD]
        if worlds and len(worlds) < len(self.data.sources):
            raise ConfigError(f"sources must be all files or all {WORLD}, got both")
        if unknown := [name for name in worlds if name not in shape_sources.MADE]:
            raise UnknownName(f"source of {WORLD}", unknown[0], shape_sources.MADE)
        _ = self.search

    @property
    def recipe(self) -> tuple[Any, Any]:
        """The module of the recipe that is trained, and its config. Raises `ConfigError`."""
        return build_config({"seed": self.seed, **self.learn}, "learn")

    @property
    def search(self) -> curriculum_search.SearchSettings:
        """Thresholds and how they are searched. Raises `ConfigError`."""
        names = ("start", "step", "low", "high", "min_gain", "folds")
        own = {name: getattr(self, name) for name in names}
        return curriculum_search.SearchSettings(**own, proxy=self.proxy_epochs > 0)


def run(cfg: Config, run: runs.Run) -> dict[str, float]:
    """Rows of all sources, the search with its trainings, the chosen rows and their table."""
    rows = read_rows(cfg)
    work = Trainings(cfg, run, rows, held_rows(cfg, rows))
    search = work.search()
    found = {
        "ssa": lambda: curriculum_search.ssa(search, cfg.source),
        "msa": lambda: curriculum_search.msa(search, order_of(cfg, rows)),
        "measure": lambda: curriculum_search.measured(search),
        "all": lambda: curriculum_search.everything(search),
    }[cfg.mode]()
    winner = runs.read_result(run.folder / found.trained.run)
    run.note(winner=found.trained.run, **{k: v for k, v in winner["provenance"].items() if k == "weights_sha256"})
    files = curriculum_files.write_road(run, rows, search, found, cfg.dataset)
    notice(f"the run on the chosen rows: {run.folder / found.trained.run} ({', '.join(files)} in {run.folder})")
    module, _ = cfg.recipe
    parts = {f"{part}_accuracy": row_sets.accuracy_of(module, winner["metrics"], part) for part in ("val", "test")
             if row_sets.has_accuracy(module, winner["metrics"], part)}  # fmt: skip
    kept = {f"rows_{name}": len(places) for name, places in found.kept.items()}
    faults = curriculum_files.fault_shares(rows, found.rows, work.numbers)
    counts = {"rows": len(found.rows), "trainings": found.trainings, "complete": int(found.complete)}
    return {**parts, **counts, **kept, **{f"baseline_{k}": v for k, v in found.baseline.items()}, **faults}


def plan(cfg: Config, folder: Path) -> str:
    """What `run` would train in `folder`, at least and at most, and how long that takes once one training has been seen."""
    rows = read_rows(cfg)
    held = {*held_rows(cfg, rows)}
    work = Trainings(cfg, None, rows, sorted(held))
    sizes = {name: sum(n not in held for n in own) for name, own in rows.sources.items()}
    single = cfg.source or next(iter(sizes))
    names = [single] if cfg.mode == "ssa" else order_of(cfg, rows)
    sizes = {name: sizes[name] for name in names}
    stages = curriculum_plan.planned(cfg.mode, sizes, cfg.search)

    def text(measured: float = 0.0) -> str:
        return curriculum_files.plan_text(stages, sizes, len(held), folder, cfg.max_trainings or None, measured)

    if curriculum_files.seconds_per_row(folder)[1]:
        return text()
    largest = max(sizes, key=lambda name: sizes[name])
    seconds, lines = work.plan_of_one(largest)
    return f"{text(seconds / max(1, sizes[largest]))}\n{lines}"


def winner(folder: Path, overrides: Sequence[str], model: str) -> FinishedRun:
    """The run on the rows that the curriculum in a folder has chosen."""
    return Predictor.load(folder / curriculum_state.winning_run(folder), overrides, model)


def read_rows(cfg: Config) -> row_sets.RowSet:
    """The rows of all sources; pseudo-labels of the embedded world are drawn into the cache once."""
    module, learned = cfg.recipe
    files, photos = cfg.data.sources, cfg.data.photos
    if WORLD in files.values():
        drawn = shape_sources.kept_world(cfg.data.scenes, cfg.data.seed, cfg.data.pairs, cfg.data.noise)
        files, photos = {name: str(drawn / f"{name}.jsonl") for name in files}, str(drawn / shape_sources.PHOTOS)
    return row_sets.row_set(module, files, learned, photos)


def held_rows(cfg: Config, rows: row_sets.RowSet) -> list[int]:
    """Rows that choices are made by: those of a share of the photos, drawn by the seed; none with human validation labels.

    Raises `ConfigError` where there would be none.
    """
    if cfg.selection == "val":
        return []
    limit = cfg.held_out * 2**32

    def drawn(number: int) -> bool:
        return int(sha256(f"{cfg.seed} {rows.group(number)}".encode()).hexdigest()[:8], 16) < limit

    found = [number for number in range(len(rows)) if drawn(number)]
    if not found or len(found) == len(rows):
        raise ConfigError(f"held_out must leave rows on both sides, got {len(found)} of {len(rows)} held out")
    return found


def order_of(cfg: Config, rows: row_sets.RowSet) -> Sequence[str]:
    """Sources in the order in which msa adds them."""
    if cfg.order == (AUTO,):
        return sorted(rows.sources, key=rows.complexity)
    return [*cfg.order, *(name for name in rows.sources if name not in cfg.order)]


@dataclass
class Trainings:
    """Trains and scores on rows by their numbers, in folders of `run`'s own. held: rows that choices are made by."""

    cfg: Config
    run: runs.Run | None  # None of a plan
    rows: row_sets.RowSet
    held: Sequence[int]

    @property
    def numbers(self) -> dict[str, list[int]]:
        """The rows of each source that may be learned from."""
        held = {*self.held}
        return {name: [n for n in own if n not in held] for name, own in self.rows.sources.items()}

    def search(self) -> curriculum_search.Search[int]:
        """The search over these rows, as far as the run's folder knows it already."""
        module, learned = self.cfg.recipe
        of_trainings = resolved(module, learned)
        made_of = [of_trainings, self.cfg.proxy_epochs, self.cfg.steps, [self.rows.identity(n) for n in self.held]]
        if self.held:
            self.rows.write(self.run.file(f"{HELD}{self.rows.ending}"), self.held)
        return curriculum_search.Search(
            self.numbers, self.train, self.score, self.cfg.search, identity=self.rows.identity, group=self.rows.group,
            settings_key=keyed_runs.key_of(made_of), folder=self.run.folder, max_trainings=self.cfg.max_trainings or None,
            announce=self.run.expect,
        )  # fmt: skip

    def train(self, numbers: Sequence[int], key: str, full: bool) -> curriculum_state.TrainedRun:
        """A run of the recipe on these rows, begun or resumed in a folder named by `key`."""
        module, ending = self.cfg.recipe[0], self.rows.ending
        folder, place = self.run.inner(f"training-{key}"), self.run.folder.resolve()
        learned = self.settings(place / folder.name / f"rows{ending}", place, len(numbers), full)
        notice(f"training on {len(numbers)} rows: {folder}")
        with runs.Run(folder, resolved(module, learned), self.run.quiet) as inner:
            result = inner.result
            if result is None:
                self.rows.write(inner.file(f"rows{ending}"), numbers)
                metrics = self.rows.learn(module, learned, inner, numbers, self.held)
                result = inner.finish(metrics)
        accuracy = row_sets.accuracy_of(module, result["metrics"])
        return curriculum_state.TrainedRun(accuracy, folder.name)

    def settings(self, file: Path, place: Path, count: int, full: bool) -> Any:
        """The recipe's config that learns from `file` with so many rows. place: the folder of the file of held-out rows."""
        learned = self.cfg.recipe[1]
        if epochs := self.epochs(learned, count, full):
            learned = replace(learned, optim=replace(learned.optim, epochs=epochs, stop=0))
        held = str(place / f"{HELD}{self.rows.ending}") if self.held else ""
        return self.rows.learning(learned, str(file), held)

    def epochs(self, learned: Any, count: int, full: bool) -> int:
        """How many epochs a training on so many rows takes; 0: as the recipe's settings say."""
        if not full:
            return self.cfg.proxy_epochs
        if not self.cfg.steps:
            return 0
        wanted = -(-self.cfg.steps // max(count // learned.optim.batch, 1))
        return min(wanted, MOST * learned.optim.epochs)

    def plan_of_one(self, source: str) -> tuple[float, str]:
        """Seconds of the search's training on all rows of a source, and what is printed of it."""
        numbers, ending = self.numbers[source], self.rows.ending
        with TemporaryDirectory(prefix="jclip-plan-") as folder:
            place = Path(folder)
            file = place / f"rows{ending}"
            self.rows.write(file, numbers)
            if self.held:
                self.rows.write(place / f"{HELD}{ending}", self.held)
            learned = self.settings(file, place, len(numbers), not self.cfg.proxy_epochs)
            seconds, lines = cost_estimate.described(self.cfg.recipe[0], learned, place / "none")
        return seconds, f"one training of the search, on the {len(numbers)} rows of {source}:\n{lines}"

    def score(self, trained: curriculum_state.TrainedRun, numbers: Sequence[int]) -> Any:
        """Reliabilities of rows by a run of this curriculum."""
        return self.rows.reliability(Predictor.load(self.run.folder / trained.run), numbers)
