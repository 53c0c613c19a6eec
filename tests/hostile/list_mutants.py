"""Seeded mutants of users' text files, and what becomes of them: a refusal in one line, or a well-formed result.

By command: `python tests/hostile/list_mutants.py --count 20000`. Needs no Jittor.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import sys
import tempfile
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jclip.config import CaptionConfig, DataConfig
from jclip.data.captions import read_pairs
from jclip.data.class_names import read_class_names
from jclip.data.multi_label import read_multi_label
from jclip.data.multi_label_sets import read_labels, read_voc
from jclip.data.splits import read_list
from jclip.errors import JclipError, printable
from jclip.prompts.templates import class_prompts, load_templates
from jclip.report.calibration_file import read_calibration
from jclip.report.score_files import read_scores

NAMES = ("cat", "black dog", "Café_noir")
PHOTOS = ("a.png", "b c.png", "sub/猫.png")
CAPTIONS = ("a cat, asleep", 'a "black" dog', "costs five")
ENDS = ("refused", "read", "ill-formed", "traceback")

SEEDS: dict[str, dict[str, str]] = {
    "class list": {
        "a.txt": "cat\nblack dog\nCafé_noir\n",
        "b.txt": "cat 0\nblack dog 1\nCafé_noir 2\n",
        "c.txt": "0: cat\n1: black dog\n2: Café_noir\n",
        "a.csv": 'id,name\n0,cat\n1,"black dog"\n2,Café_noir\n',
        "a.tsv": "cat\t0\nblack dog\t1\nCafé_noir\t2\n",
        "a.json": json.dumps(NAMES),
        "b.json": json.dumps({str(k): name for k, name in enumerate(NAMES)}),
        "c.json": json.dumps({name: k for k, name in enumerate(NAMES)}),
        "d.json": json.dumps([{"name": n, "id": k, "synonyms": [n, "x" + n]} for k, n in enumerate(NAMES)]),
        "a.yaml": "nc: 3\nnames:\n  0: cat\n  1: black dog\n  2: Café_noir\n",
    },
    "photo list": {
        "a.txt": "a.png 0\nb c.png 1\nsub/猫.png 2\n",
        "b.txt": "a.png\t0\r\nb c.png\t1\r\nsub\\猫.png\t2\r\n",
        "c.txt": "a.png,0\nb c.png,1\nsub/猫.png,2\n",
        "d.txt": "0 a.png\n1 b c.png\n2 sub/猫.png\n",
        "many.txt": "a.png 0 2\nb c.png 1\nsub/猫.png\n",
    },
    "captions": {
        "a.csv": "filepath,title\n"
        + "".join(f'{p},"{c}"\n'.replace('"black"', '""black""') for p, c in zip(PHOTOS, CAPTIONS, strict=True)),
        "a.tsv": "filepath\ttitle\na.png\ta cat\nb c.png\ta dog\nsub/猫.png\tcosts five\n",
        "b.csv": "filepath| n| title\na.png| 0| a cat\nb c.png| 1| a dog\n",
        "a.jsonl": "".join(
            json.dumps({"filepath": p, "title": c}) + "\n" for p, c in zip(PHOTOS, CAPTIONS, strict=True)
        ),
        "a.txt": "a.png$white$a cat\nb c.png$x,y$a dog\nsub/猫.png$z$costs five\n",
        "truth.txt": "a cat$a.png$b c.png\ncosts five$sub/猫.png\n",
        "flickr.txt": "image,caption\na.png,a cat, black\nb c.png,a dog\nsub/猫.png,costs five\n",
        "a.token": "a.png#0\ta cat\na.png#1\ta dog\nsub/猫.png#0\tcosts five\n",
        "list.json": json.dumps([{"image": p, "captions": [c, c]} for p, c in zip(PHOTOS, CAPTIONS, strict=True)]),
        "coco.json": json.dumps(
            {
                "images": [{"id": i, "file_name": p} for i, p in enumerate(PHOTOS)],
                "annotations": [{"image_id": i, "caption": c} for i, c in enumerate(CAPTIONS)],
            }
        ),
    },
    "templates": {
        "a.txt": "a photo of a {}.\nmany {c}.\n{raw} of {length}, {in} use\n",
        "a.json": json.dumps(["a photo of a {}.", "many {c}."]),
        "inline": "a photo of a {}.",
    },
    "prompts JSON": {
        "a.json": json.dumps({name: [f"This is {name}.", "It is seen."] for name in NAMES}),
        "b.json": json.dumps({"templates": ["a {}."], "class_sentences": dict.fromkeys(NAMES, "It is.")}),
    },
    "label sources": {
        "labels.txt": "a.png 0 2\nb c.png 1\n000000000139 0\n",
        "labels.csv": "photo,labels,unknown\na.png,cat;black dog,\nb c.png,,cat\n",
        "columns.csv": "photo,cat,black dog,Café_noir\na.png,1,0,-1\nb c.png,0,,1\n",
        "labels.jsonl": "".join(json.dumps({"photo": p, "labels": [NAMES[0]], "unknown": [NAMES[2]]}) + "\n" for p in PHOTOS),
        "instances.json": json.dumps({
            "images": [{"id": k, "file_name": p} for k, p in enumerate(PHOTOS)],
            "categories": [{"id": k + 4, "name": n} for k, n in enumerate(NAMES)],
            "annotations": [{"image_id": 1, "category_id": 4, "iscrowd": 0}, {"image_id": 2, "category_id": 6, "iscrowd": 1}],
        }),
    },
    "annotations": {
        "a.xml": "<annotation><object><name>cat</name><difficult>1</difficult></object>"
        "<object><name>black dog</name></object></annotation>",
    },
    "score files": {
        "a.json": json.dumps({"classes": NAMES, "images": PHOTOS, "scores": [[0.5, -1, 2e-3]] * 3}),
        "b.json": json.dumps([[0.5, -1, 2e-3]] * 3),
    },
    "calibrations": {
        "a.json": json.dumps({
            "kind": "jclip calibration", "version": 1, "classes": NAMES, "rule": "class_f1", "thresholds": [0.5, 1, -2.0],
            "a": [1.5, None, 2.0], "b": [0.0, None, -1], "without_probability": ["black dog"],
            "list": {"name": "val.txt", "sha256": "ab" * 32, "photos": 9},
        }, ensure_ascii=False),
    },
}  # fmt: skip
TOKENS = [
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\xe7\x8c", b"\r", b"\r\n", b"\n\n", b"\t", b"  ", b",", b";", b"|", b"$",
    b'"', b"'", b"\\", b"/", b"../", b"{", b"}", b"{}", b"{0.__class__}", b"%s", b"[", b"]", b"[" * 3000, b'{"a":' * 3000,
    b"-1", b"1.5", b"4294967296", b"9" * 5000, b"1e999", b"NaN", b"null", b"true", b"Infinity", b"0", b"7", b"#", b": ", b"*a",
    b"&a ", b"!!python/name:os.system ", b"\x1b[2J", b"x" * 300, b"y" * 140_000, "\u2028".encode(), "\u0085".encode(),
    "\u200b".encode(), "\u202e".encode(), "Ｃａｔ".encode(), "cafe\u0301".encode(), "猫".encode("gb18030"), "黑狗".encode(),
    b"\\ud800", b"\\u0000", b"cat", b"id", b"name", b".png", b"$5$",
]  # fmt: skip


def mutants(text: str, count: int, seed: int) -> Iterator[bytes]:
    """`count` changed forms of a file's text, the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        data = text.encode()
        for _ in range(rng.choice((1, 1, 2, 4))):
            data = rng.choice(_CHANGES)(data, rng)
        yield data


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data or b"x")
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(TOKENS) + data[at:]


def _replace(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + rng.choice(TOKENS) + data[min(end, start + 12) :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    at = rng.randrange(len(lines))
    kind = rng.randrange(4)
    if kind == 0:
        return b"".join(lines[:at] + lines[at + 1 :])
    if kind == 1:
        return b"".join([*lines, lines[at]])
    if kind == 2:
        rng.shuffle(lines)
        return b"".join(lines)
    return b" ".join(line.strip() for line in lines)


def _recode(data: bytes, rng: random.Random) -> bytes:
    encoding = rng.choice(("utf-16", "utf-16-le", "utf-32", "gb18030", "latin-1", "utf-8-sig", "shift-jis", "utf-7"))
    return data.decode("utf-8", "replace").encode(encoding, "replace")


def _number(data: bytes, rng: random.Random) -> bytes:
    places = [k for k, byte in enumerate(data) if chr(byte).isdigit()]
    if not places:
        return _insert(data, rng)
    at = rng.choice(places)
    return (
        data[:at]
        + rng.choice((b"-1", b"0", b"1", b"1.0", b"99", b"4294967296", b"nan", b"true", b'"0"'))
        + data[at + 1 :]
    )


_CHANGES: list[Callable[[bytes, random.Random], bytes]] = [
    _flip,
    _insert,
    _insert,
    _replace,
    _cut,
    _lines,
    _recode,
    _number,
]


def end_of(kind: str, file: Path, data: bytes) -> tuple[str, str]:
    """One of `ENDS` and the message, of reading `data` as that kind of file."""
    given = str(file)
    if file.name == "inline":
        given = data.decode("utf-8", "surrogateescape")
    else:
        file.write_bytes(data)
    try:
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            problem = CHECKS[kind](given)
    except JclipError as e:
        line = printable(str(e))
        return ("refused", line) if line.strip() and "\n" not in line else ("ill-formed", f"message {line!r}")
    except Exception:
        return "traceback", traceback.format_exc(limit=-2)
    if not problem and any(len(line) > 3000 or not line.isprintable() for line in stderr.getvalue().splitlines()):
        problem = f"printed {stderr.getvalue()!r:.200}"
    return ("ill-formed", problem) if problem else ("read", "")


def _class_list(given: str) -> str:
    names = read_class_names(given).names
    keys = {unicodedata.normalize("NFC", name.casefold()) for name in names}
    if len(names) < 2 or len(keys) < len(names):
        return f"not several different names: {names!r:.200}"
    return "".join(_odd(name) for name in names)


def _photo_list(given: str) -> str:
    file = Path(given)
    if file.name == "many.txt":
        found = read_multi_label(DataConfig(test=given, classes=str(file.with_name("classes.txt"))))
        return "" if found.targets.shape == (len(found.photos), len(NAMES)) else "targets of another shape"
    split = read_list(file, file.parent, NAMES)
    labels = split.labels
    if len(split.paths) != len(labels) or labels.min() < 0 or labels.max() >= len(NAMES):
        return f"labels {labels.tolist()!r:.200}"
    return ""


def _captions(given: str) -> str:
    problems = []
    for on_error in ("skip", "stop"):
        pairs = read_pairs(CaptionConfig(train=given, on_error=on_error), "train", (8, 8), 0)
        texts, _ = pairs.texts(range(len(pairs)))
        if not all(isinstance(t, str) and t.strip().casefold() not in ("", "none", "nan", "null") for t in texts):
            problems.append(f"captions {texts!r:.200}")
        if not all(os.path.isfile(p) for p in pairs.paths) or len(pairs.paths) != len(texts):  # noqa: PTH113
            problems.append("images that are not there")
    return "; ".join(problems)


def _templates(given: str) -> str:
    prompts = class_prompts(NAMES, load_templates(given), article=True, plural=True)
    if len(prompts) != len(NAMES) or not all(of_class for of_class in prompts):
        return "a class without prompts"
    return "".join(_odd(text) for of_class in prompts for text in of_class if not text.strip() or "<class" in text)


def _labels(given: str) -> str:
    found = read_labels(given, None if Path(given).name == "columns.csv" else NAMES)
    wanted = (len(found.photos), len(found.classnames))
    if found.targets.shape != wanted or not np.isin(found.targets, (-1, 0, 1)).all():
        return f"targets {found.targets!r:.200}"
    return "" if all(found.photos) and len({*found.photos}) == len(found.photos) else f"photos {found.photos!r:.200}"


def _annotation(given: str) -> str:
    root = Path(given).parent / "voc"
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main/test.txt").write_text("a\n")
    (root / "Annotations/a.xml").write_bytes(Path(given).read_bytes())
    return (
        ""
        if read_voc(root, classnames=NAMES, difficult="ignore").targets.shape == (1, 3)
        else "targets of another shape"
    )


def _scores(given: str) -> str:
    found = read_scores(given).main
    return "" if found.ndim == 2 and np.isfinite(found).all() else f"scores {found!r:.200}"


def _calibration(given: str) -> str:
    found = read_calibration(given)
    alike = len(found.classnames) == len(found.thresholds) == len(found.a) == len(found.b)
    return "" if alike and np.isfinite(found.thresholds).all() else f"thresholds {found.thresholds!r:.200}"


def _odd(text: str) -> str:
    """What makes a text unfit for names and prompts; nothing where it is fit."""
    bad = any(unicodedata.category(c) in ("Cc", "Cs") for c in text)
    return f"text {text!r:.100}" if bad or not text.strip() or "<class" in text else ""


CHECKS = {
    "class list": _class_list,
    "photo list": _photo_list,
    "captions": _captions,
    "templates": _templates,
    "prompts JSON": _templates,
    "label sources": _labels,
    "annotations": _annotation,
    "score files": _scores,
    "calibrations": _calibration,
}


def run(kind: str, count: int, folder: Path, seed: int = 1) -> tuple[Counter, list[str]]:
    """How `count` mutants of that kind of file end, and what was said of those that end badly."""
    for photo in (*PHOTOS, "classes.txt"):
        (folder / photo).parent.mkdir(parents=True, exist_ok=True)
        (folder / photo).touch()
    (folder / "classes.txt").write_text("cat 0\nblack dog 1\nCafé_noir 2\n", encoding="utf-8")
    ends, bad = Counter(), []
    seeds = SEEDS[kind]
    for number, (name, text) in enumerate(seeds.items()):
        share = count // len(seeds) + (number < count % len(seeds))
        for data in mutants(text, share, seed * 1000 + number):
            end, message = end_of(kind, folder / name, data)
            ends[end] += 1
            if end in ("ill-formed", "traceback"):
                bad.append(f"{kind}, {name}, {data!r:.300}: {message}")
    return ends, bad


def main() -> None:
    """Runs as many mutants of each kind as asked for and prints how they end."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--count", type=int, default=20_000, help="of each kind of file")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--show", type=int, default=3, help="bad ends shown for each kind")
    args = p.parse_args()
    print(f"{'kind':14}" + "".join(f"{end:>12}" for end in ENDS))
    with tempfile.TemporaryDirectory() as folder:
        for kind in SEEDS:
            ends, bad = run(kind, args.count, Path(folder), args.seed)
            print(f"{kind:14}" + "".join(f"{ends[end]:>12}" for end in ENDS), flush=True)
            for one in bad[: args.show]:
                sys.stderr.write(one + "\n")


if __name__ == "__main__":
    main()
