"""Logging of rejected requests: by the access log, or here without a Logger around.

Otherwise a middleware that is used alone would reject requests without a trace. Each rejection is
one record of the logger ``wsgigate.refusals``: a WARNING, or INFO within a minute after a WARNING
of the same middleware, so that a flood of rejections is not a flood of warnings.
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


WARNING_INTERVAL = 60.0
"""Seconds between two warnings of one middleware."""

_log = logging.getLogger("wsgigate.refusals")


class _Warnings:
    """Records the last warning of each middleware, and the rejections since."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: dict[str, tuple[float, int]] = {}  # by the name of the middleware
        self._lock: threading.Lock
        fork.renewed(self, _lock="Lock")

    def due(self, by: str) -> int | None:
        """Count a rejection; return the count since the last warning if one is due, else None."""
        now = self._clock()
        with self._lock:
            last, more = self._last.get(by, (float("-inf"), 0))
            if now - last < WARNING_INTERVAL:
                self._last[by] = last, more + 1
                return None
            self._last[by] = now, 0
            return more


_warnings = _Warnings(real)


def refused(environ: WSGIEnvironment, by: str, reason: str) -> None:
    """Record why a request is rejected, and log it unless an outer Logger does.

    :param by: The name of the middleware.
    :param reason: For the log only: it may contain what a client must not see.
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
