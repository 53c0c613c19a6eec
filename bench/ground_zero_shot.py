"""Phrases found without training: python bench/ground_zero_shot.py [--scenes N] [--part test|val|unseen] [--photos FOLDER].

Scenes of the embedded world, each phrase's box chosen by the weights of shapes-tiny-rn alone: among the scene's true boxes
(ReCLIP, whole and without its parts), and without any boxes. Then how well the support value tells phrases of things that
are there from phrases of others, and with --photos the same on the rows of RefCOCOs whose photos are there, by ViT-B/32
with random weights, which say nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import finetune  # noqa: F401 - offers its recipes
from jclip.cli import main as jclip
from jclip.config import BoxDataConfig
from jclip.data import read_box_file
from jclip.data.box_samples import BoxSamples, world_samples
from jclip.data.photo_file import open_photo
from jclip.features.box_proposals import PROMPT, BoxScorer, ProposalRules, TextFeatures, crop_support, text_feature
from jclip.features.rough_boxes import RoughScorer
from jclip.features.source import ModelSource
from jclip.functional.boxes import iou
from jclip.functional.directions import unit
from jclip.model import dense_map
from jclip.postponed import jt
from jclip.report import predictions
from jclip.report.grounder import Grounder
from jclip.train.box_training import auroc
from jclip.train.run_folder import existing_run

SIDE = 64
WAYS = {  # among true boxes
    "crop and blurred surround, rules": ProposalRules(),
    "the same, the paper's words alone": ProposalRules(published=True),
    "crop and blurred surround": ProposalRules(places=False),
    "crop, rules": ProposalRules(views=("crop",)),
    "blurred surround, rules": ProposalRules(views=("blur",)),
}


def samples_of(part: str, scenes: int) -> BoxSamples:
    """Scenes of a part."""
    counts = {f"{name}scenes": scenes for name in ("", "val_", "test_", "unseen_")}
    return world_samples(BoxDataConfig(**counts), part, SIDE)


def found_among(samples: BoxSamples, find: Callable) -> np.ndarray:
    """(n, 4): the box of each phrase; find(photo, true boxes, phrases) → boxes."""
    found = np.zeros((len(samples), 4))
    for photo in range(len(samples.photos)):
        rows = np.flatnonzero(samples.of == photo)
        phrases = [samples.phrases[row] for row in rows]
        found[rows] = find(samples.photo(photo), samples.boxes[rows].astype(float), phrases)
    return found


def of_proposals(source: ModelSource, rules: ProposalRules) -> Callable:
    """ReCLIP's choice among the true boxes."""
    scorer = BoxScorer([source], rules)
    return lambda photo, boxes, phrases: [boxes[one.best] for one in scorer(photo, boxes, phrases)]


def roughly(source: ModelSource) -> Callable:
    """A box of the maps."""
    scorer = RoughScorer(source)
    return lambda photo, _, phrases: [boxes[one.best] for boxes, one in scorer(photo, phrases)]


def by_quarter(source: ModelSource) -> Callable:
    """The bar: the mean training box of the quarter whose place has the highest cosine with the phrase."""
    train = samples_of("train", 500)
    quarters = _quarter((train.boxes[:, :2] + train.boxes[:, 2:]) / 2)
    means = np.stack([train.boxes[quarters == q].mean(axis=0) for q in range(4)])

    def find(photo, _, phrases):
        with jt.no_grad():
            cells = dense_map.dense_map(source.model, source.preprocess(photo)[None])[1].numpy()[0]
        texts = np.stack([text_feature(source, PROMPT.replace("{phrase}", phrase)) for phrase in phrases])
        return means[(texts @ unit(cells).T).argmax(axis=1)]

    return find


def _quarter(centres: np.ndarray) -> np.ndarray:
    return (centres[:, 0] > SIDE / 2) + 2 * (centres[:, 1] > SIDE / 2)


def row(name: str, samples: BoxSamples, found: np.ndarray) -> list[str]:
    """A line of the table."""
    overlaps = iou(found, samples.boxes)
    sides = np.array([phrase.endswith(("left", "right", "top", "bottom")) for phrase in samples.phrases])
    shares = [(overlaps[rows] >= 0.5).mean() if rows.any() else np.nan for rows in (sides | ~sides, ~sides, sides)]
    return [name, *(f"{share:.3f}" for share in shares), f"{overlaps.mean():.3f}"]


def accuracy(samples: BoxSamples, source: ModelSource) -> None:
    """The table of all ways."""
    ways = {f"true boxes: {name}": of_proposals(source, rules) for name, rules in WAYS.items()}
    ways |= {"no boxes: rough": roughly(source), "no boxes: mean box of the best quarter": by_quarter(source)}
    rows = [row(name, samples, found_among(samples, find)) for name, find in ways.items()]
    print(predictions.table(["", "Acc@0.5", "no side", "with side", "mean IoU"], rows), flush=True)


def support(samples: BoxSamples, source: ModelSource) -> None:
    """AUROC of the support value, and of `present`, between a scene's phrases and as many of other scenes."""
    absent = samples.absent_phrases(np.arange(len(samples)), np.random.default_rng(0))
    run = Grounder.load(existing_run("shapes-tiny-ground"))
    rough, rows, chances = RoughScorer(source), {"run": ([], []), "rough": ([], [])}, ([], [])
    for photo in range(len(samples.photos)):
        own, picture = np.flatnonzero(samples.of == photo), samples.photo(photo)
        for there, phrases in enumerate(([absent[i] for i in own], [samples.phrases[i] for i in own])):
            things = run.predict(picture, phrases, support=True)
            rows["run"][there].extend(thing.support for thing in things)
            chances[there].extend(thing.present for thing in things)
            rows["rough"][there].extend(one.cosines[one.best] for _, one in rough(picture, phrases))
    for name, (of_absent, of_present) in rows.items():
        print(f"AUROC of the support value, boxes of {name}: {auroc(np.array(of_present), np.array(of_absent)):.3f}")
    if None not in chances[0]:
        print(f"AUROC of the run's present: {auroc(np.array(chances[1]), np.array(chances[0])):.3f}", flush=True)


def of_photos(folder: Path) -> None:
    """The support value on RefCOCOs' rows whose photos are there, by random weights."""
    rows = read_box_file(folder / "refcocos_test_full.json").rows
    there = {path.name: path for path in (folder / "images").iterdir()}
    rows = [row for row in rows if Path(row.image).name in there]
    with tempfile.TemporaryDirectory() as place:
        jclip(["models", "--random", "ViT-B/32", "--out", f"{place}/random.safetensors"])
        source = ModelSource(f"{place}/random.safetensors")
        rough, texts, found = RoughScorer(source), TextFeatures(source), ([], [])
        for one in rows:
            photo = open_photo(there[Path(one.image).name]).convert("RGB")
            boxes, scored = rough(photo, [one.phrase])[0]
            own = crop_support(texts, photo, boxes[[scored.best]], [one.phrase])[0]
            found[one.box is not None].append(own)
    print(
        f"{folder}: {len(found[1])} rows with the thing, {len(found[0])} without; AUROC of the support value of rough boxes "
        f"by random weights: {auroc(np.array(found[1]), np.array(found[0])):.3f} (nothing is learned: .5 but for chance)"
    )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--scenes", type=int, default=600)
    p.add_argument("--part", choices=("val", "test", "unseen"), default="test")
    p.add_argument("--photos", type=Path, metavar="FOLDER", help="with refcocos_test_full.json and images/")
    args = p.parse_args()
    samples, source = samples_of(args.part, args.scenes), ModelSource("shapes-tiny-rn")
    print(json.dumps({"part": args.part, "scenes": len(samples.photos), "phrases": len(samples)}))
    accuracy(samples, source)
    support(samples, source)
    if args.photos:
        of_photos(args.photos)


if __name__ == "__main__":
    main()
