"""`jclip world`: scenes of coloured shapes with all that is true of them, to try grounding on. Imports no Jittor."""

from __future__ import annotations

import argparse
from pathlib import Path

from jclip.commands.arguments import Parser, add_shared, nonempty, number, whole
from jclip.data import shape_sources
from jclip.errors import ConfigError, say
from jclip.paths import replacing_folder


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip world", description=main.__doc__)
    p.add_argument(
        "out", type=nonempty, metavar="OUT", help="the folder to write: new, empty, or written by this before"
    )
    p.add_argument("--scenes", type=whole(1, 10**6), default=1000, metavar="N", help="how many scenes (default: 1000)")
    add_shared(p, "--seed", " of scenes, scores and noise (default: 0)", default=0)
    p.add_argument("--size", type=whole(16, 1024), default=64, metavar="N", help="side in pixels (default: 64)")
    p.add_argument(
        "--pairs",
        type=whole(2, 100),
        default=0,
        metavar="N",
        help="draw each scene from so many pairs of colour and shape: few give phrases with directions (default: all 100)",
    )
    p.add_argument(
        "--noise",
        type=number(0, 0.6),
        default=0.3,
        metavar="SHARE",
        help="pseudo-labels with another thing's box; half as many get another scene's phrase (default: 0.3)",
    )
    return p


def main(argv: list[str]) -> int:
    """Draws scenes with captions, boxes and phrases, with what a detector would find, and with pseudo-labels."""
    args = parser().parse_args(argv)
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"OUT must be a folder, got a file: {out}")
    if out.is_dir() and any(out.iterdir()) and not (out / shape_sources.ABOUT).is_file():
        raise ConfigError(
            f"OUT must be a new or an empty folder, or one that jclip world wrote, got {out}: name another"
        )
    with replacing_folder(out) as folder:
        counts = shape_sources.write_world(folder, args.scenes, args.seed, args.size, args.pairs, args.noise)
    lines = [f"  {name}: {rows} rows" for name, rows in counts.items()]
    proposals = f"  {shape_sources.PROPOSALS}: boxes of {shape_sources.HUMAN} as a detector writes them"
    say("\n".join([f"{out}: {args.scenes} scenes", *lines, proposals]))
    return 0
