"""What the folder of a gallery that is not finished lacks: by its parts, and by the notes of the shards that were started."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
from dataclasses import dataclass
from pathlib import Path

from jclip.data.shares import Share
from jclip.errors import counted

AGAIN = "give `jclip embed` the same command again"
SHARING = ".sharing.lock"  # of who has others make the gallery
_LOCK = re.compile(r"\.shard-(\d+)-of-(\d+)\.lock")
_PART = re.compile(r"unfinished-[0-9a-f]{16}-[0-9a-f]{16}-(\d+)-(\d+|whole)\.safetensors")


def lock_of(folder: Path, share: Share) -> Path:
    """The file by which a shard is known to be at work, or to have been."""
    return folder / f".shard-{share.number}-of-{share.of}.lock"


def noted(share: Share, parts: int) -> bytes:
    """What that file holds: how many parts there are of all shards, and whether the shard ends by itself."""
    return json.dumps({"parts": parts, "ends": share.ends}).encode()


@dataclass(frozen=True)
class _Shard:
    share: Share
    at_work: bool
    parts: int


def what_is_missing(folder: Path) -> str:
    """What is missing and what to do, for a message; "" where the folder holds nothing of a gallery that is not finished."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return ""
    shards = [_seen(folder / name, found) for name in names if (found := _LOCK.fullmatch(name))]
    parts = [(int(found[1]), found[2]) for name in names if (found := _PART.fullmatch(name))]
    if not (shards or parts) or "gallery.json" in names:
        return ""
    start, count = f"{folder} is a gallery that is not finished", max((one.parts for one in shards), default=0)
    if not count or not all(one.share.ends for one in shards):
        busy = any(one.at_work for one in shards)
        return f"{start}, and somebody is at work on it: wait for the end" if busy else f"{start}: {AGAIN}"
    return f"{start}: {_of_shards(shards, {number for number, end in parts if end == 'whole'}, count)}"


def _of_shards(shards: list[_Shard], whole: set[int], count: int) -> str:
    """shards: with the notes of some; whole: numbers of the parts that are finished, of `count`."""
    some = max((one.share for one in shards if one.parts), key=lambda share: share.of)
    missing = sorted({*range(count)} - whole)
    busy = {one.share.number - 1 for one in shards if one.at_work and one.share.of == some.of}
    idle = [number for number in missing if number % some.of not in busy]
    text = f"{len(whole & {*range(count)})} of {counted(count, 'part')} are there"
    if not missing:
        return f"{text}; {AGAIN}"
    text += f", those of shard {some.names_of(missing)} are not"
    if busy:
        text += f" ({some.names_of(busy)} at work)"
    if not idle:
        return f"{text}; wait for the end"
    others = " and the others" if len({number % some.of for number in idle}) > 1 else ""
    return f"{text}; run the same `jclip embed` with --shard {some.names_of(idle[:1])}{others}"


def _seen(lock: Path, name: re.Match) -> _Shard:
    at_work, note = False, {}
    with contextlib.suppress(OSError, ValueError), open(lock, "rb") as file:
        with contextlib.suppress(OSError):
            at_work = True
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            at_work = False
        note = json.loads(file.read(1000))
    note = note if isinstance(note, dict) else {}
    count = note.get("parts", 0)
    share = Share(int(name[1]), int(name[2]), ends=bool(note.get("ends", True)))
    return _Shard(share, at_work, count if isinstance(count, int) else 0)
