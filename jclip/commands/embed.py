"""Embeds photos into a gallery: features in memory-mapped parts and one table of rows, for search by text and photo."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

from jclip.choices import GALLERY_DTYPES, default_model
from jclip.commands import cluster, side_processes
from jclip.commands.arguments import Parser, add_shared, nonempty, whole
from jclip.commands.side_processes import end_with_parent
from jclip.data import gallery_inputs, gallery_store, shares
from jclip.errors import ConfigError, counted, notice, say
from jclip.features import gallery_embedding, gallery_index, gallery_layouts
from jclip.features import source as sources
from jclip.weights.families import FAMILIES

SHOWN = 5  # photos that are left out


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip embed", description=__doc__)
    p.add_argument(
        "places", nargs="+", type=nonempty, metavar="PHOTOS",
        help="folders, photos, lists (.txt), tables (.csv, .tsv), tars as img2dataset writes them; or one folder in "
        "clip-retrieval's layout, whose features are taken as they are",
    )  # fmt: skip
    add_shared(p, "--out", ": the gallery's folder")
    p.add_argument(
        "--update", action="store_true",
        help="bring the gallery up to date: add new photos, drop those that are gone, encode changed ones again",
    )  # fmt: skip
    p.add_argument(
        "--columns", type=nonempty, metavar="CSV",
        help="a table of more columns, by path or file name, and of captions; `jclip search --where` filters by them",
    )  # fmt: skip
    p.add_argument(
        "--root", type=nonempty, metavar="FOLDER",
        help="folder that stored paths are relative to (default: the folder of photos)",
    )  # fmt: skip
    p.add_argument(
        "--store",
        choices=GALLERY_DTYPES,
        help="type of the stored features (default: fp16; a gallery that is there has its own)",
    )
    add_shared(p, "--model", "; a gallery that is there has its own (default: JCLIP_MODEL, else ViT-B/32)")
    p.add_argument("--family", choices=FAMILIES, help="family of weights that do not state their activation")
    p.add_argument(
        "--dtype", choices=("fp32", "fp16", "bf16", "int8"), default="fp32",
        help="data type in which photos are encoded (default: fp32); bf16 needs AVX-512 or a GPU, fp16 a GPU, int8 a CPU",
    )  # fmt: skip
    p.add_argument(
        "--shard", type=shares.share, metavar="I/N",
        help="do share I of N alone, such as 2/8: the others run elsewhere with the same --out, and the last one writes the "
        "gallery",
    )  # fmt: skip
    p.add_argument(
        "--processes", type=whole(1, 1024), default=1, metavar="N",
        help="share the photos among N processes on this machine (default: 1)",
    )  # fmt: skip
    p.add_argument(
        "--scheduler", type=nonempty, metavar="ADDRESS",
        help="share the photos among the workers of a running Dask cluster, such as tcp://host:8786; needs 'jclip[cluster]'",
    )  # fmt: skip
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    p.add_argument(
        "--export", type=nonempty, metavar="FOLDER",
        help="also write the gallery in clip-retrieval's layout: img_emb, metadata (needs pyarrow), and text_emb of captions",
    )  # fmt: skip
    return p


def main(argv: list[str]) -> int:
    """Embeds what is not embedded yet, and says what was done. Returns the exit code."""
    args = parser().parse_args(argv)
    args.shard = args.shard or shares.WHOLE
    if not args.out:
        raise ConfigError("--out must name the gallery's folder")
    folder = Path(args.out)
    gallery_store.check_target(folder)
    if args.export:
        gallery_layouts.check_export(Path(args.export))
    if args.worker:
        return _work(args, folder)
    store = _import(args, folder) if _is_layout(args) else _embed(args, folder, argv)
    if args.export and store:
        captioned = any(store.rows.column("caption"))
        gallery_layouts.export_layout(store, Path(args.export), _source(args, folder) if captioned else None)
        notice(f"written: {args.export}")
    return 0


def _is_layout(args: argparse.Namespace) -> bool:
    if not any(map(gallery_layouts.is_layout, args.places)):
        return False
    several = args.shard.of > 1 or args.processes > 1 or args.scheduler
    if len(args.places) > 1 or args.update or args.columns or args.root or several:
        raise ConfigError(
            f"{args.places[0]} is a folder in clip-retrieval's layout: give it alone, without --update, "
            "--columns, --root, --shard, --processes and --scheduler"
        )
    return True


def _import(args: argparse.Namespace, folder: Path) -> gallery_store.Store:
    if not args.model:
        raise ConfigError(f"--model must name the weights that made the features of {args.places[0]}")
    store = gallery_layouts.import_layout(
        Path(args.places[0]), _source(args, folder), folder, args.store or "fp16", _model(args, folder)
    )
    say(f"{folder}: {counted(len(store), 'row')} taken from {args.places[0]}, nothing encoded")
    return store


def _work(args: argparse.Namespace, folder: Path) -> int:
    """One of several processes: its parts, and no gallery. Prints how many photos it encoded and in how many seconds."""
    end_with_parent()
    outcome = _encoded(args, folder, dataclasses.replace(args.shard, ends=False))
    say(json.dumps({"encoded": outcome.encoded, "seconds": outcome.seconds}))
    return 0


def _encoded(args: argparse.Namespace, folder: Path, share: shares.Share) -> gallery_embedding.Outcome:
    inputs = gallery_inputs.read_inputs(args.places, args.root or "", args.columns or "")
    return gallery_embedding.embed(
        inputs, _source(args, folder), folder, args.store or "", args.update, _model(args, folder), share
    )


def _in_processes(args: argparse.Namespace, folder: Path, argv: list[str]) -> gallery_embedding.Outcome:
    """Photos encoded by `args.processes` others; this one joins them."""
    inputs = gallery_inputs.read_inputs(args.places, args.root or "", args.columns or "")
    source = _source(args, folder)
    begun = time.monotonic()
    watch = gallery_embedding.watched(inputs, source, folder, args.store or "", args.update)
    said = side_processes.run(["embed", *argv, "--worker"], min(args.processes, inputs.parts), watch) if watch else []
    seconds = time.monotonic() - begun
    outcome = gallery_embedding.embed(inputs, source, folder, args.store or "", args.update, _model(args, folder))
    encoded = outcome.encoded + sum(json.loads(line)["encoded"] for line in said)
    return dataclasses.replace(outcome, encoded=encoded, seconds=seconds)


def _on_cluster(args: argparse.Namespace, folder: Path) -> gallery_embedding.Outcome:
    """Photos encoded by the workers of a cluster, a part at a time; this process joins the parts."""
    inputs = gallery_inputs.read_inputs(args.places, args.root or "", args.columns or "")
    source = _source(args, folder)
    begun, encoded = time.monotonic(), 0
    if gallery_embedding.watched(inputs, source, folder, args.store or "", args.update):
        order = json.dumps(_for_elsewhere(args))
        tasks = [(order, number, inputs.parts) for number in range(inputs.parts)]
        encoded = sum(cluster.run(args.scheduler, folder, tasks, embed_part, [*map(inputs.size, range(inputs.parts))]))
    seconds = time.monotonic() - begun
    outcome = gallery_embedding.embed(inputs, source, folder, args.store or "", args.update, _model(args, folder))
    return dataclasses.replace(outcome, encoded=encoded + outcome.encoded, seconds=seconds)


def _for_elsewhere(args: argparse.Namespace) -> dict[str, Any]:
    """The settings for a process with another working folder."""
    given = {name: getattr(args, name) for name in ("update", "store", "model", "family", "dtype")}
    if args.model and Path(args.model).exists():
        given["model"] = str(Path(args.model).absolute())
    places = {
        name: str(Path(value).absolute()) if (value := getattr(args, name)) else ""
        for name in ("root", "columns", "out")
    }
    return {**given, **places, "places": [str(Path(place).absolute()) for place in args.places]}


def embed_part(order: str, number: int, parts: int) -> int:
    """One part of the settings in `order`; a worker does many, and reads list and weights once. Returns photos encoded."""
    args, inputs, source = _ordered(order)
    own = shares.Share(number + 1, parts, ends=False)
    folder = Path(args.out)
    return gallery_embedding.embed(
        inputs, source, folder, args.store or "", args.update, _model(args, folder), own
    ).encoded


@functools.lru_cache(maxsize=1)
def _ordered(order: str) -> tuple[argparse.Namespace, gallery_inputs.Inputs, sources.ModelSource]:
    args = argparse.Namespace(**json.loads(order))
    inputs = gallery_inputs.read_inputs(args.places, args.root, args.columns)
    return args, inputs, _source(args, Path(args.out))


def _embed(args: argparse.Namespace, folder: Path, argv: list[str]) -> gallery_store.Store | None:
    ways = {"--shard": args.shard.of > 1, "--processes": args.processes > 1, "--scheduler": bool(args.scheduler)}
    if len(given := [option for option, is_given in ways.items() if is_given]) > 1:
        raise ConfigError(f"{' and '.join(given)} must not be given together: each is a way to share the photos")
    if args.scheduler:
        outcome = _on_cluster(args, folder)
    elif args.processes > 1:
        outcome = _in_processes(args, folder, argv)
    else:
        outcome = _encoded(args, folder, args.shard)
    if outcome.missing:
        missing, parts = outcome.missing
        say(f"shard {args.shard}: encoded {outcome.encoded:,}{_speed(outcome)}; {parts - missing} of {counted(parts, 'part')}"
            f" are finished, and the shard that finishes the last one writes {folder}")  # fmt: skip
        return None
    store = gallery_store.open_store(folder)
    if outcome.added or outcome.dropped:
        gallery_index.warn_old_index(store)
    for path, reason in outcome.skipped[:SHOWN]:
        notice(f"left out: {path}: {reason}")
    if (more := len(outcome.skipped) - SHOWN) > 0:
        notice(f"left out: {more} more, in {folder / store.manifest.table['skipped']}")
    say(f"{folder}: {counted(outcome.rows, 'photo')} ({store.manifest.dtype}, {store.manifest.width} numbers each)")
    say(
        f"encoded {outcome.encoded:,}{_speed(outcome)}, added {outcome.added:,}, dropped {outcome.dropped:,}, "
        f"copies of another {outcome.duplicates:,}, left out {len(outcome.skipped):,}"
    )
    return store


def _speed(outcome: gallery_embedding.Outcome) -> str:
    return f" ({outcome.encoded / outcome.seconds:.1f} a second)" if outcome.encoded and outcome.seconds > 0 else ""


def _model(args: argparse.Namespace, folder: Path) -> str:
    if args.model:
        return args.model
    return gallery_store.read_manifest(folder).model if gallery_store.is_gallery(folder) else default_model()


def _source(args: argparse.Namespace, folder: Path) -> sources.ModelSource:
    family = args.family
    if not (args.model or family) and gallery_store.is_gallery(folder):
        family = gallery_store.read_manifest(folder).family or None
    return sources.ModelSource(_model(args, folder), family, args.dtype)
