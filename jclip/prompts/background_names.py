"""Names of what photos show behind things, as data: what is none of a user's classes has somewhere to go."""

from __future__ import annotations

from collections.abc import Sequence

from jclip.prompts.spelling import name_key

_SCENERY = (
    "ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river", "sea", "railway", "railroad",
    "helmet", "cloud", "house", "mountain", "ocean", "road", "rock", "street", "valley", "bridge",
)  # fmt: skip
BACKGROUNDS = {  # as TagCLIP has them (linyq2117/TagCLIP, c32b640, MIT)
    "coco": _SCENERY,
    "voc": (*_SCENERY, "keyboard", "sign"),
    "none": (),
}


def background_beside(classnames: Sequence[str], background: Sequence[str]) -> tuple[str, ...]:
    """The background names that are none of the classes, each once."""
    taken, found = {name_key(name) for name in classnames}, []
    for name in background:
        if (key := name_key(name)) not in taken:
            taken.add(key)
            found.append(name)
    return tuple(found)
