"""The HTTP client of a registration: with a deadline, without redirects, logging no secrets."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.models import PreparedRequest, Response
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from wsgigate.client.tls import Cert, Verify, context_for, load_client_cert
from wsgigate.registration.entry import Entry, own_address
from wsgigate.rules.registration import RegistryResponse, Step, Wanted
from wsgigate.rules.retry import read_retry_after
from wsgigate.runtime.clocks import real

__all__ = ["DeadlineAdapter", "RegistryClient"]


# A transport adapter with a deadline for each exchange, however the server behaves.
#
# A socket's timeout applies to one read, so a server that sends a byte a second never exceeds it.
# Here the exchange has a deadline, and the timeout of each read is the time that remains.

_MOST_BYTES = 196_608


class _Reader(io.RawIOBase):
    """Reads from a socket until a deadline, and at most :data:`_MOST_BYTES`."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open while it is read
        self._deadline = deadline
        self._left = _MOST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._left <= 0:
            raise http.client.HTTPException("the response is too long")
        self._sock.settimeout(_remaining(self._deadline))
        count = self._raw.readinto(buffer)
        self._left -= count or 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _remaining(deadline: float) -> float:
    left = deadline - real()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


class _SocketLike:
    """The one method of a socket that ``http.client`` uses to read a response."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._reader = _Reader(sock, deadline)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._reader)


class _FinalResponse(http.client.HTTPResponse):
    """A final response; interim responses, such as 103, are skipped."""

    def _read_status(self) -> tuple[str, int, str]:
        while True:  # bounded by the reader
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 102 <= status < 200:
                return version, status, reason
            http.client.parse_headers(self.fp)


class _DeadlineMixin:
    """A connection whose whole exchange ends within its connect timeout."""

    _deadline = 0.0

    def connect(self) -> None:
        seconds: float = self.timeout  # type: ignore[attr-defined]
        self._deadline = real() + seconds
        super().connect()  # type: ignore[misc]

    def _new_conn(self) -> socket.socket:
        sock: socket.socket = super()._new_conn()  # type: ignore[misc]
        try:
            sock.settimeout(_remaining(self._deadline))  # holds for the TLS handshake
        except TimeoutError:
            sock.close()
            raise
        return sock

    def response_class(
        self, sock: socket.socket, *debug: Any, **options: Any
    ) -> http.client.HTTPResponse:
        readable: Any = _SocketLike(sock, self._deadline)
        return _FinalResponse(readable, *debug, **options)


class _Connection(_DeadlineMixin, HTTPConnection):  # type: ignore[misc]
    pass


class _TLSConnection(_DeadlineMixin, HTTPSConnection):  # type: ignore[misc]
    def connect(self) -> None:
        super().connect()
        self.is_verified = True  # unverified only by configuration: no warning for each request


class _UnixConnection(_Connection):
    """A connection to a Unix socket; the host is the path in hexadecimal."""

    def _new_conn(self) -> socket.socket:
        path = bytes.fromhex(self.host).decode()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(_remaining(self._deadline))
            sock.connect(path)
        except TimeoutError as error:
            sock.close()
            raise ConnectTimeoutError(self, "no connection in time") from error
        except OSError as error:
            sock.close()
            raise NewConnectionError(self, f"no connection: {error}") from error
        return sock


class _NoReuse:
    """A pool that keeps no connections: a server may ignore ``Connection: close``."""

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.close()
        super()._put_conn(None)  # type: ignore[misc]


class _Pool(_NoReuse, HTTPConnectionPool):
    ConnectionCls = _Connection


class _UnixPool(_NoReuse, HTTPConnectionPool):
    ConnectionCls = _UnixConnection


class _TLSPool(_NoReuse, HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class DeadlineAdapter(HTTPAdapter):
    """``requests``' transport adapter with a deadline, and one TLS context for all connections.

    The timeout of a request covers the whole exchange: connecting, the TLS handshake and reading
    the response. Requests have ``Connection: close``: each uses a new connection. The TLS context
    is shared, as reading the certificate authorities takes 10 to 20 ms.

    :param verify: Whether to verify TLS, or a file or folder of trusted certificate authorities.
    :param cert: A client certificate: a file with its key, or a pair of files.
    :raises ValueError: A file cannot be used; the message names the argument.
    """

    def __init__(self, verify: Verify = True, cert: Cert = None) -> None:
        self._verify = verify
        self._cert = cert
        self._context: ssl.SSLContext | None = None
        if isinstance(verify, str) or cert is not None:
            self._tls()  # report a missing file now, not at the first request
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        manager = self.poolmanager
        manager.pool_classes_by_scheme = {
            "http": _Pool,
            "https": _TLSPool,
            "http+unix": _UnixPool,
        }
        manager.key_fn_by_scheme["http+unix"] = manager.key_fn_by_scheme["http"]

    def build_connection_pool_key_attributes(
        self, request: PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[Any, Any]:
        parts = urlsplit(request.url or "")
        if parts.scheme == "http+unix":
            path = unquote(parts.netloc).encode().hex()  # host names are converted to lower case
            return {"scheme": parts.scheme, "host": path, "port": None}, {}
        host = {"scheme": parts.scheme, "host": parts.hostname, "port": parts.port}
        return host, {"ssl_context": self._tls()} if parts.scheme == "https" else {}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Do nothing: the TLS context verifies."""

    def build_response(self, req: PreparedRequest, resp: Any) -> Response:
        """Return *resp* with status, header fields and body only; no cookies, no encoding."""
        response = Response()
        response.status_code = resp.status
        response.headers = CaseInsensitiveDict(resp.headers)
        response.raw = resp
        return response

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = _context(self._verify, self._cert)
        return self._context


def _context(verify: Verify, cert: Cert) -> ssl.SSLContext:
    try:
        context = context_for(verify)
    except OSError as error:  # includes ssl.SSLError
        bundle = DEFAULT_CA_BUNDLE_PATH if verify is True else verify
        raise ValueError(f"verify names no usable authorities: {bundle!r}: {error}") from error
    try:
        load_client_cert(context, cert)
    except OSError as error:
        raise ValueError(f"cert names no usable certificate: {cert!r}: {error}") from error
    return context


TIMEOUT = 3.0
"""The most seconds that a request takes."""

_MOST_BODY = 65_536

_LOGGED_TEXT = 200

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


class RegistryClient:
    """Sends the registration, heartbeats and status of an instance to one of several registries.

    :param registries: Their URLs, as :func:`check_registry` returns them.
    :param entry: The registration of the instance.
    :param token: The bearer token; empty for none. It is never logged.
    :param verify: Whether to verify TLS, or a file or folder of trusted certificate authorities.
    """

    def __init__(
        self,
        registries: Sequence[str],
        entry: Entry,
        token: str = "",
        *,
        verify: bool | str = True,
    ) -> None:
        self.registries = tuple(registries)
        self.entry = entry
        self._token = token
        self._host = entry.host
        self._session = requests.Session()
        self._session.trust_env = False
        adapter = DeadlineAdapter(verify)
        for prefix in ("http://", "https://"):
            self._session.mount(prefix, adapter)

    @property
    def name(self) -> str:
        """The name of the instance in the log."""
        service = self.entry.service
        return service if self._host is None else f"{service}/{self.entry.id_at(self._host)}"

    def ask(self, step: Step, wanted: Wanted, place: int) -> RegistryResponse:
        """Send the request for *step* to the registry at index *place*; never raises.

        :param wanted: The status, for steps that send one.
        """
        registry = self.registries[place]
        try:
            if self._host is None:
                self._host = own_address(registry)
            request = self._request(registry, step, wanted, self._host)
            response = self._session.get_adapter(registry).send(
                request, stream=True, timeout=TIMEOUT
            )
            try:
                return self._answer(response, real() + TIMEOUT)
            finally:
                response.close()
        except Exception as error:  # no error may reach the service that runs this
            return RegistryResponse(None, why=self._redacted(_failure(error)))

    def _request(self, registry: str, step: Step, wanted: Wanted, host: str) -> PreparedRequest:
        names = (self.entry.service, self.entry.id_at(host))
        which = "/".join(quote(name, safe=":@") for name in names)
        method, path, document = {
            Step.REGISTER: ("POST", "/register", self.entry.document(host, wanted)),
            Step.HEARTBEAT: ("POST", f"/heartbeat/{which}", None),
            Step.UPDATE: ("PUT", f"/status/{which}", {"status": wanted.value}),
            Step.DEREGISTER: ("DELETE", f"/register/{which}", None),
        }[step]
        headers = {
            "User-Agent": "wsgigate-registration",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        body = b""
        if document is not None:
            body = json.dumps(document, allow_nan=False).encode("ascii")
            headers["Content-Type"] = "application/json"
        headers["Content-Length"] = str(len(body))
        request = PreparedRequest()
        request.method = method
        request.url = registry + path
        request.headers = CaseInsensitiveDict(headers)
        request.body = body
        return request

    def _answer(self, response: Response, deadline: float) -> RegistryResponse:
        status = int(response.status_code)
        retry_after = response.headers.get("Retry-After")
        document = _document(response.raw, deadline)
        return RegistryResponse(
            status,
            interval=_interval(document),
            retry_after=read_retry_after(retry_after, time.time()) if retry_after else None,
            why=self._redacted(_error_text(status, document)),
        )

    def _redacted(self, text: str) -> str:
        """Return *text* for the log, without the token, which a response might repeat."""
        if self._token:
            text = text.replace(self._token, "...")
        return _UNPRINTABLE.sub(" ", text)[:_LOGGED_TEXT]


_FAILURES: tuple[tuple[type[BaseException], str], ...] = (
    (requests.exceptions.SSLError, "TLS verification failed"),
    (requests.exceptions.Timeout, "no answer in time"),
    (TimeoutError, "no answer in time"),
    (requests.exceptions.ConnectionError, "no connection"),
    (socket.gaierror, "its host name cannot be resolved"),
    (OSError, "no route to its host"),
)


def _failure(error: Exception) -> str:
    """Return why a request failed, in fixed texts that contain no secrets."""
    for kind, text in _FAILURES:
        if isinstance(error, kind):
            return text
    return f"malformed response ({type(error).__name__})"


def _document(raw: Any, deadline: float) -> dict[str, Any]:
    """Return the JSON object in the body of a response; an empty one if it has none."""
    read, parts, left = getattr(raw, "read1", raw.read), [], _MOST_BODY
    while left > 0:
        part = read(left, decode_content=False)
        if real() > deadline:
            raise TimeoutError
        if not part:
            break
        left -= len(part)
        parts.append(part)
    try:
        document = json.loads(b"".join(parts))
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _interval(document: dict[str, Any]) -> float | None:
    instance = document.get("instance")
    interval = instance.get("heartbeatInterval") if isinstance(instance, dict) else None
    known = isinstance(interval, int | float) and not isinstance(interval, bool)
    return float(interval) if known else None  # type: ignore[arg-type]


def _error_text(status: int, document: dict[str, Any]) -> str:
    """Return the status, field and detail of an error response; empty for a success."""
    if 200 <= status < 300:
        return ""
    parts = [f"status {status}"]
    for name in ("field", "detail"):
        value = document.get(name)
        if isinstance(value, str) and value:
            parts.append(value)
    return ": ".join(parts)
