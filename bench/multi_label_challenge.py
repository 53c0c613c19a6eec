"""The challenge of several labels on real photos with seeded random weights, killed twice and equal to a whole run.

    python bench/multi_label_challenge.py [--photos FOLDER] [--model ViT-B/32] [--out FOLDER] [setting …]

Writes lists of the photos of COCO's val2017 that have boxes, the first half to choose by, the second to be scored and measured;
runs `configs/multi_label_challenge.yaml` with few captions and steps, its six models from each other, whole; then again with
`kill -9` once in a model's training and once when a part of the photos has been scored, and compares what is handed in.
Figures say nothing, the weights are random: this is about format, time and going on. Settings go to both runs, such as
windows.mode=dense. What has been done stays in --out and is not done again; remove it to start over.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from bench.challenge import run_or_kill, write_backbone

SMALL = (
    "generate.count=240", "generate.hard=[toaster, hair drier]", "choose=[merge, ensemble]",
    "common={context: 4, sentences: [], optim: {epochs: 1, stop: 0, warmup: 0, batch: 120}}",
    "windows={scales: [2], shapes: unit}",
)  # fmt: skip
KILLED_AT = ("zema-*/config.yaml", "scores-test-*/manifest.json")  # when the first file of the kind is there
FILES = ("result.json", "scores.npz", "parts.csv")


def main() -> int:
    """Runs, compares, and prints how long each part took."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("settings", nargs="*", metavar="key=value", help="of configs/multi_label_challenge.yaml")
    p.add_argument("--photos", type=Path, default=ROOT.parent / "shared" / "data" / "coco")
    p.add_argument("--model", default="ViT-B/32", help="an architecture")
    p.add_argument("--out", type=Path, default=Path("runs/bench-multi-label"))
    args = p.parse_intermixed_args()
    out = args.out.absolute()
    weights = write_backbone(args.model, out)
    lists = write_lists(args.photos.absolute(), out)
    settings = [f"model={weights}", *SMALL, *(f"data.{part}={path}" for part, path in lists.items())]
    settings += [f"data.root={args.photos.absolute() / 'images'}", *args.settings]
    challenge(out / "whole", settings)
    for pattern in KILLED_AT:
        challenge(out / "killed", settings, pattern)
    challenge(out / "killed", settings)
    return compare(out)


def write_lists(photos: Path, out: Path) -> dict[str, Path]:
    """JSON lines of photos and the names on them, by part."""
    rows = json.loads((photos / "coco.json").read_text(encoding="utf-8"))["images"]
    rows = [row for row in rows if row["split"] == "val2017" and row.get("boxes")]
    lines = [json.dumps({"photo": r["image"], "labels": sorted({box[0] for box in r["boxes"]})}) for r in rows]
    print(f"{len(lines)} photos with boxes")
    found, half = {}, len(lines) // 2
    for part, own in (("val", lines[:half]), ("test", lines[half:])):
        found[part] = out / f"{part}.jsonl"
        found[part].write_text("".join(f"{line}\n" for line in own), encoding="utf-8")
    return found


def challenge(folder: Path, settings: Sequence[str], kill_at: str = "") -> None:
    """Runs the challenge in `folder` to its end, or until a file that is named so begins to be there."""
    places = ["--runs", str(folder / "runs"), f"out={folder / 'results'}"]
    command = ["challenge", str(ROOT / "configs" / "multi_label_challenge.yaml"), *settings, *places]
    run_or_kill(folder, command, kill_at)


def compare(out: Path) -> int:
    """0 where both runs hand in the same bytes."""
    wrong = 0
    for name in FILES:
        one, two = (out / run / "results" / name for run in ("whole", "killed"))
        equal = one.read_bytes() == two.read_bytes()
        wrong += not equal
        print(f"{name}: {'equal' if equal else 'DIFFERENT'}, {one.stat().st_size} bytes")
    rows = json.loads((out / "whole" / "results" / "result.json").read_text(encoding="utf-8"))
    print(f"result.json: {len(rows)} rows of {sorted({len(row) for row in rows})} numbers")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
