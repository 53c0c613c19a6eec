"""The challenge on real photos with weights of seeded random numbers, killed twice on the way and equal to a run that was not.

    python bench/challenge.py [--photos ../shared/data/fewshot] [--out runs/bench-challenge] [setting …]

Writes the challenge's folder twice, of links to 99 classes of three data sets, with two classes of test set B that no photo
teaches; draws the photos to learn from and to choose by; runs `configs/challenge.yaml` whole, then again with `kill -9` once
in the first backbone's training and once when the members have begun, and compares the files that are handed in. Settings
go to both runs, such as tune.optim.epochs=2 board=B. What has been done stays in --out and is not done
again; remove it to start over.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DOMAINS = {"caltech101": "Caltech-101", "food101": "Food-101", "pets": "Animal"}
UNTAUGHT = ("Stanford-Cars_Audi_TTS_Coupe_2012", "Stanford-Cars_Volvo_C30_Hatchback_2012")
SMALL = ("tune.optim.epochs=1", "tune.optim.batch=99", "tune.every=1", "date='0820'")
KILLED_AT = ("tuned-*/metrics.jsonl", "tip_adapter-*/config.yaml")  # when the first file of the kind is there


def main() -> int:
    """Run, compare, and report how long each part took."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("settings", nargs="*", metavar="key=value", help="of configs/challenge.yaml, for both runs")
    p.add_argument("--photos", type=Path, default=ROOT.parent / "shared" / "data" / "fewshot")
    p.add_argument("--out", type=Path, default=Path("runs/bench-challenge"))
    p.add_argument("--held-out", type=int, default=300, help="photos of TestSetZ")
    p.add_argument("--classes", type=int, default=0, help="only so many classes of each domain (default: all)")
    p.add_argument("--backbones", default="ViT-B/32,RN101", help="architectures, between commas")
    args = p.parse_intermixed_args()
    out = args.out.absolute()
    backbones = [write_backbone(name, out) for name in args.backbones.split(",")]
    settings = [f"backbones=[{', '.join(backbones)}]", *SMALL, *args.settings]
    for name in ("whole", "killed"):
        write_folder(args.photos.absolute(), out / name / "challenge", args.classes)
        finetune("hold-out", str(out / name / "challenge"), "--count", str(args.held_out), "--link")
    challenge(out / "whole", settings)
    for pattern in KILLED_AT:
        challenge(out / "killed", settings, pattern)
    challenge(out / "killed", settings)
    return compare(out)


def write_backbone(name: str, out: Path) -> str:
    """The file of an architecture's seeded random weights."""
    path = out / f"{name.replace('/', '-')}.safetensors"
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        run([sys.executable, "-m", "jclip.cli", "models", "--random", name, "--out", str(path)])
    return str(path)


def write_folder(photos: Path, folder: Path, classes: int) -> None:
    """The challenge's folder of an index with path, domain, classname and split."""
    if (folder / "train.txt").is_file():
        return
    with open(photos / "index.tsv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f, delimiter="\t"))
    names = list(dict.fromkeys(f"{DOMAINS[row['domain']]}_{row['classname'].replace(' ', '_')}" for row in rows))
    names = [n for n in names if not classes or n in [m for m in names if m.split("_")[0] == n.split("_")[0]][:classes]]
    lines, tests = [], 0
    for row in rows:
        name = f"{DOMAINS[row['domain']]}_{row['classname'].replace(' ', '_')}"
        if name not in names:
            continue
        suffix, domain, short = Path(row["path"]).suffix, *name.split("_", 1)
        if row["split"] == "test":
            link(photos / row["path"], folder / "TestSetA" / f"{tests}{suffix}")
            tests += 1
        else:
            place = Path("TrainSet", domain, short, f"{len(lines)}{suffix}")
            link(photos / row["path"], folder / place)
            lines.append(f"{place} {names.index(name)}\n")
    (folder / "TestSetB").symlink_to("TestSetA")
    for file, known in (("classes.txt", names), ("classes_b.txt", (*names, *UNTAUGHT))):
        (folder / file).write_text("".join(f"{name} {label}\n" for label, name in enumerate(known)), encoding="utf-8")
    (folder / "train.txt").write_text("".join(lines), encoding="utf-8")
    print(f"{folder}: {len(lines)} training photos of {len(names)} classes, {tests} test photos")


def link(photo: Path, place: Path) -> None:
    """A link to `photo`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(photo)


def challenge(folder: Path, settings: Sequence[str], kill_at: str = "") -> None:
    """Runs the challenge in `folder` to its end, or until a file that is named so begins to be there."""
    places = ["--runs", str(folder / "runs"), f"out={folder / 'results'}"]
    run_or_kill(folder, ["challenge", f"data.root={folder / 'challenge'}", *settings, *places], kill_at)


def run_or_kill(folder: Path, command: Sequence[str], kill_at: str) -> None:
    """Runs one of the project's commands to its end, or until a file below `folder` that is named so begins to be there."""
    begun = time.monotonic()
    if not kill_at:
        finetune(*command)
        print(f"{folder.name}: ended after {time.monotonic() - begun:.0f} s", flush=True)
        return
    if list(folder.rglob(kill_at)):
        return  # an earlier call of this program got as far
    process = subprocess.Popen([sys.executable, "-m", "finetune", *command], env=environment())
    while process.poll() is None and not list(folder.rglob(kill_at)):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise SystemExit(f"{folder.name}: ended before it could be killed at {kill_at}")
    print(f"{folder.name}: killed after {time.monotonic() - begun:.0f} s, at {kill_at}", flush=True)


def compare(out: Path) -> int:
    """0 where both runs hand in the same bytes."""
    files = [sorted((out / name / "results").glob("result*.[tz]*")) for name in ("whole", "killed")]
    same = [a.name == b.name and a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True)]
    for path, equal in zip(files[0], same, strict=True):
        print(f"{path.name}: {'equal' if equal else 'DIFFERENT'}, {path.stat().st_size} bytes")
    return 0 if same and all(same) else 1


def finetune(*arguments: str) -> None:
    """One of the project's commands."""
    run([sys.executable, "-m", "finetune", *arguments])


def run(command: Sequence[str]) -> None:
    """Raises `SystemExit` where it fails."""
    if code := subprocess.run(command, env=environment()).returncode:
        raise SystemExit(code)


def environment() -> dict[str, str]:
    """This checkout's modules come first."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))}


if __name__ == "__main__":
    sys.exit(main())
