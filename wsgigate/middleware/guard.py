"""The outermost middleware: an unhandled exception of the app becomes a 500 response."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.problem import Problem, Refuse, answer_with
from wsgigate.http.responses import BufferedResponse
from wsgigate.http.wsgi import PROPAGATE, REASON, REQUEST_ID
from wsgigate.rules.arguments import checked

__all__ = ["Guard"]

_log = logging.getLogger("wsgigate")

_FAILED = Problem(500, "Gateway error occurred", extensions={"error": "Internal server error"})


@checked
class Guard:
    """Respond with 500 if the app fails before its response has started. Put it outermost.

    The exception is logged with its traceback and the request id by the logger ``wsgigate``; the
    response contains nothing of it. An exception after the response has started is raised to the
    server, which closes the connection: a truncated response must not look complete.

    ``SystemExit`` counts as a failure: raised in one request it would stop the worker of a threaded
    server, and with it every other request of that worker.

    With ``environ["wsgigate.propagate"]`` the exception is raised again.

    :param app: The WSGI application to protect.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    """

    def __init__(self, app: WSGIApplication, *, refuse: Refuse = answer_with) -> None:
        self.app = app
        self._answer = refuse(_FAILED)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        guarded = _Guarded(environ, start_response)
        guarded.answer = self._answer
        try:
            return guarded.call(self.app)
        except SystemExit as error:
            raise _exited(error) from error


class _Guarded(BufferedResponse):
    replaces_started = False
    answer: WSGIApplication

    def replacement(self, error: BaseException | None) -> WSGIApplication | None:
        if error is None or self._environ.get(PROPAGATE) is True:
            return None
        name = type(error).__name__
        self._environ[REASON] = f"failed with {name}"
        request_id = self._environ.get(REQUEST_ID, "-")
        _log.error("request %s failed with %s", request_id, name, exc_info=error)
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
