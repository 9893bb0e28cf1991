"""A gateway under granian: its settings, its limitations, and signals during its boot.

granian is the fastest server for a gateway. Its limitations in comparison with gunicorn:

- It does not pass on the request target as sent, so an escaped slash cannot be distinguished from a
  plain one: a route with ``encoded_slash = "keep"`` is rejected here.
- ``X_User_Id`` is the same field as ``X-User-Id``. The gateway removes the fields that a client
  must not send by environ key, so neither spelling passes; no other field may be trusted by its
  name.
- A truncated chunked request body looks complete, so a body without a length gets a 411.
- Before granian 2.8.9 a chunked response that the backend truncated looks complete to the client;
  the self-check warns about it. A response with a length is truncated for the client, too, or
  becomes a 502. A truncated response without a length to a client of HTTP/1.0, whose end is that of
  the connection, looks complete in every version: granian lets no app reset the connection.
- A request body has no deadline: slow clients can block its threads, unless a proxy in front
  buffers request bodies.
- A field value with bytes outside ASCII is empty.

Theory of operation: signals
----------------------------

granian forks a worker (from Python 3.14 on, and on macOS, it spawns one with a pickled
configuration), and installs the worker's signal handlers once its app is loaded. Two rules
keep a SIGTERM from being lost, which would keep the server waiting until it kills the worker, 30 s
later:

- Until then the worker has the main process's handlers, which do nothing in it. So
  :func:`deferred_signals` records the signals that arrive while the app is loaded, and sends them
  again once granian's handlers are in place.
- A signal that arrives just as the worker's main thread begins to wait is not handled until another
  one wakes that thread. So SIGURG, whose handler does nothing, is sent to it several times.
"""

from __future__ import annotations

import logging
import math
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
from multiprocessing import parent_process
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
from wsgigate.config.masked import changed
from wsgigate.config.model import Config
from wsgigate.config.summary import start_line
from wsgigate.gateway import Gateway
from wsgigate.http.problem import Problem
from wsgigate.http.wsgi import REASON, ExcInfo, Headers
from wsgigate.runtime import fork
from wsgigate.runtime.logs import set_up
from wsgigate.server_check import ServerFacts, changed_keys, findings, log_findings
from wsgigate.servers.reloading import ServerReload
from wsgigate.store import MisconfiguredStore

__all__ = [
    "GranianAdapter",
    "application",
    "call_on_stop_signal",
    "deferred_signals",
    "overridden",
    "serve",
    "serve_config",
]


# Signals during the boot of a worker.

SIGNALS = (signal.SIGINT, signal.SIGTERM)

LOOK = 0.01
"""Seconds between two checks whether granian has installed its signal handlers."""

LONGEST = 30.0
"""Seconds for which this is checked."""

TURN = 0.1
"""Seconds between two wake-ups of the main thread."""

TURNS = 30
"""The number of wake-ups."""


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Record signals during the block, and send them again once granian handles them.

    A signal that the main process's handler recorded before counts, too. Outside the main thread,
    which cannot have signal handlers, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: set[int] = set()

    def note(number: int, _frame: FrameType | None) -> None:
        came.add(number)

    for number in SIGNALS:
        inherited = getattr(signal.signal(number, note), "__self__", None)
        if getattr(inherited, "interrupt_signal", False):  # set by the main process's handler
            came.add(signal.SIGTERM)
    signal.signal(signal.SIGURG, _wake)  # nothing else uses this signal
    yield
    threading.Thread(target=_resend, args=(note, came), name="granian-boot", daemon=True).start()


def call_on_stop_signal(act: Callable[[], object]) -> None:
    """Call *act* in a separate thread when a signal stops this process.

    granian waits for the requests in flight, without notifying the app. In a process that is forked
    from this one *act* is not called. Outside the main thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=partial(signal.set_wakeup_fd, -1))

    def wait() -> None:
        while numbers := os.read(read_end, 64):
            if not set(SIGNALS).isdisjoint(numbers):
                act()
                return

    threading.Thread(target=wait, name="granian-signals", daemon=True).start()


def _wake(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the signal wakes the main thread, which then handles all pending signals."""


def _resend(note: object, came: set[int]) -> None:
    """Send the signals *came* again once *note* is no longer the handler; wake the main thread.

    They are sent three times, as granian installs its handlers a moment before it reacts to them.
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


# Requests and responses: differences between granian and PEP 3333.

MOST_AT_ONCE = 65536
"""Bytes up to which a response with a ``Content-Length`` is sent as a whole."""

_PROTOCOLS = {"HTTP/1": "HTTP/1.0", "HTTP/2": "HTTP/2.0"}

_WITH_BODY = frozenset(("PATCH", "POST", "PUT"))

_NO_LENGTH = Problem(411, "Length required.")

_name_of = itemgetter(0)

_CUT = Problem(502, "Bad gateway", extensions={"error": "Invalid response"})


class GranianAdapter:
    """A WSGI app that adapts granian's requests for *app*, and the responses of *app* for granian.

    granian sends the head before it reads the first chunk, but an app may start its response as
    late as then (PEP 3333): so the first chunk is read here. A short response is joined, as granian
    sends one chunk at much less cost.

    :param app: The WSGI application.
    :param inherited: The environment variables of this process, which granian puts into every
        environ: one named ``HTTP_...`` would look like a request field.
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
            self._remove_inherited(environ)
        protocol = environ["SERVER_PROTOCOL"]
        if protocol != "HTTP/1.1":
            environ["SERVER_PROTOCOL"] = _PROTOCOLS.get(protocol, protocol)
            if protocol == "HTTP/1" and not environ.get("HTTP_HOST"):
                environ.pop("HTTP_HOST", None)
        if not environ.get("CONTENT_LENGTH") and (
            "HTTP_TRANSFER_ENCODING" in environ
            or (protocol == "HTTP/2" and environ["REQUEST_METHOD"] in _WITH_BODY)
        ):
            environ[REASON] = "a body without a length: granian does not detect a truncated one"
            return _NO_LENGTH(environ, start_response)
        head = _RecordedHead(start_response)
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

    def _remove_inherited(self, environ: WSGIEnvironment) -> None:
        """Remove the environment variables of this process from *environ*."""
        for name, value in self._inherited:
            if environ.get(name) == value:
                del environ[name]


class _RecordedHead:
    """Records a response's head, for the length and the status of the body that follows."""

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
        """Return the ``Content-Length``; None without one."""
        names = [*map(str.lower, map(_name_of, self._headers))]
        if "content-length" not in names:
            return None
        value = self._headers[names.index("content-length")][1]
        return int(value) if value.isdigit() else None

    def bodiless(self) -> bool:
        """Return whether a response with this status has no body, whatever its length."""
        return self._status[:3] in ("204", "304")


class _Rest:
    """A response body whose first chunk has been read."""

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
"""The default of ``gateway.head_timeout``, in seconds."""

LONGEST_HEAD = 65536

log = logging.getLogger("wsgigate")

_VERSION = tuple(map(int, re.findall(r"\d+", metadata.version("granian"))[:3]))


def application() -> WSGIApplication:
    """Return the gateway of the file that ``$WSGIGATE_CONFIG`` names, for granian.

    Run it with ``granian --interface wsgi --factory wsgigate.servers.granian:application``.

    :raises SystemExit: ``$WSGIGATE_CONFIG`` is not set.
    :raises ConfigError: The file is invalid.
    :raises ValueError: It has a setting that granian does not support.
    """
    path = os.environ.get("WSGIGATE_CONFIG")
    if not path:
        raise SystemExit("wsgigate: WSGIGATE_CONFIG must name the gateway's file")
    with deferred_signals():
        config = load(path)
        check(config)
        _self_check(config)
        return _started(build(config, path=path), path)


def check(config: Config) -> None:
    """Check that granian supports the settings of *config*.

    :raises ValueError: There is one that granian does not support; the message names it.
    """
    if config.gateway.tls is not None and config.gateway.tls.client_ca is not None:
        raise ValueError(
            "gateway.tls.client_ca: granian does not tell applications the client's certificate; "
            "run under gunicorn"
        )
    if config.metrics_bind is not None:
        raise ValueError(
            "metrics.bind: granian has one listener only; remove it and let Prometheus read "
            "/metrics below admin.prefix with the token, or run under gunicorn"
        )
    for route in config.routes:
        if (route.encoded_slash or config.gateway.encoded_slash) == "keep":
            raise ValueError(
                f"the route {route.path!r} keeps encoded slashes, which granian does not "
                "distinguish from plain ones; run under gunicorn"
            )


def planned(config: Config) -> ServerFacts:
    """Return the facts of the granian server that would run the gateway of *config*.

    :raises ValueError: It has a setting that granian does not support; the message names it.
    """
    check(config)
    applied = frozenset() if config.gateway.keep_alive else frozenset(["keep_alive"])
    return ServerFacts(
        server="granian",
        version=_VERSION,
        worker="",
        http2=(config.gateway.http2, True),
        started_by="granian",
        changed=changed_keys(config.gateway) - applied,
    )


def _self_check(config: Config) -> None:
    """Log the findings of the self-check for granian and the gateway of *config*.

    :raises ValueError: One of them is an error, and ``gateway.self_check`` is ``refuse``.
    """
    found = findings(planned(config))
    if log_findings(found, config.gateway.self_check):
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
    """Run the gateway that the file at *path* describes, until a signal stops it.

    After SIGHUP new workers read the file again; while it is invalid they serve the configuration
    of the start.

    :param bind: ``HOST:PORT`` or ``unix:PATH``; overrides the file's.
    :param workers: Worker processes; overrides the file's.
    :param threads: Threads per process; overrides the file's.
    :param log_level: ``debug``, ``info``, ``warning``, ``error`` or ``critical``; overrides the
        file's.
    :param reload: Restart workers when the code or the file changes; needs ``granian[reload]``.
    :raises ConfigError: The file is invalid.
    :raises ValueError: It has a setting that granian does not support.
    """
    path = os.path.abspath(path)
    config = overridden(load(path), bind, threads, workers, log_level)
    check(config)
    check_certificate(config, path)
    _check_store(config, path)
    _self_check(config)
    loaded = partial(_load, path, bind, threads, log_level, config)
    _log_start(config, path)
    _server(config, path, reload).serve(target_loader=loaded, wrap_loader=False)


def _log_start(config: Config, path: str) -> None:
    """Log the start once, in the main process."""
    set_up(config.gateway.log_level, as_json=config.logs_json)
    workers = config.gateway.workers or fork.processors()
    name = f"granian {metadata.version('granian')}"
    log.info("%s", start_line(config, path, server=name, workers=workers))


def _check_store(config: Config, path: str) -> None:
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
    """Run the gateway of *config*, which has no file, until a signal stops it.

    :raises ValueError: It has a setting that granian does not support.
    """
    check(config)
    _self_check(config)
    _log_start(config, "")
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
        # what is accepted at a time: the requests of all threads, and as many that wait
        backpressure=max(1024, 2 * gateway.threads),
        http1_settings=HTTP1Settings(
            header_read_timeout=math.ceil((gateway.head_timeout or HEAD_TIMEOUT) * 1000),
            keep_alive=gateway.keep_alive > 0,
            max_buffer_size=LONGEST_HEAD,
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
    with deferred_signals():
        return _started(build(config))


def _load(
    path: str, bind: str | None, threads: int | None, log_level: str | None, before: Config
) -> WSGIApplication:
    """Return the gateway of the file for a new worker; where it is invalid, that of *before*."""
    with deferred_signals():
        try:
            config = overridden(load(path), bind, threads, None, log_level)
            check(config)
            if changed_keys(config.gateway) != changed_keys(before.gateway):
                set_up(config.gateway.log_level, as_json=config.logs_json)
                _self_check(config)
            gateway = build(config, path=path)
        except (ConfigError, ValueError) as error:
            set_up(before.gateway.log_level, as_json=before.logs_json)
            log.error("Reload rejected; the previous configuration stays active:\n%s", error)
            gateway = build(before, path=path)
        else:
            same_workers = replace(config.gateway, workers=before.gateway.workers)
            if replace(config, gateway=same_workers) != before:
                set_up(config.gateway.log_level, as_json=config.logs_json)
                log.info("This worker serves a newer configuration, reloaded from %s", path)
        return _started(gateway, path)


def _started(gateway: Gateway, path: str = "") -> WSGIApplication:
    """Start *gateway* in this worker, and close it when the worker exits.

    :param path: The file it was read from.
    """
    if path:
        gateway.reloads = ServerReload(os.path.abspath(path), _main_process, "granian")
    gateway.start()
    call_on_stop_signal(gateway.stopping)
    fork.settle()
    Finalize(None, gateway.close, exitpriority=10)  # a multiprocessing worker skips atexit
    return GranianAdapter(gateway, os.environ.items())


def _main_process() -> int:
    """Return the process id of the server's main process; 0 if it has ended."""
    parent = parent_process()
    return 0 if parent is None or not parent.is_alive() else parent.pid or 0


def overridden(
    config: Config,
    bind: str | None,
    threads: int | None,
    workers: int | None = None,
    log_level: str | None = None,
) -> Config:
    """Return *config* with the settings of the command line in the place of the file's."""
    gateway = config.gateway
    gateway = replace(
        gateway,
        bind=bind or gateway.bind,
        threads=threads or gateway.threads,
        workers=workers or gateway.workers,
        log_level=log_level or gateway.log_level,
    )
    return changed(config, gateway=gateway)
