"""`python -m finetune train|eval|predict|compare|recipes`: the recipes from the command line."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import finetune
from jclip.config import DataConfig, apply_overrides, build, load_values, to_values
from jclip.errors import CheckpointError, ConfigError, UnknownName, guarded

if TYPE_CHECKING:  # help answers before NumPy is imported
    import numpy as np

INSTALLED_CONFIGS = Path(__file__).parent / "configs"
CHECKOUT_CONFIGS = Path(__file__).parent.parent / "configs"


def find_config(name: str) -> Path:
    """A path, or the name of a shipped config such as `tip_adapter/features_caltech_lvis`. Raises `ConfigError`."""
    path = Path(name)
    if path.is_file():
        return path
    for folder in (CHECKOUT_CONFIGS, INSTALLED_CONFIGS):
        for candidate in (folder / name, folder / f"{name}.yaml", folder.parent / name):
            if candidate.is_file():
                return candidate
    raise UnknownName(
        "config", name, [str(p.relative_to(f)) for f in (CHECKOUT_CONFIGS, INSTALLED_CONFIGS) for p in shipped(f)]
    )


def shipped(folder: Path) -> list[Path]:
    """The YAML files below a folder of configs."""
    return sorted(folder.rglob("*.yaml"))


def read_config(name: str, overrides: Sequence[str] = ()) -> tuple[Any, Any, Path]:
    """The recipe's module, its built `Config`, and the file. Raises `ConfigError` before Jittor is imported."""
    path = find_config(name)
    return (*build_config(load_values(path, overrides), str(path)), path)


def build_config(values: dict[str, Any], place: str) -> tuple[Any, Any]:
    """The recipe that `values` names with its key `recipe`, and its `Config`."""
    values = dict(values)
    recipe = values.pop("recipe", None)
    if not isinstance(recipe, str):
        raise ConfigError(f"{place}: recipe is missing (one of {', '.join(finetune.names())})")
    module = finetune.load(recipe)
    return module, build(module.Config, values, place)


def resolved(module: Any, cfg: Any) -> dict[str, Any]:
    """The configuration as plain values, recipe included: what is compared, written and fed back."""
    return {"recipe": module.__name__.rsplit(".", 1)[-1], **to_values(cfg)}


def default_folder(module: Any, cfg: Any, path: Path, runs: str = "runs") -> Path:
    """<runs>/<recipe>/<config>-<hash of all settings>: another setting, another folder."""
    values = resolved(module, cfg)
    key = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    return Path(runs, values["recipe"], f"{path.stem}-{key}")


def train(argv: list[str]) -> int:
    """Runs a config to its end, continues it after a break, or shows a finished result again."""
    p = argparse.ArgumentParser("jclip train", description=train.__doc__)
    p.add_argument("config", help="a YAML, or the name of a shipped one (`jclip recipes` lists them)")
    p.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that win over the file, such as data.shots=4"
    )
    p.add_argument("--run", metavar="FOLDER", help="the run's folder (default: runs/<recipe>/<config>-<hash>)")
    p.add_argument("--runs", metavar="FOLDER", default="runs", help="where folders of that default are (default: runs)")
    p.add_argument("--fresh", action="store_true", help="forget what the folder holds and start over")
    p.add_argument("--link", metavar="NAME", help="a link to the run's folder, moved there when it has finished")
    args = p.parse_intermixed_args(argv)
    module, cfg, path = read_config(args.config, args.overrides)
    folder = Path(args.run) if args.run else default_folder(module, cfg, path, args.runs)

    from jclip.run import Run, clear

    if args.fresh:
        clear(folder)
    with Run(folder, resolved(module, cfg)) as run:
        result = run.result
        if result is None:
            result = run.finish(module.run(cfg, run))
            run.slot().clear()
        else:
            print("this run has finished before; --fresh starts over")
    if args.link:
        point(Path(args.link), folder)
    print(report(result["metrics"]))
    print(f"run: {folder}")
    return 0


def point(link: Path, folder: Path) -> None:
    """Makes `link` a relative symbolic link to `folder`, in one move. Raises `ConfigError` where something else stands."""
    if link.exists() and not link.is_symlink():
        raise ConfigError(f"{link} is no link: choose another name with --link")
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.symlink_to(os.path.relpath(folder, link.parent))
    temporary.replace(link)


def compare(argv: list[str]) -> int:
    """One table of finished runs on the same data: zero-shot of the first, then each run."""
    p = argparse.ArgumentParser("jclip compare", description=compare.__doc__)
    p.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs")
    args = p.parse_args(argv)

    from jclip.results import table
    from jclip.run import read_result

    results = {folder: read_result(folder)["metrics"] for folder in args.runs}
    parts = [part for part in ("val", "test") if all(f"{part}_top1" in m for m in results.values())]
    if not parts:
        raise ConfigError(f"{', '.join(results)} have no accuracy in common")
    first = next(iter(results.values()))
    named = [("zero-shot", "zero_shot_", first)] if f"zero_shot_{parts[0]}_top1" in first else []
    named += [(Path(folder).name, "", metrics) for folder, metrics in results.items()]
    rows = [[name, *(_accuracy(metrics, f"{prefix}{part}") for part in parts)] for name, prefix, metrics in named]
    print(table(["top-1", *parts], rows))
    return 0


def report(metrics: dict[str, float]) -> str:
    """A table of accuracies, zero-shot beside adapted, then the other figures."""
    from jclip.results import table

    parts = [part for part in ("val", "test") if f"{part}_top1" in metrics]
    rows = (
        [
            [name, *(_accuracy(metrics, f"{prefix}{part}") for part in parts)]
            for name, prefix in (("zero-shot", "zero_shot_"), ("this run", ""))
            if f"{prefix}{parts[0]}_top1" in metrics
        ]
        if parts
        else []
    )
    shown = {f"{prefix}{part}_{kind}" for prefix in ("zero_shot_", "") for part in ("val", "test")
             for kind in ("top1", "top5", "mean_per_class", "ece", "correct", "count")}  # fmt: skip
    rest = [f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in metrics.items() if k not in shown]
    text = table(["top-1", *parts], rows) if rows else ""
    return "\n".join(filter(None, [text, ", ".join(rest)]))


def _accuracy(metrics: dict[str, float], prefix: str) -> str:
    return f"{metrics[f'{prefix}_top1']:.4f} ({metrics[f'{prefix}_correct']} of {metrics[f'{prefix}_count']})"


def evaluate(argv: list[str]) -> int:
    """Measures a finished run on test photos: its own, or others named by data.… settings. Writes eval.json,
    per_class.csv and confusion.csv into the run's folder."""
    p = argparse.ArgumentParser("jclip eval", description=evaluate.__doc__)
    p.add_argument("run", help="the folder of a finished run, or the config that was trained")
    p.add_argument(
        "overrides", nargs="*", metavar="key=value", help="other data, such as data.test=list.txt; model=FILE"
    )
    p.add_argument("--out", metavar="FOLDER", help="where to write (default: the run's folder)")
    args = p.parse_intermixed_args(argv)
    done = finished_run(args.run, args.overrides)

    from jclip.evaluation import write_evaluation
    from jclip.features import few_shot_features
    from jclip.source import source_of

    cfg = done.config
    if not isinstance(cfg.data, DataConfig):
        raise ConfigError(
            f"{done.folder} learned from captions: measure its model.safetensors with the recipe zero_shot"
        )
    source = source_of(cfg, done.model)
    data = few_shot_features(cfg.data, source, cfg.templates, train=False)
    if data.classnames != done.classnames:
        raise ConfigError(f"the data has other classes than the run: {len(data.classnames)} and {len(done.classnames)}")
    if not len(data.test):
        raise ConfigError("there is no test data to measure on: set data.test")
    out = Path(args.out) if args.out else done.folder
    metrics = write_evaluation(out, done.scorer()(data.test), data.test_labels, done.classnames)
    print(report({f"test_{k}": v for k, v in metrics.items()}))
    print(", ".join(f"{k} {metrics[k]:.4f}" for k in ("top5", "mean_per_class", "ece")))
    print(f"written: {out}/eval.json, per_class.csv, confusion.csv")
    return 0


def predict(argv: list[str]) -> int:
    """Labels photos with a finished run and writes the results file; tells the accuracy where labels are known."""
    p = argparse.ArgumentParser("jclip predict", description=predict.__doc__)
    p.add_argument("run", help="the folder of a finished run, or the config that was trained")
    p.add_argument(
        "photos",
        nargs="*",
        metavar="PHOTO|key=value",
        help="photos, folders of photos, and settings of the config; without photos the run's own test photos",
    )
    p.add_argument("--model", help="the base model, if the run was made from recorded features or the file has moved")
    p.add_argument("--top", type=int, default=5, help="classes told per photo (default 5)")
    p.add_argument(
        "--out", default="results/result.txt", metavar="FILE", help=".txt (the Jittor challenge's lines), .csv or .json"
    )
    p.add_argument("--sheet", metavar="FILE.png", help="also a picture of some of the photos with their classes")
    p.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="what to do with a photo that does not decode"
    )
    args = p.parse_intermixed_args(argv)
    settings = [a for a in args.photos if re.match(r"[a-z_.]+=", a) and not Path(a).exists()]

    from jclip.functional.metrics import top_k
    from jclip.results import Predictions, check_format, show, write_predictions
    from jclip.sheet import check_sheet, write_sheet
    from jclip.source import source_of

    check_format(args.out)
    check_sheet(args.sheet)
    done = finished_run(args.run, settings)
    cfg, model = done.config, args.model or done.model
    if not model:
        raise ConfigError("this run learned from recorded features: name the model that they are of with --model")
    split = photos_to_label(done, [a for a in args.photos if a not in settings])
    source = source_of(cfg, model)
    if source.config.embed_dim != done.width:
        raise CheckpointError(
            f"{model} gives features of {source.config.embed_dim} numbers, the run learned on {done.width}"
        )

    from jclip.features import extract
    from jclip.heads import unit

    rows, features = extract(source, split, on_error=args.on_error, label="photos")
    scores = done.scorer()(unit(features))
    predictions = Predictions(tuple(split.paths[i] for i in rows), done.classnames, scores, args.top)
    write_predictions(predictions, args.out)
    print(show(predictions))
    if len(args.photos) == len(settings) and (split.labels >= 0).all():
        print(f"top-1 {top_k(scores, split.labels[rows]):.4f} of these photos")
    if args.sheet:
        write_sheet(args.sheet, predictions, split.labels[rows])
    print(f"written: {args.out} ({len(predictions.photos)} photos){f', {args.sheet}' if args.sheet else ''}")
    return 0


def photos_to_label(done: Finished, places: list[str]) -> Any:
    """The photos at `places`, or the test photos of the run's own data with their labels. Raises `DataError`."""
    import numpy as np

    from jclip.data.splits import Split, find_photos, read_photos

    if places:
        photos = find_photos(places)
        return Split(tuple(photos), np.full(len(photos), -1, np.int32))
    if not isinstance(done.config.data, DataConfig) or done.config.data.features:
        raise ConfigError("name the photos to label: this run has none of its own")
    split = read_photos(done.config.data).test
    if not len(split):
        raise ConfigError("name the photos to label, or set data.test: the run's data has no test photos")
    return split


@dataclass(frozen=True)
class Finished:
    """A finished run: its recipe, config, what it learned, and what its features looked like."""

    folder: Path
    module: Any
    config: Any
    learned: dict[str, np.ndarray]
    classnames: tuple[str, ...]
    width: int

    @property
    def model(self) -> str:
        """The weights that its features are of: those it trained, else those it was given."""
        own = self.folder / "model.safetensors"
        return str(own) if own.is_file() else self.config.model

    def scorer(self) -> Callable[[np.ndarray], np.ndarray]:
        """Normalised features (N, width) → scores (N, C)."""
        return self.module.scorer(self.learned, self.config)


def finished_run(place: str, overrides: Sequence[str]) -> Finished:
    """The run in folder `place` with settings changed, or the one that training the config `place` with them made.

    Raises `ConfigError` when there is none.
    """
    import numpy as np

    from jclip.readers import read_weights
    from jclip.run import read_result

    folder = Path(place)
    if folder.is_file() or folder.suffix == ".yaml":
        folder, overrides = default_folder(*read_config(place, overrides)), ()
    read_result(folder)
    saved = read_weights(folder / "learned.safetensors")
    values = apply_overrides(json.loads(saved.metadata["config"]), overrides)
    module, cfg = build_config(values, f"{folder}/config.yaml")
    learned = {k: np.array(t.read()) for k, t in saved.items()}
    return Finished(
        folder, module, cfg, learned, tuple(json.loads(saved.metadata["classnames"])), int(saved.metadata["width"])
    )


def recipes(argv: list[str]) -> int:
    """Lists the recipes with the configs that ship."""
    argparse.ArgumentParser("jclip recipes", description=recipes.__doc__).parse_args(argv)
    folder = CHECKOUT_CONFIGS if CHECKOUT_CONFIGS.is_dir() else INSTALLED_CONFIGS
    for name in finetune.names():
        print(f"{name}: {(finetune.load(name).__doc__ or '').splitlines()[0]}")
        for path in shipped(folder):
            if load_values(path).get("recipe") == name:
                print(f"  {path.relative_to(folder.parent)}")
    return 0


COMMANDS = {"train": train, "eval": evaluate, "predict": predict, "compare": compare, "recipes": recipes}


def main(argv: list[str]) -> int:
    """Dispatches to the commands."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m finetune train|eval|predict|compare|recipes …  (each with --help)")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        return guarded(lambda: _unknown(argv[0]), "finetune")
    return guarded(lambda: COMMANDS[argv[0]](argv[1:]), f"finetune {argv[0]}")


def _unknown(name: str) -> int:
    raise UnknownName("command", name, COMMANDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
