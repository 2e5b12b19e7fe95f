"""A page in headless Chromium, spoken to through its debugging pipe (JSON, each message ended by a zero)."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip
_COMPLAINTS = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
# the browser reads file 3 and writes file 4
_ENDS = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_NARROW = 600  # below it, a phone


class Page:
    """One page: its width, what its script answers, and what the console said."""

    def __init__(self, to_browser, from_browser):
        self._to, self._from = to_browser, from_browser
        self._count, self._rest, self._session = 0, b"", None
        self.console = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """Send one command and return its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (reply := self._next()).get("id") != self._count:
            pass
        assert "error" not in reply, reply
        return reply["result"]

    def open(self, url, *, width, height=900):
        """Show a page and wait until it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < _NARROW,
        )  # fmt: skip
        self.call("Page.navigate", url=url)
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def ask(self, expression):
        """Return what a JavaScript expression is, or what it promises."""
        reply = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def _next(self):
        while b"\0" not in self._rest:
            got = os.read(self._from, 1 << 16)
            assert got, "the browser ended"
            self._rest += got
        one, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(one)
        if message.get("method") in _COMPLAINTS:
            self.console.append(message["params"])
        return message


@contextlib.contextmanager
def page(profile):
    """Start the browser with a profile folder of its own; end it."""
    to_read, to_browser = os.pipe()
    from_browser, from_write = os.pipe()
    process = subprocess.Popen(
        [
            sys.executable, "-c", _ENDS, str(to_read), str(from_write), BROWSER, *FLAGS,
            f"--user-data-dir={profile}",
        ],
        pass_fds=(to_read, from_write),
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for end in (to_read, from_write):
        os.close(end)
    try:
        yield Page(to_browser, from_browser)
    finally:
        process.kill()
        process.wait()
        for end in (to_browser, from_browser):
            os.close(end)
