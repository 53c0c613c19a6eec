"""The command line as one language: options that several commands share, help texts, headings. Without Jittor and NumPy."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from jclip.choices import default_model
from jclip.cli import COMMANDS, GROUPS, main, usage
from jclip.commands.arguments import SHARED, Parser
from jclip.commands.examples import EXAMPLES

ROOT = Path(__file__).parent.parent.parent
HEADINGS = {
    "look": ["search", "teach", "zero-shot", "predict", "tag", "ground", "app"],
    "learn": ["train", "sweep", "challenge", "recipes"],
    "measure": ["eval", "score", "reliability", "measure", "measure-boxes", "compare", "report"],
    "data": [
        "check-data",
        "captions",
        "boxes",
        "pseudo-labels",
        "world",
        "hold-out",
        "embed",
        "index",
        "duplicates",
        "fill",
        "unsort",
    ],
    "weights": ["models", "convert", "inspect"],
    "machine": ["doctor", "warmup"],
}
FIXED = ("--model", "--run", "--out", "--sheet", "--top", "--dry-run", "--on-error")
OTHER_NAMES = {  # what other tools call these: here nothing else may be called so
    "--model": "--models --weights --checkpoint --ckpt --arch --backbone --pretrained --base-model -m",
    "--run": "--run-dir --run-folder --workdir --work-dir --experiment -r",
    "--out": "--output --output-dir --out-dir --outdir --dst --save --save-to --results --result --destination -o",
    "--sheet": "--contact-sheet --grid --html --png --picture --gallery",
    "--top": "--topk --top-k --k --top-n -k",
    "--dry-run": "--dryrun --simulate --pretend --no-act --plan -n",
    "--on-error": "--errors --error --skip --skip-errors --skip-broken --ignore-errors --strict --if-broken",
    "--seed": "--random-seed --rng -s",
}
DIALECT = re.compile(r"\b(told|tells?|mends?|held to|in no time)\b")
SPEAKING = [  # whose texts users read
    *sorted((ROOT / "jclip" / "commands").glob("*.py")),
    *sorted((ROOT / "jclip" / "config").glob("*.py")),
    *(ROOT / name for name in ("jclip/cli.py", "convert/cli.py", "convert/check.py", "convert/summary.py")),
]


@cache
def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser that a command's --help prints, which must answer with exit code 0."""
    found = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(Parser, "print_help", lambda self, file=None: found.append(self))
        main([command, "--help"])
    assert not ended.value.code
    return found[0]


def actions(command: str) -> list[argparse.Action]:
    """Its positional arguments and options, without --help."""
    return [action for action in parser_of(command)._actions if action.dest != "help"]


def having(option: str) -> dict[str, argparse.Action]:
    """The commands that have an option, with their own of it."""
    return {command: action for command in COMMANDS for action in actions(command) if option in action.option_strings}


def shown(action: argparse.Action) -> str:
    """What a help text calls an argument."""
    return str(action.metavar or (action.option_strings or [action.dest])[0])


def test_commands_stand_under_their_headings():
    assert {heading: [*group] for heading, group in GROUPS.items()} == HEADINGS
    printed = usage().split("\n\n")[1:-1]
    found = {text.splitlines()[0]: [line.split()[0] for line in text.splitlines()[1:]] for text in printed}
    assert found == HEADINGS
    assert all(len(line) <= 100 for line in usage().splitlines())


@pytest.mark.parametrize("option", [*SHARED])
def test_a_shared_option_has_one_metavar_and_one_meaning(option):
    meaning, given = SHARED[option]
    found = (
        having(option) if option.startswith("-") else {c: a for c in COMMANDS for a in actions(c) if a.dest == "run"}
    )
    found = {command: a for command, a in found.items() if a.option_strings == ([option] if option[0] == "-" else [])}
    assert found
    for command, action in found.items():
        assert action.help.startswith(meaning), command
        assert action.metavar == given.get("metavar", None if option.startswith("-") else option), command
        assert action.type == given.get("type") and action.choices == given.get("choices"), command
        assert not action.required or not option.startswith("-"), command


def test_options_with_a_fixed_name_are_shared():
    assert {*FIXED} <= {*SHARED}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_has_another_name_in_one_command(command):
    taken = {name for names in OTHER_NAMES.values() for name in names.split()}
    spelt = {name for action in actions(command) for name in action.option_strings}
    assert not spelt & taken
    assert all(re.fullmatch(r"--[a-z]+(-[a-z]+)*", name) for name in spelt)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_arguments_and_defaults_in_plain_words(command):
    parser = parser_of(command)
    text = parser.format_help()
    assert parser.description
    assert not (found := DIALECT.search(text)), found
    for action in actions(command):
        assert action.help, shown(action)
        assert action.option_strings or shown(action) in text.partition("positional arguments:")[2], shown(action)
        default = action.default
        if action.nargs == 0 or default in (None, argparse.SUPPRESS, [], "") or action.dest == "model":
            continue
        said = "all" if default == action.choices else str(default)
        assert f"default: {said}" in action.help or f"{said})" in action.help, (shown(action), default, action.help)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_examples_that_the_command_reads(command):
    text = parser_of(command).format_help()
    assert EXAMPLES[command] and text.endswith("\n".join(["", *(f"  {line}" for line in EXAMPLES[command]), ""]))
    for line in EXAMPLES[command]:
        program, name, *words = shlex.split(line, comments=True)
        assert program == "jclip" and (name == command or len(EXAMPLES[command]) > 1)
        parser_of(name).parse_intermixed_args(words)


@pytest.mark.parametrize("path", SPEAKING, ids=lambda p: str(p.relative_to(ROOT)))
def test_messages_are_in_plain_words(path):
    """Every text of a file but its docstrings, which describe functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    described = [
        node.body[0] for node in ast.walk(tree) if hasattr(node, "body") and isinstance(node.body, list) and node.body
    ]
    docstrings = {id(first.value) for first in described if isinstance(first, ast.Expr)}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    found = [(t.lineno, t.value) for t in texts if id(t) not in docstrings and DIALECT.search(t.value)]
    assert not found


def test_a_model_need_not_be_named(monkeypatch):
    """JCLIP_MODEL, else ViT-B/32; a finished run has its own."""
    for given, named in (("RN50", "RN50"), ("", "ViT-B/32")):
        monkeypatch.setenv("JCLIP_MODEL", given)
        parser_of.cache_clear()
        found = having("--model")
        assert {*found} >= {"zero-shot", "predict", "warmup"} and default_model() == named
        for command, action in found.items():
            assert not action.required and action.default in (None, named), command
            default = "the run's own" if command == "predict" else "JCLIP_MODEL, else ViT-B/32"
            assert f"(default: {default})" in action.help, command
    parser_of.cache_clear()


def test_every_help_answers_without_jittor_and_numpy():
    """NumPy may stand in line to be loaded (`jclip.postponed`); that none of its modules ran is what counts."""
    code = """if True:
        import sys
        from jclip.cli import main
        for command in sys.argv[1:]:
            try:
                main([command, "--help"])
            except SystemExit as e:
                assert not e.code
            loaded = [name for name in sys.modules if name.startswith(("numpy.", "jittor", "PIL.", "torch"))]
            assert not loaded, (command, loaded[:3])
        """
    done = subprocess.run([sys.executable, "-c", code, *COMMANDS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(COMMANDS)
