"""A chat server on the loopback device, whose every answer a test decides."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, dict[str, str], bytes | Iterable[bytes]]  # status, headers, body or its pieces


class Loopback:
    """Answers with what `answer(prompt, number)` returns, number counting from 0; in a `with` block."""

    def __init__(self, answer: Callable[[str, int], Answer]):
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        lock, loopback = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(loopback.requests)
                    loopback.requests.append({**body, "path": self.path})
                    loopback.headers.append(dict(self.headers))
                status, headers, data = answer(body["messages"][0]["content"], number)
                try:
                    self.send_response(status)
                    for name, value in (
                        ({"Content-Length": str(len(data))} if isinstance(data, bytes) else {}) | headers
                    ).items():
                        self.send_header(name, value)
                    self.end_headers()
                    for piece in [data] if isinstance(data, bytes) else data:
                        self.wfile.write(piece)
                except OSError:
                    pass  # who asked is gone
                self.close_connection = True

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                """Nothing on stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Loopback:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def prompts(self) -> list[str]:
        """What was asked, in order."""
        return [request["messages"][0]["content"] for request in self.requests]


def said(text: object, **usage: int) -> Answer:
    """A good answer with that text."""
    value = {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def model_of_captions(prompt: str, number: int = 0) -> Answer:
    """What a chat model would say to each stage of making captions, the same each time."""
    usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": 20}
    if prompt.startswith("Here are names of things: "):
        names = prompt.partition(": ")[2].partition(".\n")[0].split(", ")
        return said(f"Sure, here are some groups:\n1. {names[0]}, {names[1]}\n2. **{', '.join(names[1:4])}**", **usage)
    if prompt.startswith("Write "):
        names = re.search(r"with (.*) in it\.", prompt)[1]
        frames = (
            "There is {} here.",
            "A photo shows {} in the sun.",
            "Someone left {} on the floor.",
            "We found {} at home.",
        )
        lines = [f"{k}. {frame.format(f'the {names}')}" for k, frame in enumerate(frames, start=1)]
        return said("\n".join(["Here are the sentences:", *lines, "5. 桌子"]), **usage)
    return said("False" if "floor" in prompt.rpartition("Caption:")[2] else "True.", **usage)
