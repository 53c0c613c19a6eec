"""Finds photos by what they show: texts, other photos, and sums and differences of them."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jclip.choices import default_model
from jclip.commands.arguments import Parser, add_dtype, add_shared, nonempty, number, whole
from jclip.data import gallery_store, row_filters
from jclip.errors import ConfigError, JclipError, counted, notice, say
from jclip.features import concepts, gallery_ranking, photo_galleries, query_features
from jclip.features import gallery as galleries
from jclip.paths import is_file, refuse_overwriting
from jclip.prompts import query_rules, query_terms
from jclip.readers import text as texts
from jclip.report import contact_sheet, search_results, search_sheet, sorted_folders

MOST_PHOTOS = 1_000_000  # of --top and --candidates
ABOVE_LINE = 5000  # photos at most with --cut alone
LEAVE = ("exit", "quit")
EPILOG = """A TERM is an argument of its own: a text; a photo, which begins with ./ or / or @ (with the ending .npy a stored
feature, with .concept what `jclip teach` has learned, as concept:FILE is); or row:17, a stored photo. A lone + or - in front
gives its sign, N: its weight: "2:golden retriever" + ./pool.jpg - fruit. What follows -- is a term, whatever it begins with.
Without a TERM queries are read from the terminal, or from a pipe, a line each."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip search", description=__doc__, epilog=EPILOG)
    add_gallery(p)
    p.add_argument("terms", nargs="*", default=[], metavar="TERM", help="what to look for, see below")
    p.add_argument(
        "--queries", type=nonempty, metavar="FILE",
        help="many queries: a text a line; or a .json, a list of texts and lists of terms",
    )  # fmt: skip
    add_shared(p, "--top", ": photos of a query (default: 10; with --cut all that stand out)")
    p.add_argument("--page", type=whole(1, MOST_PHOTOS), default=1, metavar="N", help="the N-th page (default: 1)")
    p.add_argument(
        "--where", action="append", default=[], metavar="CONDITION",
        help='search only rows that meet it, such as "year>=2020", "city=Paris", "path~holiday"; several must all hold',
    )  # fmt: skip
    p.add_argument(
        "--unique",
        type=number(0, 1),
        metavar="C",
        help="hide photos whose cosine to a better one is above C, such as 0.98",
    )
    p.add_argument("--cut", action="store_true", help="give only what stands out from the query's own background")
    p.add_argument(
        "--line", type=number(-1e6, 1e6), metavar="Z",
        help="where the background ends, in deviations (default: where chance leaves one photo of the gallery above)",
    )  # fmt: skip
    p.add_argument(
        "--root", type=nonempty, metavar="FOLDER", help="where the photos of a gallery lie now, if they moved"
    )
    p.add_argument("--exact", action="store_true", help="do not use the gallery's index")
    _add_outputs(p.add_argument_group("results"))
    _add_ranking(p.add_argument_group("how queries are read and photos sorted"))
    return p


def _add_outputs(p: argparse._ArgumentGroup) -> None:
    forms = p.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print a line of JSON per query in place of the table")
    forms.add_argument("--csv", action="store_true", help="print CSV in place of the table")
    forms.add_argument("--filepath-only", action="store_true", help="print absolute paths alone, for pipes")
    p.add_argument("--null", action="store_true", help="with --filepath-only, end each path with a NUL byte (xargs -0)")
    add_shared(p, "--out", ": .csv, .json, .jsonl, or .txt with paths alone (default: nowhere)")
    add_shared(p, "--sheet", ", of the photos that were found")
    p.add_argument(
        "--link", type=nonempty, metavar="FOLDER",
        help="also make links to the photos in FOLDER, in a folder for each query (`jclip unsort` removes them)",
    )  # fmt: skip


def add_gallery(p: argparse.ArgumentParser) -> None:
    """What is searched."""
    p.add_argument(
        "place", type=nonempty, metavar="PHOTOS|GALLERY",
        help="a folder of photos, which are encoded once and kept in the cache, or a gallery of `jclip embed`",
    )  # fmt: skip


def add_model(p: argparse._ActionsContainer) -> None:
    """What photos and texts are read with."""
    add_shared(
        p, "--model", "; a gallery is searched with the model that made it (default: JCLIP_MODEL, else ViT-B/32)"
    )
    add_shared(p, "--family")
    add_dtype(p)
    add_shared(p, "--truncate")


def _add_ranking(p: argparse._ArgumentGroup) -> None:
    add_model(p)
    p.add_argument(
        "--rules", type=nonempty, metavar="SET|FILE",
        help="rewrite texts by rules: photo, traffic, or a YAML of words, prefixes and suffixes (default: none)",
    )  # fmt: skip
    p.add_argument(
        "--rerank", type=nonempty, default="none", metavar="METHOD",
        help="expand, reciprocal, a3r or querybank, with settings such as expand,k=5 (default: none)",
    )  # fmt: skip
    p.add_argument("--bank", type=nonempty, metavar="FILE", help="training captions for querybank, one a line")
    p.add_argument(
        "--flips", choices=("none", "max", "mean"), default="none",
        help="also encode mirrored candidates, and take the better of both, or their mean (default: none)",
    )  # fmt: skip
    p.add_argument(
        "--candidates", type=whole(1, MOST_PHOTOS), metavar="N",
        help="photos per query that are sorted anew (default: all of up to 50,000, with --flips 200)",
    )  # fmt: skip


def main(argv: list[str]) -> int:
    """Searches, prints what was found, writes what was asked for. Returns the exit code."""
    args = parsed(parser(), argv)
    queries = _queries(args)
    _check(args, queries)
    search = search_of(args)
    args.model = args.model or _model_of_concepts(args, queries)
    gallery = gallery_of(args, queries, search.rewrite)
    if args.bank:
        search = _with_bank(search, gallery, args.bank)
    how = search_results.How(
        args.rerank,
        args.flips,
        1 + search.top * (search.page - 1),
        _columns(search.where),
        len(queries) == 1 or (not queries and sys.stdin.isatty()),
        args.cut,
    )
    if not queries:
        return _ask(gallery, search, how, args)
    _refuse_photos(gallery, args.sheet)
    found = gallery.search_many(queries, search)
    if args.out or args.sheet or args.link:
        found = list(found)
    _print(found, how, args)
    if args.out or args.sheet or args.link:
        _write(found, gallery, how, args)
    return 0


def parsed(of: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Options and terms; what follows `--` is a term."""
    end = argv.index("--") if "--" in argv else len(argv)
    behind = argv[end + 1 :]
    if not argv[:end] and behind:
        return of.parse_args([*behind[:1], "--", *behind[1:]])
    try:
        args = of.parse_intermixed_args(argv[:end])
    except ConfigError as e:
        if "unrecognized arguments: -" not in str(e):
            raise
        raise ConfigError(
            f"{e}: to subtract a term put - alone in front (- fruit); terms that begin with - stand behind --"
        ) from None
    args.terms = [*args.terms, *behind]
    return args


def _queries(args: argparse.Namespace) -> list[query_terms.Query]:
    """What is asked; nothing where it is to be read from the terminal. Raises `ConfigError` and `DataError`."""
    if args.queries and args.terms:
        raise ConfigError(f"queries must be terms or --queries FILE, got both ({' '.join(args.terms)[:60]})")
    if args.queries:
        found = query_terms.read_queries(Path(args.queries))
        _hint(found)
        return found
    if not args.terms:
        return []
    query = query_terms.parse_terms(args.terms)
    _hint([query])
    return [query]


def _model_of_concepts(args: argparse.Namespace, queries: Sequence[query_terms.Query]) -> str | None:
    """The model that photos are searched with where a concept is asked for; a gallery states its own."""
    files = [term.value for query in queries for term in query.terms if term.kind == "concept"]
    if not files or gallery_store.is_gallery(args.place):
        return None
    return concepts.read_concept(files[0]).model


def _hint(queries: Sequence[query_terms.Query]) -> None:
    """One line on stderr where texts are paths of files."""
    worded = (term.value for query in queries for term in query.terms if term.kind == "text")
    if first := next(filter(is_file, worded), None):
        notice(f"{first} is searched as words; for what the file shows put @ in front: @{first}")


def _check(args: argparse.Namespace, queries: Sequence[query_terms.Query]) -> None:
    """Raises `ConfigError` for options that do not go together, before the work."""
    search_results.check_results_file(args.out)
    contact_sheet.check_sheet(args.sheet)
    if args.link:
        sorted_folders.check_folder(Path(args.link))
    if args.null and not args.filepath_only:
        raise ConfigError("--null must stand beside --filepath-only")
    written = next((f"--{name}" for name in ("out", "sheet", "link") if getattr(args, name)), "")
    if written and not queries:
        raise ConfigError(f"{written} needs a query: name terms, or --queries FILE")
    files = [term.value for query in queries for term in query.terms if term.kind in query_terms.IN_FILES]
    refuse_overwriting(
        [args.out, args.sheet], [*filter(None, (args.queries, args.bank, args.rules)), args.place, *files]
    )
    for condition in args.where:
        row_filters.parse_condition(condition)


def search_of(args: argparse.Namespace) -> galleries.Search:
    """How to search, as the options say; the bank of captions is empty yet. Raises `ConfigError` and `UnknownName`."""
    import numpy as np

    method = gallery_ranking.parse_method(args.rerank)
    needed = args.rerank.split(",")[0].strip() == "querybank"
    if bool(args.bank) != needed:
        raise ConfigError(
            f"--rerank querybank and --bank must stand together, got {'no --bank' if needed else 'one alone'}"
        )
    bank = np.ones((1, 1)) if needed else None
    ranking = gallery_ranking.Ranking(method, bank, args.flips, args.candidates or 0)
    return galleries.Search(
        top=args.top or (ABOVE_LINE if args.cut else 10), page=args.page, where=tuple(args.where), unique=args.unique,
        cut=args.cut, line=args.line, rewrite=query_rules.load_rules(args.rules) if args.rules else str,
        truncate=args.truncate, ranking=ranking, exact=args.exact,
    )  # fmt: skip


def _with_bank(search: galleries.Search, gallery: galleries.Gallery, file: str) -> galleries.Search:
    from dataclasses import replace

    captions = [line for line in texts.read_lines(file) if line]
    if not captions:
        raise ConfigError(f"{file} must hold training captions, one a line, got none")
    bank = query_features.text_features(gallery.source, [search.rewrite(c) for c in captions], truncate=True)
    return replace(search, ranking=replace(search.ranking, bank=bank))


def gallery_of(
    args: argparse.Namespace, queries: Sequence[query_terms.Query], rewrite: Callable[[str], str] = str
) -> galleries.Gallery:
    """The gallery that is named, or that of the photos. Raises `ConfigError` for another model than the gallery's, and
    `DataError` for a text of `queries` that its model can't read, before photos are encoded."""
    if gallery_store.is_gallery(args.place):
        if args.family or args.dtype:
            raise ConfigError(
                f"{args.place} is a gallery, which states family and dtype: leave --family and --dtype out"
            )
        if args.root and not Path(args.root).is_dir():
            raise ConfigError(f"--root must be the folder where the photos lie now, got {args.root}: no such folder")
        gallery = galleries.Gallery.open(args.place, args.root or "")
        return gallery.with_model(args.model) if args.model else gallery
    if args.root:
        raise ConfigError(f"--root is for galleries, and {args.place} is none: leave it out")
    model = args.model or default_model()
    texts = [] if args.truncate else [rewrite(term.value) for q in queries for term in q.terms if term.kind == "text"]
    return photo_galleries.gallery_of_photos(args.place, model, args.family, args.dtype or "fp32", texts)


def _columns(where: Sequence[str]) -> tuple[str, ...]:
    """Columns that conditions name, beside those that a table has anyway."""
    named = (row_filters.parse_condition(text).column for text in where)
    return tuple(dict.fromkeys(name for name in named if name not in gallery_store.FIXED))


def _refuse_photos(gallery: galleries.Gallery, sheet: str | None) -> None:
    """Raises `ConfigError` where a picture would be written over a photo of the gallery."""
    if sheet and os.path.lexists(sheet) and not sheet.lower().endswith(".html"):
        refuse_overwriting([sheet], (gallery.path_of(row) for row in range(len(gallery))))


def _print(
    found: Sequence[galleries.Found] | Iterator[galleries.Found], how: search_results.How, args: argparse.Namespace
) -> None:
    """Each query as soon as it is answered."""
    if args.csv:
        return _raw(search_results.csv_text(list(found), how))
    for place, answer in enumerate(found):
        _print_one(answer, how, args, gap=place > 0)
    return None


def _print_one(answer: galleries.Found, how: search_results.How, args: argparse.Namespace, gap: bool = False) -> None:
    if args.filepath_only:
        _raw(search_results.paths_text([answer], "\0" if args.null else "\n"))
        if not args.null and any("\n" in hit.path for hit in answer.hits):
            notice("a path holds a line break: use --null")
    elif args.json:
        _raw(search_results.json_line(answer, how))
    else:
        say(("\n" if gap else "") + search_results.show_answer(answer, how))
    if answer.uses_other_queries and not gap:
        notice(search_results.OTHERS)


def _raw(text: str) -> None:
    """As it is: names need not be UTF-8, and JSON has no line that is too long."""
    sys.stdout.flush()
    out = getattr(sys.stdout, "buffer", None)
    if out is None:  # a notebook
        sys.stdout.write(text)
    else:
        out.write(text.encode("utf-8", "surrogateescape"))
        out.flush()


def _write(
    found: Sequence[galleries.Found], gallery: galleries.Gallery, how: search_results.How, args: argparse.Namespace
) -> None:
    if args.out:
        search_results.write_results(found, args.out, how)
    if args.sheet:
        upright = bool(gallery.store.manifest.preprocess.get("upright", True))
        search_sheet.write_search_sheet(args.sheet, found, gallery.photo_at, how, upright)
    for name in filter(None, (args.out, args.sheet)):
        notice(f"written: {name}")
    if args.link:
        placed = search_results.plan_links(found, Path(args.link))
        manifest = sorted_folders.place(placed, Path(args.link), "link")
        notice(
            f"{counted(len(placed), 'link')} in {args.link}; `jclip unsort {shlex.quote(str(manifest))}` removes them"
        )


def _ask(
    gallery: galleries.Gallery, search: galleries.Search, how: search_results.How, args: argparse.Namespace
) -> int:
    """Answers lines of the terminal or of a pipe; what is wrong with one is said, and the next is read."""
    code = 0
    for line in _lines(gallery):
        try:
            query = query_terms.parse_typed(line)
            _hint([query])
            _print(gallery.search_many([query], search), how, args)
        except JclipError as e:
            notice(f"jclip search: {e}")
            code = e.exit_code
    return 0 if sys.stdin.isatty() else code


def _lines(gallery: galleries.Gallery) -> Iterator[str]:
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    if not sys.stdin.isatty():
        yield from (line for line in map(str.strip, sys.stdin) if line)
        return
    query_features.warm_up(gallery.source)
    notice(
        f"{counted(len(gallery), 'photo')}; a query a line, such as 2:dog + ./pool.jpg - fruit; `exit` or Ctrl-D ends"
    )
    yield from _typed(input)


def _typed(read: Callable[[str], str]) -> Iterator[str]:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - lines are edited and remembered
    while True:
        try:
            line = read("search: ").strip()
        except EOFError:
            say("")
            return
        if line in LEAVE:
            return
        if line:
            yield line
