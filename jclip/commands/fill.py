"""`jclip fill`: missing attributes of photos, filled by zero-shot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jclip.choices import default_model
from jclip.commands import shared_parts
from jclip.commands.arguments import BY_NAME, Parser, add_shared, nonempty, number
from jclip.data import attribute_tables
from jclip.errors import ConfigError, counted, quoted, say
from jclip.features import attribute_filling
from jclip.features import source as sources
from jclip.paths import naming, refuse_overwriting, replacing
from jclip.report import predictions


def main(argv: list[str]) -> int:
    """Fills missing attributes of photos (a colour, a type) with the values whose text is nearest to the photo. Given
    values stay. Writes the table with the filled values, of each its probability and margin, and the text of all values
    as `completed`. docs/retrieval.md walks through it."""
    args = parser().parse_args(argv)
    path = Path(args.table)
    if not path.name:
        raise ConfigError(f"the table must be a file, got {quoted(args.table)}")
    out = Path(args.out or path.with_name(f"{path.stem}_filled.csv"))
    if out.suffix.lower() not in (".csv", ".txt"):
        raise ConfigError(f"--out must end in .csv or .txt, got {quoted(str(out))}")
    table = _table(args)
    files = {out.with_suffix(".csv"): attribute_tables.table_bytes}
    if out.suffix.lower() == ".txt":
        files[out] = attribute_tables.dollar_bytes
        if not table.numbered:
            attribute_tables.dollar_bytes(table)  # refuses before the work
    refuse_overwriting(files, [path, *map(table.photo, table.rows)])
    source = _source(args)
    photos = attribute_filling.PhotosToFill(table, source, args.on_error or "stop")
    if not shared_parts.helped("fill", __name__, argv, args, photos).ends:
        return 0
    done = attribute_filling.fill(
        table,
        source,
        min_probability=args.min_probability or 0.0,
        min_margin=args.min_margin or 0.0,
        on_error=args.on_error or "stop",
        photos=photos,
    )
    for file, made in files.items():
        with naming(file), replacing(file) as part:
            part.write_bytes(made(done))
    say(
        predictions.table(
            ["attribute", "missing", "filled", "left empty", "mean probability"], attribute_filling.counts(done)
        )
    )
    say(f"{counted(len(done.rows), 'row')}: {', '.join(map(str, files))}")
    return 0


def job_of(args) -> attribute_filling.PhotosToFill:
    """The photos in parts, which several processes may share."""
    return attribute_filling.PhotosToFill(_table(args), _source(args), args.on_error or "stop")


def _table(args) -> attribute_tables.AttributeTable:
    root = Path(args.root) if args.root else None
    return attribute_tables.read_attribute_table(
        Path(args.table), chosen(args), root, args.image_key, some_absent=args.on_error == "skip"
    )


def _source(args) -> sources.ModelSource:
    return sources.ModelSource(args.model or default_model(), args.family)


def parser() -> Parser:
    """The command's options."""
    p = Parser("jclip fill", description=main.__doc__)
    p.add_argument(
        "table", type=nonempty, metavar="TABLE", help=".csv or .tsv, a column per attribute; or an A3R `$` .txt"
    )
    add_shared(p, "--out", ": .csv, or .txt, the A3R form, with the .csv beside it (default: TABLE_filled.csv)")
    add_shared(p, "--model", BY_NAME)
    add_shared(p, "--family")
    p.add_argument(
        "--preset", default="a3r", metavar="NAME|YAML", help="attributes, their values and template (default: a3r)"
    )
    p.add_argument("--fill", type=nonempty, metavar="a,b", help="which attributes to fill (default: the preset's)")
    p.add_argument(
        "--values", action="append", default=[], metavar="NAME=a,b,c",
        help="values that an attribute may take; NAME= takes those in the table",
    )  # fmt: skip
    p.add_argument("--template", type=nonempty, help="text with attributes in braces, such as 'a {color} {type}'")
    p.add_argument("--root", type=nonempty, metavar="FOLDER", help="folder of the photos (default: the table's)")
    p.add_argument(
        "--image-key", default="", metavar="COLUMN", help="column of photos (default: filepath, photo or image)"
    )
    p.add_argument(
        "--min-probability", type=number(0, 1), metavar="P", help="leave a less probable value empty (default: none)"
    )
    p.add_argument(
        "--min-margin", type=number(0, 2), metavar="M", help="leave a value with less margin empty (default: none)"
    )
    add_shared(p, "--on-error", " (default: stop; skip leaves their rows as they are)")
    shared_parts.add_options(p)
    return p


def chosen(args) -> attribute_tables.Attributes:
    """The preset's attributes, with what the options say otherwise. Raises `ConfigError`."""
    found = attribute_tables.read_attributes(args.preset)
    named = dict(found.attributes)
    for option in args.values:
        name, equals, values = option.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--values must be NAME=a,b,c, got {quoted(option)}")
        named[name.strip()] = [value.strip() for value in values.split(",") if value.strip()]
    given = {"template": args.template, "fill": args.fill and tuple(n.strip() for n in args.fill.split(","))}
    return replace(found, attributes=named, **{key: value for key, value in given.items() if value})
