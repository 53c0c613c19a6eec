"""Servers and hubs that lie, loop, hang or never end: one line, nothing left behind."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from jclip.errors import CheckpointError, printable
from jclip.weights import download, http_transfer
from jclip.weights.http_transfer import Download, TransferError, transfer

PATIENCE = 300  # seconds that a busy machine may take; never waited for
OK = b"HTTP/1.1 200 OK\r\n"
BODY = b"x" * 1000
CHUNKED = b"Transfer-Encoding: chunked\r\n"
ANSWERS = {  # what the server sends, and what the message says of it
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH-2.0"),
    "nothing": (b"", "can't download"),
    "half a status": (b"HTTP/1.1 2", "can't download"),
    "a thousand headers": (OK + b"a: b\r\n" * 1000 + b"\r\n", "more than 100 headers"),
    "an endless header": (OK + b"a: " + b"b" * 200_000 + b"\r\n\r\n", "header line"),
    "length of text": (OK + b"Content-Length: abc\r\n\r\n" + BODY, "Content-Length must be a number of bytes, got 'abc'"),
    "negative length": (OK + b"Content-Length: -5\r\n\r\n" + BODY, "Content-Length must be a number of bytes, got '-5'"),
    "length of a float": (OK + b"Content-Length: 1e9\r\n\r\n" + BODY, "must be a number of bytes, got '1e9'"),
    "length of many digits": (OK + b"Content-Length: " + b"9" * 300 + b"\r\n\r\n" + BODY, "must be a number of bytes"),
    "huge length": (OK + b"Content-Length: 99999999999999\r\n\r\n" + BODY, "must be at most 2,000,000 bytes"),
    "no length, other bytes": (OK + b"\r\n" + BODY, "must announce the file's size (Content-Length), got none"),
    "less than announced": (OK + b"Content-Length: 10\r\n\r\n" + BODY, "sent other bytes than OpenAI's RN50.pt"),
    "escape codes": (b"HTTP/1.1 404 \x1b]0;owned\x07" + b"a" * 5000 + b"\r\n\r\n", "the server answered 404"),
    "a loop": (b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n", "the server answered 302"),
    "to a file": (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "302"),
    "to ftp": (b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/x\r\n\r\n", "which is not a web address"),
    "to nobody": (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/x\r\n\r\n", "refused"),
    "to no address": (b"HTTP/1.1 302 Found\r\nLocation: http://[::1/x\r\n\r\n", "can't download"),
    "to a broken port": (b"HTTP/1.1 302 Found\r\nLocation: http://a:x/\r\n\r\n", "which is not a web address"),
    "endless": (OK + b"\r\n", "must announce the file's size (Content-Length), got none"),
    "endless chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", "must announce the file's size"),
    "chunks beyond the length": (OK + CHUNKED + b"Content-Length: 100000\r\n\r\n", "100,000 bytes announced, the server"),
    "broken chunks": (OK + CHUNKED + b"Content-Length: 1000\r\n\r\nzz\r\n", "can't download"),
    "compressed": (OK + b"Content-Encoding: gzip\r\nContent-Length: 1000\r\n\r\n" + BODY, "got Content-Encoding 'gzip'"),
    "a page": (OK + b"Content-Length: 6\r\n\r\n<html>", "sent other bytes than OpenAI's RN50.pt"),
}  # fmt: skip
CHUNK = b"10000\r\n" + b"y" * (1 << 16) + b"\r\n"
ENDLESS = {"endless": b"y" * (1 << 16), "endless chunks": CHUNK, "chunks beyond the length": CHUNK}


@pytest.fixture
def answering():
    """Starts a server that reads a request and sends the given bytes, `again` until the other end is gone."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(answer: bytes, again: bytes) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(answer)
                    while again:
                        connection.sendall(again)

    def start(answer: bytes, again: bytes = b"") -> str:
        threading.Thread(target=serve, args=(answer, again), daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    listener.close()


@contextlib.contextmanager
def served(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that talks so to every connection."""

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    talk(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("name", ANSWERS)
def test_a_server_that_lies_is_one_line(name, answering, monkeypatch, tmp_path):
    answer, message = ANSWERS[name]
    monkeypatch.setenv("JCLIP_MIRROR", answering(answer, ENDLESS.get(name, b"")))
    monkeypatch.setattr(download, "_room", lambda _: 2_000_000)
    with pytest.raises(CheckpointError) as e:
        download.fetch_openai("RN50", tmp_path)
    assert message in str(e.value) and printable(str(e.value)) == str(e.value)
    assert not list(tmp_path.iterdir())


def test_a_server_that_never_answers_is_left(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("JCLIP_MIRROR", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(http_transfer, "ANSWER", 0.2)
        with pytest.raises(CheckpointError, match=r"no answer within 0.2 s \(offline, put RN50.pt"):
            download.fetch_openai("RN50", tmp_path)
    assert not list(tmp_path.iterdir())


def wait_for_bodies(monkeypatch, seconds: float, limit: float) -> None:
    """Waits no longer than `seconds` for the next byte of a body, and says `limit`; for the head as long as it takes."""
    ask = http_transfer._ask

    def asked(*given):
        answer = ask(*given)
        answer.fp.raw._sock.settimeout(seconds)
        monkeypatch.setattr(http_transfer, "TIMEOUT", limit)
        return answer

    monkeypatch.setattr(http_transfer, "ANSWER", PATIENCE)
    monkeypatch.setattr(http_transfer, "TIMEOUT", PATIENCE)
    monkeypatch.setattr(http_transfer, "SLOWEST", 0)
    monkeypatch.setattr(http_transfer, "_ask", asked)


def test_a_download_that_stalls_is_given_up_at_once(monkeypatch, tmp_path):
    asked: list[bytes] = []

    def stall(connection: socket.socket) -> None:
        asked.append(connection.recv(65536))
        connection.sendall(OK + b"Content-Length: 5000\r\n\r\n" + BODY)
        connection.recv(1)  # until the other end is gone

    wait_for_bodies(monkeypatch, 0.3, 0.3)
    with served(stall) as address:
        monkeypatch.setenv("JCLIP_MIRROR", address)
        with pytest.raises(
            CheckpointError, match=r"the server stalled: no byte within 0.3 s \(1000 bytes are kept, run"
        ):
            download.fetch_openai("RN50", tmp_path)
    assert len(asked) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["RN50.part"]  # the next call asks for the rest


def test_a_trickle_is_a_stall(monkeypatch, tmp_path):
    def trickle(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(OK + b"Content-Length: 5000\r\n\r\n")
        for _ in range(5000):
            connection.sendall(b"x")
            time.sleep(0.01)

    wait_for_bodies(monkeypatch, PATIENCE, 10)
    clock = itertools.count()  # a second for every look at it
    monkeypatch.setattr(http_transfer, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(http_transfer, "SLOWEST", 50_001)
    with served(trickle) as address, pytest.raises(TransferError, match=r"stalled: [\d,]{1,5} bytes within 10 s"):
        transfer(Download(address, 10_000), tmp_path / "part")


def test_a_token_stays_with_the_server_that_it_is_for(tmp_path):
    asked: list[bytes] = []

    def give(connection: socket.socket) -> None:
        asked.append(connection.recv(65536))
        connection.sendall(OK + b"Content-Length: 1000\r\n\r\n" + BODY)

    with served(give) as there:

        def send_on(connection: socket.socket) -> None:
            asked.append(connection.recv(65536))
            to = "/b" if b" /a " in asked[-1] else f"{there}/c"
            connection.sendall(f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode())

        with served(send_on) as here:
            part = tmp_path / "part"
            transfer(Download(f"{here}/a", 1000, 1000, {"authorization": "Bearer secret"}), part)
    assert [b"Bearer secret" in request for request in asked] == [True, True, False]
    assert part.read_bytes() == BODY


MALFORMED = [
    "x",
    "http://",
    "http://[::1",
    "file:///etc",
    "ftp://a/b",
    "http://a:port/",
    "//a",
    "http://a b/",
    "javascript:x",
]


@pytest.mark.parametrize("address", [*MALFORMED, f"http://{'a' * 300}/", "http://a\x1b]0;/"])
def test_a_malformed_mirror_is_named(address, monkeypatch, tmp_path):
    monkeypatch.setenv("JCLIP_MIRROR", address)
    with pytest.raises(CheckpointError, match="JCLIP_MIRROR must be an address that begins with http"):
        download.fetch_openai("RN50", tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_file_of_openai_has_room():
    published = {"RN50": 256e6, "RN50x64": 1261e6, "ViT-B/32": 354e6, "ViT-L/14@336px": 934e6}  # bytes, about
    for name, size in published.items():
        assert size < download._room(name) < 4 * size


HUBS = """
import http.server, json, os, sys, threading
CASES = json.loads(sys.argv[1])

class Hub(http.server.BaseHTTPRequestHandler):
    asked = []
    def do_HEAD(self):
        owner, case, _, _, name = self.path.strip("/").split("/", 4)
        self.asked.append((case, name))
        said = CASES[case]
        if said == "silent":
            threading.Event().wait()
        if said.startswith("redirect"):
            self.send_response(302)
            self.send_header("Location", said.split(" ")[1] if " " in said else self.path)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        body = said.encode()
        found = name == "model.safetensors.index.json"
        self.send_response(200 if found else 404)
        tag = '"' + case.ljust(40, "e") + '"'
        headers = {"X-Repo-Commit": "c" * 40, "ETag": tag} if found else {"X-Error-Code": "EntryNotFound"}
        size = 10**15 if said == "huge" else 1 if said == "lying" else len(body) if found else 0
        for key, value in {**headers, "Content-Length": size}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET" and found:
            self.wfile.write(body)
    do_GET = do_HEAD
    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
from jclip.weights import download, http_transfer
from jclip.errors import CheckpointError
for case in CASES:
    http_transfer.ANSWER = 2 if case == "silent" else 600
    try:
        print(case, "|", download.find_weights(f"hf-hub:mine/{case}"))
    except CheckpointError as e:
        print(case, "|", e)
print("asked", "|", sum(case == "silent" for case, _ in Hub.asked))
os._exit(0) if sys.stdout.flush() is None else None
"""


def test_hostile_hubs_are_one_line_each(tmp_path):
    pytest.importorskip("huggingface_hub", reason="pip install 'jclip[hub]'")
    index = json.dumps({"weight_map": {"a": "../../secret"}})
    cases = {
        "outside": (index, "the shard of 'a' must be the plain name of a file, got '../../secret'"),
        "absolute": (index.replace("../../secret", "/etc/passwd"), "must be the plain name of a file"),
        "backslash": (index.replace("../../secret", "a\\\\b"), "must be the plain name of a file"),
        "html": ("<html>please log in</html>", "is not valid JSON"),
        "list": ('{"weight_map": [1, 2]}', "weight_map must be a table, got [1, 2]"),
        "unhashable": ('{"weight_map": {"a": ["b"]}}', "must be the plain name of a file, got ['b']"),
        "huge": ("huge", "must be at most 16,777,216 bytes, got 1,000,000,000,000,000"),
        "lying": ("lying", "is not valid JSON"),
        "loop": ("redirect", "can't be reached, and the cache has none of"),
        "file": ("redirect file:///etc/passwd", "hf-hub:mine/file"),
        "silent": ("silent", "can't be reached, and the cache has none of open_clip_model.safetensors"),
    }
    settings = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", HUBS, json.dumps({name: said for name, (said, _) in cases.items()})]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ends = dict(line.split(" | ", 1) for line in done.stdout.splitlines())
    assert ends.pop("asked") == "1"
    assert ends.keys() == cases.keys()
    for name, (_, message) in cases.items():
        assert message in ends[name], (name, ends[name])


@pytest.mark.parametrize("address", ["nonsense", "file:///", "http://[::1", "http://a:x"])
def test_a_malformed_hub_is_named(address, monkeypatch):
    pytest.importorskip("huggingface_hub", reason="pip install 'jclip[hub]'")
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(CheckpointError, match="HF_ENDPOINT must be an address that begins with http"):
        download.find_weights("hf-hub:a/b")
