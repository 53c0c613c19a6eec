"""Who may ask the page's server, and for what; how it starts and ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from jclip.app import server
from jclip.cli import main
from jclip.errors import ConfigError
from tests.app.conftest import needs_gradio
from tests.browser import PATIENCE, ROOT, Recorder


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../../../etc/passwd",
        "/gradio_api/file=%2Fetc%2Fpasswd",
        "/gradio_api/file=..%2f..%2f..%2fetc%2fpasswd",
        "/gradio_api/file=//etc/passwd",
        "/gradio_api/file=http://127.0.0.1:9/photo.png",
        "/gradio_api/proxy=http://127.0.0.1:9/",
        "/static/../../../../etc/passwd",
        "/assets/..%2f..%2f..%2f..%2fetc/passwd",
        "/docs",
        "/gradio_api/runs",
        "/monitoring",
    ],
)
def test_nothing_else_is_served(served, path):
    status, body = served.get(path)
    assert status in (403, 404), path
    assert b"root:" not in body


def test_photos_are_not_served_as_files(served, scenes):
    for photo in [*scenes.glob("scene_*")][:1]:
        assert served.get(f"/gradio_api/file={quote(str(photo))}")[0] == 403
    (served.cwd / "note.txt").write_text("of the folder where it was started")
    assert served.get(f"/gradio_api/file={quote(str(served.cwd / 'note.txt'))}")[0] == 403
    assert served.get("/gradio_api/file=note.txt")[0] == 403


def test_other_names_and_other_pages_are_refused(served):
    assert served.get("/", Host="photos.example")[0] == 421
    assert served.get("/", Host=f"localhost:{served.port}")[0] == 200
    for origin in ("http://photos.example", "null", f"http://127.0.0.1:{served.port + 1}"):
        assert served.get("/gradio_api/queue/join", "POST", Origin=origin)[0] == 403
    served.get("/")
    assert "default-src 'self'" in served.headers["content-security-policy"]
    assert served.headers["x-frame-options"] == "DENY"


def taking_files(served, path: str) -> Iterator[tuple[str, list]]:
    """Each handler that takes files, those of the page itself as well, with values that name `path` for an upload."""
    photo = {"path": path, "meta": {"_type": "gradio.FileData"}}
    values = {"image": photo, "file": [photo], "gallery": [{"image": photo}]}
    config = json.loads(served.get("/config")[1])
    kinds = {one["id"]: one["type"] for one in config["components"]}
    for handler in config["dependencies"]:
        given = [kinds[number] for number in handler["inputs"]]
        if {*values} & {*given} and handler["backend_fn"]:
            yield handler["api_name"], [values.get(kind) for kind in given]


def test_a_value_that_is_missing_is_named(served):
    with pytest.raises(urllib.error.HTTPError) as raised:
        served.ask("search", top=3)
    said = raised.value.code, raised.value.read().decode()
    assert said == (422, "No value provided for required argument: query\n")


def test_an_address_in_place_of_a_photo_is_not_fetched(served):
    other = Recorder()
    handlers = [*taking_files(served, f"{other.address}/photo.png")]
    for name, data in handlers:
        with pytest.raises(RuntimeError):
            served.call(name, data)
    assert handlers and other.asked == []


def test_a_path_in_place_of_an_upload_is_not_opened(served, scenes):
    handlers = [*taking_files(served, str(sorted(scenes.glob("scene_*"))[0]))]
    for name, data in handlers:
        with pytest.raises(RuntimeError, match="not uploaded by a user"):
            served.call(name, data)
    assert handlers


def test_what_is_too_large_is_not_kept(served):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE)
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="large.png"\r\n\r\n'
    connection.request(
        "POST", "/gradio_api/upload", head + bytes(33 << 20) + b"\r\n--x--\r\n",
        {"Content-Type": "multipart/form-data; boundary=x"},
    )  # fmt: skip
    assert connection.getresponse().status == 413


def test_where_it_may_listen(capsys):
    needs_gradio()
    assert main(["app", "--share"]) == 2
    assert "--share would send the photos through a server of others" in capsys.readouterr().err
    assert main(["app", "--host", "0.0.0.0"]) == 2
    assert "--host 0.0.0.0 lets other machines in, and needs --password" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1 can't be used .*: --port \d+ is free"):
            server.listening("127.0.0.1", port)


def test_without_gradio_it_is_said_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    assert capsys.readouterr().err == "jclip app: gradio must be installed: pip install 'jclip[app]'\n"


def test_a_browser_is_opened_on_a_screen_of_this_machine_alone(monkeypatch):
    for name in ("SSH_CONNECTION", "SSH_TTY", "WSL_DISTRO_NAME", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    assert server.opens_browser()
    for name in ("SSH_CONNECTION", "WSL_DISTRO_NAME"):
        with monkeypatch.context() as there:
            there.setenv(name, "x")
            assert not server.opens_browser()
    monkeypatch.delenv("DISPLAY")
    assert not server.opens_browser()


CUT = """if True:
    import sys
    from pathlib import Path
    from tests.browser import Served
    served = Served(Path(sys.argv[1]), sys.argv[2], "--model", "shapes-tiny-vit")
    try:
        assert served.get("/")[0] == 200
        found = served.ask("search", query="a red circle", top=3)
        print(len(found["photos"]))
    finally:
        served.end()
"""


def test_it_works_with_the_network_cut(served, scenes):
    command = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    try:
        able = subprocess.run([*command, "true"], capture_output=True, timeout=PATIENCE).returncode == 0
    except OSError:
        able = False
    if not able:
        pytest.skip("unshare -n and ip are needed to cut the network off")
    served.ask("search", query="a red circle", top=3)  # from now on it is in the cache of both
    given = [sys.executable, "-c", CUT, str(served.cache), str(scenes)]
    done = subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True, timeout=4 * PATIENCE)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_nothing_that_waits_for_ever_keeps_a_page():
    """A thread of Python's, and a library that has the interpreter."""
    thread = "import threading; threading.Thread(target=threading.Event().wait).start()"
    library = "import atexit, ctypes; atexit.register(ctypes.PyDLL(None).pause)"
    for waits, ended in ((thread, 130), (library, -signal.SIGALRM)):
        code = f"{waits}; from jclip.app import server; server.end_in_any_case(0.1)"
        assert subprocess.run([sys.executable, "-c", code], timeout=PATIENCE).returncode == ended
