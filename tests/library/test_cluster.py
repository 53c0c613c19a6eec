"""Photos embedded by the workers of a Dask cluster: equal bytes, though one is killed."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jclip.cli import main
from jclip.commands import cluster
from jclip.data.shapes import draw_scene
from jclip.errors import ConfigError
from tests.children import begin_child
from tests.library.test_shares import KILLING, MODEL, files_of

distributed = pytest.importorskip("distributed", reason="needs Dask: pip install 'jclip[cluster]'")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(29):
        draw_scene((number,), count=(1, 2)).render().save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def address(tmp_path, monkeypatch):
    """A scheduler and two workers, whose parts have 8 photos; the one that encodes the second part is killed once."""
    (tmp_path / "sitecustomize.py").write_text(KILLING)
    (tmp_path / "marks").mkdir()
    root = str(Path(cluster.run.__code__.co_filename).parents[2])
    settings = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(tmp_path), root, os.environ.get("PYTHONPATH")))),
        "MARKS": str(tmp_path / "marks"), "KILLS": "1", "JCLIP_WORKERS": "1", "JCLIP_BATCH": "3",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    place = ["--scheduler-file", str(tmp_path / "scheduler.json")]  # which it writes: its port is any that is free
    scheduler = ["dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", *place]
    worker = ["dask_worker", *place, "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path / "own")]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{name}", *rest], cwd=tmp_path, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, preexec_fn=functools.partial(begin_child, os.getpid()),
        )
        for name, *rest in (scheduler, worker, worker)
    ]  # fmt: skip
    try:
        with distributed.Client(scheduler_file=place[1], timeout="300s", set_as_default=False) as client:
            client.wait_for_workers(2, timeout=300)
            address = client.scheduler.address
        yield address
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def embed(photos, out, *more):
    return main(["embed", str(photos), "--out", str(out), "--model", MODEL, *more])


def test_workers_make_the_same_bytes_though_one_is_killed(address, photos, tmp_path, capsys, monkeypatch):
    from jclip.data import gallery_inputs

    monkeypatch.setattr(gallery_inputs, "PART", 8)
    monkeypatch.setattr(cluster, "ANSWER", "300s")  # of a busy machine
    assert embed(photos, tmp_path / "whole") == 0
    assert embed(photos, tmp_path / "g", "--scheduler", address) == 0
    assert [path.name for path in (tmp_path / "marks").iterdir()] == ["1-0"]  # it was killed
    assert files_of(tmp_path / "g") == files_of(tmp_path / "whole")
    monkeypatch.setattr(cluster, "version", lambda name: "9.9")
    capsys.readouterr()
    assert embed(photos, tmp_path / "h", "--scheduler", address) == 2
    assert "must have jclip 9.9, got" in capsys.readouterr().err


def test_a_scheduler_that_is_not_there(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "ANSWER", "1s")
    for address in ("tcp://127.0.0.1:9", "nonsense", "http://a:1"):
        assert embed(photos, tmp_path / "g", "--scheduler", address) == 2
        said = capsys.readouterr().err
        assert "no scheduler answers there" in said and said.count("\n") == 1


def test_workers_without_the_folder_or_without_jclip(tmp_path):
    class Client:
        def __init__(self, answer):
            self.answer = answer

        def scheduler_info(self, **_):
            return {"workers": {"tcp://one": {}}}

        def run(self, *_, **__):
            return {"tcp://one": self.answer}

    own = cluster.version("jclip")
    for answer, said in (
        ((own, "node7", False), "on node7 does not see"),
        (ImportError("No module named 'jclip'"), "must have jclip"),
        (Exception("ModuleNotFoundError(\"No module named 'jclip'\")"), "must have jclip .*, got none"),
        (OSError("gone"), "does not answer: gone"),
    ):
        with pytest.raises(ConfigError, match=said):
            cluster._check_workers(Client(answer), "tcp://all", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_table_of_versions_is_one_line():
    frame = "+---+---+"
    said = cluster.one_line(
        f"Mismatched versions found\n\n{frame}\n| Package | Client |\n{frame}\n| numpy   | 1.26   |\n{frame}"
    )
    assert said == "Mismatched versions found | Package | Client | | numpy | 1.26 |"
