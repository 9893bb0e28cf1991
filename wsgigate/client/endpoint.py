"""An HTTP endpoint that a request waits for: token introspection, forward authentication.

Theory of operation. Each request that asks such an endpoint holds a thread of the server until the
answer arrives. An endpoint that is slow or dead must not hold all of them, so an
:class:`RemoteEndpoint` bounds what it costs. Rules that must hold:

- One time limit covers everything: waiting for a place, connecting, and the last byte of the
  answer. An endpoint that sends one byte per second cannot extend it. Only the resolution of a name
  is not covered, as the system's resolver cannot be interrupted.
- At most ``max_concurrent`` exchanges run at a time in a process. Other requests wait for a place
  for at most a second: a burst is served, and an endpoint that hangs does not keep their threads.
- After failures in a row the circuit opens (:mod:`wsgigate.rules.circuit`): requests fail at once,
  those that wait for a place as well, and single requests probe whether the endpoint answers again.
- No lock is held during an exchange, and a fork in the middle of one leaves no place taken.
- The answer is bounded in size. Redirects are not followed: they would lead the gateway, and the
  credentials that it sends, to an address that others choose (SSRF).
- The address that is connected to is checked after name resolution, as for instances.
- A request is sent a second time only if the connection was closed before an answer began: an
  endpoint may close an idle connection at the moment a request is sent. So an endpoint must be one
  that changes nothing.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

import requests

from wsgigate.client.adapter import LazyResponse, Timeout, gateway_session
from wsgigate.client.destinations import Destinations
from wsgigate.client.dial import Check
from wsgigate.client.exchange import reason_for
from wsgigate.client.http11 import Fields
from wsgigate.client.response_reader import BrokenResponse, NotConnected
from wsgigate.http.forwarded import IPAddress
from wsgigate.rules.circuit import (
    CircuitRules,
    CircuitVerdict,
    Outcome,
    State,
    Tally,
    acquire,
    record_probe,
    trip,
)
from wsgigate.runtime import fork
from wsgigate.runtime.clocks import real, steady
from wsgigate.runtime.logs import FailureLog, one_line
from wsgigate.runtime.tls import check_authorities

__all__ = ["EndpointFailed", "EndpointReply", "RemoteEndpoint", "check_url", "is_loopback"]

_log = logging.getLogger("wsgigate.endpoints")

_EVERYWHERE = Destinations(["0.0.0.0/0", "::/0"])
_PRIVATE = Destinations()

_CIRCUIT = CircuitRules(
    consecutive_failures=5,
    connect_failures=5,
    failure_rate=None,
    open_for=1.0,
    open_at_most=30.0,
    probes=1,
)

_BODY_METHODS = frozenset(("POST", "PUT", "PATCH"))


class EndpointFailed(Exception):
    """There is no usable answer; the message does not name a host.

    :ivar again_in: Seconds after which another request may succeed.
    :ivar timed_out: Whether the time limit has passed.
    """

    def __init__(self, why: str, again_in: float = 1.0, timed_out: bool = False) -> None:
        super().__init__(why)
        self.again_in = again_in
        self.timed_out = timed_out
        self.outcome = Outcome.FAILED


class EndpointReply(NamedTuple):
    """An answer.

    :ivar fields: The names and values of its fields, in the order received.
    """

    status: int
    fields: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        """Return the values of the fields called *name*, which is in lower case."""
        return [value for each, value in self.fields if each.lower() == name]


def check_url(
    url: str, setting: str, *, example: str, plain: str = "", private: bool = False
) -> SplitResult:
    """Return the parts of the URL of an endpoint.

    :param setting: The name of the option, for errors.
    :param example: A URL for errors.
    :param plain: What plain http would allow, for errors.
    :param private: Whether plain http is allowed for any host, whose address must then be private;
        otherwise for this machine only.
    :raises ValueError: The gateway cannot or must not connect to it; the message begins with
        *setting*.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
        host = parts.hostname or ""
    except ValueError:
        raise ValueError(f"{setting}: {_without_secrets(url)} is not a URL") from None
    if not host or not re.fullmatch(r"[!-~]+", url) or "@" in parts.netloc or parts.fragment:
        raise ValueError(
            f'{setting}: expected a URL such as "{example}", without a user, spaces and a '
            f"fragment, not {_without_secrets(url)}"
        )
    scheme = parts.scheme.lower()
    if scheme != "https" and not (scheme == "http" and (private or is_loopback(host))):
        raise ValueError(f"{setting}: {_without_secrets(url)} must begin with https://{plain}")
    return parts


def _without_secrets(url: str) -> str:
    """Return *url* for an error message, without a password and without the values of a query."""
    shown = re.sub(r"//.*@", "//...@", str(url), flags=re.DOTALL)
    return repr(re.sub(r"\?.*", "?...", shown, flags=re.DOTALL))


def is_loopback(host: str) -> bool:
    """Return whether *host* is ``localhost`` or a loopback address."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _loopback_only(address: IPAddress, port: int) -> None:
    if not address.is_loopback:
        raise ValueError("plain http is allowed for this machine only")


class RemoteEndpoint:
    """An endpoint, with its connections, its bounds and its circuit.

    :param url: Its URL, checked by :func:`check_url`.
    :param private: Whether plain http may lead to any private address, not to this machine only.
    :param ca: A file of trusted certificate authorities. Default: those of certifi.
    :param timeout: Maximum seconds until the end of the answer.
    :param max_concurrent: Maximum number of exchanges at a time in this process.
    :param max_bytes: Maximum size of an answer's body.
    :param circuit: When the circuit opens, and for how long.
    :param clock: Returns monotonic seconds, for the circuit.
    :raises ValueError: An argument is invalid; the message names it.
    :ivar name: Its URL without the query, for logs and ``/health``.
    :ivar max_concurrent: Maximum number of exchanges at a time in this process.
    :ivar patience: Maximum seconds for which a request waits for a place.
    """

    patience = 1.0

    def __init__(
        self,
        url: str,
        *,
        private: bool = False,
        ca: str | None = None,
        timeout: float = 5.0,
        max_concurrent: int = 16,
        max_bytes: int = 65536,
        circuit: CircuitRules = _CIRCUIT,
        clock: Callable[[], float] = steady,
    ) -> None:
        if not 0.05 <= timeout <= 60:
            raise ValueError(f"timeout: 0.05 to 60 seconds, not {timeout!r}")
        if isinstance(max_concurrent, bool) or not 1 <= max_concurrent <= 1000:
            raise ValueError(f"max_concurrent: 1 to 1000 exchanges, not {max_concurrent!r}")
        parts = urlsplit(url)
        scheme = parts.scheme.lower()
        if ca is not None:
            check_authorities(ca)
        self.url = url
        self.name = url.partition("?")[0]
        self.authority = parts.netloc
        self.origin = f"{scheme}://{parts.netloc}"
        self.target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.timeout = timeout
        self._verify = ca or True
        self.max_concurrent = max_concurrent
        self._max_bytes = max_bytes
        self._rules = circuit
        self._clock = clock
        check: Check = _EVERYWHERE.check
        if scheme == "http":
            check = _PRIVATE.check if private else _loopback_only
        # Places are given out here; the pool must not add a queue of its own.
        session = gateway_session(
            max_open=4 * max_concurrent, max_idle=max_concurrent, check=check, clock=real
        )
        self._adapter = session.get_adapter(self.origin)
        self._failing = FailureLog(_log, "%s answers again, after %.0f s", self.name, clock=clock)
        self._changed: threading.Condition
        fork.renewed(self, _changed="Condition")
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Forget the exchanges of the parent process."""
        self._running = 0
        self._waiting = 0
        self._verdict = CircuitVerdict()
        self._tally = Tally(self._rules)
        self._error = ""

    def ask(
        self,
        method: str,
        fields: Mapping[str, str],
        body: bytes | None = None,
        *,
        failures: Callable[[int], bool] = lambda status: status in (429, 502, 503, 504),
    ) -> EndpointReply:
        """Send a request and return the answer; its status may be any from 200 on.

        :param fields: The fields, besides ``Host`` and the framing.
        :param failures: Returns whether a status counts as a failure of the endpoint. One that a
            client can provoke must not: it would open the circuit for all others.
        :raises EndpointFailed: There is no answer, or one of these.
        """
        until = real() + self.timeout
        generation = self._enter(until)
        outcome, why = Outcome.IGNORED, ""
        try:
            reply = self._exchange(method, fields, body, until)
            if failures(reply.status):
                raise EndpointFailed(f"it answered {reply.status}")
            outcome = Outcome.OK
            return reply
        except EndpointFailed as error:
            outcome, why = error.outcome, one_line(error)
            raise
        finally:
            self._leave(generation, outcome, why)

    def status(self) -> dict[str, object]:
        """Return the status, as members of a JSON object.

        ``circuit`` is its state, ``in_flight`` the number of exchanges of this process, ``waiting``
        that of the requests that wait for a place, and ``error`` why the last exchange failed.
        """
        status: dict[str, object] = {
            "circuit": self._verdict.state.value,
            "in_flight": self._running,
            "waiting": self._waiting,
        }
        return {**status, "error": self._error} if self._error else status

    def close(self) -> None:
        """Close the idle connections."""
        self._adapter.close()

    # Places, and the circuit.

    def _enter(self, until: float) -> int:
        """Take a place; return the generation of the circuit that granted it."""
        fork.notice_fork()
        until = min(until, real() + self.patience)
        with self._changed:
            while True:
                verdict, wait = acquire(self._verdict, self._clock(), self._rules)
                if wait > 0:
                    why = f"it has failed too often: {self._error}"
                    raise EndpointFailed(why, again_in=wait)
                if self._running < self.max_concurrent:
                    self._verdict = verdict
                    self._running += 1
                    return verdict.generation
                left = until - real()
                if left <= 0 or verdict.state is not State.CLOSED:
                    raise EndpointFailed(f"{self._running} requests wait for its answer already")
                self._waiting += 1
                try:
                    self._changed.wait(left)
                finally:
                    self._waiting -= 1

    def _leave(self, generation: int, outcome: Outcome, why: str) -> None:
        with self._changed:
            self._running = max(0, self._running - 1)
            before, now = self._verdict, self._clock()
            if outcome is Outcome.OK:
                self._error = ""
            elif why and outcome is not Outcome.IGNORED:
                self._error = why
            if before.state is not State.CLOSED:
                self._verdict = record_probe(before, generation, outcome, now, self._rules, why=why)
            elif generation == before.generation:
                reason = self._tally.add(outcome, now)
                if reason:
                    self._verdict = trip(before, generation, now, self._rules, why=reason)
            changed = self._verdict.state is not before.state
            if changed:
                self._tally.clear()
                self._changed.notify_all()
            else:
                self._changed.notify()
        if outcome is Outcome.OK:
            self._failing.ended()
        elif why and outcome is not Outcome.IGNORED:
            self._failing.failed("%s does not answer: %s", self.name, why)

    # The exchange.

    def _exchange(
        self, method: str, fields: Mapping[str, str], body: bytes | None, until: float
    ) -> EndpointReply:
        sent = Fields({"Host": self.authority, **fields})
        sent.target = self.target
        if body is not None or method in _BODY_METHODS:
            sent["Content-Length"] = str(len(body or b""))
        request = requests.PreparedRequest()
        request.method, request.url = method, self.origin + self.target
        request.headers, request.body = sent, body or None  # type: ignore[assignment]
        try:
            response = self._send(request, until)
            try:
                return self._read(response, until)
            finally:
                response.close()
        except EndpointFailed:
            raise
        except requests.Timeout as error:
            failed = EndpointFailed("there was no answer in time", timed_out=True)
            if isinstance(error, requests.ConnectTimeout):
                failed.outcome = Outcome.UNREACHABLE
            raise failed from error
        except (OSError, ValueError) as error:
            raise _failure_of(error) from error

    def _send(self, request: requests.PreparedRequest, until: float) -> LazyResponse:
        for again in (True, False):
            left = until - real()
            if left <= 0:
                break
            try:
                made: LazyResponse = self._adapter.send(  # type: ignore[assignment]
                    request, timeout=Timeout(left, left, left), verify=self._verify
                )
                return made
            except requests.Timeout:
                raise
            except requests.ConnectionError as error:
                if not again or isinstance(error, (NotConnected, BrokenResponse)):
                    raise
                request.fresh = True  # type: ignore[attr-defined]
        raise EndpointFailed("there was no answer in time", timed_out=True)

    def _read(self, response: LazyResponse, until: float) -> EndpointReply:
        body = response.whole
        if body is None:
            raw: Any = response.raw
            body = raw.read_within(self._max_bytes + 1, until)
        if len(body) > self._max_bytes:
            failed = EndpointFailed(f"its answer is larger than {self._max_bytes} bytes")
            failed.outcome = Outcome.OK  # it answers, and a client may have provoked this
            raise failed
        return EndpointReply(response.status_code, response.reader.fields, body)


def _failure_of(error: Exception) -> EndpointFailed:
    cause = error.__cause__ if isinstance(error, requests.RequestException) else None
    cause = cause if isinstance(cause, Exception) else error
    if isinstance(cause, PermissionError):  # an address that is not allowed
        failed = EndpointFailed(str(cause).replace("an instance", "an endpoint"), again_in=5.0)
    else:
        failed = EndpointFailed(reason_for(cause))
    if isinstance(error, NotConnected):
        failed.outcome = Outcome.UNREACHABLE
    elif isinstance(error, ValueError):  # the request could not even be written
        failed.outcome = Outcome.IGNORED
    return failed
