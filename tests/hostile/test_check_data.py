"""`jclip check-data` lists every fault of a folder at once, and writes a config that a run takes. Without Jittor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jclip.choices import default_model
from jclip.cli import main
from jclip.data import examine, splits
from jclip.data.splits import read_photos
from jclip.train.configs import read_config
from tests.hostile.faulty_folder import faulty_folder, photo


@pytest.fixture(autouse=True)
def fresh_notes(monkeypatch):
    """Each note is written once in a process: these tests reset them."""
    monkeypatch.setattr(splits, "_noted", set())


FAULTS = [
    "left out: 8 hidden or system files and folders (first: ", "left out: 1 .mp4 files (first: ", "left out: 1 .txt files",
    "left out: 1 FIFOs, sockets and devices", "left out: 1 links that lead nowhere",
    "left out: 1 links to folders that are read elsewhere", "left out: 1 folders beside Training, test, valid",
    "left out: 1 photos outside of class folders", "in byte order of their names: 0 class 0, 1 class 1, 2 class 10",
    "1 class names are read as GB18030 (first: 苹果)", "2 photos lie in folders within their class's",
    "1 of 99 photos are smaller than 64 pixels", "1 of 99 photos carry an EXIF orientation and are turned upright",
    "1 of 99 photos are more than 3 times as long as wide", "1 of 99 photos have 16 bits per channel",
    "1 of 99 photos have the mode CMYK", "1 of 13 classes have no val photos (first: 苹果)",
    "2 test photos are copies of train photos (first: ", "1 train photos are copies of others there (first: ",
    "warning: '苹果' is Chinese, which these weights never learned",
    "2 photos have copies in another class (first: ", "refused: 3 of 99 photos do not decode (first: ",
]  # fmt: skip


def test_every_fault_of_a_folder_is_listed(tmp_path, capsys):
    root = faulty_folder(tmp_path / "root")
    out, config = tmp_path / "found.json", tmp_path / "run.yaml"
    assert main(["check-data", str(root), "--json", str(out), "--write", str(config)]) == 2
    printed = capsys.readouterr()
    assert [fault for fault in FAULTS if fault not in printed.out] == []
    assert (
        printed.err.startswith("jclip check-data: a run would refuse this data: 3 of 99")
        and printed.err.count("\n") == 1
    )
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [row["name"] for row in found["classes"]][-2:] == ["class 9", "苹果"] and found["classes"][0]["train"] == 5
    broken = {Path(row["path"]).name: row["error"] for row in found["broken"]}
    assert (
        broken.keys() == {"cut.jpg", "empty.jpg", "float.tif"} and "mode F has no defined range" in broken["float.tif"]
    )
    assert found["photos"]["modes"] == {"RGB": 94, "I;16": 1, "CMYK": 1} and found["photos"]["count"] == 99

    module, cfg, _ = read_config(str(config))  # as `jclip train` does
    assert module.__name__ == "finetune.tip_adapter" and (cfg.data.on_error, cfg.data.shots) == ("skip", 1)
    assert len(read_photos(cfg.data).train) == 13
    assert main(["check-data", str(config)]) == 0  # broken photos are skipped, as the config says
    assert "warning: " in capsys.readouterr().out


def test_a_clean_folder(tmp_path, capsys):
    for number in range(24):
        photo(tmp_path / "p" / "ab"[number % 2] / f"{number}.png", number)
    assert main(["check-data", str(tmp_path / "p"), "--write", str(tmp_path / "run.yaml")]) == 0
    printed = capsys.readouterr()
    assert "refusals: 0, warnings: 0" in printed.out and not printed.err
    _, cfg, _ = read_config(str(tmp_path / "run.yaml"))
    data = read_photos(cfg.data)
    assert (cfg.data.shots, len(data.train), len(data.val), cfg.search) == (8, 16, 8, True)


def test_what_a_run_would_refuse(tmp_path, capsys):
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for target, message in (
        ("photos", "only one class (a)"), ("photo", "no such folder or config: .*, did you mean 'photos'"),
    ):  # fmt: skip
        assert main(["check-data", str(tmp_path / target), "--write", str(tmp_path / "run.yaml")]) == 2
        printed = capsys.readouterr()
        assert message.split(".*")[-1] in printed.err and printed.err.count("\n") == 1
    assert not (tmp_path / "run.yaml").exists()
    assert main(["check-data", "gda/smoke"]) == 2
    assert "must be photos, got precomputed features: there are no photos to check" in capsys.readouterr().err


def test_a_config_is_checked_as_its_run_reads_it(tmp_path, capsys):
    """Classes that it names, encodings of its lists, photos that are in two parts."""
    places = [
        f"{part}/{name}/{i}.png" for name in ("n1", "n2") for part, n in (("train", 2), ("test", 1)) for i in range(n)
    ]
    for seed, place in enumerate(places):
        photo(tmp_path / place, seed)
    (tmp_path / "names.txt").write_bytes("n1 苹果\nn2 梨子\n".encode("gb18030"))
    (tmp_path / "run.yaml").write_text(
        "recipe: zero_shot\nmodel: ViT-B/32\ndata: {root: ., classes: names.txt, shots: 1, val_shots: 1}\n"
    )
    assert main(["check-data", str(tmp_path / "run.yaml"), "--json", str(tmp_path / "o.json")]) == 0
    found = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
    assert [(row["name"], row["called"], row["train"]) for row in found["classes"]] == [
        ("苹果", "n1", 1),
        ("梨子", "n2", 1),
    ]
    assert found["encodings"] == {str(tmp_path / "names.txt"): "GB18030"}
    assert "list: " in capsys.readouterr().out
    (tmp_path / "val").symlink_to(tmp_path / "train")
    assert main(["check-data", str(tmp_path / "run.yaml"), "data.shots=0"]) == 2
    assert "validation photos are training photos too" in capsys.readouterr().err


def test_processes_see_what_one_process_sees(tmp_path, monkeypatch):
    paths = [str(photo(tmp_path / f"{i}.jpg", i, (16, 16))) for i in range(5)] + [str(tmp_path / "none.jpg")]
    alone = [*examine.examined(paths)]
    monkeypatch.setattr(examine, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(examine, "CHUNK", 2)
    assert [*examine.examined(paths)] == alone and [bool(seen.error) for seen in alone] == [False] * 5 + [True]


def test_it_imports_no_jittor_and_names_beyond_utf8_end_in_no_traceback(tmp_path):
    root = os.fsencode(tmp_path / "r")
    for name in (b"a", b"b"):
        os.makedirs(root + b"/" + name)  # noqa: PTH103
        os.rename(photo(tmp_path / "1.png", len(name) + name[0]), root + b"/" + name + b"/\xb0\xff.png")  # noqa: PTH104
    code = "import sys; from jclip.cli import main; main(['check-data', sys.argv[1], '--json', sys.argv[2]]); "
    code += "assert 'jittor' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, root, tmp_path / "o.json"], capture_output=True, env={**os.environ, "LC_ALL": "C"}
    )
    assert done.returncode == 0 and not done.stderr
    assert len(json.loads((tmp_path / "o.json").read_text())["classes"]) == 2


@pytest.mark.parametrize("trained", [True, False])
def test_the_model_that_is_written_is_the_default_of_every_command(trained, tmp_path, monkeypatch):
    for number in range(24):
        photo(tmp_path / "p" / ("train" if trained else "test") / "ab"[number % 2] / f"{number}.png", number)
    for named, model in (("ViT-L/14", "ViT-L/14"), ("", "ViT-B/32"), (None, "ViT-B/32")):
        monkeypatch.setenv("JCLIP_MODEL", named) if named is not None else monkeypatch.delenv("JCLIP_MODEL")
        assert main(["check-data", str(tmp_path / "p"), "--write", str(tmp_path / "run.yaml")]) in (0, 2)
        module, cfg, _ = read_config(str(tmp_path / "run.yaml"))
        assert cfg.model == model == default_model()
        assert module.__name__ == ("finetune.tip_adapter" if trained else "finetune.zero_shot")
