"""The page of `jclip app` in a real browser: a server of its own, a headless chromium, and what a person does with both."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 30  # seconds for what a busy machine has to do; nothing waits so long elsewhere
START = (
    "import sys; from tests.conftest import use_cache; use_cache(sys.argv[1], setattr); "
    "from jclip.cli import main; sys.exit(main(sys.argv[2:]))"
)  # features and galleries go into a folder of the test; what Jittor compiled is the machine's


class Served:
    """`jclip app` in a process of its own. env: beside the caller's."""

    def __init__(self, cache: Path, *arguments: str, env: dict[str, str] | None = None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address, self.lines = f"http://127.0.0.1:{self.port}", []
        own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(env or {})}
        command = [sys.executable, "-c", START, str(cache), "app", *arguments, "--port", str(self.port)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if "the page is at" in line:
                return
        raise AssertionError(f"the page did not start: {self.lines}")

    def end(self) -> list[str]:
        """As Ctrl-C; what was printed in all."""
        self.process.send_signal(signal.SIGINT)
        rest, _ = self.process.communicate(timeout=PATIENCE)
        self.lines += rest.splitlines()
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
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--disable-background-networking", "--disable-component-update", "--no-first-run",
                     "--disable-sync", "--disable-features=OptimizationHints,MediaRouter", *arguments):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(executable_path=shutil.which("chromedriver")))


class Page:
    """The page in the browser; what is clicked and read is named by CSS selectors."""

    def __init__(self, browser: Any, address: str):
        self.browser, self.address = browser, address

    def open(self, width: int = 1280, height: int = 900, language: str = "en-US", path: str = "/") -> Page:
        """Loads it anew, in that language and so many pixels wide."""
        send = self.browser.execute_cdp_cmd
        agent = self.browser.execute_script("return navigator.userAgent")
        send("Network.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": language})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        send("Emulation.setDeviceMetricsOverride", size)
        self.browser.get(self.address + path)
        self.wait(lambda: self.all("#sentence textarea, #sentence input"))
        return self

    def wait(self, true: Callable[[], Any]) -> Any:
        """What `true` returns once it is true."""
        end = time.monotonic() + PATIENCE
        while not (found := self._now(true)):
            if time.monotonic() > end:
                raise AssertionError(f"never came; the page says: {self.text('body')[:2000]}")
            time.sleep(0.03)
        return found

    def _now(self, true: Callable[[], Any]) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException

        try:
            return true()
        except StaleElementReferenceException:
            return None

    def all(self, css: str) -> list[Any]:
        """Elements that are shown."""
        return [e for e in self.browser.find_elements("css selector", css) if e.is_displayed()]

    def one(self, css: str) -> Any:
        """The first element that is shown, waited for."""
        return self.wait(lambda: self.all(css))[0]

    def click(self, css: str) -> None:
        """Clicks the first that is shown."""
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.one(css))
        self.one(css).click()

    def tab(self, name: str) -> None:
        """Shows a tab: search, classify, locate or runs."""
        self.click(f"#tab-{name}-button")

    def type(self, css: str, text: str, enter: bool = False) -> None:
        """Replaces what stands in a field."""
        field = self.one(css)
        field.send_keys("\ue009a\ue000", text, *["\ue007"] * enter)  # Ctrl-A

    def type_more(self, css: str, text: str) -> None:
        """Adds to what stands in a field."""
        self.one(css).send_keys(text)

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

    def complaints(self) -> list[str]:
        """What the browser's log has of errors since it was asked last."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]

    def picture(self, path: Path) -> None:
        """A screenshot of what is seen."""
        self.browser.save_screenshot(str(path))


def plain(text: str) -> str:
    """Text on one line with single blanks."""
    return re.sub(r"\s+", " ", text).strip()
