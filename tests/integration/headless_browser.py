"""A real Chromium without a window, driven through its debugging pipe: no driver, no port, no dependency."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


def find_chromium() -> str | None:
    """Path of an installed Chromium; ``EVOMERGE_CHROMIUM`` names another."""
    named = os.environ.get("EVOMERGE_CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of one browser.

    Args:
        executable: Chromium's path.
        profile: an empty folder for its files.
        seconds: how long an answer or a condition may take.
    """

    def __init__(self, executable: str, profile: Path, seconds: float = 60.0) -> None:
        self.seconds = seconds
        self._buffer = b""
        self._number = 0
        ours, their_input = os.pipe()
        their_input, ours_write = ours, their_input
        ours_read, their_output = os.pipe()
        self._write, self._read = ours_write, ours_read

        def give_pipes() -> None:
            # The pipe is read from descriptor 3 and written to 4; first out of each other's way.
            first, second = os.dup(their_input), os.dup(their_output)
            high = max(first, second, 10) + 1
            os.dup2(first, high), os.dup2(second, high + 1)
            os.dup2(high, 3), os.dup2(high + 1, 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        # A page in the background runs at low priority and starves beside other tests.
        flags += ["--disable-renderer-backgrounding", "--disable-backgrounding-occluded-windows"]
        flags += ["--remote-debugging-pipe", "--window-size=1500,1600", "--no-first-run", f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [executable, *flags, "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            close_fds=False, preexec_fn=give_pipes,
        )  # fmt: skip
        os.close(their_input), os.close(their_output)
        target = self._first_page()
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    _session: str | None = None

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._send("Browser.close", {}, None)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write), os.close(self._read)

    def _first_page(self) -> str:
        deadline = time.monotonic() + self.seconds
        while True:
            pages = [info for info in self.call("Target.getTargets")["targetInfos"] if info["type"] == "page"]
            if pages:
                return str(pages[0]["targetId"])
            assert time.monotonic() < deadline, "Chromium opens no page"
            time.sleep(0.05)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command of the Chrome DevTools protocol."""
        number = self._send(method, parameters, self._session)
        deadline = time.monotonic() + self.seconds
        while True:
            message = self._next(deadline)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded; what its scripts add later is waited for with ``wait_for``."""
        self.value("window.isLeft = true")  # the answer to the command may come before the page is another
        failure = self.call("Page.navigate", url=url).get("errorText")
        assert not failure, f"{url}: {failure}"
        self.wait_for("!window.isLeft && document.body !== null && document.readyState == 'complete'", url)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is on the page now."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str, what: str) -> Any:
        """The first true value of an expression."""
        deadline = time.monotonic() + self.seconds
        while not (value := self.value(expression)):
            assert time.monotonic() < deadline, (
                f"{what} does not appear: {str(self.value('document.body?.innerText'))[:800]}"
            )
            time.sleep(0.1)
        return value

    def screenshot(self, path: Path, whole: bool = False) -> Path:
        """Write what is seen, or the whole page, as PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))
        return path

    def _send(self, method: str, parameters: dict[str, Any], session: str | None) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._number

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._read, 2**20) if ready else b""
            assert data, f"Chromium does not answer within {self.seconds:.0f} s"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(line))
