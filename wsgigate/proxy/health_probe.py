"""Health probes: many concurrent checks in one thread, without blocking.

Theory of operation. Each check is an :class:`.Exchange`, a generator that yields the event it waits
for. One thread per process selects over all sockets and deadlines and resumes the checks. So a
check that hangs costs a socket, not a thread. At most 64 KiB of a response are read.

An error of this machine, such as too many open files, is raised rather than counted: it would
otherwise mark all instances as unhealthy at once.
"""

from __future__ import annotations

import http.client
import logging
import re
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from errno import (
    EADDRNOTAVAIL,
    EHOSTUNREACH,
    EMFILE,
    ENETUNREACH,
    ENFILE,
    ENOBUFS,
    ENOMEM,
)
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from wsgigate.client.dial import BackgroundResolver, Check, literal
from wsgigate.client.exchange import Exchange, Steps, Wait
from wsgigate.client.http11 import head_bytes
from wsgigate.client.response_reader import BrokenResponse, CutResponse
from wsgigate.discovery import Instance, host_and_port
from wsgigate.discovery.health_results import OnResult
from wsgigate.rules.health import MOST_BODY, CheckResult, HealthCheck, judge
from wsgigate.runtime import fork
from wsgigate.runtime.tls import Contexts, Verify

__all__ = ["Prober", "TlsPolicy", "steps"]

_LOCAL_ERRORS = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL})
"""Errors of this machine, which say nothing about the instance."""

_RESPONSE_TIME = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,30}[\x21-\x7e])?")


def steps(
    instance: Instance,
    check: HealthCheck,
    host: str,
    tls: ssl.SSLContext | None,
    clock: Callable[[], float],
    allowed: Check | None = None,
) -> Steps[CheckResult]:
    """Return the steps of one check.

    The first :class:`.Wait` receives the addresses of the instance, or the error of their lookup.
    An error of this machine is raised; an error of the instance is the outcome.

    :param host: The name that the certificate must have.
    :param tls: The TLS context; ``None`` for no TLS.
    :param clock: Monotonic clock, in seconds.
    :param allowed: Called with each address and port before connecting; raises ValueError to
        reject.
    """
    started = clock()
    exchange = Exchange(check.method, started + check.timeout, check=allowed, clock=clock)
    reader = exchange.reader
    try:
        addresses = yield Wait(None, 0, exchange.deadline)
        yield from exchange.connect(addresses)
        if check.path is None:
            return CheckResult(True, None, f"{(clock() - started) * 1000:.2f}ms")
        if tls is not None:
            yield from exchange.handshake(tls, host)
        yield from exchange.send(_request(instance, check, tls is not None))
        yield from exchange.read_head()
        took = _reported_time(reader.fields) or f"{(clock() - started) * 1000:.2f}ms"
        body = yield from exchange.read_body(MOST_BODY)
        return judge(check, reader.status, took, body)
    except Exception as problem:  # any error caused by the instance is an unhealthy outcome
        if isinstance(problem, OSError) and problem.errno in _LOCAL_ERRORS:
            raise
        status = reader.status if reader.status >= 200 else None
        return CheckResult(False, status, error=_describe(problem))
    finally:
        exchange.close()


def _request(instance: Instance, check: HealthCheck, secure: bool) -> bytes:
    fields = {
        "Host": check.host or _authority(instance, check, secure),
        "User-Agent": "wsgigate-health",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
    }
    for name, value in check.fields.items():
        replaced = next((known for known in fields if known.lower() == name.lower()), name)
        fields[replaced] = value
    if check.method in ("POST", "PUT", "PATCH"):
        fields["Content-Length"] = "0"
    fields["Connection"] = "close"
    return head_bytes(check.method, check.path or "/", fields)


def _authority(instance: Instance, check: HealthCheck, secure: bool) -> str:
    """Return the ``Host`` of the request: the instance's, with the port of the check."""
    if check.port is None and check.scheme in (None, instance.scheme):
        return instance.authority
    host = urlsplit(f"//{instance.authority}").hostname or ""
    own = 443 if instance.scheme == "https" else 80
    port = check.port or urlsplit(instance.url).port or own
    return host_and_port(
        f"{f'[{host}]' if ':' in host else host}:{port}", "https" if secure else "http"
    )


def _reported_time(fields: Sequence[tuple[str, str]]) -> str:
    values = {name.lower(): value for name, value in fields}
    for name in ("response-time", "x-response-time"):
        value = values.get(name, "")
        if _RESPONSE_TIME.fullmatch(value):
            return value
    return ""


_DESCRIPTIONS: tuple[tuple[str, type[BaseException]], ...] = (
    ("Host not found", socket.gaierror),
    ("Timeout", TimeoutError),
    ("TLS failed", ssl.SSLError),
    ("Connection refused", ConnectionRefusedError),
    ("Connection refused", FileNotFoundError),
    ("Address not allowed", PermissionError),
    ("Connection closed", http.client.RemoteDisconnected),
    ("Connection reset", ConnectionResetError),
    ("Connection reset", BrokenPipeError),
    ("Incomplete response", CutResponse),
    ("Bad response", BrokenResponse),
    ("Host not found", UnicodeError),
)


def _describe(error: Exception) -> str:
    """Return a description of *error* without host names, addresses or stack traces."""
    if isinstance(error, OSError) and error.errno in (EHOSTUNREACH, ENETUNREACH):
        return "Host unreachable"
    for description, kind in _DESCRIPTIONS:
        if isinstance(error, kind):
            return description
    return "Check failed"


LOG = logging.getLogger("wsgigate.health")


class _RunningCheck:
    """A running check.

    :ivar watched: The file descriptor registered with the selector.
    :ivar until: The deadline of its current wait.
    """

    __slots__ = ("found", "steps", "until", "watched")

    def __init__(self, steps: Steps[CheckResult], found: OnResult) -> None:
        self.steps = steps
        self.found = found
        self.until = 0.0
        self.watched: int | None = None


class TlsPolicy(NamedTuple):
    """How a service's instances are connected to.

    :ivar verify: Whether to verify certificates, or a file or directory of CA certificates.
    :ivar server_name: Name for TLS SNI and certificate verification. Default: the host.
    :ivar allowed: Called with each address and port before connecting; raises ValueError to reject.
    """

    verify: Verify = True
    server_name: str | None = None
    allowed: Check | None = None


_PLAIN = TlsPolicy()


class Prober:
    """Runs health checks of instances over TCP, HTTP, TLS and Unix sockets.

    A check that hangs costs a socket, not a thread. The thread starts with the first check of each
    process, and ends with :meth:`stop`.

    :param policies: How a service's instances are connected to, by service.
    :param clock: Monotonic clock, in seconds.
    :ivar policies: How a service's instances are connected to, by service.
    :raises ValueError: The CA certificates of a policy cannot be loaded.
    """

    def __init__(
        self,
        policies: Mapping[str, TlsPolicy] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policies = dict(policies or {})
        self._contexts = Contexts()
        self._clock = clock
        for policy in self.policies.values():
            if isinstance(policy.verify, str):
                self._contexts.load(policy.verify)
        self._thread: _ProbeThread | None = None
        fork.renew_at_fork(self)

    @property
    def running(self) -> int:
        """The number of checks that have begun and not ended."""
        thread = self._thread
        return 0 if thread is None else thread.running

    def probe(
        self,
        service: str,
        instance: Instance,
        check: HealthCheck,
        found: OnResult,
    ) -> None:
        """Start a check of *instance*; only one thread may call this at a time.

        :param found: Called with the outcome in the prober's thread, shortly after the check's
            timeout at the latest; not called after :meth:`stop`.
        """
        parts = urlsplit(instance.url)
        host = parts.hostname or ""
        policy = self.policies.get(service, _PLAIN)
        unix = instance.scheme == "http+unix"
        secure = not unix and (check.scheme or instance.scheme) == "https"
        tls = self._contexts.get(policy.verify) if secure else None
        name = policy.server_name or host
        if check.host and policy.server_name is None and literal(host, 0) is not None:
            name = urlsplit(f"//{check.host}").hostname or host  # certificates are issued for names
        name = name.rstrip(".")
        running = _RunningCheck(
            steps(instance, check, name, tls, self._clock, policy.allowed), found
        )
        thread = self._thread
        if thread is None or not thread.is_alive():
            thread = _ProbeThread(self._clock)
            thread.start()
            self._thread = thread
        thread.begin(running)
        if unix:  # it has no ports
            thread.resume(running, [(socket.AF_UNIX, unquote(parts.netloc))])
            return
        port = check.port or parts.port or (443 if instance.scheme == "https" else 80)
        address = literal(host, port)
        if address is not None:
            thread.resume(running, [address])
        else:
            thread.resolver.resolve(host, port, partial(thread.resume, running))

    def stop(self) -> None:
        """Stop the thread and abandon the running checks."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()

    def after_fork(self) -> None:
        """Close this process's copies of the parent's sockets."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.close()


class _ProbeThread:
    """The thread of one process, with its selector, checks and deadlines."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.resolver = BackgroundResolver()
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ)
        self._inbox: deque[Callable[[], None]] = deque()
        self._checks: set[_RunningCheck] = set()
        self._timers: list[tuple[float, int, _RunningCheck]] = []
        self._numbers = count()
        self._stopping = False
        self._thread = threading.Thread(
            target=self._run, name="wsgigate-health-prober", daemon=True
        )

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:  # no thread available
            self.close()
            raise

    def is_alive(self) -> bool:
        """Return whether the thread is running."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """The number of checks that have begun and not ended."""
        return len(self._checks)

    def begin(self, running: _RunningCheck) -> None:
        """Start *running* in the thread."""
        self._call_soon(lambda: self._begin(running))

    def resume(self, running: _RunningCheck, answer: list[tuple[int, object]] | Exception) -> None:
        """Resume *running* with the addresses of its instance, or with the lookup's error."""
        self._call_soon(lambda: self._resume(running, answer))

    def stop(self) -> None:
        """Stop the thread."""
        self._stopping = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(1.0)

    def _call_soon(self, work: Callable[[], None]) -> None:
        self._inbox.append(work)
        self._wake()

    def _wake(self) -> None:
        try:
            self._wake_sender.send(b"\0")
        except OSError:
            pass  # the thread is awake already, or has ended

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._run_once()
        finally:
            self.close()

    def close(self) -> None:
        """Close all sockets, after the thread has ended, or in a forked process without it."""
        for running in self._checks:
            try:
                running.steps.close()
            except ValueError:
                pass  # the fork interrupted a step, which cannot finish here
        self._selector.close()
        self._wake_receiver.close()
        self._wake_sender.close()

    def _run_once(self) -> None:
        """Wait for events or deadlines, and handle them."""
        timers = self._timers
        timeout = max(0.0, timers[0][0] - self._clock()) if timers else None
        ready = self._selector.select(timeout)
        now = self._clock()  # taken now: events that arrive during handling are not late
        for key, _ in ready:
            if key.data is not None:
                self._resume(key.data, None)
            else:
                self._drain_wakeups()
        while self._inbox:
            self._inbox.popleft()()
        while timers and timers[0][0] <= now:
            until, _, running = heappop(timers)
            if running in self._checks and running.until == until:
                running.until = 0.0
                self._resume(running, TimeoutError("the deadline has passed"))

    def _drain_wakeups(self) -> None:
        try:
            while self._wake_receiver.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _begin(self, running: _RunningCheck) -> None:
        self._checks.add(running)
        self._resume(running, None)

    def _resume(self, running: _RunningCheck, answer: object) -> None:
        """Resume *running*, and register the event that it waits for next."""
        if running not in self._checks:
            return  # it has timed out
        if running.watched is not None:
            self._selector.unregister(running.watched)
            running.watched = None
        try:
            if isinstance(answer, Exception):
                wait = running.steps.throw(answer)
            else:
                wait = running.steps.send(answer)
        except StopIteration as end:
            self._finish(running, end.value)
            return
        except Exception as error:
            self._finish(running, error)
            return
        if wait.sock is not None:
            self._selector.register(wait.sock, wait.events, running)
            running.watched = wait.sock.fileno()
        if running.until != wait.until:
            running.until = wait.until
            heappush(self._timers, (wait.until, next(self._numbers), running))

    def _finish(self, running: _RunningCheck, outcome: CheckResult | Exception) -> None:
        self._checks.discard(running)
        try:
            running.found(outcome)
        except Exception:
            LOG.exception("The callback of a health check failed")
