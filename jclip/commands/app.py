"""Opens a page in the browser over photos, a model and finished runs: search, classify and tag, locate, compare runs."""

from __future__ import annotations

import argparse
import os
import signal
import webbrowser
from typing import Any

from jclip.app import desk as desks
from jclip.app import server, words
from jclip.commands.arguments import Parser, add_shared, nonempty, whole
from jclip.data import gallery_inputs, gallery_store
from jclip.errors import ConfigError, say
from jclip.machine import gpu
from jclip.postponed import gr

LONGEST_END = 5.0  # seconds after Ctrl-C
BATCH = "8"  # photos at once on a CPU: in between the page answers, and no thread does while Jittor computes


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = Parser("jclip app", description=__doc__)
    p.add_argument(
        "place", nargs="?", type=nonempty, metavar="PHOTOS|GALLERY",
        help="a folder of photos, which are encoded while the page is open, or a gallery of `jclip embed`",
    )  # fmt: skip
    add_shared(p, "--run", ", to classify with and to look at; several may be given", action="append", default=[])
    add_shared(p, "--model", "; a gallery has its own (default: JCLIP_MODEL, else ViT-B/32)")
    add_shared(p, "--family")
    p.add_argument(
        "--port", type=whole(0, 65535), default=7860, metavar="N",
        help="where to listen; 0: any that is free (default: 7860)",
    )  # fmt: skip
    p.add_argument(
        "--host", type=nonempty, default="127.0.0.1", metavar="ADDRESS",
        help="address to listen at; another than this machine's own needs --password (default: 127.0.0.1)",
    )  # fmt: skip
    p.add_argument(
        "--password",
        metavar="TEXT",
        help="what browsers are asked for (default: JCLIP_PASSWORD, else nothing is asked)",
    )
    p.add_argument("--language", choices=words.LANGUAGES, help="of the page (default: the browser's)")
    p.add_argument("--share", action="store_true", help=argparse.SUPPRESS)
    return p


def main(argv: list[str]) -> int:
    """Serves the page until Ctrl-C. Returns the exit code."""
    args = parser().parse_args(argv)
    if args.share:
        raise ConfigError("--share would send the photos through a server of others: use an ssh tunnel (docs/app.md)")
    password = args.password if args.password is not None else os.environ.get("JCLIP_PASSWORD", "")
    if args.password == "":
        raise ConfigError("--password must not be empty: leave it out for none")
    if args.host not in server.LOCAL and not password:
        raise ConfigError(f"--host {args.host} lets other machines in, and needs --password (or JCLIP_PASSWORD)")
    gr.__version__  # noqa: B018 - a missing Gradio ends here
    words.force(args.language)
    if args.place and not gallery_store.is_gallery(args.place):
        gallery_inputs.read_inputs([args.place])  # ends here where there is no photo
    if "JCLIP_BATCH" not in os.environ and not gpu.find_gpus()[0]:
        os.environ["JCLIP_BATCH"] = BATCH
    found = server.listening(args.host, args.port)
    desk = desks.Desk(args.place or "", args.model or "", args.run, args.family)
    before = _end_by_signals(desk)
    try:
        desk.claim()
        desk.open()
        with server.serve(desk, found, password) as address:
            say(f"the page is at {address} (Ctrl-C ends it)")
            if server.opens_browser():
                webbrowser.open(address)
            desk.serve()
    finally:
        desk.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _end_by_signals(desk: desks.Desk) -> dict[signal.Signals, Any]:
    """From now on Ctrl-C and SIGTERM remove what was made and end the page, whatever still works. The handlers before."""

    def end(*_: Any) -> None:
        server.end_in_any_case(LONGEST_END, desk.close)
        raise KeyboardInterrupt

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # a job of `sh … &`
    ends = (signal.SIGTERM,) if ignored else (signal.SIGTERM, signal.SIGINT)
    return {number: signal.signal(number, end) for number in ends}
