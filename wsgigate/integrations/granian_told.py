"""What granian and a gateway mean by requests and responses, told each as it expects it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from operator import itemgetter
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.problem import Problem
from wsgigate.wsgi import REASON, ExcInfo, Headers

__all__ = ["Told"]

MOST_AT_ONCE = 65536
"""Bytes of a response that is read to its end before it is sent, when it says its length."""

_PROTOCOLS = {"HTTP/1": "HTTP/1.0", "HTTP/2": "HTTP/2.0"}
_WITH_BODY = frozenset(("PATCH", "POST", "PUT"))
_NO_LENGTH = Problem(411, "Length required.")
_name_of = itemgetter(0)
_CUT = Problem(502, "Bad gateway", extensions={"error": "Invalid response"})


class Told:
    """Tell *app* of requests, and granian of responses, what each expects of the other.

    granian sends the head before it asks for the first chunk, though an app may start its response
    as late as then (PEP 3333): so the first chunk is asked for here. A short response is read to
    its end, as one that is sent at once costs granian much less.

    :param app: The WSGI application.
    :param inherited: The environment variables of this process, which granian puts into every
        environ: one called ``HTTP_...`` would pass for a request field.
    """

    def __init__(self, app: WSGIApplication, inherited: Iterable[tuple[str, str]] = ()) -> None:
        self.app = app
        self._inherited = tuple(
            (name, value)
            for name, value in inherited
            if name.startswith(("HTTP_", "CONTENT_", "REQUEST_", "RAW_", "REMOTE_", "wsgi"))
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._inherited:
            self._forget(environ)
        protocol = environ["SERVER_PROTOCOL"]
        if protocol != "HTTP/1.1":
            environ["SERVER_PROTOCOL"] = _PROTOCOLS.get(protocol, protocol)
            if protocol == "HTTP/1" and not environ.get("HTTP_HOST"):
                environ.pop("HTTP_HOST", None)
        if not environ.get("CONTENT_LENGTH") and (
            "HTTP_TRANSFER_ENCODING" in environ
            or (protocol == "HTTP/2" and environ["REQUEST_METHOD"] in _WITH_BODY)
        ):
            environ[REASON] = "a body without a length, which granian would not tell from a cut one"
            return _NO_LENGTH(environ, start_response)
        head = _Head(start_response)
        body = self.app(environ, head.start_response)
        if type(body) is list:
            return body
        rest = _Rest(body)
        length = head.length()
        if length is None or length > MOST_AT_ONCE:
            return rest
        try:
            whole = b"".join(rest)
        except ConnectionError:
            return _CUT(environ, start_response)
        finally:
            rest.close()
        if len(whole) != length and environ["REQUEST_METHOD"] != "HEAD" and not head.bodiless():
            return _CUT(environ, start_response)
        return [whole]

    def _forget(self, environ: WSGIEnvironment) -> None:
        """Remove what comes from the environment of this process."""
        for name, value in self._inherited:
            if environ.get(name) == value:
                del environ[name]


class _Head:
    """A response's head, kept for what it says of what is to come."""

    __slots__ = ("_headers", "_start_response", "_status")

    def __init__(self, start_response: StartResponse) -> None:
        self._start_response = start_response
        self._status = ""
        self._headers: Headers = []

    def start_response(
        self, status: str, headers: Headers, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        self._status = status
        self._headers = headers
        if exc_info:
            return self._start_response(status, headers, exc_info)
        return self._start_response(status, headers)

    def length(self) -> int | None:
        """Return the length that the head promises, None when it promises none."""
        names = [*map(str.lower, map(_name_of, self._headers))]
        if "content-length" not in names:
            return None
        value = self._headers[names.index("content-length")][1]
        return int(value) if value.isdigit() else None

    def bodiless(self) -> bool:
        """Return whether the status has no body, whatever the length."""
        return self._status[:3] in ("204", "304")


class _Rest:
    """A body whose first chunk has been asked for."""

    __slots__ = ("_body", "_chunks", "_first")

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body
        self._first: tuple[bytes, ...] = ()
        try:
            self._chunks = iter(body)
            self._first = tuple(islice(self._chunks, 1))
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        yield from self._first
        # Not "yield from", which would close an iterator that close() closes again.
        for chunk in self._chunks:  # noqa: UP028
            yield chunk

    def close(self) -> None:
        body, self._body = self._body, ()
        close = getattr(body, "close", None)
        if close is not None:
            close()
