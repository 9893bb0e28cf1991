"""The outermost middleware: an unhandled exception of the app becomes a 500 response."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.problem import Problem, Refuse, answer_with
from wsgigate.http.responses import BufferedResponse
from wsgigate.http.wsgi import PROPAGATE, REASON, REQUEST_ID
from wsgigate.rules.arguments import checked
from wsgigate.runtime.logs import EventLog, one_line

__all__ = ["Guard"]

_log = logging.getLogger("wsgigate")

_FAILED = Problem(500, "Gateway error occurred", extensions={"error": "Internal server error"})


@checked
class Guard:
    """Respond with 500 if the app fails before its response has started. Put it outermost.

    The exception is logged with its traceback and the request id by the logger ``wsgigate``; the
    response contains nothing of it. Further exceptions of its type from the same line are counted,
    and that count is logged once a minute, so that an app that always fails fills no disk. An
    exception after the response has started is raised to the server, which closes the connection: a
    truncated response must not look complete.

    ``SystemExit`` counts as a failure: raised in one request it would stop the worker of a threaded
    server, and with it every other request of that worker.

    With ``environ["wsgigate.propagate"]`` the exception is raised again.

    :param app: The WSGI application to protect.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    """

    def __init__(self, app: WSGIApplication, *, refuse: Refuse = answer_with) -> None:
        self.app = app
        self._answer = refuse(_FAILED)
        self._crashes = EventLog(_log_crash, _log_end)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        guarded = _Guarded(environ, start_response)
        guarded.answer, guarded.crashes = self._answer, self._crashes
        try:
            return guarded.call(self.app)
        except SystemExit as error:
            raise _exited(error) from error


class _Crash(NamedTuple):
    name: str
    request_id: str


def _raised_at(error: BaseException) -> tuple[str, int]:
    """Return the file and the line that raised *error*."""
    traceback = error.__traceback__
    if traceback is None:
        return "", 0
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_filename, traceback.tb_lineno


def _log_crash(crash: _Crash, held: int, error: BaseException | None = None) -> None:
    since = f" ({held} more did since the last such line)" if held else ""
    fields = {"event": "crashed", "request_id": crash.request_id, "error": crash.name}
    _log.error(
        "request %s failed with %s%s",
        one_line(crash.request_id),
        crash.name,
        since,
        exc_info=error,
        extra={"wsgigate": fields},
    )


def _log_end(crash: _Crash, total: int, lasted: float) -> None:
    fields = {"event": "crashed.over", "error": crash.name, "count": total}
    _log.error(
        "No request has failed with %s there for a minute: %d did in %.0f s",
        crash.name,
        total,
        lasted,
        extra={"wsgigate": fields},
    )


class _Guarded(BufferedResponse):
    replaces_started = False
    answer: WSGIApplication
    crashes: EventLog

    def replacement(self, error: BaseException | None) -> WSGIApplication | None:
        if error is None or self._environ.get(PROPAGATE) is True:
            return None
        name = type(error).__name__
        self._environ[REASON] = f"failed with {name}"
        crash = _Crash(name, self._environ.get(REQUEST_ID) or "-")
        held = self.crashes.due((name, _raised_at(error)), crash)
        if held is not None:
            _log_crash(crash, held, error)
        return self.answer

    def __next__(self) -> bytes:
        chunks = self._chunks
        try:
            return self._first() if chunks is None else next(chunks)
        except SystemExit as error:
            raise _exited(error) from error

    def close(self) -> None:
        try:
            super().close()
        except SystemExit as error:
            raise _exited(error) from error


def _exited(error: SystemExit) -> RuntimeError:
    return RuntimeError(f"the application exited with {error.code!r} while it answered")
