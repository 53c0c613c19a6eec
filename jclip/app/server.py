"""The local server behind the page: where it listens, who may ask, and what browsers may load."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from jclip.app import page, words
from jclip.app.desk import MOST_UPLOAD, Desk
from jclip.errors import ConfigError
from jclip.postponed import gr

LOCAL = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    # the browser itself refuses what is not of this server
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; frame-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_ELSEWHERE = re.compile(r"/(file=[a-z+]+:/|proxy=|stream/|deep_link)", re.IGNORECASE)  # what the page does not need
Scope = Mapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises `ConfigError` for a port that is taken, with the next one that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(128)
    except OSError as e:
        found.close()
        if free := _free_after(host, port, family):
            raise ConfigError(f"port {port} of {host} can't be used ({e.strerror}): --port {free} is free") from None
        raise ConfigError(f"{host} can't be used: {e.strerror}") from None
    return found


def _free_after(host: str, port: int, family: int) -> int | None:
    for other in range(port + 1, min(port + 101, 65536)):
        with contextlib.closing(socket.socket(family)) as tried, contextlib.suppress(OSError):
            tried.bind((host, other))
            return other
    return None


@contextlib.contextmanager
def serve(desk: Desk, found: socket.socket, password: str = "") -> Iterator[str]:
    """Within the block the page is served on that socket; its address."""
    import uvicorn

    app = _app_of(desk, found, password)
    config = uvicorn.Config(
        guard(app, found.getsockname()), log_level="warning", access_log=False, lifespan="on", proxy_headers=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([found],), name="server", daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield address_of(found)
    finally:
        logging.getLogger("uvicorn.error").disabled = True  # open streams are cut, and nobody has to read that
        server.should_exit = server.force_exit = True
        thread.join(1)


def _app_of(desk: Desk, found: socket.socket, password: str) -> App:
    """The page as an app, behind a form that asks for the password where there is one."""
    import fastapi

    os.environ["GRADIO_TEMP_DIR"] = str(desk.uploads)  # what is uploaded goes with the page
    _fetch_nothing()
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    blocks = page.build(desk)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=found.getsockname()[0],
        server_port=found.getsockname()[1],
        footer_links=[],
        run_history=False,
        auth=_check_of(password) if password else None,
        auth_message=" · ".join(words.texts()["page.login"]) if password else None,
        allowed_paths=[str(desk.pictures)],
        show_error=True,
        max_file_size=MOST_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        i18n=words.translations(),
        theme=page.theme(),
        css=page.style(),
        head=page.script(),
    )
    blocks.has_launched = True  # else Gradio takes any path of this machine for an upload
    return app


def end_in_any_case(seconds: float, close: Callable[[], None] = lambda: None) -> None:
    """After that time the process closes, and ends as by Ctrl-C: threads of Gradio's whose browser has gone may wait for
    ever, and Python drops an interrupt that arrives while an object is finalised. After twice that time the kernel ends
    it, where libraries wait for each other at their own end. For the main thread."""

    def end() -> None:
        close()
        os._exit(130)

    last = threading.Timer(seconds, end)
    last.daemon = True
    last.start()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 2 * seconds)


def _check_of(password: str) -> Callable[[str, str], Awaitable[bool]]:
    """What Gradio's form asks: the password under any name; a wrong one takes a second."""

    async def right(_: str, given: str) -> bool:
        if hmac.compare_digest(given.encode(), password.encode()):
            return True
        await asyncio.sleep(1)
        return False

    return right


def _fetch_nothing() -> None:
    """Gradio would fetch an address that is given in place of an uploaded photo."""
    from gradio import processing_utils

    async def refuse(url: str, *_: Any, **__: Any) -> Any:
        raise gr.Error("a photo must be uploaded, not named by an address", print_exception=False)

    processing_utils.async_ssrf_protected_get = processing_utils.async_ssrf_protected_download = refuse


def address_of(found: socket.socket) -> str:
    """What to type into a browser on this machine."""
    host, port = found.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def guard(app: App, listens: tuple) -> App:
    """The same app with headers that keep a browser here. Requests to another host's name, and from another page, are
    refused: a page elsewhere whose name leads here (DNS rebinding) and forms of other pages get nothing."""

    async def guarded(scope: Scope, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            asyncio.get_running_loop().set_exception_handler(_report)
            await app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page has no websocket
            await send({"type": "websocket.close", "code": 1008})
            return
        if refused := _refusal(scope, listens):
            await _refuse(send, *refused)
            return

        held: list[dict[str, Any]] = []  # of an answer 500: what was raised is known after it

        async def send_more(message: dict[str, Any]) -> None:
            _add_headers(message)
            if held or message.get("status") == 500:
                held.append(message)
            else:
                await send(message)

        try:
            await app(scope, receive, send_more)
        except TypeError as e:
            if held and str(e).startswith("No value provided"):  # for an argument of an endpoint
                held.clear()
                await _refuse(send, 422, f"{e}\n")
                return
            raise
        finally:
            for message in held:
                await send(message)

    return guarded


def _refusal(scope: Scope, listens: tuple) -> tuple[int, str] | None:
    """Status and text for a request that gets nothing; None for one that is answered."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    host = headers.get("host", "")
    if listens[0] in LOCAL and _name(f"//{host}") not in LOCAL:
        return 421, f"this page is at {listens[0]}:{listens[1]}, not at {host[:100]}\n"
    if (origin := headers.get("origin")) and urlsplit(origin).netloc != host:
        return 403, "a page of another address asked: refused\n"
    return (404, "not found\n") if _ELSEWHERE.search(unquote(scope["path"])) else None


def _add_headers(message: dict[str, Any]) -> None:
    """Puts `HEADERS` in place of an answer's own ones of these names, where the message begins it."""
    if message["type"] == "http.response.start":
        own = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
        names = {name for name, _ in own}
        message["headers"] = [h for h in message.get("headers", []) if h[0].lower() not in names] + own


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """As Python does, but for a page that was left in the middle of an answer: Gradio's stream puts a last word into it."""
    if "async generator ignored GeneratorExit" not in str(context.get("exception")):
        loop.default_exception_handler(context)


def _name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


async def _refuse(send: Callable, status: int, text: str) -> None:
    body = text.encode("ascii", "replace")
    head = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def opens_browser() -> bool:
    """Whether a browser on this machine's own screen may be opened: none over ssh, in WSL2, or without a screen."""
    if os.environ.get("SSH_CONNECTION") or os.environ.get("SSH_TTY") or os.environ.get("WSL_DISTRO_NAME"):
        return False
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
