"""One case of the safety suite for proxies: its name, its rule, and its script."""

from __future__ import annotations

import inspect
import io
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias
from urllib.parse import unquote_to_bytes, urlsplit
from wsgiref.types import WSGIApplication, WSGIEnvironment

from wsgigate.http.wsgi import ExcInfo, Headers, close_body, environ_key
from wsgigate.testing.backend import Backend, Received

__all__ = ["Answer", "Case", "Cases", "Make", "ProxyUnderTest"]


# Both ends of a proxy: a client that calls it like a server does, and the backend.

HOST = "gate.test"

PEER = "192.0.2.7"


class _WsgiInput(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class Answer:
    """A response as the server of a WSGI app sees it.

    An app that raises before it has answered is a 500, as it is with every server.

    :ivar status: The status code.
    :ivar headers: The fields as they were given to ``start_response``.
    :ivar body: The part of the body that was read so far.
    :ivar raised: The exception of the app or its iterable, if any.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self.body = b""
        self.raised: Exception | None = None
        self._iterable: Iterable[bytes] = ()
        self._chunks: Iterator[bytes] = iter(())

    def begin(self, app: WSGIApplication, environ: WSGIEnvironment) -> None:
        try:
            self._iterable = app(environ, self._start_response)
            self._chunks = iter(self._iterable)
            if not self.status:  # many start late, at the first chunk
                self.next()
        except Exception as error:
            self.raised = error
        if not self.status:
            self.status = 500

    def _start_response(
        self, status: str, headers: Headers, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        self.status = int(status[:3])
        self.headers = list(headers)
        return self._write

    def _write(self, data: bytes) -> None:
        self.body += data

    def next(self) -> bytes:
        """Return the next non-empty chunk of the body; empty at its end."""
        for chunk in self._chunks:
            if chunk:
                self.body += chunk
                return chunk
        return b""

    def finish(self) -> Answer:
        """Read the rest of the body, and close the iterable."""
        try:
            while self.raised is None and self.next():
                pass
        except Exception as error:
            self.raised = error
        self.close()
        return self

    def close(self) -> None:
        """Close the iterable, as a server does when the client has left."""
        close_body(self._iterable)

    def values(self, name: str) -> list[str]:
        """Return the values of every field of that name, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def cut(self) -> bool:
        """Whether the server truncates the response: the app raised an exception."""
        return self.raised is not None


class ProxyUnderTest:
    """One proxy in front of one backend, for one case.

    :ivar backend: The backend.
    """

    def __init__(self, backend: Backend, make: Callable[..., WSGIApplication]) -> None:
        self.backend = backend
        self._make = make
        self._app: WSGIApplication | None = None

    def proxy(self, **options: Any) -> None:
        """Make the proxy with *options*; if this is not called, it has none.

        :raises NotImplementedError: It does not support these options.
        """
        try:
            inspect.signature(self._make).bind(self.backend.url, **options)
        except TypeError as error:
            raise NotImplementedError(str(error)) from None
        self._app = self._make(self.backend.url, **options)

    def open(
        self,
        target: str = "/",
        *,
        method: str = "GET",
        fields: Iterable[tuple[str, str]] = (),
        body: bytes | _WsgiInput = b"",
        chunked: bool = False,
        environ: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Send a request and return its response as soon as it has begun.

        :param target: The request target, exactly as in the request line.
        :param body: The body, or a file to read it from; *fields* then give its length.
        :param chunked: Whether it has chunked framing.
        :param environ: Further keys; a key whose value is None is removed.
        """
        if self._app is None:
            self.proxy()
        assert self._app is not None
        answer = Answer()
        made = {**_environ(method, target, fields, body, chunked), **(environ or {})}
        answer.begin(self._app, {key: item for key, item in made.items() if item is not None})
        return answer

    def send(self, target: str = "/", **options: Any) -> Answer:
        """Send a request and return its complete response; arguments as for :meth:`open`."""
        return self.open(target, **options).finish()

    @property
    def received(self) -> Received:
        """The one request that reached the backend."""
        requests = self.backend.requests
        assert len(requests) == 1, f"{len(requests)} requests reached the backend"
        return requests[0]

    def refused(self, answer: Answer) -> None:
        """Check that the request was rejected, and did not reach the backend."""
        lines = [request.line for request in self.backend.requests]
        assert not lines, f"it reached the backend as {lines[0]!r}"
        assert answer.status >= 400, f"it was answered with {answer.status}"


def _environ(
    method: str,
    target: str,
    fields: Iterable[tuple[str, str]],
    body: bytes | _WsgiInput,
    chunked: bool,
) -> WSGIEnvironment:
    """Return the environ that gunicorn makes of such a request, with both raw target keys."""
    path, _, query = target.partition("?")
    if not path.startswith(("/", "*")):
        path = urlsplit(path).path
    environ: WSGIEnvironment = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path.encode("latin-1")).decode("latin-1"),
        "QUERY_STRING": query,
        "RAW_URI": target,
        "REQUEST_URI": target,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": HOST,
        "SERVER_PORT": "80",
        "SERVER_SOFTWARE": "wsgigate.testing",
        "REMOTE_ADDR": PEER,
        "REMOTE_PORT": "50000",
        "HTTP_HOST": HOST,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body) if isinstance(body, bytes) else body,
        "wsgi.input_terminated": True,
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if chunked:
        environ["HTTP_TRANSFER_ENCODING"] = "chunked"
    elif isinstance(body, bytes) and body:
        environ["CONTENT_LENGTH"] = str(len(body))
    for name, value in fields:
        key = environ_key(name)
        if key in environ and key != "HTTP_HOST":
            value = f"{environ[key]},{value}"
        environ[key] = value
    return environ


Make: TypeAlias = Callable[..., WSGIApplication]
"""``make(url, **options)``: a proxy in front of the backend at *url*."""

LONGEST = 10.0
"""Seconds after which a case fails that has not ended."""


@dataclass(frozen=True)
class Case:
    """One requirement for a proxy.

    :ivar id: Its name, such as ``early-hints``.
    :ivar rule: The number of its forwarding rule, 1 to 10.
    :ivar says: The requirement, in a sentence.
    """

    id: str
    rule: int
    says: str
    script: Callable[[ProxyUnderTest], None]

    def __str__(self) -> str:
        return self.id

    def check(self, make: Make) -> None:
        """Run the case.

        :raises AssertionError: The proxy fails it; the message says how.
        :raises NotImplementedError: The proxy does not have the feature at all.
        """
        outcome: list[BaseException | None] = []

        def run(exchange: ProxyUnderTest) -> None:
            try:
                self.script(exchange)
                outcome.append(None)
            except BaseException as error:
                outcome.append(error)

        with Backend() as backend:
            exchange = ProxyUnderTest(backend, make)
            # In a separate thread: a proxy that hangs must not block the test.
            thread = threading.Thread(target=run, args=(exchange,), daemon=True)
            thread.start()
            thread.join(LONGEST)
            error = outcome[0] if outcome else AssertionError(f"no end after {LONGEST:.0f} s")
        if error is None:
            return
        if isinstance(error, AssertionError | NotImplementedError):
            raise error
        raise AssertionError(f"{type(error).__name__}: {error}") from error


class Cases(list[Case]):
    """A list that a decorator fills: ``@cases(3, "early-hints")`` on a script with a docstring."""

    def __call__(self, rule: int, id: str) -> Callable[[Callable[[ProxyUnderTest], None]], Any]:
        def add(script: Callable[[ProxyUnderTest], None]) -> Callable[[ProxyUnderTest], None]:
            says = " ".join((script.__doc__ or "").split())
            self.append(Case(id, rule, says, script))
            return script

        return add
