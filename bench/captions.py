"""CPU seconds of one core for labelling, reading, writing and making 100,000 captions, and labels against boxes.

    python bench/captions.py [--data ../shared/data/coco] [--count 100000]

The captions are COCO val2017's, repeated. Labels are compared with the annotated boxes of the photos that have both.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jclip.data.caption_formats import label_files
from jclip.data.labelled_captions import read_captions, write_captions
from jclip.data.lexicons import KINDS, load_lexicon
from jclip.data.nouns import Labeller
from jclip.data.scene_captions import template_captions


def timed(what: str, work: Callable[[], Any]) -> Any:
    """Prints the CPU seconds of `work` and returns its result."""
    start = time.process_time()
    result = work()
    print(f"{what:<44}{time.process_time() - start:6.2f} s")
    return result


def speed(values: dict, count: int, folder: Path) -> None:
    """Each step of `jclip captions` on `count` captions."""
    rows = [*islice(cycle(values["annotations"]), count)]
    texts = [row["caption"] for row in rows]
    for named in ("coco", "nuswide"):
        for kind in KINDS:
            labeller = Labeller(load_lexicon(named, kind))
            timed(f"label, {named} {kind}", lambda labeller=labeller: labeller.targets(texts))
    source, out = folder / "captions.json", folder / "labelled.jsonl"
    source.write_text(json.dumps({"annotations": rows}), encoding="utf-8")
    captions, _ = timed("read a file and label", lambda: label_files([source], Labeller(load_lexicon("coco"))))
    timed("write", lambda: write_captions(out, captions))
    timed("read labelled captions", lambda: read_captions(out, captions.classnames))
    for named in ("coco", "nuswide"):
        timed(f"make by templates, {named}", lambda named=named: template_captions(load_lexicon(named), 0, count))


def quality(values: dict, photos: list[dict]) -> None:
    """Precision of the labels, and recall of the boxes' classes, over single captions."""
    captions = defaultdict(list)
    for row in values["annotations"]:
        captions[row["image_id"]].append(row["caption"])
    boxed = {int(p["image"][:12]): {*p["labels"]} for p in photos if p["annotated"] and p["split"] == "val2017"}
    for kind in KINDS:
        labeller = Labeller(load_lexicon("coco", kind))
        right = named = there = 0
        for photo, truth in boxed.items():
            for text in captions[photo]:
                found = {labeller.lexicon.classnames[label] for label in labeller.label(text)[0]}
                right, named, there = right + len(found & truth), named + len(found), there + len(truth)
        print(
            f"{kind}: precision {right / named:.3f}, recall {right / there:.3f} ({right} of {named} labels, {there} wanted)"
        )


def main() -> None:
    """Prints both."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "coco")
    p.add_argument("--count", type=int, default=100_000)
    args = p.parse_args()
    values = json.loads((args.data / "captions_val2017.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        speed(values, args.count, Path(folder))
    quality(values, json.loads((args.data / "coco.json").read_text(encoding="utf-8"))["images"])


if __name__ == "__main__":
    main()
