"""How a request reaches an instance: a transport adapter of our own, and sessions that carry it.

A session only carries configuration here: adapters, TLS verification, client certificates.
Requests go through ``session.get_adapter(url).send(...)``, never through ``session.send``: that
keeps cookies (one user's would be sent with the next user's request), reads and drops the body of
every redirect, and raises on a malformed ``Location``. ``trust_env`` is off, or a ``.netrc`` entry
would replace the client's own credentials.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter

from wsgigate.client.connections import ConnectionPool, Limits
from wsgigate.client.dial import Cert, Check, Contexts, Verify, dialer
from wsgigate.client.http11 import Deadline, exchange, request_head, upload_of
from wsgigate.client.response import RawResponse, Reply
from wsgigate.client.response_reader import ResponseReader
from wsgigate.rules.pace import Pace, PaceRules, is_stream
from wsgigate.runtime import fork

__all__ = ["Adapter", "Sessions", "Timeout", "gateway_session"]


_REPEATABLE = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))

_MOST_POOLS = 1000

_FOREVER = 86_400.0


class Timeout(tuple[float, float]):
    """A timeout as ``requests`` takes it, and one for all of it until the response has begun.

    Without one, a head that comes byte by byte is never late. The time that the request's body
    takes to be sent is not part of it.

    :param connect: Seconds to wait for a connection.
    :param read: Seconds to wait for each part of the response.
    :param total: Seconds until the head of the response is in.
    """

    total: float

    def __new__(cls, connect: float, read: float, total: float) -> Timeout:
        made = super().__new__(cls, (connect, read))
        made.total = total
        return made


class Adapter(BaseAdapter):
    """A transport adapter for HTTP/1.1 over TCP, TLS and Unix sockets.

    It sends what it is given and adds nothing but a framing that is missing, is strict about what
    comes back, and keeps connections for the worker's threads to share.

    :param max_idle: How many connections are kept for each instance.
    :param max_open: How many there are for each instance at most; a request waits its connect
        timeout for one of them.
    :param idle_timeout: Seconds for which a connection is kept; below the backends' own.
    :param max_age: Seconds after which a connection is not used again.
    :param check: Asked about each address just before it is connected to.
    :param server_name: The name to ask for and verify by TLS; the instance's host unless given.
    :param pace: How slowly a body may come that is no stream of events.
    :param clock: Seconds of a clock that never steps back.
    :raises ValueError: A setting is not of its form; says which.
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
        """Leave the parent's connections alone: two who share one get each other's answers."""
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
    ) -> Reply:
        """Send a request and return its response, the body unread.

        :raises requests.RequestException: There is no response; says why.
        """
        if proxies:
            raise requests.exceptions.ProxyError("this adapter asks instances, not proxies")
        connect, read, total = _limits(timeout)
        origin: str = getattr(request, "origin", None) or _origin(request.url or "")
        pool = self._pool(origin, verify, cert)
        method = request.method or "GET"
        upload = upload_of(request)
        head = request_head(request, upload, origin)
        upgrade = "Upgrade" in (request.headers or ())
        now = self._clock()  # a client slow to begin its body is not the instance's fault
        if now >= self._sweep_at:
            self._sweep(now)
        deadline = Deadline(read, total, now, self._clock)
        until = min(now + connect, deadline.until)
        holds = getattr(request.headers, "holds", None)
        fresh = getattr(request, "fresh", False)
        connection = pool.take(now, until, fresh=fresh, holds=holds)
        while True:
            reader = ResponseReader(method, upgrade)
            if holds is not None:
                connection.holds = holds
                holds(connection.sock)
            try:
                exchange(connection, head, upload, reader, deadline)
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
            # the instance had closed it, or did so when the request was on its way
            again = self._clock()
            until = min(again + connect, deadline.until)
            connection = pool.take(again, until, fresh=True, holds=holds)
        rules, pace = self._pace, None
        if rules is not None and not reader.complete and not is_stream(reader.fields):
            pace = Pace(rules, read)
            pace.received = len(reader.body)
        raw = RawResponse(connection, reader, read, pace, self._clock)
        return Reply(request, raw, reader)

    def close(self) -> None:
        """Close the idle connections, and those in use once they are given back."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()

    def forget(self, url: str) -> None:
        """Close the connections to an instance that is gone: idle ones now, others once free."""
        for key in [key for key in list(self._pools) if key[0] == url]:
            pool = self._pools.pop(key, None)
            if pool is not None:
                pool.close()

    def pools(self) -> dict[str, ConnectionPool]:
        """Return this process's connections by the instances' URLs."""
        return {key[0]: pool for key, pool in self._pools.items()}

    def _pool(self, origin: str, verify: Verify, cert: Any) -> ConnectionPool:
        key = (origin, verify, tuple(cert) if isinstance(cert, list) else cert)
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
        """Forget the instances that have no connection at the moment."""
        for key, pool in list(self._pools.items()):
            if not pool.open_connections:
                self._pools.pop(key, None)


def _limits(timeout: Any) -> tuple[float, float, float]:
    """Return the seconds to connect, for each read, and for all until the head is in."""
    if type(timeout) is Timeout:
        return timeout[0], timeout[1], timeout.total
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
    """Return a session whose requests reach an instance as they were made.

    :param options: Those of :class:`Adapter`.
    """
    session = requests.Session()
    session.trust_env = False
    session.headers.clear()
    adapter = Adapter(**options)
    for prefix in ("http://", "https://", "http+unix://"):
        session.mount(prefix, adapter)
    return session


class Sessions:
    """One session a process, made on its first use.

    A connection that two processes share mixes their answers up, so a forked worker makes a session
    of its own; the one it inherited is kept, as adapters of others may say goodbye on sockets that
    are its parent's when they are closed.

    :param make: Makes a session.
    """

    def __init__(self, make: Callable[[], requests.Session] = gateway_session) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._session: requests.Session | None = None
        self._adapters: dict[str, BaseAdapter] = {}
        self._inherited: list[requests.Session] = []
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Put the parent's session away."""
        self._lock = threading.Lock()
        if self._session is not None:
            self._inherited.append(self._session)
        self._session = None
        self._adapters = {}

    def current(self) -> requests.Session:
        """Return this process's session."""
        session = self._session
        if session is not None:
            return session
        with self._lock:
            if self._session is None:
                self._session = self._make()
                self._adapters = {}
            return self._session

    def adapter(self, url: str) -> BaseAdapter:
        """Return what this process's session has mounted for the instance at *url*.

        Looked up once for each instance: what is mounted later is for instances yet unknown.

        :raises requests.exceptions.InvalidSchema: There is nothing for such a URL.
        """
        session = self.current()
        adapter = self._adapters.get(url)
        if adapter is None:
            adapter = session.get_adapter(url)
            if len(self._adapters) < _MOST_POOLS:
                self._adapters[url] = adapter
        return adapter

    def forget(self, url: str) -> None:
        """Let go of the instance at *url*, which is gone; its requests under way are finished."""
        adapter = self._adapters.pop(url, None)
        forget = getattr(adapter, "forget", None)
        if forget is not None:
            forget(url)

    def close(self) -> None:
        """Close this process's session and its idle connections."""
        with self._lock:
            if self._session is not None:
                self._session.close()
                self._session = None
                self._adapters = {}
