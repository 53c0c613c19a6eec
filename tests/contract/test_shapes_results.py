"""docs/shapes_results.md, in both languages, is what its command makes of its CSV; every row of the bench can be run."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSV = ROOT / "docs" / "shapes_results.csv"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(ROOT / "bench"))
    yield importlib.import_module("shapes_results")
    sys.path.remove(str(ROOT / "bench"))


def all_jobs(bench) -> list:
    return list(bench.jobs(argparse.Namespace(
        models=bench.MODELS, styles=bench.STYLES, recipes=None, shots=bench.SHOTS, seeds=bench.SEEDS
    )))  # fmt: skip


def line(bench, **given) -> dict:
    base = {
        "model": "shapes-tiny-vit",
        "style": "inverted",
        "recipe": "x",
        "subset": "all",
        "shots": 16,
        "seconds": 2.0,
    }
    return dict.fromkeys(bench.COLUMNS, "") | base | given


def test_every_row_that_can_be_run_builds(bench, tmp_path):
    from jclip.errors import ConfigError

    folders = set()
    for job in (j for j in all_jobs(bench) if j.model == "shapes-tiny-vit" and j.style == "sketch" and j.seed == 2):
        try:
            point = job.point(str(tmp_path))
        except ConfigError as e:
            assert "head is 'partial'" in str(e), f"{job.recipe}: {e}"
            continue
        data = point.cfg.data
        assert (data.root, data.shots, data.subset, data.seed, data.features) == (
            "shapes:sketch", job.shots, job.subset, 2, "",
        )  # fmt: skip
        assert point.cfg.model == job.model and not {"train", "val", "test"} & {k for k, v in vars(data).items() if v}
        assert job.subset == "all" or hasattr(point.module, "for_classes")
        folders.add(point.folder)
    assert len(folders) > 3 * len(bench.ROWS) / 2
    assert {"full", "zero_shot", "coop"} <= {row.recipe for row in bench.rows().values()}


def test_epochs_grow_as_photos_get_fewer(bench):
    row = bench.Row("full/smoke", ("selection=val",), {"optim.lr": (1, 2)}, epochs=2)
    assert row.candidates == [("optim.lr=1",), ("optim.lr=2",)]
    vit, rn = bench.MODELS
    assert row.at(16, ["optim.lr=2"], vit) == ("selection=val", "optim.epochs=2", "optim.lr=2")
    assert "optim.epochs=8" in row.at(1, (), vit) and bench.Row("gda/smoke").at(1, (), vit) == ()
    assert bench.Row("lora/smoke", resnet=("a=1",)).at(1, (), rn) == ("a=1",)


def test_tables_by_hand(bench):
    lines = [line(bench, seed=s, test_top1=v, val_top1=0.5, zero_shot_val_top1=z)
             for s, v, z in ((1, 0.5, 0.4), (2, 0.7, 0.6))]  # fmt: skip
    halves = {"base_top1": 0.5, "new_top1": 0.25, "harmonic_mean": 1 / 3}
    new = line(bench, seed=1, subset="base", **halves, **{f"zero_shot_{k}": 0.2 for k in halves})
    text, chinese = bench.pages(Path("docs"), [*lines, new]).values()
    assert "| x |  |  | 60.00 ± 10.00 ↓ | 2.0 |" in text
    assert "| zero-shot | 20.00 ± 0.00 | 20.00 ± 0.00 | 20.00 ± 0.00 |" in text
    assert "| x | 50.00 ± 0.00 | 25.00 ± 0.00 | 33.33 ± 0.00 |" in text and text.count("## shapes-tiny") == 1
    assert "| recipe | 1 shot | 4 shots | 16 shots | seconds |" in text and "| 方法 | 1-shot |" in chinese
    assert [row for row in chinese.splitlines() if "±" in row and "|" in row] == [
        row for row in text.splitlines() if "±" in row and "|" in row
    ]


def test_what_was_run_is_not_run_again(bench, tmp_path, monkeypatch):
    """Lines come as runs end; other settings are another run; what a recipe can't do is reported once, and the rest goes on."""
    from jclip.errors import ConfigError

    ran = []

    def line_of(job, runs):
        ran.append(job.key)
        if job.shots == 4:
            raise ConfigError("not with four")
        known = dict(zip(bench.KEYS, job.key, strict=True))
        return line(bench, **known, val_top1=0.5, test_top1=0.25, settings=job.described)

    monkeypatch.setattr(bench, "line_of", line_of)
    args = argparse.Namespace(
        models=["shapes-tiny-rn"], styles=["sketch"], recipes=["GDA", "CLIP-Adapter"], shots=[1, 4], seeds=[1, 2],
        out=tmp_path, runs="r",
    )  # fmt: skip
    assert len(bench.measure(args)) == 4 and len(ran) == 8
    assert [r["test_top1"] for r in bench.read(tmp_path / "shapes_results.csv")] == [0.25] * 4
    ran.clear()
    bench.measure(args)
    assert {key[4] for key in ran} == {4}
    monkeypatch.setattr(bench, "chosen", lambda: {"CLIP-Adapter": {"shapes-tiny-rn sketch": ["optim.lr=0.5"]}})
    ran.clear()
    assert len(bench.measure(args)) == 4
    assert {key[2] for key in ran if key[4] == 1} == {"CLIP-Adapter"}


@pytest.mark.skipif(not CSV.is_file(), reason="bench/shapes_results.py has not been run")
def test_the_page_is_that_of_the_runs_and_nothing_is_missing(bench):
    lines = bench.read(CSV)
    pages = bench.pages(ROOT / "docs", lines)
    assert [path.parent.name for path in pages] == ["docs", "zh"]
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is stale: python bench/shapes_results.py --table"
    keys = {tuple(row[k] for k in bench.KEYS) for row in lines}
    per_row = len(bench.SHOTS) * len(bench.SEEDS)
    for model, style, recipe in {key[:3] for key in keys}:  # a recipe that a model can't has no line at all
        assert sum(key[:4] == (model, style, recipe, "all") for key in keys) == per_row
    assert {key[2] for key in keys} >= {*bench.rows()}
