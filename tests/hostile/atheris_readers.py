"""Coverage-guided fuzzing of the readers of weights and features by atheris (`pip install '.[fuzz]'`), by command only:

`python -m tests.hostile.atheris_readers CORPUS -max_total_time=3600 -rss_limit_mb=1024 -timeout=10 -artifact_prefix=FOLDER/`

The corpus folder is filled with sound files first. A file that ends in anything but a `JclipError` of one line, or in
arrays, is written to the folder of artifacts, and the run ends; `-runs=1 FILE` in place of the corpus tries one again.
"""

from __future__ import annotations

import importlib
import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["jclip.readers", "jclip.features.precomputed"]):
    importlib.import_module("jclip.features.precomputed")

import numpy as np

from jclip.errors import JclipError, printable
from tests.hostile.fuzz import LONGEST_LINE, MUTATIONS, format_of

FORMATS = [format_of(name) for name in ("pickle", "torch", "safetensors", "npz")]
SEEDS = [form.seeds() for form in FORMATS]
FOLDER = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def read_one(data: bytes) -> None:
    """The first byte chooses the format, the rest is the file."""
    if not data:
        return
    form = FORMATS[data[0] % len(FORMATS)]
    path = Path(FOLDER.name, form.name)
    path.write_bytes(data[1:])
    try:
        found = form.read(path)
    except JclipError as e:
        message = str(e)
        if message != printable(message, LONGEST_LINE):
            raise RuntimeError(f"a message of {len(message)} characters: {message!r:.300}") from e
        return
    if not all(isinstance(a, np.ndarray) and not a.dtype.hasobject for a in found.values()):
        raise RuntimeError("what was read is no array of plain values")


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """libFuzzer's mutation, or one of our own inside a container whose checksums stay right."""
    rng = random.Random(seed)
    which, body = (data[0] % len(FORMATS), data[1:]) if data else (0, b"")
    form = FORMATS[which]

    def inner(part: bytes) -> bytes:
        if rng.random() < 0.5:
            return atheris.Mutate(part, most)
        return rng.choice(MUTATIONS)(rng, part, rng.choice(SEEDS[which]), form.tokens)

    try:
        made = form.wrap(rng, body, inner) if form.wrap and rng.random() < 0.6 else inner(body)
    except Exception:  # a file that is broken already can't be opened to mutate inside
        made = inner(body)
    return (bytes([which]) + made)[:most]


def main() -> None:
    """Fills the corpus, then hands over to libFuzzer."""
    corpus = next((Path(a) for a in sys.argv[1:] if not a.startswith("-")), None)
    if corpus and not corpus.is_file():
        corpus.mkdir(parents=True, exist_ok=True)
        for which, seeds in enumerate(SEEDS):
            for number, seed in enumerate(seeds):
                (corpus / f"{which}-{number}").write_bytes(bytes([which]) + seed)
    atheris.Setup([*sys.argv, "-max_len=8192"], read_one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
