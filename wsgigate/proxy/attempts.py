"""The attempts of a request to a service: circuit breaker, deadline, retries, hedging.

Theory of operation. A service's :class:`Resilience` holds what its forwarders share. A default one
does nothing, except that a request whose connection fails goes to another instance.
:class:`Attempts` serves one request in this order:

1. The bulkhead admits the request or rejects it. It comes first, so that the circuit breaker does
   not count rejected requests.
2. The circuit breaker admits the request, which yields a permit, or rejects it with a 503.
3. An instance is leased. The :class:`~wsgigate.proxy.pool.InstanceLease` holds the permit and
   reports the outcome to both exactly once.
4. The attempt runs, alone or in a :class:`~wsgigate.proxy.hedging.Race`. When the retry rules allow
   another attempt, steps 2 to 4 repeat with the instances that failed excluded.

Rules that must hold:

- Every permit is reported and every lease released on every path, also when an exception passes. A
  permit that is not reported occupies a probe of a half-open circuit until the probe's timeout; a
  lease that is not released counts as a request in flight forever.
- The response of a failed attempt is closed and its lease released before the next attempt begins;
  a request does not hold two instances, except while it is hedged.
- All attempts share one deadline. Each attempt gets what is left of it, and the client's
  ``X-Request-Timeout`` is passed on as the remaining time.
- A request is repeated only when :func:`wsgigate.rules.retry.decide` allows it, which considers
  whether anything was sent, whether a response began, whether the body can be sent again, and the
  budget.
- An attempt that sent nothing is repeated without the budget, as it adds no load to the service,
  while all connections together have taken less than the connect timeout. Without retries the
  request goes to each instance at most once, and fails after that time.
- An error caused only by a shorter timeout of the client's is not reported as a failure of the
  instance; a client could otherwise open the circuit for all.
"""

from __future__ import annotations

import http.client
import math
import random as _random
import threading
import time
from collections.abc import Callable, Collection
from io import BytesIO
from typing import TYPE_CHECKING, Annotated
from wsgiref.types import WSGIEnvironment

import requests
from urllib3.exceptions import HTTPError

from wsgigate.client.adapter import Sessions, Timeout
from wsgigate.client.response_reader import BrokenResponse
from wsgigate.coordination.circuit import Circuit, Permit, Rejection
from wsgigate.http.bodies import BufferedBody, ClientBody, has_body
from wsgigate.http.fields import read_retry_after, retry_after
from wsgigate.http.problem import Problem, Refusal
from wsgigate.http.target import kept_target_of
from wsgigate.http.wsgi import ATTEMPTS, INSTANCE, TRACE, UPSTREAM_SECONDS, BodyError, BodyTooLarge
from wsgigate.proxy.bulkhead import FULL, Compartment
from wsgigate.proxy.disconnect import CLIENT_LEFT, UNWATCHED, ClientWatch
from wsgigate.proxy.hedging import AttemptResult, Hedge, HedgedAttempt, Race
from wsgigate.proxy.meter import CANCELED
from wsgigate.proxy.pool import ALL_DRAINED, InstanceLease, Member, Pool
from wsgigate.proxy.request import Outgoing, RequestMaker
from wsgigate.proxy.response import UNSENDABLE, Unanswered, error_type, nothing_sent
from wsgigate.rules.arguments import Range, checked
from wsgigate.rules.circuit import FAILURES, Outcome, check_failures, outcome_of
from wsgigate.rules.retry import (
    Attempt,
    Deadline,
    Decision,
    HedgeRules,
    RetryBudget,
    RetryRules,
    deadline,
    decide,
    read_timeout,
    try_time,
    write_timeout,
)
from wsgigate.runtime import fork
from wsgigate.runtime.threads import TIMER, Timer

if TYPE_CHECKING:
    from wsgigate.telemetry.spans import AttemptSpan

__all__ = ["TIMEOUT_KEY", "Attempts", "Resilience", "Sender"]

TIMEOUT_KEY = "HTTP_X_REQUEST_TIMEOUT"

_TIMEOUT = "X-Request-Timeout"

_NO_INSTANCE = Problem(
    503,
    "Service temporarily unavailable",
    extensions={"error": "No instance available"},
    headers=(("Retry-After", "5"),),
)

_DRAINED = Problem(
    503,
    "Service temporarily unavailable",
    extensions={"error": "All instances drained"},
    headers=(("Retry-After", "5"),),
)

_FAILOVER = RetryRules(attempts=3, backoff=0.0, methods=(), statuses=())
"""The rules without retries: a request of which nothing was sent goes to another instance."""

_NO_RETRIES = RetryRules(attempts=1, methods=(), statuses=())


@checked
class Resilience:
    """How a service's failures are handled; shared by all forwarders of the service.

    :param circuit: The circuit breaker. Default: none.
    :param failures: The statuses that count as failures, each 500 to 599.
    :param retry: When a request is retried. Default: a request whose connection to an instance
        fails, so that nothing was sent, goes to up to two other instances within the connect
        timeout. One attempt disables that, too.
    :param budget: The maximum number of retries. Default: a fifth of the requests.
    :param bulkhead: Limits the service's requests in flight in this worker: a
        :class:`~wsgigate.Bulkhead`, or a compartment of :class:`~wsgigate.ThreadShares`. Default:
        no limit.
    :param hedge: When a read-only request is sent to a second instance while the first has not
        responded, within the same *budget*. Default: never.
    :param timer: Starts the hedged attempts.
    :param clock: Monotonic clock, in seconds; the same as the circuit's.
    :param sleep: Waits a number of seconds.
    :param random: Returns a number in [0, 1).
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        *,
        circuit: Circuit | None = None,
        failures: Annotated[Collection[Annotated[int, Range(500, 599)]], Range(1)] = FAILURES,
        retry: RetryRules | None = None,
        budget: RetryBudget | None = None,
        bulkhead: Compartment | None = None,
        hedge: HedgeRules | None = None,
        timer: Timer = TIMER,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self.circuit = circuit
        self.failures = check_failures(failures)
        self.fails_over = retry is None
        self.retry = _FAILOVER if retry is None else retry if retry.attempts > 1 else _NO_RETRIES
        self.per_try = None if retry is None else retry.per_try_timeout
        self.bulkhead = bulkhead
        self.hedge = None if hedge is None else Hedge(hedge, timer=timer, clock=clock)
        self.budgeted = hedge is not None or not (self.fails_over or self.retry is _NO_RETRIES)
        self.clock = clock
        self.sleep = sleep
        self._random = random
        self._budget = RetryBudget() if budget is None else budget
        self._lock = threading.Lock()
        self.timed = circuit is not None and circuit.rules.slow_after is not None
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Replace the lock, which a thread of the parent may hold."""
        self._lock = threading.Lock()

    def count(self, now: float) -> None:
        """Count a request, which adds to the retry budget."""
        with self._lock:
            self._budget.request(now)

    def decide(self, attempt: Attempt, now: float) -> Decision:
        """Return whether to make another attempt after the failed *attempt*, and when."""
        return decide(attempt, self.retry, self._random(), lambda: self.take(now))

    def take(self, now: float) -> bool:
        """Take one attempt out of the retry budget; return ``False`` if it is used up."""
        with self._lock:
            return self._budget.withdraw(now)


def _open(circuit: Circuit, rejection: Rejection) -> Refusal:
    problem = Problem(
        503,
        "Service temporarily unavailable",
        extensions={"error": "Circuit breaker open"},
        headers=(("Retry-After", retry_after(rejection.retry_after)),),
    )
    return Refusal(problem, f"the circuit {circuit.name!r} is open")


_SEND_ERRORS = (
    requests.RequestException,
    HTTPError,
    OSError,
    http.client.HTTPException,
    ValueError,
)


class Sender:
    """Sends requests to the instances of a service.

    :param sessions: Provides the connections.
    :param timeout: The default timeouts of a request.
    :param verify: Whether to verify the instances' TLS certificates, or a CA bundle to verify with.
    :param cert: A client certificate: the path of a PEM file, or ``(certificate, key)`` paths.
    """

    def __init__(
        self,
        sessions: Sessions,
        timeout: Timeout,
        verify: bool | str,
        cert: str | tuple[str, str] | None,
    ) -> None:
        self._sessions = sessions
        self.timeout = timeout
        self._verify = verify
        self._cert = cert

    def send(
        self, request: Outgoing, watch: ClientWatch, timeout: Timeout | None = None
    ) -> requests.Response:
        """Return the response to *request*, its body unread.

        :param watch: Reports whether the client has disconnected.
        :param timeout: The timeouts of this request. Default: those of the sender.
        :raises Unanswered: The instance gave no response.
        :raises Refusal: The client caused the failure, such as a body that is too large.
        """
        if watch is not UNWATCHED:
            request.headers.on_socket = watch.set_upstream  # type: ignore[attr-defined]
        try:
            fork.notice_fork()  # two processes on one connection receive each other's responses
            adapter = self._sessions.adapters.get(request.origin)
            return (adapter or self._sessions.adapter(request.origin)).send(
                request,
                stream=True,
                timeout=timeout or self.timeout,
                verify=self._verify,
                cert=self._cert,
            )
        except Exception as error:
            broken = _broken(request.body)
            if isinstance(broken, BodyTooLarge):
                raise Refusal(Problem(413, "Request body too large."), str(broken)) from error
            if watch.gone:
                raise Refusal(CLIENT_LEFT, "the client has disconnected") from error
            if broken is not None and isinstance(broken.__cause__, TimeoutError):
                raise Refusal(Problem(408, "Request body came too slowly."), str(broken)) from error
            if broken is not None:
                raise Refusal(Problem(400, "Request body ended early."), str(broken)) from error
            if isinstance(error, _SEND_ERRORS):
                raise Unanswered(error) from error
            raise


def _broken(body: object) -> BodyError | None:
    return body.error if isinstance(body, ClientBody) else None


class Attempts:
    """Sends requests to a service, with the failover, retries and hedging that its rules allow.

    :param pool: The service's instances.
    :param resilience: The service's circuit breaker, retries and hedging.
    :param maker: Builds the request to an instance.
    :param sender: Sends the request.
    :param websockets: Whether the requests are WebSocket handshakes. An open circuit rejects these
        but does not count them, and they are not hedged.
    :ivar meter: Counts what happens to the requests of the service.
    :raises ValueError: *pool* is sticky and *resilience* hedges.
    """

    def __init__(
        self,
        pool: Pool,
        resilience: Resilience,
        maker: RequestMaker,
        sender: Sender,
        *,
        websockets: bool = False,
    ) -> None:
        if pool.sticky is not None and resilience.hedge is not None:
            raise ValueError("hedge cannot be combined with sticky: remove one of them")
        self._pool = pool
        self._resilience = resilience
        self._maker = maker
        self._sender = sender
        self._websockets = websockets
        self._hedge = None if websockets else resilience.hedge
        self._timed = resilience.timed or pool.timed
        self._counts = pool.timed or pool.judges or resilience.circuit is not None
        self.meter = pool.meter
        self._failures = pool.failures

    def run(
        self, environ: WSGIEnvironment, watch: ClientWatch, *, admitted: bool = False
    ) -> AttemptResult:
        """Send the request of *environ* to the service and return the response that counts.

        :param watch: Reports whether the client has disconnected.
        :param admitted: Whether the bulkhead has admitted the request already.
        :raises Refusal: The service gave no response; carries the client's response.
        """
        resilience = self._resilience
        if resilience.bulkhead is not None and not admitted:
            return self._run_in(resilience.bulkhead, environ, watch)
        rules, now = resilience.retry, resilience.clock()
        permit = None if resilience.circuit is None else self._admit(now)
        requested, until = environ.get(TIMEOUT_KEY), None
        if requested is not None or resilience.per_try is not None:  # else the usual timeouts
            asked = read_timeout(requested) if requested else None
            until = deadline(now, self._sender.timeout.total, asked)
        if resilience.budgeted:
            resilience.count(now)
        body, begins = None, 0
        if rules.attempts > 1:
            body = environ.get("wsgi.input")
            if type(body) is BytesIO and not body.closed:  # in memory already: no copy is needed
                begins = body.tell()
            elif has_body(environ):
                environ["wsgi.input"] = body = BufferedBody(body, rules.buffer)
            else:
                body = None
        lease = self._lease(environ, permit)
        number, connect_by = 1, math.inf
        failed: tuple[Member, ...] = ()
        while True:
            response, error = None, None
            try:
                hedge = self._hedge
                if hedge is not None and number == 1 and hedge.applies(environ):
                    response, request, lease = self._race(hedge, environ, lease, until, watch)
                else:
                    response, request = self._attempt(
                        environ, lease, until, number, watch, connect_by
                    )
                ended: int | str = response.status_code
                if ended not in rules.statuses:
                    if self._failures.failing:
                        self._failures.answered(lease.instance.address)
                    return response, request, lease
            except Unanswered as unanswered:
                error, ended = unanswered, error_type(unanswered)
            if until is None:
                until = deadline(now, self._sender.timeout.total)
            connected_by = now + self._sender.timeout[0]
            if resilience.fails_over:
                connect_by = connected_by
            again = self._retry(
                *(environ, number, min(until.until, connect_by), connected_by, response, error),
                _replayable(body, begins, rules.buffer),
            )
            if again is None:
                if error is not None:
                    raise error
                return response, request, lease  # type: ignore[return-value]
            if response is not None:
                response.close()
                lease.release()
            wait, permit = again
            self._wait(wait, permit, watch)
            number += 1
            failed = (*failed, lease.member)
            try:
                lease = self._lease(environ, permit, failed, resilience.fails_over)
            except Refusal:
                if error is not None and resilience.fails_over:
                    raise error from error.__cause__  # there is no other instance
                raise
            self.meter.retried(ended)
            why = f"status {ended}" if error is None else str(error)
            self._failures.add(environ, failed[-1].instance.address, why)
            if type(body) is BytesIO:
                body.seek(begins)
            elif body is not None:
                body.rewind()

    def _run_in(
        self, bulkhead: Compartment, environ: WSGIEnvironment, watch: ClientWatch
    ) -> AttemptResult:
        try:
            slot = bulkhead.enter()  # before the circuit: a rejected request is no outcome
        except Refusal:
            self.meter.crowded()
            raise
        try:
            result = self.run(environ, watch, admitted=True)
        except BaseException:
            slot.leave()
            raise
        if result[0].status_code != 101:  # the duration of a WebSocket is no response time
            slot.answered()
        result[2].slot = slot
        return result

    def _admit(self, now: float) -> Permit | None:
        """Return a permit of the circuit, which reports an outcome; ``None`` to report none.

        :raises Refusal: The circuit is open; carries the client's response.
        """
        circuit = self._resilience.circuit
        if circuit is None:
            return None
        permit = circuit.admit(now)
        if isinstance(permit, Rejection):
            raise _open(circuit, permit)
        if self._websockets:
            permit.done(Outcome.IGNORED)
            return None
        return permit

    def _lease(
        self,
        environ: WSGIEnvironment,
        permit: Permit | None,
        failed: tuple[Member, ...] = (),
        only_others: bool = False,
    ) -> InstanceLease:
        """Lease an instance for an attempt that *permit* allows; cancel *permit* if none is free.

        :param failed: Instances that failed this request already.
        :param only_others: Lease none of these, not even if there are no others.
        :raises Refusal: No instance is available.
        """
        pool, lease = self._pool, None
        try:
            key = None if pool.key is None else pool.key(environ)
            target = None if pool.sticky is None else pool.sticky.read(environ)
            lease = pool.pick(key, failed, None if target is None else target.id, only_others)
            if lease is not None:
                lease.permit = permit
                return lease
            if pool.instance_limit is not None and pool.available():
                raise Refusal(FULL, "every instance has reached its limit of requests in flight")
            why = pool.unavailability()
            raise Refusal(_DRAINED if why == ALL_DRAINED else _NO_INSTANCE, why)
        finally:
            if lease is None and permit is not None:
                permit.done(Outcome.IGNORED)

    def _lease_for_hedge(
        self, environ: WSGIEnvironment, tried: tuple[Member, ...]
    ) -> InstanceLease | None:
        """Lease an instance not in *tried* for a hedged attempt; ``None`` if the budget is used up.

        :raises Refusal: There is no other instance, or the circuit is open.
        """
        lease = self._lease(environ, None, tried, only_others=True)
        allowed = False
        try:
            now = self._resilience.clock()
            lease.permit = self._admit(now)
            allowed = self._resilience.take(now)
        finally:
            if not allowed:
                lease.release()
        return lease if allowed else None

    def _race(
        self,
        hedge: Hedge,
        environ: WSGIEnvironment,
        lease: InstanceLease,
        until: Deadline | None,
        watch: ClientWatch,
    ) -> AttemptResult:
        """Run the first attempt, and others beside it while it is slow."""

        def run(
            environ: WSGIEnvironment, lease: InstanceLease, number: int, watch: ClientWatch
        ) -> tuple[requests.Response, Outgoing]:
            return self._attempt(environ, lease, until, number, watch)

        failures = {*self._resilience.failures, *self._resilience.retry.statuses}
        count = self.meter.hedged
        race = Race(hedge, run, self._lease_for_hedge, failures.__contains__, count)
        waited, clock = environ.get(UPSTREAM_SECONDS, 0.0), self._resilience.clock
        before, began = environ.get(ATTEMPTS, 0), clock()
        try:
            return race.winner(environ, lease, watch)
        finally:  # attempts side by side: their times are not added up
            environ[UPSTREAM_SECONDS] = waited + clock() - began
            environ[ATTEMPTS] = before + race.attempts

    def _attempt(
        self,
        environ: WSGIEnvironment,
        lease: InstanceLease,
        until: Deadline | None,
        number: int,
        watch: ClientWatch,
        connect_by: float = math.inf,
    ) -> tuple[requests.Response, Outgoing]:
        """Send the request to one instance; return its response, and report time and outcome.

        :param number: The number of the attempt, from 1.
        :param connect_by: When the connection must be open.
        :raises Unanswered: The instance gave no response.
        """
        resilience, pool = self._resilience, self._pool
        began, limits = 0.0, None
        try:
            environ[INSTANCE] = lease.instance.address
            request = self._maker.make(environ, kept_target_of(environ), lease.instance)
            if pool.sticky is not None:
                pool.sticky.mark(request, environ, lease.instance)
            trace = environ.get(TRACE)
            if trace is not None and trace.span is not None:
                lease.span = trace.span.attempt(
                    *(request.headers, request.method, request.origin, request.target, number)
                )
            if self._websockets:
                request.headers.update({"Connection": "Upgrade", "Upgrade": "websocket"})
                request.upgrade = True
            request.connections = pool.meter.connections
            began = resilience.clock()
            if until is not None:
                limits = self._limits(until, connect_by, began)
                if TIMEOUT_KEY in environ and _TIMEOUT in request.headers:
                    request.headers[_TIMEOUT] = write_timeout(until, began)
                if number > 1 and not resilience.fails_over:
                    # on a new connection, so that the client does not repeat it automatically
                    request.fresh = True
            response = self._send(environ, request, lease.member, watch, limits, began)
            if lease.span is not None:
                lease.span.responded(response.status_code)
            if self._counts:
                took = resilience.clock() - began if self._timed else 0.0
                outcome = outcome_of(response.status_code, resilience.failures)
                if pool.timed:
                    pool.answered(lease.member, took, outcome is Outcome.FAILED)
                lease.answered(outcome, took, response.status_code)
            return response, request
        except Unanswered as error:
            if pool.timed:
                pool.answered(lease.member, resilience.clock() - began, True)
            cause = error.__cause__
            if not isinstance(cause, Exception) or self._too_short(cause, until, limits):
                if lease.span is not None:
                    lease.span.failed(cause or error, str(error))
                lease.release()
            else:
                lease.release(cause)
            raise
        except BaseException as error:
            if lease.span is not None:
                self._end_span(lease.span, error, watch)
            if pool.timed and type(watch) is HedgedAttempt and watch.aborted:
                # the elapsed time is a lower bound of the response time
                pool.answered(lease.member, resilience.clock() - began, False)
            lease.release()
            raise

    def _send(
        self,
        environ: WSGIEnvironment,
        request: Outgoing,
        member: Member,
        watch: ClientWatch,
        limits: Timeout | None,
        began: float,
    ) -> requests.Response:
        """Send *request* to *member*; record how long that takes, and how it ends."""
        ended: int | str = CANCELED
        try:
            response = self._sender.send(request, watch, limits)
            ended = response.status_code
            return response
        except Refusal as error:
            if not (type(watch) is HedgedAttempt and watch.aborted):
                ended = error_type(error)
            raise
        finally:
            seconds = self._resilience.clock() - began
            environ[UPSTREAM_SECONDS] = environ.get(UPSTREAM_SECONDS, 0.0) + seconds
            environ[ATTEMPTS] = environ.get(ATTEMPTS, 0) + 1
            member.meter.attempted(seconds, ended)

    def _end_span(self, span: AttemptSpan, error: BaseException, watch: ClientWatch) -> None:
        """Record why an attempt has ended for which the instance is not the cause."""
        if type(watch) is HedgedAttempt and watch.aborted:
            span.cancelled("another attempt has responded")
        elif watch.gone:
            span.cancelled("the client has disconnected")
        else:
            span.failed(error, str(error))

    def _limits(self, until: Deadline, connect_by: float, now: float) -> Timeout:
        """Return the timeouts of an attempt that begins *now*; reading the body is not limited."""
        connect, read = self._sender.timeout
        left = max(0.001, try_time(until, now, self._resilience.per_try))
        return Timeout(min(connect, left, max(0.001, connect_by - now)), read, left)

    def _too_short(self, error: Exception, until: Deadline | None, limits: Timeout | None) -> bool:
        """Return whether *error* is a timeout that is shorter than the service's own settings.

        The client's shorter deadline caused it, or the time that failed connections have taken.
        """
        if until is None or limits is None or not isinstance(error, requests.Timeout):
            return False
        if isinstance(error, requests.ConnectTimeout):
            usual = self._sender.timeout[0]
            if self._resilience.fails_over:
                return limits[0] < usual
        else:
            usual = self._sender.timeout[1]
        per_try = self._resilience.per_try
        shortest = usual if per_try is None else min(usual, per_try)
        return until.shortened and limits.total < shortest

    def _retry(
        self,
        environ: WSGIEnvironment,
        number: int,
        until: float,
        connect_by: float,
        response: requests.Response | None,
        error: Unanswered | None,
        replayable: bool,
    ) -> tuple[float, Permit | None] | None:
        """Return the seconds to wait before a retry, and its permit; ``None`` for no retry."""
        resilience = self._resilience
        cause = None if error is None else error.__cause__
        if isinstance(cause, UNSENDABLE):
            return None
        now = resilience.clock()
        attempt = Attempt(
            environ["REQUEST_METHOD"],
            number,
            sent=cause is None or not nothing_sent(cause),
            replayable=replayable,
            left=until - now,
            status=None if response is None else response.status_code,
            received=response is not None or (cause is not None and _had_begun(cause)),
            retry_after=None if response is None else _retry_after(response),
            keyed=bool(environ.get("HTTP_IDEMPOTENCY_KEY")),
            connect_left=connect_by - now,
        )
        decision = resilience.decide(attempt, now)
        if not decision.again:
            return None
        try:
            return decision.wait, self._admit(now)
        except Refusal:
            return None  # the circuit is open: the client gets the present result

    def _wait(self, seconds: float, permit: Permit | None, watch: ClientWatch) -> None:
        if seconds:
            self._resilience.sleep(seconds)
        if watch.gone:
            if permit is not None:
                permit.done(Outcome.IGNORED)
            raise Refusal(CLIENT_LEFT, "the client has disconnected")


def _replayable(body: BufferedBody | BytesIO | None, begins: int, most: int) -> bool:
    """Return whether what was read of *body* can be read again.

    :param begins: The position of a body in memory at which it begins.
    :param most: The maximum number of bytes that are sent again.
    """
    if isinstance(body, BytesIO):
        return body.tell() - begins <= most
    return body is None or not body.too_large


def _retry_after(response: requests.Response) -> float | None:
    """Return the seconds of a response's ``Retry-After``, the longest of several."""
    values = [
        read_retry_after(value, time.time())
        for name, value in response.raw.headers.items()
        if name.lower() == "retry-after"
    ]
    return max((seconds for seconds in values if seconds is not None), default=None)


def _had_begun(error: BaseException) -> bool:
    """Return whether *error* means that an invalid or incomplete response had begun."""
    inner: object = error
    for _ in range(5):
        if isinstance(inner, BrokenResponse):
            return True
        if isinstance(inner, http.client.HTTPException):
            return not isinstance(inner, http.client.RemoteDisconnected)
        wrapped = [arg for arg in getattr(inner, "args", ()) if isinstance(arg, Exception)]
        inner = getattr(inner, "reason", None) or (wrapped[-1] if wrapped else None)
    return False
