"""A network that is slow at the worst moment: the end of a stream reaches the browser only when a test lets it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

from jclip.app import server

HOLD = Path(
    "hold the ends of streams"
)  # where the page was started: of those that begin while it is there, till it goes


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Within the block, of a page that was started in that folder."""
    (folder / HOLD).touch()
    try:
        yield
    finally:
        (folder / HOLD).unlink()


def install() -> None:
    """From now on a server that is made is so."""
    guard = server.guard

    def guarded(app, listens):
        async def slow(scope, receive, send):
            held = HOLD.exists() and scope.get("path", "").endswith("/queue/data")

            async def send_on(message):
                while held and b"close_stream" in message.get("body", b"") and HOLD.exists():
                    await asyncio.sleep(0.01)
                await send(message)

            await app(scope, receive, send_on)

        return guard(slow, listens)

    server.guard = guarded
