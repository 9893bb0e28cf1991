"""The last resort: an application that fails before it answers is answered for."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.problem import Problem, Refuse, answer_with
from wsgigate.http.responses import Held
from wsgigate.http.wsgi import REASON, REQUEST_ID
from wsgigate.rules.arguments import checked

__all__ = ["Guard"]

_log = logging.getLogger("wsgigate")

_FAILED = Problem(500, "Gateway error occurred", extensions={"error": "Internal server error"})


@checked
class Guard:
    """Answer with 500 when everything inside fails before its response began. Goes outermost.

    What failed is logged with its traceback, under the request id, by the logger ``wsgigate``; the
    client learns nothing of it. A failure after the response began goes on to
    the server, which cuts the connection: a short answer must not look like a whole one.

    ``SystemExit`` counts as a failure: raised in one request it would end a threaded server's
    worker, and every other request of that worker with it.

    :param app: The WSGI application to stand in for.
    :param refuse: Turns the problem into the app that answers with it.
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


class _Guarded(Held):
    asks = False
    answer: WSGIApplication

    def instead(self, error: BaseException | None) -> WSGIApplication | None:
        if error is None:
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
