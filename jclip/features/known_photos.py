"""What is known of a part's photos by their SHA-256: features and reasons of the gallery that is there, of pieces, made now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from jclip.data.gallery_inputs import Part, shown_path
from jclip.data.gallery_store import Store
from jclip.features.gallery_parts import Known, Whole
from jclip.functional.nearest import take

CHANGED = "changed while it was read: embed it again with --update"
INSTALL = "pip install"  # a reason that may be gone by the next time


@dataclass
class Stored:
    """Features of the gallery that is there by their photos' SHA-256: where each stands in `parts`, one after the other,
    and what does not decode."""

    parts: Sequence[np.ndarray] = ()
    places: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def stored_of(old: Store | None) -> Stored:
    """What the gallery that is there holds; reasons that may be gone by now are left out."""
    if old is None:
        return Stored()
    places: dict[str, int] = {}
    for place, digest in enumerate(old.rows.column("sha256")):
        places.setdefault(digest, place)
    lost = [found for found in old.skipped() if found.get("sha256") and INSTALL not in found["reason"]]
    failed = {found["sha256"]: found["reason"] for found in lost if CHANGED not in found["reason"]}
    return Stored(old.parts, places, failed)


class PartKnown:
    """Features and reasons by SHA-256 of one part's photos: of the gallery that is there, of pieces, and made now."""

    def __init__(self, stored: Stored):
        self.stored, self.made, self.failed = stored, {}, {}

    def add(self, piece: Known) -> None:
        self.made.update(zip(piece.hashes, piece.features, strict=True))
        self.failed.update(piece.failed)

    def __contains__(self, digest: str) -> bool:
        return digest in self.stored.places or digest in self.made

    def why_not(self, digest: str) -> str | None:
        """Why there is no feature; None where nothing is known of these bytes."""
        return self.failed.get(digest) or self.stored.failed.get(digest)


def known_of(part: Part, stored: Stored, pieces: Iterator[Known]) -> PartKnown:
    """What is known of a part's photos; pieces may hold others as well."""
    known, wanted = PartKnown(stored), {row["sha256"] for row in part.rows}
    for piece in pieces:
        places = [i for i, digest in enumerate(piece.hashes) if digest in wanted]
        failed = {digest: why for digest, why in piece.failed.items() if digest in wanted}
        known.add(Known([piece.hashes[i] for i in places], piece.features[places], failed))
    return known


def sorted_out(part: Part, known: PartKnown, width: int, dtype: np.dtype) -> Whole:
    """Rows that have features, these, and what is left out with its reason."""
    kept = [row for row in part.rows if row["sha256"] in known]
    lost = [row for row in part.rows if row["sha256"] not in known]
    failed = [{"path": shown_path(r), "reason": known.why_not(r["sha256"]), "sha256": r["sha256"]} for r in lost]
    features = np.zeros((len(kept), width), dtype)
    old = [i for i, row in enumerate(kept) if row["sha256"] not in known.made]
    if old:
        places = np.array([known.stored.places[kept[i]["sha256"]] for i in old], np.int64)
        features[old] = take(known.stored.parts, places)
    for i, row in enumerate(kept):
        if row["sha256"] in known.made:
            features[i] = known.made[row["sha256"]]
    return Whole(kept, features, [[*found] for found in part.skipped], failed, len(kept) - len(old))
