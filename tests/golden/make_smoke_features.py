"""Made jclip/assets/smoke_features.npz, the embedded data of the smoke configs: `python tests/golden/make_smoke_features.py`.

Seven classes in 16 dimensions: text vectors, and image vectors around a blend of their class's text and a direction of
its own, so that zero-shot is right often and a few shots help.
"""

from pathlib import Path

import numpy as np

ASSETS = Path(__file__).resolve().parent.parent.parent / "jclip" / "assets"


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


if __name__ == "__main__":
    rng = np.random.default_rng(4)
    classes, width = 7, 16
    text, own = unit(rng.standard_normal((classes, width))), unit(rng.standard_normal((classes, width)))

    def photos(count):
        labels = np.repeat(np.arange(classes), count)
        centres = unit(0.35 * text + 0.8 * own)[labels]
        return unit(centres + 0.22 * rng.standard_normal((len(labels), width))).astype(np.float16), labels

    arrays = {"classnames": np.array([f"class {i}" for i in range(classes)]), "text_features": text.astype(np.float32)}
    arrays["logit_scale"] = np.float32(100)
    for shots in (1, 4):
        arrays[f"train_features_{shots}"], arrays[f"train_labels_{shots}"] = photos(shots)
    for part, count in (("val", 6), ("test", 9)):
        arrays[f"{part}_features"], arrays[f"{part}_labels"] = photos(count)
    np.savez_compressed(ASSETS / "smoke_features.npz", **arrays)
