"""A real browser: headless Chromium, steered over its DevTools protocol.

Debian's ``chromium-headless-shell`` is the browser alone, without a desktop and without a driver
process: commands and events are JSON over one WebSocket. Each page has a browser context of its
own, so that no page sees the storage of another. Every wait is for a condition, and has an end.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from websockets.sync.client import connect

from tests.support.waiting import until

__all__ = ["Browser", "Page", "PageError"]

COMMAND = "chromium-headless-shell"

SECONDS = 90.0
"""How long a command or a wait may take: several times what a busy machine needs."""

OPTIONS = (
    "--no-sandbox",  # tests may run as root, and open no page but their own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--force-color-profile=srgb",
    "--font-render-hinting=none",
    "--hide-scrollbars",
    "--mute-audio",
    "--lang=en-US",
    "--remote-debugging-port=0",
)

KEYS = {
    "Tab": (9, ""),
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    " ": (32, " "),
}
"""The code of a key, and the text that it enters."""


class PageError(Exception):
    """A script or a command failed in the browser."""


class Browser:
    """A running browser; a context manager.

    :param folder: An empty folder for its profile and its log.
    """

    def __init__(self, folder: Path) -> None:
        command = shutil.which(COMMAND)
        assert command, f"install {COMMAND}, the browser of the tests (apt-get install {COMMAND})"
        profile = folder / "profile"
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [command, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={"HOME": str(folder), "PATH": "/usr/bin:/bin", "TZ": "UTC", "LANG": "C.UTF-8"},
            )
        self._number = 0
        self._pages: dict[str, Page] = {}
        self._stack = ExitStack()
        self._stack.callback(self._end)
        with ExitStack() as failed:
            failed.push(self._stack)
            port, path = until(lambda: self._address(profile / "DevToolsActivePort"))
            url = f"ws://127.0.0.1:{port}{path}"
            self._socket = self._stack.enter_context(
                connect(url, max_size=None, open_timeout=SECONDS, proxy=None)
            )
            failed.pop_all()

    def _address(self, file: Path) -> list[str]:
        assert self._process.poll() is None, "the browser ended at its start"
        lines = file.read_text().split() if file.exists() else []
        return lines if len(lines) == 2 else []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        # the command may be a script, whose end alone would leave the browser running
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait(10)

    def command(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that arrive meanwhile go to their pages.

        :raises PageError: The browser rejects it.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        self._socket.send(json.dumps(message))
        while True:
            got = json.loads(self._socket.recv(SECONDS))
            if got.get("id") == self._number:
                if "error" in got:
                    raise PageError(f"{method}: {got['error'].get('message')}")
                result: dict[str, Any] = got["result"]
                return result
            page = self._pages.get(got.get("sessionId", ""))
            if page is not None and "method" in got:
                page.happened(got["method"], got["params"])

    @contextmanager
    def page(
        self, *, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False
    ) -> Iterator[Page]:
        """Yield a page in a context of its own."""
        context = self.command("Target.createBrowserContext")["browserContextId"]
        target = self.command("Target.createTarget", url="about:blank", browserContextId=context)[
            "targetId"
        ]
        session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        try:
            for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
                page.command(f"{domain}.enable")
            page.resize(width, height, phone=phone)
            page.prefer(dark=dark)
            yield page
        finally:
            del self._pages[session]
            self.command("Target.disposeBrowserContext", browserContextId=context)


class Page:
    """A page of the browser.

    :ivar errors: What the console and the log report as errors, uncaught exceptions included.
    :ivar requests: The requests it sent: the method, the URL and the header fields of each.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.errors: list[str] = []
        self.requests: list[dict[str, Any]] = []

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the protocol for this page; return its result."""
        return self._browser.command(method, self._session, **params)

    def happened(self, method: str, params: dict[str, Any]) -> None:
        """Note an event."""
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(each.get("value")) for each in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            entry = params["entry"]
            self.errors.append(f"{entry['source']}: {entry['text']} {entry.get('url', '')}")
        elif method == "Network.requestWillBeSent":
            request = params["request"]
            self.requests.append({name: request[name] for name in ("method", "url", "headers")})

    # What a person sets.

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        """Set the size of the window, in CSS pixels."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )

    def prefer(self, *, dark: bool) -> None:
        """Prefer dark or light colors, and no animations."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.command("Emulation.setEmulatedMedia", features=[scheme, still])

    # What a person does.

    def open(self, url: str) -> None:
        """Open *url* and wait until it and its scripts are loaded."""
        # the document before is complete as well, and may be there still when this is answered
        self.eval("void (window.left = true)")
        answer = self.command("Page.navigate", url=url)
        if "errorText" in answer:
            raise PageError(f"{url}: {answer['errorText']}")
        self.wait("!window.left && document.readyState === 'complete'")

    def click(self, selector: str) -> None:
        """Click the middle of the element with the mouse, once it is there and is not disabled."""
        self.click_on(f"document.querySelector({json.dumps(selector)})")

    def click_on(self, script: str) -> None:
        """Click the element that an expression returns, as soon as it returns one.

        A page that is updated may move the element before the mouse is there: a click on anything
        else is not delivered, and another one follows.
        """
        aim = (
            f"(() => {{ const found = {script};"
            " if (!found || found.disabled) return null;"
            " found.scrollIntoView({block: 'center', inline: 'center'});"
            " const box = found.getBoundingClientRect();"
            " if (!box.width) return null;"
            " removeEventListener('click', window.guard, true);"
            " window.clicked = false;"
            " window.guard = (event) => { if (found.contains(event.target)) {"
            "   window.clicked = true; removeEventListener('click', window.guard, true);"
            " } else { event.stopImmediatePropagation(); event.preventDefault(); } };"
            " addEventListener('click', window.guard, true);"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )

        def clicked() -> bool:
            place = self.eval(aim)
            if place is None:
                return False
            at = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
            for kind in ("mousePressed", "mouseReleased"):
                self.command("Input.dispatchMouseEvent", type=kind, **at)
            hit: bool = self.eval("window.clicked")
            return hit

        self._until(clicked, f"a click on {script}", SECONDS)

    def type(self, text: str) -> None:
        """Enter *text* into the element that has the focus."""
        self.command("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key of :data:`KEYS`."""
        code, text = KEYS[key]
        what: dict[str, Any] = {
            "key": key,
            "code": "Space" if key == " " else key,
            "windowsVirtualKeyCode": code,
            "modifiers": 8 if shift else 0,
        }
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.command("Input.dispatchKeyEvent", **what, **down)
        self.command("Input.dispatchKeyEvent", **what, type="keyUp")

    # What a person sees.

    def eval(self, script: str) -> Any:
        """Return the value of an expression, or what its promise becomes.

        :raises PageError: It throws.
        """
        answer = self.command(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def wait(self, script: str, *, seconds: float = SECONDS) -> Any:
        """Return the value of an expression as soon as that is true."""
        return self._until(lambda: self.eval(script), script, seconds)

    def _until(self, condition: Callable[[], Any], what: str, seconds: float) -> Any:
        def found() -> Any:
            try:
                return condition()
            except PageError as error:
                if "context" in str(error) or "navigated" in str(error):  # to another document
                    return None
                raise

        try:
            return until(found, seconds=seconds)
        except AssertionError:
            seen = self.eval("document.body.innerText.slice(0, 4000)")
            raise AssertionError(
                f"waited {seconds} s for {what}\nerrors: {self.errors}\nthe page shows:\n{seen}"
            ) from None

    def wait_for_text(self, text: str, selector: str = "body", *, seconds: float = SECONDS) -> None:
        """Wait until an element that *selector* finds shows *text*."""
        self.wait(
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            f".some(each => each.innerText.includes({json.dumps(text)}))",
            seconds=seconds,
        )

    def text(self, selector: str) -> str:
        """Return the visible text of the first element that *selector* finds."""
        text: str = self.eval(f"document.querySelector({json.dumps(selector)}).innerText")
        return text

    def accessible(self) -> list[tuple[str, str]]:
        """Return the role and the name of each element as assistive technology gets them."""
        nodes = self.command("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored")
        ]

    def screenshot(self, file: Path, *, height: int | None = None) -> None:
        """Write what the window shows as a PNG file, *height* pixels of it."""
        clip = {}
        if height is not None:
            width = self.eval("document.documentElement.clientWidth")
            clip = {"clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}}
        shot = self.command("Page.captureScreenshot", format="png", optimizeForSpeed=False, **clip)
        file.write_bytes(base64.b64decode(shot["data"]))
