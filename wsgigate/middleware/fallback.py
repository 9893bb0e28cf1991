"""Have somebody else answer what an app fails to."""

from __future__ import annotations

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.bodies import KeptBody
from wsgigate.http.fields import is_token
from wsgigate.http.responses import answer_instead, marked, shaped
from wsgigate.http.wsgi import FAILURE
from wsgigate.rules.arguments import checked
from wsgigate.rules.fallback import FallbackRules, may_ask_another, reason_of

__all__ = ["Fallback"]

_OF_THE_REQUEST = (
    *("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "RAW_URI", "REQUEST_URI"),
    *("CONTENT_TYPE", "CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "wsgi.input_terminated"),
)
"""The other app gets these as they were before the first app changed them, as a mount does. Other
fields are not restored: the first app may have removed a forged one."""

_ABSENT = object()

BUFFER = 64 * 1024
"""Of a body how many bytes are kept, to be read again by the other app."""


@checked
class Fallback:
    """Have another app answer the requests that *app* fails to.

    What fails is in *rules*: by default an answer of 502, 503 or 504 to GET, HEAD and OPTIONS. The
    other app gets the same request. A request that may change something is passed to it only where
    nothing of it was sent: it may have been processed otherwise. Of its body 64 KiB are kept; one
    of which more has been read is lost to the other app.

    :param app: The WSGI application to stand in front of, such as a forwarder.
    :param other: The one that answers instead: another forwarder, a local app, a fixed answer.
    :param rules: What is answered by the other one.
    :param kind: What answers are called that are the other's: in the field ``X-Gateway-Fallback``
        and in the log.
    :param acts: Whether the other app does what requests want; a fixed answer does not, so it may
        answer any.
    :raises ValueError: *kind* is no word.
    """

    def __init__(
        self,
        app: WSGIApplication,
        other: WSGIApplication,
        *,
        rules: FallbackRules | None = None,
        kind: str = "app",
        acts: bool = True,
    ) -> None:
        if not is_token(kind):
            raise ValueError(f"kind: a word, not {kind!r}")
        self.app = app
        self._other = other
        self._rules = FallbackRules() if rules is None else rules
        self._kind = kind
        self._acts = acts

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        rules = self._rules
        if environ["REQUEST_METHOD"] not in rules.methods or "HTTP_UPGRADE" in environ:
            return self.app(environ, start_response)
        before = [environ.get(key, _ABSENT) for key in _OF_THE_REQUEST]
        body: KeptBody | None = None
        if self._acts and _has_body(environ):
            environ["wsgi.input"] = body = KeptBody(environ["wsgi.input"], BUFFER)

        def choose(status: int, error: Exception | None) -> WSGIApplication | None:
            reason = reason_of(environ.get(FAILURE), error is not None)
            if not rules.replaces(status, reason):
                return None
            if self._acts and not may_ask_another(
                environ["REQUEST_METHOD"],
                reason,
                keyed="HTTP_IDEMPOTENCY_KEY" in environ,
                body_lost=body is not None and body.too_large,
            ):
                return None
            return instead

        def instead(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            if body is not None:
                environ["wsgi.input"] = body.again()
            environ.pop(FAILURE, None)
            environ.pop("werkzeug.request", None)  # with what was read of it
            for key, value in zip(_OF_THE_REQUEST, before, strict=True):
                if value is _ABSENT:
                    environ.pop(key, None)
                else:
                    environ[key] = value
            shaped(environ, f"fallback={self._kind}")
            return self._other(environ, marked(start_response, self._kind))

        return answer_instead(self.app, environ, start_response, choose)


def _has_body(environ: WSGIEnvironment) -> bool:
    length = environ.get("CONTENT_LENGTH")
    return length not in (None, "", "0") or "HTTP_TRANSFER_ENCODING" in environ
