"""What a dry run says beside what the run then takes, at three sizes each: nine minutes on two idle cores.

python bench/estimates.py [--only embed,tip_adapter,coop,contrastive,ranks,parts] [--seconds 8] [--folder /tmp]

A dry run measures for `--seconds` here, not for half a minute, so that most of each run is extrapolated. Said and taken
follow each other, and CPU seconds are compared beside the clock's, so that a busy machine shows in one of them alone.
`ranks` is `contrastive` by two ranks and `parts` is `embed` by two processes, one thread each, said by one process's dry run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
JCLIP = [sys.executable, "-c", "import sys; from jclip.cli import main; sys.exit(main())"]
CLASSES, MODEL = 10, "ViT-B/32"
SIZES = {"embed": (150, 300, 600), "tip_adapter": (160, 320, 640), "coop": (20, 40, 80), "contrastive": (8, 16, 32),
         "ranks": (8, 16, 32), "parts": (600, 1024, 1536)}  # fmt: skip
TWO = {"ranks", "parts"}  # by two processes


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--only", default=",".join(SIZES))
    p.add_argument("--seconds", type=float, default=8.0)
    p.add_argument("--folder", default=None)
    p.add_argument("--two", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("--said", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.said:
        print(json.dumps(said(args.said, args.seconds, 2 if args.two else 1)))
        return
    print(f"{'':<12} {'size':>6}  {'said':>8} {'taken':>8} ratio   {'CPU said':>8} {'taken':>8} ratio   "
          f"{'memory said':>11} {'taken':>8}   {'disk said':>9} {'taken':>8}")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="jclip-estimates-", dir=args.folder) as name:
        for case in args.only.split(","):
            for size in SIZES[case]:
                one(Path(name), case, size, args.seconds)


def one(place: Path, case: str, size: int, seconds: float) -> None:
    """Both for one size, in a line."""
    order, written = order_of(place, case, size)
    two = case in TWO
    child = [sys.executable, __file__, "--seconds", str(seconds), *(["--two"] if two else []), "--said", *order]
    env = {**os.environ, **({"OMP_NUM_THREADS": "1"} if two else {})}
    ended = subprocess.run(child, capture_output=True, text=True, check=False, env=env)
    if ended.returncode:
        sys.exit(ended.stderr)
    found = json.loads(ended.stdout.splitlines()[-1])
    begun = time.perf_counter()
    process = subprocess.Popen([*started_by(case), *order, *(["--processes", "2"] if case == "parts" else [])],
                               cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    error = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    took, cpu = time.perf_counter() - begun, used.ru_utime + used.ru_stime
    if status:
        sys.exit(error.decode())
    disk = sum(f.stat().st_size for f in written.rglob("*") if f.is_file())
    shown = [f"{s:>8.1f} {t:>8.1f} {s / t:>5.2f}" for s, t in ((found["seconds"], took), (found["cpu"], cpu))]
    memory = f"{found['memory'] / 2**20:>7.0f} MiB {used.ru_maxrss / 1024:>4.0f} MiB"
    print(f"{case:<12} {size:>6}  {shown[0]}   {shown[1]}   {memory}"
          f"   {found['disk'] / 2**20:>5.1f} MiB {disk / 2**20:>4.1f} MiB", flush=True)  # fmt: skip


def started_by(case: str) -> list[str]:
    """What the command of a case begins with."""
    if case != "ranks":
        return JCLIP
    from jclip.machine import open_mpi

    allowed = ["env", *(f"{name}={value}" for name, value in open_mpi.AS_ROOT.items())] if os.geteuid() == 0 else []
    mpi = open_mpi.require_mpi()
    return [*allowed, str(mpi.starter), "-np", "2", "--bind-to", "none", "--map-by", ":OVERSUBSCRIBE", *JCLIP]


def order_of(place: Path, case: str, size: int) -> tuple[list[str], Path]:
    """The command of a case, and the folder that it writes."""
    out = place / f"{case}-{size}"
    if case in ("contrastive", "ranks"):
        scenes = [
            f"data.scenes={64 * size}",
            "data.easy_epochs=0",
            "data.val_scenes=100",
            "optim.epochs=8",
            "zero_shot=[]",
        ]
        return ["train", "contrastive/shapes_tiny_vit", *scenes, "--run", str(out)], out
    model, photos = weights(place), place / f"photos-{case}-{size}"
    draw(photos, size if case != "coop" else 80, seed=time.time_ns())  # none that the cache has
    if case in ("embed", "parts"):
        return ["embed", str(photos), "--model", str(model), "--out", str(out)], out
    data = [f"data.root={photos}", "data.shots=0", "data.val_shots=0", f"model={model}", f"--run={out}"]
    if case == "coop":
        return ["train", "coop/vit_b16_words", *data, f"optim.epochs={size // 5}", "selection=last", "optim.batch=16",
                "augment=none"], out  # fmt: skip
    return ["train", "tip_adapter/photos_fewshot", *data, "data.split_file=", "views=1", "search=false",
            "selection=last"], out  # fmt: skip


def said(order: list[str], seconds: float, processes: int) -> dict[str, float]:
    """What the dry run of a command finds."""
    if order[0] == "embed":
        from jclip.data import gallery_inputs
        from jclip.features import gallery_estimate
        from jclip.features.source import ModelSource

        gallery_estimate.SECONDS = seconds
        found = gallery_estimate.measured(gallery_inputs.read_inputs([order[1]]), ModelSource(order[3]), 2)
        return {"seconds": 3600 * found.hours(processes), "cpu": found.cpu_seconds(processes),
                "memory": found.memory * 2**20, "disk": found.disk / 2}  # fmt: skip
    import finetune  # noqa: F401 - offers the recipes
    from jclip.report.predictor import write_handed_over
    from jclip.train import cost_estimate
    from jclip.train.configs import read_config

    module, cfg, _ = read_config(order[1], [word for word in order[2:] if not word.startswith("--") and "=" in word])
    found = cost_estimate.estimated(module, cfg, seconds, write_handed_over)
    print("\n".join(found.lines()), file=sys.stderr)
    return {"seconds": found.by_ranks(processes), "cpu": found.cpu_of_ranks(processes),
            "memory": found.memory_of_rank(processes), "disk": found.run_bytes}  # fmt: skip


def weights(place: Path) -> Path:
    """Random ones, made once."""
    file = place / "weights.safetensors"
    if not file.is_file():
        command = ["models", "--random", MODEL, "--out", str(file)]
        subprocess.run([*JCLIP, *command], cwd=ROOT, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
    return file


def draw(folder: Path, count: int, seed: int) -> None:
    """So many JPEG of 500 x 375, in a folder for each class."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    for number in range(count):
        file = folder / f"class {number % CLASSES}" / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(file, quality=90)


if __name__ == "__main__":
    main()
