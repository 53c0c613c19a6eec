"""Tags without training on drawn scenes: mAP and F1 of each method, as a table in Markdown.

python bench/tagging.py [--model shapes-tiny-rn] [--scenes 800] [--draws 1 2 3]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jclip.data.shapes import CLASSNAMES, SEEN_STYLES, draw_scene
from jclip.features.source import ModelSource
from jclip.features.tagging import Tagger
from jclip.functional.local_to_global import normalised_both_ways
from jclip.functional.metrics import average_precisions
from jclip.prompts.background_names import BACKGROUNDS
from jclip.report.tags import Tags

ROWS = {  # what a row is called → options of `Tagger`
    "`places`, background names": {"method": "places", "background": BACKGROUNDS["coco"]},
    "`places`": {"method": "places", "background": ()},
    "`dense`": {"method": "dense", "background": ()},
    "`whole` with `--windows 2`": {"method": "whole", "background": (), "windows": (2,)},
    "`whole`": {"method": "whole", "background": ()},
}


def measured(source: ModelSource, photos: list[str], there: np.ndarray, options: dict) -> tuple[float, float, float]:
    """mAP, F1 over all decisions of the default threshold, mAP normalised both ways."""
    found = Tagger(source, CLASSNAMES, **options).scored(photos)
    has = Tags(found.photos, CLASSNAMES, found.scores, found.background, logits=found.logits).has
    mean_ap = (
        float(np.nanmean(average_precisions(scores, there)))
        for scores in (found.scores, normalised_both_ways(found.scores))
    )
    plain, normalised = mean_ap
    return 100 * plain, float(2 * (has & there).sum() / (has.sum() + there.sum())), 100 * normalised


def main() -> None:
    """Draws, scores, prints."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default="shapes-tiny-rn")
    p.add_argument("--scenes", type=int, default=800)
    p.add_argument("--draws", type=int, nargs="+", default=[1, 2, 3])
    args = p.parse_args()
    source, rows = ModelSource(args.model), {name: [] for name in ROWS}
    for draw in args.draws:
        scenes = [draw_scene((draw, i), styles=SEEN_STYLES, count=(2, 4)) for i in range(args.scenes)]
        there = np.array([[name in scene.labels for name in CLASSNAMES] for scene in scenes])
        with tempfile.TemporaryDirectory() as folder:
            photos = [str(Path(folder, f"{i:05}.png")) for i in range(len(scenes))]
            for photo, scene in zip(photos, scenes, strict=True):
                scene.render(64).save(photo)
            for name, options in ROWS.items():
                rows[name].append(measured(source, photos, there, options))
    print("| method | mAP | F1 | mAP with `--per-class-norm` |\n|---|---|---|---|")
    for name, figures in rows.items():
        plain, f1, normalised = np.mean(figures, axis=0)
        print(f"| {name} | {plain:.1f} | {f1:.3f} | {normalised:.1f} |")


if __name__ == "__main__":
    main()
