"""One try: an instance is picked, asked, and what came of it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias
from wsgiref.types import WSGIEnvironment

import requests

from wsgigate.circuits import Permit
from wsgigate.discovery import Instance
from wsgigate.problem import Problem, Refusal
from wsgigate.proxy.bulkhead import FULL
from wsgigate.proxy.departure import Departure
from wsgigate.proxy.hedging import Leg
from wsgigate.proxy.hold import Hold
from wsgigate.proxy.member import Member
from wsgigate.proxy.pool import Lease, Pool
from wsgigate.proxy.request import Outgoing
from wsgigate.proxy.sender import Sender, Unanswered
from wsgigate.proxy.service import Resilience
from wsgigate.proxy.transport import Timeout
from wsgigate.rules.circuit import Outcome
from wsgigate.rules.deadline import Deadline, try_time, write_timeout
from wsgigate.rules.outcomes import outcome_of
from wsgigate.wsgi import INSTANCE

__all__ = ["NO_INSTANCE", "TIMEOUT_KEY", "Asker", "Make"]

TIMEOUT_KEY = "HTTP_X_REQUEST_TIMEOUT"
_TIMEOUT = "X-Request-Timeout"

NO_INSTANCE = Problem(
    503,
    "Service temporarily unavailable",
    extensions={"error": "No instance available"},
    headers=(("Retry-After", "5"),),
)

Make: TypeAlias = Callable[[WSGIEnvironment, Instance], Outgoing]
"""Makes the request for an instance out of the client's."""


class Asker:
    """Asks one instance of a service at a time.

    :param pool: The service's instances.
    :param resilience: What is done when it fails.
    :param make: Makes the request for an instance.
    :param sender: Sends it.
    """

    def __init__(self, pool: Pool, resilience: Resilience, make: Make, sender: Sender) -> None:
        self._pool = pool
        self._resilience = resilience
        self._make = make
        self._sender = sender
        self._timed = resilience.timed or pool.timed

    def hold(
        self, environ: WSGIEnvironment, permit: Permit | None, failed: tuple[Member, ...]
    ) -> Hold:
        try:
            return Hold(self.pick(environ, failed), permit)
        except BaseException:
            if permit is not None:
                permit.done(Outcome.IGNORED)
            raise

    def pick(self, environ: WSGIEnvironment, failed: tuple[Member, ...] = ()) -> Lease:
        """Return a hold on whoever is to serve the request of *environ*.

        :param failed: Those that have not.
        :raises Refusal: There is nobody.
        """
        pool = self._pool
        key = None if pool.key is None else pool.key(environ)
        stuck = None if pool.sticky is None else pool.sticky.read(environ)
        lease = pool.pick(key, failed, None if stuck is None else stuck.id)
        if lease is not None:
            return lease
        if pool.instance_limit is not None and pool.available():
            raise Refusal(FULL, "every instance has as many requests as it may have")
        raise Refusal(NO_INSTANCE, "no instance")

    def another(self, environ: WSGIEnvironment, asked: tuple[Member, ...]) -> Hold | None:
        """Return a hold on an instance for a try beside those of *asked*, if there may be one."""
        resilience = self._resilience
        lease = self.pick(environ, asked)
        try:
            if lease.member not in asked:
                now = resilience.clock()
                permit = resilience.admit(now)
                if resilience.take(now):
                    return Hold(lease, permit)
                if permit is not None:
                    permit.done(Outcome.IGNORED)
        except BaseException:
            lease.release()
            raise
        lease.release()
        return None

    def ask(
        self,
        environ: WSGIEnvironment,
        hold: Hold,
        until: Deadline | None,
        number: int,
        departure: Departure,
    ) -> tuple[requests.Response, Outgoing]:
        """Return the answer of one instance; tell how long it took and what it means.

        :raises Unanswered: There is none.
        """
        resilience, pool = self._resilience, self._pool
        began, limits = 0.0, None
        try:
            environ[INSTANCE] = hold.instance.address
            request = self._make(environ, hold.instance)
            if self._timed or until is not None:
                began = resilience.clock()
            if until is not None:
                limits = self._limits(until, began)
                if TIMEOUT_KEY in environ and _TIMEOUT in request.headers:
                    request.headers[_TIMEOUT] = write_timeout(until, began)
                if number > 1:
                    request.fresh = True  # type: ignore[attr-defined]  # so not sent twice by itself
            response = self._sender.send(request, departure, limits)
            took = resilience.clock() - began if self._timed else 0.0
            outcome = outcome_of(response.status_code, resilience.failures)
            if pool.timed:
                pool.answered(hold.member, took, outcome is Outcome.FAILED)
            hold.answered(outcome, took, response.status_code)
            return response, request
        except Unanswered as error:
            if pool.timed:
                pool.answered(hold.member, resilience.clock() - began, True)
            cause = error.__cause__
            if not isinstance(cause, Exception) or self._too_short(cause, until, limits):
                hold.release()
            else:
                hold.release(cause)
            raise
        except BaseException:
            if pool.timed and type(departure) is Leg and departure.off:
                pool.answered(hold.member, resilience.clock() - began, False)  # that long at least
            hold.release()
            raise

    def _limits(self, until: Deadline, now: float) -> Timeout:
        """Return what a try may take that begins *now*; reading the body takes what it does."""
        connect, read = self._sender.timeout
        left = max(0.001, try_time(until, now, self._resilience.per_try))
        return Timeout(min(connect, left), read, left)

    def _too_short(self, error: Exception, until: Deadline | None, limits: Timeout | None) -> bool:
        """Return whether *error* is that the client wants it sooner than the service need be."""
        if until is None or limits is None or not until.shortened:
            return False
        if not isinstance(error, requests.Timeout):
            return False
        usual = self._sender.timeout[0 if isinstance(error, requests.ConnectTimeout) else 1]
        per_try = self._resilience.per_try
        return limits.total < (usual if per_try is None else min(usual, per_try))
