"""Seeded mutants of sound files, and how the readers end on them. Nothing but a refusal in one line, or values, is a good end.

`python -m tests.hostile.fuzz --format pickle --count 20000` tries so many and counts the ends; `--show 5` prints the first
five faults, `--keep FOLDER` writes each fault's file there. Mutant n of a seed is always the same file.

A format is a `Format`: sound files to begin with, the reader, tokens that mean something in it. One line in `FORMATS` adds
one. Mutants are read in a child process, whose memory and time are bounded: what kills it is counted, and the next child
continues after it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jclip.errors import JclipError, printable

ROOT = Path(__file__).parent.parent.parent
FORMATS = {  # name → module and variable
    "pickle": "tests.hostile.readers_formats:PICKLE",
    "torch": "tests.hostile.readers_formats:TORCH",
    "safetensors": "tests.hostile.readers_formats:SAFETENSORS",
    "npz": "tests.hostile.readers_formats:NPZ",
    "score_json": "tests.hostile.score_formats:SCORE_JSON",
    "score_npz": "tests.hostile.score_formats:SCORE_NPZ",
    "label_lines": "tests.hostile.score_formats:LABEL_LINES",
    "label_table": "tests.hostile.score_formats:LABEL_TABLE",
    "coco": "tests.hostile.score_formats:COCO",
    "label_list": "tests.hostile.score_formats:LABEL_LIST",
    "box_zip": "tests.hostile.box_formats:BOX_ZIP",
    "box_stream": "tests.hostile.box_formats:BOX_STREAM",
    "box_flickr": "tests.hostile.box_formats:FLICKR_ZIP",
    "box_lines": "tests.hostile.box_formats:BOX_LINES",
    "box_list": "tests.hostile.box_formats:BOX_LIST",
    "box_table": "tests.hostile.box_formats:BOX_TABLE",
    "box_coco": "tests.hostile.box_formats:BOX_COCO",
    "predicted": "tests.hostile.box_formats:PREDICTED",
    "predicted_lines": "tests.hostile.box_formats:PREDICTED_LINES",
    "spiece": "tests.hostile.vocabulary_formats:SENTENCEPIECE",
    "vocab_txt": "tests.hostile.vocabulary_formats:WORDPIECE",
    "tokenizer_json": "tests.hostile.vocabulary_formats:TOKENIZER_JSON",
}
ROOM = 300 << 20  # bytes of address space beyond the start of the process
ROOM_OF_A_REFUSAL = 200 << 20
SECONDS = 5  # of the processor, for one mutant
LONGEST_LINE = 4000
NUMBERS = [0, 1, 2, 4, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 47, (1 << 63) - 1,
           1 << 63, (1 << 64) - 1]  # fmt: skip


@dataclass(frozen=True)
class Format:
    """One kind of file. `read` gives arrays by name; it is compared with what the mutant's seed gave."""

    name: str  # of the file that is written
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], Mapping[str, np.ndarray]]
    tokens: list[bytes] = field(default_factory=list)
    wrap: Callable[[random.Random, bytes, Callable[[bytes], bytes]], bytes] | None = None  # mutates inside a container


def format_of(name: str) -> Format:
    """The format of that name in `FORMATS`."""
    module, variable = FORMATS[name].split(":")
    return getattr(importlib.import_module(module), variable)


def mutant(form: Format, seeds: list[bytes], seed: int, number: int) -> tuple[int, bytes]:
    """Index of the sound file that it was made of, and the bytes."""
    rng = random.Random(f"{seed}/{form.name}/{number}")
    of = rng.randrange(len(seeds))

    def mutate(data: bytes) -> bytes:
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            data = rng.choice(MUTATIONS)(rng, data, rng.choice(seeds), form.tokens)
        return data

    if form.wrap and rng.random() < 0.7:
        return of, form.wrap(rng, seeds[of], mutate)
    return of, mutate(seeds[of])


def _place(rng: random.Random, data: bytes) -> int:
    return rng.randrange(len(data) + 1) if rng.random() < 0.7 else min(rng.randrange(200), len(data))


def _flip(rng: random.Random, data: bytes, *_: Any) -> bytes:
    at = min(_place(rng, data), len(data) - 1)
    return data if at < 0 else data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _byte(rng: random.Random, data: bytes, *_: Any) -> bytes:
    at = _place(rng, data)
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def _number(rng: random.Random, data: bytes, *_: Any) -> bytes:
    at, width = _place(rng, data), rng.choice((1, 2, 4, 8))
    value = (rng.choice(NUMBERS) + rng.choice((-1, 0, 0, 1))) % (1 << 8 * width)
    return data[:at] + value.to_bytes(width, rng.choice(("little", "little", "big"))) + data[at + width :]


def _cut(rng: random.Random, data: bytes, *_: Any) -> bytes:
    return data[: _place(rng, data)]


def _drop(rng: random.Random, data: bytes, *_: Any) -> bytes:
    at = _place(rng, data)
    return data[:at] + data[at + rng.choice((1, 1, 2, 4, 8, 40)) :]


def _repeat(rng: random.Random, data: bytes, *_: Any) -> bytes:
    at = _place(rng, data)
    piece = data[at : at + rng.choice((1, 2, 4, 8, 40, 200))]
    return data[:at] + piece * rng.choice((2, 2, 3, 50, 1000)) + data[at + len(piece) :]


def _splice(rng: random.Random, data: bytes, other: bytes, *_: Any) -> bytes:
    begin = _place(rng, other)
    piece, at = other[begin : begin + rng.choice((4, 16, 64, 400))], _place(rng, data)
    return data[:at] + piece + data[at + rng.choice((0, len(piece))) :]


def _token(rng: random.Random, data: bytes, other: bytes, tokens: list[bytes]) -> bytes:
    if not tokens:
        return _byte(rng, data)
    token, at = rng.choice(tokens), _place(rng, data)
    if rng.random() < 0.5:  # where another token stands
        places = [p for t in rng.sample(tokens, min(8, len(tokens))) if (p := data.find(t)) >= 0]
        at = rng.choice(places) if places else at
    return data[:at] + token + data[at + rng.choice((0, len(token))) :]


MUTATIONS = (_flip, _byte, _number, _number, _cut, _drop, _repeat, _splice, _token, _token, _token)


def end_of(form: Format, path: Path, expected: Mapping[str, np.ndarray]) -> str:
    """How reading ends: "refused: …", "equal", "other values", or "FAULT …"."""
    try:
        found = form.read(path)
    except JclipError as e:
        message = str(e)
        good = message == printable(message, LONGEST_LINE)
        return f"refused: {message}" if good else f"FAULT message of {len(message)}: {message!a:.300}"
    except _TooLong:
        return f"FAULT more than {SECONDS} s"
    except BaseException as e:
        return f"FAULT {type(e).__name__}: {str(e)!a:.300}"
    if not all(isinstance(a, np.ndarray) and not a.dtype.hasobject for a in found.values()):
        return "FAULT what was read is no array of plain values"
    same = list(found) == list(expected) and all(_equal(found[k], expected[k]) for k in expected)
    return "equal" if same else "other values"


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


class _TooLong(BaseException):
    pass


def _too_long(*_: Any) -> None:
    raise _TooLong


def _bound(room: int) -> None:
    """From here on the process has `room` more bytes of address space, leaves no core dump, and stops what takes long."""
    signal.signal(signal.SIGVTALRM, _too_long)
    if sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + room, taken + room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _report(form: Format, path: Path, number: int, expected: Mapping[str, np.ndarray]) -> None:
    """Two lines on stdout: which file is about to be read, should it be the last; and how that ended."""
    print(number, flush=True)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    end = end_of(form, path, expected)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    print(" ".join(end.split()), flush=True)


def read_mutants(name: str, seed: int, first: int, end: int) -> None:
    """The child's work: mutants `first` to `end`, that one not included, of a format."""
    form = format_of(name)
    seeds, expected = form.seeds(), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, form.name)
        for data in seeds:
            path.write_bytes(data)
            expected.append(form.read(path))
        _bound(ROOM)
        for number in range(first, end):
            of, data = mutant(form, seeds, seed, number)
            path.write_bytes(data)
            _report(form, path, number, expected[of])


def read_files(name: str, files: list[str]) -> None:
    """The child's work: files as they are, whose names end in what their format needs."""
    form = format_of(name)
    _bound(ROOM_OF_A_REFUSAL)
    for number, file in enumerate(files):
        _report(form, Path(file), number, {})


def ends(name: str, count: int, seed: int = 0) -> list[str]:
    """How reading ends for each of `count` mutants."""
    return _ends(count, lambda first: ["--format", name, "--seed", str(seed), "--child", str(first), str(count)])


def ends_of_files(name: str, files: Sequence[Path]) -> list[str]:
    """How reading ends for each file, as "refused: …" with the message, in a process that has 200 MiB for it."""
    return _ends(len(files), lambda first: ["--format", name, "--files", *map(str, files[first:])])


def _ends(count: int, arguments: Callable[[int], list[str]]) -> list[str]:
    """Of children, one after the other; one that dies is a fault of the file that it read, the next begins after."""
    found: list[str] = []
    while len(found) < count:
        printed, said, code = _child(arguments(len(found)))
        lines = printed.splitlines()
        if not lines:
            raise RuntimeError(f"the child did not start: {said[-2000:]}")
        found += lines[1::2]
        if len(lines) % 2:
            found.append(f"FAULT the process ended by {code}: {' '.join(said.split())[-200:]}")
    return found


@functools.cache
def _prepared() -> subprocess.Popen[str]:
    """A process that has imported every reader and reads nothing itself: children are forked from it, a new one each time.
    It ends with its standard input, so with this process."""
    command = [sys.executable, "-m", "tests.hostile.fuzz", "--format", "pickle", "--serve"]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _child(arguments: list[str]) -> tuple[str, str, int]:
    """What a fresh child prints on stdout and stderr, and the code by which it ends."""
    with tempfile.TemporaryDirectory() as folder:
        server = _prepared()
        server.stdin.write(json.dumps([folder, arguments]) + "\n")
        server.stdin.flush()
        code = server.stdout.readline()
        if not code:
            raise RuntimeError(f"the process that starts children has ended: {server.wait()}")
        printed, said = (Path(folder, name).read_text("utf-8", "replace") for name in ("out", "err"))
    return printed, said, int(code)


def _serve() -> None:
    """Forks a child for each line on stdin, a folder and its arguments, and answers with the code by which it ended."""
    for place in FORMATS.values():
        with contextlib.suppress(ImportError):  # without `tokenizers`: what needs it is not asked for
            importlib.import_module(place.split(":")[0])
    for line in sys.stdin:
        folder, arguments = json.loads(line)
        child = os.fork()
        if not child:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT, 0o600), number)
            sys.exit(main(arguments))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _kind(end: str) -> str:
    return " ".join(end.split()[:2]).rstrip(":") if end.startswith("FAULT") else end.split(":")[0]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=5, help="faults to print")
    parser.add_argument("--keep", type=Path, help="folder for the files of all faults")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--files", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve:
        _serve()
        return 0
    if options.child:
        read_mutants(options.format, options.seed, *options.child)
        return 0
    if options.files:
        read_files(options.format, options.files)
        return 0
    found = ends(options.format, options.count, options.seed)
    faults = [(n, end) for n, end in enumerate(found) if end.startswith("FAULT")]
    kinds = collections.Counter(_kind(end) for end in found)
    print(f"{options.format}, seed {options.seed}: {len(found)} mutants")
    for kind, number in kinds.most_common():
        print(f"{number:8} {kind}")
    for number, end in faults[: options.show]:
        print(f"mutant {number}: {end}")
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        form = format_of(options.format)
        seeds = form.seeds()
        for number, _ in faults:
            data = mutant(form, seeds, options.seed, number)[1]
            (options.keep / f"{options.format}-{options.seed}-{number}").write_bytes(data)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
