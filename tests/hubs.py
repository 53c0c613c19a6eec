"""Hubs on the loopback device: folders below `root` as Hugging Face's and ModelScope's hubs serve them, with ranges."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

COMMIT = "c" * 40


class LoopbackHub:
    """Serves both interfaces at one address, in a `with` block; files of weights are redirected to `/store/`, as large
    files are.

    breaks: bytes after which a connection to the store breaks off. lies: names whose listed SHA-256 is wrong. requests:
    (method, path, Range, whether a token came along) of what was asked.
    """

    def __init__(self, root: Path):
        self.root, self.breaks, self.lies, self.requests, self.listing = root, None, set(), [], None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub._answer(self)

            do_GET = do_HEAD

            def log_message(self, *_: object) -> None:
                """Nothing on stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, repository: str, **files: bytes) -> None:
        """Add files to a repository; `__` in a name stands for a point."""
        for name, data in files.items():
            path = self.root / repository / name.replace("__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def fetched(self) -> list[str]:
        """Names of files whose contents were asked for, in order."""
        return [path.rsplit("/", 1)[1] for method, path, *_ in self.requests if method == "GET" and "/store/" in path]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts, headers = urlsplit(handler.path), handler.headers
        token = "secret" in str(headers)
        self.requests.append((handler.command, handler.path, headers.get("Range"), token))
        words, query = parts.path.strip("/").split("/"), parse_qs(parts.query)
        if words[0] == "store":
            self._send(handler, self.root.joinpath(*words[1:]))
        elif words[:3] == ["api", "v1", "models"]:
            folder = self.root / words[3] / words[4]
            if not folder.is_dir():
                self._json(handler, {"Code": 10010205001, "Message": "model not exists", "Success": False}, 404)
            elif words[-1] == "files":
                self._json(
                    handler, self.listing or {"Code": 200, "Success": True, "Data": {"Files": self._list(folder)}}
                )
            else:
                self._redirect(handler, folder / query["FilePath"][0], {})
        elif words[:2] == ["api", "models"]:
            folder = self.root / words[2] / words[3]
            self._json(handler, {"siblings": [{"rfilename": path.name} for path in sorted(folder.iterdir())]})
        else:
            self._hugging_face(handler, self.root.joinpath(*words[:2]), words[-1])

    def _list(self, folder: Path) -> list[dict]:
        made = [{"Name": "sub", "Path": "sub", "Type": "tree", "Size": 0, "Sha256": ""}]
        for path in sorted(folder.iterdir()):
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.name not in self.lies else "0" * 64
            made.append(
                {"Name": path.name, "Path": path.name, "Type": "blob", "Size": path.stat().st_size, "Sha256": digest}
            )
        return made

    def _hugging_face(self, handler: BaseHTTPRequestHandler, folder: Path, name: str) -> None:
        path = folder / name
        if not path.is_file():
            handler.send_response(404)
            handler.send_header("X-Error-Code", "EntryNotFound" if folder.is_dir() else "RepoNotFound")
            handler.send_header("Content-Length", "0")
            return handler.end_headers()
        data, size = path.read_bytes(), path.stat().st_size
        if name.endswith(".json"):  # small files are sent by the hub itself, tagged with git's hash
            tag = hashlib.sha1(f"blob {size}\0".encode() + data).hexdigest()
            return self._send(
                handler, path, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag if name not in self.lies else "0" * 40}"'}
            )
        digest = hashlib.sha256(data).hexdigest() if name not in self.lies else "0" * 64
        said = {"X-Repo-Commit": COMMIT, "X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(size)}
        return self._redirect(handler, path, said)

    def _redirect(self, handler: BaseHTTPRequestHandler, path: Path, headers: dict[str, str]) -> None:
        handler.send_response(302)
        place = self.url.replace("127.0.0.1", "localhost")  # another origin: a token must not follow
        location = f"{place}/store/{path.relative_to(self.root)}"
        for key, value in {**headers, "Location": location, "Content-Length": "0"}.items():
            handler.send_header(key, value)
        handler.end_headers()

    def _send(self, handler: BaseHTTPRequestHandler, path: Path, headers: dict[str, str] | None = None) -> None:
        data = path.read_bytes()
        start = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(data):
            return handler.send_error(416)
        handler.send_response(206 if start else 200)
        for key, value in {**(headers or {}), "Content-Length": str(len(data) - start)}.items():
            handler.send_header(key, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(data[start:][: self.breaks])
        handler.close_connection = True

    @staticmethod
    def _json(handler: BaseHTTPRequestHandler, said: object, status: int = 200) -> None:
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        handler.wfile.write(body)  # no length: the connection's end is the answer's
