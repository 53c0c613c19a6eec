"""Builds an index over a gallery, which answers where exact search takes too long. All kinds but exact need faiss."""

from __future__ import annotations

import argparse
from pathlib import Path

from jclip.choices import INDEX_KINDS
from jclip.commands.arguments import Parser, nonempty
from jclip.data import gallery_store
from jclip.errors import counted, say
from jclip.features import gallery_index


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip index", description=__doc__)
    p.add_argument("gallery", type=nonempty, metavar="GALLERY", help="a folder of `jclip embed`")
    p.add_argument(
        "--kind", choices=INDEX_KINDS, default="auto",
        help="exact: no index; hnsw: a graph, fast and in memory; ivf: cells; pq: cells of quantised features, small; auto: "
        "by rows and memory (default: auto)",
    )  # fmt: skip
    return p


def main(argv: list[str]) -> int:
    """Builds the index and prints its recall against exact search. Returns the exit code."""
    args = parser().parse_args(argv)
    store = gallery_store.open_store(Path(args.gallery))
    built = gallery_index.build_index(store, args.kind)
    why = f" (chosen for {counted(len(store), 'row')})" if args.kind == "auto" else ""
    if built.recall is None:
        say(f"{args.gallery}: exact search{why}, which needs no index")
    else:
        say(f"{args.gallery}: {built.kind}{why}, {built.bytes / 2**20:,.1f} MiB, recall@10 {built.recall:.4f}")
        gallery_index.warn_low_recall(built)
    return 0
