"""What is refused is logged: by the access log, or here where no Logger stands around.

A middleware used alone would refuse in silence otherwise. Each refusal is one record of the logger
``wsgigate.refusals``: a warning, but after one the next of the same middleware within a minute are
INFO, so that a flood of refusals does not become one of warnings.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from urllib.parse import quote
from wsgiref.types import WSGIEnvironment

from wsgigate.http.wsgi import LOGGED, REASON, peer
from wsgigate.runtime import fork
from wsgigate.runtime.clocks import real

__all__ = ["refused"]


SILENCE = 60.0
"""Seconds between two warnings of one middleware."""

_log = logging.getLogger("wsgigate.refusals")


class _Warnings:
    """When each middleware was warned of last, and how often it has refused since."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}  # by the few names of middlewares
        self._lock: threading.Lock
        fork.renewed(self, _lock="Lock")

    def due(self, by: str) -> int | None:
        """Count a refusal; return how many were no warnings since the last, None for one more."""
        now = self._clock()
        with self._lock:
            said, more = self._said.get(by, (float("-inf"), 0))
            if now - said < SILENCE:
                self._said[by] = said, more + 1
                return None
            self._said[by] = now, 0
            return more


_warnings = _Warnings(real)


def refused(environ: WSGIEnvironment, by: str, reason: str) -> None:
    """Note why a request is refused, and log it unless a Logger around will.

    :param by: The name of the middleware.
    :param reason: For the log only: it may say what a client must not know.
    """
    environ[REASON] = reason
    if LOGGED in environ:
        return
    more = _warnings.due(by)
    level = logging.INFO if more is None else logging.WARNING
    if not _log.isEnabledFor(level):
        return
    path = quote(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""), encoding="latin-1")
    method = environ.get("REQUEST_METHOD", "")[:32]
    since = f" ({more} more since the last warning)" if more else ""
    _log.log(
        level, "%s refused %r %s of %s: %s%s", by, method, path[:512], peer(environ), reason, since
    )
