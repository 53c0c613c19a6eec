"""Re-ranking on real CLIP features: 35 texts against 8,519 photos, 17 to 400 of them right for a text.

    python bench/rerank.py [--features ../shared/data/clip_vitb32_features] [--json FILE]

Queries: the text features of `caltech_lvis.npz`, one per class, of the prompt "a <name>" (OpenAI's ViT-B/32). Gallery: the
photos of `caltech101.npz`, validation then test, then those of `oxford_pets.npz`, validation then test. All features are
made length one in float64. Right for a text are the photos of its Caltech-101 class; the others, and all pets, are not.

35 texts are few and no setting was held out: the table shows directions, it proves no ranking of methods.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jclip.functional.ranking_metrics import order_report
from jclip.functional.reranking import A3R, METHODS, Expand, Method, Photos, Plain, Reciprocal, rerank

ROWS: dict[str, Method] = {
    "text alone": Plain(),
    "expand, mixed with the text, spread of all queries": Expand(spread="all"),
    "expand, mixed with the text, spread of the query": Expand(),
    "expand, in place of the text": Expand(mix=0.0),
    "expand, k 5": Expand(k=5, spread="all"),
    "expand, k 20": Expand(k=20, spread="all"),
    "expand, k 50": Expand(k=50, spread="all"),
    "reciprocal": Reciprocal(),
    "a3r, quantised as published": A3R(form="quantised"),
    "a3r, bounded": A3R(),
    "a3r, bounded, adapted query of 10": A3R(adapted=10),
}
FIGURES = ("map", "map@10", "map@10_of_found")


def main() -> int:
    """Prints the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--features", type=Path, default=ROOT.parent / "shared" / "data" / "clip_vitb32_features")
    p.add_argument("--json", type=Path, help="also write the figures, unrounded")
    args = p.parse_args()
    if not args.features.is_dir():
        print(f"real features not found at {args.features}: name their folder by --features", file=sys.stderr)
        return 2
    texts, photos, wanted = real_search(args.features)
    print(f"{len(texts)} texts, {len(photos.features)} photos   (* uses the other texts)")
    print(f"{'':<54}{'mAP':>7}{'mAP@10':>9}{'official@10':>13}")
    found = {}
    for name, method in ROWS.items():
        found[name] = order_report(rerank(method, texts, photos), wanted)
        cells = [f"{100 * found[name][figure]:.2f}" for figure in FIGURES]
        print(f"{name + ' *' * method.uses_other_queries:<54}{cells[0]:>7}{cells[1]:>9}{cells[2]:>13}")
    kinds = {kind for kind, of in METHODS.items() if any(isinstance(method, of) for method in ROWS.values())}
    print(f"not in the table: {', '.join(sorted({*METHODS} - kinds))} (there are no training captions here)")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def real_search(folder: Path) -> tuple[np.ndarray, Photos, np.ndarray]:
    """Texts (35, 512), the gallery, and (35, 8519) true where a photo is of a text's class."""
    texts, caltech, pets = (np.load(folder / f"{n}.npz") for n in ("caltech_lvis", "caltech101", "oxford_pets"))
    names = [name.replace("_", " ") for name in caltech["classnames"].tolist()]
    own = np.concatenate([caltech["val_l"], caltech["test_l"]])
    labels = np.concatenate([own, np.full(len(pets["val_l"]) + len(pets["test_l"]), -1)])
    features = [caltech["val_f"], caltech["test_f"], pets["val_f"], pets["test_f"]]
    wanted = np.stack([labels == names.index(name) for name in texts["classnames"].tolist()])
    return texts["text_features"], Photos(np.concatenate(features)), wanted


if __name__ == "__main__":
    sys.exit(main())
