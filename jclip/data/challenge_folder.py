"""The Jittor challenge's folder: its files by their names there, and classes that its lists leave to the photos' folders.

classes.txt             `Domain_Name label` per line; classes_b.txt has the classes of test set B
train.txt               `TrainSet/Domain/Name/7.jpg label` per line, all photos
train_4class.txt        the four of each class to learn from, with or without labels
TestSetZ-label.txt      `name label` per line, of the photos in TestSetZ: validation
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from jclip.config import DataConfig
from jclip.paths import is_file
from jclip.prompts.spelling import name_key

CLASSES, ALL, SHOTS, HELD_OUT = "classes.txt", "train.txt", "train_4class.txt", "TestSetZ"
LABELS = f"{HELD_OUT}-label.txt"


def from_folder(config: DataConfig) -> DataConfig:
    """The config with the lists that it doesn't name, where `data.root` is such a folder; else as it is."""
    root = Path(config.root)
    classes, train = (config.classes or _there(root, CLASSES)), (config.train or _there(root, SHOTS, ALL))
    if not config.root or config.split_file or config.features or not (classes and train):
        return config
    return replace(config, classes=classes, train=train, val=config.val or _there(root, LABELS))


def _there(root: Path, *names: str) -> str:
    """The first of them that is a file in `root`, or nothing."""
    return next((str(root / name) for name in names if is_file(root / name)), "")


def base_of(file: Path, root: Path, first: str) -> Path:
    """What the photos of a list are relative to: `root`, the list's own folder, or for NAME-label.txt the folder NAME
    beside it; where the first photo is found."""
    beside = file.with_name(file.stem.removesuffix("-label"))
    return next((base for base in (root, file.parent, beside) if is_file(base / first)), root)


def strip_prefix(name: str) -> str:
    """`Animal_Polar_Bear` → `Polar_Bear`; a name without underscore stays."""
    return name.split("_", 1)[-1]


def class_finder(names: Sequence[str]) -> Callable[[str], int | None]:
    """photo → label, as its folders say it: `TrainSet/Animal/Bear/20.jpg` is of `Animal_Bear`, else of `Bear`, else of
    the only class that is called so after its domain; each as it is spelled, or else as `name_key` compares."""
    exact, loose = _labels_by(names, str), _labels_by(names, name_key)

    def found(photo: str) -> int | None:
        *_, domain, folder = ("", "", *PurePosixPath(photo).parent.parts)
        whole = f"{domain}_{folder}"
        for labels, key in ((exact, str), (loose, name_key)):
            of_whole, of_short = labels
            label = of_whole.get(key(whole), of_whole.get(key(folder), of_short.get(key(folder))))
            if label is not None:
                return label
        return None

    return found


def _labels_by(names: Sequence[str], key: Callable[[str], str]) -> tuple[dict[str, int], dict[str, int]]:
    """Labels of the names that only one class has, by whole name and by what stands after the domain."""
    return _of_one([key(name) for name in names]), _of_one([key(strip_prefix(name)) for name in names])


def _of_one(keys: Sequence[str]) -> dict[str, int]:
    counts = Counter(keys)
    return {key: label for label, key in enumerate(keys) if counts[key] == 1}
