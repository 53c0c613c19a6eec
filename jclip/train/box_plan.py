"""What a training of grounding is going to take: hours and memory extrapolated from a few measured steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jclip import paths
from jclip.data.box_samples import BoxSamples
from jclip.errors import counted
from jclip.features.box_features import (
    TOGETHER,
    BoxFeatures,
    Kept,
    Reading,
    Where,
    encoded_photos,
    found_boxes,
    place_of_tokens,
    token_bytes,
)  # fmt: skip
from jclip.features.box_phrases import phrase_tokens
from jclip.features.source import ModelSource
from jclip.runtime import jt
from jclip.train.run_facts import forget_peak, peak_memory, threads

MEASURED = 16  # phrases of a measured batch, photos that are encoded
REPEATS = 3
SOON = 5.0  # seconds of a batch that is measured whole
ENOUGH = 30.0  # seconds of one measurement after which it is not repeated


@dataclass(frozen=True)
class Costs:
    """Seconds of a phrase in a step and in a measurement, of a step of the optimiser, of encoding a photo and a phrase;
    memory in bytes before the steps, of a phrase in a step and in a measurement; the share of the cores' time that this
    process had."""

    learned: float
    measured: float
    update: float
    photo: float
    text: float
    before: int
    of_phrase: int
    of_found: int
    cores: float


@dataclass(frozen=True)
class Schedule:
    """size, accumulate: phrases of a batch, batches of a step. anew: whether steps encode photos. moving, speaking: whether
    the image tower or the text tower learns, so that each measurement encodes photos or phrases again. tokens: where photos'
    tokens are to be kept."""

    size: int
    accumulate: int
    epochs: int
    anew: bool
    moving: bool
    speaking: bool
    tokens: Where


def costs_of_some(costs_of: Callable[[BoxSamples, int], Costs], samples: BoxSamples, batch: int, seed: int) -> Costs:
    """What steps cost: of a few phrases, and where a whole batch is soon done of as many as that has.

    costs_of: of samples for a few batches of that size.
    """
    order = np.random.default_rng(seed).permutation(len(samples)).tolist()

    def of(count: int) -> Costs:
        return costs_of(samples.of_rows(order[: REPEATS * count]), count)

    costs, whole = of(min(MEASURED, batch, len(samples))), min(batch, len(samples))
    return of(whole) if whole > MEASURED and whole * costs.learned < SOON else costs


def seconds_of(work: Callable[[], Any]) -> float:
    """The median of a few, after one that compiles; of what takes long that one alone."""
    took = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        work()
        jt.sync_all(True)
        took.append(time.perf_counter() - start)
        if took[-1] > ENOUGH:
            return took[-1]
    return statistics.median(took[1:])


def measured_costs(
    step: Callable[[], Any], update: Callable[[], Any], network: Any, features: BoxFeatures, phrases: int
) -> Costs:
    """step: forward and backward of a batch of so many `phrases`, update: one of the optimiser. features: of the photos of
    that batch, with tokens in memory."""
    count, start, spent = min(len(features.samples.photos), MEASURED), time.perf_counter(), time.process_time()
    photo = seconds_of(lambda: list(encoded_photos(features, range(count), count))) / count
    said = list(dict.fromkeys(features.samples.phrases))[:64]
    text = seconds_of(lambda: phrase_tokens(features.source, said)) / len(said)
    before = _held()
    measured, of_found = _with_memory(lambda: found_boxes(network, features))
    learned, of_step = _with_memory(step)
    updating = seconds_of(update)
    cores = (time.process_time() - spent) / (time.perf_counter() - start) / int(threads())
    found = min(len(features), TOGETHER)
    return Costs(
        learned / phrases, measured / len(features), updating, photo, text, before, of_step // phrases,
        of_found // found, cores,
    )  # fmt: skip


def _with_memory(work: Callable[[], Any]) -> tuple[float, int]:
    """Seconds, and bytes that it takes at most."""
    before = _held()
    forget_peak()
    seconds = seconds_of(work)
    return seconds, max(max(peak_memory().values(), default=0) * 2**20 - before, 0)


def _held() -> int:
    """Bytes that the process holds, or its GPU."""
    if jt.flags.use_cuda:
        return peak_memory().get("gpu", 0) * 2**20
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def plan_lines(
    samples: Mapping[str, BoxSamples], schedule: Schedule, source: ModelSource, reading: Reading, costs: Costs
) -> list[str]:
    """What is printed before a training."""
    photos = {part: len(own.photos) for part, own in samples.items()}
    phrases = {part: len({*own.phrases}) for part, own in samples.items()}
    others = sum(count for part, count in photos.items() if part != "train")
    place = "none" if schedule.anew else place_of_tokens(source, reading, photos["train"], True, schedule.tokens)
    of_step = schedule.accumulate * schedule.size
    steps, epochs = schedule.epochs * (len(samples["train"]) // of_step), schedule.epochs
    learning = costs.learned + (costs.photo if place == "steps" else 0.0)
    training = steps * (of_step * learning + costs.update)
    kept = photos["train"] if place in ("memory", "disk") else 0
    encoding = (kept + others) * costs.photo + sum(phrases.values()) * costs.text
    again = ("val" in samples) * epochs
    val = photos.get("val", 0) * costs.photo * schedule.moving + phrases.get("val", 0) * costs.text * schedule.speaking
    found = again * len(samples.get("val", ())) + sum(
        len(own) for part, own in samples.items() if part in ("test", "unseen")
    )
    measuring = found * costs.measured + again * val
    total = training + encoding + measuring
    in_memory = photos["train"] * token_bytes(source, reading) if place == "memory" else 0
    together = min(max((len(own) for part, own in samples.items() if part != "train"), default=0), TOGETHER)
    memory = costs.before + schedule.size * costs.of_phrase + together * costs.of_found + in_memory
    shown = f"{schedule.accumulate} x {schedule.size}" if schedule.accumulate > 1 else str(schedule.size)
    return [
        *(f"{part}: {_described(own)}" for part, own in samples.items()),
        f"tokens of the photos to learn from: {_described_place(place, photos['train'] * token_bytes(source, reading))}",
        f"steps: {steps:,} of {shown} phrases, in {counted(epochs, 'epoch')}",
        f"measured here: {1e3 * learning:.1f} ms a phrase in a step, {1e3 * costs.update:.0f} ms an update, "
        f"{1e3 * costs.photo:.1f} ms to encode a photo, {1e3 * costs.text:.1f} a phrase, "
        f"{1e3 * costs.measured:.1f} to find a box",
        f"time, extrapolated from {REPEATS} batches: {hours(total)} (encoding {hours(encoding)}, training {hours(training)}, "
        f"measuring {hours(measuring)})",
        *_busy(costs),
        f"memory, extrapolated: about {memory / 2**20:,.0f} MiB{' of the GPU' if jt.flags.use_cuda else ''}",
    ]


def _busy(costs: Costs) -> list[str]:
    """A line where others kept the processor busy, so that hours are too many."""
    if jt.flags.use_cuda or costs.cores > 0.8:
        return []
    return [
        f"the machine is busy: this process had {100 * costs.cores:.0f} % of its threads' time, alone it takes less"
    ]


def _described(samples: BoxSamples) -> str:
    counts = samples.counts()
    of = counts.get("of", {})
    parts = f" ({', '.join(f'{name} {n:,}' for name, n in of.items())})" if len(of) > 1 else ""
    return f"{counts['phrases']:,} phrases of {counts['photos']:,} photos{parts}"


def hours(seconds: float) -> str:
    """`2.4 hours`, `13 minutes`, `40 seconds`."""
    if seconds >= 5400:
        return f"{seconds / 3600:,.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def _described_place(place: Kept, size: int) -> str:
    """Where tokens are kept, and how large they are."""
    shown = f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"
    return {
        "memory": f"in memory, {shown}",
        "disk": f"on disk, {shown} below {paths.cache_dir('features')}",
        "steps": "in no place, each step encodes its photos",
        "none": "in no place, each step encodes its photos, which are seen in views or by a tower that learns",
    }[place]
