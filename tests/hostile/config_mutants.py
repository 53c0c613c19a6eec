"""Mutants of the shipped configs, and what becomes of them: built, refused in one line, or anything else.

`python -m tests.hostile.config_mutants 20000 [SEED]` counts the ends of so many, without Jittor.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jclip.commands.challenge_steps import Config as Challenge
from jclip.commands.multi_label_settings import Config as MultiLabel
from jclip.commands.multi_label_settings import model_settings, with_places
from jclip.config import build, load_values, to_values, to_yaml
from jclip.errors import JclipError
from jclip.train.configs import build_config, resolved

ROOT = Path(__file__).parent.parent.parent
CONFIGS = [*sorted((ROOT / "configs").rglob("*.yaml"))]
VALUES = (
    "", "~", "null", "true", "yes", "0", "-1", "010", "1_000", "1e-5", "1e999", "-1e308", ".nan", "-.inf", "0x7f",
    "1:30:00", "9" * 30, "9" * 5000, "1" * 400 + ".5", "1e" + "9" * 400, "2001-01-01", "[]", "{}", "[1, [2, [3]]]",
    "{a: {b: {c: 1}}}", "[" * 2000, "{a: " * 500, "- " * 500, "? " * 500, "&a [*a]", "*a", "&a 1", "<<: *a", "!!int abc",
    "!!timestamp 2001-99-99", "!!python/object:os.system x", "!!binary aGk=", "!!set {a}", "!!omap [a: 1]", "! x",
    "!<tag:yaml.org,2002:int> 3", "'a\\0b'", '"a\\0b"', '"\\e[31m"', '"\\ud800"', '"\\udcb2"', '"\\x07"', "~nosuchuser/x",
    "x" * 5000, "\u202e", "💥", "'", '"', "|\n  text", ">-\n  text", "@", "`", "%", "# no", "shapes:", "asset:../../x",
    "/dev/zero", "/dev/null", "../" * 50, "=1+1", "$(id)", "a: b: c", "\t", "\x85", "\x00", "\x1b", "\ufeff",
)  # fmt: skip
LETTERS = "abc0123456789.-+:#{}[],&*!|>'\"%@`?~ \n\t\\/=éß图\u202e\ufeff\x00\x07"
GROUPS = ("data", "optim", "lora", "lock", "models", "spurious", "fusion", "tune", "members")


@dataclass(frozen=True)
class Mutant:
    """The bytes of a config, and `key=value` settings beside them."""

    base: str
    data: bytes
    overrides: tuple[str, ...] = ()


def mutants(seed: int, count: int) -> Iterator[Mutant]:
    """The k-th depends on (seed, k) alone."""
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in CONFIGS}
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        base = rng.choice(sorted(texts))
        text = texts[base]
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            text = rng.choice(CHANGES)(rng, text)
        overrides = tuple(setting(rng, text) for _ in range(rng.choice((0, 0, 0, 1, 2))))
        yield Mutant(base, encoded(rng, text), overrides)


def other_value(rng: random.Random, text: str) -> str:
    """Another value after one of the keys."""
    lines = text.split("\n")
    with_key = [i for i, line in enumerate(lines) if ":" in line.partition("#")[0]]
    if not with_key:
        return text
    at = rng.choice(with_key)
    lines[at] = f"{lines[at].partition(':')[0]}: {rng.choice(VALUES)}"
    return "\n".join(lines)


def other_letters(rng: random.Random, text: str) -> str:
    """A few letters more, less, or others."""
    letters = list(text)
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(len(letters) + 1)
        letters[at : at + rng.randrange(3)] = rng.choices(LETTERS, k=rng.randrange(4))
    return "".join(letters)


def other_lines(rng: random.Random, text: str) -> str:
    """Lines twice, exchanged, indented, or cut off."""
    lines = text.split("\n")
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    how = rng.randrange(4)
    if how == 0:
        lines.insert(first, lines[second])
    elif how == 1:
        lines[first], lines[second] = lines[second], lines[first]
    elif how == 2:
        lines[first] = " " * rng.randrange(1, 5) + lines[first]
    return "\n".join(lines)[: rng.randrange(len(text) + 1) if how == 3 else None]


def one_more(rng: random.Random, text: str) -> str:
    """A key that nobody knows, or that is there."""
    key = rng.choice([*VALUES, "recipe", "seed", "data", "optim", "model", "on_error"])
    return f"{text}\n{key}: {rng.choice(VALUES)}\n"


def bomb(rng: random.Random, text: str) -> str:
    """Lists of one another, as a value of the first key."""
    width, depth = rng.randrange(2, 12), rng.randrange(2, 12)
    levels = ["&x0 [" + ", ".join(["l"] * width) + "]"]
    levels += [f"&x{i} [" + ", ".join([f"*x{i - 1}"] * width) + "]" for i in range(1, depth)]
    return f"{text}\nseed: [{', '.join(levels)}]\n"


CHANGES = (other_value, other_value, other_letters, other_lines, one_more, bomb)


def setting(rng: random.Random, text: str) -> str:
    """`a.b=value`, of keys that are there or not."""
    keys = [line.partition(":")[0].strip() for line in text.split("\n") if ":" in line] or ["seed"]
    names = [rng.choice(GROUPS)] * rng.randrange(2) + [rng.choice([*keys, "0", "-1", "9" * 5000, "", "٣", "a" * 300])]
    dots = "." * rng.choice((1, 1, 1, 2, 10**6)) if rng.random() < 0.3 else "."
    return f"{dots.join(names)}{rng.choice(('=', '=', '=', '==', ''))}{rng.choice(VALUES)}"


def encoded(rng: random.Random, text: str) -> bytes:
    """Mostly as UTF-8."""
    return text.encode(
        rng.choice(("utf-8",) * 20 + ("utf-8-sig", "utf-16", "utf-32", "gb18030", "utf-7")), "surrogatepass"
    )


def end_of(mutant: Mutant, folder: Path) -> str:
    """`built`, whose written form builds the same; `refused`, in one line; else what went wrong."""
    path = folder / "mutant.yaml"
    path.write_bytes(mutant.data)
    try:
        values = load_values(path, mutant.overrides)
        if mutant.base == "configs/challenge.yaml":
            build(Challenge, values, "mutant.yaml")
            return "built"
        if mutant.base.startswith("configs/multi_label_challenge"):
            values.pop("task", None)
            challenge = build(MultiLabel, with_places(values, str(path)), "mutant.yaml")
            for name in challenge.order:
                build_config(model_settings(challenge, name), "mutant.yaml")
            return "built"
        module, config = build_config(values, "mutant.yaml")
        written = to_yaml(resolved(module, config))
        path.write_text(written, encoding="utf-8")
        again = build_config(load_values(path), "mutant.yaml")[1]
        return "built" if to_values(again) == to_values(config) else "built, but reads back as another"
    except JclipError as e:
        one_line = len(str(e)) < 2300 and all(c.isprintable() or c == "\u3000" for c in str(e))
        return "refused" if one_line else "refused in a message of more than a line"
    except Exception as e:
        return f"{type(e).__name__} instead of a refusal"


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises `TimeoutError` in a block that takes longer."""

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main(count: int, seed: int = 0) -> None:
    """Prints how many ended how."""
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for mutant in mutants(seed, count):
            with within(60):
                ends[end_of(mutant, Path(folder))] += 1
    for end, times in ends.most_common():
        print(f"{times:7} {end}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
