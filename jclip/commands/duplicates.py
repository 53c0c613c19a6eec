"""Groups photos that show nearly the same: copies, crops, other sizes. Useful before photos are split into sets."""

from __future__ import annotations

import argparse
from pathlib import Path

from jclip.choices import default_model
from jclip.commands.arguments import Parser, add_shared, nonempty, number
from jclip.data import gallery_store
from jclip.errors import ConfigError, counted, notice, printable, say
from jclip.features import gallery as galleries
from jclip.features import photo_galleries
from jclip.paths import refuse_overwriting
from jclip.report import contact_sheet, duplicate_groups

SHOWN = 20  # groups in the terminal


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip duplicates", description=__doc__)
    p.add_argument(
        "place", type=nonempty, metavar="PHOTOS|GALLERY", help="a folder of photos, or a gallery of `jclip embed`"
    )
    p.add_argument(
        "--above",
        type=number(-1, 1),
        default=0.98,
        metavar="C",
        help="smallest cosine of two such photos (default: 0.98)",
    )
    add_shared(p, "--out", ": .csv or .json, a row per photo of a group (default: nowhere)")
    add_shared(p, "--sheet", ", a section per group")
    add_shared(p, "--model", "; a gallery has its own (default: JCLIP_MODEL, else ViT-B/32)")
    add_shared(p, "--family")
    return p


def main(argv: list[str]) -> int:
    """Prints the groups and writes what was asked for. Returns the exit code."""
    args = parser().parse_args(argv)
    contact_sheet.check_sheet(args.sheet)
    duplicate_groups.check_file(args.out)
    refuse_overwriting([args.out, args.sheet], [args.place])
    gallery = _gallery(args)
    groups = duplicate_groups.find_groups(gallery.store, args.above)
    photos, alike = sum(len(group.rows) for group in groups), f"with a cosine of at least {args.above:g}"
    found = f"{counted(len(groups), 'group')} of {photos:,}" if groups else "no two"
    say(f"{found} of {counted(len(gallery), 'photo')} {alike}")
    for place, group in enumerate(groups[:SHOWN], start=1):
        say(f"\n{place}. {group.said}")
        for row, score in zip(group.rows, group.scores, strict=True):
            say(f"   {score:.4f}  {printable(gallery.path_of(row))}")
    if len(groups) > SHOWN:
        notice(f"{counted(len(groups) - SHOWN, 'group')} more: --out groups.csv writes all")
    if args.out:
        duplicate_groups.write_groups(groups, gallery.path_of, Path(args.out))
        notice(f"written: {args.out}")
    if args.sheet:
        upright = bool(gallery.store.manifest.preprocess.get("upright", True))
        duplicate_groups.write_sheet(groups, gallery.photo_at, args.sheet, upright)
        notice(f"written: {args.sheet}")
    return 0


def _gallery(args: argparse.Namespace) -> galleries.Gallery:
    if gallery_store.is_gallery(args.place):
        if args.model or args.family:
            raise ConfigError(f"{args.place} is a gallery, which has its features: leave --model and --family out")
        return galleries.Gallery.open(args.place)
    return photo_galleries.gallery_of_photos(args.place, args.model or default_model(), args.family)
