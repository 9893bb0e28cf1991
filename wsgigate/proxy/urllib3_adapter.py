"""A urllib3 transport adapter, as an alternative to the default HTTP/1.1 client.

Enable it with ``session.mount("http://", UrllibAdapter())``. It is slower than the default adapter,
and as strict as ``http.client`` can be made.
"""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Callable
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.models import Response
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util import SKIP_HEADER

from wsgigate.client.dial import Check, check_target
from wsgigate.client.http11 import Fields
from wsgigate.client.response_reader import BLOCK
from wsgigate.runtime.tls import Contexts

__all__ = ["UrllibAdapter"]


_MOST_INTERIM = 10

_MOST_TRAILERS = 100

_LONGEST_CHUNK_LINE = 8192

_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}[ \t]*(?:;[^\r\n]*)?\r\n")


class _Head:
    """Reads a response head line by line for ``http.client``; rejects malformed lines."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.complete = False

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self._stream.readline(limit)
        if line and (not line.endswith(b"\r\n") or line[:1] in (b" ", b"\t")):
            raise http.client.HTTPException("malformed response head")
        self.complete = line == b"\r\n"
        if line[-3:-2] in (b" ", b"\t") and b":" in line:
            return line[:-2].rstrip(b" \t") + b"\r\n"  # not part of the value (RFC 9112, 5.1)
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Reply(http.client.HTTPResponse):
    """A strict response, which cannot hide another one (response smuggling).

    ``http.client`` treats every 1xx except 100 as the final response: the connection would return
    to the pool, and the next user would receive this user's response. It also accepts a head
    without an end, drops the lines after a malformed one, and parses chunk sizes with ``int()``.
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
        for _ in range(_MOST_INTERIM + 1):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if version not in ("HTTP/1.0", "HTTP/1.1"):
                raise http.client.UnknownProtocol(version)
            if not 100 <= status < 200 or status == 101:
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException("too many interim responses")


class _Exact:
    """A connection that sends the target unchanged, and adds no fields."""

    on_socket: Callable[[Any], object] | None = None

    def request(
        self, method: str, url: str, body: Any = None, headers: Any = None, **options: Any
    ) -> None:
        if isinstance(headers, Fields):
            url = headers.target
            names = {name.lower() for name in headers}
            for name in ("user-agent", "accept-encoding"):
                if name not in names:
                    headers[name] = SKIP_HEADER
            self.on_socket = getattr(headers, "on_socket", None)
            if self.on_socket is not None:
                connection: Any = self
                if connection.sock is None:
                    connection.connect()
                self.on_socket(connection.sock)
        super().request(method, url, body=body, headers=headers, **options)  # type: ignore[misc]


class _Checked:
    """A connection that checks the address it connects to, after name resolution."""

    check: Check | None = None

    def _new_conn(self) -> socket.socket:
        connection: Any = self
        dial: Callable[[], socket.socket] = super()._new_conn  # type: ignore[misc]
        if self.check is None:
            return dial()
        host: str = connection._dns_host
        try:
            found = socket.getaddrinfo(host, connection.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise NewConnectionError(connection, f"no address: {error}") from error
        failure: Exception = NewConnectionError(connection, "the host has no address")
        for *_, target in found:
            try:
                check_target(self.check, target)
            except PermissionError as error:
                failure = NewConnectionError(connection, str(error))
                continue
            connection._dns_host = target[0]  # otherwise the name would be resolved again
            try:
                return dial()
            except (NewConnectionError, ConnectTimeoutError) as error:
                failure = error
            finally:
                connection._dns_host = host
        raise failure


class _Connection(_Checked, _Exact, HTTPConnection):
    response_class = _Reply


class _TLSConnection(_Checked, _Exact, HTTPSConnection):
    response_class = _Reply


class _Releasing:
    def _put_conn(self, conn: Any) -> None:
        if conn is not None and conn.on_socket is not None:
            conn.on_socket(None)
            conn.on_socket = None
        super()._put_conn(conn)  # type: ignore[misc]


class _Pool(_Releasing, HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(_Releasing, HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


def _pools(check: Check | None) -> dict[str, type]:
    """Return the pool classes by scheme, with connections that apply *check*."""
    if check is None:
        return {"http": _Pool, "https": _TLSPool}
    checked = {"check": staticmethod(check)}
    made = {}
    for scheme, pool in (("http", _Pool), ("https", _TLSPool)):
        connection = type("_CheckedConnection", (pool.ConnectionCls,), checked)
        made[scheme] = type("_CheckedPool", (pool,), {"ConnectionCls": connection})
    return made


class UrllibAdapter(HTTPAdapter):
    """The transport adapter of ``requests``, prevented from changing what it sends.

    :param instances: Maximum number of instances with idle connections.
    :param connections: Maximum idle connections per instance; use the number of threads.
    :param check: Called with each address and port before connecting; raises ValueError to reject.
    """

    def __init__(
        self, *, instances: int = 100, connections: int = 32, check: Check | None = None
    ) -> None:
        self._check = check
        self._contexts = Contexts()
        super().__init__(pool_connections=instances, pool_maxsize=connections, max_retries=0)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, blocksize=BLOCK, **options)
        self.poolmanager.pool_classes_by_scheme = _pools(self._check)

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[Any, Any]:
        host, how = super().build_connection_pool_key_attributes(request, verify, cert)
        if host["scheme"] != "https":
            return host, how
        cert = tuple(cert) if isinstance(cert, list) else cert
        verify = verify if isinstance(verify, str) else bool(verify)
        return host, {"ssl_context": self._contexts.get(verify, cert)}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Do nothing: the TLS context verifies."""

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> Response:
        """Return *resp* as a ``Response``, without the parts that a gateway must not use."""
        response = Response()
        response.status_code = resp.status
        response.reason = resp.reason
        response.raw = resp
        response.url = req.url or ""
        response.request = req
        return response
