"""What the first start on a machine costs, and the next ones: seconds by part, the compilers' by what they compile.

    python bench/first_start.py [--first] [--second] [--rounds 5] [--out bench/results/NAME.json]

The first start is that of an empty cache in a temporary folder, its compilers called through a script that notes what
each took. CPU seconds (of the process and its children) don't depend on what else the machine does; half of them is
about what two free cores take. One thread computes, as those of OpenMP use processor time while they wait. The second
start is `jclip zero-shot` of a photo and class names that no cache knows, ViT-B/32 with random weights; its parts are
measured in one process that does the same step by step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import speed

PARTS = (  # of what is compiled, by the source or the target: the first that fits
    (r"/jit_utils_core\.", "Jittor's compiler library"),
    (r"/precompiled/", "headers of operators, precompiled"),
    (r"/jit/", "operators"),
    (r"/custom_ops/|/mkl_|cnn_inference", "oneDNN's operators"),
    (r"pyjt_jit_op_maker", "bindings of operators"),
    (r"/gen/|pyjt_", "other bindings"),
    (r"data\.o$", "data.cc"),
    (r"jclip-tests|/test_|/src/test/", "Jittor's own tests"),
    (r"/jittor_core\.", "linking the core"),
    (r"", "core"),
)
COMPILER = """#!/bin/bash
TIMEFORMAT='%U %S'
{{ time {compiler} "$@" 2>&3 ; }} 3>&2 2>{log}.$$
status=$?
printf '%s\\t%s\\n' "$(cat {log}.$$)" "$*" >>{log}
rm -f {log}.$$
exit $status
"""


def main() -> int:
    """Measures, prints the tables, writes the results."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--first", action="store_true", help="only the first start")
    p.add_argument("--second", action="store_true", help="only the second start")
    p.add_argument("--rounds", type=int, default=5, help="second starts (default: 5)")
    p.add_argument("--out", type=Path, help="results as JSON (default: none)")
    p.add_argument("--steps", metavar="PHOTO,WEIGHTS,CLASSES", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.steps:
        print(json.dumps(steps(*args.steps.split(",", 2))))
        return 0
    starts = {}
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="jclip-start-") as folder:
        if args.first or not args.second:
            starts["first start"] = first_start(Path(folder))
        if args.second or not args.first:
            starts["second start"] = second_start(Path(folder), args.rounds)
    for name, start in starts.items():
        print(f"\n| {name} | files | CPU seconds |\n|---|---|---|")
        for part, (count, seconds) in start["parts"].items():
            print(f"| {part} | {count or ''} | {seconds:.2f} |")
        print(f"| **all** | | **{start['cpu_seconds']:.2f}** ({start['seconds']:.2f} s by the clock) |")
    if args.out:
        threads = len(os.sched_getaffinity(0))
        results = speed.read(args.out, threads)
        results.setdefault("starts", {}).update(starts)
        speed.save(args.out, results)
    return 0


def first_start(folder: Path) -> dict:
    """Import Jittor in an empty cache. Returns seconds in all, and number of files and seconds of each part."""
    log, script = folder / "compiled.log", folder / "g++"
    script.write_text(COMPILER.format(compiler=shlex.quote(shutil.which("g++")), log=shlex.quote(str(log))))
    script.chmod(0o755)
    environment = {**os.environ, "JCLIP_CACHE": str(folder / "cache"), "cc_path": str(script)}
    whole = timed([sys.executable, "-c", "from jclip.runtime import jt; jt.ones(3).sum().sync()"], environment)
    parts: dict[str, list] = {}
    for line in log.read_text().splitlines():
        seconds, command = line.split("\t", 1)
        part = part_of(command)
        if part:
            found = parts.setdefault(part, [0, 0.0])
            found[0] += 1
            found[1] += sum(map(float, seconds.split()))
    rest = whole["cpu_seconds"] - sum(seconds for _, seconds in parts.values())
    ordered = dict(sorted(parts.items(), key=lambda item: -item[1][1]))
    return {**whole, "parts": {**ordered, "Python, generating and checking": [0, rest]}}


def part_of(command: str) -> str | None:
    """What a command of the compiler belongs to; None for one that compiles nothing."""
    target = re.search(r"-o (\S+)", command)
    if not target:
        return None
    named = f"{command.split()[0]} {target.group(1)}"
    return next(part for pattern, part in PARTS if any(re.search(pattern, word) for word in named.split()))


def second_start(folder: Path, rounds: int) -> dict:
    """`jclip zero-shot` on a photo, medians of fresh processes; a first one, which warms the disk's cache, is left out."""
    weights = folder / "random.safetensors"
    jclip = [sys.executable, "-m", "jclip.cli"]
    timed([*jclip, "models", "--random", "ViT-B/32", "--out", str(weights)], dict(os.environ))
    wholes, parts = [], []
    for _ in range(rounds + 1):
        photo, names = fresh_photo(folder), f"cat;dog;thing {random.randrange(10**9)}"
        command = ["zero-shot", str(photo), "--model", str(weights), "--classes", names.replace(";", ",")]
        wholes.append(timed([*jclip, *command], dict(os.environ)))
        again = [sys.executable, __file__, "--steps", f"{photo},{weights},{names}x"]
        done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, check=True)
        parts.append(json.loads(done.stdout.splitlines()[-1]))
    medians = {part: [0, statistics.median(p[part] for p in parts[1:])] for part in parts[0]}
    return {key: statistics.median(w[key] for w in wholes[1:]) for key in wholes[0]} | {"parts": medians}


def fresh_photo(folder: Path) -> Path:
    """A photo of 500 x 375 that no cache knows."""
    from PIL import Image

    path = folder / "photo.jpg"
    noise = [Image.effect_noise((63, 47), 60).resize((500, 375), Image.Resampling.BICUBIC) for _ in "RGB"]
    Image.merge("RGB", noise).save(path, quality=95)
    return path


def timed(command: Sequence[str], environment: dict[str, str]) -> dict[str, float]:
    """Run a command. Returns seconds by the clock and CPU seconds of it and its children."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-2000:]}")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": ended - begun, "cpu_seconds": spent}


def steps(photo: str, weights: str, names: str) -> dict[str, float]:
    """CPU seconds of the parts of a zero-shot prediction in this process."""
    spent: dict[str, float] = {"Python and this script": cpu_seconds()}

    def step(name: str, do: Callable[[], object]):
        before = cpu_seconds()
        result = do()
        spent[name] = cpu_seconds() - before
        return result

    def modules():
        import numpy as np  # noqa: F401

        from jclip.commands import zero_shot_photos
        from jclip.report import predictions

        return zero_shot_photos.parser, predictions.table

    def import_jittor():
        from jclip.runtime import jt

        return jt

    def load():
        from jclip.features.source import ModelSource

        model = ModelSource(weights).model
        jt.sync_all(True)
        return model

    def encode_prompts():
        from jclip.features import heads
        from jclip.prompts.templates import class_prompts, load_templates
        from jclip.prompts.tokenizer import tokenize

        texts = [text for of_class in class_prompts(names.split(";"), load_templates("openai80")) for text in of_class]
        return heads.encode_prompts(model, tokenize(texts))

    def encode_photo():
        from PIL import Image

        from jclip.data.preprocess import Preprocess
        from jclip.model import clip

        with clip.inference(model):
            return model.encode_image(Preprocess()(Image.open(photo))[None]).numpy()

    step("jclip's modules, NumPy", modules)
    jt = step("Jittor", import_jittor)
    model = step("the model", load)
    step("240 prompts, the first time", encode_prompts)
    step("240 prompts again: computing", encode_prompts)
    step("the photo, the first time", encode_photo)
    return spent


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


if __name__ == "__main__":
    raise SystemExit(main())
