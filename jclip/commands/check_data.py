"""Shows what a run would read of a folder or a config, before it is run. Imports no Jittor.

Lists and photos are read by the functions that runs use. Reported: classes with their photos, names, what is left out,
broken and unusual photos, copies, encodings of lists. `--write` writes the config that a folder needs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jclip import choices
from jclip.commands.arguments import Parser, nonempty
from jclip.config import WORLD, DataConfig, WithPhotos, to_yaml
from jclip.data import checks, examine, folders, photo_hashes, splits
from jclip.data.challenge_folder import from_folder
from jclip.errors import ConfigError, DataError, JclipError, UnknownName, fail, printable, say
from jclip.features import run_data
from jclip.paths import replacing
from jclip.prompts import scripts
from jclip.report import predictions
from jclip.weights.variants import VARIANTS

PARTS = ("train", "val", "test")
SPLIT_FILES = (".json", ".csv", ".tsv")
PLAIN_MODES = {"RGB", "L"}
SMALL, LONG = 64, 3  # pixels of the short side; the long side by the short one: what a model sees little of
ROWS = 20  # classes in the table on stdout


@dataclass
class Report:
    """What was found. refused: why a run would not start, or would stop; warnings: what it would do unasked."""

    target: str
    refused: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    classes: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, dict[str, Any]] = field(default_factory=dict)
    photos: dict[str, Any] = field(default_factory=dict)
    broken: list[dict[str, str]] = field(default_factory=list)
    odd: dict[str, dict[str, Any]] = field(default_factory=dict)
    copies: list[dict[str, Any]] = field(default_factory=list)
    encodings: dict[str, str] = field(default_factory=dict)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip check-data", description=__doc__)
    p.add_argument(
        "data",
        type=nonempty,
        metavar="FOLDER|YAML",
        help="a folder of photos, CoOp's .json, a table (.csv, .tsv), or a run's config",
    )
    p.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="settings that override the config, such as data.shots=4",
    )
    p.add_argument("--json", type=nonempty, metavar="FILE", help="also write the whole report as JSON")
    p.add_argument(
        "--write", type=nonempty, metavar="RUN.yaml", help="also write a config of this folder for `jclip train`"
    )
    p.add_argument("--no-photos", action="store_true", help="read lists and folders, open no photo")
    return p


def main(argv: list[str]) -> int:
    """Reports what a run would read. Returns 0, with warnings too, or 2 where a run would refuse the data."""
    args = parser().parse_intermixed_args(argv)
    data, cfg, measures_all = asked(args.data, args.overrides)
    if args.write and cfg is not None:
        raise ConfigError(f"--write must be given a folder or list of photos, got a config: {args.data}")
    report, photos = check(args.data, data, cfg, measures_all, opened=not args.no_photos)
    say("\n".join(map(printable_lines, report_lines(report))))
    if args.json:
        write_json(args.json, report)
        say(f"written: {args.json}")
    if args.write and photos is None:
        say(f"not written: {args.write}, until a run can read this data")
    elif args.write:
        write_config(Path(args.write), data, photos, report)
        say(f"written: {args.write} (jclip train {args.write})")
    if report.refused:
        first = report.refused[0]
        return fail("jclip check-data", f"a run would refuse this data: {first}", 2)
    return 0


def asked(target: str, overrides: Sequence[str]) -> tuple[DataConfig, Any, bool]:
    """The data that a command names, and for a run's config that and whether it measures all photos. Raises `ConfigError`."""
    path = Path(target)
    if path.is_dir() or target.partition(":")[0] == WORLD:
        found = DataConfig(root=target, shots=0, val_shots=0)
    elif path.suffix.lower() in SPLIT_FILES:
        found = DataConfig(split_file=target, shots=0, val_shots=0)
    else:
        configs = importlib.import_module("jclip.train.configs")  # a floor above: only when asked for
        try:
            configs.find_config(target)
        except UnknownName:
            raise DataError(f"no such folder or config: {target}{folders.nearest_beside(path)}") from None
        module, cfg, place = configs.read_config(target, overrides)
        if not isinstance(cfg.data, DataConfig):
            raise ConfigError(f"data of {place} must be photos with classes, got captions")
        if cfg.data.features:
            raise ConfigError(f"data of {place} must be photos, got precomputed features: there are no photos to check")
        return cfg.data, cfg, getattr(module, "MEASURES_ALL", False)
    if overrides:
        raise ConfigError(f"settings must follow a config, got {overrides[0]} after {target}")
    return found, None, True


def check(
    target: str, data: DataConfig, cfg: WithPhotos | None = None, measures_all: bool = True, opened: bool = True
) -> tuple[Report, splits.PhotoData | None]:
    """The report on all photos of `data`, or of those that the run of `cfg` reads; and these, None where it can't."""
    report = Report(target)
    report.encodings = {file: encoding for file in lists_of(data) if (encoding := encoding_of(file))}
    try:
        photos = splits.read_all_photos(data) if cfg is None else run_data.read_run_photos(cfg, measures_all)
    except JclipError as e:
        report.refused.append(str(e))
        return report, None
    describe_classes(report, photos)
    describe_names(report, photos, choices.default_model() if cfg is None else getattr(cfg, "model", ""))
    if not len(photos.train) + len(photos.val) + len(photos.test):
        report.refused.append("there are no photos")
        return report, photos
    trying(report, lambda: checks.check_apart(photos.train.paths, photos.val.paths))
    if opened:
        describe_photos(report, photos, stops=data.on_error == "stop")
    describe_copies(report, photos)
    return report, photos


def trying(report: Report, step) -> None:
    """Takes a step that raises what a run would refuse."""
    try:
        step()
    except JclipError as e:
        report.refused.append(str(e))


def parts_of(photos: splits.PhotoData) -> dict[str, Any]:
    """part → its split, for those with photos."""
    return {part: split for part in PARTS if len(split := getattr(photos, part))}


def lists_of(data: DataConfig) -> list[str]:
    """The text files that are read."""
    data = from_folder(data)
    named = (data.classes, data.train, data.val, data.test, data.split_file)
    return [file for file in named if file and os.path.isfile(file)]  # noqa: PTH113


def encoding_of(file: str) -> str:
    """How a text file is encoded: as `jclip.readers.text` reads it."""
    raw = Path(file).read_bytes()
    marks = {b"\xef\xbb\xbf": "UTF-8 with a byte order mark", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
    marked = next((name for mark, name in marks.items() if raw.startswith(mark)), "")
    try:
        raw.decode("utf-8")
        return marked or "UTF-8"
    except UnicodeDecodeError:
        return marked or "GB18030"


def describe_classes(report: Report, photos: splits.PhotoData) -> None:
    """Classes in order with photos per part, what the data calls them, and what the reader noted."""
    import numpy as np

    count, called = len(photos.classnames), photos.called or photos.classnames
    counts = {part: np.bincount(getattr(photos, part).labels, minlength=count).tolist() for part in PARTS}
    for label, (name, own) in enumerate(zip(photos.classnames, called, strict=True)):
        report.classes.append({"label": label, "name": name, "called": own, **{p: n[label] for p, n in counts.items()}})
    report.notes += photos.notes
    report.left_out = {k: {"count": n, "first": photos.left.first[k]} for k, n in photos.left.counts.items()}
    report.warnings += [f"left out: {line}" for line in photos.left.lines()]
    there = [row for row in report.classes if row["called"]]
    for part in parts_of(photos):
        if none := [row for row in there if not row[part]]:
            line = f"{len(none)} of {len(there)} classes have no {part} photos (first: {none[0]['name']})"
            report.warnings.append(line)
    if not len(photos.train) and len(photos.test) + len(photos.val):
        report.warnings.append(
            "there are no training photos: recipes that learn refuse this data, zero_shot measures it"
        )


def describe_names(report: Report, photos: splits.PhotoData, model: str) -> None:
    """Warns of class names in a script that OpenAI's models, which are known by their names, never learned to read."""
    lines = (scripts.unread(name, scripts.OPENAI_BPE) for name in photos.classnames if model in VARIANTS)
    report.warnings += list(filter(None, lines))[:1]


def describe_photos(report: Report, photos: splits.PhotoData, stops: bool) -> None:
    """Opens every photo once: formats, modes, sizes, what is broken, and what is unusual."""
    from tqdm import tqdm

    paths = list(dict.fromkeys(path for split in parts_of(photos).values() for path in split.paths))
    formats, modes, sides = Counter(), Counter(), []
    with tqdm(total=len(paths), desc="photos", unit="photo", disable=None, leave=False) as bar:
        for path, seen in zip(paths, examine.examined(paths), strict=True):
            bar.update()
            if seen.error:
                report.broken.append({"path": path, "error": seen.error})
                continue
            formats[seen.format] += 1
            modes[seen.mode] += 1
            sides.append((min(seen.width, seen.height), seen.width, seen.height))
            for kind in oddities(seen):
                found = report.odd.setdefault(kind, {"count": 0, "first": path})
                found["count"] += 1
    sides.sort()
    sizes = (
        {name: list(sides[at][1:]) for name, at in (("smallest", 0), ("median", len(sides) // 2), ("largest", -1))}
        if sides
        else {}
    )
    report.photos = {"count": len(paths), "formats": dict(formats), "modes": dict(modes), "sizes": sizes}
    if report.broken:
        line = f"{len(report.broken)} of {len(paths)} photos do not decode (first: {report.broken[0]['error']})"
        (report.refused if stops else report.warnings).append(
            f"{line}{': remove them, or set data.on_error=skip' * stops}"
        )
    report.warnings += [
        f"{of['count']} of {len(paths)} photos {kind} (first: {of['first']})" for kind, of in report.odd.items()
    ]


def oddities(seen: examine.Seen) -> Iterator[str]:
    """What is unusual of a photo, as the end of the sentence `3 of 9 photos …`."""
    if seen.orientation != 1:
        yield "carry an EXIF orientation and are turned upright"
    if seen.mode.startswith("I"):
        yield "have 16 bits per channel and are scaled to 8"
    elif seen.mode not in PLAIN_MODES:
        yield f"have the mode {seen.mode} and are converted to RGB"
    short, long = sorted((seen.width, seen.height))
    if short < SMALL:
        yield f"are smaller than {SMALL} pixels"
    if long > LONG * short:
        yield f"are more than {LONG} times as long as wide: a model sees the middle"


def describe_copies(report: Report, photos: splits.PhotoData) -> None:
    """Photos with the same bytes: within a part, across parts, and of two classes."""
    places: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    for part, split in parts_of(photos).items():
        for digest, path, label in zip(
            photo_hashes.photo_hashes(split.paths), split.paths, split.labels.tolist(), strict=True
        ):
            if photo_hashes.is_hash(digest):
                places[digest].append((part, path, label))
    groups = [of for of in places.values() if len(of) > 1]
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for of in groups:
        own = Counter(part for part, _, _ in of)
        for part, count in own.items():
            if count > 1:
                found[f"{part} photos are copies of others there"].append(
                    (count - 1, next(p for q, p, _ in of if q == part))
                )
        for part, other in (("train", "val"), ("train", "test"), ("val", "test")):
            if own[part] and own[other]:
                found[f"{other} photos are copies of {part} photos"].append(
                    (own[other], next(p for q, p, _ in of if q == other))
                )
        if len({label for _, _, label in of}) > 1:
            found["photos have copies in another class"].append((len(of), of[0][1]))
    for kind, rows in found.items():
        count = sum(n for n, _ in rows)
        report.copies.append({"kind": kind, "count": count, "first": rows[0][1]})
        report.warnings.append(f"{count} {kind} (first: {rows[0][1]})")


def report_lines(report: Report) -> Iterable[str]:
    """The report as lines: the table of classes, then what is worth knowing, refusals last."""
    if report.classes:
        yield class_table(report.classes)
    if report.photos:
        yield f"photos: {report.photos['count']:,} ({_counted(report.photos['formats'])}; {_counted(report.photos['modes'])})"
    if sizes := report.photos.get("sizes"):
        yield "sizes: " + ", ".join(f"{name} {w} x {h}" for name, (w, h) in sizes.items())
    yield from (f"list: {file} is {encoding}" for file, encoding in report.encodings.items())
    yield from (f"note: {line}" for line in report.notes)
    yield from (f"warning: {line}" for line in report.warnings)
    yield from (f"refused: {line}" for line in report.refused)
    yield f"refusals: {len(report.refused)}, warnings: {len(report.warnings)}"


def class_table(classes: Sequence[Mapping[str, Any]]) -> str:
    """The first classes and the last, and the sums of all."""
    names = ["name", "called"] if any(row["called"] != row["name"] for row in classes) else ["name"]
    shown = classes if len(classes) <= ROWS else [*classes[: ROWS - 1], classes[-1]]
    rows = [
        [
            str(row["label"]),
            *(printable(predictions.shorten(row[key], 40)) for key in names),
            *(str(row[part]) for part in PARTS),
        ]
        for row in shown
    ]
    total = [str(sum(row[part] for row in classes)) for part in PARTS]
    rows.append(["", f"{len(classes)} classes", *[""] * (len(names) - 1), *total])
    return predictions.table(["label", *("class" if key == "name" else "in the data" for key in names), *PARTS], rows)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items(), key=lambda item: -item[1])) or "none decoded"


def printable_lines(text: str) -> str:
    """The lines of a text, each made safe for a terminal."""
    return "\n".join(map(printable, text.split("\n")))


def write_json(path: str, report: Report) -> None:
    """The whole report; names that are no UTF-8 as Python's escapes, which read back the same."""
    text = json.dumps(vars(report), ensure_ascii=False, indent=1)
    with replacing(path) as temporary:
        try:
            temporary.write_text(f"{text}\n", encoding="utf-8")
        except UnicodeEncodeError:
            temporary.write_text(f"{json.dumps(vars(report), indent=1)}\n", encoding="ascii")


def write_config(path: Path, data: DataConfig, photos: splits.PhotoData, report: Report) -> None:
    """A config that `jclip train` takes: Tip-Adapter, or without training photos zero-shot. Raises `ConfigError`."""
    if path.suffix != ".yaml":
        raise ConfigError(f"--write must name a .yaml file, got {path}")
    values = config_for(data, photos, broken=bool(report.broken))
    text = to_yaml(values)
    if re.search(r"\\ud[89a-f]|[\ud800-\udfff]", text):
        raise ConfigError(f"--write: the path of the data must be UTF-8, got {data.root or data.split_file}")
    lines = [
        f"# Made by `jclip check-data {report.target} --write {path.name}`: {len(photos.classnames)} classes, "
        f"{len(photos.train)} training, {len(photos.val)} validation and {len(photos.test)} test photos.",
        f"# Command: jclip train {path.name}     Another model: model=ViT-B/16 or a weight file (`jclip models` lists names)",
    ]
    with replacing(path) as temporary:
        temporary.write_text("\n".join([*map(printable, lines), text]), encoding="utf-8")


def config_for(data: DataConfig, photos: splits.PhotoData, broken: bool) -> dict[str, Any]:
    """The settings of that config."""
    model = choices.default_model()
    where = {k: _absolute(v) for k in ("root", "split_file") if (v := getattr(data, k))}
    where |= {"strip_prefix": True} if from_folder(data) != data else {}
    where |= {"on_error": "skip"} if broken else {}
    if not len(photos.train):
        return {"recipe": "zero_shot", "model": model, "data": where, "templates": "openai80"}
    shots, val_shots = shots_for(photos)
    search = bool(val_shots)
    where |= {"shots": shots, "val_shots": val_shots}
    return {
        "recipe": "tip_adapter", "model": model, "data": where, "templates": "openai7",
        "search": search, "train": False, "seed": 1,
    }  # fmt: skip


def shots_for(photos: splits.PhotoData) -> tuple[int, int]:
    """The shots, of 1, 2, 4, 8 and 16, that the class with the fewest photos allows; and validation shots, up to 4."""
    import numpy as np

    counts = np.bincount(photos.train.labels, minlength=len(photos.classnames))
    fewest = int(counts[counts > 0].min())
    if len(photos.val):
        shots = max(n for n in (1, 2, 4, 8, 16) if n <= fewest)
        return shots, min(shots, 4)
    fitting = [n for n in (1, 2, 4, 8, 16) if n + min(n, 4) <= fewest]
    return (fitting[-1], min(fitting[-1], 4)) if fitting else (1, 0)


def _absolute(place: str) -> str:
    return place if place.partition(":")[0] == WORLD else str(Path(place).resolve())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
