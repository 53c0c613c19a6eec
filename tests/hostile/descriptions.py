"""Mutated descriptions of models: every key of every kind of description, and values that no model has.

`python -m tests.hostile.descriptions --count 5000` tries so many and counts the ends; with `--load` each model is also
built by Jittor and run, in a child process. A good end is a refusal by one of jclip's errors, or a model that computes.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import math
import os
import random
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jclip.data.preprocess import Preprocess
from jclip.errors import JclipError
from jclip.features.source import open_any
from jclip.readers import safetensors
from jclip.weights.checkpoint import describe, random_arrays
from jclip.weights.families import Stated
from jclip.weights.parameter_shapes import parameter_shapes
from jclip.weights.variants import CLIPConfig, EVAConfig, ResNetConfig, TextConfig, ViTConfig

TEXT = TextConfig(width=16, heads=2, layers=1, mlp_width=32, context_length=11, vocab_size=97)
MODELS = {
    "vit": CLIPConfig(14, ViTConfig((20, 20), 5, 24, 2, 3, 48), TEXT),
    "resnet": CLIPConfig(14, ResNetConfig((64, 64), 4, (1, 1, 1, 1), 2), TEXT),
    "eva": CLIPConfig(14, EVAConfig((20, 20), 5, 24, 1, 3, 48, swiglu=True, sub_norm=True, rope=True), TEXT, "gelu"),
}
RAW = {  # stand for themselves in the JSON, which Python would not write so
    "«nan»": "NaN", "«infinity»": "-Infinity", "«1e999»": "1e999", "«digits»": "9" * 5000, "«deep»": "[" * 100_000,
    "«deep and whole»": "[" * 200 + "]" * 200, "«twice»": '{"a": 1, "a": 2}', "«surrogate»": '"\\ud800"', "«cut»": "",
}  # fmt: skip
NASTY: list[Any] = [
    None, True, False, "", "abc", "12", "\x1b]0;owned\x07\n", "x" * 100_000, 0, -1, 1, 2, 5, 7, 10**9, 2**31, 2**63,
    10**25, 0.0, 1.5, -1e300, 1e-320, [], [0], [0, 0], [0, 0, 0], [1, 2, 3], [20, 20], [-5, 20], [10**9, 10**9],
    ["a", "b", "c"], [None] * 3, [[1], [2], [3]], {}, {"a": {}}, [[[[[]]]]], *RAW,
]  # fmt: skip
MEMORY = 8 << 30  # of a child
Kind = Callable[[Path, dict[str, Any]], Path]


def _json(values: Any) -> str:
    text = json.dumps(values, ensure_ascii=True)
    for mark, raw in RAW.items():
        text = text.replace(json.dumps(mark), raw)
    return text


def _arrays(model: str) -> dict[str, np.ndarray]:
    return random_arrays(parameter_shapes(MODELS[model]), seed=0)


def ours(model: str) -> tuple[dict[str, Any], Kind]:
    """A file of jclip's own."""
    config, arrays = MODELS[model], _arrays(model)
    said = describe(config, Preprocess(size=config.vision.image_size), 4.6)

    def write(folder: Path, changed: dict[str, Any]) -> Path:
        texts = {key: _json(value) for key, value in changed.items()}
        safetensors.write(folder / "model.safetensors", arrays, {**said, **texts})
        return folder / "model.safetensors"

    return {key: json.loads(said[key]) for key in ("config", "preprocess")}, write


def open_clip() -> tuple[dict[str, Any], Kind]:
    """A folder as open_clip pushes it."""
    from jclip.weights.layouts.from_open_clip import described

    config, arrays = MODELS["vit"], _arrays("vit")
    return {"open_clip_config.json": described(config, Preprocess(size=(20, 20)))}, _folder_of(
        "open_clip_model.safetensors", arrays
    )


def hugging_face() -> tuple[dict[str, Any], Kind]:
    """A folder of CLIPModel, its weights in two shards."""
    from convert import to_huggingface
    from jclip.weights.checkpoint import Checkpoint, in_memory
    from jclip.weights.layouts import from_huggingface
    from jclip.weights.layouts.keymap import unapply

    arrays = {k: in_memory(a) for k, a in _arrays("vit").items()}
    found = Checkpoint(Path("x"), arrays, MODELS["vit"], Preprocess(size=(20, 20)), {})
    tensors = {k: t.read() for k, t in unapply(arrays, from_huggingface.RULES).items()}
    shards = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    base = {
        "config.json": to_huggingface._clip(found, "float32"),
        "preprocessor_config.json": to_huggingface._processor(found.preprocess),
        "model.safetensors.index.json": {"metadata": {"total_size": 1}, "weight_map": shards},
    }
    files = {
        file: {name: a for name, a in tensors.items() if shards[name] == file} for file in sorted(set(shards.values()))
    }

    def write(folder: Path, changed: dict[str, Any]) -> Path:
        for file, part in files.items():
            safetensors.write(folder / file, part)
        return _described(folder, changed)

    return base, write


def eva_hub() -> tuple[dict[str, Any], Kind]:
    """A folder as BAAI/EVA-CLIP-8B has it."""
    from convert import to_huggingface
    from jclip.weights.checkpoint import Checkpoint, in_memory
    from jclip.weights.layouts import from_eva
    from jclip.weights.layouts.keymap import unapply

    tower = EVAConfig((20, 20), 5, 24, 1, 3, 48, rms_norm=True, bias=False)
    config = CLIPConfig(14, tower, TEXT, "gelu")
    arrays = {k: in_memory(a) for k, a in random_arrays(parameter_shapes(config), 0).items()}
    found = Checkpoint(Path("x"), arrays, config, Preprocess(size=(20, 20)), {})
    tensors = {k: t.read() for k, t in unapply(arrays, from_eva.HUGGING_FACE).items()}
    return {"config.json": to_huggingface._eva(found, "float32")}, _folder_of("model.safetensors", tensors)


def _folder_of(name: str, arrays: dict[str, np.ndarray]) -> Kind:
    def write(folder: Path, changed: dict[str, Any]) -> Path:
        safetensors.write(folder / name, arrays)
        return _described(folder, changed)

    return write


def _described(folder: Path, changed: dict[str, Any]) -> Path:
    for file, values in changed.items():
        (folder / file).write_text(_json(values))
    return folder


KINDS: dict[str, Callable[[], tuple[dict[str, Any], Kind]]] = {
    "ours, vit": lambda: ours("vit"),
    "ours, resnet": lambda: ours("resnet"),
    "ours, eva": lambda: ours("eva"),
    "open_clip": open_clip,
    "Hugging Face": hugging_face,
    "EVA of the hub": eva_hub,
}


def places(values: Any, at: tuple = ()) -> Iterator[tuple]:
    """Where a value of a description stands: every key and every element, tables themselves as well."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inner:
        yield (*at, key)
        yield from places(value, (*at, key))


def with_value(values: Any, at: tuple, value: Any) -> Any:
    """A copy with one value replaced, or taken out where it is `places`, which is no value."""
    copied = copy.deepcopy(values)
    table = copied
    for key in at[:-1]:
        table = table[key]
    if value is places:
        del table[at[-1]]
    else:
        table[at[-1]] = value
    return copied


def mutants(base: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every place with every nasty value and without its own, in turn; a name for the report with each."""
    for at in places(base):
        for value in (places, *NASTY):
            if value is places and len(at) == 1:
                continue  # a whole description that is absent
            said = "taken out" if value is places else repr(value)[:40]
            yield f"{'.'.join(map(str, at))} = {said}", with_value(base, at, value)


def drawn(base: dict[str, Any], count: int, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Seeded: one to three places, each with a nasty value, a neighbour of its own, or without it."""
    rng, all_places = random.Random(seed), list(places(base))
    for _ in range(count):
        changed, said = base, []
        for at in rng.sample(all_places, rng.choice((1, 1, 1, 2, 3))):
            value = rng.choice([*NASTY, places, "near"])
            try:
                own = changed
                for key in at:
                    own = own[key]
                if value == "near":
                    value = own + rng.choice((-3, -1, 1, 2)) if type(own) in (int, float) else [own]
                if value is places and len(at) == 1:
                    continue
                changed = with_value(changed, at, value)
            except (KeyError, IndexError, TypeError):
                continue  # an earlier change took the place away
            said.append(f"{'.'.join(map(str, at))} = {'taken out' if value is places else repr(value)[:40]}")
        yield "; ".join(said), changed


def end_of(path: Path, load: bool = False) -> str:
    """How opening it ends: "refused" or "accepted"; other exceptions pass, and a model that can't be is an error."""
    try:
        found = open_any(path, Stated())
    except JclipError as e:
        if path.name not in str(e) and path.parent.name not in str(e):
            raise AssertionError(f"the refusal does not name the file: {e}") from e
        return "refused"
    check_sense(found.config)
    pixels = found.preprocess(Image.new("RGB", (9, 7), (10, 200, 90)))
    if pixels.shape != (3, *found.config.vision.image_size) or not np.isfinite(pixels).all():
        raise AssertionError(f"pixels of shape {pixels.shape}, which are not what the model takes, or not finite")
    if load:
        from jclip.model.clip import build

        model = build(found)
        if not np.isfinite(model.encode_image(pixels[None]).numpy()).all():
            raise AssertionError("features that are not finite")
    return "accepted"


def check_sense(config: CLIPConfig) -> None:
    """What every model has, written without the conditions of the library."""
    for tower in (config.vision, config.text):
        width = tower.output_width if isinstance(tower, ResNetConfig) else tower.width
        numbers = [width, tower.heads, config.embed_dim]
        numbers += list(tower.layers) if isinstance(tower, ResNetConfig) else [tower.layers, tower.mlp_width]
        if not all(type(n) is int and n > 0 for n in numbers) or width % tower.heads:
            raise AssertionError(f"no such tower: {tower}")
    if not (math.isfinite(config.norm_eps) and config.norm_eps > 0):
        raise AssertionError(f"norm_eps {config.norm_eps}")


def in_child(path: Path, load: bool, seconds: int = 60) -> str:
    """The end in a forked child, so that a crash or a hang is an end as well."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(seconds)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        try:
            end = end_of(path, load)
        except BaseException as e:
            end = f"{type(e).__name__}"
        os.write(writer, end.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as f:
        said = f.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "hang" if number == signal.SIGALRM else f"signal {number}"
    return said


def main() -> None:
    """Tries mutants and prints how many ended how."""
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument(
        "--count", type=int, default=1000, help="mutants, evenly over the kinds; half systematic, half drawn"
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--load", action="store_true", help="build the model by Jittor as well")
    p.add_argument("--show", action="store_true", help="name the mutants that end badly")
    args = p.parse_args()
    if args.load:
        import jclip.model.clip  # noqa: F401 - once, before the children
    each, ends = args.count // len(KINDS), collections.Counter()
    for kind, make in KINDS.items():
        base, write = make()
        with tempfile.TemporaryDirectory() as folder:  # whose operators are compiled then
            if (end := in_child(write(Path(folder), base), args.load, seconds=600)) != "accepted":
                raise SystemExit(f"{kind}: the description that nothing was changed in ends as {end}")
        systematic = list(mutants(base))
        random.Random(args.seed).shuffle(systematic)
        tried = [*systematic[: each // 2], *drawn(base, each - min(each // 2, len(systematic)), args.seed)]
        for name, changed in tried:
            with tempfile.TemporaryDirectory() as folder:
                end = in_child(write(Path(folder), changed), args.load)
            ends[end] += 1
            if args.show and end not in ("refused", "accepted"):
                print(f"{kind}: {name}: {end}")
    print(", ".join(f"{count} {end}" for end, count in ends.most_common()))


if __name__ == "__main__":
    main()
