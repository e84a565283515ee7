"""A real browser (Debian's chromium, headless), told what to do by its DevTools protocol over two pipes.

The page's own scripts could not run (its Content-Security-Policy says so), and none is needed: what is asked here is
evaluated by the browser itself. Protocol: https://chromedevtools.github.io/devtools-protocol/ ; a message is one JSON
document, ended by a NUL byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 60
"""How long an answer may take: the processors of a test run are busy."""


class Browser:
    """One tab."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._number = 0
        self._buffer = b""
        self._session = ""
        self.events: list[dict[str, Any]] = []
        """What the tab has told by itself: requests for one."""

    def attach(self) -> None:
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._send(f"{domain}.enable")

    def open(self, page: Path, *, width: int, dark: bool = False) -> None:
        """Load a file at this width of the window, in CSS pixels, as a reader who prefers light or dark."""
        self._send(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self._send("Page.navigate", url=page.as_uri())
        self._until(lambda event: event["method"] == "Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        answer = self._send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, target: Path, *, height: int = 0) -> None:
        """A PNG of the window; with a height, of so much of the page."""
        width = self.evaluate("innerWidth")
        clip = {"clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}} if height else {}
        answer = self._send("Page.captureScreenshot", captureBeyondViewport=bool(height), **clip)
        target.write_bytes(base64.b64decode(answer["data"]))

    def requested(self) -> list[str]:
        """Every URL that the page made the browser ask for."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def complaints(self) -> list[str]:
        """What the browser wrote into its console."""
        logged = [event for event in self.events if event["method"] == "Log.entryAdded"]
        return [event["params"]["entry"]["text"] for event in logged]

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda message: message.get("id") == self._number)
        assert "error" not in answer, (method, answer)
        found: dict[str, Any] = answer["result"]
        return found

    def _until(self, wanted: Any) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while True:
            message = self._message(end)
            if "method" in message:
                self.events.append(message)
                if "id" not in message and wanted(message):
                    return message
            elif wanted({"method": "", **message}):
                return message

    def _message(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            chunk = os.read(self._read, 1 << 20)
            assert chunk, "the browser has ended"
            self._buffer += chunk
        text, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile, for as long as the body runs."""
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    # The protocol's pipes are file descriptors 3 and 4. No sandbox: tests run as root, and open their own files only.
    start = 'exec chromium "$@" 3<&"$R" 4>&"$W"'
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    process = subprocess.Popen(
        ["bash", "-c", start, "bash", *options, *quiet, "about:blank"],
        env={**os.environ, "R": str(command_read), "W": str(answer_write), "DBUS_SESSION_BUS_ADDRESS": "disabled:"},
        pass_fds=(command_read, answer_write),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(profile.parent / "chromium.log").open("wb"),
    )
    os.close(command_read)
    os.close(answer_write)
    try:
        browser = Browser(answer_read, command_write)
        browser.attach()
        yield browser
    finally:
        process.terminate()
        process.wait(timeout=30)
        os.close(answer_read)
        os.close(command_write)
