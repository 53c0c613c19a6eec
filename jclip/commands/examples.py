"""What `jclip COMMAND --help` ends with: command lines to copy, by command. Each is parsed by its command in the tests."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "search": (
        'jclip search photos "a dog on a beach"',
        'jclip search photos ./like_this.jpg + "at night" --top 20 --sheet found.html',
        "jclip search gallery --queries texts.txt --out found.csv",
    ),
    "teach": ('jclip teach photos "a dented parcel" --sheet ask.html', "jclip search photos concept:a-dented-parcel.concept"),
    "zero-shot": (
        'jclip zero-shot photos --classes "cat,dog" --out result.csv --sheet result.html',
        "jclip zero-shot photos --model RN50 --classes classes.txt --unknown 0.5",
    ),
    "predict": (
        "jclip predict runs/photos new_photos --out predicted.csv",
        "jclip predict runs/photos new_photos --sort-into sorted --unsure 0.5",
    ),
    "tag": (
        'jclip tag photos --classes "person,dog,car" --out tags.csv',
        "jclip tag photos --classes coco --sort-into tagged --dry-run",
    ),
    "ground": (
        'jclip ground photo.jpg "the dog on the left" --draw found.png',
        'jclip ground scene.png "the red circle" --run shapes-tiny-ground',
    ),
    "app": ("jclip app photos", "jclip app gallery --run runs/photos --port 8000"),
    "train": (
        "jclip train run.yaml --run runs/photos                      # run.yaml: jclip check-data photos --write run.yaml",
        "jclip train tip_adapter/smoke                               # on embedded data, in seconds",
        "jclip train run.yaml data.shots=4 optim.lr=1e-3 --dry-run   # how long, how much memory",
    ),
    "sweep": ("jclip sweep run.yaml data.shots=1,2,4 seed=1,2,3",),
    "challenge": ("jclip challenge configs/challenge.yaml data.root=challenge --dry-run",),
    "recipes": ("jclip recipes",),
    "eval": ("jclip eval runs/photos", "jclip eval runs/photos data.root=other_photos --out results/other"),
    "score": ("jclip score photos --run runs/labels --out results/scores",),
    "reliability": ("jclip reliability runs/grounding phrases.jsonl --above 0.5",),
    "measure": ("jclip measure scores.npz --labels instances_val2014.json --at 3",),
    "measure-boxes": ("jclip measure-boxes boxes.jsonl phrases.jsonl --root photos --worst worst.html",),
    "compare": ("jclip compare runs/train1 runs/train2",),
    "report": ("jclip report runs/photos --out report.html", "jclip report runs/train1 runs/train2 --out both.html"),
    "check-data": ("jclip check-data photos --write run.yaml", "jclip check-data run.yaml data.shots=4"),
    "captions": (
        "jclip captions label captions.jsonl --classes coco --out labelled.jsonl",
        "jclip captions generate captions.yaml --out made --dry-run",
    ),
    "boxes": ("jclip boxes phrases.jsonl --root photos", "jclip boxes a.jsonl b.json --dedup exact --out all.jsonl"),
    "pseudo-labels": ("jclip pseudo-labels detections.jsonl --out phrases.jsonl",),
    "world": ("jclip world scenes --scenes 200",),
    "hold-out": ("jclip hold-out challenge",),
    "embed": ("jclip embed photos --out gallery", "jclip embed photos --out gallery --update"),
    "index": ("jclip index gallery",),
    "duplicates": ("jclip duplicates photos --sheet same.html",),
    "fill": ("jclip fill table.csv --root photos --out filled.csv",),
    "unsort": ("jclip unsort sorted/sorted.json",),
    "models": ("jclip models --published", "jclip models --random ViT-B/32 --out random.safetensors"),
    "convert": ("jclip convert ViT-B-32.pt weights", "jclip convert weights clip.pkl --dtype fp16"),
    "inspect": ("jclip inspect ViT-B-32.pt",),
    "doctor": ("jclip doctor",),
    "warmup": ("jclip warmup --model ViT-B/32 --dtype bf16",),
}  # fmt: skip


def examples_of(program: str) -> str:
    """The lines that end the help of a program such as `jclip tag`; empty for one without examples."""
    lines = EXAMPLES.get(program.removeprefix("jclip "), ())
    return (
        "\n".join(["", "examples:" if len(lines) > 1 else "example:", *(f"  {line}" for line in lines), ""])
        if lines
        else ""
    )
