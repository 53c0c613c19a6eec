"""Hubs whose downloads never end, stall, lie or go nowhere: one line; what can't be the file is not kept."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub", reason="pip install 'jclip[hub]'")

# A hub with one file per repository. A case says what HEAD and GET answer.
HUB = """
import http.server, json, os, sys, threading
CASES, SHORT = json.loads(sys.argv[1]), float(sys.argv[2])
asked = {case: 0 for case in CASES}

class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        case, said = self.case()
        if said is None:
            return
        self.send_response(302 if "to" in said else 200)
        for key, value in said["head"].items():
            self.send_header(key, value)
        if "to" in said:
            self.send_header("Location", said["to"])
        self.end_headers()

    def do_GET(self):
        case, said = self.case()
        if said is None:
            return
        asked[case] += 1
        kind, body = said["get"], said.get("body", "x" * 1000).encode()
        if kind == "silent":
            threading.Event().wait()
        if kind == "loop":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        self.send_header(*(("Transfer-Encoding", "chunked") if kind == "endless" else
                           ("Connection", "close") if kind == "no length" else
                           ("Content-Length", str(said.get("length", len(body))))))
        self.end_headers()
        if kind == "endless":
            while True:
                self.wfile.write(b"10000\\r\\n" + b"y" * (1 << 16) + b"\\r\\n")
        self.wfile.write(body[: said.get("stops", len(body))])
        if kind == "stalls":
            self.wfile.flush()
            threading.Event().wait()
        self.close_connection = True

    def case(self):
        _, case, _, _, name = self.path.strip("/").split("/", 4)
        if name == "model.safetensors":
            return case, CASES[case]
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return case, None

    def log_message(self, *_):
        pass

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    def handle_error(self, *_):
        pass

server = Server(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
from jclip.weights import download, http_transfer
from jclip.errors import CheckpointError
ask, ends = http_transfer._ask, {}
def asked_in_haste(*given):
    kind = CASES[case]["get"]
    if kind == "silent":
        http_transfer.TIMEOUT = SHORT
    answer = ask(*given)
    if kind == "stalls":
        http_transfer.TIMEOUT = SHORT
        answer.fp.raw._sock.settimeout(SHORT)
    return answer
http_transfer._ask, http_transfer.SLOWEST = asked_in_haste, 0
for case in CASES:
    http_transfer.ANSWER = http_transfer.TIMEOUT = 600  # whoever does answer may be slow
    try:
        ends[case] = str(download.find_weights(f"hf-hub:mine/{case}"))
    except CheckpointError as e:
        ends[case] = str(e)
print(json.dumps([ends, asked]))
sys.stdout.flush()
os._exit(0)
"""
TAG = hashlib.sha256(b"x" * 1000).hexdigest()


def head(size: int | None = 1000, etag: str = '"tag"', commit: str = "c" * 40) -> dict[str, str]:
    """Headers by which a hub describes a file."""
    length = {"Content-Length": str(size)} if size is not None else {"Connection": "close"}
    return {"ETag": etag, "X-Repo-Commit": commit, **length}


def linked(tag: str = TAG) -> dict[str, str]:
    """The same of a file that the hub redirects to a store."""
    return {"X-Linked-ETag": f'"{tag}"', "X-Linked-Size": "1000", "X-Repo-Commit": "c" * 40, "Content-Length": "0"}


CASES = {
    "endless": ({"head": head(), "get": "endless"}, "must have the 1,000 bytes announced, the server sends more"),
    "endless-of-no-size": ({"head": head(None), "get": "endless"}, "must announce the file's size (Content-Length), got none"),
    "no-length": ({"head": head(None), "get": "no length"}, "must announce the file's size"),
    "more": ({"head": head(), "get": "plain", "length": 2000}, "must have 1,000 bytes, the server announces 2,000"),
    "less": ({"head": head(), "get": "plain", "length": 999}, "must have 1,000 bytes, the server announces 999"),
    "breaks-off": ({"head": head(), "get": "plain", "stops": 400}, "the connection broke off"),
    "stalls": ({"head": head(), "get": "stalls", "stops": 400}, "the server stalled: no byte within 0.4 s"),
    "silent": ({"head": head(), "get": "silent"}, "timed out"),
    "loop": ({"head": head(), "get": "loop"}, "the server answered 302"),
    "too-large": ({"head": head(300 << 30), "get": "plain"}, "must be at most 214,748,364,800 bytes, got 322,122,547,200"),
    "climbing-tag": ({"head": head(etag='"../../../stolen"'), "get": "plain"}, "must come with a valid ETag"),
    "climbing-commit": ({"head": head(commit="../../../../stolen"), "get": "plain"}, "must come with a valid commit"),
    "no-commit": ({"head": {"ETag": '"tag"', "Content-Length": "1000"}, "get": "plain"}, "must come with a valid commit"),
    "other-bytes": ({"head": linked("0" * 64), "get": "plain", "to": "http://127.0.0.1:9/store"}, "other bytes arrived than"),
    "gone": ({"head": head(), "get": "plain", "stops": 0}, "the connection broke off"),
}  # fmt: skip
SHORT = 0.4  # seconds that nobody answers


def run(cases: dict, home: Path, **settings: str) -> tuple[dict[str, str], dict[str, int]]:
    """How each case ended, and how often its file was asked for; in a process of its own, as huggingface_hub reads its
    settings when it is imported."""
    command = [sys.executable, "-c", HUB, json.dumps(cases), str(SHORT)]
    own = {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **settings}
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def files_below(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_symlink() or p.is_file()]


def test_downloads_of_hostile_hubs_are_one_line_and_leave_no_file(tmp_path):
    home = tmp_path / "a" / "b" / "c" / "home"
    ends, asked = run({case: said for case, (said, _) in CASES.items()}, home)
    assert ends.keys() == CASES.keys()
    for case, (_, expected) in CASES.items():
        assert expected in ends[case] and "\n" not in ends[case], (case, ends[case])
        assert ends[case].startswith(f"hf-hub:mine/{case}: "), ends[case]
    kept = {p.parts[-3]: (p.name, p.stat().st_size) for p in files_below(tmp_path)}
    part = ("tag.incomplete", 400)  # which the next call continues
    assert kept == {"models--mine--breaks-off": part, "models--mine--stalls": part}
    once = {"endless", "endless-of-no-size", "no-length", "more", "less", "stalls", "silent", "other-bytes"}
    assert {case: asked[case] for case in once} == dict.fromkeys(once, 1)  # no retry multiplies a limit
    assert asked["breaks-off"] == 2 and asked["gone"] == 1
    assert not any(asked[case] for case in ("too-large", "climbing-tag", "climbing-commit", "no-commit"))


def test_what_a_hub_sends_whole_stands_where_huggingface_hub_looks(tmp_path):
    good = {
        "plain": {"head": head(), "get": "plain"},
        "no-length-but-announced": {"head": head(), "get": "no length"},
        "linked": {"head": linked(), "get": "plain", "to": "http://127.0.0.1:9/store"},
    }
    ends, _ = run(good, tmp_path)
    for path in ends.values():
        assert Path(path).read_bytes() == b"x" * 1000
    code = "import huggingface_hub as h; print(h.hf_hub_download('mine/linked', 'model.safetensors'))"
    own = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run([sys.executable, "-c", code], env={**os.environ, **own}, capture_output=True, text=True)
    assert found.stdout.strip() == ends["linked"], found.stderr
    assert Path(ends["linked"]).resolve().name == TAG
    again, asked = run(good, tmp_path)
    assert again == ends and not any(asked.values())
    Path(ends["linked"]).resolve().write_bytes(b"x")  # cut by a full disk of old
    assert run(good, tmp_path)[1] == {**dict.fromkeys(good, 0), "linked": 1}
    assert Path(ends["linked"]).read_bytes() == b"x" * 1000


def test_a_hub_that_accepts_no_connection_is_one_line(tmp_path):
    code = """
from jclip.weights import download, http_transfer
http_transfer.ANSWER = 0.5
try:
    print(download.find_weights("hf-hub:mine/clip"))
except download.CheckpointError as e:
    print(e)
"""
    with socket.create_server(("127.0.0.1", 0)) as hole:  # nobody accepts
        own = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{hole.getsockname()[1]}"}
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **own}, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and done.stderr == ""
    assert "can't be reached, and the cache has none of" in done.stdout and "no answer within 0.5 s" in done.stdout
    assert not files_below(tmp_path)
