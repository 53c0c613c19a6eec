"""Embeds photos into a gallery: features in memory-mapped parts and one table of rows, for search by text and photo."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jclip.choices import GALLERY_DTYPES, default_model
from jclip.commands import shared_parts
from jclip.commands.arguments import Parser, add_dtype, add_shared, nonempty
from jclip.data import gallery_inputs, gallery_store, shares
from jclip.errors import ConfigError, counted, notice, say
from jclip.features import gallery_embedding, gallery_estimate, gallery_index, gallery_layouts, gallery_lock
from jclip.features import source as sources

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
    add_shared(p, "--family")
    add_dtype(p, default="fp32")
    shared_parts.add_options(p)
    add_shared(p, "--dry-run", ": measure for half a minute, and print what the whole takes, also for --processes")
    p.add_argument(
        "--export", type=nonempty, metavar="FOLDER",
        help="also write the gallery in clip-retrieval's layout: img_emb, metadata (needs pyarrow), and text_emb of captions",
    )  # fmt: skip
    return p


def main(argv: list[str]) -> int:
    """Embeds what is not embedded yet, and says what was done. Returns the exit code."""
    args = parser().parse_args(argv)
    if not args.out:
        raise ConfigError("--out must name the gallery's folder, such as --out gallery")
    folder = Path(args.out)
    gallery_store.check_target(folder)
    if args.export:
        gallery_layouts.check_export(Path(args.export))
    if args.dry_run and not any(map(gallery_layouts.is_layout, args.places)):
        return _estimate(args, folder)
    store = _import(args, folder) if _is_layout(args) else _embed(args, folder, argv)
    if args.export and store:
        captioned = any(store.rows.column("caption"))
        gallery_layouts.export_layout(store, Path(args.export), _source(args, folder) if captioned else None)
        notice(f"written: {args.export}")
    return 0


def _is_layout(args: argparse.Namespace) -> bool:
    if not any(map(gallery_layouts.is_layout, args.places)):
        return False
    if len(args.places) > 1 or args.update or args.columns or args.root or shared_parts.given_ways(args):
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


def _estimate(args: argparse.Namespace, folder: Path) -> int:
    """Prints what the whole is going to take."""
    inputs = gallery_inputs.read_inputs(args.places, args.root or "", args.columns or "")
    itemsize = gallery_store.DTYPES[args.store or gallery_embedding.DEFAULT_DTYPE].itemsize
    for line in gallery_estimate.lines_of(inputs, _source(args, folder), itemsize, args.processes, folder):
        say(line)
    return 0


class _Embedding:
    """The photos in parts, see `jclip.commands.shared_parts.Job`."""

    def __init__(self, args: argparse.Namespace):
        self._args, self.folder = args, Path(args.out)
        self.inputs = gallery_inputs.read_inputs(args.places, args.root or "", args.columns or "")
        self._source = _source(args, self.folder)
        self.sizes = [self.inputs.size(number) for number in range(self.inputs.parts)]
        self._watched: gallery_embedding.Watched | None = None

    @property
    def key(self) -> str:
        """What the parts are made of."""
        return gallery_embedding.parts_of(self.inputs, self._source, self.folder, self._args.store or "").name

    def done(self) -> int:
        """Photos of what is finished and begun."""
        return self._watch.done()

    def missing(self) -> Sequence[int]:
        """None where the gallery is up to date."""
        return self._watch.missing()

    def finish(self, own: shares.Share) -> int:
        """Encodes; the gallery is not written."""
        return self.embed(dataclasses.replace(own, ends=False)).encoded

    def embed(self, own: shares.Share = shares.WHOLE) -> gallery_embedding.Outcome:
        """As `gallery_embedding.embed`."""
        args, model = self._args, _model(self._args, self.folder)
        return gallery_embedding.embed(
            self.inputs, self._source, self.folder, args.store or "", args.update, model, own
        )

    @property
    def _watch(self) -> gallery_embedding.Watched:
        if self._watched is None:
            given = self._args.store or "", self._args.update
            self._watched = gallery_embedding.watched(self.inputs, self._source, self.folder, *given)
        return self._watched


def job_of(args: argparse.Namespace) -> _Embedding:
    """The work that several processes may share."""
    return _Embedding(args)


def _encoded(args: argparse.Namespace, argv: list[str]) -> gallery_embedding.Outcome:
    shared_parts.given_ways(args)
    job = job_of(args)
    if args.shard and not args.worker:
        return job.embed(args.shard)  # which writes the gallery if it is the last one
    if not (args.worker or args.processes > 1 or args.scheduler):
        return job.embed()
    with contextlib.nullcontext() if args.worker or not job.missing() else gallery_lock.sharing(job.folder):
        helped = shared_parts.helped("embed", __name__, argv, args, job)
    if not helped.ends:
        return gallery_embedding.Outcome(0, helped.encoded, 0, 0, 0, [], missing=([], 0))
    outcome = job.embed()
    return dataclasses.replace(outcome, encoded=outcome.encoded + helped.encoded, seconds=helped.seconds)


def _embed(args: argparse.Namespace, folder: Path, argv: list[str]) -> gallery_store.Store | None:
    outcome = _encoded(args, argv)
    if args.worker:
        return None
    if outcome.missing:
        missing, parts = outcome.missing
        say(f"shard {args.shard}: encoded {outcome.encoded:,}{_speed(outcome)}; {parts - len(missing)} of "
            f"{counted(parts, 'part')} are finished in {folder}, those of {args.shard.names_of(missing)} are not; the shard "
            "that finishes the last one writes the gallery")  # fmt: skip
        return None
    store = gallery_store.open_store(folder)
    if outcome.added or outcome.dropped:
        gallery_index.warn_old_index(store)
    if outcome.encoded and (builds := len(store.manifest.builds)) > 1:
        notice(f"{folder}: its features were made by {builds} builds (versions of jclip or its packages), and may differ in "
               "the last digit: embed the photos into a new folder for those of one")  # fmt: skip
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
