"""Teaches what you look for by yes and no: finds photos by a text, asks about those that help most, keeps a concept."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from jclip.commands import search, teach_rounds
from jclip.commands.arguments import Parser, add_shared, nonempty, whole
from jclip.errors import ConfigError, notice, quoted, say
from jclip.features import concepts, lesson
from jclip.paths import refuse_overwriting
from jclip.prompts import query_terms
from jclip.report import contact_sheet

ENDING = query_terms.CONCEPT_ENDING
LONGEST_NAME = 60  # characters of a file that is named after the query
EPILOG = f"""Answer y (yes), n (no) or ? (unsure) for one photo, or for several on one line such as yynn?y. An empty line
shows other photos, u takes the last answer back, a begins an audit (random photos, which show how good it is), q writes the
concept and ends. A concept stands in `jclip search` as a term (concept:FILE{ENDING}), in `jclip tag --classes` as a name,
and in `jclip predict` in place of a run."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip teach", description=__doc__, epilog=EPILOG)
    search.add_gallery(p)
    p.add_argument("terms", nargs="+", metavar="TERM", help="what to begin with, as `jclip search` takes it: a text")
    add_shared(p, "--out", f": the concept, FILE{ENDING} (default: named after the query, in this folder)")
    p.add_argument(
        "--answers", type=nonempty, metavar="FILE",
        help="keep the answers in this file, and go on from those that are there (default: beside the concept)",
    )  # fmt: skip
    p.add_argument("--name", metavar="TEXT", help="what tags and folders are called (default: the query)")
    add_shared(p, "--sheet", ", of the photos that are asked about, written anew for each round")
    p.add_argument("--round", type=whole(1, 1000), default=12, metavar="N", help="photos of a round (default: 12)")
    p.add_argument(
        "--audit", type=whole(4, 10_000), default=40, metavar="N", help="random photos of an audit (default: 40)"
    )
    add_shared(p, "--seed", " of the photos that an audit draws (default: 0)", default=0)
    p.add_argument(
        "--root", type=nonempty, metavar="FOLDER", help="where the photos of a gallery lie now, if they moved"
    )
    search.add_model(p)
    return p


def main(argv: list[str]) -> int:
    """Asks until it is told to end, and writes the concept. Returns the exit code."""
    args = search.parsed(parser(), argv)
    query = query_terms.parse_terms(args.terms)
    name = _name_of(args, query)
    out = Path(args.out or f"{_file_name(query.name)}{ENDING}")
    if out.suffix != ENDING or out.name == ENDING:
        raise ConfigError(f"--out must be a file with the ending {ENDING}, got {quoted(str(out), 200)}")
    answers = Path(args.answers or out.with_name(f"{out.name.removesuffix(ENDING)}.answers.jsonl"))
    _check(args, query, out, answers)
    taught = lesson.Lesson(search.gallery_of(args, [query]), query, answers, args.seed, args.truncate)
    if taught.lost:
        notice(
            f"answers whose photos are not in the gallery any more, or have changed: {taught.lost}, which do not teach"
        )
    try:
        teach_rounds.ask(taught, teach_rounds.Asking(args.round, args.audit, args.sheet))
    except (KeyboardInterrupt, ConfigError):
        notice(f"the answers are kept in {answers}: the same command goes on from them")
        raise
    concept = taught.concept(name)
    concepts.write_concept(out, concept)
    say(teach_rounds.summary(taught))
    say(f"written: {out} ({concept.answers['yes']} yes, {concept.answers['no']} no; answers: {answers})")
    return 0


def _name_of(args: argparse.Namespace, query: query_terms.Query) -> str:
    name = " ".join((query.name if args.name is None else args.name).split())
    if not name:
        raise ConfigError("--name must be a text, got an empty one")
    return name


def _file_name(text: str) -> str:
    """A file's name that says what is looked for."""
    return re.sub(r"\W+", "-", text.lower()).strip("-")[:LONGEST_NAME].rstrip("-") or "concept"


def _check(args: argparse.Namespace, query: query_terms.Query, out: Path, answers: Path) -> None:
    """Raises `ConfigError` for files that do not go together, before the work."""
    contact_sheet.check_sheet(args.sheet)
    files = [term.value for term in query.terms if term.kind in query_terms.IN_FILES]
    written = [str(out), str(answers), *filter(None, [args.sheet])]
    if len({*map(str, map(Path, written))}) < len(written):
        raise ConfigError(f"--out, --answers and --sheet must be different files, got {', '.join(written)}")
    refuse_overwriting(written, [args.place, *files])
