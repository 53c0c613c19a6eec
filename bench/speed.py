"""jclip against torch, side by side: alternating child processes, equal threads, medians, peak memory.

    python bench/speed.py [--tasks NAME …] [--rounds 3] [--seconds 4] [--threads 2] [--out bench/results/NAME.json]

torch runs transformers' CLIPModel with its sdpa attention, and for ResNets the twin of the parity tests with batch norm
in evaluation. Both sides have random weights and the same input. Nothing here is part of what gets installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CLASSES = 374  # of the Jittor challenge
IMAGE = [f"image {model} batch {batch}" for model in ("ViT-B/32", "ViT-B/16", "RN50") for batch in (1, 32)]
TASKS = [*IMAGE, "text 374 prompts", "text 374 prompts, torch cut too", "train ViT-B/32 batch 16"]
SIDES = ("jclip", "torch")


def main() -> int:
    """Measures, prints the table, writes the results."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, metavar="NAME", help="; ".join(TASKS))
    p.add_argument("--rounds", type=int, default=3, help="child processes per side and task")
    p.add_argument("--seconds", type=float, default=4.0, help="measured time per child process")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--out", type=Path, help="results as JSON (default: none)")
    p.add_argument("--child", nargs=2, metavar=("SIDE", "TASK"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        print(json.dumps(measure(*args.child, args.seconds)))
        return 0
    for task in args.tasks:
        result = compare(task, args)
        print(line(task, result), flush=True)
        if args.out:
            write(args.out, args.threads, task, result)
    return 0


def write(path: Path, threads: int, task: str, result: dict) -> None:
    """Puts one task's result into the file, in the order of `TASKS`; others in it stay if they are of the same machine."""
    results = {"machine": machine(threads), "tasks": {}}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["machine"]["cpu"] == results["machine"]["cpu"] and before["machine"]["threads"] == threads:
            results["tasks"] = before["tasks"]
    results["tasks"][task] = {**result, "commit": results["machine"]["commit"]}
    results["tasks"] = {name: results["tasks"][name] for name in TASKS if name in results["tasks"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def compare(task: str, args: argparse.Namespace) -> dict:
    """Rates and memory of both sides; a first run of each, which compiles and warms the disk's cache, doesn't count."""
    runs: dict[str, list[dict]] = {side: [] for side in SIDES}
    for number in range(args.rounds + 1):
        for side in SIDES if number % 2 else reversed(SIDES):
            done = child(side, task, args.seconds if number else 0.1, args.threads)
            if number:
                runs[side].append(done)
    told = {
        side: {
            "per_second": statistics.median(run["per_second"] for run in done),
            "runs": [round(run["per_second"], 3) for run in done],
            "peak_mib": round(statistics.median(run["peak_mib"] for run in done)),
        }
        for side, done in runs.items()
    }
    return {**told, "ratio": told["jclip"]["per_second"] / told["torch"]["per_second"]}


def child(side: str, task: str, seconds: float, threads: int) -> dict:
    """One measurement in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--child", side, task, "--seconds", str(seconds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side}, {task}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(side: str, task: str, seconds: float) -> dict:
    """Items per second (median over repetitions) and peak memory of this process."""
    run, items = (prepare_jclip if side == "jclip" else prepare_torch)(task)
    run()
    spent: list[float] = []
    begun = time.perf_counter()
    while not spent or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"per_second": items / statistics.median(spent), "repetitions": len(spent), "peak_mib": peak}


def prepare_jclip(task: str) -> tuple[Callable[[], None], int]:
    """What to run, and how many items it handles."""
    from jclip.clip import CLIP, training_mode
    from jclip.runtime import jt
    from jclip.variants import VARIANTS

    kind, model_name, batch = parse(task)
    model = CLIP(VARIANTS[model_name])
    model.eval()
    if kind == "image":
        pixels = jt.array(images(VARIANTS[model_name], batch))

        def encode():
            with jt.no_grad():
                model.encode_image(pixels).sync(True)

        return encode, batch
    if kind == "text":
        tokens = prompts()

        def encode_text():
            with jt.no_grad():
                model.encode_text(tokens).sync(True)

        return encode_text, len(tokens)
    from finetune.contrastive import contrastive_gradients
    from jclip.optim import AdamW, no_weight_decay, trainable

    training_mode(model)
    optim = AdamW(trainable(model), 1e-6, (0.9, 0.98), 1e-6, 0.1, exclude=no_weight_decay)
    part = (images(VARIANTS[model_name], batch), prompts()[:batch], list(range(batch)))

    def step():
        import numpy as np

        loss, gradients = contrastive_gradients(model, [(*part[:2], np.array(part[2]))], list(optim.params), "own")
        optim.apply(gradients)
        loss.sync(True)

    return step, batch


def prepare_torch(task: str) -> tuple[Callable[[], None], int]:
    """The same in torch."""
    import torch

    from jclip.variants import VARIANTS

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    kind, model_name, batch = parse(task)
    config = VARIANTS[model_name]
    if kind == "image" and config.vision.kind == "resnet":
        return torch_resnet(config, batch)
    model = torch_clip_model(config)
    if kind == "image":
        pixels = torch.from_numpy(images(config, batch))

        def encode():
            with torch.inference_mode():
                model.get_image_features(pixel_values=pixels)

        return encode, batch
    tokens = torch.from_numpy(prompts()).long()
    if "cut" in task or kind == "train":
        tokens = tokens[:, : int(tokens.argmax(dim=1).max()) + 1]
    if kind == "text":

        def encode_text():
            with torch.inference_mode():
                model.get_text_features(input_ids=tokens)

        return encode_text, len(tokens)
    model.train()
    pixels = torch.from_numpy(images(config, batch))
    optim = torch.optim.AdamW(model.parameters(), 1e-6, (0.9, 0.98), 1e-6, 0.1)

    def step():
        optim.zero_grad()
        model(input_ids=tokens[:batch], pixel_values=pixels, return_loss=True).loss.backward()
        optim.step()

    return step, batch


def torch_clip_model(config):
    """transformers' CLIPModel of that architecture."""
    from transformers import CLIPConfig, CLIPModel

    v, t = config.vision, config.text
    vision = {
        "hidden_size": v.width, "intermediate_size": v.mlp_width, "num_hidden_layers": v.layers,
        "num_attention_heads": v.heads, "image_size": v.image_size[0], "patch_size": v.patch_size,
    }  # fmt: skip
    text = {
        "hidden_size": t.width, "intermediate_size": t.mlp_width, "num_hidden_layers": t.layers,
        "num_attention_heads": t.heads, "vocab_size": t.vocab_size, "eos_token_id": t.vocab_size - 1,
    }  # fmt: skip
    made = CLIPConfig(vision_config=vision, text_config=text, projection_dim=config.embed_dim)
    return CLIPModel._from_config(made, attn_implementation="sdpa").eval()


def torch_resnet(config, batch: int) -> tuple[Callable[[], None], int]:
    """The twin of the parity tests."""
    import torch

    from jclip.checkpoint import random_arrays
    from tests.parity import torch_clip
    from tests.toys import shapes_of

    p = torch_clip.parameters(random_arrays(shapes_of(config), 0))
    pixels = torch.from_numpy(images(config, batch))

    def encode():
        with torch.inference_mode():
            torch_clip.encode_image(p, config, pixels)

    return encode, batch


def parse(task: str) -> tuple[str, str, int]:
    """`image RN50 batch 32` → image, RN50, 32."""
    words = task.split()
    return (words[0], "ViT-B/32", CLASSES) if words[0] == "text" else (words[0], words[1], int(words[3]))


def images(config, batch: int):
    """Seeded pixels (B, 3, H, W)."""
    import numpy as np

    return np.random.default_rng(0).standard_normal((batch, 3, *config.vision.image_size), dtype=np.float32)


def prompts():
    """Token ids of `a photo of a WORD.` for 374 words of the vocabulary."""
    from jclip.tokenizer import Tokenizer, tokenize

    symbols = Tokenizer()._symbols[20_000:]
    words = [s.removesuffix("</w>") for s in symbols if s.endswith("</w>") and s[:-4].isascii() and s[:-4].isalpha()]
    return tokenize([f"a photo of a {word}." for word in words[:CLASSES]])


def machine(threads: int) -> dict:
    """What the figures depend on."""
    from importlib.metadata import version

    from jclip.run import provenance
    from jclip.runtime import _cpu_model

    packages = {name: version(name) for name in ("torch", "transformers", "jittor")}
    told = {"cpu": _cpu_model(), "system": platform.platform(), "threads": threads, "packages": packages}
    return {**provenance(), **told}


def line(task: str, result: dict) -> str:
    """One row of the table."""
    rates = "  ".join(f"{side} {result[side]['per_second']:8.2f}/s {result[side]['peak_mib']:5d} MiB" for side in SIDES)
    return f"{task:34} {rates}  ratio {result['ratio']:.2f}"


if __name__ == "__main__":
    sys.exit(main())
