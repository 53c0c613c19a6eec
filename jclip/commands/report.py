"""Writes runs or a gallery as one page that can be sent to someone: a single .html file that asks for nothing outside."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path

from jclip.commands.arguments import Parser, add_shared, nonempty
from jclip.data import gallery_store
from jclip.errors import ConfigError, notice
from jclip.features import gallery as galleries
from jclip.paths import refuse_overwriting, replacing
from jclip.report import gallery_page, page_photos, page_words, run_comparison, run_page, run_record

MOST_RUNS = 50


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip report", description=__doc__)
    p.add_argument(
        "places", nargs="+", type=nonempty, metavar="RUN|GALLERY",
        help="a run's folder, finished or not, or the config that was trained; several runs of one task, which are compared; "
        "or one gallery of `jclip embed`",
    )  # fmt: skip
    add_shared(p, "--out", ", a file that ends in .html")
    p.add_argument(
        "--query",
        action="append",
        default=[],
        metavar="TEXT",
        help="of a gallery: also show what TEXT finds; repeatable",
    )
    p.add_argument(
        "--root", type=nonempty, metavar="FOLDER", help="where photos lie now that are no longer at their paths"
    )
    p.add_argument("--language", choices=page_words.LANGUAGES, help="the page's language (default: the locale's)")
    return p


def main(argv: list[str]) -> int:
    """Writes the page. Returns the exit code."""
    args = parser().parse_args(argv)
    if not args.out:
        raise ConfigError("name the page to write: --out FILE.html")
    if Path(args.out).suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out must end in .html, got {args.out}")
    if args.root and not Path(args.root).is_dir():
        raise ConfigError(f"--root must be the folder where the photos lie now, got {args.root}: no such folder")
    if empty := [text for text in args.query if not text.strip()]:
        raise ConfigError(f"--query must be a text, got {empty[0]!r}")
    words = page_words.Words(args.language or page_words.language_of_locale())
    command = shlex.join(["jclip", "report", *argv])
    make = _of_gallery if any(map(gallery_store.is_gallery, args.places)) else _of_runs
    _refuse_run_files(args)
    text = make(args, words, command)
    with replacing(args.out) as temporary:
        temporary.write_text(text, "utf-8", "backslashreplace")
    notice(f"written: {args.out} ({len(text.encode('utf-8', 'replace')):,} bytes)")
    return 0


def _of_gallery(args: argparse.Namespace, words: page_words.Words, command: str) -> str:
    if len(args.places) > 1:
        raise ConfigError(f"a gallery must be reported alone, got {len(args.places)} places: {' '.join(args.places)}")
    gallery = galleries.Gallery.open(args.places[0], args.root or "")
    refuse_overwriting([args.out], _files_of(gallery))
    upright = bool(gallery.store.manifest.preprocess.get("upright", True))
    photos = page_photos.PagePhotos(words, "", upright)
    return gallery_page.page_of_gallery(words, gallery, photos, command, args.query)


def _files_of(gallery: galleries.Gallery) -> Iterator[str]:
    """Files that the page must not take the place of: the gallery's own and its photos."""
    yield from (str(gallery.store.folder / name) for name in gallery.store.manifest.files())
    yield from (gallery.path_of(row) for row in range(len(gallery)))


def _of_runs(args: argparse.Namespace, words: page_words.Words, command: str) -> str:
    if args.query:
        raise ConfigError(f"--query is for galleries, and {args.places[0]} is none: leave it out")
    if len(args.places) > MOST_RUNS:
        raise ConfigError(f"at most {MOST_RUNS} runs can be reported together, got {len(args.places)}")
    records = [run_record.read_record(place) for place in args.places]
    photos = page_photos.PagePhotos(words, args.root or "", run_record.sees_upright(records[0]))
    if len(records) == 1:
        return run_page.page_of_run(words, records[0], photos, command)
    return run_comparison.page_of_runs(words, records, photos, command)


def _refuse_run_files(args: argparse.Namespace) -> None:
    """Raises `ConfigError` where the page would take the place of a file of a run or gallery."""
    own: list[Path] = []
    for place in args.places:
        folder = Path(place)
        own += [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else [folder]
    refuse_overwriting([args.out], own)
