"""The transport adapter of the HTTP/1.1 client, its responses, and the sessions that hold it.

Theory of operation. One request passes through these modules, in this order:

1. ``http11.upload_of`` reads the first block of the request body, before anything is reserved, so
   that a slow client occupies no connection.
2. ``connections.ConnectionPool`` lends one connection, idle or new (``dial``).
3. ``http11.send_request`` writes the head and the body and feeds received bytes to a
   ``response_reader.ResponseReader`` until the final head is complete.
4. A response that arrived whole returns the connection to its pool at once;
   ``http11.StreamedResponse`` streams the body of another one, and returns it then.

Rules that must hold:

- A connection serves one request at a time, and returns to the pool only when the response was
  complete by its own framing and nothing followed it. Otherwise the next user would receive the
  rest of this user's response.
- A request is repeated automatically only on a reused connection, only before any byte of a
  response has arrived, only while its body can be sent again, and only for an idempotent method.
  An instance may close an idle connection at the moment a request is sent; nothing else justifies
  sending a request twice.
- The head of a forwarded request is written as given; only a missing framing field is added,
  because the instance could not find the end of the body without it. Requests that were prepared by
  ``requests`` itself also get a missing ``Host``, and lose ``Expect``.
- Requests go through ``session.get_adapter(url).send(...)``, never through ``session.send``. The
  latter keeps cookies (one user's cookies would be sent with the next user's request), reads and
  drops the body of every redirect, and raises on a malformed ``Location``. A session therefore only
  carries configuration here: adapters, TLS verification, client certificates.
- ``trust_env`` is off; a ``.netrc`` entry would replace the client's own credentials.
- A forked worker never uses a connection of its parent: two processes that share a connection
  receive each other's responses.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers

from wsgigate.client.connections import ConnectionPool, Limits
from wsgigate.client.dial import Check, dialer
from wsgigate.client.http11 import (
    ExchangeDeadline,
    Fields,
    RawResponse,
    StreamedResponse,
    head_bytes,
    request_head,
    send_request,
    upload_of,
)
from wsgigate.client.response_reader import ResponseReader
from wsgigate.rules.pace import Pace, PaceRules, is_stream
from wsgigate.runtime import fork
from wsgigate.runtime.tls import Cert, Contexts, Verify

__all__ = ["Adapter", "LazyResponse", "Sessions", "Timeout", "gateway_session"]


_REPEATABLE = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))

_MOST_POOLS = 1000

_FOREVER = 86_400.0


class Timeout(tuple[float, float]):
    """A ``requests`` timeout (connect, read) with a total until the response head is complete.

    Without a total, a head that arrives byte by byte never times out. The time spent sending the
    request body does not count.

    :param connect: Seconds to wait for a connection.
    :param read: Seconds to wait for each part of the response.
    :param total: Seconds until the response head is complete.
    """

    total: float

    def __new__(cls, connect: float, read: float, total: float) -> Timeout:
        made = super().__new__(cls, (connect, read))
        made.total = total
        return made


class Adapter(BaseAdapter):
    """A transport adapter for HTTP/1.1 over TCP, TLS and Unix sockets.

    It sends a request as given, adds only a missing framing field, validates responses strictly,
    and keeps idle connections that all threads of the worker share.

    :param max_idle: Maximum idle connections per instance.
    :param max_open: Maximum open connections per instance; above it, a request waits up to its
        connect timeout for a free one.
    :param idle_timeout: Seconds an idle connection is kept; below the instances' own timeout.
    :param max_age: Seconds after which a connection is not reused.
    :param check: Called with each address and port before connecting; raises ValueError to reject.
    :param server_name: Name for TLS SNI and certificate verification. Default: the instance's host.
    :param pace: Minimum rate of response bodies other than event streams.
    :param clock: Monotonic clock, in seconds.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        *,
        max_idle: int = 32,
        max_open: int = 1000,
        idle_timeout: float = 4.0,
        max_age: float = 60.0,
        check: Check | None = None,
        server_name: str | None = None,
        pace: PaceRules = PaceRules(),  # noqa: B008 - it is frozen
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._dialing: Mapping[str, Any] = {"check": check, "server_name": server_name}
        self._limits = Limits(max_idle, max_open, idle_timeout, max_age)
        self._clock = clock
        self._pace = pace if pace.limits else None
        self._contexts = Contexts()
        self._pools: dict[tuple[str, Verify, Cert], ConnectionPool] = {}
        self._sweep_at = 0.0
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Drop the parent's connections: processes sharing one receive each other's responses."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.abandon()

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Verify = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> LazyResponse:
        """Send a request and return its response, the body unread.

        :raises requests.RequestException: No valid response head was received.
        """
        if proxies:
            raise requests.exceptions.ProxyError(
                "proxies is not supported: the adapter connects to instances directly"
            )
        if type(timeout) is Timeout:
            connect, read = timeout
            total = timeout.total
        else:
            connect, read, total = _limits(timeout)
        origin: str = getattr(request, "origin", None) or _origin(request.url or "")
        pool = self.pool(origin, verify, cert)
        method = request.method or "GET"
        upload = upload_of(request)
        fields: Any = request.headers
        if type(fields) is Fields and (upload is None or upload.field is None):
            head = head_bytes(method, fields.target, fields)
        else:
            head = request_head(request, upload, origin)
        upgrade = "Upgrade" in (fields or ())
        now = self._clock()  # after reading the first block: a slow client is not counted
        if now >= self._sweep_at:
            self._sweep(now)
        deadline = ExchangeDeadline(read, total, now, self._clock)
        until = min(now + connect, deadline.until)
        on_socket = getattr(fields, "on_socket", None)
        fresh, meter = getattr(request, "fresh", False), getattr(request, "connections", None)
        connection = pool.acquire(now, until, fresh=fresh, on_socket=on_socket, meter=meter)
        while True:
            reader = ResponseReader(method, upgrade)
            if on_socket is not None:
                connection.on_socket = on_socket
                on_socket(connection.sock)
            try:
                send_request(connection, head, upload, reader, deadline)
                break
            except requests.Timeout:
                connection.close()
                raise
            except requests.ConnectionError:
                connection.close()
                unread = upload is None or upload.replayable
                if not connection.reused or reader.begun or not unread:
                    raise
                if method not in _REPEATABLE:
                    raise
            except BaseException:
                connection.close()
                raise
            # the instance closed the idle connection before or while the request was sent
            again = self._clock()
            until = min(again + connect, deadline.until)
            connection = pool.acquire(again, until, fresh=True, on_socket=on_socket, meter=meter)
        if reader.complete:
            connection.give_back(reader.keep)
            return LazyResponse(request, reader)
        rules, pace = self._pace, None
        if rules is not None and not is_stream(reader.fields):
            pace = Pace(rules, read)
            pace.received = len(reader.body)
        response = LazyResponse(request, reader)
        response.raw = StreamedResponse(connection, reader, read, pace, self._clock)
        return response

    def close(self) -> None:
        """Close idle connections now, and connections in use when they are returned."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()

    def forget(self, url: str) -> None:
        """Close the connections to a removed instance: idle ones now, others when returned."""
        for key in [key for key in list(self._pools) if key[0] == url]:
            pool = self._pools.pop(key, None)
            if pool is not None:
                pool.close()

    def pools(self) -> dict[str, ConnectionPool]:
        """Return this process's connection pools by instance URL."""
        return {key[0]: pool for key, pool in self._pools.items()}

    def pool(self, origin: str, verify: Verify = True, cert: Any = None) -> ConnectionPool:
        """Return this process's connections to *origin* under one TLS policy."""
        key = (origin, verify, tuple(cert) if type(cert) is list else cert)
        pool = self._pools.get(key)
        if pool is None:
            if len(self._pools) >= _MOST_POOLS:
                self._prune()
            dial = dialer(origin, verify, key[2], self._contexts, self._clock, **self._dialing)
            pool = self._pools.setdefault(key, ConnectionPool(dial, self._limits, self._clock))
        return pool

    def _sweep(self, now: float) -> None:
        self._sweep_at = now + self._limits.idle_timeout
        for pool in list(self._pools.values()):
            pool.sweep(now)

    def _prune(self) -> None:
        """Remove the pools that have no open connection."""
        for key, pool in list(self._pools.items()):
            if not pool.open_connections:
                self._pools.pop(key, None)


class LazyResponse(requests.Response):
    """A response that computes its headers, cookies and encoding on first access.

    :param request: The request.
    :param reader: The parser that read the head; *raw* is set if it has not read the whole body.
    :ivar reader: The parser.
    :ivar whole: The body, if all of it arrived with the head.
    """

    _content: Any = False
    _content_consumed = False
    _next = None

    def __init__(self, request: requests.PreparedRequest, reader: ResponseReader) -> None:
        self.status_code = reader.status
        self.reason = reader.reason
        self.request = request
        self.url = request.url or ""
        self.reader = reader
        self.whole = reader.body if reader.complete else None

    def __getattr__(self, name: str) -> Any:
        make = _LAZY.get(name)
        if make is None:
            raise AttributeError(f"a response has no {name}")
        value = make(self)
        setattr(self, name, value)
        return value

    def close(self) -> None:
        """Close the connection, unless the body was read to its end."""
        if self.whole is None:
            self.raw.close()


def _headers(reply: LazyResponse) -> CaseInsensitiveDict[str]:
    merged: CaseInsensitiveDict[str] = CaseInsensitiveDict()
    for name, value in reply.raw.headers.items():
        merged[name] = f"{merged[name]}, {value}" if name in merged else value
    return merged


_LAZY: dict[str, Any] = {
    "headers": _headers,
    "raw": lambda reply: RawResponse(None, reply.reader),
    "cookies": lambda _reply: RequestsCookieJar(),
    "encoding": lambda reply: get_encoding_from_headers(reply.headers),
    "history": lambda _reply: [],
    "elapsed": lambda _reply: datetime.timedelta(0),
    "connection": lambda _reply: None,
}


def _limits(timeout: Any) -> tuple[float, float, float]:
    """Return the connect, read and total timeouts of a ``requests`` timeout, in seconds."""
    if isinstance(timeout, tuple):
        connect, read = timeout
    else:
        connect = read = timeout
    connect = _FOREVER if connect is None else connect
    read = _FOREVER if read is None else read
    return connect, read, connect + read


def _origin(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise requests.exceptions.InvalidURL(str(error)) from None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def gateway_session(**options: Any) -> requests.Session:
    """Return a session that sends requests without changing them.

    :param options: Arguments of :class:`Adapter`.
    """
    session = requests.Session()
    session.trust_env = False
    session.headers.clear()
    adapter = Adapter(**options)
    for prefix in ("http://", "https://", "http+unix://"):
        session.mount(prefix, adapter)
    return session


class Sessions:
    """One session per process, created on first use.

    Two processes that share a connection receive each other's responses, so a forked worker creates
    a new session. The inherited session is kept but not used: when collected, third-party adapters
    may write to sockets of the parent (a TLS close, for example).

    :param make: Creates a session.
    :ivar adapters: The adapters of :meth:`adapter` by instance; replaced with the session.
    """

    def __init__(self, make: Callable[[], requests.Session] = gateway_session) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._session: requests.Session | None = None
        self.adapters: dict[str, BaseAdapter] = {}
        self._inherited: list[requests.Session] = []
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Set the parent's session aside, unclosed."""
        self._lock = threading.Lock()
        if self._session is not None:
            self._inherited.append(self._session)
        self._session = None
        self.adapters = {}

    def current(self) -> requests.Session:
        """Return this process's session."""
        fork.notice_fork()
        session = self._session
        if session is not None:
            return session
        with self._lock:
            if self._session is None:
                self._session = self._make()
            return self._session

    def adapter(self, url: str) -> BaseAdapter:
        """Return the adapter that this process's session has mounted for the instance at *url*.

        The result is cached per instance: an adapter mounted later applies to new instances only.

        :raises requests.exceptions.InvalidSchema: No adapter is mounted for the URL.
        """
        adapters = self.adapters  # replaced together with the session
        adapter = adapters.get(url)
        if adapter is None:
            adapter = self.current().get_adapter(url)
            if len(adapters) < _MOST_POOLS:
                adapters[url] = adapter
        return adapter

    def forget(self, url: str) -> None:
        """Drop the removed instance at *url*; its requests in flight finish."""
        adapter = self.adapters.pop(url, None)
        forget = getattr(adapter, "forget", None)
        if forget is not None:
            forget(url)

    def close(self) -> None:
        """Close this process's session and its idle connections."""
        with self._lock:
            if self._session is not None:
                self._session.close()
                self._session = None
                self.adapters = {}
