"""The addresses of hosts, looked up beside what must not wait for them."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections import deque
from collections.abc import Callable
from errno import ENOMEM
from typing import Any, TypeAlias

__all__ = ["Address", "Names", "literal"]

Address: TypeAlias = tuple[int, Any]
"""A family, and what a socket of that family connects to."""

Found: TypeAlias = Callable[["list[Address] | Exception"], None]


def literal(host: str, port: int) -> Address | None:
    """Return the address that *host* is, None for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version == 4:
        return socket.AF_INET, (host, port)
    return socket.AF_INET6, (host, port)


class Names:
    """Look up names in a few threads, each name once for all who wait for it.

    The threads end when there is nothing to look up. One that the resolver lets hang ends with it.

    :param most: How many names are looked up at a time.
    :param resolve: Looks one up, as :func:`socket.getaddrinfo` does.
    """

    def __init__(
        self, most: int = 8, *, resolve: Callable[..., list[Any]] = socket.getaddrinfo
    ) -> None:
        self._most = most
        self._resolve = resolve
        self._lock = threading.Lock()
        self._waiting: dict[str, list[tuple[int, Found]]] = {}
        self._queue: deque[str] = deque()
        self._threads = 0

    def look_up(self, host: str, port: int, found: Found) -> None:
        """Have *found* called, in another thread, with the addresses of *host* or what failed.

        When no thread is to be had, that is what failed, and *found* is called in this one.
        """
        with self._lock:
            waiting = self._waiting.setdefault(host, [])
            waiting.append((port, found))
            if len(waiting) > 1:
                return
            self._queue.append(host)
            if self._threads >= self._most:
                return
            try:
                threading.Thread(target=self._run, name="wsgigate-names", daemon=True).start()
                self._threads += 1
                return
            except RuntimeError:
                if self._threads:
                    return  # one of those looks it up
                self._queue.clear()
                del self._waiting[host]
        found(OSError(ENOMEM, "no thread is to be had to look up a name"))

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._threads -= 1
                    return
                host = self._queue.popleft()
            answer: list[Any] | Exception
            try:
                answer = self._resolve(host, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                answer = error
            with self._lock:
                waiting = self._waiting.pop(host)
            for port, found in waiting:
                if isinstance(answer, Exception):
                    found(answer)
                else:
                    found([(family, (at[0], port, *at[2:])) for family, *_, at in answer])
