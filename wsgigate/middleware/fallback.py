"""A fallback: another app responds if the first one fails."""

from __future__ import annotations

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.bodies import buffer_body
from wsgigate.http.fields import is_token
from wsgigate.http.responses import record_shaping, replaceable_response, with_fallback_field
from wsgigate.http.wsgi import FAILURE
from wsgigate.rules.arguments import checked
from wsgigate.rules.fallback import FallbackRules, may_ask_another, reason_of
from wsgigate.telemetry.decisions import SHAPING

__all__ = ["Fallback"]

_OF_THE_REQUEST = (
    *("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "RAW_URI", "REQUEST_URI"),
    *("CONTENT_TYPE", "CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "wsgi.input_terminated"),
)
"""Restored for the fallback app, as the first app may have changed them, as a mount does. Header
fields are not restored: the first app may have removed a forged one."""

_ABSENT = object()

BUFFER = 64 * 1024
"""Maximum number of body bytes that are kept for the fallback app."""


@checked
class Fallback:
    """Call another app for requests that *app* fails to serve.

    *rules* define a failure: by default a 502, 503 or 504 response to GET, HEAD and OPTIONS. The
    fallback app gets the same request. A request with an unsafe method reaches it only if nothing
    of the request was sent upstream: otherwise it may have been processed. The first 64 KiB of the
    request body are kept; if *app* has read more, the request is not passed to the fallback app.

    :param app: The WSGI application that is called first, such as a forwarder.
    :param other: The fallback app: another forwarder, a local app, a fixed response.
    :param rules: Which responses are replaced.
    :param kind: Name of the fallback in the field ``X-Gateway-Fallback`` and in the log.
    :param acts: Whether the fallback app processes the request. A fixed response does not, so it
        may replace the response to any request.
    :raises ValueError: *kind* is not a token.
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
            raise ValueError(f'kind: expected a word such as "app", not {kind!r}')
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
        body = buffer_body(environ, BUFFER) if self._acts else None

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
                body.rewind()
                environ["wsgi.input"] = body
            environ.pop(FAILURE, None)
            environ.pop("werkzeug.request", None)  # it caches the body that was read
            for key, value in zip(_OF_THE_REQUEST, before, strict=True):
                if value is _ABSENT:
                    environ.pop(key, None)
                else:
                    environ[key] = value
            record_shaping(environ, f"fallback={self._kind}")
            SHAPING.labels("fallback", self._kind).add()
            return self._other(environ, with_fallback_field(start_response, self._kind))

        return replaceable_response(self.app, environ, start_response, choose)
