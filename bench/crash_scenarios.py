"""The commands that `crash_points.py` kills: what each is run on, and what must hold of what is left."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TIMES = re.compile(rb'"(seconds|cpu_seconds|time|checksum)": ("[^"]*"|[0-9.]+)|"peak_mib": \{[^}]*\}')


@dataclass
class Scenario:
    """What is run in a folder, which is made again and prepared for each point.

    after: what must hold between the kill and the second run, returns what does not. again: the second run, if that is not
    the same. Those are run in processes of their own and return exit codes.
    """

    prepare: Callable[[Path], None]
    run: Callable[[Path], int]
    again: Callable[[Path], int] | None = None
    after: Callable[[Path], str] = lambda root: ""


@dataclass
class Ended:
    """A process: its exit code, and what it wrote to stderr."""

    code: int
    errors: str


def forked(work: Callable[[], int]) -> Ended:
    """`work` in a child of this process."""
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if not child:
            code = 1
            try:
                os.dup2(errors.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                code = work() or 0
            except SystemExit as e:
                code = int(e.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        errors.seek(0)
        return Ended(os.waitstatus_to_exitcode(status), errors.read().decode(errors="replace"))


def contents(root: Path) -> dict[str, bytes]:
    """Files below a folder, times left out; links as where they point, empty folders by name."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.fsencode(path.readlink())
        elif path.is_file():
            data = path.read_bytes()
            if path.suffix == ".json":
                data = TIMES.sub(b"", data)
            found[name] = _without_seconds(data) if path.name == "sweep.csv" else data
        elif not any(path.iterdir()):
            found[f"{name}/"] = b""
    return found


def _without_seconds(table: bytes) -> bytes:
    lines = [line.split(b",") for line in table.splitlines()]
    column = lines[0].index(b"seconds")
    return b"\n".join(b",".join(cell for i, cell in enumerate(line) if i != column) for line in lines)


# Commands


def command(*argv: str) -> int:
    """A command of jclip's, in this process."""
    from jclip.cli import main

    return main(list(argv))


def train_scenario(config: str = "clip_adapter/smoke") -> Scenario:
    """A run with a link to it; states are saved after each epoch."""

    def run(root: Path) -> int:
        from jclip.train import loop

        loop.SAVE_SECONDS = 0.0
        return command("train", config, "--run", str(root / "runs" / "one"), "--link", str(root / "runs" / "last"))

    return Scenario(lambda root: None, run)


def sweep_scenario() -> Scenario:
    """Two recipes."""

    def run(root: Path) -> int:
        places = ["--runs", str(root / "runs"), "--out", str(root / "out")]
        return command("sweep", "zero_shot/smoke", "tip_adapter/smoke", *places)

    return Scenario(lambda root: None, run)


def convert_scenario() -> Scenario:
    """A small model onto a folder that an earlier conversion made: old or new, never half of each."""
    made = Path(tempfile.mkdtemp(prefix="convert-", dir=os.environ["CRASH_PLACE"]))
    forked(lambda: _small_model(made / "source.safetensors"))
    source = made / "source.safetensors"
    for dtype in ("fp32", "fp16"):
        forked(lambda dtype=dtype: _convert(source, made / dtype, dtype))
    states = [contents(made / dtype) for dtype in ("fp32", "fp16")]

    def after(root: Path) -> str:
        there = contents(root / "model")
        return "" if there in states else f"neither the old folder nor the new one: {sorted(there)}"

    return Scenario(
        lambda root: shutil.copytree(made / "fp32", root / "model"),
        lambda root: _convert(source, root / "model", "fp16"),
        after=after,
    )


def _convert(source: Path, target: Path, dtype: str) -> int:
    return command("convert", str(source), str(target), "--dtype", dtype)


def _small_model(path: Path, resnet: bool = False) -> int:
    from tests.toys import SMALL_RESNET, SMALL_VIT, toy_file

    shutil.copyfile(toy_file(path.parent / "toy", SMALL_RESNET if resnet else SMALL_VIT), path)
    return 0


def challenge_scenario() -> Scenario:
    """The challenge's folder in small, one backbone, the gate and two members."""
    from tests.recipes.challenge_folder import write_folder

    made = Path(tempfile.mkdtemp(prefix="challenge-", dir=os.environ["CRASH_PLACE"]))
    forked(lambda: _small_model(made / "vit.safetensors"))
    write_folder(made / "challenge")
    forked(lambda: command("hold-out", str(made / "challenge"), "--count", "20", "--shots", "2"))
    settings = [
        "tune.optim={lr: 1e-3, epochs: 1, batch: 8}", "tune.every=1", "members.tip_adapter.search_steps=[5, 7]",
        "members.tip_adapter.optim={lr: 1e-2, epochs: 1, batch: 16}",
        "members.cross_modal={every: 2, augment: none, optim: {lr: 1e-3, epochs: 1, batch: 8}}", "fusion.step=0.1",
        "date='0820'", f"data.root={made / 'challenge'}", f"backbones={made / 'vit.safetensors'}",
    ]  # fmt: skip

    def run(root: Path) -> int:
        return command("challenge", *settings, "--runs", str(root / "runs"), f"out={root / 'results'}")

    return Scenario(lambda root: None, run)


def embed_scenario() -> Scenario:
    """Photos, two of them broken, with a table, into a gallery that is saved after each batch and then brought up to date."""
    made = Path(tempfile.mkdtemp(prefix="embed-", dir=os.environ["CRASH_PLACE"]))
    forked(lambda: _photos(made))

    def run(root: Path) -> int:
        from jclip.features import gallery_embedding

        gallery_embedding.SAVE_SECONDS = 0.0
        os.environ["JCLIP_BATCH"] = "4"
        to = [
            "--out",
            str(root / "gallery"),
            "--model",
            "shapes-tiny-rn",
            "--columns",
            str(made / "table.csv"),
            "--update",
        ]
        first = command("embed", str(made / "old"), "--root", str(made), *to)
        return first or command("embed", str(made / "old"), str(made / "new"), "--root", str(made), *to)

    return Scenario(lambda root: None, run)


def retrieval_scenario() -> Scenario:
    """The retrieval challenge on a few photos of the embedded world: filling, tuning, choosing, results."""

    def run(root: Path) -> int:
        from jclip.train import loop

        loop.SAVE_SECONDS = 0.0
        settings = [
            "tune.mix=1", "tune.optim={epochs: 2, batch: 16, lr: 2e-4}", "rules=[none, shapes-bare]",
            "rerank=[{kind: none}, {kind: expand, k: 3}]", f"out={root / 'results'}",
        ]  # fmt: skip
        return command("challenge", "retrieval_challenge_shapes.yaml", *settings, "--runs", str(root / "runs"))

    return Scenario(lambda root: None, run)


def multi_label_scenario() -> Scenario:
    """The challenge of several labels in small: captions, three models from each other, scores of two parts, the result."""
    from tests.recipes.multi_label_folder import write_folder

    made = Path(tempfile.mkdtemp(prefix="multi-label-", dir=os.environ["CRASH_PLACE"]))
    forked(lambda: _small_model(made / "resnet.safetensors", resnet=True))
    config = write_folder(made / "contest", str(made / "resnet.safetensors"))
    settings = [f"data.{part}={config.parent / f'{part}.jsonl'}" for part in ("val", "test")]
    settings += [f"data.root={config.parent}", "choose=[windows, merge, ensemble]"]

    def run(root: Path) -> int:
        from jclip.report import window_files
        from jclip.train import loop

        loop.SAVE_SECONDS, window_files.PHOTOS_OF_PART = 0.0, 2
        return command("challenge", str(config), *settings, "--runs", str(root / "runs"), f"out={root / 'results'}")

    return Scenario(lambda root: None, run)


def curriculum_scenario() -> Scenario:
    """SSA on one source of the embedded world: the measurer, reliabilities, a threshold, the chosen rows; states are saved
    after each epoch."""

    def run(root: Path) -> int:
        from jclip.train import loop

        loop.SAVE_SECONDS = 0.0
        settings = ["mode=ssa", "high=0.0", "data.sources={template: shapes}", "learn.optim.epochs=2", "dataset=unc"]
        return command("train", "curriculum/smoke", *settings, "--run", str(root / "run"))

    return Scenario(lambda root: None, run)


def _photos(folder: Path) -> int:
    from jclip.data.shapes import draw_scene

    for number in range(12):
        part = folder / ("old" if number < 9 else "new")
        part.mkdir(exist_ok=True)
        draw_scene((number,), count=(1, 1)).render().save(part / f"{number}.png")
    (folder / "old" / "broken.jpg").write_bytes(b"no photo")
    (folder / "new" / "cut.png").write_bytes((folder / "old" / "1.png").read_bytes()[:200])
    (folder / "table.csv").write_text("name,year\n0.png,2019\n10.png,2020\n")
    return 0


# The layer of files, without Jittor


def folder_scenario() -> Scenario:
    """A run whose training is adding up: states, lines, what was learned, its evaluation, the result."""
    import numpy as np

    from jclip.paths import replacing
    from jclip.report.evaluation import write_evaluation
    from jclip.train.run import Run

    def run(root: Path) -> int:
        from jclip.errors import guarded

        return guarded(lambda: body(root), "folder")

    def body(root: Path) -> int:
        with Run(root / "run", {"recipe": "sum", "seed": 1}) as opened:
            if opened.result is not None:
                return 0
            slot, numbers, first = opened.slot("train"), np.zeros(8, np.float32), 0
            if (saved := slot.load()) is not None:
                numbers, first = saved[0]["numbers"].read(), saved[1]["epoch"]
            opened.drop_lines("train", first)
            for epoch in range(first, 2):
                numbers = numbers + epoch
                opened.log(slot="train", epoch=epoch, loss=float(numbers.sum()))
                position = {"epoch": epoch + 1, "step": epoch + 1, "last": {}, "best": {}, "best_epoch": -1}
                slot.save({"numbers": numbers}, position)
            opened.save_learned({"numbers": numbers}, classnames=["a", "b"], width=8)
            with replacing(opened.file("words.csv")) as temporary:
                temporary.write_text("words\n")
            names = "eval.json", "predictions.csv", "result.txt", "per_class.csv", "confusion.csv"
            opened.expect(names)
            scores = np.eye(2, dtype=np.float32)[[0, 1, 1]]
            opened.finish({"top1": 1.0}, lambda _: write_evaluation(root / "run", scores, np.array([0, 1, 1]), classes))
        return 0

    classes = [f"class {i}" for i in range(101)]  # more than are drawn
    return Scenario(lambda root: None, run)


def sort_scenario(how: str = "copy") -> Scenario:
    """Photos into class folders; after a kill `unsort` takes all of it back."""
    import numpy as np

    from jclip.errors import guarded
    from jclip.report.predictions import Predictions
    from jclip.report.sorted_folders import MANIFEST, place, plan

    def prepare(root: Path) -> None:
        for number in range(3):
            photo = root / "photos" / str(number) / "x.jpg"
            photo.parent.mkdir(parents=True)
            photo.write_bytes(bytes([number]) * 3000)
            os.utime(photo, (1, 1))

    def run(root: Path) -> int:
        photos = tuple(str(root / "photos" / str(i) / "x.jpg") for i in range(3))
        predictions = Predictions(photos, ("cat", "dog"), np.eye(2)[[0, 1, 1]] * 9)
        return guarded(lambda: place(plan(predictions, root / "sorted"), root / "sorted", how) and None, "sort")

    def taken_back(root: Path) -> int:
        if (root / "sorted" / MANIFEST).exists():
            return command("unsort", str(root / "sorted" / MANIFEST))
        return 0

    def after(root: Path) -> str:
        if forked(lambda: taken_back(root)).code:
            return "unsort failed"
        left = {name for name in contents(root) if not name.startswith("photos/")}
        left -= {"sorted/", f"sorted/.{MANIFEST}.part"}  # the latter is removed by the next start
        return f"unsort left {sorted(left)}" if left else ""

    return Scenario(prepare, run, after=after)


def unsort_scenario() -> Scenario:
    """What was sorted is taken back."""
    sort = sort_scenario()

    def prepare(root: Path) -> None:
        sort.prepare(root)
        sort.run(root)

    def run(root: Path) -> int:
        manifest = root / "sorted" / "sorted.json"
        return command("unsort", str(manifest)) if manifest.exists() else 0

    return Scenario(prepare, run)


SCENARIOS = {
    "train": train_scenario, "sweep": sweep_scenario, "convert": convert_scenario, "challenge": challenge_scenario,
    "embed": embed_scenario,
    "retrieval": retrieval_scenario,
    "multi_label": multi_label_scenario,
    "curriculum": curriculum_scenario,
    "folder": folder_scenario, "sort": sort_scenario, "link": lambda: sort_scenario("link"), "unsort": unsort_scenario,
}  # fmt: skip
