"""A gateway under granian: its settings, and what of a request granian tells otherwise.

granian is the fastest server there is for a gateway, and can not give it some of what gunicorn can:

- no request target as it was sent: an escaped slash can not be told from a plain one, so a route
  that keeps them (``encoded_slash = "keep"``) is refused here;
- ``X_User_Id`` is the same field as ``X-User-Id``. The gateway removes what a client must not say
  by environ key, so neither spelling survives; no other field must be trusted by its name;
- a chunked request body that was cut looks complete, so a body without a length is refused (411);
- a chunked response that the backend cut looks complete to the client. Nothing here can help it:
  where that matters, run under gunicorn. One with a length is cut for the client, too, or a 502;
- no deadline for a request body: slow clients can hold its threads, unless a proxy in front reads
  bodies first;
- bytes outside of ASCII in a field's value: the field is empty.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from multiprocessing.util import Finalize
from operator import itemgetter
from pathlib import Path
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from granian import Granian
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings, HTTP2Settings

from wsgigate.config.build import build
from wsgigate.config.certificate import certificate_files, check_certificate
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import load
from wsgigate.config.model import Config
from wsgigate.gateway import Gateway
from wsgigate.problem import Problem
from wsgigate.wsgi import REASON, ExcInfo, Headers

__all__ = ["Told", "application", "serve"]

HEAD_TIMEOUT = 10.0
LONGEST_HEAD = 65536
MOST_AT_ONCE = 65536
"""Bytes of a response that is read to its end before it is sent, when it says its length."""

log = logging.getLogger("wsgigate")

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


def application() -> WSGIApplication:
    """Return the gateway of the file that ``$WSGIGATE_CONFIG`` names, to be served by granian.

    For ``granian --interface wsgi --factory wsgigate.integrations.granian:application``.

    :raises SystemExit: No file is named.
    :raises ConfigError: It is broken.
    :raises ValueError: It asks for what granian can not give.
    """
    path = os.environ.get("WSGIGATE_CONFIG")
    if not path:
        raise SystemExit("wsgigate: WSGIGATE_CONFIG must name the gateway's file")
    config = load(path)
    check(config)
    return _started(build(config, path=path))


def check(config: Config) -> None:
    """See that granian can serve what *config* describes.

    :raises ValueError: It can not; says why.
    """
    for route in config.routes:
        if (route.encoded_slash or config.gateway.encoded_slash) == "keep":
            raise ValueError(
                f"the route {route.path!r} keeps encoded slashes, which granian does not tell "
                "from plain ones; run under gunicorn"
            )


def serve(
    path: str,
    *,
    bind: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    reload: bool = False,
) -> None:
    """Run the gateway that the file at *path* describes, until a signal ends it.

    SIGHUP has new workers read the file again; where it is broken they serve what it said at the
    start.

    :param bind: ``HOST:PORT`` or ``unix:PATH``, instead of the file's.
    :param workers: Processes, instead of the file's.
    :param threads: Threads a process, instead of the file's.
    :param reload: Restart workers when the code or the file changes; needs ``granian[reload]``.
    :raises ConfigError: The file is broken.
    :raises ValueError: It asks for what granian can not give.
    """
    path = os.path.abspath(path)
    config = _told(load(path), bind, threads)
    check(config)
    check_certificate(config, path)
    build(config, path=path).close()
    gateway = config.gateway
    certificate, key = certificate_files(config, path) or (None, None)
    place = gateway.bind
    host, _, port = place.rpartition(":")
    server = Granian(
        "wsgigate.integrations.granian:application",
        address=host.strip("[]") if not place.startswith("unix:") else "127.0.0.1",
        port=int(port) if port.isdigit() else 0,
        uds=Path(place.removeprefix("unix:")) if place.startswith("unix:") else None,
        interface=Interfaces.WSGI,
        workers=workers or gateway.workers or os.cpu_count() or 1,
        blocking_threads=gateway.threads,
        backpressure=1024,
        http1_settings=HTTP1Settings(
            header_read_timeout=int(HEAD_TIMEOUT * 1000), max_buffer_size=LONGEST_HEAD
        ),
        http=HTTPModes.auto if gateway.http2 else HTTPModes.http1,
        ssl_cert=Path(certificate) if certificate else None,
        ssl_key=Path(key) if key else None,
        ssl_protocol_min=SSLProtocols.tls12,
        http2_settings=HTTP2Settings(max_headers_size=LONGEST_HEAD),
        websockets=False,
        respawn_failed_workers=True,
        workers_kill_timeout=30,
        reload=reload,
        reload_paths=[Path(path).parent] if reload else None,
    )
    server.serve(target_loader=partial(_load, path, bind, threads, config), wrap_loader=False)


def _load(path: str, bind: str | None, threads: int | None, before: Config) -> WSGIApplication:
    """Return what a new worker serves: the file as it is now, or as it was *before*."""
    try:
        config = _told(load(path), bind, threads)
        check(config)
        gateway = build(config, path=path)
    except (ConfigError, ValueError) as error:
        log.error("The changed file is refused, the old gateway goes on:\n%s", error)
        gateway = build(before, path=path)
    return _started(gateway)


def _started(gateway: Gateway) -> WSGIApplication:
    """Start *gateway* in this worker, and close it at the worker's end."""
    gateway.start()
    Finalize(None, gateway.close, exitpriority=10)  # a worker's end runs these, not atexit's
    return Told(gateway, os.environ.items())


def _told(config: Config, bind: str | None, threads: int | None) -> Config:
    """Return *config* with what was told beside the file."""
    gateway = config.gateway
    gateway = replace(gateway, bind=bind or gateway.bind, threads=threads or gateway.threads)
    return replace(config, gateway=gateway)
