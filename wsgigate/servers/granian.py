"""A gateway under granian: its settings, and what granian can not give it.

granian is the fastest server there is for a gateway; what gunicorn can give, and granian not:

- no request target as it was sent: an escaped slash can not be told from a plain one, so a route
  that keeps them (``encoded_slash = "keep"``) is refused here;
- ``X_User_Id`` is the same field as ``X-User-Id``. The gateway removes what a client must not say
  by environ key, so neither spelling survives; no other field must be trusted by its name;
- a chunked request body that was cut looks complete, so a body without a length is refused (411);
- before granian 2.8.9 a chunked response that the backend cut looks complete to the client, which
  the self-check warns of. One with a length is cut for the client, too, or a 502;
- no deadline for a request body: slow clients can hold its threads, unless a proxy in front reads
  bodies first;
- bytes outside of ASCII in a field's value: the field is empty.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import metadata
from itertools import islice
from multiprocessing.util import Finalize
from operator import itemgetter
from pathlib import Path
from types import FrameType
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from granian import Granian
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings, HTTP2Settings
from granian.log import LogLevels

from wsgigate.config.build import build, certificate_files, check_certificate, outage_of
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import load
from wsgigate.config.model import Config
from wsgigate.gateway import Gateway
from wsgigate.http.problem import Problem
from wsgigate.http.wsgi import REASON, ExcInfo, Headers
from wsgigate.runtime import fork
from wsgigate.runtime.log_level import set_up
from wsgigate.server_check import ServerFacts, findings, tell
from wsgigate.store import MisconfiguredStore

__all__ = ["GranianAdapter", "application", "heeding", "serve", "serve_config", "when_told_to_end"]


# How a worker of granian begins and ends: heedful of signals.
#
# granian forks a worker and has it listen to signals when its app is there. Until then it has the
# main process's handlers, which do nothing in it: a SIGTERM that comes in between is lost. One
# that comes as the worker's main thread begins to wait is not handled until something else wakes
# that thread, and nothing does. Who stops such a server waits until its workers are killed, 30
# seconds later.

SIGNALS = (signal.SIGINT, signal.SIGTERM)

LOOK = 0.01
"""Seconds between two looks whether granian listens by now."""

LONGEST = 30.0
"""Seconds after which it never will."""

TURN = 0.1

TURNS = 30
"""How often the main thread is woken, and after how many seconds each time."""


@contextmanager
def heeding() -> Iterator[None]:
    """Take note of signals that come meanwhile or came before, for granian to have them later.

    In another thread than the main one, where there can be no handlers, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: set[int] = set()

    def note(number: int, _frame: FrameType | None) -> None:
        came.add(number)

    for number in SIGNALS:
        inherited = getattr(signal.signal(number, note), "__self__", None)
        if getattr(inherited, "interrupt_signal", False):  # what the main process's handler sets
            came.add(signal.SIGTERM)
    signal.signal(signal.SIGURG, _wake)  # which means nothing to anybody else
    yield
    threading.Thread(target=_pass_on, args=(note, came), name="granian-boot", daemon=True).start()


def when_told_to_end(act: Callable[[], object]) -> None:
    """Have *act* called, in a thread of its own, as soon as a signal tells this process to end.

    granian waits for what is under way, and tells nobody. Of a process that is forked from this one
    the signals are its own. In another thread than the main one nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=partial(signal.set_wakeup_fd, -1))

    def wait() -> None:
        while numbers := os.read(told, 64):
            if not set(SIGNALS).isdisjoint(numbers):
                act()
                return

    threading.Thread(target=wait, name="granian-signals", daemon=True).start()


def _wake(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: what counts is that the main thread goes on, and handles what else has come."""


def _pass_on(note: object, came: set[int]) -> None:
    """Send again what *came* once *note* is no longer the handler; wake the main thread for more.

    More than once, as granian has its handlers in place a moment before it heeds them.
    """
    main = threading.main_thread().ident or 0
    until = time.monotonic() + LONGEST
    while signal.getsignal(signal.SIGTERM) is note and time.monotonic() < until:
        time.sleep(LOOK)
    for turn in range(TURNS):
        if turn < 3:
            for number in came:
                os.kill(os.getpid(), number)
        time.sleep(TURN)
        signal.pthread_kill(main, signal.SIGURG)


# What granian and a gateway mean by requests and responses, told each as it expects it.

MOST_AT_ONCE = 65536
"""Bytes of a response that is read to its end before it is sent, when it says its length."""

_PROTOCOLS = {"HTTP/1": "HTTP/1.0", "HTTP/2": "HTTP/2.0"}

_WITH_BODY = frozenset(("PATCH", "POST", "PUT"))

_NO_LENGTH = Problem(411, "Length required.")

_name_of = itemgetter(0)

_CUT = Problem(502, "Bad gateway", extensions={"error": "Invalid response"})


class GranianAdapter:
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


HEAD_TIMEOUT = 10.0

LONGEST_HEAD = 65536

log = logging.getLogger("wsgigate")

_VERSION = tuple(map(int, re.findall(r"\d+", metadata.version("granian"))[:3]))


def application() -> WSGIApplication:
    """Return the gateway of the file that ``$WSGIGATE_CONFIG`` names, to be served by granian.

    For ``granian --interface wsgi --factory wsgigate.servers.granian:application``.

    :raises SystemExit: No file is named.
    :raises ConfigError: It is broken.
    :raises ValueError: It asks for what granian can not give.
    """
    path = os.environ.get("WSGIGATE_CONFIG")
    if not path:
        raise SystemExit("wsgigate: WSGIGATE_CONFIG must name the gateway's file")
    with heeding():
        config = load(path)
        check(config)
        _self_check(config)
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


def planned(config: Config) -> ServerFacts:
    """Return the facts of the server that would run the gateway of *config*."""
    http2 = (config.gateway.http2, True)
    return ServerFacts(server="granian", version=_VERSION, worker="", http2=http2)


def _self_check(config: Config) -> None:
    """Log what is wrong with granian for the gateway of *config*.

    :raises ValueError: That makes it unsafe, and ``gateway.self_check`` is ``refuse``.
    """
    found = findings(planned(config))
    if tell(found, config.gateway.self_check):
        errors = [str(each) for each in found if each.severity == "error"]
        raise ValueError("granian cannot serve this gateway: " + "; ".join(errors))


def serve(
    path: str,
    *,
    bind: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    log_level: str | None = None,
    reload: bool = False,
) -> None:
    """Run the gateway that the file at *path* describes, until a signal ends it.

    SIGHUP has new workers read the file again; where it is broken they serve what it said at the
    start.

    :param bind: ``HOST:PORT`` or ``unix:PATH``, instead of the file's.
    :param workers: Processes, instead of the file's.
    :param threads: Threads a process, instead of the file's.
    :param log_level: ``debug``, ``info``, ``warning``, ``error`` or ``critical``, instead of the
        file's.
    :param reload: Restart workers when the code or the file changes; needs ``granian[reload]``.
    :raises ConfigError: The file is broken.
    :raises ValueError: It asks for what granian can not give.
    """
    path = os.path.abspath(path)
    config = _told(load(path), bind, threads, workers, log_level)
    check(config)
    check_certificate(config, path)
    _look_at_store(config, path)
    _self_check(config)
    loaded = partial(_load, path, bind, threads, log_level, config)
    _server(config, path, reload).serve(target_loader=loaded, wrap_loader=False)


def _look_at_store(config: Config, path: str) -> None:
    gateway = build(config, path=path)
    try:
        outage = outage_of(gateway.store)
    except MisconfiguredStore as error:
        raise ConfigError(path, [("store.url", str(error))]) from error
    finally:
        gateway.close()
    if outage:
        log.warning("%s: warning: store.url: %s", path, outage)


def serve_config(config: Config) -> None:
    """Run the gateway of *config*, which is in no file, until a signal ends it.

    :raises ValueError: It asks for what granian can not give.
    """
    check(config)
    _self_check(config)
    _server(config, "", False).serve(target_loader=partial(_built, config), wrap_loader=False)


def _server(config: Config, path: str, reload: bool) -> Granian:
    gateway = config.gateway
    certificate, key = certificate_files(config, path) or (None, None)
    place = gateway.bind
    host, _, port = place.rpartition(":")
    return Granian(
        "wsgigate.servers.granian:application",
        address=host.strip("[]") if not place.startswith("unix:") else "127.0.0.1",
        port=int(port) if port.isdigit() else 0,
        uds=Path(place.removeprefix("unix:")) if place.startswith("unix:") else None,
        interface=Interfaces.WSGI,
        workers=gateway.workers or fork.processors(),
        log_level=LogLevels(gateway.log_level or "info"),
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


def _built(config: Config) -> WSGIApplication:
    with heeding():
        return _started(build(config))


def _load(
    path: str, bind: str | None, threads: int | None, log_level: str | None, before: Config
) -> WSGIApplication:
    """Return what a new worker serves: the file as it is now, or as it was *before*."""
    with heeding():
        try:
            config = _told(load(path), bind, threads, None, log_level)
            check(config)
            gateway = build(config, path=path)
        except (ConfigError, ValueError) as error:
            set_up(before.gateway.log_level)
            log.error("Reload rejected; the previous configuration stays active:\n%s", error)
            gateway = build(before, path=path)
        else:
            told = replace(config.gateway, workers=before.gateway.workers)
            if replace(config, gateway=told) != before:
                set_up(config.gateway.log_level)
                log.info("This worker serves a newer configuration, reloaded from %s", path)
        return _started(gateway)


def _started(gateway: Gateway) -> WSGIApplication:
    """Start *gateway* in this worker, and close it at the worker's end."""
    gateway.start()
    when_told_to_end(gateway.stopping)
    fork.settle()
    Finalize(None, gateway.close, exitpriority=10)  # a worker's end runs these, not atexit's
    return GranianAdapter(gateway, os.environ.items())


def _told(
    config: Config,
    bind: str | None,
    threads: int | None,
    workers: int | None = None,
    log_level: str | None = None,
) -> Config:
    """Return *config* with what was told beside the file."""
    gateway = config.gateway
    gateway = replace(
        gateway,
        bind=bind or gateway.bind,
        threads=threads or gateway.threads,
        workers=workers or gateway.workers,
        log_level=log_level or gateway.log_level,
    )
    return replace(config, gateway=gateway)
