"""How far a data type moves features from float32's, and what that would do to the answers of real features.

    python bench/dtype_accuracy.py [--models ViT-B/32 …] [--dtypes bf16 int8] [--photos FOLDER] [--features FILE.npz]

Towers have random weights, once as they are initialised and once with the outliers that trained ones are known for: of what a
norm hands on, every 96th channel is 10 times as large and the next matrix's column a tenth, which float32 does not see.
--features: an .npz with text_features, test_features and test_labels: rows are moved in random directions (20
draws) as far as the median and the worst photo was, as initialised.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
EVERY, TIMES, DRAWS = 96, 10.0, 20


def main() -> int:
    """Prints a line per model and data type."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", nargs="+", default=["ViT-B/32", "ViT-B/16"])
    p.add_argument("--dtypes", nargs="+", default=["bf16", "int8"])
    p.add_argument("--photos", type=Path, help="a folder of photos (default: noise)")
    p.add_argument("--count", type=int, default=16)
    p.add_argument("--features", type=Path)
    args = p.parse_args()
    for name in args.models:
        for outliers in (False, True):
            moved = cosines(name, args.dtypes, args.photos, args.count, outliers)
            for dtype, (plain, centred) in moved.items():
                kind = "with outliers" if outliers else "as initialised"
                print(
                    f"{name} {dtype}, {kind}: cosine median {np.median(plain):.6f}, least {plain.min():.6f}; "
                    f"without the mean feature median {np.median(centred):.6f}, least {centred.min():.6f}", flush=True
                )  # fmt: skip
                if args.features and not outliers:
                    for which, cosine in (("median", np.median(plain)), ("least", plain.min())):
                        print(f"  real features moved to the {which}: {answers(args.features, float(cosine))}")
    return 0


def cosines(name: str, dtypes: list[str], photos: Path | None, count: int, outliers: bool) -> dict[str, tuple]:
    """dtype → cosines (n,) to float32's features, as they are and without float32's mean."""
    from jclip.model.clip import CLIP
    from jclip.runtime import jt
    from jclip.weights.checkpoint import load_strict
    from jclip.weights.variants import VARIANTS

    model = CLIP(VARIANTS[name])
    model.eval()
    if outliers:
        enlarge(model)
    jt.sync_all()
    pixels = photo_pixels(photos, model.config, count)
    arrays = {k: v.numpy() for k, v in model.state_dict().items()}

    def features():
        with jt.no_grad():
            return np.concatenate([model.encode_image(pixels[i : i + 8]).numpy() for i in range(0, len(pixels), 8)])

    wide, found = features(), {}
    for dtype in dtypes:
        made = CLIP(VARIANTS[name])
        load_strict(made, arrays, name)
        made.eval()
        model = made.to(dtype)
        narrow, mean = features(), wide.mean(axis=0)
        found[dtype] = cosine(wide, narrow), cosine(wide - mean, narrow - mean)
    return found


def enlarge(model) -> None:
    """Some channels of each norm in a block, other ones in each, `TIMES` as large, and what reads them as much smaller."""
    from jclip.runtime import jt

    for number, block in enumerate(model.visual.transformer.resblocks):
        for norm, layer, name in ((block.ln_1, block.attn, "in_proj_weight"), (block.ln_2, block.mlp.c_fc, "weight")):
            factor = np.ones(norm.weight.shape[0], np.float32)
            factor[number % EVERY :: EVERY] = TIMES
            matrix = getattr(layer, name)
            for var, by in ((norm.weight, factor), (norm.bias, factor), (matrix, 1 / factor)):
                var.update(jt.array(var.numpy() * by))


def photo_pixels(folder: Path | None, config, count: int) -> np.ndarray:
    """Preprocessed photos of the folder, the first by name, or noise: (n, 3, H, W)."""
    from PIL import Image

    from jclip.data.preprocess import Preprocess

    size = config.vision.image_size
    if folder is None:
        return np.random.default_rng(0).standard_normal((count, 3, *size), dtype=np.float32)
    paths = sorted(q for q in folder.rglob("*") if q.suffix.lower() in (".jpg", ".jpeg", ".png"))[:count]
    seen = Preprocess(size=size)
    return np.stack([seen(Image.open(path)) for path in paths])


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) of rows (n, E)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def answers(file: Path, to: float) -> str:
    """Right answers before, and over the draws after each row was turned to that cosine in a random direction."""
    with np.load(file) as z:
        text, x, y = (z[k].astype(np.float64) for k in ("text_features", "test_features", "test_labels"))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    before, right, changed = (x @ text.T).argmax(axis=1), [], []
    for draw in range(DRAWS):
        away = np.random.default_rng(draw).standard_normal(x.shape)
        away -= (away * x).sum(axis=1, keepdims=True) * x
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        after = ((to * x + np.sqrt(1 - to * to) * away) @ text.T).argmax(axis=1)
        right.append(int((after == y).sum()))
        changed.append(int((after != before).sum()))
    return (
        f"{min(right)} to {max(right)} of {len(y)} right ({int((before == y).sum())} unmoved), "
        f"at most {max(changed)} answers another, cosine {to:.6f}"
    )


if __name__ == "__main__":
    sys.exit(main())
