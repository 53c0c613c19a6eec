"""Arguments as strangers and scripts give them, to every option of every command: one line, exit code 2, no Jittor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from jclip.cli import COMMANDS, main

SMOKE = str(Path(__file__).parent.parent.parent / "configs" / "tip_adapter" / "smoke.yaml")
VALUES = (
    "", " ", "x" * 300, "x" * 100_000, "\udcb2\udcd4.jpg", "a\x1b[31m\nb", "-1", "0", "1e9", "9" * 5000, "nan", "inf", "1_000",
    "٣", "~nosuchuser/x", "/dev/null", ".", "-", "=", "a=b", "a.b.c=[", "=" * 300, "{}", "[", "%s", "%(prog)s", "\u202e",
)  # fmt: skip
WRONG = {  # what is wrong already, so that a value that is taken for good ends all the same; and the options
    "search": ("photo.png dog --model none.safetensors",
               "--queries --top --page --where --unique --line --root --out --sheet --link --model --family --dtype --rules "
               "--rerank --bank --flips --candidates"),
    "teach": ("photo.png dog --model none.safetensors",
              "--out --answers --name --sheet --round --audit --seed --root --model --family --dtype"),
    "embed": ("photo.png --model none.safetensors --out none",
              "--out --columns --root --store --model --family --dtype --export"),
    "app": ("photo.png --share", "--run --model --family --port --host --language"),
    "index": ("none", "--kind"),
    "duplicates": ("photo.png --model none.safetensors", "--above --out --sheet --model --family"),
    "zero-shot": ("photo.png --model none.safetensors --classes a,b",
                  "--model --config --classes --unknown --top --out --format --sheet --on-error --templates --mode --scale "
                  "--drop-below --drop-below-uniform --views --size --resize --sharpness --family --dtype"),
    "tag": ("photo.png --model none.safetensors --classes a,b",
            "--classes --model --run --threshold --calibration --top --out --sheet --on-error --sort-into --method "
            "--background --templates --size --windows --family --dtype"),
    "ground": ("photo.png dog --model none.safetensors",
               "--phrase --run --model --boxes --min-score --draw --attention --on-error --family"),
    "train": (f"{SMOKE} none=1", "--run --runs --link"),
    "sweep": (f"{SMOKE} none=1", "--runs --out"),
    "eval": ("none", "--out --on"),
    "predict": ("none photo.png", "--model --top --out --sheet --on-error --sort-into --unsure"),
    "unsort": ("none", ""),
    "measure": ("none.npz --labels none",
                "--labels --classes --images --difficult --crowd --label-values --ap --ties --no-positive --unseen --merge "
                "--ensemble --rho --columns --column-norm --at --threshold --quantiles --calibrate --per-class --out"),
    "measure-boxes": ("none.jsonl",
                      "--out --worst --worst-count --root --criterion --frame --at --box-format --form --dataset"),
    "score": ("photo.png --run none", "--run --windows --scales --shapes --window-resize --window-batch --fuse --theta --kappa "
              "--local-weight --label-statistics --modulation --root --out"),
    "compare": ("none", ""),
    "report": ("none --out none.html", "--out --query --root --language"),
    "challenge": ("none.yaml", "--runs --until"),
    "hold-out": ("none", "--count --shots --seed"),
    "recipes": ("none", ""),
    "convert": ("none.pt out", "--to --dtype --family --activation --normalisation --resize --vision-head-width --post-norm "
                "--tower --image-size --antialias --context-length --context-by --texts --rest-of"),
    "inspect": ("none.pt", "--family --activation --normalisation --resize --vision-head-width --post-norm --tower --texts"),
    "models": ("none", "--random --out --seed"),
    "warmup": ("--model none", "--model --family --dtype --stages"),
    "doctor": ("none", ""),
    "check-data": ("none", "--json --write"),
    "fill": ("none.csv", "--model --family --fill --template --root --out --on-error --preset"),
    "captions": ("label none.txt --classes a,b", "--classes --lexicon --out --max-bad --max-per-class --seed"),
    "boxes": ("none.jsonl",
              "--out --to --proposals --form --dataset --box-format --sources --root --instances --split --dedup --max-bad"),
    "pseudo-labels": ("none.json", "--out --sources --dataset --objects --phrases --seed --words"),
    "reliability": ("none none.jsonl", "--out --root --above"),
    "world": ("photo.png", "--scenes --seed --size --pairs --noise"),
}  # fmt: skip

WITHOUT = (
    "models",
    "recipes",
    "doctor",
    "check-data",
    "world",
)  # commands whose first argument may be any text or folder


def given(command: str) -> list[list[str]]:
    """Each value after each option, in place of each argument, and as one more."""
    wrong, options = (text.split() for text in WRONG[command])
    places = [i for i, word in enumerate(wrong) if not word.startswith("--")]
    found = []
    for value in VALUES:
        found += [[*wrong, option, value] for option in options]
        found += [[*wrong[:i], value, *wrong[i + 1 :]] for i in places if command not in WITHOUT]
        found.append([*wrong, value])
    return found


def test_every_command_is_tried():
    assert {*COMMANDS} <= {*WRONG}


@pytest.mark.parametrize("command", WRONG)
def test_wrong_arguments_are_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    before = "jittor" in sys.modules
    for arguments in given(command):
        shown = [argument[:40] for argument in arguments]
        assert main([command, *arguments]) == 2, shown
        printed = capsys.readouterr()
        assert (
            printed.err.count("\n") == 1
            and printed.err.startswith((f"jclip {command}: ", "convert: "))
            and not printed.out
        ), shown
        assert len(printed.err) < 2300 and all(c.isprintable() or c == "\u3000" for c in printed.err[:-1]), shown
    assert ("jittor" in sys.modules) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png"]  # nothing was made


@pytest.mark.parametrize("options", ["--top 0", "--top -1", "--top 1e9", "--unsure 2", "--unsure nan", "--unknown 1"])
def test_bounds_of_numbers_are_reported(options, capsys):
    command = "zero-shot" if "unknown" in options else "predict"
    assert main([command, "run", *options.split()]) == 2
    assert f"argument {options.split()[0]}: must be a" in capsys.readouterr().err
