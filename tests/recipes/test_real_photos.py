"""The main job on real photos: three data sets, 99 classes, a small model of random weights, to a results file.

docs/own_photos.md does the same with ViT-B/32; that RN50 computes what it should is in tests/parity/test_models.py.
"""

from __future__ import annotations

import json
from pathlib import Path

from jclip.cli import main
from jclip.data.splits import find_photos, natural_key

CONFIG = Path(__file__).parent.parent.parent / "configs" / "tip_adapter" / "photos_fewshot.yaml"


def test_from_folders_to_a_results_file(shared, small_models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head, *lines = (shared / "fewshot" / "index.tsv").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.endswith("test")] + [line for line in lines if line.endswith("test")][
        ::3
    ]
    Path("index.tsv").write_text("\n".join([head, *kept]) + "\n", encoding="utf-8")  # the page's command sees them all
    settings = [
        f"model={small_models['resnet']}",
        "data.split_file=index.tsv",
        f"data.root={shared / 'fewshot'}",
    ]
    settings += ["views=1", "optim.epochs=1"]
    assert main(["train", str(CONFIG), *settings, "--run", "run"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    metrics = result["metrics"]
    assert metrics["test_count"] == 242 and metrics["val_count"] == 99
    assert metrics["val_top1"] >= metrics["zero_shot_val_top1"]  # the grid holds nearly zero-shot, and val chooses
    assert result["provenance"]["versions"]["jittor"] and result["provenance"]["threads"]

    capsys.readouterr()
    assert main(["train", str(CONFIG), *settings, "--run", "run"]) == 0
    assert "this run has finished before" in capsys.readouterr().out

    photos = find_photos([shared / "fewshot" / "food101" / "baklava", shared / "fewshot" / "caltech101" / "Leopards"])
    assert main(["predict", "run", *photos]) == 0
    lines = (tmp_path / "results" / "result.txt").read_text().splitlines()
    assert [line.rsplit(" ", 5)[0] for line in lines] == sorted((Path(p).name for p in photos), key=natural_key)
    for ids in (line.rsplit(" ", 5)[1:] for line in lines):
        assert len(set(ids)) == 5 and all(0 <= int(i) < 99 for i in ids)
