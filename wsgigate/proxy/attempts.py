"""The attempts of a request to a service: circuit breaker, deadline, retries, hedging.

Theory of operation. :class:`Attempts` serves one request in this order:

1. The bulkhead admits the request or rejects it. It comes first, so that the circuit breaker does
   not count rejected requests.
2. The circuit breaker admits the request, which yields a permit, or rejects it with a 503.
3. :class:`AttemptRunner` reserves an instance. The instance and the permit form a
   :class:`~wsgigate.proxy.send.Reservation`, which reports the outcome to both exactly once.
4. The attempt runs, alone or in a :class:`~wsgigate.proxy.hedging.Race`. When the retry rules allow
   another attempt, steps 2 to 4 repeat with the instances that failed excluded.

Rules that must hold:

- Every permit is reported and every reservation released on every path, also when an exception
  passes. A permit that is not reported occupies a probe of a half-open circuit until the probe's
  timeout; a reservation that is not released counts as a request in flight forever.
- The response of a failed attempt is closed and its reservation released before the next attempt
  begins; a request does not hold two instances, except while it is hedged.
- All attempts share one deadline. Each attempt gets what is left of it, and the client's
  ``X-Request-Timeout`` is passed on as the remaining time.
- A request is repeated only when :func:`wsgigate.rules.retry.decide` allows it, which considers
  whether anything was sent, whether a response began, whether the body can be sent again, and the
  budget.
- An error caused only by a shorter timeout of the client's is not reported as a failure of the
  instance; a client could otherwise open the circuit for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias
from wsgiref.types import WSGIEnvironment

import requests

from wsgigate.client.adapter import Timeout
from wsgigate.coordination.circuit import Permit
from wsgigate.discovery import Instance
from wsgigate.http.bodies import replayed
from wsgigate.http.problem import Problem, Refusal
from wsgigate.http.wsgi import INSTANCE
from wsgigate.proxy.disconnect import ClientWatch
from wsgigate.proxy.hedging import AttemptResult, HedgedAttempt, Race
from wsgigate.proxy.pool import FULL, InstanceLease, Member, Pool
from wsgigate.proxy.request import Outgoing
from wsgigate.proxy.resilience import Resilience
from wsgigate.proxy.send import (
    CLIENT_LEFT,
    UNSENDABLE,
    Reservation,
    Sender,
    Unanswered,
    had_begun,
    nothing_sent,
)
from wsgigate.rules.circuit import Outcome, outcome_of
from wsgigate.rules.retry import (
    Attempt,
    Deadline,
    deadline,
    read_retry_after,
    read_timeout,
    try_time,
    write_timeout,
)

__all__ = ["NO_INSTANCE", "TIMEOUT_KEY", "AttemptRunner", "Attempts", "RequestFactory"]

TIMEOUT_KEY = "HTTP_X_REQUEST_TIMEOUT"

_TIMEOUT = "X-Request-Timeout"

NO_INSTANCE = Problem(
    503,
    "Service temporarily unavailable",
    extensions={"error": "No instance available"},
    headers=(("Retry-After", "5"),),
)

RequestFactory: TypeAlias = Callable[[WSGIEnvironment, Instance], Outgoing]
"""Builds the request to an instance from the client's request."""


class AttemptRunner:
    """Runs single attempts: picks an instance, sends the request, reports the outcome.

    :param pool: The service's instances.
    :param resilience: The service's circuit breaker, retries and hedging.
    :param make: Builds the request to an instance.
    :param sender: Sends the request.
    """

    def __init__(
        self, pool: Pool, resilience: Resilience, make: RequestFactory, sender: Sender
    ) -> None:
        self._pool = pool
        self._resilience = resilience
        self._make = make
        self._sender = sender
        self._timed = resilience.timed or pool.timed

    def reserve(
        self, environ: WSGIEnvironment, permit: Permit | None, failed: tuple[Member, ...]
    ) -> Reservation:
        """Reserve an instance for an attempt that *permit* allows; cancel *permit* if none is free.

        :param failed: Instances that failed this request already.
        :raises Refusal: No instance is available.
        """
        try:
            return Reservation(self.pick(environ, failed), permit)
        except BaseException:
            if permit is not None:
                permit.done(Outcome.IGNORED)
            raise

    def pick(self, environ: WSGIEnvironment, failed: tuple[Member, ...] = ()) -> InstanceLease:
        """Lease the instance for the request of *environ*.

        :param failed: Instances that failed this request already.
        :raises Refusal: No instance is available.
        """
        pool = self._pool
        key = None if pool.key is None else pool.key(environ)
        target = None if pool.sticky is None else pool.sticky.read(environ)
        lease = pool.pick(key, failed, None if target is None else target.id)
        if lease is not None:
            return lease
        if pool.instance_limit is not None and pool.available():
            raise Refusal(FULL, "every instance has reached its limit of requests in flight")
        raise Refusal(NO_INSTANCE, "no instance is available")

    def reserve_hedge(
        self, environ: WSGIEnvironment, tried: tuple[Member, ...]
    ) -> Reservation | None:
        """Reserve an instance not in *tried* for a hedged attempt; ``None`` if none may be made."""
        resilience = self._resilience
        lease = self.pick(environ, tried)
        try:
            if lease.member not in tried:
                now = resilience.clock()
                permit = resilience.admit(now)
                if resilience.take(now):
                    return Reservation(lease, permit)
                if permit is not None:
                    permit.done(Outcome.IGNORED)
        except BaseException:
            lease.release()
            raise
        lease.release()
        return None

    def run(
        self,
        environ: WSGIEnvironment,
        reservation: Reservation,
        until: Deadline | None,
        number: int,
        watch: ClientWatch,
    ) -> tuple[requests.Response, Outgoing]:
        """Send the request to one instance; return its response, and report time and outcome.

        :param number: The number of the attempt, from 1.
        :raises Unanswered: The instance gave no response.
        """
        resilience, pool = self._resilience, self._pool
        began, limits = 0.0, None
        try:
            environ[INSTANCE] = reservation.instance.address
            request = self._make(environ, reservation.instance)
            if self._timed or until is not None:
                began = resilience.clock()
            if until is not None:
                limits = self._limits(until, began)
                if TIMEOUT_KEY in environ and _TIMEOUT in request.headers:
                    request.headers[_TIMEOUT] = write_timeout(until, began)
                if number > 1:
                    # on a new connection, so that the client does not repeat it automatically
                    request.fresh = True  # type: ignore[attr-defined]
            response = self._sender.send(request, watch, limits)
            took = resilience.clock() - began if self._timed else 0.0
            outcome = outcome_of(response.status_code, resilience.failures)
            if pool.timed:
                pool.answered(reservation.member, took, outcome is Outcome.FAILED)
            reservation.answered(outcome, took, response.status_code)
            return response, request
        except Unanswered as error:
            if pool.timed:
                pool.answered(reservation.member, resilience.clock() - began, True)
            cause = error.__cause__
            if not isinstance(cause, Exception) or self._too_short(cause, until, limits):
                reservation.release()
            else:
                reservation.release(cause)
            raise
        except BaseException:
            if pool.timed and type(watch) is HedgedAttempt and watch.aborted:
                # the elapsed time is a lower bound of the response time
                pool.answered(reservation.member, resilience.clock() - began, False)
            reservation.release()
            raise

    def _limits(self, until: Deadline, now: float) -> Timeout:
        """Return the timeouts of an attempt that begins *now*; reading the body is not limited."""
        connect, read = self._sender.timeout
        left = max(0.001, try_time(until, now, self._resilience.per_try))
        return Timeout(min(connect, left), read, left)

    def _too_short(self, error: Exception, until: Deadline | None, limits: Timeout | None) -> bool:
        """Return whether *error* is a timeout that only the client's shorter deadline caused."""
        if until is None or limits is None or not until.shortened:
            return False
        if not isinstance(error, requests.Timeout):
            return False
        usual = self._sender.timeout[0 if isinstance(error, requests.ConnectTimeout) else 1]
        per_try = self._resilience.per_try
        return limits.total < (usual if per_try is None else min(usual, per_try))


class Attempts:
    """Sends requests to a service, with retries and hedging where these are configured and safe.

    :param pool: The service's instances.
    :param resilience: The service's circuit breaker, retries and hedging.
    :param make: Builds the request to an instance.
    :param sender: Sends the request.
    :raises ValueError: *pool* is sticky and *resilience* hedges.
    """

    def __init__(
        self, pool: Pool, resilience: Resilience, make: RequestFactory, sender: Sender
    ) -> None:
        if pool.sticky is not None and resilience.hedge is not None:
            raise ValueError("hedge cannot be combined with sticky: remove one of them")
        self._runner = AttemptRunner(pool, resilience, make, sender)
        self._resilience = resilience
        self._total = sender.timeout.total

    def check_circuit(self) -> None:
        """Check that the circuit admits a request, without reporting an outcome.

        :raises Refusal: The circuit is open.
        """
        permit = self._resilience.admit(self._resilience.clock())
        if permit is not None:
            permit.done(Outcome.IGNORED)

    def lease(self, environ: WSGIEnvironment) -> InstanceLease:
        """Lease an instance for a request whose outcome is not reported.

        :raises Refusal: No instance is available, or the bulkhead is full.
        """
        bulkhead = self._resilience.bulkhead
        if bulkhead is None:
            return self._runner.pick(environ)
        slot = bulkhead.enter()
        try:
            lease = self._runner.pick(environ)
        except BaseException:
            slot.leave()
            raise
        lease.slot = slot
        return lease

    def run(self, environ: WSGIEnvironment, watch: ClientWatch) -> AttemptResult:
        """Send the request of *environ* to the service and return the response that counts.

        :param watch: Reports whether the client has disconnected.
        :raises Refusal: The service gave no response; carries the client's response.
        """
        bulkhead = self._resilience.bulkhead
        if bulkhead is None:
            return self._run(environ, watch)
        slot = bulkhead.enter()  # before the circuit: a rejected request is no outcome
        try:
            result = self._run(environ, watch)
        except BaseException:
            slot.leave()
            raise
        result[2].keep(slot)
        return result

    def _run(self, environ: WSGIEnvironment, watch: ClientWatch) -> AttemptResult:
        resilience = self._resilience
        rules, now = resilience.retry, resilience.clock()
        permit = resilience.admit(now)
        requested = environ.get(TIMEOUT_KEY)
        total = self._total
        until = None
        if requested is not None or resilience.per_try is not None:  # else the usual timeouts
            until = deadline(now, total, read_timeout(requested) if requested else None)
        if rules is not None or resilience.hedge is not None:
            resilience.count(now)
        if rules is None:
            return self._first(environ, self._runner.reserve(environ, permit, ()), until, watch)
        replay = replayed(environ, rules.buffer)
        number = 1
        failed: tuple[Member, ...] = ()
        while True:
            reservation = self._runner.reserve(environ, permit, failed)
            response, error = None, None
            try:
                if number == 1:
                    response, request, reservation = self._first(environ, reservation, until, watch)
                else:
                    response, request = self._runner.run(environ, reservation, until, number, watch)
                if response.status_code not in rules.statuses:
                    return response, request, reservation
            except Unanswered as unanswered:
                error = unanswered
            if until is None:
                until = deadline(now, total)
            again = self._retry(
                environ, number, until, response, error, replay is None or replay.whole
            )
            if again is None:
                if error is not None:
                    raise error
                return response, request, reservation  # type: ignore[return-value]
            if response is not None:
                response.close()
                reservation.release()
            wait, permit = again
            self._wait(wait, permit, watch)
            if replay is not None:
                replay.rewind()
            number += 1
            failed = (*failed, reservation.member)

    def _first(
        self,
        environ: WSGIEnvironment,
        reservation: Reservation,
        until: Deadline | None,
        watch: ClientWatch,
    ) -> AttemptResult:
        """Run the first attempt, hedged where configured; return the response that counts."""
        hedge = self._resilience.hedge
        if hedge is None or not hedge.applies(environ):
            return *self._runner.run(environ, reservation, until, 1, watch), reservation

        def run(
            environ: WSGIEnvironment, reservation: Reservation, number: int, watch: ClientWatch
        ) -> tuple[requests.Response, Outgoing]:
            return self._runner.run(environ, reservation, until, number, watch)

        race = Race(hedge, run, self._runner.reserve_hedge, self._is_failure)
        return race.run(environ, reservation, watch)

    def _is_failure(self, status: int) -> bool:
        """Return whether a response with *status* is a failure or causes a retry."""
        resilience = self._resilience
        retried = () if resilience.retry is None else resilience.retry.statuses
        return status in resilience.failures or status in retried

    def _retry(
        self,
        environ: WSGIEnvironment,
        number: int,
        until: Deadline,
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
            left=until.until - now,
            status=None if response is None else response.status_code,
            received=response is not None or (cause is not None and had_begun(cause)),
            retry_after=None if response is None else _retry_after(response),
            keyed=bool(environ.get("HTTP_IDEMPOTENCY_KEY")),
        )
        decision = resilience.decide(attempt, now)
        if not decision.again:
            return None
        try:
            return decision.wait, resilience.admit(now)
        except Refusal:
            return None  # the circuit is open: the client gets the present result

    def _wait(self, seconds: float, permit: Permit | None, watch: ClientWatch) -> None:
        if seconds:
            self._resilience.sleep(seconds)
        if watch.gone:
            if permit is not None:
                permit.done(Outcome.IGNORED)
            raise Refusal(CLIENT_LEFT, "the client has disconnected")


def _retry_after(response: requests.Response) -> float | None:
    """Return the seconds of a response's ``Retry-After``, the longest of several."""
    values = [
        read_retry_after(value, time.time())
        for name, value in response.raw.headers.items()
        if name.lower() == "retry-after"
    ]
    return max((seconds for seconds in values if seconds is not None), default=None)
