"""Sizes of photos in Hugging Face's preprocessor_config.json, read as transformers applies them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jclip.data.preprocess import Preprocess

STEPS = ("do_resize", "do_rescale", "do_normalize")  # which jclip always does


def is_squashed(said: Mapping[str, Any], crops: bool) -> bool:
    """Return whether photos are resized to both sides at once: without a crop (`crops`: where the file does not say), or
    where `size` names both."""
    size = said.get("size")
    return not said.get("do_center_crop", crops) or (isinstance(size, dict) and {"height", "width"} <= size.keys())


def differing(said: Mapping[str, Any], made: Preprocess) -> list[str]:
    """Return what the file says, in its own words, and `made` does not do; what it does not say can't differ."""
    found = [f"{step}=false" for step in STEPS if said.get(step) is False]
    if made.varies:
        return found
    sides = {"size": said.get("size")}
    if said.get("do_center_crop", made.resize == "shortest"):
        sides["crop_size"] = said.get("crop_size")
    for name, value in sides.items():
        given = _height_and_width(value)
        if given is not None and given != made.size:
            found.append(f"{name} {given[0]} x {given[1]}")
    return found


def _height_and_width(value: Any) -> tuple[int, int] | None:
    """Return both sides, equal where one number stands for them; None where there is none."""
    if isinstance(value, dict):
        value = value.get("shortest_edge", (value.get("height"), value.get("width")))
    pair = value if isinstance(value, tuple) else (value, value)
    return pair if all(type(side) is int for side in pair) else None
