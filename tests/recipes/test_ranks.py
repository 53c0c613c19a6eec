"""Training by several processes: the same as by one, whatever their number, and how they end when one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jclip.machine import gpu, open_mpi
from jclip.paths import cache_dir
from jclip.readers import read_weights

pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
from tests.recipes.multi_label_folder import write_folder
from tests.trajectories import ROUNDING, without_key_bias

ROOT = Path(__file__).parent.parent.parent
SMOKE = ROOT / "configs" / "contrastive" / "smoke.yaml"
MPI = open_mpi.find_mpi()
pytestmark = pytest.mark.skipif(MPI is None, reason=f"no Open MPI: {open_mpi.INSTALL}")
QUICK = [str(SMOKE), "model=shapes-tiny-vit", "zero_shot=[]", "data.scenes=50", "data.val_scenes=7", "optim.epochs=3"]
FEW = ["data.split_file=asset:smoke_split.json", "data.root=shapes:inverted"]
PLACE = "--run"


def ranks(
    count: int, *command: str, others: list[str] | None = None, **environment: str
) -> subprocess.CompletedProcess:
    """Python with these arguments in so many processes; others: the arguments of the last one."""
    started = [sys.executable, *command]
    if others:
        started += [":", "-np", "1", sys.executable, *others]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "JCLIP_WORKERS": "0", **environment}
    given["OMPI_MCA_mpi_yield_when_idle"] = "1"  # who waits leaves the processor to others, tests beside it among them
    return open_mpi.start_ranks(MPI, count - bool(others), started, given)


def lines_of(done: subprocess.CompletedProcess) -> list[str]:
    """What jclip's processes said on stderr; mpirun's own lines left out."""
    own = [line for line in done.stderr.splitlines() if line.startswith(("jclip", "finetune"))]
    return [line for line in own if "compiling" not in line and "first start" not in line and "is ready" not in line]


@pytest.fixture(scope="module")
def of_one_process() -> dict[str, tuple]:
    """What each case ends with, and how far rounding of the weights before carries it."""
    from tests.recipes.steps_of_ranks import CASES, steps

    return {case: (steps(case), steps(case, noise=ROUNDING)) for case in CASES}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> dict[str, str]:
    """A library that ranks can take for NCCL's, and the variable by which they find it."""
    folder, source = tmp_path_factory.mktemp("nccl"), ROOT / "tests" / "cuda" / "nccl_stand_in.cpp"
    command = [MPI.compiler, "-x", "c++", "-std=c++17", "-Wall", "-Werror", "-shared", "-fPIC", source, "-lstdc++"]
    subprocess.run([*command, "-o", folder / "libnccl.so.2"], check=True)
    return {"nccl_lib_path": str(folder)}


@pytest.mark.parametrize("count", [2, 3])
def test_twenty_steps_are_those_of_one_process(count, of_one_process, stand_in, tmp_path, close):
    """By two through the host's memory; by three as on GPUs, with a stand-in for NCCL."""
    cases = {k: v for k, v in of_one_process.items() if count == 2 or k == "softmax local"}
    module = ["tests.recipes.steps_of_ranks"] if count == 2 else ["tests.recipes.nccl_stand_in", "steps"]
    done = ranks(count, "-m", *module, str(tmp_path / "found.npz"), *cases, **stand_in)
    assert done.returncode == 0, done.stderr
    if count == 3:
        launches = {int(line) for line in done.stdout.split()}
        assert len(launches) == 1 and min(launches) > 2 + 20, done.stdout
    compare(np.load(tmp_path / "found.npz"), cases, close, "ranks")


def compare(found, cases: dict[str, tuple], close, what: str) -> None:
    for case, (one, moved) in cases.items():
        for name, wanted in one.items():
            got, drift = found[f"{case}/{name}"], float(np.abs(wanted - moved[name]).max())
            kind = "contrastive_trajectory_loss" if name == "losses" else "contrastive_trajectory"
            label = f"{what}: {case}, {'losses' if name == 'losses' else 'weights'}"
            close(*(without_key_bias(name, x) for x in (got, wanted)), kind, label, drift=drift)


@pytest.mark.skipif(len(gpu.find_gpus()[0]) < 2, reason="two GPUs are needed")
def test_two_cards_take_the_steps_of_one(of_one_process, tmp_path, close):
    done = ranks(2, "-m", "jclip.kernels.ranks_trial")
    assert [line.startswith("right, gradients by NCCL") for line in done.stdout.splitlines()] == [True] * 2, done.stderr
    done = ranks(2, "-m", "tests.recipes.steps_of_ranks", str(tmp_path / "found.npz"), *of_one_process)
    assert done.returncode == 0 and "through the host" not in done.stderr, done.stderr
    compare(np.load(tmp_path / "found.npz"), of_one_process, close, "two GPUs")


DYING = """
import os, signal, sys
import jclip.train.loop, jclip.train.run
from jclip.machine import ranks
jclip.train.loop.SAVE_SECONDS = 0.0
save, left = jclip.train.run.Slot.save, [2]
def save_and_die(self, *given):
    save(self, *given)
    left[0] -= 1
    if not left[0] and ranks.here().rank == {rank}:
        os.kill(os.getpid(), signal.SIGKILL)
jclip.train.run.Slot.save = save_and_die
from jclip.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_rank_ends_all_and_another_number_goes_on(tmp_path, close):
    whole = [sys.executable, "-m", "jclip.cli", "train", *QUICK, PLACE, str(tmp_path / "one")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    one = subprocess.Popen(whole, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    killed = ranks(3, "-c", DYING.format(rank=1), "train", *QUICK, PLACE, str(tmp_path / "several"))
    told = [line for line in lines_of(killed) if "died without a word" in line]
    assert killed.returncode and len(told) == 1 and f"rank 1 of 3 on {os.uname().nodename}" in told[0], killed.stderr
    assert (tmp_path / "several" / "train.safetensors").is_file()
    again = ranks(2, "-m", "jclip.cli", "train", *QUICK, PLACE, str(tmp_path / "several"))
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("image → text") == 1 and again.stdout.count("run: ") == 1
    assert one.wait() == 0
    models = [read_weights(tmp_path / run / "model.safetensors") for run in ("one", "several")]
    arrays = [{k: np.array(t.read()) for k, t in model.items()} for model in models]
    for name, wanted in arrays[0].items():
        close(
            *(without_key_bias(name, x) for x in (arrays[1][name], wanted)), "contrastive_trajectory", "ranks: resumed"
        )
    measured = [json.loads((tmp_path / run / "result.json").read_text())["metrics"] for run in ("one", "several")]
    assert measured[0].keys() == measured[1].keys()
    assert measured[0]["i2t_median_rank"] == measured[1]["i2t_median_rank"]


@pytest.mark.parametrize(
    ("count", "settings", "others", "wanted"),
    [
        (3, ["optim.batch=2"], [], "rank 0 of 3 on {host}: optim.batch must be at least 3, the number of ranks, got 2"),
        (2, ["optim.lr=1e30"], [], "rank 0 of 2 on {host}: the loss became NaN or infinite between steps 0 and 2"),
        (2, [], ["optim.lr=2e-3"], "all ranks must have the same setting optim.lr, got 0.002 on rank 1 ({host}) and 0.001"),
    ],
    ids=["batch", "NaN", "config"],
)  # fmt: skip
def test_what_is_wrong_is_one_line(count, settings, others, wanted, tmp_path):
    command = ["-m", "jclip.cli", "train", *QUICK, PLACE, str(tmp_path / "r")]
    done = ranks(count, *command, *settings, others=[*command, *others] if others else None)
    assert done.returncode == 2 and wanted.format(host=os.uname().nodename) in only_line(done)


def only_line(done: subprocess.CompletedProcess) -> str:
    (told,) = [line for line in lines_of(done) if not line.startswith("memory")] or [done.stderr]
    return told


ANOTHER_HOST = """
import sys
import jclip.data.splits, jclip.train.several_ranks
{}
from jclip.cli import main
sys.exit(main(sys.argv[1:]))
"""
OTHER_PHOTOS = "jclip.data.splits.Split.digest = lambda self: 'of other bytes'"
NO_FOLDER = "jclip.train.several_ranks.PATIENCE, jclip.train.several_ranks.files_of = 0.0, lambda folder: []"


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (
            OTHER_PHOTOS,
            'all ranks must have the same training photos, got "of other bytes" on rank 1 ({host}) and SHA-256',
        ),
        (NO_FOLDER, "all ranks must see the run's folder {run}, rank 1 ({host}) sees other files there than rank 0"),
    ],
    ids=["photos", "folder"],
)
def test_other_photos_and_a_folder_that_is_not_shared_are_refused(there, wanted, tmp_path):
    train = ["train", str(ROOT / "configs" / "coop" / "smoke.yaml"), *FEW, PLACE, str(tmp_path / "r")]
    done = ranks(2, "-m", "jclip.cli", *train, others=["-c", ANOTHER_HOST.format(there), *train])
    assert done.returncode == 2 and wanted.format(host=os.uname().nodename, run=tmp_path / "r") in only_line(done)


OBJECTS_AT_HAND = """
import os, shutil
from pathlib import Path
import jclip.machine.core_build as build
import jclip.machine.core_import as core
compile_all, begin = build._compile_all, core._Build.__init__
def begin_with_data(self, utils, *more):
    begin(self, utils, *more)
    home = Path(utils.cache_path)
    there = Path(os.environ["OBJECTS_OF"], home.relative_to(os.environ["JCLIP_CACHE"]))
    if (there / "data.o").is_file():
        for name in ("data.o", "data.md5"):
            shutil.copyfile(there / name, home / name)
core._Build.__init__ = begin_with_data
def take(todo, folder, progress):
    there = Path(os.environ["OBJECTS_OF"], folder.relative_to(os.environ["JCLIP_CACHE"]))
    objects = [there / p.target.name for p in todo]
    of_mpi = any(p.target.name.startswith("mpi") for p in todo)
    if of_mpi or not list(there.glob("jclip-*.json")) or not all(path.is_file() for path in objects):
        return compile_all(todo, folder, progress)
    build._run(todo[0], folder / build.EMPTY, "-x", "c++", os.devnull)
    for path in objects:
        shutil.copyfile(path, folder / path.name)
build._compile_all = take
"""


@pytest.mark.slow  # Jittor's core is linked, and its part for MPI compiled
def test_a_cold_cache_under_mpirun(tmp_path):
    """Objects of the core are those of the cache that is there, if there is one, which take most of a minute; what is of MPI,
    and what the first operators need, is compiled."""
    (tmp_path / "sitecustomize.py").write_text(OBJECTS_AT_HAND)
    code = (
        "from jclip.kernels import collectives; import numpy; print(collectives.total(numpy.ones(2, 'float32')).sum())"
    )
    paths = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OBJECTS_OF": str(cache_dir())}
    done = ranks(2, "-c", code, JCLIP_CACHE=str(tmp_path / "cache"), **paths)
    assert done.returncode == 0 and done.stdout.split() == ["4.0", "4.0"], done.stderr
    assert done.stderr.count("first start here") == 1


PARTS = {"train": "val.jsonl", "val": "test.jsonl", "test": "test.jsonl", "classes": "classes.txt"}
LISTS = ["data.root={photos}", *(f"data.{part}={{photos}}/{name}" for part, name in PARTS.items())]
OF_TWO = (  # settings beside those of smoke.yaml: recipes of towers, and of a network behind them, with dropout and without
    ("lora", ["steps=3", "optim.batch=7", "accumulate=2"]),
    ("grounding", ["dropout=0.1", "absent=0.5", "accumulate=2", "optim.batch=7", "clip=0.1", "data.scenes=30"]),
    ("full", [*FEW, "data.shots=3", "optim.batch=10", "statistics=true"]),
    ("lora", ["lora.dropout=0", "steps=3"]),
    ("grounding", ["augment=true", "model=shapes-tiny-vit", "visual_positions=trained", "dropout=0.1", "data.scenes=12"]),
)  # fmt: skip
OF_THREE = (
    ("full", [*FEW, "data.shots=3", "model=shapes-tiny-vit", "optim.batch=7", "accumulate=2", "loss=cross_entropy"]),
    ("coop", FEW), ("cocoop", FEW), ("fd_align", []), ("kgcoop", FEW), ("maple", ["optim.batch=7"]), ("promptsrc", []),
    ("text_as_image", []),
    ("dual_prompt", ["augment=dualcoop", "optim.batch=5", "learn=[scale]", "known=1", "optim.epochs=4", *LISTS]),
)  # fmt: skip
MANY = "import json, sys; from jclip.cli import main; sys.exit(max(main(argv) for argv in json.loads(sys.argv[1])))"


@pytest.mark.parametrize(
    ("count", "recipes"), [(2, OF_TWO), pytest.param(3, OF_THREE, marks=pytest.mark.slow)], ids=["two", "three"]
)
def test_every_recipe_ends_as_by_one_process(count, recipes, tmp_path, close):
    from jclip.cli import main

    write_folder(tmp_path / "photos", "shapes-tiny-rn")
    names = (tmp_path / "photos" / "names.txt").read_text().splitlines()
    (tmp_path / "photos" / "classes.txt").write_text("".join(f"{name} {k}\n" for k, name in enumerate(names)))

    def commands(kind: str) -> list[list[str]]:
        settings = [[str(ROOT / "configs" / name / "smoke.yaml"), *more] for name, more in recipes]
        given = [[word.format(photos=tmp_path / "photos") for word in words] for words in settings]
        return [["train", *words, PLACE, str(tmp_path / kind / str(i))] for i, words in enumerate(given)]

    assert [main(argv) for argv in commands("one")] == [0] * len(recipes)
    done = ranks(count, "-c", MANY, json.dumps(commands("several")))
    assert done.returncode == 0, done.stderr
    for number, (name, _) in enumerate(recipes):
        files = [tmp_path / kind / str(number) / "learned.safetensors" for kind in ("one", "several")]
        arrays = [{k: np.array(t.read()) for k, t in read_weights(file).items()} for file in files]
        assert arrays[0].keys() == arrays[1].keys()
        for key, wanted in arrays[0].items():
            close(*(without_key_bias(key, x) for x in (arrays[1][key], wanted)), "trajectory", f"ranks: {name}")
        metrics = [json.loads((file.parent / "result.json").read_text())["metrics"] for file in files]
        assert metrics[0].keys() == metrics[1].keys()
        assert {k: v for k, v in metrics[0].items() if "top1" in k} == {
            k: v for k, v in metrics[1].items() if "top1" in k
        }


def test_the_doctors_trial_and_what_becomes_of_it_where_nccl_fails(stand_in):
    host, version = "through the host's memory", "2.9.3"
    reasons = [
        f"rank 1: NCCL {version}: ncclCommInitRank failed: unhandled system error",
        f"rank 1: NCCL {version} summed known numbers wrongly",
        "ranks 0 and 1 share one GPU, NCCL wants one for each",
        "JCLIP_NCCL=0",
    ]
    ways = [f"{host} (no GPU)", f"by NCCL {version}", *(f"{host} ({why})" for why in reasons)]
    done = ranks(2, "-m", "tests.recipes.nccl_stand_in", "modes", JCLIP_DEVICE="cpu", **stand_in)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(2 * [f"True {way}" for way in ways])
    said = [f"jclip: gradients of 2 ranks are summed {host}: {why}" for why in reasons[:-1]]  # of JCLIP_NCCL=0 nothing
    assert lines_of(done) == said


def test_what_one_process_does_is_done_by_the_first():
    done = ranks(2, "-m", "jclip.cli", "recipes")
    assert done.returncode == 0 and done.stdout.count("configs/contrastive/smoke.yaml") == 1
    assert lines_of(done) == ["jclip recipes is done by one process: rank 0 does it, the others rest"]
    refused = ranks(2, "-m", "jclip.cli", "train", str(ROOT / "configs" / "tip_adapter" / "smoke.yaml"))
    (line,) = lines_of(refused)
    assert refused.returncode == 2 and "recipe tip_adapter learns in one process, which is faster" in line
