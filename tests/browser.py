"""The page of `jclip app` in a real browser: a server of its own, a headless chromium, and what a person does with both."""

from __future__ import annotations

import contextlib
import functools
import http.client
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.children import begin_child

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300  # seconds: a first start compiles operators, a busy machine takes its time; never waited for
BEGIN = "import sys; from tests.children import begin_child; begin_child(int(sys.argv.pop(1))); "
START = (
    "from tests.conftest import use_cache; use_cache(sys.argv[1], setattr); "
    "from jclip.cli import main; sys.exit(main(sys.argv[2:]))"
)  # features and galleries go into a folder of the test; what Jittor compiled is the machine's


class Recorder:
    """A proxy that hands nothing on: it remembers the first line of what it is asked."""

    def __init__(self):
        self.asked: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def environ(self) -> dict[str, str]:
        """For a process whose requests are to come here."""
        return {
            name: self.address
            for kind in ("http", "https", "all")
            for name in (f"{kind}_proxy", f"{kind}_proxy".upper())
        }

    def _listen(self) -> None:
        while True:
            asking, _ = self._socket.accept()
            with asking:
                asking.settimeout(2)
                try:
                    self.asked.append(asking.recv(4096).split(b"\r\n")[0].decode("latin-1"))
                except OSError as e:
                    self.asked.append(f"something that is no HTTP: {e}")


class Served:
    """`jclip app` in a process of its own, in the folder `cwd`; its features are kept below `cache`. start: statements that
    run before."""

    def __init__(
        self, cache: Path, *arguments: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None, start: str = ""
    ):
        self.cache, self.cwd, self.lines, self._before = cache, cwd, [], start
        self.process = self._start("app", *arguments, "--port", "0", env=env or {})
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if found := re.search(r"the page is at (http://127\.0\.0\.1:(\d+)) ", line):
                break
        else:
            raise AssertionError(f"the page did not start: {self.lines}")
        self.address, self.port = found[1], int(found[2])
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _start(self, *arguments: str, env: Mapping[str, str]) -> subprocess.Popen:
        own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env}
        command = [sys.executable, "-c", BEGIN + self._before + START, str(os.getpid()), str(self.cache), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        return subprocess.Popen(command, cwd=self.cwd, env=own, **pipes)

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def run(self, command: str) -> str:
        """What a shown command prints, with the same cache, in the same folder. It must end well."""
        program, *arguments = shlex.split(command)
        assert program == "jclip"
        done = self._start(*arguments, env={})
        printed, _ = done.communicate(timeout=PATIENCE)
        assert done.returncode == 0, printed
        return printed

    def ask(self, name: str, **given: Any) -> Any:
        """The answer of a documented endpoint, as a program gets it. Raises `RuntimeError` with the page's error."""
        return self._called(f"v2/{name}", name, given)[0]

    def call(self, name: str, data: list[Any]) -> list[Any]:
        """What any handler returns for these values. Raises `RuntimeError` with the page's error."""
        return self._called(name, name, {"data": data})

    def _called(self, place: str, name: str, given: Mapping[str, Any]) -> list[Any]:
        body, head = json.dumps(given).encode(), {"Content-Type": "application/json"}
        calls = f"{self.address}/gradio_api/call"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(f"{calls}/{place}", body, head), timeout=PATIENCE) as answer:
            event = json.load(answer)["event_id"]
        with opener.open(f"{calls}/{name}/{event}", timeout=PATIENCE) as answer:
            found = re.search(r"event: (complete|error)\ndata: (.*)", answer.read().decode())
        value = json.loads(found[2])
        if found[1] == "error":
            raise RuntimeError(value["error"] if value else "no error was said")
        return value

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
        """Status and body of a request that is sent as it stands."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host="Host" in headers)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            answer = connection.getresponse()
            self.headers = dict(answer.getheaders())
            return answer.status, answer.read()

    def end(self) -> list[str]:
        """As Ctrl-C; all that was printed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return self.lines


def why_no_browser() -> str:
    """What is missing to drive a browser; empty where nothing is."""
    if importlib.util.find_spec("selenium") is None:
        return "selenium is not installed: pip install 'jclip[dev]'"
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return "chromium and chromedriver are not installed: apt install chromium chromium-driver"
    return ""


def start_chromium(*arguments: str) -> Any:
    """A headless chromium that asks no server by itself."""
    from selenium import webdriver
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--disable-background-networking", "--disable-component-update", "--no-first-run",
                     "--disable-sync", "--disable-features=OptimizationHints,MediaRouter", *arguments):  # fmt: skip
        options.add_argument(argument)
    passwords = {"credentials_enable_service": False, "profile.password_manager_leak_detection": False}
    options.add_experimental_option("prefs", passwords)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    begin = functools.partial(begin_child, os.getpid())
    for last in (False, True):
        service = Service(shutil.which("chromedriver"), popen_kw={"preexec_fn": begin})
        try:
            browser = webdriver.Chrome(options=options, service=service)
            break
        except WebDriverException:  # the port that selenium chose for its driver may be another's by now
            if last:
                raise
    browser.set_script_timeout(PATIENCE)
    browser.command_executor.client_config.timeout = 2 * PATIENCE  # of one command, the loading of a page included
    return browser


class Page:
    """The page in the browser; what is clicked and read is named by CSS selectors."""

    def __init__(self, browser: Any, address: str, served: Served | None = None):
        self.browser, self.address, self.served = browser, address, served
        self._asked: set[str] = set()
        self._said: list[str] = []

    def open(self, width: int = 1280, height: int = 900, language: str = "en-US", path: str = "/") -> Page:
        """Loads it anew, in that language and so many pixels wide, until it can be typed into."""
        self.load(width, height, language, path)
        self.wait(lambda: self.all("#sentence textarea, #sentence input, #world, input[type=password]"))
        return self

    def load(self, width: int = 1280, height: int = 900, language: str = "en-US", path: str = "") -> None:
        """Leaves what is shown, and loads the page as the browser does."""
        self.leave()
        send = self.browser.execute_cdp_cmd
        agent = self.browser.execute_script("return navigator.userAgent")
        send("Network.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": language})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        send("Emulation.setDeviceMetricsOverride", size)
        self.browser.get(self.address + path)
        self.browser.execute_script("performance.setResourceTimingBufferSize(5000)")

    def leave(self) -> None:
        """Leaves what is shown. What has been asked and said until then is kept; a page that is left in the middle of an
        answer complains that its stream was cut, and that is forgotten."""
        self.requests()
        self._said += self._severe()
        self.browser.get("about:blank")
        self._severe()

    def wait(self, true: Callable[[], Any]) -> Any:
        """What `true` returns once it is true."""
        end = time.monotonic() + PATIENCE
        while not (found := self._now(true)):
            if time.monotonic() > end:
                raise AssertionError(f"never came; the page says: {self.text('body')[:2000]}")
            time.sleep(0.03)
        return found

    def answered(self) -> None:
        """Waits until every question that the page has put is answered."""
        self.wait(lambda: self.browser.execute_script("return document.documentElement.ariaBusy") == "false")

    def says(self, css: str, text: str) -> None:
        """Waits until the first element says that."""
        self.wait(lambda: text in self.text(css))

    def _now(self, true: Callable[[], Any]) -> Any:
        from selenium.common import exceptions as of

        try:
            return true()
        except (of.StaleElementReferenceException, of.ElementNotInteractableException):  # it was drawn anew meanwhile
            return None

    def all(self, css: str) -> list[Any]:
        """Elements that are shown."""
        return [e for e in self.browser.find_elements("css selector", css) if e.is_displayed()]

    def one(self, css: str) -> Any:
        """The first element that is shown, waited for."""
        return self.wait(lambda: self.all(css))[0]

    def click(self, css: str) -> None:
        """Clicks the first that is shown, as soon as it can be clicked."""
        self.wait(lambda: self._clicked(css))

    def _clicked(self, css: str) -> bool:
        from selenium.common.exceptions import ElementClickInterceptedException

        for found in self.all(css)[:1]:
            self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
            with contextlib.suppress(ElementClickInterceptedException):  # a message passes over it
                found.click()
                return True
        return False

    def tab(self, name: str) -> None:
        """Shows a tab: search, classify, locate or runs."""
        self.click(f"#tab-{name}-button")

    def gone(self, css: str) -> None:
        """Waits until nothing of it is shown."""
        self.wait(lambda: not self.all(css))

    def toasts(self) -> str:
        """What the page complains or warns of now, waited for; the messages are closed."""
        said = self.wait(lambda: plain(" ".join(e.text for e in self.all(".toast-body"))))
        for button in self.all(".toast-close"):
            self.browser.execute_script("arguments[0].click()", button)
        self.gone(".toast-body")
        return said

    def type(self, css: str, text: str, enter: bool = False) -> None:
        """Replaces what stands in a field."""
        keys = ["\ue009a\ue000", text, *["\ue007"] * enter]  # Ctrl-A
        self.wait(lambda: [field.send_keys(*keys) is None for field in self.all(css)[:1]])

    def type_more(self, css: str, text: str) -> None:
        """Adds to what stands in a field."""
        self.wait(lambda: [field.send_keys(text) is None for field in self.all(css)[:1]])

    def text(self, css: str) -> str:
        """The text of the first element, hidden or not."""
        found = self.browser.find_elements("css selector", css)
        return found[0].text if found else ""

    def value(self, css: str) -> str:
        """What stands in a field."""
        return self.one(css).get_attribute("value")

    def wider_than_screen(self) -> bool:
        """Whether it must be scrolled sideways."""
        return self.browser.execute_script("return document.documentElement.scrollWidth > window.innerWidth")

    def requests(self) -> set[str]:
        """Addresses that the page has asked so far, each time that it was loaded."""
        if self.browser.current_url.startswith(self.address):
            names = "return performance.getEntriesByType('resource').map(entry => entry.name)"
            self._asked.update(self.browser.execute_script(names))
        return self._asked

    def complaints(self) -> list[str]:
        """What the browser's log has of errors since it was asked last."""
        found, self._said = self._said + self._severe(), []
        return found

    def _severe(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]

    def picture(self, path: Path) -> None:
        """A screenshot of what is seen."""
        self.browser.save_screenshot(str(path))


def plain(text: str) -> str:
    """Text on one line with single blanks."""
    return re.sub(r"\s+", " ", text).strip()
