"""Finds phrases in photos: the box of each, by a trained run, among a detector's boxes, or roughly by a model alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jclip.choices import default_model
from jclip.commands.arguments import BY_NAME, Parser, add_shared, nonempty, number
from jclip.data import detector_boxes, photo_file, splits
from jclip.errors import ConfigError, DataError, counted, notice, quoted, say
from jclip.features import box_proposals
from jclip.features import source as sources
from jclip.paths import exists, refuse_overwriting
from jclip.report import box_drawing, found_boxes, grounder, phrase_finder

if TYPE_CHECKING:  # --help answers before NumPy is imported
    from PIL import Image

EPILOG = """Arguments that are files or folders are photos, the rest are phrases; the last is always a phrase. Words of places
(left, behind, bigger than …) have rules with --model. A box comes back in any case: `present` and `support` say what it is
worth. --run shapes-tiny-ground ships with jclip and knows the scenes of `jclip world`."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip ground", description=__doc__, epilog=EPILOG)
    p.add_argument("things", nargs="+", metavar="PHOTO|PHRASE", help="photos or folders of photos, then phrases")
    p.add_argument(
        "--phrase",
        action="append",
        default=[],
        metavar="TEXT",
        help="a phrase, also one that is a file's name; repeatable",
    )
    add_shared(p, "--run", " of the recipe grounding, or shapes-tiny-ground")
    add_shared(
        p, "--model", f"{BY_NAME}; repeated, scores of several are added; beside --run the run's own weights, where the "
        "file has moved", action="append",
    )  # fmt: skip
    p.add_argument(
        "--boxes", type=nonempty, metavar="FILE",
        help="with --model: choose among a detector's boxes, COCO's results as JSON, in pixels of the photo as it is seen",
    )  # fmt: skip
    p.add_argument(
        "--min-score", type=number(-1e6, 1e6), metavar="X", help="of --boxes leave out those with a score below X"
    )
    p.add_argument("--no-rules", action="store_true", help="with --model: words of places have no rules")
    p.add_argument(
        "--draw",
        type=nonempty,
        metavar="OUT",
        help="also draw boxes and phrases: a picture, or of several photos a folder",
    )
    p.add_argument(
        "--attention",
        type=nonempty,
        metavar="OUT",
        help="with --run: also draw where the network looks, as --draw does",
    )
    p.add_argument("--json", action="store_true", help="print a line of JSON per photo in place of the table")
    add_shared(p, "--truncate")
    add_shared(p, "--on-error", " (default: stop for one photo, skip and count of several)")
    add_shared(p, "--family")
    return p


def main(argv: list[str]) -> int:
    """Finds phrases, prints a table or JSON, draws what was asked for. Returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    named, phrases = photos_and_phrases(args.things, args.phrase)
    check(args)
    photos = splits.find_photos(named)
    many = len(photos) > 1 or any(Path(place).is_dir() for place in named)
    drawings = {option: drawing_names(path, photos, many) for option, path in outputs(args).items()}
    refuse_overwriting([name for names in drawings.values() for name in names], [*photos, *filter(None, [args.boxes])])
    finder = finder_of(args, phrases)
    on_error = args.on_error or ("skip" if many else "stop")
    failed: list[str] = []
    rows: list[list[str]] = []
    for at, photo, picture, things, looked in found_in(photos, phrases, finder, on_error, failed):
        if args.json:
            say(found_boxes.json_line(photo, picture.size, finder.way, things))
        rows += found_boxes.table_rows(photo, things)
        draw({option: names[at] for option, names in drawings.items()}, picture, things, looked, finder.way)
    if not args.json:
        say(found_boxes.table(rows))
    if failed:
        notice(f"skipped {len(failed)} of {len(photos)} photos (first: {failed[0]})")
    for option, path in outputs(args).items():
        (notice if args.json else say)(f"written: {path}{'' if option == 'draw' else ' (where the network looks)'}")
    return 0


def photos_and_phrases(things: Sequence[str], phrases: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths and phrases. Raises `ConfigError` where one is lacking or empty, `DataError` for a photo that is not there."""
    last = len(things) if phrases else len(things) - 1
    count = next((i for i, thing in enumerate(things[:last]) if not exists(thing)), last)
    named, said = [*things[:count]], [*things[count:], *phrases]
    if any(not phrase.strip() for phrase in said):
        raise ConfigError("a phrase must not be empty, got ''")
    if not named:
        if last or not exists(things[0]):
            raise DataError(f"no such photo or folder: {quoted(things[0])}")
        raise ConfigError(f'name what to find in {quoted(things[0])}: a phrase such as "the red one"')
    for phrase in things[count:]:
        if Path(phrase).suffix.lower() in photo_file.PHOTO_ENDINGS:
            if exists(phrase):
                raise ConfigError(
                    f"photos must stand before phrases, got {quoted(phrase)} (a phrase of that name: --phrase)"
                )
            raise DataError(f"no such photo: {quoted(phrase)} (a phrase of that name: --phrase)")
    return named, list(dict.fromkeys(said))


def check(args: argparse.Namespace) -> None:
    """Raises `ConfigError` for options that do not fit each other."""
    models = args.model or []
    for given, option, of in (
        (args.run and args.boxes, "--boxes", "--model, without --run"),
        (args.run and args.no_rules, "--no-rules", "--model, without --run"),
        (not args.run and args.attention, "--attention", "--run"),
        (args.min_score is not None and not args.boxes, "--min-score", "--boxes"),
    ):  # fmt: skip
        if given:
            raise ConfigError(f"{option} must stand beside {of}")
    if args.run and len(models) > 1:
        raise ConfigError(f"--model must name one model beside --run, got {len(models)}")
    if len(models) > 1 and not args.boxes:
        raise ConfigError(f"several models must stand beside --boxes, got {len(models)}")


def outputs(args: argparse.Namespace) -> dict[str, str]:
    """The pictures that were asked for, by option."""
    return {option: path for option in ("draw", "attention") if (path := getattr(args, option))}


def drawing_names(path: str, photos: Sequence[str], many: bool) -> list[str]:
    """Where the drawing of each photo goes: the file itself, or of several photos one each in that folder."""
    if not many:
        box_drawing.check_drawing(path)
        return [path]
    if Path(path).suffix.lower() in box_drawing.SUFFIXES or Path(path).is_file():
        raise ConfigError(f"the drawings of {counted(len(photos), 'photo')} need a folder, got {quoted(path)}")
    names, taken = [], set()
    for photo in photos:
        name, copy = f"{Path(photo).stem}.png", 2
        while name in taken:
            name, copy = f"{Path(photo).stem}_{copy}.png", copy + 1
        taken.add(name)
        names.append(str(Path(path) / name))
    return names


def finder_of(args: argparse.Namespace, phrases: Sequence[str]) -> phrase_finder.PhraseFinder:
    """What finds phrases in a photo as the options say. Raises `ConfigError`, and `DataError` for a phrase that is too
    long."""
    if args.run:
        (model,) = args.model or [""]
        finder = phrase_finder.RunFinder.load(args.run, model, bool(args.attention), args.truncate)
    else:
        proposed = detector_boxes.read_detector_boxes(args.boxes) if args.boxes else None
        models = [sources.ModelSource(name, args.family) for name in args.model or [default_model()]]
        rules = box_proposals.ProposalRules(places=not args.no_rules)
        if proposed is None:
            finder = phrase_finder.RoughFinder(models[0], rules, args.truncate)
        else:
            finder = phrase_finder.ProposalFinder(models, proposed, rules, args.min_score, args.truncate)
    finder.check(phrases)
    return finder


def found_in(
    photos: Sequence[str], phrases: Sequence[str], finder: phrase_finder.PhraseFinder, on_error: str, failed: list[str]
) -> Iterator[tuple[int, str, Image.Image, list[Any], Any]]:
    """Number, path, picture, and what the finder says of each photo that decodes and has proposals; `failed` receives what
    others lack."""
    for at, photo in enumerate(photos):
        try:
            picture = grounder.opened(photo)
            things, looked = finder(picture, photo, phrases)
        except DataError as e:
            if on_error == "stop":
                raise
            failed.append(str(e))
            continue
        yield at, photo, picture, things, looked
    if len(failed) == len(photos):
        raise DataError(f"none of {counted(len(photos), 'photo')} can be searched: {failed[0]}")


def draw(
    drawings: dict[str, str], picture: Image.Image, things: Sequence[grounder.FoundThing], looked: Any, kind: str
) -> None:
    """Writes the drawings of one photo, by option."""
    for option, name in drawings.items():
        if option == "draw":
            made = box_drawing.draw_boxes(picture, found_boxes.drawn(things, kind))
        else:
            made = box_drawing.draw_attention(picture, looked)
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        box_drawing.save_drawing(name, made)
