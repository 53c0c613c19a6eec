"""Photos embedded by the workers of a Dask cluster: equal bytes, though one is killed."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
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


def test_a_worker_of_another_build_or_with_other_photos_is_refused(photos, tmp_path):
    import json

    from jclip.commands import embed, shared_parts
    from jclip.features import cached

    argv = [str(photos), "--out", str(tmp_path / "g"), "--model", MODEL]
    key = embed.job_of(embed.parser().parse_args(argv)).key
    own = cached.build_name()
    for made_of, said in ((["other", key], "same jclip and packages"), ([own, "other"], "same photos and weights")):
        with pytest.raises(ConfigError, match=f"the worker on .* must .*{said}.*got others"):
            shared_parts.finish_part(json.dumps([embed.__name__, argv, str(tmp_path), made_of]), 0, 1)
    assert not (tmp_path / "g").exists()
    assert shared_parts.finish_part(json.dumps([embed.__name__, argv, str(tmp_path), [own, key]]), 0, 1) == 29


def test_it_is_said_when_no_worker_is_left(monkeypatch):
    class Client:
        answers = iter([{}, {"tcp://one": {}}, {}])  # one that is started again meanwhile is none that is lost

        def scheduler_info(self, **_):
            return {"workers": next(self.answers, {})}

    said = threading.Event()
    monkeypatch.setattr(cluster, "_LOOK", 0.001)
    monkeypatch.setattr(cluster, "notice", lambda text: "tcp://all has no workers any more" in text and said.set())
    with cluster._noticing_that_none_is_left(Client(), "tcp://all"):
        assert said.wait(300) and next(Client.answers, None) is None


def test_a_table_of_versions_is_one_line():
    frame = "+---+---+"
    said = cluster.one_line(
        f"Mismatched versions found\n\n{frame}\n| Package | Client |\n{frame}\n| numpy   | 1.26   |\n{frame}"
    )
    assert said == "Mismatched versions found | Package | Client | | numpy | 1.26 |"
