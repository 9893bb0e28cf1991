"""How a request reaches an instance: a ``requests`` session fit for a gateway.

A session only carries configuration here: adapters, TLS verification, client certificates.
Requests go through ``session.get_adapter(url).send(...)``, never through ``session.send``: that
keeps cookies (one user's would be sent with the next user's request), reads and drops the body of
every redirect, and raises on a malformed ``Location``. ``trust_env`` is off, or a ``.netrc`` entry
would replace the client's own credentials.
"""

from __future__ import annotations

import http.client
import os
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.models import Response
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import SKIP_HEADER

__all__ = ["Adapter", "Fields", "Sessions", "gateway_session"]

BLOCK = 65536
"""Bytes moved at a time, each way."""

_MOST_INTERIM = 10
_MOST_TRAILERS = 100
_LONGEST_CHUNK_LINE = 8192
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}[ \t]*(?:;[^\r\n]*)?\r\n")


class Fields(dict[str, str]):
    """Request fields on their way to the wire, with the exact request target they go with."""

    __slots__ = ("target",)

    def __init__(self, fields: Mapping[str, str] | Any = (), target: str = "") -> None:
        super().__init__(fields)
        self.target = target

    def copy(self) -> Fields:
        return Fields(self, self.target)


class _Head:
    """A response head as ``http.client`` reads it, line by line, that lets no odd line pass."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.complete = False

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self._stream.readline(limit)
        if line and (not line.endswith(b"\r\n") or line[:1] in (b" ", b"\t")):
            raise http.client.HTTPException("malformed response head")
        self.complete = line == b"\r\n"
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Reply(http.client.HTTPResponse):
    """A response read as strictly as one that somebody else's may be hidden behind.

    ``http.client`` takes every 1xx but 100 for the final response: its connection would go back to
    the pool, and the next user would read this user's answer. It also takes a head without an end
    for a whole one, drops what follows a malformed line, and reads chunk sizes as Python would.
    """

    chunk_left: int | None

    def begin(self) -> None:
        stream = self.fp
        head = _Head(stream)
        self.fp = head  # type: ignore[assignment]
        try:
            super().begin()
        finally:
            self.fp = stream
        if not head.complete or self.msg.defects:
            raise http.client.HTTPException("malformed response head")

    def _get_chunk_left(self) -> int | None:
        if not self.chunk_left:
            if self.chunk_left is not None and self._safe_read(2) != b"\r\n":  # type: ignore[attr-defined]
                raise http.client.HTTPException("malformed chunk")
            size = self.fp.readline(_LONGEST_CHUNK_LINE)
            if not _CHUNK_SIZE.fullmatch(size):
                raise http.client.HTTPException("malformed chunk size")
            self.chunk_left = int(size.partition(b";")[0], 16) or None
            if self.chunk_left is None:
                self._end_chunks()
        return self.chunk_left

    def _end_chunks(self) -> None:
        for _ in range(_MOST_TRAILERS):
            line = self.fp.readline(_LONGEST_CHUNK_LINE)
            if line == b"\r\n":
                self._close_conn()  # type: ignore[attr-defined]
                return
            if not line.endswith(b"\r\n"):
                break
        raise http.client.HTTPException("malformed end of chunks")

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(_MOST_INTERIM):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 100 <= status < 200 or status == 101:
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException("too many interim responses")


class _Exact:
    """A connection that sends the target as it is, and no field that was not asked for."""

    def request(
        self, method: str, url: str, body: Any = None, headers: Any = None, **options: Any
    ) -> None:
        if isinstance(headers, Fields):
            url = headers.target
            names = {name.lower() for name in headers}
            for name in ("user-agent", "accept-encoding"):
                if name not in names:
                    headers[name] = SKIP_HEADER
        super().request(method, url, body=body, headers=headers, **options)  # type: ignore[misc]


class _Connection(_Exact, HTTPConnection):
    response_class = _Reply


class _TLSConnection(_Exact, HTTPSConnection):
    response_class = _Reply


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class Adapter(HTTPAdapter):
    """``requests``' own transport adapter, kept from changing what it sends.

    :param instances: For how many instances connections are kept; one more would close another's.
    :param connections: How many idle connections are kept for each; as many as there are threads.
    """

    def __init__(self, *, instances: int = 100, connections: int = 32) -> None:
        super().__init__(pool_connections=instances, pool_maxsize=connections, max_retries=0)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, blocksize=BLOCK, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> Response:
        """Return *resp* as a ``Response`` without the parts a gateway must not or need not fill."""
        response = Response()
        response.status_code = resp.status
        response.reason = resp.reason
        response.raw = resp
        response.url = req.url or ""
        response.request = req
        return response


def gateway_session() -> requests.Session:
    """Return a session whose requests reach an instance as they were made."""
    session = requests.Session()
    session.trust_env = False
    session.headers.clear()
    adapter = Adapter()
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


class Sessions:
    """One session a process, made on its first use.

    A connection that two processes share mixes their answers up, so a forked worker makes a session
    of its own; the one it inherited is kept, untouched, because closing it would speak on sockets
    that are its parent's.

    :param make: Makes a session.
    """

    def __init__(self, make: Callable[[], requests.Session] = gateway_session) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._pid = 0
        self._session: requests.Session | None = None
        self._inherited: list[requests.Session] = []

    def current(self) -> requests.Session:
        """Return this process's session."""
        if self._pid == os.getpid() and self._session is not None:
            return self._session
        with self._lock:
            if self._pid != os.getpid() or self._session is None:
                if self._session is not None:
                    self._inherited.append(self._session)
                self._session = self._make()
                self._pid = os.getpid()
            return self._session

    def close(self) -> None:
        """Close this process's session and its idle connections."""
        with self._lock:
            if self._session is not None and self._pid == os.getpid():
                self._session.close()
                self._session = None
