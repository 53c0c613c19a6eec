"""docs/grounding.png: what the run that ships finds, a scene per drawing style: python bench/grounding_picture.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import finetune  # noqa: F401 - offers its recipes
from jclip.data import shapes
from jclip.report import box_drawing, found_boxes
from jclip.report.grounder import Grounder

SIDE, COLUMNS, SEED = 320, 3, 41


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--out", default="docs/grounding.png")
    p.add_argument("--run", default="shapes-tiny-ground")
    args = p.parse_args()
    run, panels = Grounder.load(args.run), []
    for number, style in enumerate(shapes.STYLES):
        scene = shapes.draw_scene((SEED, number), pairs=shapes.SEEN_PAIRS, styles=(style,), count=(3, 3))
        photo = scene.render(SIDE)
        things = run.predict(photo, scene.phrases())
        drawing = box_drawing.draw_boxes(photo, found_boxes.drawn(things, "network"))
        panels.append(drawing.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    sheet = Image.new("RGB", (COLUMNS * SIDE, len(panels) // COLUMNS * SIDE))
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number % COLUMNS * SIDE, number // COLUMNS * SIDE))
    box_drawing.save_drawing(args.out, sheet.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE))
    print(f"written: {args.out}, styles {', '.join(shapes.STYLES)}")


if __name__ == "__main__":
    main()
