"""Downloads against a server on loopback: whole, broken off and resumed, wrong, and absent."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jclip.errors import CheckpointError
from jclip.weights import download
from jclip.weights.variants import VARIANTS

CONTENT = bytes(range(256)) * 4000
EXPECTED = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; `break_after` bytes it hangs up, `content` may lie, `ranges` may be ignored."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.break_after, self.ranges, self.requests, self.status = CONTENT, None, True, [], 200


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        s = self.server
        asked = self.headers.get("Range")
        s.requests.append((self.path, asked))
        if s.status != 200:
            return self.send_error(s.status)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and s.ranges else 0
        if start >= len(s.content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(s.content) - start))
        self.end_headers()
        stop = len(s.content) if s.break_after is None else min(start + s.break_after, len(s.content))
        self.wfile.write(s.content[start:stop])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    s = Server()
    threading.Thread(target=s.serve_forever, daemon=True).start()
    monkeypatch.setenv("JCLIP_MIRROR", f"http://127.0.0.1:{s.server_port}/clip/")
    monkeypatch.setitem(download.SHA256, "RN50", EXPECTED)
    yield s
    s.shutdown()
    s.server_close()


def test_whole_file_arrives_and_stays(server, tmp_path):
    path = download.fetch_openai("RN50", tmp_path)
    assert path == tmp_path / "RN50.pt" and path.read_bytes() == CONTENT
    assert server.requests == [(f"/clip/{EXPECTED}/RN50.pt", None)]
    assert download.fetch_openai("RN50", tmp_path) == path and len(server.requests) == 1
    assert not (tmp_path / "RN50.part").exists()


def test_a_break_is_resumed_where_it_was(server, tmp_path):
    server.break_after = 400_000
    path = download.fetch_openai("RN50", tmp_path)
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=400000-", "bytes=800000-"]


def test_what_a_dead_server_left_is_kept_for_the_next_run(server, tmp_path):
    server.break_after = 100_000
    with pytest.raises(CheckpointError, match=r"broke off \(300000 bytes are kept, run again to go on") as error:
        download.fetch_openai("RN50", tmp_path)
    assert str(tmp_path / "RN50.pt") in str(error.value) and EXPECTED in str(error.value)
    assert not (tmp_path / "RN50.pt").exists()
    server.break_after = None
    assert download.fetch_openai("RN50", tmp_path).read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=300000-"


def test_a_server_without_ranges_starts_over(server, tmp_path):
    (tmp_path / "RN50.part").write_bytes(CONTENT[:1000])
    server.ranges = False
    assert download.fetch_openai("RN50", tmp_path).read_bytes() == CONTENT


def test_wrong_bytes_are_never_moved_into_place(server, tmp_path):
    server.content = b"<html>please log in</html>" * 1000
    with pytest.raises(CheckpointError, match="sent other bytes than OpenAI's RN50.pt"):
        download.fetch_openai("RN50", tmp_path)
    assert not (tmp_path / "RN50.pt").exists() and not (tmp_path / "RN50.part").exists()


def test_a_part_of_something_else_is_thrown_away(server, tmp_path):
    (tmp_path / "RN50.part").write_bytes(b"x" * (len(CONTENT) + 5))
    with pytest.raises(CheckpointError, match="sent other bytes"):
        download.fetch_openai("RN50", tmp_path)
    assert download.fetch_openai("RN50", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [404, 503])
def test_an_answer_that_is_an_error_is_reported(server, tmp_path, status):
    server.status = status
    with pytest.raises(CheckpointError, match=f"the server answered {status}"):
        download.fetch_openai("RN50", tmp_path)


def test_offline_it_says_which_file_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setenv("JCLIP_MIRROR", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(CheckpointError, match="offline, put ViT-B-32.pt") as error:
        download.fetch_openai("ViT-B/32", tmp_path)
    assert str(tmp_path / "ViT-B-32.pt") in str(error.value)
    assert "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af" in str(error.value)


def test_a_wrong_file_in_the_cache_is_not_used(monkeypatch, tmp_path):
    (tmp_path / "RN50.pt").write_bytes(b"not it")
    with pytest.raises(CheckpointError, match="is not OpenAI's RN50.pt"):
        download.fetch_openai("RN50", tmp_path)


def test_every_model_has_its_hash():
    assert set(download.SHA256) == set(VARIANTS)
    assert (
        all(len(h) == 64 and int(h, 16) for h in download.SHA256.values()) and len(set(download.SHA256.values())) == 9
    )


def test_neither_file_nor_name():
    with pytest.raises(
        CheckpointError, match=r"ViT-B33 is neither a file nor a model's name, did you mean 'ViT-B/32'\?"
    ):
        download.find_weights("ViT-B33")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a hub as a download asks for: one repository with one file."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        if self.path != "/mine/clip/resolve/main/open_clip_pytorch_model.bin":
            self.send_response(404)
            known = self.path.startswith("/mine/clip/")
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for name, value in (("X-Repo-Commit", "c" * 40), ("ETag", f'"{EXPECTED}"'), ("Content-Length", len(CONTENT))):
            self.send_header(name, str(value))
        self.end_headers()
        if body:
            self.wfile.write(CONTENT)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """Runs code in a process of its own, as huggingface_hub reads its settings when it is imported."""
    pytest.importorskip("huggingface_hub", reason="pip install 'jclip[hub]'")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def find(name: str, **settings: str) -> str:
        code = f"""
from jclip.weights.download import CheckpointError, find_weights
try:
    print(find_weights({name!r}))
except CheckpointError as e:
    print(e)
"""
        own = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), **settings}
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **own}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    yield find
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_where_hf_endpoint_says(hub):
    path = hub("hf-hub:mine/clip")
    assert Path(path).read_bytes() == CONTENT and path.endswith("open_clip_pytorch_model.bin")
    assert hub("hf-hub:mine/clip", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9") == path


def test_what_the_hub_lacks_is_reported(hub):
    assert "hf-hub:mine/other: http://127.0.0.1" in hub("hf-hub:mine/other")
    got = hub("hf-hub:mine/clip", HF_HUB_OFFLINE="1")
    assert "can't be reached, and the cache has none of open_clip_model.safetensors, " in got
    assert "must be hf-hub:owner/name, or hf-hub:owner/name/file" in hub("hf-hub:not a name")


def test_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"hf-hub:a/b needs huggingface_hub: pip install 'jclip\[hub\]'"):
        download.find_weights("hf-hub:a/b")
