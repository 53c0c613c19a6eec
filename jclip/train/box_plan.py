"""What a training of grounding is of: its data, where tokens are kept, its steps. No Jittor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jclip import paths
from jclip.data.box_samples import BoxSamples
from jclip.errors import counted
from jclip.features.box_features import Kept, Reading, Where, place_of_tokens, token_bytes
from jclip.features.source import ModelSource


@dataclass(frozen=True)
class Schedule:
    """size, accumulate: phrases of a batch, batches of a step. anew: whether steps encode photos. tokens: where photos'
    tokens are to be kept."""

    size: int
    accumulate: int
    epochs: int
    anew: bool
    tokens: Where


def plan_lines(
    samples: Mapping[str, BoxSamples], schedule: Schedule, source: ModelSource, reading: Reading
) -> list[str]:
    """What is printed before a training."""
    photos = len(samples["train"].photos)
    place = "none" if schedule.anew else place_of_tokens(source, reading, photos, True, schedule.tokens)
    of_step = schedule.accumulate * schedule.size
    steps, epochs = schedule.epochs * (len(samples["train"]) // of_step), schedule.epochs
    shown = f"{schedule.accumulate} x {schedule.size}" if schedule.accumulate > 1 else str(schedule.size)
    return [
        *(f"{part}: {_described(own)}" for part, own in samples.items()),
        f"tokens of the photos to learn from: {_described_place(place, photos * token_bytes(source, reading))}",
        f"steps: {steps:,} of {shown} phrases, in {counted(epochs, 'epoch')}",
    ]


def _described(samples: BoxSamples) -> str:
    counts = samples.counts()
    of = counts.get("of", {})
    parts = f" ({', '.join(f'{name} {n:,}' for name, n in of.items())})" if len(of) > 1 else ""
    return f"{counts['phrases']:,} phrases of {counts['photos']:,} photos{parts}"


def _described_place(place: Kept, size: int) -> str:
    """Where tokens are kept, and how large they are."""
    shown = f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"
    return {
        "memory": f"in memory, {shown}",
        "disk": f"on disk, {shown} below {paths.cache_dir('features')}",
        "steps": "in no place, each step encodes its photos",
        "none": "in no place, each step encodes its photos, which are seen in views or by a tower that learns",
    }[place]
