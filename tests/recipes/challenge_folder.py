"""The Jittor challenge's folder in small: four domains of two classes, two classes more of test set B, tiny photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

TAUGHT = ("Animal_Bear", "Animal_Polar_bear", "Caltech-101_ant", "Caltech-101_car_side", "Food-101_apple_pie",
          "Food-101_pho", "Thu-dog_pug", "Thu-dog_Shiba_Dog")  # fmt: skip
UNTAUGHT = ("Stanford-Cars_Audi_TTS_Coupe_2012", "Stanford-Cars_Volvo_C30_Hatchback_2012")


def photo(label: int, number: int) -> Image.Image:
    """A seeded picture whose two halves have the class's colours."""
    rng, base = np.random.default_rng((label, number)), np.random.default_rng(label).integers(0, 160, (2, 3))
    pixels = rng.integers(0, 60, (40, 36 + number % 3, 3))
    pixels[:20] += base[0]
    pixels[20:] += base[1]
    return Image.fromarray(pixels.astype(np.uint8))


def write_folder(root: Path, each: int = 8) -> Path:
    """TrainSet with train.txt, TestSetA and TestSetB, both class files; nothing drawn yet."""
    lines = []
    for label, name in enumerate(TAUGHT):
        domain, _, folder = name.partition("_")
        for number in range(each):
            place = Path("TrainSet", domain, folder, f"{number}.png")
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            photo(label, number).save(root / place)
            lines.append(f"{place} {label}")
    (root / "train.txt").write_text("\n".join(lines) + "\n")
    for part, classes in (("A", len(TAUGHT)), ("B", len(TAUGHT) + len(UNTAUGHT))):
        (root / f"TestSet{part}").mkdir()
        for number in range(2 * classes):
            photo(number % classes, 100 + number).save(root / f"TestSet{part}" / f"{number}.png")
    for file, names in (("classes.txt", TAUGHT), ("classes_b.txt", TAUGHT + UNTAUGHT)):
        (root / file).write_text("".join(f"{name} {label}\n" for label, name in enumerate(names)))
    return root
