"""Class names of well-known data sets as data, in the order of their labels. Imports no Jittor."""

from __future__ import annotations

import json

from jclip.errors import UnknownName
from jclip.paths import ASSETS

_FOLDER = ASSETS / "classes"


def class_sets() -> list[str]:
    """Names of the sets that ship."""
    return sorted(p.stem for p in _FOLDER.glob("*.json"))


def class_set(name: str) -> tuple[str, ...]:
    """The class names of a data set, the k-th for label k: `class_set("cifar10")`. Raises `UnknownName`.

    They are spelled as published with CLIP's results, so that two classes of imagenet1k have one name ("missile",
    "sunglasses"), and one of clevr_closest_object_distance none.
    """
    if name not in (known := class_sets()):
        raise UnknownName("class set", name, known)
    return tuple(json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8")))
