"""Made the goldens beside it, once, from the originals: `python tests/golden/make_golden.py`.

Needs, in an environment of its own: torch 2.13.0, torchvision 0.28.0, open_clip_torch 3.3.0, openai-clip 1.0.1,
numpy < 2, pillow 13, setuptools < 81. The inputs are seeded and made here; the tests make the same ones. With pillow 12
what differs of the pixels is written alone, to preprocess_pillow_12.json.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))


def stub_torchvision():
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def digest(array) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def tokenizer_golden() -> dict:
    import numpy as np
    from clip.simple_tokenizer import SimpleTokenizer

    from tests.golden.inputs import HARD_STRINGS, random_strings

    reference = SimpleTokenizer()
    many = [np.array(reference.encode(text), np.int32) for text in random_strings(20_000)]
    return {
        "hard": [reference.encode(text) for text in HARD_STRINGS],
        "random_sha256": digest(np.concatenate(many)),
        "random_count": int(sum(map(len, many))),
    }


def preprocess_golden() -> dict:
    import numpy as np
    from open_clip.transform import ResizeKeepRatio, center_crop_or_pad
    from PIL import Image, ImageEnhance
    from torchvision import transforms as T
    from torchvision.transforms import functional as F

    from tests.golden.inputs import CROP_BOXES, PHOTO_SIZES, SHARPNESS, TARGETS, photo

    bicubic = T.InterpolationMode.BICUBIC
    made = {}
    for mode in ("RGB", "L", "P", "RGBA", "LA", "CMYK", "I;16"):
        for size in PHOTO_SIZES if mode == "RGB" else PHOTO_SIZES[:2]:
            image = photo(*size, mode)
            for n in TARGETS:
                shortest = T.CenterCrop(n)(T.Resize(n, bicubic)(image)).convert("RGB")
                made[f"shortest {mode} {size} {n}"] = digest(np.asarray(shortest))
                squash = T.Resize((n, n), bicubic)(image).convert("RGB")
                made[f"squash {mode} {size} {n}"] = digest(np.asarray(squash))
    for size in PHOTO_SIZES:
        image = photo(*size, "RGB")
        for n in TARGETS:
            longest = center_crop_or_pad(ResizeKeepRatio(n, longest=1, interpolation=bicubic)(image), n, fill=0)
            made[f"longest-pad RGB {size} {n}"] = digest(np.asarray(longest))
        for box in CROP_BOXES:
            made[f"crop {size} {box}"] = digest(np.asarray(F.resized_crop(image, *box, (24, 24), bicubic)))
        for f in SHARPNESS:
            made[f"sharpness {size} {f}"] = digest(np.asarray(F.adjust_sharpness(image, f)))
            assert np.array_equal(F.adjust_sharpness(image, f), ImageEnhance.Sharpness(image).enhance(f))
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        made[f"normalise {size}"] = digest(T.Normalize(mean, std)(T.ToTensor()(image)).numpy())
    rectangle = T.Resize((20, 28), bicubic)
    made["rectangle"] = digest(np.asarray(rectangle(photo(*PHOTO_SIZES[0], "RGB"))))
    assert isinstance(Image.Image, type)
    return made


if __name__ == "__main__":
    import PIL

    kept_alive = stub_torchvision()
    if PIL.__version__.startswith("12."):
        usual = json.loads((HERE / "preprocess.json").read_text())
        other = {key: made for key, made in preprocess_golden().items() if made != usual[key]}
        (HERE / "preprocess_pillow_12.json").write_text(json.dumps(other, indent=0) + "\n")
        sys.exit(f"preprocess_pillow_12 {len(other)}")
    for name, made in (("tokenizer", tokenizer_golden()), ("preprocess", preprocess_golden())):
        (HERE / f"{name}.json").write_text(json.dumps(made, indent=0) + "\n")
        print(name, len(made))
