"""A real Chromium driven over its DevTools pipe: no port is opened, and no library is needed."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
_FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--remote-debugging-pipe",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--hide-scrollbars",
]
# The browser reads commands from descriptor 3 and answers on 4.
_LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
PATIENCE_S = 60.0


class Tab:
    """One page.

    Attributes:
        events: all that the browser told since the start, as (method, params).
    """

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._answers: Queue[dict[str, Any]] = Queue()
        self._number = 0
        self.events: list[tuple[str, dict[str, Any]]] = []
        threading.Thread(target=self._listen, daemon=True).start()
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command's result; AssertionError where the browser refuses it."""
        return self._call(method, self._session, **params)

    def open(self, url: str, width: int, height: int = 1000, dark: bool = False) -> None:
        self.size(width, height, dark)
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def size(self, width: int, height: int, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition: str) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (value := self.run(condition)):
            assert time.monotonic() < deadline, f"never came: {condition}; {self.run('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def choose(self, selector: str, *files: Path) -> None:
        """Files into a file input, as its picker does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path) -> None:
        """The whole page, below the fold too."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def complaints(self) -> list[str]:
        """What the page or the browser complained about: exceptions, console errors, refused loads."""
        found = []
        for method, params in self.events:
            if method == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"].get("exception", params)))
            if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                found.append(str(params["args"]))
            if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return found

    def requested(self) -> list[str]:
        """URLs of all requests so far."""
        return [params["request"]["url"] for method, params in self.events if method == "Network.requestWillBeSent"]

    def _call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        left = json.dumps(message).encode() + b"\0"
        while left:
            left = left[os.write(self._write, left) :]
        while True:
            try:
                answer = self._answers.get(timeout=PATIENCE_S)
            except Empty:
                raise AssertionError(f"the browser did not answer {method}") from None
            if answer["id"] == self._number:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result

    def _listen(self) -> None:
        held = b""
        while part := os.read(self._read, 2**20):
            *whole, held = (held + part).split(b"\0")
            for message in map(json.loads, whole):
                if "id" in message:
                    self._answers.put(message)
                else:
                    self.events.append((message["method"], message.get("params", {})))


@contextmanager
def running_chromium(profile: Path) -> Iterator[Tab]:
    """A browser with a fresh profile and one empty tab; it is stopped at the end."""
    assert CHROMIUM is not None
    pairs = [os.pipe(), os.pipe()]
    # Above 3 and 4, which the launcher fills.
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (pairs[0][0], pairs[1][1])]
    command = [sys.executable, "-I", "-S", "-c", _LAUNCH, *map(str, theirs), CHROMIUM]
    with (profile.parent / f"{profile.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *_FLAGS, f"--user-data-dir={profile}"],
            pass_fds=theirs,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    for fd in (*theirs, pairs[0][0], pairs[1][1]):
        os.close(fd)
    try:
        yield Tab(pairs[0][1], pairs[1][0])
    finally:
        os.close(pairs[0][1])  # the browser ends with its pipe
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
