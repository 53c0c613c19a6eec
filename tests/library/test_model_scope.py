"""`ms:owner/name` against a hub on loopback: whole, resumed, wrong, silent, in ModelScope's own folders, put by hand."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jclip.errors import CheckpointError
from jclip.weights import http_transfer
from jclip.weights.download import find_weights
from tests.hubs import LoopbackHub

WEIGHTS = bytes(range(256)) * 4000
CHINESE = {"pytorch_model__bin": WEIGHTS, "vocab__txt": "[PAD]\n山\n".encode(), "vision_model_config__json": b"{}",
           "text_model_config__json": b"{}", "configuration__json": b"{}"}  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "jclip"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "scope"))
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
    with LoopbackHub(tmp_path / "root") as hub:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"{hub.url}/")
        yield hub


def test_weights_and_vocabulary_arrive_and_are_not_fetched_again(hub, tmp_path):
    hub.put("damo/clip.base_zh", **CHINESE)
    path = find_weights("ms:damo/clip.base_zh")
    assert path == tmp_path / "scope" / "models" / "damo--clip.base_zh" / "snapshots" / "master" / "pytorch_model.bin"
    assert path.read_bytes() == WEIGHTS and (path.parent / "vocab.txt").read_text("utf-8") == "[PAD]\n山\n"
    assert sorted(p.name for p in path.parent.iterdir()) == ["pytorch_model.bin", "vocab.txt"]
    assert hub.fetched() == ["vocab.txt", "pytorch_model.bin"]
    assert find_weights("ms:damo/clip.base_zh") == path and len(hub.fetched()) == 2


def test_a_described_repository_is_a_folder_with_all_its_shards(hub):
    index = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}).encode()
    hub.put("mine/clip", config__json=b"{}", tokenizer__json=b"{}", model__safetensors__index__json=index)
    hub.put("mine/clip", one__safetensors=b"1", two__safetensors=b"22", notes__md=b"x")
    folder = find_weights("ms:mine/clip")
    there = sorted(p.name for p in folder.iterdir())
    assert there == [
        "config.json",
        "model.safetensors.index.json",
        "one.safetensors",
        "tokenizer.json",
        "two.safetensors",
    ]
    (hub.root / "mine" / "clip" / "two.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"ms:mine/clip lacks two.safetensors, which model.safetensors.index.json"
    ):
        find_weights("ms:mine/clip")


def test_a_break_is_continued_by_the_next_call(hub):
    hub.put("mine/clip", model__safetensors=WEIGHTS)
    hub.breaks = 100_000
    with pytest.raises(CheckpointError, match=r"broke off \(300000 bytes are kept, run again to go on\)"):
        find_weights("ms:mine/clip")
    hub.breaks = None
    path = find_weights("ms:mine/clip")
    assert path.read_bytes() == WEIGHTS and [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    ranges = [asked for method, where, asked, _ in hub.requests if "/store/" in where]
    assert ranges == [None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]


def test_other_bytes_than_listed_are_not_kept(hub, tmp_path):
    hub.put("mine/clip", model__safetensors=WEIGHTS)
    hub.lies.add("model.safetensors")
    with pytest.raises(CheckpointError, match="other bytes arrived than its SHA-256 says: nothing was kept"):
        find_weights("ms:mine/clip")
    assert not [p for p in (tmp_path / "scope").rglob("*") if p.is_file()]


def test_a_file_that_changed_on_the_hub_or_on_disk_is_fetched_again(hub):
    hub.put("mine/clip", model__safetensors=WEIGHTS)
    path = find_weights("ms:mine/clip")
    path.write_bytes(WEIGHTS[::-1])  # of the same length
    assert find_weights("ms:mine/clip").read_bytes() == WEIGHTS
    hub.put("mine/clip", model__safetensors=b"new")
    assert find_weights("ms:mine/clip").read_bytes() == b"new"


@pytest.mark.parametrize(
    "above", ["hub/models/mine/clip___v1", "hub/mine/clip___v1", "models/mine/clip.v1", "mine/clip___v1"]
)
def test_what_modelscopes_package_fetched_before_is_used(above, hub, tmp_path):
    hub.put("mine/clip.v1", model__safetensors=WEIGHTS)
    older = tmp_path / "scope" / above / "model.safetensors"
    older.parent.mkdir(parents=True)
    older.write_bytes(WEIGHTS)
    path = find_weights("ms:mine/clip.v1")
    assert path.resolve() == older.resolve() and not hub.fetched()
    path.unlink()
    hub.url = ""
    hub.__exit__()
    assert find_weights("ms:mine/clip.v1") == older


def test_a_hub_that_is_silent_is_asked_once_and_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "scope"))
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    asked, ask = [], http_transfer._ask
    monkeypatch.setattr(http_transfer, "_ask", lambda *a: asked.append(a) or ask(*a))
    with pytest.raises(CheckpointError) as e:
        find_weights("ms:damo/clip_zh")
    said, folder = str(e.value), tmp_path / "weights" / "damo--clip_zh"
    assert "ms:damo/clip_zh: http://127.0.0.1:9 can't be reached" in said and len(asked) == 1 and "\n" not in said
    for part in ("MODELSCOPE_ENDPOINT", "pytorch_model.bin", "vocab.txt", "tokenizer.json", f"put them into {folder}"):
        assert part in said
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / "vocab.txt").write_bytes(b"x")
    assert find_weights("ms:damo/clip_zh") == folder / "pytorch_model.bin" and len(asked) == 1
    (folder / "config.json").write_bytes(b"{}")
    assert find_weights("ms:damo/clip_zh") == folder == find_weights("hf-hub:damo/clip_zh")


def test_the_other_hub_is_named_where_it_has_the_same_weights(tmp_path, monkeypatch):
    from jclip.weights import hub

    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path))
    silent = type("Silent", (), {"name": "", "place": "there", "silent": "no route", "variables": "X"})()
    said = {}
    for prefix in ("hf-hub:", "ms:"):
        silent.name = f"{prefix}apple/DFN5B-CLIP-ViT-H-14-378"
        with pytest.raises(CheckpointError) as e:
            hub._absent(silent, "apple/DFN5B-CLIP-ViT-H-14-378", ("model.safetensors",))
        said[prefix] = str(e.value)
    assert (
        "set X, or take ms:apple/DFN5B-CLIP-ViT-H-14-378, or fetch open_clip_pytorch_model.bin (SHA-256 c07a"
        in said["hf-hub:"]
    )
    assert "set X, or fetch open_clip_pytorch_model.bin" in said["ms:"]
    with pytest.raises(
        CheckpointError, match="the cache has none of longclip-L.pt .*: set X, or fetch longclip-L.pt, and"
    ):
        hub._absent(silent, "BeichenZhang/LongCLIP-L", hub.HUB_FILES)


def test_a_config_names_models_of_hubs(tmp_path, monkeypatch):
    """A file of a repository is no path, whatever its ending; a file of the project is."""
    from jclip.config import apply_overrides

    monkeypatch.chdir(tmp_path)
    for name in ("ms:mine/clip", "hf-hub:mine/long/longclip-L.pt", "ms:a/b/c.safetensors", "ViT-B/32"):
        assert apply_overrides({}, [f"model={name}"])["model"] == name
    assert apply_overrides({}, ["model=mine.pt"])["model"] == str(tmp_path.resolve() / "mine.pt")


def test_a_token_goes_to_the_hub_alone(hub, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-secret")
    hub.put("mine/clip", model__safetensors=WEIGHTS)
    find_weights("ms:mine/clip")
    assert {("/store/" in where, token) for _, where, _, token in hub.requests} == {(False, True), (True, False)}
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "two words")
    with pytest.raises(CheckpointError, match="MODELSCOPE_API_TOKEN must be one word"):
        find_weights("ms:mine/clip")


def test_a_weight_file_of_another_name_is_found_or_asked_for(hub):
    hub.put("mine/long", longclip_L__pt=WEIGHTS, README__md=b"x")
    assert find_weights("ms:mine/long").name == "longclip_L.pt"
    hub.put("mine/long", longclip_B__pt=b"B")
    with pytest.raises(CheckpointError, match=r"holds 2 weight files: name one of them, ms:mine/long/longclip_B.pt"):
        find_weights("ms:mine/long")
    assert find_weights("ms:mine/long/longclip_B.pt").read_bytes() == b"B"
    with pytest.raises(CheckpointError, match="has none of other.pt"):
        find_weights("ms:mine/long/other.pt")


@pytest.mark.parametrize(
    "name", ["ms:", "ms:clip", "ms:/clip", "ms:mine/", "ms:mine/../x", "ms:a/b/c/d", "ms:mine/clip\n", "ms:mine/a b"]
)
def test_names_that_are_none(name, hub):
    with pytest.raises(CheckpointError, match=r"a model of a hub must be ms:owner/name"):
        find_weights(name)
    assert not hub.requests


ENTRY = {"Path": "model.safetensors", "Size": 3, "Sha256": hashlib.sha256(b"abc").hexdigest(), "Type": "blob"}


@pytest.mark.parametrize(
    "said, message",
    [
        (b"<html>please log in</html>", "is not valid JSON"),
        ({"Code": 200, "Data": {"Files": {}}}, "Data.Files must be a list, got {}"),
        ({"Code": 404, "Data": None, "Message": "no\nsuch model"}, "got None (it says 'no\\nsuch model')"),
        ({"Data": {"Files": [7]}}, "a file of it must be a table, got 7"),
        ({"Data": {"Files": [{**ENTRY, "Size": -1}]}}, "Size must be an integer from 0"),
        ({"Data": {"Files": [{**ENTRY, "Sha256": "../../stolen"}]}}, "Sha256 must be 64 hexadecimal digits"),
        ({"Data": {"Files": [{**ENTRY, "Size": 1 << 40}]}}, "must be at most 214,748,364,800 bytes, got 1,099,511,627,776"),
        ({"Data": {"Files": [{**ENTRY, "Path": "../../model.safetensors"}]}}, "has none of open_clip_model.safetensors"),
        (b" " * ((16 << 20) + 1), "must be at most 16,777,216 bytes, the server sends more"),
    ],
)  # fmt: skip
def test_lists_that_lie_are_one_line(said, message, hub, tmp_path):
    hub.put("mine/clip", model__safetensors=b"abc")
    hub.listing = said
    with pytest.raises(CheckpointError) as e:
        find_weights("ms:mine/clip")
    assert message in str(e.value) and "\n" not in str(e.value) and str(e.value).startswith("ms:mine/clip")
    assert not [p for p in (tmp_path / "scope").rglob("*") if p.is_file()]


def test_an_absent_repository_and_a_malformed_address(hub, monkeypatch):
    with pytest.raises(CheckpointError, match="ms:mine/none: http://127.0.0.1:.*: the server answered 404"):
        find_weights("ms:mine/none")
    for address in ("nonsense", "file:///", "http://[::1"):
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", address)
        with pytest.raises(CheckpointError, match="MODELSCOPE_ENDPOINT must be an address that begins with http"):
            find_weights("ms:a/b")
    monkeypatch.delenv("MODELSCOPE_ENDPOINT")
    monkeypatch.setenv("MODELSCOPE_DOMAIN", hub.url)
    hub.put("mine/clip", model__safetensors=b"abc")
    assert find_weights("ms:mine/clip").read_bytes() == b"abc"


def test_a_hub_of_hugging_face_with_the_same_files(tmp_path):
    """In a process of its own, as huggingface_hub reads its settings when it is imported."""
    pytest.importorskip("huggingface_hub", reason="pip install 'jclip[hub]'")
    code = """
from jclip.weights.download import find_weights
from jclip.errors import CheckpointError
import sys
for name in sys.argv[1:]:
    try:
        print(find_weights(name))
    except CheckpointError as e:
        print(e)
"""

    def find(*names: str) -> list[str]:
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "JCLIP_CACHE": str(tmp_path / "jclip")}
        done = subprocess.run(
            [sys.executable, "-c", code, *names], env={**os.environ, **own}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    with LoopbackHub(tmp_path / "root") as hub:
        hub.put("mine/siglip", config__json=b"{}", tokenizer__json=b'{"a": 1}', model__safetensors=WEIGHTS)
        hub.put("mine/old", config__json=b"{}", spiece__model=b"pieces", vocab__txt=b"[PAD]", pytorch_model__bin=b"abc")
        hub.put("mine/lies", config__json=b"{}", model__safetensors=b"abc")
        hub.put("mine/long", longclip_L__pt=b"L", longclip_B__pt=b"B")
        hub.breaks, hub.lies = 100_000, set()
        broken, named, several = find("hf-hub:mine/siglip", "hf-hub:mine/long/longclip_L.pt", "hf-hub:mine/long")
        assert "broke off (300000 bytes are kept, run again to go on)" in broken
        assert Path(named).read_bytes() == b"L" and "holds 2 weight files" in several
        hub.breaks = None
        siglip, old = map(Path, find("hf-hub:mine/siglip", "hf-hub:mine/old"))
        assert (siglip / "model.safetensors").read_bytes() == WEIGHTS and (siglip / "tokenizer.json").is_file()
        assert [asked for _, where, asked, _ in hub.requests if asked and "/store/" in where] == [
            f"bytes={n}00000-" for n in (1, 2, 3)
        ]
        assert {p.name for p in old.iterdir()} == {"config.json", "spiece.model", "vocab.txt", "pytorch_model.bin"}
        assert not [*tmp_path.rglob("*.incomplete")] and not [*tmp_path.rglob("*.lock")]
        hub.lies = {"config.json"}
        assert "other bytes arrived than the hub's tag says" in find("hf-hub:mine/lies")[0]
        hub.lies = {"model.safetensors"}
        assert "other bytes arrived than the hub's SHA-256 says" in find("hf-hub:mine/lies")[0]
