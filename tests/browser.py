"""A headless Chromium for tests, spoken to over its DevTools pipe.

The pipe rather than ``--dump-dom``: it tells when the page is done, what it logged and what it
asked the network for, and it allows windows narrower than Chromium's 500 pixels.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",  # containers run as root, where the sandbox refuses to start
    "--use-angle=swiftshader",  # WebGL without a GPU
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-default-browser-check",
    "--no-first-run",
    "--remote-debugging-pipe",
)
SETTLED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


class Browser:
    """A browser with one page; use it as a context manager.

    Attributes
    ----------
    console : list of str
        Warnings, errors and uncaught exceptions of the page that is open.
    requests : list of str
        Addresses it asked for, its own included.
    """

    def __init__(self, timeout: float = 120.0) -> None:
        found = next((path for path in map(shutil.which, NAMES) if path), None)
        if found is None:
            pytest.fail(f"no browser: none of {', '.join(NAMES)} is on PATH")
        self.timeout = timeout
        self.console: list[str] = []
        self.requests: list[str] = []
        self._buffer = b""
        self._serial = 0
        self._session: str | None = None
        self._events: list[str] = []
        self._profile = tempfile.mkdtemp(prefix="browser-")
        command_out, self._write = os.pipe()
        self._read, answer_in = os.pipe()

        def pipes() -> None:
            # Chromium reads from 3 and writes to 4; our own ends may sit there, so copy first
            a, b = os.dup(command_out), os.dup(answer_in)
            high = [os.dup2(fd, 100 + i) for i, fd in enumerate((a, b))]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self._process = subprocess.Popen(
            [found, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=pipes,
            close_fds=False,
            start_new_session=True,
        )
        os.close(command_out)
        os.close(answer_in)

    def __enter__(self) -> Browser:
        try:
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self._call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and what it started, and remove its profile."""
        os.close(self._write)
        os.close(self._read)
        try:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(10)
        except ProcessLookupError:
            self._process.wait()
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a file in a window of that size and colour scheme, and wait until it is drawn."""
        self.console.clear()
        self.requests.clear()
        self._events.clear()
        self._size(width, height)
        self.dark(dark)
        self._call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + self.timeout
        while "Page.loadEventFired" not in self._events:
            self._take(deadline)
        self.evaluate(SETTLED)

    def dark(self, dark: bool) -> None:
        """Prefer the dark colour scheme, or the light one."""
        value = "dark" if dark else "light"
        feature = {"name": "prefers-color-scheme", "value": value}
        self._call("Emulation.setEmulatedMedia", features=[feature])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def dom(self) -> str:
        """The document as it stands after its scripts have run."""
        return str(self.evaluate("document.documentElement.outerHTML"))

    def screenshot(self, path: Path, selector: str = "html") -> Path:
        """Write a PNG of an element, wherever on the page it is."""
        self.evaluate(SETTLED)
        box = self.evaluate(
            f"(({{x, y, width, height}}) => ({{x: x + scrollX, y: y + scrollY, width, height}}))"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        answer = self._call(
            "Page.captureScreenshot", clip=box | {"scale": 1}, captureBeyondViewport=True
        )
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def _size(self, width: int, height: int) -> None:
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def _call(self, method: str, **params: Any) -> Any:
        """Send a command and take messages until its answer."""
        self._serial += 1
        message: dict[str, Any] = {"id": self._serial, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self.timeout
        while (answer := self._take(deadline)).get("id") != self._serial:
            pass
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    def _take(self, deadline: float) -> dict[str, Any]:
        """The next message, noted if it is one to keep."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(self._read, 1 << 16) if ready else b""
            if not chunk:
                state = "ended" if ready else f"said nothing for {self.timeout} s"
                raise AssertionError(f"the browser {state}")
            self._buffer += chunk
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        method, params = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            thrown = details.get("exception", {}).get("description", details["text"])
            self.console.append(f"exception: {thrown}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error"):
            said = " ".join(str(arg.get("value", arg.get("description"))) for arg in params["args"])
            self.console.append(f"{params['type']}: {said}")
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
            self.console.append(f"{params['entry']['level']}: {params['entry']['text']}")
        return message
