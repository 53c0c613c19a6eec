"""A folder with what a challenge of several labels needs, in small: photos, labels of two parts, settings of its YAML."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("red thing", "green thing", "blue thing", "dog")
SIZES = ((41, 67), (90, 53), (33, 33), (64, 64), (57, 41))
LABELS = {"val": [(0,), (1, 2), (0, 3), (2,), (1,)], "test": [(3,), (0, 1), (), (2, 3), (0, 1, 2)]}

TEXT = """
task: multi_label
model: {model}
classes: names.txt
generate: {{count: 24, hard: [dog, red thing], templates: {{sets: true}}}}
common: {{context: 3, optim: {{epochs: 2, batch: 8, warmup: 0, lr: 1e-2}}}}
models:
  main:
    learns: [captions, hard]
    fusion: {{form: var_sim_var, local_weight: 1.5}}
    evidence: true
    winner: pp_plus
    modulation: 0.5
    bank: 3
  teacher: {{learns: [captions, whole_sets], teacher_global: 1, teacher_local: 10, keep: student, optim: {{average: 0.9}}}}
  hard_one: {{learns: hard, init_from: teacher, only: [dog, red thing]}}
windows: {{scales: [2], shapes: unit, batch: 7}}
fusion: {{theta: 1.1, kappa: 1.4}}
ensemble: {{kind: columns, columns: {{hard_one: [Dog], teacher: [green_thing]}}}}
choose: []
out: {out}
"""


def write_folder(root: Path, model: str) -> Path:
    """`names.txt`, photos, `val.jsonl`, `test.jsonl`, and `my contest, small.yaml`, which is returned."""
    rng = np.random.default_rng(5)
    root.mkdir(parents=True)
    (root / "names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    for part, labels in LABELS.items():
        (root / part).mkdir()
        lines = []
        for number, (own, (height, width)) in enumerate(zip(labels, SIZES, strict=True)):
            place = f"{part}/{number} photo.png"
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / place)
            lines.append(json.dumps({"photo": place, "labels": [NAMES[label] for label in own]}) + "\n")
        (root / f"{part}.jsonl").write_text("".join(lines))
    text = TEXT.format(model=model, out=root / "results")
    (root / "my contest, small.yaml").write_text(text)
    return root / "my contest, small.yaml"
