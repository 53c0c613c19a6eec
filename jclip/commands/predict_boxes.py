"""`jclip predict` with runs of grounding: the boxes of a file's phrases, measured where true ones are known."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jclip.data import box_files, box_predictions, box_rows, photo_file
from jclip.errors import ConfigError, DataError, notice, say
from jclip.report import box_measures, grounder

if TYPE_CHECKING:  # help answers before NumPy is imported
    import numpy as np


ENDINGS = (".jsonl", ".json")
OUT = "results/boxes.jsonl"


def out_of(args: argparse.Namespace, default: str) -> str:
    """Where boxes are written. Raises `ConfigError` for another ending."""
    out = OUT if args.out == default else args.out
    if Path(out).suffix.lower() not in ENDINGS:
        raise ConfigError(f"boxes are written as {' or '.join(ENDINGS)} (COCO's results), got {out}")
    return out


def predict_boxes(done: grounder.Grounder, places: Sequence[str], out: str, args: argparse.Namespace) -> int:
    """Writes the boxes of the phrases of one file; prints how right they are, and writes the worst as --sheet.

    Each photo is encoded once. Raises `ConfigError` for no file or several, `DataError` as `read_box_file` does and, unless
    --on-error skips them, for photos that do not decode.
    """
    if len(places) != 1:
        raise ConfigError(
            f"name one file of photos and phrases, in a form of `jclip boxes`, got {len(places)} (`jclip ground` takes photos)"
        )
    root = args.root or str(Path(places[0]).parent)
    file = box_files.read_box_file(places[0], photos=root, max_bad=1.0 if args.on_error == "skip" else 0.0)
    rows, corners, present = found_boxes(done, file.rows, Path(root), args.on_error == "skip")
    if Path(out).suffix.lower() == ".json":
        box_predictions.write_coco_results(out, rows, corners, present)
    else:
        box_predictions.write_prediction_lines(out, rows, corners, present, present)
    written = [f"{out} ({len(rows)} phrases)"]
    if any(row.box is not None for row in rows):
        chances = () if present is None else present.tolist()
        measured = box_measures.measured_boxes(rows, corners[:, None], present=chances)
        say(measured.tables())
        if args.sheet:
            box_measures.write_worst(args.sheet, measured, root)
            written.append(args.sheet)
    elif args.sheet:
        raise ConfigError(
            f"--sheet shows the worst boxes, for which {places[0]} must have true ones: draw with `jclip ground`"
        )
    say(f"written: {', '.join(written)}")
    return 0


def found_boxes(
    done: grounder.Grounder, rows: Sequence[box_rows.BoxRow], root: Path, skip: bool
) -> tuple[list[box_rows.BoxRow], np.ndarray, np.ndarray | None]:
    """The rows whose photos decode, photo by photo in the order of the first of each; corners (N, 4) in pixels of the photo as
    it is stored, and (N,) the probability that the thing is there, of runs that learned it."""
    import numpy as np
    from PIL import Image

    _report_long(done, rows)
    of: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        of.setdefault(row.image, []).append(number)
    things, lost = {}, []
    for image, numbers in of.items():
        try:
            pixels = np.asarray(photo_file.open_photo(root / image, upright=False).convert("RGB"))
        except DataError as e:
            if not skip:
                raise
            lost.append(f"{image}: {e}")
            continue
        picture = Image.fromarray(pixels)  # without an EXIF rotation, which boxes of a file do not know
        found = done.predict(picture, [rows[n].phrase for n in numbers], truncate=True)
        things.update(zip(numbers, found, strict=True))
    if lost:
        notice(f"{len(lost)} of {len(of)} photos do not decode and are left out (first: {lost[0]})")
    if not things:
        raise DataError(f"no photo below {root} could be opened")
    kept = sorted(things)
    present = [things[n].present for n in kept]
    chances = None if None in present else np.array(present, float)
    return [rows[n] for n in kept], np.array([things[n].box for n in kept], float), chances


def _report_long(done: grounder.Grounder, rows: Sequence[box_rows.BoxRow]) -> None:
    """Says how many phrases the text tower does not hold: they are cut before their end token."""
    source, prompt = done.source, done.config.reading.prompt
    phrases = dict.fromkeys(row.phrase for row in rows)
    cut = []
    for phrase in phrases:
        try:
            source.tokenize([prompt.replace("{phrase}", phrase.lower())])
        except (ConfigError, DataError, ValueError):
            cut.append(phrase)
    if cut:
        of_rows, most = sum(row.phrase in {*cut} for row in rows), source.config.text.context_length
        notice(f"{of_rows} of {len(rows)} phrases are longer than the text tower's {most} tokens: they are cut")
