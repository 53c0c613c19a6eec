"""Photos come decoded in order, in threads and in processes alike; broken ones are reported; nothing runs too far ahead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jclip.config import DataConfig
from jclip.data import loader
from jclip.data.augment import Views, augment
from jclip.data.loader import batches, open_photo, workers
from jclip.data.preprocess import Preprocess
from jclip.data.splits import read_photos
from jclip.errors import ConfigError, DataError, SetupError


def pixels(image, row):
    return np.asarray(image)[0, 0].astype(np.float32) + row


@pytest.mark.parametrize("size, workers", [(4, "1"), (4, "3"), (100, "2"), (1, "0")])
def test_batches_keep_order_and_the_last_one(photos, size, workers, monkeypatch):
    monkeypatch.setenv("JCLIP_WORKERS", workers)
    split = read_photos(DataConfig(root=str(photos), shots=0)).train
    parts = list(batches(split.paths, pixels, size))
    assert np.concatenate([rows for rows, _ in parts]).tolist() == list(range(18))
    assert [len(rows) for rows, _ in parts] == [min(size, 18 - i) for i in range(0, 18, size)]
    wanted = [pixels(open_photo(p), i) for i, p in enumerate(split.paths)]
    assert np.array_equal(np.concatenate([x for _, x in parts]), np.stack(wanted))


@pytest.fixture
def damaged(photos):
    folder = photos / "test" / "猫"
    whole = Image.effect_noise((64, 64), 50)
    whole.save(folder / "5.jpg")
    (folder / "6.jpg").write_bytes((folder / "5.jpg").read_bytes()[:700])
    (folder / "7.jpg").write_text("this is no photo")
    (folder / "8.jpg").write_bytes(b"")
    return [str(folder / f"{i}.jpg") for i in (5, 6, 7, 8)]


def test_a_broken_photo_stops_with_its_path(damaged):
    with pytest.raises(DataError, match=r"6\.jpg does not decode: .*on_error=skip"):
        list(batches(damaged, lambda image, row: np.zeros(1), 4))


def test_broken_photos_are_skipped_and_reported(damaged):
    failed = []
    parts = list(batches(damaged, lambda image, row: np.zeros(1), 4, "skip", failed))
    assert np.concatenate([rows for rows, _ in parts]).tolist() == [0]
    assert [any(f"{i}.jpg does not decode" in f for f in failed) for i in (6, 7, 8)] == [True] * 3


def views(**settings):
    return Views(Preprocess(size=(16, 12)), augment("coop"), seed=3, numbers=(0, 5), **settings)


@pytest.mark.parametrize("size, count", [(4, "2"), (7, "3")])
def test_processes_prepare_the_same_pixels_as_threads_in_the_same_order(photos, monkeypatch, size, count):
    split = read_photos(DataConfig(root=str(photos), shots=0)).train
    order = np.random.default_rng(0).permutation(len(split))
    threads = list(batches(split.paths, views(), size, rows=order))
    monkeypatch.setattr(loader, "_WORTH_PROCESSES", 1)
    monkeypatch.setenv("JCLIP_WORKERS", count)
    processes = list(batches(split.paths, views(), size, rows=order))
    assert len(threads) == len(processes)
    for (a, x), (b, y) in zip(threads, processes, strict=True):
        assert np.array_equal(a, b) and np.array_equal(x, y) and x.shape[1:] == (2, 3, 16, 12)


def test_processes_report_broken_photos_and_then_wait_for_others(damaged, monkeypatch):
    monkeypatch.setattr(loader, "_WORTH_PROCESSES", 1)
    monkeypatch.setenv("JCLIP_WORKERS", "2")
    monkeypatch.setattr("jclip.data.workers._idle", {})
    before = decoding_processes()
    with pytest.raises(DataError, match=r"6\.jpg does not decode: .*on_error=skip"):
        list(batches(damaged, views(), 4))
    failed = []
    parts = list(batches(damaged, views(), 4, "skip", failed))
    assert np.concatenate([rows for rows, _ in parts]).tolist() == [0] and len(failed) == 3
    waiting = {*decoding_processes()} - {*before}
    assert len(waiting) == 2  # those of the pass that broke off are gone
    again = list(batches(damaged[:1], Views(Preprocess(size=(9, 8))), 4))  # other sizes
    assert again[0][1].shape == (1, 1, 3, 9, 8) and {*decoding_processes()} - {*before} == waiting


def test_processes_end_with_the_one_that_started_them(photos):
    code = (
        "import os, sys\nfrom jclip.data import loader, workers\n"
        "from jclip.data.preprocess import Preprocess\nfrom jclip.data.augment import Views\n"
        "loader._WORTH_PROCESSES = 1\nlist(loader.batches(sys.argv[1:], Views(Preprocess(size=(8, 8))), 4))\n"
        "print(*(w.pid for w in workers._idle[os.getpid()]), flush=True)\nos._exit(9)"
    )
    split = read_photos(DataConfig(root=str(photos), shots=0)).train
    message = subprocess.run([sys.executable, "-c", code, *split.paths], capture_output=True, text=True).stdout
    left = [Path(f"/proc/{number}") for number in message.split()]
    assert left
    until = time.monotonic() + 300  # they end at once; this ends the test where they never do
    while any(p.exists() for p in left) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(p.exists() for p in left)


def test_a_photo_is_tried_again_when_its_process_dies(photos, monkeypatch):
    monkeypatch.setattr(loader, "_WORTH_PROCESSES", 1)
    monkeypatch.setenv("JCLIP_WORKERS", "2")
    split = read_photos(DataConfig(root=str(photos), shots=0)).train
    whole = np.concatenate([pixels for _, pixels in batches(split.paths, views(), 1)])
    run = batches(split.paths, views(), 1)
    found = [next(run)[1]]
    for child in decoding_processes():
        os.kill(child, signal.SIGKILL)
    found += [pixels for _, pixels in run]
    assert np.array_equal(np.concatenate(found), whole)


DEADLY = """
import os
if size := os.environ.get("DEADLY"):
    import PIL.Image
    opened = PIL.Image.open
    def killing(*given, **more):
        photo = opened(*given, **more)
        if size in ("all", str(photo.size)):
            os.kill(os.getpid(), 9)
        return photo
    PIL.Image.open = killing
"""


@pytest.mark.parametrize("deadly", ["(31, 17)", "all"])
def test_a_photo_that_ends_its_process_is_left_out(deadly, photos, tmp_path, monkeypatch):
    Image.effect_noise((31, 17), 50).save(tmp_path / "deadly.png")
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    for name, value in {"PYTHONPATH": str(tmp_path), "DEADLY": deadly, "JCLIP_WORKERS": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(loader, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(loader.decoding, "_idle", {})
    paths = read_photos(DataConfig(root=str(photos), shots=0)).train.paths
    paths = [*paths[:5], str(tmp_path / "deadly.png"), *paths[5:8]]
    failed: list[str] = []
    run = batches(paths, views(), 1, "skip", failed)
    if deadly == "all":
        with pytest.raises(SetupError, match=r"twice \(signal 9\), as with 3 photos before: JCLIP_WORKERS=0"):
            list(run)
        return
    assert [int(at[0]) for at, _ in run] == [0, 1, 2, 3, 4, 6, 7, 8]
    assert failed == [f"{paths[5]} does not decode: it ended the process that decodes it, twice (signal 9)"]


def decoding_processes() -> list[int]:
    me = Path(f"/proc/{os.getpid()}/task")
    numbers = [int(n) for task in me.iterdir() for n in (task / "children").read_text().split()]
    return [n for n in numbers if b"jclip.data.workers" in Path(f"/proc/{n}/cmdline").read_bytes()]


def test_the_number_of_workers_is_a_number(monkeypatch):
    monkeypatch.setenv("JCLIP_WORKERS", "many")
    with pytest.raises(ConfigError, match="JCLIP_WORKERS must be a number of processes, got many"):
        workers()


def test_draft_decodes_large_jpegs_at_a_fraction_and_only_those(tmp_path):
    for name, size in (("large.jpg", (640, 480)), ("small.jpg", (120, 90)), ("large.png", (640, 480))):
        Image.effect_noise(size, 30).convert("RGB").resize(size).save(tmp_path / name)
    draft = Views(Preprocess(size=(64, 64), draft=True)).draft
    assert draft == (128, 128) and Views(Preprocess()).draft is None
    sizes = {name: open_photo(str(tmp_path / name), draft).size for name in ("large.jpg", "small.jpg", "large.png")}
    assert sizes == {"large.jpg": (320, 240), "small.jpg": (120, 90), "large.png": (640, 480)}
    exact, drafted = (Preprocess((64, 64))(open_photo(str(tmp_path / "large.jpg"), d)) for d in (None, draft))
    assert not np.array_equal(exact, drafted) and np.corrcoef(exact.ravel(), drafted.ravel())[0, 1] > 0.9


def test_reading_ahead_is_bounded(photos):
    split = read_photos(DataConfig(root=str(photos), shots=0)).train
    started = []

    def note(image, row):
        started.append(row)
        return np.zeros(1)

    run = batches(split.paths, note, 2)
    next(run)
    assert len(started) <= 6
    run.close()
