"""The memory of a training step, estimated before it: by hand, and beside what a process held in fact."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from jclip.config import OptimConfig
from jclip.errors import SetupError, guarded
from jclip.machine import memory_limit
from jclip.train.memory_estimate import MOVING, PROCESS, StepSize, estimate
from jclip.weights.variants import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from tests.tolerances import tolerance
from tests.toys import TOY_RESNET, TOY_VIT

ROOT = Path(__file__).parent.parent.parent
TEXT = TextConfig(width=64, heads=4, layers=6, mlp_width=256, context_length=40, vocab_size=97)
MEASURED = {
    "vit": CLIPConfig(14, ViTConfig((98, 98), patch_size=7, width=96, layers=8, heads=4, mlp_width=384), TEXT),
    "resnet": CLIPConfig(14, ResNetConfig((96, 96), width=16, layers=(3, 4, 6, 3), heads=4), TEXT),
}
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from jclip.config import OptimConfig
from jclip.model.clip import build, training_mode
from jclip.model.recompute import recompute_blocks
from jclip.model.trainable import trainable
from jclip.runtime import jt
from jclip.train.on_captions import Objective, caption_gradients
from jclip.train.optim import optimiser
from jclip.train.run_facts import forget_peak, peak_memory
from jclip.weights.checkpoint import open_checkpoint
from tests.library.test_memory_estimate import MEASURED
from tests.toys import toy_file

config, again, parts = MEASURED[sys.argv[1]], sys.argv[2] == "recompute", int(sys.argv[3])
model = build(open_checkpoint(toy_file(Path(sys.argv[4]), config)))
params = trainable(model)
training_mode(model)
if again:
    recompute_blocks(model, params)
optim = optimiser(OptimConfig(), params)
tokens = np.full((32, 40), 96, np.int32)
tokens[:, :39] = 5
pixels = np.random.default_rng(0).standard_normal((32, 3, *config.vision.image_size), np.float32)
jt.sync_all(True)
forget_peak()
for _ in range(2):
    optim.apply(caption_gradients(model, [(pixels, tokens, np.arange(32))] * parts, list(params), Objective())[1])
print(sum(p.numel() for p in params.values()), peak_memory()["host"])
"""


@functools.cache
def measured(name: str, how: str, parts: int) -> tuple[int, int]:
    """Numbers of weights, and the MiB that a process of its own held at most in two steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PROGRAM, name, how, str(parts), folder]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return tuple(map(int, ended.stdout.split()[-2:]))


@pytest.mark.parametrize(("name", "how", "parts"), [("vit", "keep", 1), ("vit", "recompute", 1), ("resnet", "keep", 2)])
def test_the_estimate_is_near_what_a_step_takes(name, how, parts):
    weights, mib = measured(name, how, parts)
    step = StepSize(32, parts, 40, recompute=how == "recompute")
    got = estimate(MEASURED[name], weights, weights, OptimConfig(), step).total / 2**20
    assert abs(got - mib) <= tolerance("memory_relative") * mib, (got, mib)


def test_recomputing_takes_less_memory():
    kept, again = (measured("vit", how, 1)[1] for how in ("keep", "recompute"))
    assert again < 0.6 * kept, (kept, again)


def test_by_hand():
    """One image of 1 + 16 tokens, one text of 7: what two and three blocks of the toy keep, and a loss of one pair."""
    found = estimate(TOY_VIT, 1000, 100, OptimConfig(average=0.9), StepSize(1, tokens=7))
    image, text = 9 * 24 + 2 * 42, 9 * 20 + 2 * 33
    numbers = 17 * (2 * image + MOVING * 24) + 7 * (3 * text + MOVING * 20) + 6 + 2 * 3 * 20 * 20
    assert (found.weights, found.gradients, found.optimiser, found.activations) == (4000, 400, 1200, 4 * numbers)
    assert found.total == PROCESS + 5600 + 4 * numbers
    assert str(found).startswith("about 90 MiB (process 90, weights 0, ")


def test_what_makes_it_less_and_more():
    def of(config=TOY_VIT, optim=None, other=0, **step):
        return estimate(config, 1000, 1000, optim or OptimConfig(), StepSize(64, **step), other)

    whole = of()
    assert of(recompute=True).activations < whole.activations and of(patches=0.5).activations < whole.activations
    assert of(image=False).activations < of(recompute=True, text=False).activations + whole.activations
    assert of(image=False, text=False).activations < of(image=False).activations < whole.activations
    assert of(parts=3).activations < 1.5 * whole.activations
    assert of(optim=OptimConfig(name="sgd")).optimiser < whole.optimiser and of(other=500).weights == 6000
    resnet = of(TOY_RESNET)
    assert of(TOY_RESNET, image=False).activations < resnet.activations == of(TOY_RESNET, patches=0.5).activations


LIMITED = """
import os, resource, sys, threading
from jclip.machine.memory_limit import run_inside
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, resource.RLIM_INFINITY))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
number = int(sys.argv[1])

def program():
    if number:
        os.kill(os.getpid(), number)
    threading.Thread(target=threading.Event().wait).start()  # as a library's thread that gets no memory
    return 7

sys.exit(run_inside(program, "jclip embed"))
"""


@pytest.mark.parametrize(
    ("number", "code", "said"), [(0, 7, ""), (11, 2, "jclip embed: ended by SIGSEGV"), (9, 137, "")]
)
def test_a_program_that_dies_of_its_limit_says_so(number, code, said):
    ended = subprocess.run([sys.executable, "-c", LIMITED, str(number)], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == code and ended.stderr.startswith(said) and ended.stderr.count("\n") == bool(said)
    assert not said or "4,096 MiB" in ended.stderr


@pytest.mark.parametrize(
    "mib", [60, 90, 115]
)  # NumPy's import fails, its threads wait for memory, others' imports fail
def test_a_command_is_refused_before_numpy_waits_for_memory(mib):
    program = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_AS, ({mib} << 20,) * 2); from jclip.cli import main"
    )
    command = [sys.executable, "-c", f"{program}; sys.exit(main())", "embed", "photos", "--out", "gallery"]
    environ = {**os.environ, "OMP_NUM_THREADS": "2"}
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("jclip embed: loading NumPy and other libraries needs about 180 MiB of memory")


def test_too_little_memory_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(memory_limit, "left", lambda: 100.0 * 2**20)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with pytest.raises(
        SetupError, match="starting Jittor needs about 120 MiB of memory, and the limit .* leaves 100 MiB"
    ):
        memory_limit.require_start()
    with pytest.raises(SetupError, match="loading w needs about 280 MiB"):
        memory_limit.require_model(200 * 2**20, "w")

    def failing():
        raise RuntimeError("Wrong inputs\n[Reason]: std::bad_alloc\nmore")

    assert guarded(failing, "jclip embed") == 2
    assert (line := capsys.readouterr().err).startswith(
        "jclip embed: there is not enough memory ([Reason]: std::bad_alloc)"
    )
    assert line.count("\n") == 1
